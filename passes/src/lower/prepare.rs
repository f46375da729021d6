//! Which weights of a plan's functions are prepared, by which function, and of what.

use crate::plan::{Plan, Prepared};
use eva_ir::entity::Entity;
use eva_ir::graph::{Def, Func, Module};
use eva_ir::lower::SCALES;
use eva_ir::ops::Op;
use std::collections::{BTreeSet, HashMap};

/// What a value is, up to the names of weights: two with equal terms are equal.
#[derive(PartialEq, Eq, Hash)]
enum Term<'a> {
    Weight(&'a str),
    Op(&'a Op, Vec<usize>),
    Call(Func, Vec<usize>),
    /// The scales of a term.
    Scales(usize),
}

/// Fills in what is prepared; `plan` is of `module`.
pub(super) fn link(module: &Module, plan: &mut Plan) {
    let mut keys: HashMap<Term, usize> = HashMap::new();
    for (prepare, f) in module.funcs.iter() {
        let Some(func) = f.prepares else { continue };
        let mut of: Vec<usize> = Vec::with_capacity(f.values.len());
        let mut from: Vec<BTreeSet<usize>> = Vec::with_capacity(f.values.len());
        for (value, data) in f.values.iter() {
            let args = || data.def.args().iter().map(|arg| of[arg.index()]).collect();
            let term = match &data.def {
                Def::Param(_) => Term::Weight(&data.name),
                Def::Op(op, _) => Term::Op(op, args()),
                Def::Call(callee, _) => Term::Call(*callee, args()),
            };
            let mut weights: BTreeSet<usize> =
                data.def.args().iter().flat_map(|arg| from[arg.index()].iter().copied()).collect();
            if let Def::Param(_) = data.def {
                weights.insert(value.index());
            }
            let next = keys.len();
            of.push(*keys.entry(term).or_insert(next));
            from.push(weights);
        }
        let scales: Vec<Option<usize>> =
            plan.funcs[prepare].results.iter().map(|result| result.scales).collect();
        let target = &mut plan.funcs[func];
        target.prepare = Some(prepare);
        let mut params: HashMap<&str, _> =
            target.params.iter_mut().map(|param| (param.name.as_str(), &mut param.prepared)).collect();
        for (result, value) in f.results.iter().enumerate() {
            let weights = from[value.index()].iter().map(|&weight| Entity::new(weight));
            let mut names: Vec<String> =
                weights.map(|weight: eva_ir::graph::Value| f.values[weight].name.clone()).collect();
            names.sort();
            let (name, key) = (&f.values[*value].name, of[value.index()]);
            if let Some(prepared) = params.get_mut(name.as_str()) {
                **prepared = Some(Prepared { result, key, from: names.clone() });
            }
            let Some(result) = scales[result] else { continue };
            let next = keys.len();
            let key = *keys.entry(Term::Scales(key)).or_insert(next);
            if let Some(prepared) = params.get_mut(format!("{name}{SCALES}").as_str()) {
                **prepared = Some(Prepared { result, key, from: names });
            }
        }
    }
}
