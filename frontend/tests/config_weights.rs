//! The tensors a configuration asks for, against checkpoints that have them and that do not.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use eva::model::config::{Config, Role, Storage};
use eva_runtime::checkpoint::{Checkpoint, CheckpointDType, TensorDecl, Writer};
use serde_json::{Value, json};
use tempfile::TempDir;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures")
}

fn load(name: &str) -> (Config, Checkpoint) {
    let dir = fixtures().join(name);
    (Config::load(&dir).unwrap(), Checkpoint::open(&dir).unwrap())
}

fn changed(name: &str, changes: &[(&str, Value)]) -> Config {
    let text = fs::read_to_string(fixtures().join(name).join("config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&text).unwrap();
    for (key, value) in changes {
        config[*key] = value.clone();
    }
    Config::from_json(&config.to_string()).unwrap()
}

/// A checkpoint of zeros with the tensors of `config`, after `edit`.
fn written(config: &Config, edit: impl FnOnce(&mut Vec<TensorDecl>)) -> (TempDir, Checkpoint) {
    let decl = |w: eva::model::config::WeightSpec| TensorDecl {
        name: w.name,
        dtype: *w.storage.dtypes().last().unwrap(),
        shape: w.shape,
    };
    let mut tensors: Vec<TensorDecl> = config.weights().into_iter().map(decl).collect();
    edit(&mut tensors);
    let dir = TempDir::new().unwrap();
    let zeros = |i: usize| vec![0; tensors[i].dtype.bytes_of(&tensors[i].shape).unwrap() as usize];
    Writer::new().write_dir(dir.path(), &tensors, |i, out| out.write_all(&zeros(i))).unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    (dir, checkpoint)
}

fn refusal(config: &Config, require_mtp: bool, edit: impl FnOnce(&mut Vec<TensorDecl>)) -> String {
    let (dir, checkpoint) = written(config, edit);
    let message = config.check(&checkpoint, require_mtp).expect_err("this must not fit").to_string();
    message.replace(dir.path().to_str().unwrap(), "DIR")
}

fn find<'a>(tensors: &'a mut [TensorDecl], name: &str) -> &'a mut TensorDecl {
    tensors.iter_mut().find(|t| t.name == name).unwrap()
}

#[test]
fn the_fixtures_fit() {
    for (name, mtp) in [("v3-tiny", true), ("v3-tiny", false), ("v2-lite-tiny", true), ("v3-tiny-fp8", true)]
    {
        let (config, checkpoint) = load(name);
        config.check(&checkpoint, mtp).unwrap();
        let weights = config.weights();
        let names: BTreeSet<_> = weights.iter().map(|w| w.name.as_str()).collect();
        assert_eq!(names.len(), weights.len(), "{name}: a name occurs twice");
        assert_eq!(names, checkpoint.names().collect(), "{name}");
        let elements: usize = weights.iter().map(|w| w.shape.iter().product::<usize>()).sum();
        assert_eq!(elements, checkpoint.iter().map(|t| t.elements()).sum::<usize>());
    }
}

#[test]
fn roles() {
    let (config, _) = load("v3-tiny-fp8");
    let weights = config.weights();
    let role = |name: &str| {
        let spec = weights.iter().find(|w| w.name == name).unwrap();
        (spec.role, spec.storage)
    };
    let codes = Storage::Codes(CheckpointDType::F8E4M3);
    assert_eq!(role("model.layers.1.mlp.gate.weight"), (Role::Router, Storage::Float));
    assert_eq!(role("model.layers.1.mlp.gate.e_score_correction_bias"), (Role::RouterBias, Storage::Float));
    assert_eq!(role("model.layers.2.mlp.experts.7.up_proj.weight"), (Role::Linear, codes));
    assert_eq!(role("model.layers.2.mlp.experts.7.up_proj.weight_scale_inv"), (Role::Scale, Storage::Scale));
    assert_eq!(role("lm_head.weight"), (Role::Head, Storage::Float));
    assert_eq!(role("model.norm.weight"), (Role::Norm, Storage::Float));
}

#[test]
fn other_models() {
    let names = |config: &Config| config.weights().into_iter().map(|w| w.name).collect::<BTreeSet<_>>();
    let base = names(&changed("v3-tiny", &[]));
    let biased = names(&changed("v3-tiny", &[("attention_bias", json!(true))]));
    let added: Vec<_> = biased.difference(&base).filter(|n| n.contains("layers.0.")).cloned().collect();
    assert_eq!(
        added,
        ["kv_a_proj_with_mqa", "o_proj", "q_a_proj"].map(|n| format!("model.layers.0.self_attn.{n}.bias"))
    );
    let no_shared = names(&changed("v3-tiny", &[("n_shared_experts", json!(0))]));
    assert!(base.difference(&no_shared).all(|n| n.contains("shared_experts")));
    let sparse = changed("v3-tiny", &[("moe_layer_freq", json!(2)), ("num_nextn_predict_layers", json!(0))]);
    assert!(names(&sparse).contains("model.layers.1.mlp.gate_proj.weight"));
    assert!(names(&sparse).contains("model.layers.2.mlp.experts.15.gate_proj.weight"));

    // A tied head may be stored or not.
    let tied = changed("v3-tiny", &[("tie_word_embeddings", json!(true))]);
    assert!(!names(&tied).contains("lm_head.weight"));
    let head =
        TensorDecl { name: "lm_head.weight".into(), dtype: CheckpointDType::F32, shape: vec![288, 144] };
    tied.check(&written(&tied, |_| {}).1, true).unwrap();
    tied.check(&written(&tied, |t| t.push(head.clone())).1, true).unwrap();
    let short = TensorDecl { shape: vec![288, 143], ..head };
    assert_eq!(
        refusal(&tied, true, |t| t.push(short)),
        "DIR: the tensors do not fit config.json, 1 problem\n  \
         wrong shape: lm_head.weight is [288, 143]; expected [288, 144]"
    );
}

#[test]
fn mtp_may_be_missing_if_nobody_asks_for_it() {
    let (config, _) = load("v3-tiny");
    let without = |t: &mut Vec<TensorDecl>| t.retain(|t| !t.name.starts_with("model.layers.3."));
    config.check(&written(&config, without).1, false).unwrap();
    let message = refusal(&config, true, without);
    let mut lines = message.lines();
    assert_eq!(lines.next(), Some("DIR: the tensors do not fit config.json, 68 problems"));
    assert_eq!(lines.next(), Some("  missing: model.layers.3.embed_tokens.weight [288, 144]"));
    assert_eq!(lines.next_back(), Some("  and 48 more"));
    assert_eq!(lines.count(), 19);
    // What is there must fit all the same.
    let odd = |t: &mut Vec<TensorDecl>| {
        without(t);
        t.push(TensorDecl {
            name: "model.layers.3.enorm.weight".into(),
            dtype: CheckpointDType::F16,
            shape: vec![7],
        });
    };
    assert_eq!(
        refusal(&config, false, odd),
        "DIR: the tensors do not fit config.json, 1 problem\n  \
         wrong shape: model.layers.3.enorm.weight is [7]; expected [144]"
    );
}

#[test]
fn all_differences_are_listed() {
    let (config, _) = load("v2-lite-tiny");
    let message = refusal(&config, true, |tensors| {
        find(tensors, "model.layers.0.self_attn.q_proj.weight").name =
            "model.layers.0.self_attn.q_porj.weight".into();
        find(tensors, "model.layers.1.mlp.gate.weight").name = "model.layers.1.mlp.router".into();
        find(tensors, "model.layers.2.self_attn.o_proj.weight").shape = vec![96, 80];
        find(tensors, "model.norm.weight").dtype = CheckpointDType::I32;
        tensors.retain(|t| t.name != "model.layers.1.mlp.experts.11.down_proj.weight");
        let inv_freq = "model.layers.0.self_attn.rotary_emb.inv_freq".into();
        tensors.push(TensorDecl { name: inv_freq, dtype: CheckpointDType::F32, shape: vec![8] });
    });
    assert_eq!(
        message,
        "DIR: the tensors do not fit config.json, 7 problems\n  \
         missing: model.layers.0.self_attn.q_proj.weight [160, 80] (is it `model.layers.0.self_attn.q_porj.weight`?)\n  \
         missing: model.layers.1.mlp.gate.weight [12, 80]\n  \
         missing: model.layers.1.mlp.experts.11.down_proj.weight [80, 24]\n  \
         not part of the model: model.layers.0.self_attn.q_porj.weight [160, 80]\n  \
         not part of the model: model.layers.1.mlp.router [12, 80]\n  \
         wrong shape: model.layers.2.self_attn.o_proj.weight is [96, 80]; expected [80, 96]\n  \
         wrong type: model.norm.weight is I32; expected F32, BF16, F16"
    );
}

#[test]
fn foreign_names_are_recognised() {
    let (config, _) = load("v2-lite-tiny");
    let message = refusal(&config, true, |tensors| {
        find(tensors, "model.embed_tokens.weight").name = "embed.weight".into();
        find(tensors, "lm_head.weight").name = "head.weight".into();
    });
    assert_eq!(
        message,
        "DIR: the tensors do not fit config.json, 4 problems\n  \
         missing: model.embed_tokens.weight [288, 80]\n  \
         missing: lm_head.weight [288, 80] (is it `head.weight`?)\n  \
         not part of the model: embed.weight [288, 80]\n  \
         not part of the model: head.weight [288, 80]\n\
         these are the names of DeepSeek's own inference code; convert the checkpoint to Hugging Face names"
    );
}

#[test]
fn the_public_sizes_add_up() {
    // DeepSeek-V3: 671.0 B weights.
    let public = json!({
        "model_type": "deepseek_v3", "hidden_size": 7168, "num_hidden_layers": 61, "first_k_dense_replace": 3,
        "num_attention_heads": 128, "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64, "v_head_dim": 128, "intermediate_size": 18432, "moe_intermediate_size": 2048,
        "n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4,
        "max_position_embeddings": 163840, "vocab_size": 129280, "num_nextn_predict_layers": 1
    });
    let config = Config::from_json(&public.to_string()).unwrap();
    let count = |mtp| {
        let specs = config.weights().into_iter().filter(|w| w.mtp == mtp);
        specs.map(|w| w.shape.iter().product::<usize>()).sum::<usize>() as f64 / 1e9
    };
    assert!((count(false) - 671.0).abs() < 0.05, "{}", count(false));
    // Its MTP module: attention, experts and the shared one, router, projection of twice the width, two tables.
    let mtp = 187.1e6
        + 257.0 * 3.0 * 7168.0 * 2048.0
        + 256.0 * 7168.0
        + 2.0 * 7168.0f64.powi(2)
        + 2.0 * 129280.0 * 7168.0;
    assert!((count(true) - mtp / 1e9).abs() < 0.001, "{}", count(true));
}
