//! Products of `f32` with operands rounded to `tf32`: in all kernels that a GPU may choose from, and in machine code.

use eva_ir::graph::{Def, Module};
use eva_ir::ops::Op;
use eva_ir::types::DType;
use eva_passes::target::Target;
use eva_passes::{Options, run_pass};
use eva_tests::check_chain;
use std::collections::HashMap;

/// A module after the pass, of whose products so many have rounded operands.
fn converted(text: &str, products: usize) -> Module {
    let module = eva_ir::text::parse(text).unwrap_or_else(|e| panic!("{e}"));
    let options = Options { tf32: true, ..Options::default() };
    let module =
        run_pass("tf32", &module, &options).expect("there is the pass").unwrap_or_else(|e| panic!("{e}"));
    let values = module.funcs.iter().flat_map(|(_, f)| f.values.iter().map(move |(_, data)| (f, data)));
    let rounded = values.filter(|(f, data)| match &data.def {
        Def::Op(Op::Einsum(_) | Op::Grouped(_) | Op::GroupedOuter(_), args) if args.len() > 1 => {
            args[..2].iter().all(|&arg| f.tensor(arg).is_some_and(|ty| ty.dtype == DType::Tf32))
        }
        _ => false,
    });
    assert_eq!(rounded.count(), products, "{module}");
    module
}

/// Checks the first function after the pass, all of whose products are tensor cores'.
fn check(text: &str, ints: &[(&'static str, Vec<i64>)], sizes: &[&[(&str, i64)]], products: usize) {
    let module = converted(text, products);
    let plan =
        eva_passes::compile(&module, &Target::cuda(), &Options::default()).unwrap_or_else(|e| panic!("{e}"));
    let mut products = 0;
    for ((_, tile), (_, block)) in plan.tiles.iter().zip(plan.kernels.iter()) {
        if tile.to_string().contains(" = dot ") {
            assert!(block.to_string().contains(" = mma "), "{block}");
            products += 1;
        }
    }
    assert!(products > 0);
    let func = module.funcs.iter().next().expect("there is a function").0;
    let ints: HashMap<&str, Vec<i64>> = ints.iter().cloned().collect();
    for (seed, sizes) in sizes.iter().enumerate() {
        check_chain(&module, func, sizes, &ints, seed as u64 + 5);
    }
}

#[test]
fn products_of_few_and_many_rows() {
    let text = "dim s dim m = 200 dim n = 72
fn @f(%x: f32[s, m], weight %w: f32[n, m], %z: f32[s, n]) -> f32[s, n] {
  %y = einsum \"sm,nm->sn\" %x, %w : f32[s, n]
  %a = silu %y : f32[s, n]
  %b = mul %a, %z : f32[s, n]
  return %b
}";
    check(text, &[], &[&[("s", 1)], &[("s", 19)], &[("s", 65)], &[("s", 300)], &[("s", 600)]], 1);
}

/// What is summed is last in memory on neither side, or on one.
#[test]
fn operands_are_turned() {
    let text = "dim s = 148 dim m = 56 dim n = 264
fn @f(%x: f32[s, m], weight %w: f32[n, m], %dy: f32[s, n]) -> f32[s, m], f32[n, m] {
  %dx = einsum \"sn,nm->sm\" %dy, %w : f32[s, m]
  %dw = einsum \"sn,sm->nm\" %dy, %x : f32[n, m]
  return %dx, %dw
}";
    check(text, &[], &[&[]], 2);
}

#[test]
fn several_axes_stay_or_are_summed() {
    let text = "dim b dim s dim h = 3 dim n = 36 dim c = 40 dim o = 24
fn @f(%x: f32[b, s, h, n], weight %w: f32[h, n, c], weight %p: f32[h, c, o]) -> f32[b, s, o] {
  %y = einsum \"bshn,hnc->bshc\" %x, %w : f32[b, s, h, c]
  %z = einsum \"bshc,hco->bso\" %y, %p : f32[b, s, o]
  return %z
}";
    check(text, &[], &[&[("b", 2), ("s", 3)], &[("b", 3), ("s", 90)]], 2);
}

#[test]
fn rows_of_experts() {
    let text = "dim g dim e = 3 dim m = 132 dim f = 72
fn @f(%x: f32[g, m], weight %w: f32[e, f, m], weight %v: f32[e, f, m], %offsets: i32[e + 1]) -> f32[g, m] {
  %y = grouped \"gm,efm->gf\" %x, %w, %offsets : f32[g, f]
  %z = grouped \"gf,efm->gm\" %y, %v, %offsets : f32[g, m]
  return %z
}";
    check(text, &[("offsets", vec![0, 3, 3, 20])], &[&[("g", 20)]], 2);
    check(text, &[("offsets", vec![0, 60, 60, 330])], &[&[("g", 330)]], 2);
    check(text, &[("offsets", vec![0, 770, 777, 780])], &[&[("g", 780)]], 2);
}

/// Rows of one expert end inside a block of those that tensor cores sum.
#[test]
fn sums_of_rows_of_experts() {
    for (rows, offsets) in [(20, vec![0, 3, 3, 20]), (132, vec![0, 1, 70, 131]), (340, vec![5, 64, 128, 330])]
    {
        let text = format!(
            "dim g = {rows} dim e = 3 dim m = 136 dim f = 72
fn @f(%x: f32[g, f], %y: f32[g, m], %offsets: i32[e + 1]) -> f32[e, f, m] {{
  %w = grouped_outer \"gf,gm->efm\" %x, %y, %offsets : f32[e, f, m]
  return %w
}}"
        );
        check(&text, &[("offsets", offsets)], &[&[]], 1);
    }
}

/// Sums of odd lengths, of what is not summed on both sides, over what is not fixed; and other types.
#[test]
fn what_cannot_be_stays() {
    let text = "dim s dim m = 26 dim n = 12 dim k = 8
fn @f(%x: f32[s, m], %y: f32[s, n], weight %w: f32[n, m], weight %v: bf16[k, n], %z: bf16[s, n]) -> f32[s, n], f32[n, m], f32[s], bf16[s, k] {
  %odd = einsum \"sm,nm->sn\" %x, %w : f32[s, n]
  %open = einsum \"sn,sm->nm\" %y, %x : f32[n, m]
  %each = einsum \"sn,sn->s\" %y, %y : f32[s]
  %other = einsum \"sn,kn->sk\" %z, %v : bf16[s, k]
  return %odd, %open, %each, %other
}";
    converted(text, 0);
}

/// A product of four kinds of operands: an operand of two products is rounded once.
#[test]
fn operands_are_rounded_once() {
    let text = "dim s = 36 dim m = 20 dim n = 12
fn @f(%x: f32[s, m], weight %w: f32[n, m], weight %v: f32[n, m]) -> f32[s, n], f32[s, n] {
  %y = einsum \"sm,nm->sn\" %x, %w : f32[s, n]
  %z = einsum \"sm,nm->sn\" %x, %v : f32[s, n]
  return %y, %z
}";
    let module = converted(text, 2);
    assert_eq!(module.to_string().matches("= cast ").count(), 3, "{module}");
}
