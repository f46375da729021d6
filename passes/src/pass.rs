//! Running passes: each result is verified, and dumped where `EVA_DUMP` (or [`Options::dump`]) names the pass.

use crate::{Error, Options, PASSES};
use eva_ir::diag::Diag;
use eva_ir::entity::{Arena, Entity};
use eva_ir::graph::{Function, Module};
use eva_ir::kernel::Kernel;
use eva_ir::{text, verify};
use std::fmt;
use std::sync::Arc;

/// What a pass does.
type Run = dyn Fn(&Module) -> Result<Module, Diag> + Send + Sync;

/// A graph pass of the user's own. It sees a well-formed module and gives another, whose last function takes and gives
/// the same.
#[derive(Clone)]
pub struct Pass {
    name: &'static str,
    after: Option<&'static str>,
    run: Arc<Run>,
}

impl Pass {
    /// The pass that does `run`, before all of eva's; the name is for messages and dumps.
    pub fn new(
        name: &'static str,
        run: impl Fn(&Module) -> Result<Module, Diag> + Send + Sync + 'static,
    ) -> Self {
        Self { name, after: None, run: Arc::new(run) }
    }

    /// The same, right after a pass of eva's ([`PASSES`]).
    pub fn after(self, name: &'static str) -> Self {
        Self { after: Some(name), ..self }
    }

    /// The pass of eva's that it comes right after; `None` if it comes before all.
    pub fn runs_after(&self) -> Option<&'static str> {
        self.after
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Does it, without verifying what it gives.
    pub fn run(&self, module: &Module) -> Result<Module, Diag> {
        (self.run)(module)
    }
}

impl fmt::Debug for Pass {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{} after {}", self.name, self.after.unwrap_or("nothing"))
    }
}

/// A module on its way through the passes.
pub struct Passes {
    module: Module,
    dump: Vec<String>,
}

impl Passes {
    /// Starts with `module`, which is the user's: mistakes in it are theirs.
    pub fn new(module: &Module, options: &Options) -> Result<Self, Error> {
        verify::verify(module).map_err(Error::Invalid)?;
        for (i, pass) in options.passes.iter().enumerate() {
            let taken = PASSES.into_iter().chain(options.passes[..i].iter().map(Pass::name));
            if taken.into_iter().any(|name| name == pass.name) {
                let message = format!("two passes are named `{}`", pass.name);
                return Err(Error::Invalid(Diag::new("eva::duplicate_name", message).into()));
            }
            if let Some(after) = pass.after.filter(|after| !PASSES.contains(after)) {
                let message =
                    format!("the pass `{}` is to run after `{after}`, which is not one of eva's", pass.name);
                let help = format!("eva's are {}", PASSES.join(", "));
                return Err(Error::Invalid(Diag::new("eva::unknown", message).help(help).into()));
            }
        }
        let mut dump = options.dump.clone();
        if let Ok(names) = std::env::var("EVA_DUMP") {
            dump.extend(names.split(',').map(|name| name.trim().to_string()));
        }
        Ok(Self { module: module.clone(), dump })
    }

    /// Runs a pass of the user's over the whole module.
    pub fn run_own(&mut self, pass: &Pass) -> Result<(), Error> {
        self.run(pass.name, |module| pass.run(module)).map_err(|error| match error {
            Error::Internal { pass, message, module } => Error::Pass { pass, message, module },
            error => error,
        })
    }

    /// Runs a pass over the whole module.
    pub fn run(
        &mut self,
        name: &'static str,
        pass: impl FnOnce(&Module) -> Result<Module, Diag>,
    ) -> Result<(), Error> {
        let started = std::time::Instant::now();
        let new = pass(&self.module).map_err(|diag| Error::Invalid(diag.into()))?;
        tracing::debug!(pass = name, seconds = started.elapsed().as_secs_f64(), "pass");
        for (func, f) in new.funcs.iter() {
            // A function that the pass has left alone was verified before.
            let same = self.module.funcs.get(func).is_some_and(|old| Arc::ptr_eq(old, f) || is_same(old, f));
            if !same && let Err(diags) = verify::verify_function(&new, func) {
                return Err(Error::Internal {
                    pass: name,
                    message: diags.to_string(),
                    module: text::print(&new),
                });
            }
        }
        if self.dump.iter().any(|wanted| wanted == name || wanted == "all") {
            let (before, after) = (text::print(&self.module), text::print(&new));
            let body = if before == after { "(unchanged)\n".into() } else { after };
            eprint!("// after {name}\n{body}");
        }
        self.module = new;
        Ok(())
    }

    /// The module as the last pass left it.
    pub fn module(&self) -> &Module {
        &self.module
    }

    /// The module as the last pass left it.
    pub fn finish(self) -> Module {
        self.module
    }
}

/// Whether two functions are the same but for the lines they came from.
fn is_same(a: &Function, b: &Function) -> bool {
    let values = || a.values.iter().zip(b.values.iter());
    let others = || a.alternatives.iter().zip(&b.alternatives);
    a.name == b.name
        && a.prepares == b.prepares
        && a.results == b.results
        && a.values.len() == b.values.len()
        && values().all(|((_, x), (_, y))| x.def == y.def && x.name == y.name && x.ty == y.ty)
        && a.estimate == b.estimate
        && a.alternatives.len() == b.alternatives.len()
        && others().all(|(x, y)| x.estimate == y.estimate && is_same(&x.body, &y.body))
}

/// Runs a pass over each kernel; its results are verified.
pub fn kernels<K: Entity>(
    kernels: &Arena<K, Kernel>,
    pass: impl Fn(&Kernel) -> Result<Kernel, String> + Sync,
) -> Result<Arena<K, Kernel>, Error> {
    let run = |kernel: &Kernel| {
        let checked = pass(kernel).and_then(|new| match eva_ir::kernel::verify::verify(&new) {
            Ok(()) => Ok(new),
            Err(mistakes) => Err(mistakes.join("; ")),
        });
        checked.map_err(|message| Error::Internal { pass: "spread", message, module: kernel.to_string() })
    };
    kernels.iter().map(|(_, kernel)| run(kernel)).collect::<Result<Vec<_>, _>>().map(Arena::from_iter)
}
