//! From a module of graphs to kernels and a plan that runs them.
//!
//! [`compile`] is the pipeline, top to bottom. Graph passes copy a function while changing it
//! ([`rebuild`]); after each the module is verified, and dumped if `EVA_DUMP` asks for it ([`pass`]).
//! Then [`lower`] decides which ops share a kernel and writes the kernels (tile phase), [`spread`] maps
//! them to the target's lanes, and [`plan`] says which kernel runs when, on which buffers.

pub mod attend;
pub mod cache;
pub mod cost;
pub mod form;
pub mod fp8;
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

pub use cache::CacheOptions;
use eva_ir::diag::Diags;
use eva_ir::graph::Module;
pub use form::Form;
pub use hoist::Hoist;
use pass::Passes;
use plan::Plan;
pub use rewrite::rules::Exactness;
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
    let mut p = Passes::new(module, options)?;
    p.run("cache", |m| cache::lay_out(m, &options.cache))?;
    p.run("fp8", |m| fp8::convert(m, &options.fp8, false))?;
    p.run("form", |m| form::choose(m, options))?;
    p.run("attend", attend::recognize)?;
    p.run("order", order::binary)?;
    p.run("fp8_absorbed", |m| fp8::convert(m, &options.fp8, true))?;
    fp8::report(p.module(), &options.fp8).map_err(Error::Invalid)?;
    if options.hoist == Hoist::AtLoad {
        p.run("hoist", hoist::hoist)?;
    }
    Ok(p.finish())
}

/// Compiles `module` for `target`. Read top to bottom: this is the order things happen in.
pub fn compile(module: &Module, target: &Target, options: &Options) -> Result<Plan, Error> {
    let machine = options.machine.clone().unwrap_or_else(|| target.costs.clone());
    let fp8 = fp8::Options { multiple: target.sums_of_eight_bits(), ..options.fp8.clone() };
    let module = optimize(module, &Options { machine: Some(machine), fp8, ..options.clone() })?;
    let mut plan = lower::lower(&module, target)?;
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
pub const PASSES: [&str; 7] = ["cache", "fp8", "form", "attend", "order", "fp8_absorbed", "hoist"];

/// Runs one graph pass by name; `None` if there is no such pass.
pub fn run_pass(name: &str, module: &Module, options: &Options) -> Option<Result<Module, Error>> {
    let mut p = match Passes::new(module, options) {
        Ok(p) => p,
        Err(e) => return Some(Err(e)),
    };
    let result = match name {
        "cache" => p.run("cache", |m| cache::lay_out(m, &options.cache)),
        "fp8" => p.run("fp8", |m| fp8::convert(m, &options.fp8, false)),
        "fp8_absorbed" => p.run("fp8_absorbed", |m| fp8::convert(m, &options.fp8, true)),
        "form" => p.run("form", |m| form::choose(m, options)),
        "attend" => p.run("attend", attend::recognize),
        "order" => p.run("order", order::binary),
        "hoist" => p.run("hoist", hoist::hoist),
        _ => return None,
    };
    Some(result.map(|()| p.finish()))
}
