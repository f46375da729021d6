//! From a module of graphs to kernels and a plan that runs them.
//!
//! [`compile`] is the pipeline, top to bottom. Graph passes copy a function while changing it
//! ([`rebuild`]); after each the module is verified, and dumped if `EVA_DUMP` asks for it ([`pass`]).
//! Passes ([`Pass`]) and rules ([`rewrite::rules::Rule`]) of the user's own run among eva's, by [`Options`].
//! Then [`lower`] decides which ops share a kernel and writes the kernels (tile phase), [`spread`] maps
//! them to the target's lanes, and [`plan`] says which kernel runs when, on which buffers.

pub mod attend;
pub mod cache;
pub mod cost;
pub mod form;
pub mod fp8;
pub mod grad;
pub mod hoist;
pub mod interpret;
pub mod lower;
pub mod order;
pub mod pass;
pub mod plan;
pub mod rebuild;
pub mod rewrite;
pub mod spread;
pub mod target;
pub mod tf32;
mod turned;

pub use cache::CacheOptions;
use eva_ir::diag::Diags;
use eva_ir::graph::{Func, Function, Module};
pub use form::Form;
pub use hoist::Hoist;
pub use pass::Pass;
use pass::Passes;
use plan::{Observed, Plan};
pub use rewrite::rules::{Exactness, Rule};
use target::{Machine, Target};

/// What a compilation may be told.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Which form of attention to use.
    pub form: Form,
    /// How far rewriting may move results.
    pub numerics: Exactness,
    /// How caches are laid out.
    pub cache: CacheOptions,
    /// What costs are reckoned for; the target's if not given (and a CPU's if there is no target).
    pub machine: Option<cost::Machine>,
    /// Passes to print the module after, as `EVA_DUMP` lists them.
    pub dump: Vec<String>,
    /// When what depends on weights alone is computed.
    pub hoist: Hoist,
    /// What is computed in 8 bits.
    pub fp8: fp8::Options,
    /// Whether products of `f32` have operands rounded to `tf32`, which tensor cores take; sums stay `f32`. For GPUs: on a CPU
    /// they are rounded, and nothing is gained.
    pub tf32: bool,
    /// Rules of the user's own, which the pass `form` applies with eva's, as far as `numerics` lets them.
    pub rules: Vec<Rule>,
    /// Passes of the user's own; of those that run at one time, in this order.
    pub passes: Vec<Pass>,
}

/// Why a module could not be compiled.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// Mistakes in the module.
    #[error("{0}")]
    Invalid(Diags),
    /// Something that the compiler cannot do (yet).
    #[error("`{value}` of @{function}: {message}")]
    Unsupported {
        /// The function.
        function: String,
        /// The value whose op it is about.
        value: String,
        /// What is not possible.
        message: String,
    },
    /// A pass of the user's own that made an ill-formed module.
    #[error("the pass `{pass}` made a module that is not well-formed: {message}\n{module}")]
    Pass {
        /// The pass.
        pass: &'static str,
        /// What is wrong with the module.
        message: String,
        /// The module as text.
        module: String,
    },
    /// A mistake of the compiler's own.
    #[error("internal error in the pass `{pass}`: {message}\nplease report it, with this module:\n{module}")]
    Internal {
        /// The pass.
        pass: &'static str,
        /// What went wrong.
        message: String,
        /// The module as text, as it was before the pass or after it, whichever shows the mistake.
        module: String,
    },
}

/// Rewrites `module`'s graphs: the passes before lowering, in order.
pub fn optimize(module: &Module, options: &Options) -> Result<Module, Error> {
    optimize_observed(module, options).map(|(module, _)| module)
}

/// [`optimize`], with what each function gives statistics of.
fn optimize_observed(module: &Module, options: &Options) -> Result<(Module, Vec<Observed>), Error> {
    let mut p = Passes::new(module, options)?;
    let mut observed = Vec::new();
    for name in order_of(options) {
        by_name(&mut p, name, options)?;
        if name == "fp8" && options.fp8.observe {
            // Before weights are computed elsewhere; names stay.
            let module = p.module();
            let sites = |(func, f): (Func, &std::sync::Arc<Function>)| {
                (f.name.clone(), fp8::observe::sites(module, func))
            };
            observed = module.funcs.iter().map(sites).collect();
        }
        if name == "fp8_absorbed" {
            // Before weights are computed: what was asked for in 8 bits and is not is a mistake.
            fp8::report(p.module(), &options.fp8).map_err(Error::Invalid)?;
        }
    }
    Ok((p.finish(), observed))
}

/// Compiles `module` for `target`. Read top to bottom: this is the order things happen in.
pub fn compile(module: &Module, target: &Target, options: &Options) -> Result<Plan, Error> {
    let machine = options.machine.clone().unwrap_or_else(|| target.costs.clone());
    let (multiple, neighbours) = (target.sums_of_eight_bits(), target.sums_neighbours_of_eight_bits());
    let fp8 = fp8::Options { multiple, neighbours, ..options.fp8.clone() };
    let options = Options { machine: Some(machine), fp8, ..options.clone() };
    let (module, statistics) = optimize_observed(module, &options)?;
    let mut plan = Plan { statistics, ..lower::lower(&module, target)? };
    plan.kernels = pass::kernels(&plan.tiles, |kernel| {
        let spread = match &target.machine {
            Machine::Cpu => spread::spread_cpu(kernel),
            Machine::Hopper(hopper) => spread::spread_block(kernel, hopper),
        };
        spread.map_err(|e| e.to_string())
    })?;
    Ok(plan)
}

/// The names of the graph passes, in the order they run.
pub const PASSES: [&str; 8] = ["cache", "fp8", "form", "attend", "order", "fp8_absorbed", "tf32", "hoist"];

/// The names of the passes that [`optimize`] runs, in order: eva's, as far as `options` want them, with the user's own in
/// their places.
pub fn order_of(options: &Options) -> Vec<&'static str> {
    let own = |after| options.passes.iter().filter(move |pass| pass.runs_after() == after).map(Pass::name);
    let is_wanted = |name: &&str| match *name {
        "hoist" => options.hoist == Hoist::AtLoad,
        "tf32" => options.tf32,
        _ => true,
    };
    let in_place = |name| Some(name).filter(is_wanted).into_iter().chain(own(Some(name)));
    own(None).chain(PASSES.into_iter().flat_map(in_place)).collect()
}

/// Runs one graph pass by name, of eva's or among [`Options::passes`]; `None` if there is no such pass.
pub fn run_pass(name: &str, module: &Module, options: &Options) -> Option<Result<Module, Error>> {
    if !PASSES.contains(&name) && !options.passes.iter().any(|pass| pass.name() == name) {
        return None;
    }
    let run = || {
        let mut p = Passes::new(module, options)?;
        by_name(&mut p, name, options)?;
        Ok(p.finish())
    };
    Some(run())
}

/// Runs the pass that has this name, of [`PASSES`] or the user's own.
fn by_name(p: &mut Passes, name: &str, options: &Options) -> Result<(), Error> {
    match name {
        "cache" => p.run("cache", |m| cache::lay_out(m, &options.cache)),
        "fp8" => p.run("fp8", |m| {
            let mut module = fp8::convert(m, &options.fp8, false)?;
            if let Some(delayed) = options.fp8.recipe.as_ref().and_then(|recipe| recipe.delayed) {
                module = fp8::delay(&module, delayed)?;
            }
            if options.fp8.observe { fp8::observe::observe(&module) } else { Ok(module) }
        }),
        "fp8_absorbed" => p.run("fp8_absorbed", |m| fp8::convert(m, &options.fp8, true)),
        "form" => p.run("form", |m| form::choose(m, options)),
        "attend" => p.run("attend", attend::recognize),
        "order" => p.run("order", order::take_apart),
        "tf32" => p.run("tf32", |m| if options.tf32 { tf32::convert(m) } else { Ok(m.clone()) }),
        "hoist" => p.run("hoist", hoist::hoist),
        _ => options.passes.iter().filter(|pass| pass.name() == name).try_for_each(|pass| p.run_own(pass)),
    }
}
