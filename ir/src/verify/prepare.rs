//! Functions that prepare others: what they take and give are weights of those.

use crate::diag::Diag;
use crate::entity::Entity;
use crate::graph::{Func, Function, Module, ParamKind, ValueData};
use crate::types::Type;
use std::collections::{HashMap, HashSet};

/// What is wrong with how `func`, which is well-formed otherwise, prepares another function, if it does.
pub(super) fn check(module: &Module, func: Func) -> Vec<Diag> {
    let f = &module.funcs[func];
    let Some(prepared) = f.prepares else { return Vec::new() };
    let diag = |message: String| Diag::new("eva::prepares", message);
    let here = f.results.first().and_then(|&value| f.values[value].loc);
    let Some(target) = module.funcs.get(prepared).filter(|_| prepared.index() < func.index()) else {
        return vec![diag(format!("@{} prepares a function that is not older", f.name)).label(here, "here")];
    };
    let before = module.funcs.keys().take(func.index());
    if let Some(other) = before.map(|other| &module.funcs[other]).find(|other| other.prepares == f.prepares) {
        return vec![
            diag(format!("@{} and @{} both prepare @{}", other.name, f.name, target.name))
                .label(here, "here"),
        ];
    }
    let mut diags = Vec::new();
    let weights: HashMap<&str, &Type> = weights(target).map(|data| (data.name.as_str(), &data.ty)).collect();
    let missing = |data: &ValueData| {
        if weights.get(data.name.as_str()) == Some(&&data.ty) {
            return None;
        }
        let message = format!("@{} has no weight `%{}: {}`", target.name, data.name, data.ty);
        let help =
            "what a function is prepared from, and what is prepared, are weights of it with these names";
        Some(diag(message).label(data.loc, "here").help(help))
    };
    for (param, kind) in f.params() {
        let data = &f.values[param];
        if kind == ParamKind::Weight {
            diags.extend(missing(data));
        } else {
            let message = format!("@{} prepares @{} from weights alone", f.name, target.name);
            diags.push(diag(message).label(data.loc, "this is none"));
        }
    }
    let given: HashSet<&str> = self::weights(f).map(|data| data.name.as_str()).collect();
    for data in f.results.iter().map(|&value| &f.values[value]) {
        if given.contains(data.name.as_str()) {
            let message = format!("@{} prepares the weight `%{}`, which it is given", f.name, data.name);
            diags.push(diag(message).label(data.loc, "here"));
        } else {
            diags.extend(missing(data));
        }
    }
    diags
}

/// The parameters that are weights.
fn weights(f: &Function) -> impl Iterator<Item = &ValueData> {
    f.params().filter(|(_, kind)| *kind == ParamKind::Weight).map(|(param, _)| &f.values[param])
}
