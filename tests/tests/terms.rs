//! Products by a GPU's ordinary units whose sums are divided: gradients of small weights.

use eva_ir::text::parse;
use eva_ir::verify::verify;
use eva_passes::Options;
use eva_passes::target::Target;
use eva_tests::check_chain;
use std::collections::HashMap;

const TEXT: &str = r#"
dim t
dim e = 7
dim m = 70

fn @router(%g: f32[t, e], %x: bf16[t, m]) -> f32[e, m], f32[m, e] {
  %wide  = cast %x {to = f32} : f32[t, m]
  %dw    = einsum "te,tm->em" %g, %wide : f32[e, m]
  %some  = einsum "tm,te->me" %wide, %g : f32[m, e]
  %twice = add %some, %some : f32[m, e]
  return %dw, %twice
}

fn @fixed(%g: f32[1100, e], %x: f32[1100, m]) -> bf16[e, m] {
  %dw = einsum "te,tm->em" %g, %x : f32[e, m]
  %half = cast %dw {to = bf16} : bf16[e, m]
  return %half
}
"#;

#[test]
fn sums_of_many_terms_are_divided() {
    let module = parse(TEXT).unwrap_or_else(|diags| panic!("{diags}"));
    verify(&module).unwrap_or_else(|diags| panic!("{diags}"));
    let plan = eva_passes::compile(&module, &Target::cuda(), &Options::default()).unwrap();
    let named = |end: &str| plan.tiles.iter().filter(|(_, kernel)| kernel.name.ends_with(end)).count();
    assert_eq!((named(".in4"), named(".joined")), (3, 3));
    for func in module.funcs.keys() {
        // The last two do not fill their last part, or the last block of it.
        for t in [0, 5, 1023, 1024, 1037] {
            check_chain(&module, func, &[("t", t)], &HashMap::new(), t as u64);
        }
    }
}
