//! A function's alternatives beside the function itself.

use super::{StateResults, limits};
use crate::diag::Diag;
use crate::graph::{Function, Module, ParamKind, Value};
use crate::text::is_extent_name;
use crate::types::Type;
use std::collections::HashSet;

/// Everything that is wrong with the alternatives and estimates of `f`, whose own body is well-formed and returns its state
/// as `table` says. `check` checks a body by itself.
pub(super) fn check(
    module: &Module,
    f: &Function,
    table: &StateResults,
    check: &dyn Fn(&Function) -> (Vec<Diag>, StateResults),
) -> Vec<Diag> {
    let mut diags = Vec::new();
    let wrong = |message: String| Diag::new("eva::alternative", message);
    if f.alternatives.is_empty() {
        return vec![wrong(format!("@{} has an estimate, but no alternatives", f.name))];
    }
    if f.alternatives.len() > limits::ALTERNATIVES {
        return vec![wrong(format!("@{} has more than {} alternatives", f.name, limits::ALTERNATIVES))];
    }
    let mut names = HashSet::new();
    for other in &f.alternatives {
        let body = &other.body;
        let name = &body.name;
        if !is_extent_name(name) {
            diags.push(wrong(format!("`{name}` cannot be the name of a body of @{}", f.name)));
        }
        if !names.insert(name) {
            diags.push(wrong(format!("there are two bodies `{name}` of @{}", f.name)));
        }
        if !body.alternatives.is_empty() {
            diags.push(wrong(format!("the body `{name}` of @{} has alternatives of its own", f.name)));
        }
        if parameters(body) != parameters(f) {
            diags.push(wrong(format!("the body `{name}` has other parameters than @{}", f.name)));
            continue;
        }
        let (wrong_inside, places) = check(body);
        if !wrong_inside.is_empty() {
            diags.extend(wrong_inside);
        } else if results(body) != results(f) {
            let types = |types: Vec<Option<&Type>>| {
                let types = types.into_iter().map(|ty| ty.map_or("?".into(), Type::to_string));
                types.collect::<Vec<_>>().join(", ")
            };
            let (have, want) = (types(results(body)), types(results(f)));
            diags.push(wrong(format!("the body `{name}` of @{} returns {have}, not {want}", f.name)));
        } else if places != *table {
            let diag = wrong(format!("the body `{name}` of @{} returns its state in other places", f.name));
            let first = body.results.first().and_then(|&value| body.values.get(value));
            diags.push(diag.label(first.and_then(|data| data.loc), "its first result"));
        }
    }
    for (body, estimate) in f.bodies() {
        let terms = || estimate.polys().flat_map(|poly| poly.terms());
        if terms().count() > limits::ESTIMATE {
            diags.push(wrong(format!("the estimate of `{}` is too long", body.name)));
        }
        if terms().any(|(_, n)| !n.is_finite()) {
            diags.push(wrong(format!("the estimate of `{}` is not finite", body.name)));
        }
        let declared = |sym| module.dims.iter().any(|(name, _)| name == sym);
        if let Some(sym) = terms().flat_map(|(syms, _)| syms).find(|sym| !declared(*sym)) {
            let diag = Diag::new("eva::undefined", format!("the extent `{sym}` is not declared"));
            diags.push(diag.help(format!("the estimate of `{}` has it; declare it: `dim {sym}`", body.name)));
        }
    }
    diags
}

fn parameters(f: &Function) -> Vec<(&str, &Type, ParamKind)> {
    let data = |value: Value| &f.values[value];
    f.params().map(|(value, kind)| (data(value).name.as_str(), &data(value).ty, kind)).collect()
}

fn results(f: &Function) -> Vec<Option<&Type>> {
    f.results.iter().map(|&value| f.values.get(value).map(|data| &data.ty)).collect()
}
