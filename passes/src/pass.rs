//! Running passes: each result is verified, and dumped where `EVA_DUMP` (or [`Options::dump`]) names the pass.

use crate::{Error, Options};
use eva_ir::diag::Diag;
use eva_ir::entity::{Arena, Entity};
use eva_ir::graph::{Function, Module};
use eva_ir::kernel::Kernel;
use eva_ir::{text, verify};
use std::sync::Arc;

/// A module on its way through the passes.
pub struct Passes {
    module: Module,
    dump: Vec<String>,
}

impl Passes {
    /// Starts with `module`, which is the user's: mistakes in it are theirs.
    pub fn new(module: &Module, options: &Options) -> Result<Self, Error> {
        verify::verify(module).map_err(Error::Invalid)?;
        let mut dump = options.dump.clone();
        if let Ok(names) = std::env::var("EVA_DUMP") {
            dump.extend(names.split(',').map(|name| name.trim().to_string()));
        }
        Ok(Self { module: module.clone(), dump })
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
