//! The models of `eva::model`, evaluated in `f64`, against what transformers computed.

use eva::model::config::Config;
use eva::model::{Options, Training, causal_lm, training};
use eva::prelude::*;
use eva_ir::eval::{Array, Sizes, bind_sizes, eval_values};
use eva_ir::graph::{Function, ParamKind};
use safetensors::{Dtype, SafeTensors};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

/// A directory of the fixtures: configuration, weights and expected outputs.
struct Fixture {
    config: Config,
    weights: Tensors,
    expected: Tensors,
}

/// Tensors by name.
#[derive(Default)]
struct Tensors {
    arrays: HashMap<String, Array>,
    dtypes: HashMap<String, DType>,
}

impl Tensors {
    fn read(path: PathBuf) -> Self {
        let bytes = std::fs::read(path).unwrap();
        let mut tensors = Tensors::default();
        for (name, view) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
            let data = view.data();
            let (dtype, data): (DType, Vec<f64>) = match view.dtype() {
                Dtype::F32 => {
                    (F32, data.as_chunks().0.iter().map(|&c| f32::from_le_bytes(c).into()).collect())
                }
                Dtype::BF16 => (
                    BF16,
                    data.as_chunks().0.iter().map(|&c| half::bf16::from_le_bytes(c).to_f64()).collect(),
                ),
                Dtype::I64 => {
                    (I64, data.as_chunks().0.iter().map(|&c| i64::from_le_bytes(c) as f64).collect())
                }
                other => panic!("{name} is {other:?}"),
            };
            tensors.dtypes.insert(name.clone(), dtype);
            tensors.arrays.insert(name, Array::new(view.shape(), data));
        }
        tensors
    }

    /// A weight by its parameter's name: experts are stacked.
    fn weight(&self, name: &str) -> Array {
        let Some((before, after)) = name.split_once(".experts.") else { return self.arrays[name].clone() };
        let expert = |e: usize| self.arrays.get(&format!("{before}.experts.{e}.{after}"));
        let all: Vec<&Array> = (0..).map_while(expert).collect();
        let shape = [&[all.len()], all[0].shape.as_slice()].concat();
        Array::new(&shape, all.iter().flat_map(|a| a.data.iter().copied()).collect())
    }

    fn dtype(&self, name: &str) -> DType {
        self.dtypes[&name.replace(".experts.", ".experts.0.")]
    }
}

impl Fixture {
    fn load(name: &str) -> Self {
        let at = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name);
        Fixture {
            config: Config::load(&at).unwrap(),
            weights: Tensors::read(at.join("model.safetensors")),
            expected: Tensors::read(at.join("expected.safetensors")),
        }
    }

    fn module(&self, options: Options) -> Module {
        let stored = |name: &str| self.weights.dtype(name);
        causal_lm(&self.config, &Options { weight_dtype: Some(&stored), ..options }).unwrap()
    }
}

/// What a function gives, by name.
struct Run {
    results: HashMap<String, Array>,
}

/// Runs `func` on inputs by name and caches of `cached` tokens: those of an earlier run, if it had any, else empty ones.
fn run(
    module: &Module,
    func: &str,
    inputs: &[(&str, &Array)],
    weight: &dyn Fn(&str) -> Array,
    cached: usize,
    before: Option<&Run>,
) -> Run {
    let func = module.func(func).unwrap();
    let f: &Function = &module.funcs[func];
    let batch = inputs[0].1.shape[0];
    let args: Vec<Array> = f
        .params()
        .map(|(param, kind)| {
            let name = &f.values[param].name;
            match kind {
                ParamKind::Input => inputs.iter().find(|(n, _)| n == name).unwrap().1.clone(),
                ParamKind::Weight => weight(name),
                ParamKind::State => {
                    let widths = f.tensor(param).unwrap().shape[2..].iter();
                    let widths: Vec<usize> =
                        widths.map(|dim| module.constant(dim).unwrap() as usize).collect();
                    let old = before.map(|run| &run.results[&format!("{name}.next")]);
                    Array::from_fn(&[&[batch, cached], &widths[..]].concat(), |index| match old {
                        Some(old) if index[1] < old.shape[1] => old.at(index),
                        // What was not written must not matter.
                        _ => 1e4,
                    })
                }
            }
        })
        .collect();
    let shapes: Vec<&[usize]> = args.iter().map(|a| a.shape.as_slice()).collect();
    let sizes = bind_sizes(module, func, &shapes, &Sizes::default()).unwrap();
    let values = eval_values(module, func, &sizes, &args);
    let results = f.results.iter().map(|v| (f.values[*v].name.clone(), values[v][0].clone())).collect();
    Run { results }
}

/// Part `start .. end` of an axis.
fn part(x: &Array, axis: usize, start: usize, end: usize) -> Array {
    let mut shape = x.shape.clone();
    shape[axis] = end - start;
    Array::from_fn(&shape, |index| {
        let mut index = index.to_vec();
        index[axis] += start;
        x.at(&index)
    })
}

/// The largest difference.
fn difference(a: &Array, b: &Array) -> f64 {
    assert_eq!(a.shape, b.shape);
    assert!(a.data.iter().chain(&b.data).all(|x| x.is_finite()), "a number is not finite");
    a.data.iter().zip(&b.data).map(|(x, y)| (x - y).abs()).fold(0.0, f64::max)
}

/// The limit for a recorded tensor: half of what an `f32` implementation may have (an `f64` one differs by the reference's
/// own rounding).
fn limit(name: &str) -> f64 {
    match name.rsplit('.').next().unwrap() {
        "topk_weight" | "attn_probs" => 5e-6,
        "logits" => 4e-5,
        _ => 6e-5,
    }
}

/// Compares every tensor of `expected` for which `name` gives the name of a result; returns the names compared.
fn compare(run: &Run, expected: &Tensors, rows: usize, name: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let mut names = Vec::new();
    for (recorded, want) in &expected.arrays {
        let Some(result) = name(recorded) else { continue };
        let have = run.results.get(&result).unwrap_or_else(|| panic!("no result {result}"));
        let want = part(want, 0, 0, rows);
        if let Some(at) = recorded.strip_suffix("topk_idx") {
            // The reference lists experts by index, the router by score.
            let weight = &run.results[&result.replace("topk_idx", "topk_weight")];
            let want_weight = part(&expected.arrays[&format!("{at}topk_weight")], 0, 0, rows);
            let k = *have.shape.last().unwrap();
            for (row, (have, weight)) in have.data.chunks(k).zip(weight.data.chunks(k)).enumerate() {
                let mut chosen: Vec<(usize, f64)> =
                    have.iter().zip(weight).map(|(e, w)| (*e as usize, *w)).collect();
                chosen.sort_by_key(|(e, _)| *e);
                for (j, (e, w)) in chosen.into_iter().enumerate() {
                    assert_eq!(e, want.data[row * k + j] as usize, "{recorded}, row {row}");
                    let d = (w - want_weight.data[row * k + j]).abs();
                    assert!(d < limit("topk_weight"), "{at}topk_weight, row {row}: {d}");
                }
            }
        } else if !recorded.ends_with("topk_weight") {
            let d = difference(have, &want);
            assert!(d < limit(recorded), "{recorded} differs by {d}");
        }
        names.push(recorded.clone());
    }
    names.sort();
    names
}

fn ints(shape: &[usize], data: &[i64]) -> Array {
    Array::new(shape, data.iter().map(|&x| x as f64).collect())
}

/// Both rows, all tokens, everything recorded of the main model.
fn forward_matches(name: &str, recorded: usize) {
    let fixture = Fixture::load(name);
    let module = fixture.module(Options { taps: true, attn_probs: true, ..Options::default() });
    let ids = &fixture.expected.arrays["input_ids"];
    let inputs = [("ids", ids), ("start", &ints(&[2], &[0, 0]))];
    let weight = |name: &str| fixture.weights.weight(name);
    let run = run(&module, "forward", &inputs, &weight, 48, None);
    let known = |name: &str| {
        let yes = name.starts_with("layers.") || name == "final_norm" || name == "logits";
        yes.then(|| name.to_string())
    };
    let compared = compare(&run, &fixture.expected, 2, known);
    assert_eq!(compared.len(), recorded, "{compared:?}");
}

#[test]
fn v3_tiny_is_what_transformers_computes() {
    // Three layers with five tensors each, two of them with three of the router, attention weights, norm, logits.
    forward_matches("v3-tiny", 3 * 5 + 2 * 3 + 3);
}

#[test]
fn v2_lite_tiny_is_what_transformers_computes() {
    forward_matches("v2-lite-tiny", 3 * 5 + 2 * 3 + 3);
}

#[test]
fn the_mtp_module_is_what_transformers_computes() {
    let fixture = Fixture::load("v3-tiny");
    let module = fixture.module(Options { taps: true, mtp: true, ..Options::default() });
    let expected = &fixture.expected.arrays;
    let (next, hidden) = (part(&expected["input_ids"], 1, 1, 48), part(&expected["final_norm"], 1, 0, 47));
    let inputs = [("ids", &next), ("hidden", &hidden), ("start", &ints(&[2], &[0, 0]))];
    let weight = |name: &str| fixture.weights.weight(name);
    let run = run(&module, "mtp", &inputs, &weight, 47, None);
    let known = |name: &str| (name.starts_with("mtp.") && name != "mtp.loss").then(|| name.to_string());
    let compared = compare(&run, &fixture.expected, 2, known);
    assert_eq!(compared, ["mtp.hidden", "mtp.logits", "mtp.topk_idx", "mtp.topk_weight"]);
}

/// Greedy generation of a few tokens through `@main`, with padding after the prompt.
#[test]
fn generated_tokens_are_those_of_transformers() {
    for name in ["v3-tiny", "v2-lite-tiny"] {
        let fixture = Fixture::load(name);
        let module = fixture.module(Options::default());
        let weight = |name: &str| fixture.weights.weight(name);
        let (prompt, tokens) =
            (&fixture.expected.arrays["gen.prompt"], &fixture.expected.arrays["gen.tokens"]);
        let logits = &fixture.expected.arrays["gen.logits"];
        let mut ids = prompt.data.clone();
        ids.extend([3.0, 5.0]);
        let (mut ids, mut start, mut last) = (Array::new(&[1, 10], ids), 0, 7);
        let mut before: Option<Run> = None;
        for step in 0..5 {
            let inputs = [("ids", &ids), ("start", &ints(&[1], &[start])), ("last", &ints(&[1], &[last]))];
            let cached = start as usize + ids.shape[1];
            let done = run(&module, "main", &inputs, &weight, cached, before.as_ref());
            let have = &done.results["logits"];
            assert!(difference(have, &part(logits, 0, step, step + 1)) < 4e-5, "{name}, step {step}");
            let best = |row: &[f64]| (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap();
            let next = best(&have.data);
            assert_eq!(next as f64, tokens.data[8 + step], "{name}, step {step}");
            (ids, start, last) = (ints(&[1, 1], &[next as i64]), start + last + 1, 0);
            before = Some(done);
        }
    }
}

/// A model with odd sizes, no query latent, no YaRN.
fn odd(router: &str, extra: &str) -> Config {
    Config::from_json(&format!(
        r#"{{"model_type": "deepseek_v3", "hidden_size": 19, "num_hidden_layers": 2, "first_k_dense_replace": 1,
        "num_attention_heads": 5, "num_key_value_heads": 5, "q_lora_rank": null, "kv_lora_rank": 7, "qk_nope_head_dim": 3,
        "qk_rope_head_dim": 4, "v_head_dim": 6, "intermediate_size": 23, "moe_intermediate_size": 9,
        "n_routed_experts": 6, "n_shared_experts": 1, "num_experts_per_tok": 2, {router}, "routed_scaling_factor": 1.5,
        "rms_norm_eps": 1e-5, "rope_theta": 10000, "max_position_embeddings": 64, "vocab_size": 29,
        "hidden_act": "silu", "moe_layer_freq": 1, "attention_bias": false, "torch_dtype": "float32" {extra}}}"#
    ))
    .unwrap()
}

const V3_ROUTER: &str = r#""scoring_func": "sigmoid", "topk_method": "noaux_tc", "n_group": 3, "topk_group": 2, "norm_topk_prob": true"#;

/// Numbers that only depend on a name: uniform, a weight's scaled by its fan-in.
fn random(name: &str, shape: &[usize]) -> Array {
    let mut state =
        name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    let scale = if shape.len() == 1 { 1.0 } else { 2.0 / (shape[shape.len() - 1] as f64).sqrt() };
    Array::from_fn(shape, |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 11) as f64 / (1u64 << 53) as f64 * 2.0 - 1.0) * scale
    })
}

/// The weights of a module, by name.
fn random_weights(module: &Module) -> impl Fn(&str) -> Array + '_ {
    |name| {
        let of = |(_, f): (_, &Arc<Function>)| {
            let (param, _) =
                f.params().find(|(p, k)| *k == ParamKind::Weight && f.values[*p].name == name)?;
            let shape = &f.tensor(param)?.shape;
            Some(shape.iter().map(|dim| module.constant(dim).unwrap() as usize).collect::<Vec<_>>())
        };
        random(name, &module.funcs.iter().find_map(of).unwrap())
    }
}

#[test]
fn decoding_token_by_token_is_the_same_as_all_at_once() {
    let v2 = r#""scoring_func": "softmax", "topk_method": "group_limited_greedy", "n_group": 2, "topk_group": 1, "norm_topk_prob": false"#;
    let halves = r#", "rope_interleave": false, "tie_word_embeddings": true"#;
    // Of standard attention heads as those of latent attention are, and such as Llama has.
    let partly = r#", "kv_lora_rank": null, "eva": {"attention": "standard"}"#;
    let whole = r#", "qk_nope_head_dim": 0, "rope_interleave": false, "eva": {"attention": "standard"}"#;
    for (router, extra) in [(V3_ROUTER, ""), (v2, halves), (V3_ROUTER, partly), (v2, whole)] {
        let module = causal_lm(&odd(router, extra), &Options::default()).unwrap();
        let weight = random_weights(&module);
        // Two sequences, of 11 and of 8 tokens.
        let lengths = [11, 8];
        let ids = Array::from_fn(&[2, 11], |i| ((i[0] * 13 + i[1] * 7 + i[1] * i[1]) % 29) as f64);
        let start = ints(&[2], &[0, 0]);
        let whole = run(&module, "forward", &[("ids", &ids), ("start", &start)], &weight, 11, None);

        // Of the longer first 4, of the other 3 and padding; then in parts, while they last.
        let mut before: Option<Run> = None;
        let mut starts = [0usize, 0];
        for new in [[4, 3], [1, 1], [2, 1], [1, 2], [3, 1]] {
            let s = new[0].max(new[1]);
            let now = Array::from_fn(&[2, s], |i| {
                let at = starts[i[0]] + i[1];
                if i[1] < new[i[0]] { ids.at(&[i[0], at]) } else { 17.0 }
            });
            let start = ints(&[2], &[starts[0] as i64, starts[1] as i64]);
            let last = ints(&[2], &[new[0] as i64 - 1, new[1] as i64 - 1]);
            let cached = starts[0].max(starts[1]) + s;
            let inputs = [("ids", &now), ("start", &start), ("last", &last)];
            let done = run(&module, "main", &inputs, &weight, cached, before.as_ref());
            for row in 0..2 {
                starts[row] += new[row];
                let have = part(&done.results["logits"], 0, row, row + 1);
                let want =
                    part(&part(&whole.results["logits"], 0, row, row + 1), 1, starts[row] - 1, starts[row]);
                let want = Array::new(&have.shape, want.data);
                assert!(difference(&have, &want) < 1e-11);
            }
            before = Some(done);
        }
        assert_eq!(starts, lengths);
    }
}

/// The loss is that of the logits, and the accuracy the share of labels that have the largest; ignored ones do not count.
#[test]
fn losses_and_accuracies_are_of_the_logits() {
    let standard = r#", "eva": {"attention": "standard"}"#;
    for extra in ["", standard] {
        let config = odd(V3_ROUTER, extra);
        let (lm, learner) = (
            causal_lm(&config, &Options::default()).unwrap(),
            training(&config, &Training::default()).unwrap(),
        );
        let ids = Array::from_fn(&[2, 11], |i| ((i[0] * 13 + i[1] * 7 + i[1] * i[1]) % 29) as f64);
        let start = ints(&[2], &[0, 0]);
        let weight = random_weights(&lm);
        let whole = run(&lm, "forward", &[("ids", &ids), ("start", &start)], &weight, 11, None);
        let logits = &whole.results["logits"];
        let row = |b: usize, s: usize| (0..29).map(|w| logits.at(&[b, s, w])).collect::<Vec<f64>>();
        let best = |row: &[f64]| (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap();
        // The most likely token, another one, and none.
        let labels = Array::from_fn(&[2, 11], |i| match i[1] % 3 {
            0 => best(&row(i[0], i[1])) as f64,
            1 => ((best(&row(i[0], i[1])) + 1) % 29) as f64,
            _ => [-100.0, 29.0][i[0]],
        });
        let done = run(&learner, "loss", &[("ids", &ids), ("labels", &labels)], &weight, 11, None);
        assert!((done.results["accuracy"].data[0] - 4.0 / 8.0).abs() < 1e-12, "{extra}");
        let loss = |b: usize, s: usize| {
            let row = row(b, s);
            row.iter().map(|x| x.exp()).sum::<f64>().ln() - row[labels.at(&[b, s]) as usize]
        };
        let counted = (0..2).flat_map(|b| (0..11).map(move |s| (b, s))).filter(|(_, s)| s % 3 < 2);
        let losses: Vec<f64> = counted.map(|(b, s)| loss(b, s)).collect();
        let mean = losses.iter().sum::<f64>() / losses.len() as f64;
        assert!((done.results["lm_loss"].data[0] - mean).abs() < 1e-9, "{extra}");
    }
}

#[test]
fn layers_of_one_kind_are_one_function_unless_stored_differently() {
    let mut config = Fixture::load("v3-tiny").config;
    config.layers = 61;
    let names = |module: &Module| module.funcs.iter().map(|(_, f)| f.name.clone()).collect::<Vec<_>>();
    let options = Options { mtp: true, ..Options::default() };
    let module = causal_lm(&config, &options).unwrap();
    assert_eq!(names(&module), ["dense_layer", "moe_layer", "mtp", "forward", "main"]);

    let stored = |name: &str| if name.starts_with("model.layers.7.self_attn.o_proj") { F32 } else { BF16 };
    let module = causal_lm(&config, &Options { weight_dtype: Some(&stored), ..options }).unwrap();
    assert_eq!(names(&module), ["dense_layer", "moe_layer", "moe_layer_1", "mtp", "forward", "main"]);

    let options = Options { taps: true, attn_probs: true, ..Options::default() };
    config.first_dense = 2;
    let module = causal_lm(&config, &options).unwrap();
    assert_eq!(names(&module), ["dense_layer", "dense_layer_1", "moe_layer", "forward", "main"]);
}

#[test]
fn a_layer_reads_like_the_paper() {
    let module = Fixture::load("v3-tiny").module(Options::default());
    let layer = module.func("moe_layer").unwrap();
    insta::assert_snapshot!(eva_ir::text::print_function(&module, layer));
}

/// The weights of the module are the tensors of the checkpoint: the same names, the same extents.
#[test]
fn weights_are_those_of_the_checkpoint() {
    let biased = r#", "num_nextn_predict_layers": 1"#;
    let mut configs = vec![odd(V3_ROUTER, biased), Fixture::load("v3-tiny").config];
    configs.push(Fixture::load("v2-lite-tiny").config);
    configs.push(Config { attention_bias: true, ..configs[1].clone() });
    configs.push(Config { tie_embeddings: true, ..configs[2].clone() });
    let standard = r#", "eva": {"attention": "standard"}, "num_nextn_predict_layers": 1"#;
    configs.push(Config { attention_bias: true, ..odd(V3_ROUTER, standard) });
    for config in configs {
        let module = causal_lm(&config, &Options { mtp: true, ..Options::default() }).unwrap();
        let mut have: HashMap<String, Vec<usize>> = HashMap::new();
        for (_, f) in module.funcs.iter().filter(|(_, f)| !f.name.ends_with("layer")) {
            for (param, _) in f.params().filter(|(_, kind)| *kind == ParamKind::Weight) {
                let shape = f.tensor(param).unwrap().shape.iter();
                let shape: Vec<usize> = shape.map(|d| module.constant(d).unwrap() as usize).collect();
                let name = f.values[param].name.clone();
                match name.split_once(".experts.") {
                    None => drop(have.insert(name, shape)),
                    Some((before, after)) => (0..shape[0]).for_each(|e| {
                        have.insert(format!("{before}.experts.{e}.{after}"), shape[1..].to_vec());
                    }),
                }
            }
        }
        let want: HashMap<_, _> = config.weights().into_iter().map(|w| (w.name, w.shape)).collect();
        assert_eq!(have, want);
    }
}
