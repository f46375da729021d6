//! Tests of your own passes and rules: snapshots in one line, and checks against what a module means.
//!
//! [`assert_pass_snapshot!`] keeps what a pass makes of a module as an [insta](https://docs.rs/insta) snapshot;
//! [`Check`] runs the evaluator before and after it, on random inputs. Either takes a pass ([`Pass`], a function, or
//! the name of one of eva's) or rules, and a module: `.eva` text, a [`Module`], or a program of the DSL.
//! `docs/passes.md` is the guide.
//!
//! These are assertions: what goes wrong is a panic with a message for the author of the test.
//!
//! [`assert_pass_snapshot!`]: crate::assert_pass_snapshot

use crate::dsl::Program;
use eva_ir::diag::{Diag, Diags};
use eva_ir::eval::{Array, Sizes};
use eva_ir::graph::{Func, Function, Module};
use eva_ir::testing::Rng;
use eva_ir::types::{DType, TensorType};
use eva_ir::{text, verify};
use eva_passes::cost::{Cost, CostOptions, Lengths};
use eva_passes::rebuild::functions;
use eva_passes::rewrite::check::{check, values};
use eva_passes::rewrite::{Choose, rewrite};
use eva_passes::{Exactness, Options, Pass, Rule, optimize, run_pass};
use std::fmt::Write;

/// Keeps what a pass makes of a module as an insta snapshot: both as text, and what rules did.
///
/// The pass is a [`Pass`](crate::passes::Pass), a function `&Module -> Result<Module, Diag>`, the name of one of eva's,
/// rules, or [`Options`](crate::passes::Options) for all passes; the module is `.eva` text, a `Module` or a `Program`.
/// The crate needs `insta` among its `dev-dependencies`. A third argument, `@"…"`, is the snapshot itself, inline.
///
/// ```
/// use eva::assert_pass_snapshot;
///
/// let module = "dim n = 5 fn @f(%x: f32[n, 7], %y: f32[7, n]) -> f32[n, n] {
///   %z = einsum \"nm,mk->nk\" %x, %y : f32[n, n]
///   return %z
/// }";
/// assert_pass_snapshot!("order", module, @r#"
/// // before
/// dim n = 5
///
/// fn @f(
///   %x: f32[n, 7],
///   %y: f32[7, n],
/// ) -> f32[n, n] {
///   %z = einsum "na,ab->nb" %x, %y : f32[n, n]
///   return %z
/// }
///
/// // after: unchanged
/// "#);
/// ```
#[macro_export]
macro_rules! assert_pass_snapshot {
    ($pass:expr, $module:expr $(,)?) => {
        ::insta::with_settings!({ omit_expression => true }, {
            ::insta::assert_snapshot!($crate::testing::before_and_after(&$pass, &$module))
        })
    };
    ($pass:expr, $module:expr, @$snapshot:literal $(,)?) => {
        ::insta::with_settings!({ omit_expression => true }, {
            ::insta::assert_snapshot!($crate::testing::before_and_after(&$pass, &$module), @$snapshot)
        })
    };
}

/// What a test can be about: something that gives a module.
pub trait Subject {
    /// The module, which is well-formed.
    fn module(&self) -> Result<Module, Diags>;
}

impl Subject for &str {
    fn module(&self) -> Result<Module, Diags> {
        text::parse(self)
    }
}

impl Subject for String {
    fn module(&self) -> Result<Module, Diags> {
        text::parse(self)
    }
}

impl Subject for Module {
    fn module(&self) -> Result<Module, Diags> {
        verify::verified(self.clone())
    }
}

impl Subject for &Module {
    fn module(&self) -> Result<Module, Diags> {
        (*self).module()
    }
}

impl Subject for Program {
    fn module(&self) -> Result<Module, Diags> {
        self.finish()
    }
}

impl Subject for Result<Module, Diags> {
    fn module(&self) -> Result<Module, Diags> {
        self.clone()
    }
}

/// What a test can do to a module.
pub trait Change {
    /// The module that it makes, with lines that say how.
    fn change(&self, module: &Module) -> Result<(Module, Vec<String>), Diags>;
}

/// One of eva's passes, by name.
impl Change for &str {
    fn change(&self, module: &Module) -> Result<(Module, Vec<String>), Diags> {
        let unknown = || Err(Diag::new("eva::unknown", format!("there is no pass named `{self}`")).into());
        run_pass(self, module, &Options::default()).map_or_else(unknown, plain)
    }
}

impl Change for Pass {
    fn change(&self, module: &Module) -> Result<(Module, Vec<String>), Diags> {
        let options = Options { passes: vec![self.clone()], ..Options::default() };
        run_pass(self.name(), module, &options).map_or_else(|| Ok((module.clone(), Vec::new())), plain)
    }
}

/// All graph passes, by these options.
impl Change for Options {
    fn change(&self, module: &Module) -> Result<(Module, Vec<String>), Diags> {
        plain(optimize(module, self))
    }
}

impl<F: Fn(&Module) -> Result<Module, Diag>> Change for F {
    fn change(&self, module: &Module) -> Result<(Module, Vec<String>), Diags> {
        let new = self(module)?;
        verify::verify(&new)?;
        Ok((new, Vec::new()))
    }
}

/// Rules alone, without eva's: every function by itself, taken where it gets cheaper on a CPU.
impl Change for Vec<Rule> {
    fn change(&self, module: &Module) -> Result<(Module, Vec<String>), Diags> {
        let mut notes = Vec::new();
        let new = functions(module, |f| {
            let cost = Cost::new(module, f, &CostOptions::default());
            let (new, done) = rewrite(f, self, &cost, Choose::Cheapest)?;
            for fired in done.rules.iter().filter(|fired| fired.matched > 0) {
                let places = if fired.matched == 1 { "place" } else { "places" };
                let chosen = match fired.chosen.as_slice() {
                    [] => "not taken, since it costs more".into(),
                    names => format!("taken for %{}", names.join(", %")),
                };
                notes.push(format!(
                    "{} fits in {} {places} of @{}, {chosen}",
                    fired.rule, fired.matched, f.name
                ));
            }
            Ok(Some(new))
        })?;
        verify::verify(&new)?;
        Ok((new, notes))
    }
}

impl Change for Rule {
    fn change(&self, module: &Module) -> Result<(Module, Vec<String>), Diags> {
        vec![self.clone()].change(module)
    }
}

fn plain(result: Result<Module, eva_passes::Error>) -> Result<(Module, Vec<String>), Diags> {
    match result {
        Ok(module) => Ok((module, Vec::new())),
        Err(eva_passes::Error::Invalid(diags)) => Err(diags),
        Err(error) => Err(Diag::new("eva::pass", error.to_string()).into()),
    }
}

/// A module as text, and what `change` makes of it, or its error: what [`assert_pass_snapshot!`] keeps.
///
/// [`assert_pass_snapshot!`]: crate::assert_pass_snapshot
#[track_caller]
pub fn before_and_after(change: &impl Change, subject: &impl Subject) -> String {
    let module = of(subject);
    let before = text::print(&module);
    let mut s = format!("// before\n{before}");
    let wrote = match change.change(&module) {
        Ok((new, notes)) => {
            let notes: String = notes.iter().map(|note| format!("// {note}\n")).collect();
            match text::print(&new) {
                after if after == before => write!(s, "\n{notes}// after: unchanged\n"),
                after => write!(s, "\n{notes}// after\n{after}"),
            }
        }
        Err(diags) => write!(s, "\n// refused: {diags}\n"),
    };
    wrote.expect("a string takes what is written");
    s
}

#[track_caller]
fn of(subject: &impl Subject) -> Module {
    match subject.module() {
        Ok(module) => module,
        Err(diags) => panic!("the test's module is not well-formed: {diags}"),
    }
}

/// A comparison of what a module computes before a pass and after it, by the evaluator, on random inputs.
///
/// Extents that the module leaves open are small and differ from each other. Floats are between -1 and 1; integers
/// that give a number for each sequence (`start`) leave room for the new tokens, others are 0 or 1. What a test knows
/// better, it says.
#[derive(Clone, Debug)]
pub struct Check {
    sizes: Vec<(String, i64)>,
    ints: Vec<(String, Vec<i64>)>,
    runs: u64,
    within: f64,
}

impl Default for Check {
    /// Four runs; results equal but for the rounding of `f64`.
    fn default() -> Self {
        Self { sizes: Vec::new(), ints: Vec::new(), runs: 4, within: 1e-10 }
    }
}

impl Check {
    /// The default.
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives an open extent a value.
    pub fn size(mut self, name: &str, n: i64) -> Self {
        self.sizes.push((name.into(), n));
        self
    }

    /// Gives a parameter of integers its elements, again from the first if it has more.
    pub fn ints(mut self, name: &str, values: impl Into<Vec<i64>>) -> Self {
        self.ints.push((name.into(), values.into()));
        self
    }

    /// How far results may be apart, over the largest magnitude of each: for passes that round.
    pub fn within(self, within: f64) -> Self {
        Self { within, ..self }
    }

    /// How many random inputs.
    pub fn runs(self, runs: u64) -> Self {
        Self { runs, ..self }
    }

    /// The module's last function gives the same results after `change`.
    #[track_caller]
    pub fn pass(&self, change: &impl Change, subject: &impl Subject) {
        self.try_pass(change, subject).unwrap_or_else(|message| panic!("{message}"));
    }

    /// Each of `rules` adds something to a function of the module, and all that they add is equal to what they say:
    /// wherever they apply, chosen by cost or not; the same bits in f32 where they are [`Exactness::Exact`].
    #[track_caller]
    pub fn rules(&self, rules: &[Rule], subject: &impl Subject) {
        self.try_rules(rules, subject).unwrap_or_else(|message| panic!("{message}"));
    }

    /// Whether [`Check::pass`] would not panic, and else with what message.
    pub fn try_pass(&self, change: &impl Change, subject: &impl Subject) -> Result<(), String> {
        let module = subject.module().map_err(|diags| diags.to_string())?;
        let (new, _) =
            change.change(&module).map_err(|diags| format!("the pass fails: {diags}\n{module}"))?;
        let (Some((func, f)), Some((new_func, g))) = (module.funcs.iter().last(), new.funcs.iter().last())
        else {
            return Ok(());
        };
        let named = |f: &Function| f.params().map(|(v, _)| f.values[v].name.clone()).collect::<Vec<_>>();
        if named(f) != named(g) || f.results.len() != g.results.len() {
            return Err(format!("the pass gives @{} other parameters or results\n{module}\n{new}", f.name));
        }
        for seed in 0..self.runs {
            let (sizes, args) = self.arguments(&module, func, seed);
            let before = values(&module, func, &sizes, &args, None);
            let after = values(&new, new_func, &sizes, &args, None);
            for (&old, now) in f.results.iter().zip(&g.results) {
                let off = difference(&after[now][0], &before[&old][0]);
                if off > self.within {
                    let name = &f.values[old].name;
                    return Err(format!("%{name} is off by {off:.1e} with {sizes:?}\n{module}\n{new}"));
                }
            }
        }
        Ok(())
    }

    /// Whether [`Check::rules`] would not panic, and else with what message.
    pub fn try_rules(&self, rules: &[Rule], subject: &impl Subject) -> Result<(), String> {
        let module = subject.module().map_err(|diags| diags.to_string())?;
        let exact: Vec<Rule> =
            rules.iter().filter(|rule| rule.exactness == Exactness::Exact).cloned().collect();
        let mut idle: Vec<&str> = rules.iter().map(|rule| rule.name).collect();
        for func in module.funcs.keys() {
            for seed in 0..self.runs {
                let (sizes, args) = self.arguments(&module, func, seed);
                for (rules, rounded) in [(rules, None), (&exact, Some(DType::F32))] {
                    let checked = check(&module, func, rules, &sizes, &args, rounded)
                        .map_err(|diag| format!("{}\n{module}", diag.message))?;
                    if !checked.wrong.is_empty() {
                        let how = if rounded.is_some() { "in the bits of f32" } else { "as real numbers" };
                        return Err(format!("{}\n{how}, with {sizes:?}\n{module}", checked.wrong.join("\n")));
                    }
                    idle.retain(|name| !checked.fired.contains(name));
                }
            }
        }
        if idle.is_empty() { Ok(()) } else { Err(format!("{} adds nothing here\n{module}", idle.join(", "))) }
    }

    /// Values for all extents, and random arguments.
    fn arguments(&self, module: &Module, func: Func, seed: u64) -> (Sizes, Vec<Array>) {
        let lengths = Lengths::of(module);
        let (batch, new, cached) = (2, 3, 11);
        let mut sizes = Sizes::default();
        let mut next = [5, 7, 13, 17, 19, 23].into_iter().chain(29..);
        for (sym, value) in &module.dims {
            let given = self.sizes.iter().find(|(name, _)| name == sym.as_str()).map(|(_, n)| *n);
            let known = || lengths.sizes(batch, new, cached).get(sym).copied();
            let n = value.or(given).or_else(known).or_else(|| next.next()).unwrap_or(1);
            sizes.0.insert(sym.clone(), n);
        }
        let room = |sizes: &Sizes| {
            let of = |sym: &Option<_>| sym.as_ref().and_then(|sym| sizes.0.get(sym)).copied().unwrap_or(0);
            (of(&lengths.cached) - of(&lengths.new)).max(0) as usize
        };
        let mut rng = Rng::new(seed);
        let f = &module.funcs[func];
        let mut argument = |name: &str, ty: &TensorType| {
            let shape: Vec<usize> = ty.shape.iter().map(|dim| sizes.of(dim)).collect();
            let given = self.ints.iter().find(|(given, _)| given == name);
            let mut index = 0;
            Array::from_fn(&shape, |_| {
                index += 1;
                match (given, ty.dtype.is_int(), shape.len()) {
                    (Some((_, values)), ..) if !values.is_empty() => {
                        values[(index - 1) % values.len()] as f64
                    }
                    (_, true, 1) => rng.below(room(&sizes) + 1) as f64,
                    (_, true, _) => rng.below(2) as f64,
                    (_, false, _) => eva_ir::kernel::run::round(2.0 * rng.unit() - 1.0, ty.dtype),
                }
            })
        };
        let params =
            f.params().filter_map(|(value, _)| Some((f.values[value].name.as_str(), f.tensor(value)?)));
        let args = params.map(|(name, ty)| argument(name, ty)).collect();
        (sizes, args)
    }
}

/// The largest difference of elements, over the largest magnitude; infinite where shapes or non-numbers differ.
fn difference(have: &Array, want: &Array) -> f64 {
    let scale = want.data.iter().fold(1e-300f64, |m, x| m.max(x.abs()));
    let off = |(x, y): (&f64, &f64)| match x.to_bits() == y.to_bits() {
        true => 0.0,
        false => Some((x - y).abs() / scale).filter(|off| !off.is_nan()).unwrap_or(f64::INFINITY),
    };
    match have.shape == want.shape {
        true => have.data.iter().zip(&want.data).map(off).fold(0.0, f64::max),
        false => f64::INFINITY,
    }
}
