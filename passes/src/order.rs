//! Ops that are several kernels, taken apart: contractions of many operands, and losses.

use crate::rebuild::{Rebuild, functions, ill_typed};
use eva_ir::attr::{Axis, Dims, Spec};
use eva_ir::diag::Diag;
use eva_ir::dim::Dim;
use eva_ir::graph::{Def, Module, Value};
use eva_ir::op::TypeError;
use eva_ir::ops::{Op, cross_entropy_rows, div, einsum::Einsum, label_count, reshape, sum};

/// The module with every einsum of more than two operands made a chain of einsums of two, and every mean loss one of rows.
///
/// The pair with the smallest product is joined first; extents without a fixed value count as 1024.
pub fn take_apart(module: &Module) -> Result<Module, Diag> {
    functions(module, |f| {
        let several = |def: &Def| match def {
            Def::Op(Op::Einsum(_), args) => args.len() > 2,
            Def::Op(Op::CrossEntropy(_), _) => true,
            _ => false,
        };
        if !f.values.iter().any(|(_, data)| several(&data.def)) {
            return Ok(None);
        }
        let mut r = Rebuild::new(f);
        for (value, data) in f.values.iter() {
            match &data.def {
                Def::Op(Op::Einsum(einsum), args) if args.len() > 2 => {
                    chain(module, &mut r, value, einsum, args)?
                }
                Def::Op(Op::CrossEntropy(_), args) => {
                    mean_loss(&mut r, value, args).map_err(|e| ill_typed("order", e))?
                }
                _ => r.copy(value),
            }
        }
        Ok(Some(r.finish()))
    })
}

/// A row's loss has programs for itself; their mean is the work of one.
fn mean_loss(r: &mut Rebuild, value: Value, args: &[Value]) -> Result<(), TypeError> {
    let classes = r.old.tensor(args[0]).expect("logits are a tensor").shape[1].clone();
    let (name, args) = (r.old.values[value].name.clone(), [r.get(args[0]), r.get(args[1])]);
    let named = |part: &str| format!("{name}_{part}");
    let rows = r.op(&named("rows"), cross_entropy_rows::CrossEntropyRows {}, &args, value)?;
    let total = r.op(&named("total"), sum::Sum { axis: 0 }, &[rows], value)?;
    let total = r.op(&named("sum"), reshape::Reshape { shape: Dims(Vec::new()) }, &[total], value)?;
    let count = r.op(&named("count"), label_count::LabelCount { classes }, &args[1..], value)?;
    r.replace(value, div::Div {}, &[total, count])?;
    Ok(())
}

fn chain(
    module: &Module,
    r: &mut Rebuild,
    value: Value,
    einsum: &Einsum,
    args: &[Value],
) -> Result<(), Diag> {
    let spec = &einsum.spec;
    let mut terms: Vec<(Value, Vec<Axis>)> =
        args.iter().map(|&a| r.get(a)).zip(spec.inputs.clone()).collect();
    let mut extents = vec![Dim::from(1); spec.axes()];
    for (arg, axes) in args.iter().zip(&spec.inputs) {
        let shape = &r.old.tensor(*arg).expect("operands of an einsum are tensors").shape;
        axes.iter().zip(shape).for_each(|(&axis, dim)| extents[axis as usize] = dim.clone());
    }
    let size = |axes: &[Axis]| -> f64 {
        let one = |&axis: &Axis| extents[axis as usize].eval(&|s| module.size_of(s).or(Some(1024)));
        axes.iter().map(|axis| one(axis).unwrap_or(1024) as f64).product()
    };
    while terms.len() > 2 {
        let pairs = (0..terms.len()).flat_map(|i| (i + 1..terms.len()).map(move |j| (i, j)));
        let kept = |i: usize, j: usize| {
            let elsewhere = |axis: &Axis| {
                let others = terms.iter().enumerate().filter(|(k, _)| *k != i && *k != j);
                spec.out.contains(axis) || others.into_iter().any(|(_, (_, axes))| axes.contains(axis))
            };
            let mut axes: Vec<Axis> =
                terms[i].1.iter().chain(&terms[j].1).copied().filter(elsewhere).collect();
            let mut seen = Vec::new();
            axes.retain(|axis| {
                !seen.contains(axis) && {
                    seen.push(*axis);
                    true
                }
            });
            axes
        };
        let (i, j) = pairs
            .min_by(|&(a, b), &(c, d)| size(&kept(a, b)).total_cmp(&size(&kept(c, d))))
            .expect("there are more than two");
        let axes = kept(i, j);
        let pair = Spec::new(&[&terms[i].1, &terms[j].1], &axes, |axis| spec.letter(axis));
        let name = format!("{}_part", r.old.values[value].name);
        let joined = r.op(&name, Einsum { spec: pair }, &[terms[i].0, terms[j].0], value);
        let joined = joined.map_err(|e| ill_typed("order", e))?;
        terms.remove(j);
        terms[i] = (joined, axes);
    }
    let inputs: Vec<&[Axis]> = terms.iter().map(|(_, axes)| axes.as_slice()).collect();
    let last = Spec::new(&inputs, &spec.out, |axis| spec.letter(axis));
    let args: Vec<Value> = terms.iter().map(|(v, _)| *v).collect();
    r.replace(value, Einsum { spec: last }, &args).map_err(|e| ill_typed("order", e))?;
    Ok(())
}
