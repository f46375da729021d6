//! 8-bit floats with scales, along the whole chain.

use eva_ir::kernel::{self, Phase};
use eva_ir::text::parse;
use eva_passes::interpret::{How, interpret};
use eva_passes::target::Target;
use eva_runtime::{CompileOptions, Executable, Session, Tensor, Weights};
use eva_tests::scaled::apart;
use eva_tests::{arguments, as_written, check_chain, run_machine, sizes};
use std::collections::HashMap;
use std::sync::Arc;

#[track_caller]
fn check(text: &str, name: &str, sizes: &[(&str, i64)]) {
    let module = parse(text).unwrap_or_else(|e| panic!("{e}"));
    let func = module.func(name).unwrap();
    for seed in [1, 2] {
        check_chain(&module, func, sizes, &HashMap::new(), seed);
    }
}

/// Rows of activations in blocks of 16, the last one short.
#[test]
fn activations_are_quantized_in_tiles_of_a_row() {
    let text = "dim b dim m = 53
        fn @f(%x: f32[b, m]) -> f8e4m3[b, m/16] {
            %q = quantize %x {to = f8e4m3, per = [1, 16], scales = single, least = 1e-4} : f8e4m3[b, m/16]
            return %q
        }";
    check(text, "f", &[("b", 5)]);
    let text = text.replace("scales = single", "scales = pow2").replace("m/16]", "m/16; pow2]");
    check(&text, "f", &[("b", 3)]);
    let text = text.replace("pow2", "e8m0").replace("f8e4m3", "f8e5m2");
    check(&text, "f", &[("b", 4)]);
}

/// Squares, rows, whole tensors, and tiles of tokens.
#[test]
fn blocks_of_every_shape() {
    for (per, ty) in [
        ("[8, 8]", "r/8, m/8"),
        ("[1, m]", "r, m/*"),
        ("[r, m]", "r/*, m/*"),
        ("[8, 1]", "r/8, m"),
        ("[r, 1]", "r/*, m"),
        ("[1, 1]", "r, m"),
    ] {
        let text = format!(
            "dim r = 29 dim m = 19
            fn @f(%x: f32[r, m]) -> f8e4m3[{ty}] {{
                %q = quantize %x {{to = f8e4m3, per = {per}, scales = single, least = 1e-4}} : f8e4m3[{ty}]
                return %q
            }}"
        );
        check(&text, "f", &[]);
    }
}

/// What is element-wise before it is computed in its kernel, and a quantized value goes through calls.
#[test]
fn quantized_values_are_handed_on() {
    let text = "dim b dim m = 37
        fn @q(%x: f32[b, m], %y: f32[b, m]) -> f8e4m3[b, m/16] {
            %s = silu %x : f32[b, m]
            %p = mul %s, %y : f32[b, m]
            %q = quantize %p {to = f8e4m3, per = [1, 16], scales = single, least = 1e-4} : f8e4m3[b, m/16]
            return %q
        }
        fn @d(%q: f8e4m3[b, m/16]) -> f32[b, m] {
            %d = dequantize %q {to = f32} : f32[b, m]
            %z = scale %d {by = 3.0} : f32[b, m]
            return %z
        }
        fn @f(%x: f32[b, m], %y: f32[b, m]) -> f32[b, m], f8e4m3[b, m/16] {
            %q = call @q %x, %y : f8e4m3[b, m/16]
            %z = call @d %q : f32[b, m]
            return %z, %q
        }";
    check(text, "f", &[("b", 3)]);
}

/// A weight as checkpoints have it, read as numbers.
#[test]
fn weights_are_numbers_as_they_are_read() {
    let text = "dim b dim r = 37 dim m = 29
        fn @f(%x: f32[b, m], weight %w: f8e4m3[r/8, m/8]) -> f32[b, r], f32[r, m] {
            %d = dequantize %w {to = f32} : f32[r, m]
            %y = einsum \"bm,rm->br\" %x, %d : f32[b, r]
            return %y, %d
        }";
    check(text, "f", &[("b", 3)]);
    check(&text.replace("m/8]", "m/8; e8m0]"), "f", &[("b", 1)]);
}

/// The weight of latent attention's expansion, taken apart by heads that are no multiple of the blocks.
#[test]
fn weights_are_cut_where_blocks_are_not() {
    let text = "dim b dim h = 3 dim n = 7 dim v = 5 dim c = 19
        fn @f(%q: f32[b, h, n], weight %w: f8e4m3[h*n + h*v/8, c/8]) -> f32[b, h, c], f32[h, v, c] {
            %d = dequantize %w {to = f32} : f32[h*n + h*v, c]
            %e = reshape %d {shape = [h, n + v, c]} : f32[h, n + v, c]
            %k = slice %e {axis = 1, range = 0..n} : f32[h, n, c]
            %v = slice %e {axis = 1, range = n..n + v} : f32[h, v, c]
            %y = einsum \"bhn,hnc->bhc\" %q, %k : f32[b, h, c]
            return %y, %v
        }";
    check(text, "f", &[("b", 3)]);
}

/// Products of activations and weights of 8 bits, a sum of several blocks with a short last one.
#[test]
fn products_of_eight_bit_floats() {
    let text = "dim b dim r = 37 dim m = 53
        fn @f(%x: f32[b, m], weight %w: f8e4m3[r/16, m/16]) -> f32[b, r] {
            %q = quantize %x {to = f8e4m3, per = [1, 16], scales = single, least = 1e-4} : f8e4m3[b, m/16]
            %y = einsum \"bm,rm->br\" %q, %w : f32[b, r]
            %z = scale %y {by = 0.5} : f32[b, r]
            return %z
        }";
    check(text, "f", &[("b", 5)]);
    check(text, "f", &[("b", 1)]);
    // Rows with a scale each, and a tensor with one.
    let rows = text.replace("per = [1, 16]", "per = [1, m]").replace("m/16", "m/*").replace("r/16", "r");
    check(&rows, "f", &[("b", 3)]);
    let one = text.replace("per = [1, 16]", "per = [1, m]").replace("m/16", "m/*").replace("r/16", "r/*");
    check(&one, "f", &[("b", 2)]);
}

/// Rows of experts.
#[test]
fn grouped_products_of_eight_bit_floats() {
    let text = "dim g dim e = 3 dim f = 19 dim m = 37
        fn @f(%x: f32[g, m], weight %w: f8e4m3[e, f/8, m/8], %offsets: i32[e + 1]) -> f32[g, f] {
            %q = quantize %x {to = f8e4m3, per = [1, 8], scales = single, least = 1e-4} : f8e4m3[g, m/8]
            %y = grouped \"gm,efm->gf\" %q, %w, %offsets : f32[g, f]
            return %y
        }";
    let module = parse(text).unwrap_or_else(|e| panic!("{e}"));
    let ints = HashMap::from([("offsets", vec![0, 4, 4, 11])]);
    check_chain(&module, module.func("f").unwrap(), &[("g", 11)], &ints, 1);
}

/// Rows of tokens in the order of experts, one of which has none: wide enough for a GPU's widest accesses, for products by
/// its tensor cores, and for codes that are written the other way round.
#[test]
fn rows_of_tokens_of_eight_bit_floats() {
    let text = "dim s = 91 dim k = 3 dim e = 5 dim f = 48 dim m = 272
        fn @f(%x: bf16[s, m], weight %w: f8e4m3[e, f/16, m/16], %chosen: i32[s, k])
            -> f32[s*k, f], f8e4m3[s*k, m/16], f8e4m3[m, s*k + 32*e/32] {
            %sorted = sort_by_expert %chosen {experts = [e]} : (i32[s*k], i32[s, k], i32[e+1])
            %order = get %sorted {index = 0} : i32[s*k]
            %offsets = get %sorted {index = 2} : i32[e+1]
            %starts = align_offsets %offsets {rows = 32} : i32[e+1]
            %q = quantize %x {to = f8e4m3, per = [1, 16], scales = single, least = 1e-4} : f8e4m3[s, m/16]
            %rows = dispatch %q, %order {k = [k]} : f8e4m3[s*k, m/16]
            %y = grouped \"gm,efm->gf\" %rows, %w, %offsets : f32[s*k, f]
            %numbers = dispatch %x, %order {k = [k]} : bf16[s*k, m]
            %t = quantize_by_expert %numbers, %offsets, %starts {to = f8e4m3, rows = 32, scales = single, least = 1e-4} : f8e4m3[m, s*k + 32*e/32]
            return %y, %rows, %t
        }";
    let chosen = vec![4, 0, 2, 2, 3, 0, 3, 2, 4, 0, 4];
    for text in [
        text.to_string(),
        text.replace("/16]", "/16; e8m0]")
            .replace("per = [1, 16], scales = single", "per = [1, 16], scales = e8m0"),
        text.replace("m/16]", "m/*]").replace("f/16", "f").replace("per = [1, 16]", "per = [1, m]"),
    ] {
        let module = parse(&text).unwrap_or_else(|e| panic!("{e}"));
        let ints = HashMap::from([("chosen", chosen.clone())]);
        check_chain(&module, module.func("f").unwrap(), &[], &ints, 3);
    }
}

/// Transposing moves scales with their blocks.
#[test]
fn transpositions_are_exact() {
    let text = "dim r = 29 dim m = 19
        fn @f(weight %w: f8e4m3[r/8, m/8]) -> f8e4m3[m/8, r/8] {
            %t = einsum \"rm->mr\" %w : f8e4m3[m/8, r/8]
            return %t
        }";
    check(text, "f", &[]);
}

/// A cache of 8-bit floats.
#[test]
fn caches_of_eight_bit_floats() {
    let text = "dim b dim s dim t dim c = 21 dim h = 3
        fn @f(%x: f32[b, s, c], %q: f32[b, s, h, c], %start: i32[b], state %cache: f8e4m3[b, t, c/8])
            -> f32[b, h, s, t], f8e4m3[b, t, c/8] {
            %n = quantize %x {to = f8e4m3, per = [1, 1, 8], scales = single, least = 1e-4} : f8e4m3[b, s, c/8]
            %all = cache_write %cache, %n, %start : f8e4m3[b, t, c/8]
            %d = dequantize %all {to = f32} : f32[b, t, c]
            %y = einsum \"bshc,btc->bhst\" %q, %d : f32[b, h, s, t]
            return %y, %all
        }";
    let module = parse(text).unwrap_or_else(|e| panic!("{e}"));
    let ints = HashMap::from([("start", vec![4, 0])]);
    check_chain(&module, module.func("f").unwrap(), &[("b", 2), ("s", 3), ("t", 7)], &ints, 1);
}

/// The products of absorbed attention with 8-bit weights, heads cutting blocks, give the bits that they give with the numbers
/// that those stand for: scales are powers of two, or any.
#[test]
fn absorbed_weights_have_the_bits_of_their_numbers() {
    let text = "dim s dim h = 3 dim n = 20 dim v = 17 dim c = 150
        fn @f(%q: f32[s, h, n], %o: f32[s, h, c], weight %w: TYPE) -> f32[s, h, c], f32[s, h, v] {
            %d = CAST %w {to = f32} : f32[h*n + h*v, c]
            %e = reshape %d {shape = [h, n + v, c]} : f32[h, n + v, c]
            %k = slice %e {axis = 1, range = 0..n} : f32[h, n, c]
            %u = slice %e {axis = 1, range = n..n + v} : f32[h, v, c]
            %y = einsum \"shn,hnc->shc\" %q, %k : f32[s, h, c]
            %z = einsum \"shc,hvc->shv\" %o, %u : f32[s, h, v]
            return %y, %z
        }";
    for scales in ["", "; pow2"] {
        for s in [1, 4, 33] {
            let of = |ty: &str, cast: &str| {
                let module =
                    parse(&text.replace("TYPE", ty).replace("CAST", cast)).unwrap_or_else(|e| panic!("{e}"));
                let options = CompileOptions { passes: as_written(), ..CompileOptions::default() };
                (Arc::new(Executable::compile(&module, &options).unwrap()), module)
            };
            let (eight, module) = of(&format!("f8e4m3[h*n + h*v/128, c/128{scales}]"), "dequantize");
            let f = &module.funcs[module.func("f").unwrap()];
            let sizes = sizes(&module, &[("s", s)]);
            let args = arguments(f, &sizes, 7, &HashMap::new());
            let have = run_machine(eight, f, &sizes, &apart(f, &sizes, &args));
            let (wide, module) = of("f32[h*n + h*v, c]", "cast");
            // Numbers as memory holds them: code times scale, rounded to `f32`.
            let numbers: Vec<_> = args.iter().map(|x| x.map(|x| f64::from(x as f32))).collect();
            let want = run_machine(wide, &module.funcs[module.func("f").unwrap()], &sizes, &numbers);
            assert_eq!(have, want, "{scales} {s}");
        }
    }
}

/// Scales follow gradients wherever they are: those of a loss that is counted 2^-40 times are 2^-40 times as large, bit for bit.
#[test]
fn gradients_are_as_exact_however_small() {
    let text = "dim b = 7 dim m = 37 dim r = 21
        fn @loss(%x: f32[b, m], weight %w: f32[r, m], %g: f32[b, r]) -> f32[] {
            %y = einsum \"bm,rm->br\" %x, %w : f32[b, r]
            %z = mul %y, %g : f32[b, r]
            %all = einsum \"br->\" %z : f32[]
            return %all
        }";
    let wrt = Some(vec!["x".to_string(), "w".to_string()]);
    let options = eva_passes::grad::Options { wrt, ..Default::default() };
    let module = eva_passes::grad::differentiate(&parse(text).unwrap(), "loss", &options).unwrap();
    for recipe in ["deepseek-v3", "deepseek-v3-ue8m0", "tensorwise-current", "rowwise"] {
        let recipe = eva_passes::fp8::Recipe::named(recipe);
        let fp8 = eva_passes::fp8::Options { recipe, ..Default::default() };
        let options = eva_passes::Options { fp8, ..Default::default() };
        let module = eva_passes::run_pass("fp8", &module, &options).unwrap().unwrap();
        let func = module.func("loss.grad").unwrap();
        let f = &module.funcs[func];
        let mut args = arguments(f, &sizes(&module, &[]), 5, &HashMap::new());
        let mut gradients = |seed: f64| {
            args.last_mut().unwrap().data = vec![seed];
            let all = eva_ir::eval::eval(&module, func, &args).unwrap();
            all[1..]
                .iter()
                .flat_map(|array| array.data.iter().map(|x| x / seed).collect::<Vec<f64>>())
                .collect()
        };
        let (usual, small): (Vec<f64>, Vec<f64>) = (gradients(1.0), gradients(2f64.powi(-40)));
        assert!(usual.iter().any(|&x| x != 0.0));
        assert_eq!(usual, small);
    }
}

/// Gradients of a layer in 8 bits, with tokens as two axes, and the statistics of what it quantizes.
#[test]
fn gradients_and_statistics() {
    let text = "dim b = 3 dim s = 11 dim m = 37 dim r = 21
        fn @loss(%x: f32[b, s, m], weight %w: f32[r, m]) -> f32[] {
            %y = einsum \"bsm,rm->bsr\" %x, %w : f32[b, s, r]
            %z = silu %y : f32[b, s, r]
            %zz = mul %z, %z : f32[b, s, r]
            %all = einsum \"bsr->\" %zz : f32[]
            return %all
        }";
    let wrt = Some(vec!["x".to_string(), "w".to_string()]);
    let options = eva_passes::grad::Options { wrt, ..Default::default() };
    let module = eva_passes::grad::differentiate(&parse(text).unwrap(), "loss", &options).unwrap();
    let recipe =
        "name = 'small'\nbase = 'deepseek-v3'\n[activations]\ntiles = '1x16'\n[weights]\ntiles = '16x16'\n";
    let recipe = eva_passes::fp8::Recipe::from_toml(recipe).unwrap();
    let fp8 = eva_passes::fp8::Options { recipe: Some(recipe), observe: true, ..Default::default() };
    let options = eva_passes::Options { fp8, ..Default::default() };
    let module = eva_passes::run_pass("fp8", &module, &options).unwrap().unwrap_or_else(|e| panic!("{e}"));
    let func = module.func("loss.grad").unwrap();
    let sites = eva_passes::fp8::observe::sites(&module, func);
    assert!(sites.iter().any(|site| site.ty == "f8e4m3[r, b*s/16]"), "{sites:?}");
    assert_eq!(sites.len(), 5, "x and the gradient of y for two products each, w for both: {sites:?}");
    for seed in [3, 4] {
        check_chain(&module, func, &[], &HashMap::new(), seed);
    }
}

/// One scale that is given: some numbers are cut off, some become zero.
#[test]
fn a_scale_that_is_given() {
    for (ty, scaled) in [("b, m", "b/*, m/*"), ("3, b, m", "3/*, b/*, m/*"), ("m", "m/*")] {
        let text = format!(
            "dim b dim m = 53
            fn @f(%x: f32[{ty}], %amax: f32[]) -> f8e4m3[{scaled}], f32[{ty}] {{
                %near = offset %amax {{by = 0.25}} : f32[]
                %q = quantize_by %x, %near {{to = f8e4m3, least = 0.001}} : f8e4m3[{scaled}]
                %d = dequantize %q {{to = f32}} : f32[{ty}]
                %y = scale %d {{by = 2.0}} : f32[{ty}]
                return %q, %y
            }}"
        );
        check(&text, "f", &[("b", 5)]);
        check(&text.replace("to = f8e4m3", "to = f8e5m2").replace("f8e4m3[", "f8e5m2["), "f", &[("b", 1)]);
    }
}

/// A layer with delayed scales, called twice: the first call has no history, and the next have that of those before.
#[test]
fn delayed_scales_follow_what_came_before() {
    let text = "dim b dim m = 37 dim r = 21
        fn @layer(%x: f32[b, m], weight %up: f32[r, m], weight %down: f32[m, r]) -> f32[b, m] {
            %y = einsum \"bm,rm->br\" %x, %up : f32[b, r]
            %z = silu %y : f32[b, r]
            %w = einsum \"br,mr->bm\" %z, %down : f32[b, m]
            return %w
        }
        fn @f(%x: f32[b, m], weight %a: f32[r, m], weight %b: f32[m, r], weight %c: f32[r, m], weight %d: f32[m, r]) -> f32[b, m] {
            %one = call @layer %x, %a, %b : f32[b, m]
            %two = call @layer %one, %c, %d : f32[b, m]
            return %two
        }";
    let toml = "name = 'short'\nbase = 'tensorwise-delayed'\n[delayed]\nwindow = 3\nmargin = 1\n";
    let recipe = eva_passes::fp8::Recipe::from_toml(toml).unwrap();
    let fp8 = eva_passes::fp8::Options { recipe: Some(recipe), ..Default::default() };
    let options = eva_passes::Options { fp8, ..Default::default() };
    let module = eva_passes::run_pass("fp8", &parse(text).unwrap(), &options)
        .unwrap()
        .unwrap_or_else(|e| panic!("{e}"));
    let func = module.func("f").unwrap();
    let names: Vec<&str> = module.funcs[func]
        .params()
        .filter(|(_, kind)| *kind == eva_ir::graph::ParamKind::State)
        .map(|(value, _)| module.funcs[func].values[value].name.as_str())
        .collect();
    assert_eq!(
        names,
        [
            "one.x_f8e4m3.amax_history",
            "one.z_f8e4m3.amax_history",
            "two.x_f8e4m3.amax_history",
            "two.z_f8e4m3.amax_history"
        ]
    );
    check_chain(&module, func, &[("b", 4)], &HashMap::new(), 7);

    // As machine code, call after call: the history is what came, and what exceeds it is cut off.
    let executable =
        Executable::compile(&module, &CompileOptions::default()).unwrap_or_else(|e| panic!("{e}"));
    let numbers =
        |n: usize, by: f32| (0..n).map(|i| by * ((i * 7 % 11) as f32 - 5.0) / 5.0).collect::<Vec<f32>>();
    let weight =
        |shape: &[usize]| Arc::new(Tensor::from_f32(shape, &numbers(shape.iter().product(), 0.3)).into());
    let weights = Weights::from([
        ("a".to_string(), weight(&[21, 37])),
        ("b".to_string(), weight(&[37, 21])),
        ("c".to_string(), weight(&[21, 37])),
        ("d".to_string(), weight(&[37, 21])),
    ]);
    let mut session = Session::new(Arc::new(executable), "f", &weights).unwrap();
    let mut states = session.whole_states(&[]).unwrap();
    let mut histories = Vec::new();
    for by in [1.0, 4.0, 0.5, 0.25] {
        let x = Tensor::from_f32(&[4, 37], &numbers(4 * 37, by));
        session.run(&[("x", &x)], Some(&mut states), &[]).unwrap();
        histories.push(states.get("one.x_f8e4m3.amax_history").unwrap().to_f32());
    }
    assert_eq!(histories, [[1.0, 0.0, 0.0], [4.0, 1.0, 0.0], [0.5, 4.0, 1.0], [0.25, 0.5, 4.0]]);
}

/// A norm quantized in its own kernel, with and without another use of it.
#[test]
fn norms_are_quantized_by_rows() {
    for (m, per, ty) in [
        (48, "per = [1, 1, 16], scales = single", "b, s, m/16"),
        (48, "per = [1, 1, 16], scales = pow2", "b, s, m/16; pow2"),
        (48, "per = [1, 1, 48], scales = e8m0", "b, s, m/48; e8m0"),
        (1536, "per = [1, 1, 128], scales = single", "b, s, m/128"),
        (1344, "per = [1, 1, 32], scales = e8m0", "b, s, m/32; e8m0"),
        (200, "per = [1, 1, 128], scales = single", "b, s, m/128"),
        (53, "per = [1, 1, m], scales = pow2", "b, s, m/*; pow2"),
    ] {
        for results in ["%d", "%d, %n"] {
            let types = if results == "%d" { "f32[b, s, m]" } else { "f32[b, s, m], f32[b, s, m]" };
            let text = format!(
                "dim b dim s dim m = {m}
                fn @f(%x: f32[b, s, m], %g: f32[m]) -> {types} {{
                    %n = rms_norm %x, %g {{eps = 1e-6}} : f32[b, s, m]
                    %q = quantize %n {{to = f8e4m3, {per}, least = 1e-4}} : f8e4m3[{ty}]
                    %d = dequantize %q {{to = f32}} : f32[b, s, m]
                    return {results}
                }}"
            );
            check(&text, "f", &[("b", 3), ("s", 5)]);
        }
    }
}

/// Of a norm in 16 bits, that is: the codes and scales of what memory has, whether it goes through memory or not.
#[test]
fn norms_are_rounded_before_they_are_quantized() {
    for (m, per, ty) in [
        (384, "per = [1, 128], scales = single", "b, m/128"),
        (352, "per = [1, 32], scales = e8m0", "b, m/32; e8m0"),
        (57, "per = [1, m], scales = pow2", "b, m/*; pow2"),
        (144, "per = [1, 48], scales = single", "b, m/48"),
        (200, "per = [1, 128], scales = single", "b, m/128"),
    ] {
        let norm = "%n = rms_norm %x, %g {eps = 1e-6} : bf16[b, m]";
        let quantize = format!("%q = quantize %n {{to = f8e4m3, {per}, least = 1e-4}} : f8e4m3[{ty}]");
        let text = format!(
            "dim b dim m = {m}
            fn @f(%x: bf16[b, m], %g: bf16[m]) -> f8e4m3[{ty}] {{ {norm} {quantize} return %q }}
            fn @norm(%x: bf16[b, m], %g: bf16[m]) -> bf16[b, m] {{ {norm} return %n }}
            fn @apart(%x: bf16[b, m], %g: bf16[m]) -> f8e4m3[{ty}] {{
                %n = call @norm %x, %g : bf16[b, m]
                {quantize}
                return %q
            }}"
        );
        let module = parse(&text).unwrap_or_else(|e| panic!("{e}"));
        let [f, apart] = ["f", "apart"].map(|name| module.func(name).unwrap());
        let sizes = sizes(&module, &[("b", 19)]);
        let args = arguments(&module.funcs[f], &sizes, 5, &HashMap::new());
        let executable = Executable::compile(&module, &CompileOptions::default());
        let executable = Arc::new(executable.unwrap_or_else(|e| panic!("{e}")));
        let machine = |func| run_machine(executable.clone(), &module.funcs[func], &sizes, &args);
        assert_eq!(machine(f), machine(apart), "{text}");
        let gpu =
            eva_passes::compile(&module, &Target::cuda(), &as_written()).unwrap_or_else(|e| panic!("{e}"));
        for (plan, phase) in [
            (executable.plan(), Phase::Tile),
            (executable.plan(), Phase::Lane),
            (&gpu, Phase::Tile),
            (&gpu, Phase::Block),
        ] {
            let options = kernel::run::Options { f32: true, ..Default::default() };
            let how = How { phase, slack: 0, options };
            let run = |func| interpret(plan, func, &sizes, &args, &how).unwrap_or_else(|e| panic!("{e}")).0;
            assert_eq!(run(f), run(apart), "{phase:?}: {text}");
        }
    }
}
