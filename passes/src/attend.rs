//! Recognizes attention: score products, scale, mask, softmax and value product become one `attend`.
//!
//! Matched from the value product backwards, through values that nothing else uses (probabilities that a
//! user asked to see stay as they are):
//!
//! ```text
//! %s = einsum %q, %k          one product of scores, or a sum of several
//! %x = scale %s               any number of times, in any place among the sums
//! %p = causal_softmax %x, %start
//! %o = einsum %p, %v          =>  %o = attend %q, %k, …, %v, %start
//! ```

use crate::rebuild::{Rebuild, functions, ill_typed};
use eva_ir::attr::{Axis, Real, Spec};
use eva_ir::diag::Diag;
use eva_ir::graph::{Def, Function, Module, Value};
use eva_ir::op::OpDef;
use eva_ir::ops::{Op, attend::Attend, attend_lse::AttendLse, einsum::Einsum, get::Get};
use std::collections::HashMap;

/// The module with every attention made one op.
pub fn recognize(module: &Module) -> Result<Module, Diag> {
    functions(module, |f| {
        if !f.values.iter().any(|(_, data)| matches!(data.def, Def::Op(Op::CausalSoftmax(_), _))) {
            return Ok(None);
        }
        let uses = f.use_counts();
        let mut r = Rebuild::new(f);
        for (value, _) in f.values.iter() {
            match find(f, &uses, value) {
                Some(found) => {
                    let args: Vec<Value> = found.args.iter().map(|&v| r.get(v)).collect();
                    let replaced = match found.reordered {
                        None => r.replace(value, found.op, &args),
                        Some(spec) => {
                            let name = format!("{}_by_token", f.values[value].name);
                            let attended = r.op(&name, found.op, &args, value);
                            attended.and_then(|attended| r.replace(value, Einsum { spec }, &[attended]))
                        }
                    };
                    replaced.map_err(|e| ill_typed("attend", e))?;
                }
                None => r.copy(value),
            }
        }
        Ok(Some(r.finish()))
    })
}

/// The module with every `attend` an `attend_lse`, whose backward needs no second forward.
pub fn with_sums(module: &Module) -> Result<Module, Diag> {
    functions(module, |f| {
        if !f.values.iter().any(|(_, data)| matches!(data.def, Def::Op(Op::Attend(_), _))) {
            return Ok(None);
        }
        let mut r = Rebuild::new(f);
        for (value, data) in f.values.iter() {
            let Def::Op(Op::Attend(attend), args) = &data.def else {
                r.copy(value);
                continue;
            };
            let args: Vec<Value> = args.iter().map(|&arg| r.get(arg)).collect();
            let op = AttendLse { spec: attend.spec.clone(), scale: attend.scale };
            let both = r.op(&format!("{}_and_sums", data.name), op, &args, value);
            let first = both.and_then(|both| r.replace(value, Get { index: 0 }, &[both]));
            first.map_err(|e| ill_typed("attend", e))?;
        }
        Ok(Some(r.finish()))
    })
}

struct Found {
    op: Attend,
    args: Vec<Value>,
    /// How the result is transposed, where it is not in the op's order: batch, new tokens, heads, values.
    reordered: Option<Spec>,
}

/// The attention whose output `value` is.
fn find(f: &Function, uses: &HashMap<Value, usize>, value: Value) -> Option<Found> {
    let once = |v: Value| uses.get(&v) == Some(&1);
    let Def::Op(Op::Einsum(average), args) = &f.values[value].def else { return None };
    let [a, b] = args[..] else { return None };
    let is_softmax = |v: Value| matches!(&f.values[v].def, Def::Op(Op::CausalSoftmax(_), _));
    let (side, probs, values) = match (is_softmax(a), is_softmax(b)) {
        (true, false) => (0, a, b),
        (false, true) => (1, b, a),
        _ => return None,
    };
    let Def::Op(_, softmax_args) = &f.values[probs].def else { return None };
    let &[scores, start] = softmax_args.as_slice() else { return None };
    if !once(probs) {
        return None;
    }
    let mut products = Vec::new();
    let mut scale = 1.0;
    collect(f, &once, scores, &mut products, &mut scale)?;

    // Axes are numbered by their place in the scores: batch, heads and so on, new tokens, keys.
    let rank = f.tensor(scores)?.rank();
    let place = |axes: &[Axis], axis: Axis| axes.iter().position(|&a| a == axis).map(|i| i as Axis);
    let mut fresh = rank as Axis;
    let mut inputs: Vec<Vec<Axis>> = Vec::new();
    let mut operands = Vec::new();
    let query = rank.checked_sub(2)? as Axis;
    for &product in &products {
        let Def::Op(Op::Einsum(einsum), args) = &f.values[product].def else { return None };
        let spec = &einsum.spec;
        let [x, y] = args[..] else { return None };
        let mut number = HashMap::new();
        let mut axes = |axes: &[Axis]| -> Vec<Axis> {
            let of = |&axis: &Axis| {
                place(&spec.out, axis).unwrap_or_else(|| {
                    *number.entry(axis).or_insert_with(|| {
                        fresh += 1;
                        fresh - 1
                    })
                })
            };
            axes.iter().map(of).collect()
        };
        let sides = [(x, axes(&spec.inputs[0])), (y, axes(&spec.inputs[1]))];
        let [q, k] = if sides[0].1.contains(&query) {
            sides
        } else {
            let [a, b] = sides;
            [b, a]
        };
        for (operand, axes) in [q, k] {
            operands.push(operand);
            inputs.push(axes);
        }
    }
    let spec = &average.spec;
    let probs_axes = &spec.inputs[side];
    let mut number: HashMap<Axis, Axis> = HashMap::new();
    let mut axes = |axes: &[Axis]| -> Vec<Axis> {
        let of = |&axis: &Axis| {
            place(probs_axes, axis).unwrap_or_else(|| {
                *number.entry(axis).or_insert_with(|| {
                    fresh += 1;
                    fresh - 1
                })
            })
        };
        axes.iter().map(of).collect()
    };
    inputs.push(axes(&spec.inputs[1 - side]));
    let wanted = axes(&spec.out);
    operands.extend([values, start]);
    let own = |axis: &Axis| *axis >= rank as Axis;
    let heads = wanted.iter().copied().filter(|axis| *axis != 0 && *axis != query && !own(axis));
    let out: Vec<Axis> =
        [0, query].into_iter().chain(heads).chain(wanted.iter().copied().filter(own)).collect();

    let letters = letters(f, &operands, &inputs);
    let slices: Vec<&[Axis]> = inputs.iter().map(Vec::as_slice).collect();
    let spec = Spec::new(&slices, &out, |axis| letters.get(&axis).copied().unwrap_or('a'));
    let op = Attend { spec, scale: Real::new(scale) };
    // What does not fit the op (another order of axes, say) is left as it is.
    let types: Option<Vec<_>> = operands.iter().map(|&v| f.tensor(v)).collect();
    let ty = Op::from(op.clone()).infer(&types?).ok()?;
    if out == wanted {
        return (ty == f.values[value].ty).then_some(Found { op, args: operands, reordered: None });
    }
    let spec = Spec::new(&[&out], &wanted, |axis| letters.get(&axis).copied().unwrap_or('a'));
    let transposed = Einsum { spec: spec.clone() }.infer(&[ty.tensor()?]).ok()?;
    (transposed == f.values[value].ty).then_some(Found { op, args: operands, reordered: Some(spec) })
}

/// The products whose sum is `value` but for `scale`; `None` if it is something else.
fn collect(
    f: &Function,
    once: &dyn Fn(Value) -> bool,
    value: Value,
    products: &mut Vec<Value>,
    scale: &mut f64,
) -> Option<()> {
    if !once(value) {
        return None;
    }
    match &f.values[value].def {
        Def::Op(Op::Scale(by), args) if products.is_empty() => {
            *scale *= by.by.get();
            collect(f, once, args[0], products, scale)
        }
        Def::Op(Op::Add(_), args) => {
            // A scale inside one summand alone has no place in the op.
            let mut inner = 1.0;
            collect_sum(f, once, args, products, &mut inner)
        }
        Def::Op(Op::Einsum(einsum), args) if args.len() == 2 && einsum.spec.inputs.len() == 2 => {
            products.push(value);
            Some(())
        }
        _ => None,
    }
}

fn collect_sum(
    f: &Function,
    once: &dyn Fn(Value) -> bool,
    args: &[Value],
    products: &mut Vec<Value>,
    scale: &mut f64,
) -> Option<()> {
    for &arg in args {
        let same_type = f.tensor(arg)?.rank() == f.tensor(args[0])?.rank();
        let scaled = matches!(&f.values[arg].def, Def::Op(Op::Scale(_), _));
        if !same_type || scaled {
            return None;
        }
        collect(f, once, arg, products, scale)?;
    }
    Some(())
}

/// A letter for each axis: the first of its extent's name.
fn letters(f: &Function, operands: &[Value], inputs: &[Vec<Axis>]) -> HashMap<Axis, char> {
    let mut letters = HashMap::new();
    for (&operand, axes) in operands.iter().zip(inputs) {
        let shape = f.tensor(operand).map(|ty| ty.shape.clone()).unwrap_or_default();
        for (&axis, dim) in axes.iter().zip(&shape) {
            let letter = dim.to_string().chars().find(char::is_ascii_lowercase).unwrap_or('a');
            letters.entry(axis).or_insert(letter);
        }
    }
    letters
}
