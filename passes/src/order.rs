//! Contractions of many operands, taken apart into contractions of two.

use crate::rebuild::{Rebuild, functions, ill_typed};
use eva_ir::attr::{Axis, Spec};
use eva_ir::diag::Diag;
use eva_ir::dim::Dim;
use eva_ir::graph::{Def, Module, Value};
use eva_ir::ops::{Op, einsum::Einsum};

/// The module with every einsum of more than two operands made a chain of einsums of two.
///
/// The pair with the smallest product is joined first; extents without a fixed value count as 1024.
pub fn binary(module: &Module) -> Result<Module, Diag> {
    functions(module, |f| {
        let many = |def: &Def| matches!(def, Def::Op(Op::Einsum(_), args) if args.len() > 2);
        if !f.values.iter().any(|(_, data)| many(&data.def)) {
            return Ok(None);
        }
        let mut r = Rebuild::new(f);
        for (value, data) in f.values.iter() {
            match &data.def {
                Def::Op(Op::Einsum(einsum), args) if args.len() > 2 => {
                    chain(module, &mut r, value, einsum, args)?
                }
                _ => r.copy(value),
            }
        }
        Ok(Some(r.finish()))
    })
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
