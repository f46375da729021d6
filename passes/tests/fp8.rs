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

/// A layer that is called twice, with a quantized weight and activations.
const CALLED: &str = "dim b dim m = 40
    fn @layer(%x: f32[b, m], weight %up.weight: f32[m, m], weight %down.weight: f32[m, m]) -> f32[b, m] {
      %y = einsum \"bi,oi->bo\" %x, %up.weight : f32[b, m]
      %z = silu %y : f32[b, m]
      %w = einsum \"bi,oi->bo\" %z, %down.weight : f32[b, m]
      return %w
    }
    fn @f(%x: f32[b, m], weight %a.up: f32[m, m], weight %a.down: f32[m, m], weight %b.up: f32[m, m], weight %b.down: f32[m, m]) -> f32[b, m] {
      %one = call @layer %x, %a.up, %a.down : f32[b, m]
      %two = call @layer %one, %b.up, %b.down : f32[b, m]
      return %two
    }";

/// What is quantized gives statistics, through calls, with the weights that it meets; results that were there stay.
#[test]
fn statistics_come_through_calls() {
    let mut options = options("deepseek-v3");
    options.fp8.observe = true;
    let module = converted(&parse(CALLED), &options);
    let func = module.func("f").unwrap();
    let f = &module.funcs[func];
    assert_eq!(f.values[f.results[0]].name, "two");
    let sites = fp8::observe::sites(&module, func);
    let names: Vec<String> = sites
        .iter()
        .map(|site| {
            format!("{} {} {} {}", site.calls.join("."), site.value, site.is_weight, site.used_by.join(", "))
        })
        .collect();
    assert_eq!(
        names,
        [
            "one x false a.up",
            "one up.weight true a.up",
            "one z false a.down",
            "one down.weight true a.down",
            "two x false b.up",
            "two up.weight true b.up",
            "two z false b.down",
            "two down.weight true b.down",
        ]
    );
    assert!(sites.iter().all(|site| site.columns == Some(40) && site.loc.is_some()));
    assert!(sites.iter().all(|site| f.results.iter().any(|result| f.values[*result].name == site.result)));
    // So they are after all passes, of weights too, which are computed elsewhere by then.
    let done = optimize(&parse(CALLED), &options).unwrap_or_else(|e| panic!("{e}"));
    let f = &done.funcs[done.func("f").unwrap()];
    assert!(sites.iter().all(|site| f.results.iter().any(|result| f.values[*result].name == site.result)));
    // What nobody asked for is not there.
    let plain = optimize(&parse(CALLED), &self::options("deepseek-v3")).unwrap();
    assert_eq!(plain.funcs[plain.func("f").unwrap()].results.len(), 1);
}

/// A layer's gradients by the recipe: those of activations with the weights' own codes, those of weights in tiles of tokens,
/// which are two axes here; what the forward pass keeps, the backward pass does.
#[test]
fn gradients_by_the_recipe() {
    let module = parse(
        "dim b = 3 dim s = 50 dim m = 40 dim r = 56 dim e = 7
        fn @layer(
          %x: f32[b, s, m], weight %up.weight: f32[r, m], weight %down.weight: f32[m, r], weight %mlp.gate.weight: f32[e, m],
        ) -> f32[b, s, m], f32[b, s, e] {
          %y = einsum \"bsm,rm->bsr\" %x, %up.weight : f32[b, s, r]
          %z = silu %y : f32[b, s, r]
          %w = einsum \"bsr,mr->bsm\" %z, %down.weight : f32[b, s, m]
          %g = einsum \"bsm,em->bse\" %x, %mlp.gate.weight : f32[b, s, e]
          return %w, %g
        }
        fn @loss(
          %x: f32[b, s, m], weight %up: f32[r, m], weight %down: f32[m, r], weight %gate: f32[e, m], weight %g: f32[e],
        ) -> f32[] {
          %all = call @layer %x, %up, %down, %gate : (f32[b, s, m], f32[b, s, e])
          %w = get %all {index = 0} : f32[b, s, m]
          %r = get %all {index = 1} : f32[b, s, e]
          %k = mul %r, %g : f32[b, s, e]
          %ww = mul %w, %w : f32[b, s, m]
          %one = einsum \"bsm->\" %ww : f32[]
          %two = einsum \"bse->\" %k : f32[]
          %sum = add %one, %two : f32[]
          return %sum
        }",
    );
    let module = eva_passes::grad::differentiate(&module, "loss", &Default::default()).unwrap();
    let options = options("deepseek-v3");
    let done = converted(&module, &options);
    let said = |name: &str| -> Vec<String> {
        let f = &done.funcs[done.func(name).unwrap()];
        let products = fp8::products(&done, f, &options.fp8);
        let outcome = |outcome: &Outcome| match outcome {
            Outcome::Eight => "8 bits".to_string(),
            Outcome::High(why) => format!("high: {why}"),
            Outcome::Fallback(why) => format!("fallback: {why}"),
        };
        let of = |p: &fp8::Product| p.weight.clone().unwrap_or_default();
        let mut said: Vec<String> =
            products.iter().map(|p| format!("{}: {}", of(p), outcome(&p.outcome))).collect();
        said.sort();
        said
    };
    let router = "the router is kept: a rounding can change a choice";
    assert_eq!(
        said("layer.backward"),
        [
            "down.weight.grad: 8 bits".to_string(),
            "down.weight: 8 bits".into(),
            format!("mlp.gate.weight.grad: high: {router}"),
            "up.weight.grad: 8 bits".into(),
        ]
    );
    let f = &done.funcs[done.func("layer.backward").unwrap()];
    let quantized: Vec<String> = f
        .values
        .iter()
        .filter(|(_, data)| matches!(data.def, Def::Op(Op::Quantize(_), _)))
        .map(|(_, data)| data.ty.to_string())
        .collect();
    // 150 tokens are a whole tile and a short one.
    assert!(quantized.contains(&"f8e4m3[m, b*s/128]".to_string()), "{quantized:?}");
    assert!(quantized.contains(&"f8e4m3[r, b*s/128]".to_string()), "{quantized:?}");
    assert!(quantized.contains(&"f8e4m3[b, s, m/128]".to_string()), "{quantized:?}");
    // Where products sum neighbours, operands are turned first; tokens are one axis before anything moves.
    let mut near = options.clone();
    near.fp8.neighbours = true;
    let turned = converted(&module, &near);
    let f = &turned.funcs[turned.func("layer.backward").unwrap()];
    for (_, data) in f.values.iter() {
        let Def::Op(Op::Einsum(product), args) = &data.def else { continue };
        if args.iter().all(|&arg| f.tensor(arg).is_some_and(|ty| ty.scales.is_some())) {
            assert!(product.spec.inputs.iter().all(|axes| !product.spec.out.contains(axes.last().unwrap())));
        }
    }
    let shapes = |op: fn(&Op) -> bool| -> Vec<String> {
        let found = f.values.iter().filter(|(_, data)| matches!(&data.def, Def::Op(own, _) if op(own)));
        found.map(|(_, data)| data.ty.to_string()).collect()
    };
    let moved = shapes(|op| matches!(op, Op::Einsum(e) if e.spec.inputs.len() == 1 && e.spec.out.len() == 2));
    assert!(
        moved.contains(&"f32[r, m]".to_string()) && moved.contains(&"f32[r, b*s]".to_string()),
        "{moved:?}"
    );
    // Where their number is not known, nothing is 8 bits in silence.
    let open = text::print(&module).replace("dim s = 50", "dim s");
    let mut deny = options.clone();
    deny.fp8.deny_fallback = true;
    let Err(Error::Invalid(diags)) = optimize(&parse(&open), &deny) else { panic!("it compiled") };
    assert!(
        diags.0[0].message.contains("the sum is over `b*s`, which has no fixed value"),
        "{}",
        diags.0[0].message
    );
}

/// Gradients of experts' weights: their rows are moved to where tiles begin, once for each operand and list of offsets.
#[test]
fn gradients_of_experts_by_the_recipe() {
    let text = "dim g = 48 dim e = 3 dim m = 32 dim f = 64
        fn @loss(%x: f32[g, m], weight %up: f32[e, f, m], weight %gate: f32[e, f, m], %offsets: i32[e + 1]) -> f32[] {
          %y = grouped \"gm,efm->gf\" %x, %up, %offsets : f32[g, f]
          %z = grouped \"gm,efm->gf\" %x, %gate, %offsets : f32[g, f]
          %w = mul %y, %z : f32[g, f]
          %loss = einsum \"gf->\" %w : f32[]
          return %loss
        }";
    let gradients = |text: &str| {
        eva_passes::grad::differentiate(&parse(text), "loss", &Default::default())
            .unwrap_or_else(|e| panic!("{e}"))
    };
    let options = options("deepseek-v3");
    let done = converted(&gradients(text), &options);
    let f = &done.funcs[done.func("loss.grad").unwrap()];
    let count = |of: fn(&Op) -> bool| {
        f.values.iter().filter(|(_, data)| matches!(&data.def, Def::Op(op, _) if of(op))).count()
    };
    assert_eq!(count(|op| matches!(op, Op::AlignOffsets(_))), 1);
    // The input, and the gradients of both products.
    assert_eq!(count(|op| matches!(op, Op::QuantizeByExpert(_))), 3);
    let sums = f.values.iter().filter(|(_, data)| matches!(&data.def, Def::Op(Op::GroupedOuter(_), _)));
    for (value, _) in sums {
        let product =
            fp8::products(&done, f, &options.fp8).into_iter().find(|product| product.value == value);
        assert_eq!(product.unwrap().outcome, Outcome::Eight);
    }
    // What has no tiles of tokens stays, and says so.
    let fallback = |recipe: &str, text: &str, why: &str| {
        let mut options = self::options(recipe);
        options.fp8.deny_fallback = true;
        let Err(Error::Invalid(diags)) = optimize(&gradients(text), &options) else { panic!("it compiled") };
        assert!(diags.0.iter().any(|diag| diag.message.contains(why)), "{diags}");
    };
    fallback("rowwise", text, "the recipe's scales are not of tiles of them");
    fallback(
        "deepseek-v3",
        &text.replace("dim g = 48", "dim g"),
        "the sum is over `g`, which has no fixed value",
    );
}

/// A norm and what is quantized of it are one kernel; what else uses the norm has it stored besides.
#[test]
fn norms_are_quantized_where_they_are_computed() {
    use eva_passes::plan::{Base, Step};
    let text = |m: usize, more: &str, results: &str| {
        format!(
            "dim b dim m = {m} dim r = 48 dim e = 7
            fn @f(%x: f32[b, m], weight %g: f32[m], weight %w: f8e4m3[r/128, m/128], weight %gate: f32[e, m]) -> {results} {{
              %n = rms_norm %x, %g {{eps = 1e-6}} : f32[b, m]
              %half = scale %n {{by = 0.5}} : f32[b, m]
              %q = quantize %half {{to = f8e4m3, per = [1, 128], scales = single, least = 1e-4}} : f8e4m3[b, m/128]
              %y = einsum \"bm,rm->br\" %q, %w : f32[b, r]
              {more}
            }}"
        )
    };
    let alone = "return %y";
    let router = "%z = einsum \"bm,em->be\" %half, %gate : f32[b, e]
              return %y, %z";
    for (m, more, results, launches, temps) in [
        (256, alone, "f32[b, r]", vec!["f.half", "f.y"], vec!["q", "q_scale_inv"]),
        (256, router, "f32[b, r], f32[b, e]", vec!["f.half", "f.y", "f.z"], vec!["half", "q", "q_scale_inv"]),
        (250, alone, "f32[b, r]", vec!["f.half", "f.q", "f.y"], vec!["half", "q", "q_scale_inv"]),
    ] {
        let module = parse(&text(m, more, results));
        let target = eva_passes::target::Target::cpu();
        let plan =
            eva_passes::compile(&module, &target, &Options::default()).unwrap_or_else(|e| panic!("{e}"));
        let f = &plan.funcs[module.func("f").unwrap()];
        let launched = f.steps.iter().filter_map(|step| match step {
            Step::Launch { name, .. } => Some(name.as_str()),
            Step::Call { .. } => None,
        });
        assert_eq!(launched.collect::<Vec<_>>(), launches, "{m} {more}");
        let mut kept: Vec<&str> = Vec::new();
        for base in &f.bases {
            if let Base::Temp(temp) = base {
                kept.push(&temp.name);
            }
        }
        kept.sort_unstable();
        assert_eq!(kept, temps, "{m} {more}");
    }
}
