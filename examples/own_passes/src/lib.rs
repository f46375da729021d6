//! Rules and a graph pass of one's own, in a crate of one's own: see `docs/passes.md`.
//!
//! [`rules`] are chosen by cost, beside eva's; [`narrow_products`] is a pass that always does what it says. [`options`]
//! has both, for [`eva::runtime::Executable::compile`].

use eva::ir::attr::{Axis, Spec};
use eva::ir::graph::{Def, Module};
use eva::ir::ops::cast::Cast;
use eva::ir::ops::{Op, OpKind, add::Add, einsum::Einsum, silu::Silu};
use eva::ir::types::DType;
use eva::passes::rebuild::{Rebuild, functions, ill_typed};
use eva::passes::rewrite::{Id, build::Builder};
use eva::passes::{Exactness, Options, Pass, Rule};
use eva::prelude::Diag;

/// A guard of `sum_of_projections`, in words.
const ALIKE: &str = "both products have the same axes";
/// Another.
const WEIGHTS: &str = "both have a weight as their second factor";

/// The rules of this crate.
pub fn rules() -> Result<Vec<Rule>, Diag> {
    Ok(vec![
        Rule::new(
            "linear_attention",
            "(q·k)·v = q·(k·v): without a softmax, no score needs to be made. Pays where tokens are many.",
            Exactness::Reassociates,
            (
                // `H` are the axes that all have: sequences and heads.
                "(einsum HST,HTV->HSV (einsum HSN,HTN->HST ?q ?k) ?v)",
                "(einsum HSN,HNV->HSV ?q (einsum HTN,HTV->HNV ?k ?v))",
            ),
            &[],
            "kv",
        )?,
        Rule::local(
            "silu_of_sigmoid",
            "x·sigmoid(x) is silu(x).",
            Exactness::Reassociates,
            OpKind::Mul,
            "mul x (sigmoid x) => silu x",
            silu_of_sigmoid,
            "silu",
        ),
        Rule::local(
            "sum_of_projections",
            "x·W + x·U = x·(W + U): an adapter becomes part of the weight, when weights are loaded.",
            Exactness::Reassociates,
            OpKind::Add,
            "add (einsum x w) (einsum x u) => einsum x (add w u)",
            sum_of_projections,
            "merged",
        )
        .guarded(&[ALIKE, WEIGHTS]),
    ])
}

fn silu_of_sigmoid(b: &mut Builder, _: &Op, args: &[Id]) -> Vec<Id> {
    let mut equal = Vec::new();
    for (x, other) in [(args[0], args[1]), (args[1], args[0])] {
        if b.nodes(other, OpKind::Sigmoid).iter().any(|(_, of)| of[0] == x) {
            equal.push(b.op(Silu {}, &[x]));
        }
    }
    equal
}

fn sum_of_projections(b: &mut Builder, _: &Op, args: &[Id]) -> Vec<Id> {
    let mut equal = Vec::new();
    for (spec, left) in b.products(args[0]) {
        for (other, right) in b.products(args[1]) {
            let (&[x, w], &[y, u]) = (&left[..], &right[..]) else { continue };
            // Each product numbers its axes for itself. What `x` and the result have tells which are the same.
            let seen = other.inputs[0].iter().chain(&other.out).copied();
            let same: Vec<_> = seen.zip(spec.inputs[0].iter().chain(&spec.out).copied()).collect();
            let ours = |axis: &Axis| same.iter().find(|(theirs, _)| theirs == axis).map(|(_, ours)| *ours);
            let Some(of_u) = other.inputs[1].iter().map(ours).collect::<Option<Vec<Axis>>>() else {
                continue;
            };
            let one_to_one = same.iter().all(|(a, b)| same.iter().all(|(c, d)| (a == c) == (b == d)));
            let alike = one_to_one && sorted(&of_u) == sorted(&spec.inputs[1]);
            let weights = b.is_weight(w) && b.is_weight(u);
            if x == y && b.guard(ALIKE, alike) && b.guard(WEIGHTS, weights) {
                let order = Spec::new(&[&of_u], &spec.inputs[1], |axis| spec.letter(axis));
                let u = b.op(Einsum { spec: order }, &[u]);
                let sum = b.op(Add {}, &[w, u]);
                equal.push(b.op(Einsum { spec: spec.clone() }, &[x, sum]));
            }
        }
    }
    equal
}

fn sorted(axes: &[Axis]) -> Vec<Axis> {
    let mut axes = axes.to_vec();
    axes.sort();
    axes
}

/// The module with every product of two tensors of f32 computed in bf16.
pub fn narrow_products(module: &Module) -> Result<Module, Diag> {
    functions(module, |f| {
        let mut r = Rebuild::new(f);
        for (value, data) in f.values.iter() {
            let wide = data.ty.tensor().is_some_and(|ty| ty.dtype == DType::F32);
            match &data.def {
                Def::Op(Op::Einsum(einsum), args) if args.len() == 2 && wide => {
                    let mut product = || {
                        let mut narrow = Vec::new();
                        for &arg in args {
                            let arg = r.get(arg);
                            narrow.push(r.op("narrow", Cast { to: DType::Bf16 }, &[arg], value)?);
                        }
                        let product = r.op("product", einsum.clone(), &narrow, value)?;
                        r.replace(value, Cast { to: DType::F32 }, &[product])
                    };
                    product().map_err(|error| ill_typed("narrow_products", error))?;
                }
                _ => r.copy(value),
            }
        }
        Ok(Some(r.finish()))
    })
}

/// What eva is told: these rules, and, if products may be `narrow`, the pass.
pub fn options(narrow: bool) -> Result<Options, Diag> {
    // Before eva's passes, the pass would hide from rules that two products share a factor.
    let passes = narrow.then(|| Pass::new("narrow_products", narrow_products).after("form"));
    Ok(Options { rules: rules()?, passes: passes.into_iter().collect(), ..Options::default() })
}

/// The guide's code is compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/passes.md")]
pub struct Guide;
