//! Recipes as a pass: which products become 8 bits, what is shared, what is refused; and what tensor cores' sums lose.

use eva_ir::codes::{decode, encode};
use eva_ir::graph::{Def, Module};
use eva_ir::ops::Op;
use eva_ir::testing::Rng;
use eva_ir::text;
use eva_ir::types::DType;
use eva_passes::fp8::accumulate::Accumulator;
use eva_passes::fp8::{self, Expansion, Outcome, Recipe, Tiles};
use eva_passes::{Error, Options, optimize, run_pass};

fn parse(source: &str) -> Module {
    text::parse(source).unwrap_or_else(|diags| panic!("{diags}\n{source}"))
}

fn options(recipe: &str) -> Options {
    let fp8 = fp8::Options { recipe: Recipe::named(recipe), ..fp8::Options::default() };
    assert!(fp8.recipe.is_some());
    Options { fp8, ..Options::default() }
}

/// After the pass alone.
fn converted(module: &Module, options: &Options) -> Module {
    run_pass("fp8", module, options).unwrap().unwrap_or_else(|e| panic!("{e}"))
}

/// Two projections of one input, a gate with a product behind it, and a router.
const BLOCK: &str = "dim b dim m = 160 dim r = 48 dim e = 7
    fn @block(
      %x: bf16[b, m], weight %q_proj.weight: bf16[r, m], weight %k_proj.weight: f8e4m3[r/128, m/128],
      weight %o_proj.weight: bf16[m, r], weight %mlp.gate.weight: bf16[e, m],
    ) -> bf16[b, m], bf16[b, e] {
      %q = einsum \"bm,rm->br\" %x, %q_proj.weight : bf16[b, r]
      %w = dequantize %k_proj.weight {to = bf16} : bf16[r, m]
      %k = einsum \"bm,rm->br\" %x, %w : bf16[b, r]
      %p = mul %q, %k : bf16[b, r]
      %o = einsum \"br,mr->bm\" %p, %o_proj.weight : bf16[b, m]
      %g = einsum \"bm,em->be\" %x, %mlp.gate.weight : bf16[b, e]
      return %o, %g
    }";

#[test]
fn deepseek_v3_of_a_block() {
    insta::assert_snapshot!(text::print(&converted(&parse(BLOCK), &options("deepseek-v3"))));
}

#[test]
fn other_recipes_of_a_block() {
    for recipe in ["deepseek-v3-ue8m0", "tensorwise-current", "rowwise", "mxfp8", "w8a8", "dequant"] {
        let module = text::print(&converted(&parse(BLOCK), &options(recipe)));
        insta::assert_snapshot!(format!("block_{recipe}"), module);
    }
}

/// Heads of 9 + 13 rows cut the blocks of a weight: one product with all rows, of which both parts are taken.
#[test]
fn parts_that_cut_blocks_are_taken_of_the_whole_product() {
    let module = parse(
        "dim b dim t dim h = 7 dim n = 9 dim v = 13 dim c = 33
        fn @expand(%ckv: bf16[b, t, c], weight %kv_b_proj.weight: f8e4m3[h*n+h*v/128, c/128])
            -> bf16[b, t, h, n], bf16[b, t, h, v] {
          %w = dequantize %kv_b_proj.weight {to = bf16} : bf16[h*n+h*v, c]
          %heads = reshape %w {shape = [h, n+v, c]} : bf16[h, n+v, c]
          %w_uk = slice %heads {axis = 1, range = 0..n} : bf16[h, n, c]
          %w_uv = slice %heads {axis = 1, range = n..n+v} : bf16[h, v, c]
          %k = einsum \"btc,hnc->bthn\" %ckv, %w_uk : bf16[b, t, h, n]
          %value = einsum \"btc,hvc->bthv\" %ckv, %w_uv : bf16[b, t, h, v]
          return %k, %value
        }",
    );
    insta::assert_snapshot!(text::print(&converted(&module, &options("w8a8"))));
    // Denied or not, nothing falls back.
    let mut deny = options("w8a8");
    deny.fp8.deny_fallback = true;
    optimize(&module, &deny).unwrap_or_else(|e| panic!("{e}"));
}

/// What is quantized once is shared, and what is stored in 8 bits stays as it is.
#[test]
fn casts_are_shared() {
    let module = converted(&parse(BLOCK), &options("deepseek-v3"));
    let (_, f) = module.funcs.iter().next().unwrap();
    let count = |kind: fn(&Op) -> bool| {
        f.values.iter().filter(|(_, data)| matches!(&data.def, Def::Op(op, _) if kind(op))).count()
    };
    // The input once, two weights, and what goes into the last product.
    assert_eq!(count(|op| matches!(op, Op::Quantize(_))), 4);
    assert_eq!(count(|op| matches!(op, Op::Dequantize(_))), 0);
}

#[test]
fn every_product_is_accounted_for() {
    let options = options("deepseek-v3");
    let module = optimize(&parse(BLOCK), &options).unwrap();
    let (_, f) = module.funcs.iter().next().unwrap();
    let found: Vec<(String, Outcome)> =
        fp8::products(&module, f, &options.fp8).into_iter().map(|p| (p.name, p.outcome)).collect();
    let router = Outcome::High("the router is kept: a rounding can change a choice".into());
    let eight = |name: &str| (name.to_string(), Outcome::Eight);
    assert_eq!(found, [eight("q_sums"), eight("k_sums"), eight("o_sums"), ("g".into(), router)]);
}

/// A weight whose blocks a recipe of whole rows cannot multiply stays a fallback, and is a mistake where they are denied.
#[test]
fn nothing_falls_back_in_silence() {
    let mut options = options("rowwise");
    let module = parse(BLOCK);
    optimize(&module, &options).unwrap();
    options.fp8.deny_fallback = true;
    let Err(Error::Invalid(diags)) = optimize(&module, &options) else { panic!("it compiled") };
    assert_eq!(diags.0.len(), 1, "{diags}");
    assert_eq!(diags.0[0].code, "eva::fp8_fallback");
    let message = "the `einsum` `k` (with `k_proj.weight`) of @block is not computed in 8 bits: axis `m` has one scale on the left but a scale per 128 on the right";
    assert_eq!(diags.0[0].message, message);
    assert!(!diags.0[0].labels.is_empty(), "it shows the line");
}

/// Sums of a length that a target has no products for, and that may not be padded.
#[test]
fn sums_of_odd_lengths_are_refused_where_targets_have_no_products() {
    let text = "dim b dim m = 7169 dim r = 48
        fn @f(%x: f32[b, m], weight %w: f8e4m3[r/128, m/128]) -> f32[b, r] {
          %d = dequantize %w {to = f32} : f32[r, m]
          %y = einsum \"bm,rm->br\" %x, %d : f32[b, r]
          return %y
        }";
    let mut options = options("deepseek-v3");
    options.fp8.deny_fallback = true;
    optimize(&parse(text), &options).unwrap();
    options.fp8.multiple = 16;
    let Err(Error::Invalid(diags)) = optimize(&parse(text), &options) else { panic!("it compiled") };
    let message = "the `einsum` `y` (with `w`) of @f is not computed in 8 bits: the target multiplies 8-bit floats where sums are \
                   multiples of 16, and `m` is 7169";
    assert_eq!(diags.0[0].message, message);
    assert_eq!(diags.0[0].labels.len(), 1);
}

#[test]
fn a_recipe_can_be_written_by_hand() {
    let mut recipe = Recipe::named("deepseek-v3").unwrap();
    recipe.expansion = Expansion::Quantized;
    recipe.weights.tiles = Tiles::Along(128);
    recipe.high.retain(|high| !high.weights.contains("gate"));
    let options =
        Options { fp8: fp8::Options { recipe: Some(recipe), ..Default::default() }, ..Options::default() };
    let module = optimize(&parse(BLOCK), &options).unwrap();
    let (_, f) = module.funcs.iter().next().unwrap();
    assert!(fp8::products(&module, f, &options.fp8).iter().all(|p| p.outcome == Outcome::Eight));
}

/// The error of long sums with 14 bits, and what adding them to an `f32` every 128 terms leaves of it.
#[test]
fn sums_of_few_bits_need_promotion() {
    let mut rng = Rng::new(5);
    // A normal distribution, near enough: a sum of twelve uniform ones.
    let mut normal = || (0..12).map(|_| rng.unit()).sum::<f64>() - 6.0;
    let mut worst = [0f64; 2];
    let k = 4096;
    for _ in 0..200 {
        let code = |x: f64| decode(DType::F8E4M3, encode(DType::F8E4M3, x * 64.0));
        let terms: Vec<f64> = (0..k).map(|_| code(normal()) * code(normal())).collect();
        let exact: f64 = terms.iter().sum();
        // Relative to what such sums are like, since one may be close to zero.
        let size = terms.iter().map(|x| x * x).sum::<f64>().sqrt();
        for (worst, promoted) in worst.iter_mut().zip([None, Some(128)]) {
            let sum = Accumulator { promoted, ..Accumulator::HOPPER }.sum(&terms);
            *worst = worst.max((sum - exact).abs() / size);
        }
    }
    println!(
        "largest error of a sum of {k}: {:.2} % without promotion, {:.2} % with",
        worst[0] * 100.0,
        worst[1] * 100.0
    );
    assert!((0.005..0.05).contains(&worst[0]), "{worst:?}");
    assert!(worst[1] < worst[0] / 2.0, "{worst:?}");
}
