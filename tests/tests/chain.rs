//! Evaluator = tile interpreter = lane interpreter = machine code, on whole functions.

use eva_ir::estimate::Estimate;
use eva_ir::poly::Poly;
use eva_ir::text::parse;
use eva_passes::form;
use eva_tests::check_chain;
use std::collections::HashMap;

const SMALL: &str = "
dim b
dim s
dim m = 19
dim r = 7

fn @small(
  %x: f32[b, s, m],
  weight %w: bf16[r, m],
  weight %u: f32[m, r],
  weight %g: f32[r],
) -> f32[b, s, m] {
  %w32 = cast %w {to = f32} : f32[r, m]
  %y = einsum \"bsm,rm->bsr\" %x, %w32 : f32[b, s, r]
  %n = rms_norm %y, %g {eps = 1e-6} : f32[b, s, r]
  %a = silu %n : f32[b, s, r]
  %z = einsum \"bsr,mr->bsm\" %a, %u : f32[b, s, m]
  %out = add %x, %z : f32[b, s, m]
  return %out
}
";

#[test]
fn a_small_block() {
    let module = parse(SMALL).unwrap_or_else(|e| panic!("{e}"));
    let func = module.func("small").unwrap();
    check_chain(&module, func, &[("b", 3), ("s", 5)], &HashMap::new(), 1);
    check_chain(&module, func, &[("b", 1), ("s", 1)], &HashMap::new(), 2);
}

const MLA: &str = include_str!("../cases/run/mla.eva");

#[test]
fn latent_attention() {
    let module = parse(MLA).unwrap_or_else(|e| panic!("{e}"));
    let func = module.func("mla").unwrap();
    let ints = HashMap::from([("start", vec![4, 0, 2]), ("positions", vec![4, 5, 6, 0, 1, 2, 2, 3, 4])]);
    check_chain(&module, func, &[("b", 3), ("s", 3), ("t", 7)], &ints, 3);
}

/// Each body of a function that has one for each part of the lengths, whatever the lengths are.
#[test]
fn every_body_of_latent_attention() {
    let module = parse(MLA).unwrap_or_else(|e| panic!("{e}"));
    let func = module.func("mla").unwrap();
    let mut module = form::choose(&module, &eva_passes::Options::default()).unwrap_or_else(|e| panic!("{e}"));
    let bodies = module.funcs[func].bodies().count();
    assert!(bodies > 1, "{module}");
    let ints = HashMap::from([("start", vec![4, 0, 2]), ("positions", vec![4, 5, 6, 0, 1, 2, 2, 3, 4])]);
    for chosen in 0..bodies {
        let mut f = eva_ir::graph::Function::clone(&module.funcs[func]);
        let cost = |i: usize| {
            let mut cost = Estimate::default();
            cost.add(Poly::from(if i == chosen { 0.0 } else { 1.0 }));
            cost
        };
        f.estimate = cost(0);
        f.alternatives.iter_mut().enumerate().for_each(|(i, other)| other.estimate = cost(i + 1));
        module.funcs[func] = f.into();
        check_chain(&module, func, &[("b", 3), ("s", 3), ("t", 7)], &ints, 3);
    }
}
