//! What reads a state before it is updated in place.
//!
//! Memory of an old version is there until its updater runs. What reads it is stored, so that it is computed where it is
//! in the order of values, which is before; a view of it that is used later is a copy. Only what replaces a state by
//! `assign`, and is computed of it element by element, reads it while it is written: then nothing else is stored.

use super::Fusion;
use eva_ir::entity::Entity;
use eva_ir::graph::{Def, Function, Module, ParamKind, Value};
use eva_ir::lower::Lowering;
use eva_ir::ops::Op;
use std::collections::{HashMap, HashSet};

/// Stores what must be for the sake of states, and finds out which are computed in place.
pub(super) fn keep_old_versions(fusion: &mut Fusion, module: &Module, f: &Function) {
    let until = old_versions(fusion, module, f);
    if until.is_empty() {
        return;
    }
    // What reads an old version, and which.
    let mut readers: HashMap<Value, Vec<Value>> = HashMap::new();
    for (value, data) in f.values.iter() {
        for (i, arg) in data.def.args().iter().enumerate() {
            let Some(&updater) = until.get(arg) else { continue };
            let updates = value == updater && i == 0;
            if !updates && (!is_view(&data.def) || fusion.copied.contains(&value)) {
                readers.entry(updater).or_default().push(value);
            }
        }
    }
    let mut updaters: Vec<Value> = until.values().copied().collect();
    updaters.sort();
    updaters.dedup();
    for updater in updaters {
        let readers = readers.remove(&updater).unwrap_or_default();
        let (mut along, mut new) = (HashSet::new(), None);
        if let Def::Op(Op::Assign(_), args) = &f.values[updater].def {
            let is_other_view =
                |arg: &Value| is_view(&f.values[*arg].def) && until.get(arg) == Some(&updater);
            along = element_by_element(fusion, f, args[0], args[1], &is_other_view);
            new = is_computed(fusion, f, args[1]).then_some((args[1], args[0]));
        }
        if let Some((new, old)) = new
            && readers.iter().all(|reader| along.contains(reader) || *reader < new)
        {
            fusion.stored[new.index()] = true;
            fusion.in_place.insert(new, old);
        }
        let late = readers.iter().filter(|reader| **reader != updater && !along.contains(reader));
        late.for_each(|reader| fusion.stored[reader.index()] = true);
    }
}

/// The values whose memory is an old version of a state, and what updates it.
fn old_versions(fusion: &mut Fusion, module: &Module, f: &Function) -> HashMap<Value, Value> {
    let mut updated: HashMap<Value, Value> = HashMap::new();
    for (value, data) in f.values.iter() {
        match &data.def {
            Def::Op(op, args) if op.updates_state() => drop(updated.insert(args[0], value)),
            Def::Call(callee, args) => {
                let states = module.funcs[*callee].params().zip(args);
                let states = states.filter(|((_, kind), _)| *kind == ParamKind::State);
                updated.extend(states.map(|(_, &arg)| (arg, value)));
            }
            _ => {}
        }
    }
    // Every part of a tuple that is the same part is the same memory.
    let mut parts: HashMap<(Value, i64), Value> = HashMap::new();
    let part = |value: Value| match &f.values[value].def {
        Def::Op(Op::Get(get), args) => Some((args[0], get.index)),
        _ => None,
    };
    for (&value, &updater) in &updated {
        parts.extend(part(value).map(|part| (part, updater)));
    }
    let mut until: HashMap<Value, Value> = HashMap::new();
    for (value, data) in f.values.iter() {
        let own = updated.get(&value).or_else(|| parts.get(&part(value)?)).copied();
        let seen = if is_view(&data.def) { until.get(&data.def.args()[0]).copied() } else { None };
        let Some(updater) = own.or(seen) else { continue };
        let late = fusion.uses.of(value).iter().any(|(user, _)| *user >= updater);
        if own.is_none() && (late || f.results.contains(&value)) {
            fusion.copied.insert(value);
        } else {
            until.insert(value, updater);
        }
    }
    until
}

/// Whether a value is other values' memory.
fn is_view(def: &Def) -> bool {
    matches!(def, Def::Op(op, _) if op.lowering() == Lowering::Alias && !matches!(op, Op::Get(_)))
}

/// Whether a kernel computes `value`, and that for one use only.
fn is_computed(fusion: &Fusion, f: &Function, value: Value) -> bool {
    let once = fusion.uses.of(value).len() == 1 && !f.results.contains(&value);
    let by_kernel = match &f.values[value].def {
        // A constant may be there already.
        Def::Op(Op::Full(_), _) => false,
        Def::Op(op, _) => match op.lowering() {
            Lowering::Pointwise | Lowering::View => true,
            Lowering::Kernel => !op.updates_state(),
            Lowering::Alias | Lowering::Constant => false,
        },
        _ => false,
    };
    once && by_kernel && f.tensor(value).is_some()
}

/// The element-wise ops that lead to `new` alone, of the shape of `old`: what they read of it is at their own place.
fn element_by_element(
    fusion: &Fusion,
    f: &Function,
    old: Value,
    new: Value,
    is_other_view: &dyn Fn(&Value) -> bool,
) -> HashSet<Value> {
    let shape = f.tensor(old).map(|ty| &ty.shape);
    let (mut found, mut stack) = (HashSet::new(), vec![new]);
    while let Some(value) = stack.pop() {
        let fits = matches!(&f.values[value].def, Def::Op(op, _) if op.lowering() == Lowering::Pointwise)
            && f.tensor(value).map(|ty| &ty.shape) == shape
            && (value == new || is_computed(fusion, f, value) && !fusion.stored[value.index()])
            && !f.values[value].def.args().iter().any(is_other_view);
        if fits && found.insert(value) {
            stack.extend(f.values[value].def.args());
        }
    }
    found
}
