//! Gradients within a budget of memory: what bytes must count as, so that what is kept fits.
//!
//! How much memory a step takes is known only of the plan, in which fused values take none and buffers share memory. So a
//! ladder of prices is tried on the plan itself, and the lowest price that fits is taken; what is predicted is what
//! the arena is.

use super::{LEAST_MEMORY, Options, Report, differentiate_and_report};
use crate::target::Target;
use crate::{Error, plan::Plan};
use eva_ir::diag::Diag;
use eva_ir::dim::Sym;
use eva_ir::graph::Module;
use std::collections::BTreeMap;

/// A function with its gradients, and what a step of it takes.
#[derive(Clone, Debug)]
pub struct Fitted {
    /// The module with `@{name}.grad`.
    pub module: Module,
    /// What was decided: what called functions keep, and forms of attention.
    pub report: Report,
    /// The price of a byte that was taken.
    pub seconds_per_byte: f64,
    /// The bytes of arena that a step takes.
    pub peak: usize,
    /// The plan that they are of.
    pub plan: Plan,
}

/// The prices that are tried, from the lowest.
const LADDER: [f64; 10] = [0.0, 1e-13, 1e-12, 3e-12, 1e-11, 3e-11, 1e-10, 1e-9, 1e-8, LEAST_MEMORY];

/// `@{name}.grad`, compiled by `passes` for `target`, in at most `budget` bytes of arena at these extents (none: as fast as
/// can be). The price in `options` is where the search begins.
pub fn fit(
    module: &Module,
    name: &str,
    options: &Options,
    (target, passes): (&Target, &crate::Options),
    sizes: &BTreeMap<Sym, i64>,
    budget: Option<usize>,
) -> Result<Fitted, Error> {
    let at = |seconds_per_byte: f64| -> Result<Fitted, Error> {
        let mut options = Options { seconds_per_byte, ..options.clone() };
        options.cost.sizes.extend(sizes.clone());
        let split = differentiate_and_report(module, name, &options);
        let (module, report) = split.map_err(|diag| Error::Invalid(diag.into()))?;
        let plan = crate::compile(&module, target, passes)?;
        let peak = peak(&plan, &format!("{name}{}", super::GRADIENT), sizes)?;
        Ok(Fitted { module, report, seconds_per_byte, peak, plan })
    };
    let Some(budget) = budget else { return at(options.seconds_per_byte) };
    let prices: Vec<f64> = LADDER.into_iter().filter(|&price| price >= options.seconds_per_byte).collect();
    // The first rung that fits, by halves: a higher price takes no more memory, or hardly more.
    let (mut low, mut high) = (0, prices.len());
    let mut fitting: Option<Fitted> = None;
    let mut least = usize::MAX;
    while low < high {
        let middle = (low + high) / 2;
        let fitted = at(prices[middle])?;
        least = least.min(fitted.peak);
        if fitted.peak <= budget {
            high = middle;
            fitting = Some(fitted);
        } else {
            low = middle + 1;
        }
    }
    fitting.ok_or_else(|| {
        let message = format!("a step takes {least} bytes at least, but the budget is {budget}");
        let help =
            "use shorter or fewer sequences and accumulate gradients, or keep activations in fewer bits";
        Error::Invalid(Diag::new("eva::budget", message).help(help).into())
    })
}

/// The bytes of arena that a call of `name` takes.
fn peak(plan: &Plan, name: &str, sizes: &BTreeMap<Sym, i64>) -> Result<usize, Error> {
    let func = plan.funcs.iter().find(|(_, f)| f.name == name).map(|(func, _)| func);
    let fixed: BTreeMap<&Sym, i64> =
        plan.dims.iter().filter_map(|(sym, value)| Some((sym, (*value)?))).collect();
    let value = |sym: &Sym| fixed.get(sym).copied().or_else(|| sizes.get(sym).copied());
    let bytes = func.and_then(|func| plan.arena_bytes(func, &|dim| dim.eval(&value)));
    bytes.ok_or_else(|| {
        let open: Vec<String> = plan
            .dims
            .iter()
            .filter(|(sym, _)| value(sym).is_none())
            .map(|(sym, _)| sym.to_string())
            .collect();
        let message = format!("what a step takes depends on {}", open.join(", "));
        Error::Invalid(Diag::new("eva::budget", message).help("give these extents values").into())
    })
}
