//! Which values matter to gradients: those that depend on what is differentiated by, and that the loss depends on.

use eva_ir::diag::Diag;
use eva_ir::entity::Entity;
use eva_ir::graph::{Def, Func, Function, Module, ParamKind, Value};
use eva_ir::ops::{Op, get::Get};
use eva_ir::vjp::is_differentiable;
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

/// Of each value of a function, which parts of it.
pub(super) type Parts = Vec<Vec<bool>>;

/// Which results of a function depend on which of its parameters, for those that were asked about.
type Known = HashMap<(Func, Vec<bool>), Rc<Parts>>;

/// What takes part in a differentiation.
pub(super) struct Active<'m> {
    module: &'m Module,
    known: RefCell<Known>,
    /// For each function, its parameters that depend on what is differentiated by in any call of it.
    params: Vec<Vec<bool>>,
    /// For each function, its results that the loss depends on in any call of it.
    useful: Vec<Vec<bool>>,
}

/// Which result of a function its value `value` is.
fn result_of(f: &Function, value: Value) -> impl Iterator<Item = usize> + '_ {
    f.results.iter().enumerate().filter(move |&(_, &result)| result == value).map(|(i, _)| i)
}

impl<'m> Active<'m> {
    /// For the loss that is the first result of `root`, by the parameters `wrt` of it.
    pub fn new(module: &'m Module, root: Func, wrt: &[bool]) -> Result<Self, Diag> {
        let all = || module.funcs.iter().map(|(_, f)| vec![false; f.params().count()]).collect::<Vec<_>>();
        let useful = module.funcs.iter().map(|(_, f)| vec![false; f.results.len()]).collect();
        let mut this = Self { module, known: RefCell::default(), params: all(), useful };
        this.params[root.index()] = wrt.to_vec();
        this.useful[root.index()][0] = true;
        // Functions call older ones only: all calls of one have been seen when it is met.
        for (func, f) in module.funcs.iter().take(root.index() + 1).collect::<Vec<_>>().into_iter().rev() {
            if !this.params[func.index()].iter().any(|&p| p) || this.seeds(func).is_empty() {
                continue;
            }
            if let Some((state, _)) = f.params().find(|(_, kind)| *kind == ParamKind::State) {
                let message = format!("@{} keeps the state `{}`", f.name, f.values[state].name);
                let diag = Diag::new("eva::gradient", message).label(f.values[state].loc, "here");
                return Err(
                    diag.help("gradients are of functions without states: write it for whole sequences")
                );
            }
            this.mark_callees(func, f);
        }
        Ok(this)
    }

    /// The parameters of a function whose gradients are asked for.
    pub fn params(&self, func: Func) -> Vec<bool> {
        self.params[func.index()].clone()
    }

    /// The results of a function that gradients come back for.
    pub fn seeds(&self, func: Func) -> Vec<usize> {
        let (f, active) = (&self.module.funcs[func], self.parts(func, &self.params[func.index()]));
        let counts = |&i: &usize| self.useful[func.index()][i] && active[f.results[i].index()][0];
        (0..f.results.len()).filter(counts).collect()
    }

    /// Which parts of each value of `func` depend on the parameters `params` of it.
    pub fn parts(&self, func: Func, params: &[bool]) -> Rc<Parts> {
        let key = (func, params.to_vec());
        if let Some(known) = self.known.borrow().get(&key) {
            return known.clone();
        }
        let f = &self.module.funcs[func];
        let mut parts: Parts = Vec::with_capacity(f.values.len());
        let mut param = params.iter();
        for (_, data) in f.values.iter() {
            let of = |value: &Value| parts[value.index()].iter().any(|&part| part);
            let next: Vec<bool> = match &data.def {
                Def::Param(_) => vec![*param.next().expect("one for each parameter")],
                Def::Op(Op::Get(Get { index }), args) => vec![parts[args[0].index()][*index as usize]],
                Def::Op(_, args) => {
                    let any = args.iter().any(of);
                    data.ty.parts().iter().map(|part| any && is_differentiable(part)).collect()
                }
                Def::Call(callee, args) => {
                    let given: Vec<bool> = args.iter().map(of).collect();
                    let inside = self.parts(*callee, &given);
                    let results = &self.module.funcs[*callee].results;
                    results.iter().map(|result| inside[result.index()][0]).collect()
                }
            };
            parts.push(next);
        }
        let parts = Rc::new(parts);
        self.known.borrow_mut().insert(key, parts.clone());
        parts
    }

    /// Notes for the functions that `f` calls which of their parameters and results matter.
    fn mark_callees(&mut self, func: Func, f: &Function) {
        let active = self.parts(func, &self.params[func.index()]);
        let mut useful: Parts = f.values.iter().map(|(_, data)| vec![false; data.ty.parts().len()]).collect();
        for (value, data) in f.values.iter().rev() {
            if result_of(f, value).any(|i| self.useful[func.index()][i]) {
                useful[value.index()][0] = true;
            }
            let mine = useful[value.index()].clone();
            if !mine.iter().any(|&part| part) {
                continue;
            }
            match &data.def {
                Def::Param(_) => {}
                Def::Op(Op::Get(Get { index }), args) => useful[args[0].index()][*index as usize] = true,
                Def::Op(_, args) => args.iter().for_each(|arg| useful[arg.index()].fill(true)),
                Def::Call(callee, args) => {
                    for (i, part) in mine.iter().enumerate() {
                        self.useful[callee.index()][i] |= part;
                    }
                    for (i, arg) in args.iter().enumerate() {
                        useful[arg.index()].fill(true);
                        self.params[callee.index()][i] |= active[arg.index()][0];
                    }
                }
            }
        }
    }
}
