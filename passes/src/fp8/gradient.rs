//! Gradients of weights in 8 bits: sums over tokens, of activations and gradients of activations.
//!
//! ```text
//! %w.grad = einsum "bso,bsi->oi" %dy, %x   =>   %q = quantize (%dy as [o, b·s]) {per = [1, 128]}
//!                                               %r = quantize (%x as [i, b·s]) {per = [1, 128]}
//!                                               %w.grad = einsum "ot,it->oi" %q, %r
//! ```
//!
//! Experts' rows are of any number. So they are moved to where a tile begins, with zeros behind them:
//!
//! ```text
//! %w.grad = grouped_outer "gf,gm->efm" %dy, %x, %offsets
//!   =>   %starts = align_offsets %offsets {rows = 128}
//!        %q      = quantize_by_expert %dy, %offsets, %starts {rows = 128}
//!        %r      = quantize_by_expert %x, %offsets, %starts {rows = 128}
//!        %w.grad = grouped_outer "fg,mg->efm" %q, %r, %starts
//! ```
//!
//! Both operands have a scale for 128 tokens of a channel (arXiv 2412.19437, section 3.3.2). Gradients of activations are products with
//! the weight like any other ([`super::contraction`]): sums over its rows, which its square blocks suit as they do its columns.

use super::Tiles;
use super::contraction::{Fate, OfTokens};
use crate::grad::GRADIENT;
use eva_ir::attr::{Axis, Spec};
use eva_ir::dim::Dim;
use eva_ir::graph::{Def, Function, Module, ParamKind, Value};
use eva_ir::ops::Op;
use eva_ir::ops::align_offsets::room;
use std::collections::HashSet;

/// The weight whose gradient the product `value` is, or a part of: by its name in the function that was differentiated.
pub fn of_weight(module: &Module, f: &Function, value: Value) -> Option<String> {
    let base = f.name.strip_suffix(".backward").or_else(|| f.name.strip_suffix(GRADIENT))?;
    let base = &module.funcs[module.func(base)?];
    let weights: HashSet<&str> = base
        .params()
        .filter(|(_, kind)| *kind == ParamKind::Weight)
        .map(|(param, _)| base.values[param].name.as_str())
        .collect();
    f.results.iter().find_map(|&result| {
        let name = f.values[result].name.strip_suffix(GRADIENT)?;
        (weights.contains(name) && is_made_of(f, result, value)).then(|| name.to_string())
    })
}

/// Whether `whole` is `part`, seen otherwise, scaled or rounded, or a sum with it.
fn is_made_of(f: &Function, whole: Value, part: Value) -> bool {
    let (mut stack, mut seen) = (vec![whole], HashSet::new());
    while let Some(at) = stack.pop() {
        if at == part {
            return true;
        }
        if !seen.insert(at) {
            continue;
        }
        let Def::Op(op, args) = &f.values[at].def else { continue };
        match op {
            Op::Cast(_) | Op::Reshape(_) | Op::Slice(_) | Op::Concat(_) | Op::Scale(_) | Op::Add(_) => {
                stack.extend(args)
            }
            Op::Einsum(_) if args.len() == 1 => stack.extend(args),
            _ => {}
        }
    }
    false
}

/// How the sum over tokens `spec` of `args` gets operands of 8 bits.
pub fn conversion(module: &Module, f: &Function, spec: &Spec, args: &[Value], multiple: i64) -> Fate {
    let [left, right] = &spec.inputs[..] else {
        return Fate::Fallback("it is no product of two operands".into());
    };
    let summed: Vec<Axis> = left.iter().copied().filter(|axis| !spec.out.contains(axis)).collect();
    let same = summed.iter().all(|axis| right.contains(axis))
        && right.iter().all(|axis| spec.out.contains(axis) || summed.contains(axis));
    if summed.is_empty() || !same {
        return Fate::Fallback("it sums over axes of one operand alone".into());
    }
    if let Some(both) = left.iter().find(|axis| right.contains(axis) && spec.out.contains(axis)) {
        return Fate::Fallback(format!(
            "`{}` is an axis of both operands, and is not summed",
            spec.letter(*both)
        ));
    }
    let Some(ty) = f.tensor(args[0]) else { return Fate::Fallback("an operand is several tensors".into()) };
    let place = |axes: &[Axis], axis: &Axis| axes.iter().position(|a| a == axis).unwrap_or(0);
    let tokens = Dim::product(summed.iter().map(|axis| &ty.shape[place(left, axis)]));
    match module.constant(&tokens) {
        None => return Fate::Fallback(format!("the sum is over `{tokens}`, which has no fixed value")),
        Some(n) if n % multiple != 0 => {
            let message = format!(
                "the target multiplies 8-bit floats where sums are multiples of {multiple}, and `{tokens}` is {n}"
            );
            return Fate::Fallback(message);
        }
        Some(_) => {}
    }
    let order = |axes: &[Axis]| -> Vec<usize> {
        let kept = (0..axes.len()).filter(|&i| spec.out.contains(&axes[i]));
        kept.chain(summed.iter().map(|axis| place(axes, axis))).collect()
    };
    let kept = |axes: &[Axis]| -> Vec<Axis> {
        let kept = axes.iter().copied().filter(|axis| spec.out.contains(axis));
        kept.chain(summed.first().copied()).collect()
    };
    let spec_of = Spec::new(&[&kept(left), &kept(right)], &spec.out, |axis| spec.letter(axis));
    Fate::Gradient(OfTokens { order: [order(left), order(right)], tokens: summed.len(), spec: spec_of })
}

/// How the sums over experts' rows of `args` get operands of 8 bits: an expert's rows are moved to where a tile of tokens begins.
pub fn experts(module: &Module, f: &Function, args: &[Value], tiles: Option<Tiles>, multiple: i64) -> Fate {
    let Some(Tiles::Along(rows)) = tiles else {
        let why =
            "each expert has its own number of tokens, and the recipe's scales are not of tiles of them";
        return Fate::Fallback(why.into());
    };
    let (Some(x), Some(offsets)) = (f.tensor(args[0]), f.tensor(args[2])) else {
        return Fate::Fallback("an operand is several tensors".into());
    };
    match module.constant(&room(&x.shape[0], &offsets.shape[0], i64::from(rows))) {
        None => Fate::Fallback(format!("the sum is over `{}`, which has no fixed value", x.shape[0])),
        Some(n) if n % multiple != 0 => Fate::Fallback(format!(
            "the target multiplies 8-bit floats where sums are multiples of {multiple}, and `{}` is not",
            x.shape[0]
        )),
        Some(_) => Fate::Experts(rows),
    }
}
