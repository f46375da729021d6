//! 8-bit floats in whole models: what a recipe makes of a layer of DeepSeek-V3, that absorption keeps weights as they are
//! stored, and that it changes no number.

use eva::convert::{ConvertOptions, To, convert};
use eva::engine::{LoadOptions, Model, Quiet};
use eva::model::causal_lm::{Options as ModelOptions, causal_lm};
use eva::model::config::{Config, ScaleFormat, is_projection};
use eva_ir::dim::Dim;
use eva_ir::graph::Module;
use eva_ir::kernel::Access;
use eva_ir::types::DType;
use eva_passes::fp8::{self, Outcome, Recipe};
use eva_passes::plan::{Base, FuncPlan, Step};
use eva_passes::target::Target;
use eva_passes::{CacheOptions, Form, Options, cache, compile, optimize};
use eva_runtime::Tensor;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(path)
}

/// The configuration of DeepSeek-V3, with fewer layers.
fn v3() -> Config {
    let text = std::fs::read_to_string(fixture("v3-tiny-fp8/config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&text).unwrap();
    for (key, n) in [
        ("hidden_size", 7168),
        ("intermediate_size", 18432),
        ("moe_intermediate_size", 2048),
        ("num_attention_heads", 128),
        ("num_key_value_heads", 128),
        ("q_lora_rank", 1536),
        ("kv_lora_rank", 512),
        ("qk_nope_head_dim", 128),
        ("qk_rope_head_dim", 64),
        ("v_head_dim", 128),
        ("n_routed_experts", 256),
        ("num_experts_per_tok", 8),
        ("n_group", 8),
        ("topk_group", 4),
        ("num_hidden_layers", 2),
        ("vocab_size", 129280),
    ] {
        config[key] = json!(n);
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    Config::load(dir.path()).unwrap_or_else(|e| panic!("{e}"))
}

/// The model with its projections stored as `projections`, everything else in bf16.
fn module(config: &Config, projections: DType) -> Module {
    let stored = |name: &str| if is_projection(name) { projections } else { DType::Bf16 };
    let options = ModelOptions { dtype: DType::Bf16, weight_dtype: Some(&stored), ..ModelOptions::default() };
    causal_lm(config, &options).unwrap_or_else(|e| panic!("{e}"))
}

fn options(recipe: &str, form: Form) -> Options {
    let fp8 = fp8::Options { recipe: Recipe::named(recipe), deny_fallback: true, ..fp8::Options::default() };
    assert!(fp8.recipe.is_some());
    Options { form, fp8, ..Options::default() }
}

/// Which kernels of a layer write codes: those of norms, of what is between two products, of attention's results, and none that does
/// nothing else. A norm that routers read as well leaves its rows, too. Rows of experts are made of its codes.
#[test]
fn codes_are_written_where_their_numbers_are_computed() {
    let config = v3();
    for target in [Target::cpu(), Target::cuda()] {
        let plan = compile(&module(&config, DType::F8E4M3), &target, &options("deepseek-v3", Form::Absorbed));
        let plan = plan.unwrap_or_else(|e| panic!("{e}"));
        let mut text = String::new();
        for (_, f) in plan.funcs.iter() {
            for step in &f.steps {
                let Step::Launch { kernel, name, .. } = step else { continue };
                let bufs = || plan.tiles[*kernel].bufs.iter();
                if bufs().any(|(_, buf)| buf.access == Access::Write && buf.dtype.is_f8()) {
                    let said = |access: Access| {
                        let bufs = bufs().filter(|(_, buf)| buf.access == access);
                        let bufs = bufs.map(|(_, buf)| format!("{} {}", buf.dtype, buf.name));
                        bufs.collect::<Vec<_>>().join(", ")
                    };
                    writeln!(text, "{name}: {} <- {}", said(Access::Write), said(Access::Read)).unwrap();
                }
            }
        }
        insta::assert_snapshot!(format!("codes_of_a_layer_{}", target.name), text);
    }
}

/// Exactly which products of a layer are 8 bits, and why the others are not; the same for weights of both types.
#[test]
fn deepseek_v3_of_a_layer() {
    let config = v3();
    let options = options("deepseek-v3", Form::Absorbed);
    let texts = [DType::Bf16, DType::F8E4M3].map(|stored| {
        let done = optimize(&module(&config, stored), &options).unwrap_or_else(|e| panic!("{e}"));
        let mut text = String::new();
        for (_, f) in done.funcs.iter().filter(|(_, f)| f.prepares.is_none()) {
            writeln!(text, "@{}", f.name).unwrap();
            for product in fp8::products(&done, f, &options.fp8) {
                let name = product.weight.unwrap_or(product.name);
                let name = name.strip_suffix("_f8e4m3").unwrap_or(&name);
                match product.outcome {
                    Outcome::Eight => writeln!(text, "  8 bits  {name}").unwrap(),
                    Outcome::High(why) => writeln!(text, "  high    {name}: {why}").unwrap(),
                    Outcome::Fallback(why) => panic!("{name} falls back: {why}"),
                }
            }
        }
        text
    });
    insta::assert_snapshot!(texts[0]);
    // What is stored in 8 bits needs no copy of another type.
    assert_eq!(texts[0], texts[1]);
}

/// Bytes of the temporaries of a function and of its weights that are computed from others, by name.
fn large(f: &FuncPlan, least: i64) -> Vec<String> {
    let value = |sym: &eva_ir::dim::Sym| match sym.as_str() {
        "t" => Some(4096),
        "@capacity" => Some(4096),
        _ => Some(1),
    };
    let temps = f.bodies().flat_map(|body| &body.bases).filter_map(|base| match base {
        Base::Temp(temp) => {
            temp.bytes.eval(&value).filter(|&bytes| bytes >= least).map(|_| temp.name.clone())
        }
        _ => None,
    });
    let prepared = f.params.iter().filter(|param| param.prepared.is_some());
    temps.chain(prepared.map(|param| param.name.clone())).collect()
}

/// `kv_b_proj` is 16.8 MB of codes and their scales in absorbed attention, and nothing else has its numbers.
#[test]
fn absorption_keeps_weights_as_they_are_stored() {
    let config = v3();
    let module = module(&config, DType::F8E4M3);
    for target in [Target::cpu(), Target::cuda()] {
        let plan = compile(&module, &target, &options("w8a8-absorb", Form::Absorbed))
            .unwrap_or_else(|e| panic!("{e}"));
        let value = |dim: &Dim| {
            let fixed =
                |sym: &eva_ir::dim::Sym| plan.dims.iter().find(|(name, _)| name == sym).and_then(|(_, n)| *n);
            dim.eval(&fixed).unwrap()
        };
        let (_, f) = plan.funcs.iter().find(|(_, f)| f.name.starts_with("moe_layer")).unwrap();
        let weight = f.params.iter().find(|param| param.name.ends_with("kv_b_proj.weight")).unwrap();
        assert_eq!((weight.ty.dtype, value(&weight.ty.elements())), (DType::F8E4M3, 256 * 128 * 512));
        assert!(weight.needed && weight.prepared.is_none());
        let scales = &f.params[weight.scales.unwrap()];
        assert_eq!((scales.ty.dtype, value(&scales.ty.elements())), (DType::F32, 256 * 4));
        assert_eq!(large(f, 256 * 128 * 512), Vec::<String>::new(), "{}", target.name);
    }
}

/// 512 codes, 4 scales and 64 numbers of 16 bits a token.
#[test]
fn caches_of_a_layer_take_656_bytes_a_token() {
    let config = v3();
    let module = module(&config, DType::Bf16);
    let elements = cache::Elements::Eight { rotary: false };
    let options = CacheOptions { elements, ..CacheOptions::default() };
    let laid_out = cache::lay_out(&module, &options).unwrap_or_else(|e| panic!("{e}"));
    let bytes = cache::CacheBytes::of(&laid_out, laid_out.func("main").unwrap()).unwrap();
    assert_eq!(bytes.per_layer(), 656);
    let options = Options { cache: options, ..Options::default() };
    let plan = compile(&module, &Target::cpu(), &options).unwrap_or_else(|e| panic!("{e}"));
    let func = plan.funcs.iter().find(|(_, f)| f.name == "main").unwrap().0;
    assert_eq!(plan.cache_bytes(func).unwrap().per_layer(), 656);
}

/// The logits of a prompt.
fn logits(dir: &Path, form: Form) -> Vec<f32> {
    let mut options = LoadOptions { form, fp8: Recipe::named("dequant"), ..LoadOptions::default() };
    options.entries = vec!["forward".into()];
    let model = Model::load(dir, &options, &Quiet).unwrap_or_else(|e| panic!("{e}"));
    let mut session = model.session("forward").unwrap();
    let ids: Vec<i64> = (0..19).map(|i| i * 37 % 288).collect();
    let mut states = session.new_states(1, 19).unwrap();
    let (ids, start) = (Tensor::from_i64(&[1, 19], &ids), Tensor::from_i32(&[1], &[0]));
    let results = session.run(&[("ids", &ids), ("start", &start)], Some(&mut states), &[("t", 19)]).unwrap();
    let results: HashMap<String, Tensor> = results.into_iter().collect();
    results["logits"].to_f32()
}

/// A model of 8-bit weights is that of the numbers that they stand for: bit for bit where scales are powers of two, so that
/// bf16 holds those exactly, too, and where nothing else of the weights is computed (gains are not folded into 8 bits).
#[test]
fn eight_bits_are_the_numbers_that_they_stand_for() {
    let dir = tempfile::tempdir().unwrap();
    let (eight, wide) = (dir.path().join("eight"), dir.path().join("wide"));
    let to = |to| ConvertOptions { to, max_shard_bytes: 10_000_000 };
    convert(&fixture("v3-tiny"), &eight, &to(To::Fp8(ScaleFormat::PowerOfTwo)), |_, _| {}).unwrap();
    convert(&eight, &wide, &to(To::Bf16), |_, _| {}).unwrap();
    let (of_codes, of_numbers) = (logits(&eight, Form::Written), logits(&wide, Form::Written));
    assert!(of_codes.iter().all(|x| x.is_finite()) && of_codes.iter().any(|x| x.abs() > 0.1));
    assert_eq!(of_codes, of_numbers);
    // With any scales, the forms agree as they do for numbers.
    let published = fixture("v3-tiny-fp8");
    let (absorbed, expanded) = (logits(&published, Form::Absorbed), logits(&published, Form::Expanded));
    let largest = expanded.iter().fold(0f32, |m, x| m.max(x.abs()));
    let worst = absorbed.iter().zip(&expanded).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
    assert!(worst <= 2e-5 * largest, "{worst} of {largest}");
}
