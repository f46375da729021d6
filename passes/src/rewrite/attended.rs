//! Which values attention alone needs.

use eva_ir::graph::{Def, Function, Value};
use eva_ir::ops::Op;
use std::collections::HashSet;

/// The values that more depends on than the products of attention: what sees them otherwise (a reshape, a slice) does
/// not count, but what uses that.
///
/// Keys that are needed anyway are not made superfluous by absorbing them.
pub fn needed_elsewhere(f: &Function) -> HashSet<Value> {
    let attended = products(f);
    let mut needed: HashSet<Value> = f.results.iter().copied().collect();
    for (value, data) in f.values.iter().rev() {
        let needs = match &data.def {
            Def::Op(Op::Einsum(_), args) if args.len() > 1 => !attended.contains(&value),
            _ if is_view(f, value) => needed.contains(&value),
            _ => true,
        };
        if needs {
            needed.extend(data.def.args());
        }
    }
    needed
}

/// The products that attention is made of: scores, and averages of values.
pub fn products(f: &Function) -> HashSet<Value> {
    let mut scores: HashSet<Value> = HashSet::new();
    let mut probs: HashSet<Value> = HashSet::new();
    let mut attended = HashSet::new();
    for (value, data) in f.values.iter().rev() {
        match &data.def {
            Def::Op(Op::CausalSoftmax(_), args) => drop(scores.insert(args[0])),
            Def::Op(Op::Einsum(_), args) if args.len() > 1 && scores.contains(&value) => {
                attended.insert(value);
            }
            Def::Op(Op::Add(_) | Op::Mul(_) | Op::Div(_), args) if scores.contains(&value) => {
                scores.extend(args)
            }
            _ if is_view(f, value) && scores.contains(&value) => scores.extend(data.def.args()),
            _ => {}
        }
    }
    for (value, data) in f.values.iter() {
        match &data.def {
            Def::Op(Op::CausalSoftmax(_), _) => drop(probs.insert(value)),
            Def::Op(Op::Einsum(_), args) if args.len() > 1 && args.iter().any(|arg| probs.contains(arg)) => {
                attended.insert(value);
            }
            Def::Op(_, args) if is_view(f, value) && args.iter().any(|arg| probs.contains(arg)) => {
                probs.insert(value);
            }
            _ => {}
        }
    }
    attended
}

/// Whether a value only shows its operands otherwise: in other places, or times a number.
pub fn is_view(f: &Function, value: Value) -> bool {
    let number = |arg: Value| matches!(&f.values[arg].def, Def::Op(Op::Full(_), _));
    match &f.values[value].def {
        Def::Op(Op::Reshape(_) | Op::Slice(_) | Op::Scale(_) | Op::Concat(_), _) => true,
        Def::Op(Op::Einsum(_), args) => args.len() == 1 || args.iter().any(|&arg| number(arg)),
        Def::Op(Op::Mul(_) | Op::Div(_) | Op::Add(_), args) => args.iter().any(|&arg| number(arg)),
        _ => false,
    }
}
