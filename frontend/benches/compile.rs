//! How long compiling takes, from a configuration through the DSL and the passes to machine code.
//!
//! `cargo bench -p eva-compiler --bench compile`. No weights are needed. `layers/61` beside `layers/1` shows
//! that layers alike are compiled once; at the end the two are timed in turn, so that what else the machine does
//! disturbs both alike.

use criterion::{Criterion, criterion_group};
use eva::model::config::Config;
use eva::model::layer::{Ffn, Layer};
use eva::model::mla::Tokens;
use eva::model::weights::Weights;
use eva::model::{Options, causal_lm};
use eva::prelude::*;
use eva_runtime::{CompileOptions, Executable};
use std::hint::black_box;
use std::time::{Duration, Instant};

/// The extents of DeepSeek-V3.
const V3: &str = r#"{
  "model_type": "deepseek_v3", "torch_dtype": "bfloat16", "hidden_act": "silu", "attention_bias": false,
  "vocab_size": 129280, "hidden_size": 7168, "num_hidden_layers": 61, "first_k_dense_replace": 3, "moe_layer_freq": 1,
  "num_attention_heads": 128, "num_key_value_heads": 128, "q_lora_rank": 1536, "kv_lora_rank": 512,
  "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "intermediate_size": 18432,
  "moe_intermediate_size": 2048, "n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8,
  "n_group": 8, "topk_group": 4, "topk_method": "noaux_tc", "scoring_func": "sigmoid", "norm_topk_prob": true,
  "routed_scaling_factor": 2.5, "rms_norm_eps": 1e-6, "rope_theta": 10000, "max_position_embeddings": 163840,
  "rope_scaling": {"type": "yarn", "factor": 40, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0,
    "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096},
  "tie_word_embeddings": false, "initializer_range": 0.02, "bos_token_id": 0, "eos_token_id": 1
}"#;

const V3_TINY: &str = include_str!("../../tests/fixtures/v3-tiny/config.json");

fn config(json: &str) -> Config {
    Config::from_json(json).unwrap_or_else(|e| panic!("{e}"))
}

/// How weights are stored: as in the public checkpoints.
fn stored(name: &str) -> DType {
    if name.ends_with("e_score_correction_bias") { F32 } else { BF16 }
}

/// Which part of an expert layer is compiled.
#[derive(Clone, Copy)]
enum Part {
    Attention,
    Experts,
    Layer,
}

/// `@block` is a part of an expert layer; `@main` calls it `times` times.
fn blocks(config: &Config, part: Part, times: usize) -> Module {
    let p = Program::new();
    let [b, s, t] = ["b", "s", "t"].map(|name| p.dim(name));
    let m = p.dim_fixed("m", config.hidden as i64);
    let layer = Layer::of(&p, config, config.first_dense);
    let block = p.function("block", |f| {
        let x = f.input("x", F32, [&b, &s, &m]);
        let rope = f.input("rope", F32, [b.clone(), s.clone(), Dim::from(2), layer.attention.rope().clone()]);
        let start = f.input("start", I32, [&b]);
        let tokens = Tokens { rope, start, cached: Some(t.clone()) };
        let w = Weights::new(f, &stored);
        match (part, &layer.ffn) {
            (Part::Attention, _) => layer.attention.apply(&w, &x, &tokens),
            (Part::Experts, Ffn::Experts(experts)) => experts.apply(&w, &x),
            (Part::Experts, Ffn::Dense(_)) => unreachable!("the layer after the dense ones has experts"),
            (Part::Layer, _) => layer.apply(&w, &x, &tokens),
        }
    });
    p.function("main", |f| {
        let x = f.input("x", F32, [&b, &s, &m]);
        let rope = f.input("rope", F32, [b.clone(), s.clone(), Dim::from(2), layer.attention.rope().clone()]);
        let start = f.input("start", I32, [&b]);
        (0..times).fold(x, |x, i| f.call(&block, &format!("layers.{i}"), [&x, &rope, &start])).named("y")
    });
    p.finish().unwrap_or_else(|diags| panic!("{diags}"))
}

fn compile(module: &Module) -> Executable {
    Executable::compile(module, &CompileOptions::default()).unwrap_or_else(|e| panic!("{e}"))
}

fn benches(c: &mut Criterion) {
    let mut group = c.benchmark_group("compile");
    group.sample_size(20).measurement_time(Duration::from_secs(10)).warm_up_time(Duration::from_secs(1));
    let (v3, tiny) = (config(V3), config(V3_TINY));
    group.bench_function("v3-tiny/model", |bench| {
        bench.iter(|| compile(&causal_lm(black_box(&tiny), &Options::default()).expect("it is a model")));
    });
    for (name, part) in [("attention", Part::Attention), ("experts", Part::Experts)] {
        group.bench_function(format!("v3/{name}"), |bench| {
            bench.iter(|| compile(&blocks(black_box(&v3), part, 1)));
        });
    }
    for times in [1, 61] {
        group.bench_function(format!("v3/layers/{times}"), |bench| {
            bench.iter(|| compile(&blocks(black_box(&v3), Part::Layer, times)));
        });
    }
    group.finish();
}

/// Prints how long 61 layers take beside one, each compiled 150 times in turn.
fn beside_each_other() {
    let v3 = config(V3);
    let mut times = [1, 61].map(|layers| (layers, Vec::new()));
    for _ in 0..150 {
        for (layers, times) in &mut times {
            let start = Instant::now();
            drop(compile(&blocks(black_box(&v3), Part::Layer, *layers)));
            times.push(start.elapsed().as_secs_f64() * 1e3);
        }
    }
    let [one, many] = times.map(|(_, mut times)| {
        times.sort_by(f64::total_cmp);
        times
    });
    for (what, i) in [("least", 0), ("median", one.len() / 2)] {
        let (one, many) = (one[i], many[i]);
        println!("61 layers beside 1, {what}: {many:.1} ms, {one:.1} ms, {:.2} times", many / one);
    }
}

criterion_group!(compiling, benches);

fn main() {
    compiling();
    Criterion::default().configure_from_args().final_summary();
    // `cargo test --benches` only wants to see that benchmarks run.
    if std::env::args().any(|arg| arg == "--bench") {
        beside_each_other();
    }
}
