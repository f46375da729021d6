//! Fresh models: complete, reproducible, and refused where they cannot be made.

use std::fs;
use std::path::{Path, PathBuf};

use eva::init::{InitOptions, init};
use eva::model::config::Config;
use eva_runtime::checkpoint::{Checkpoint, CheckpointDType};
use serde_json::{Value, json};
use tempfile::TempDir;

fn text(name: &str) -> String {
    let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name);
    fs::read_to_string(path.join("config.json")).unwrap()
}

fn changed(name: &str, key: &str, value: Value) -> String {
    let mut config: Value = serde_json::from_str(&text(name)).unwrap();
    config[key] = value;
    config.to_string()
}

fn made(config: &str, options: InitOptions) -> (TempDir, Checkpoint) {
    let dir = TempDir::new().unwrap();
    let out = dir.path().join("model");
    init(config, &out, options, |_, _| {}).unwrap();
    let checkpoint = Checkpoint::open(&out).unwrap();
    (dir, checkpoint)
}

#[test]
fn a_fresh_model_fits_its_configuration() {
    for name in ["v3-tiny", "v2-lite-tiny"] {
        let (dir, checkpoint) = made(&text(name), InitOptions::default());
        let out = dir.path().join("model");
        assert_eq!(fs::read_to_string(out.join("config.json")).unwrap(), text(name));
        let config = Config::load(&out).unwrap();
        config.check(&checkpoint, true).unwrap();
        let embedding = checkpoint.get("model.embed_tokens.weight").unwrap();
        assert_eq!(embedding.dtype, CheckpointDType::Bf16);
        let values = embedding.to_f32().unwrap();
        let deviation = (values.iter().map(|x| x * x).sum::<f32>() / values.len() as f32).sqrt();
        assert!((deviation - 0.02).abs() < 0.0005, "{deviation}");
        let norm = checkpoint.get("model.norm.weight").unwrap().to_f32().unwrap();
        assert!(norm.iter().all(|x| (x - 1.0).abs() < 0.12) && norm.iter().any(|&x| x != 1.0), "{norm:?}");
        if let Some(bias) = checkpoint.get("model.layers.1.mlp.gate.e_score_correction_bias") {
            assert_eq!(bias.dtype, CheckpointDType::F32);
            assert!(bias.to_f32().unwrap().iter().all(|x| x.abs() < 0.12 && *x != 0.0));
        }
    }
}

#[test]
fn the_seed_and_the_name_decide() {
    let (_a, one) = made(&text("v3-tiny"), InitOptions { seed: 5, ..InitOptions::default() });
    let shards = InitOptions { seed: 5, max_shard_bytes: Some(300_000), dtype: Some(CheckpointDType::Bf16) };
    let (_b, many) = made(&text("v3-tiny"), shards);
    let fewer = changed("v3-tiny", "num_hidden_layers", json!(2));
    let (_c, fewer) = made(&fewer, InitOptions { seed: 5, ..InitOptions::default() });
    let (_d, other) = made(&text("v3-tiny"), InitOptions { seed: 6, ..InitOptions::default() });
    assert_eq!((one.files().count(), many.files().count()), (1, 8));
    for tensor in one.iter() {
        assert_eq!(tensor.bytes, many.get(tensor.name).unwrap().bytes, "{}", tensor.name);
        assert_ne!(tensor.bytes, other.get(tensor.name).unwrap().bytes, "{}", tensor.name);
        if !tensor.name.contains("layers.2.") && !tensor.name.contains("layers.3.") {
            assert_eq!(tensor.bytes, fewer.get(tensor.name).unwrap().bytes, "{}", tensor.name);
        }
    }
    // Two tensors of one shape differ.
    let bytes = |name: &str| one.get(name).unwrap().bytes;
    assert_ne!(
        bytes("model.layers.1.mlp.experts.0.up_proj.weight"),
        bytes("model.layers.1.mlp.experts.1.up_proj.weight")
    );
}

#[test]
fn types_and_long_tensors() {
    // The embedding has 700 * 997 elements, more than two chunks of random numbers.
    let mut config: Value =
        serde_json::from_str(&changed("v2-lite-tiny", "hidden_size", json!(997))).unwrap();
    config["vocab_size"] = json!(700);
    config["initializer_range"] = json!(0.5);
    let of =
        |dtype| made(&config.to_string(), InitOptions { seed: 1, dtype: Some(dtype), max_shard_bytes: None });
    let (_a, full) = of(CheckpointDType::F32);
    let (_b, half) = of(CheckpointDType::F16);
    let name = "model.embed_tokens.weight";
    let (full, half) = (full.get(name).unwrap().to_f32().unwrap(), half.get(name).unwrap().to_f32().unwrap());
    assert_eq!(full.len(), 700 * 997);
    for (f, h) in full.iter().zip(&half) {
        assert!((f - h).abs() <= f.abs() / 2048.0 + 1e-7, "{f} became {h}");
    }
    let chunk = 1 << 18;
    assert_ne!(full[..100], full[chunk..chunk + 100]);
    let deviation = (full.iter().map(|&x| f64::from(x * x)).sum::<f64>() / full.len() as f64).sqrt();
    assert!((deviation - 0.5).abs() < 0.002, "{deviation}");
}

#[test]
fn progress_reaches_the_end() {
    let dir = TempDir::new().unwrap();
    let mut calls = Vec::new();
    let written =
        init(&text("v2-lite-tiny"), &dir.path().join("m"), InitOptions::default(), |d, t| calls.push((d, t)));
    let total = written.unwrap().tensor_bytes;
    assert!(calls.is_sorted() && calls.iter().all(|&(_, t)| t == total));
    assert_eq!(calls.last(), Some(&(total, total)));
}

#[test]
fn what_cannot_be_made_is_refused() {
    let dir = TempDir::new().unwrap();
    let message = |config: &str, options| {
        let message = init(config, dir.path(), options, |_, _| {}).unwrap_err().to_string();
        message.replace(dir.path().to_str().unwrap(), "DIR")
    };
    let plain = InitOptions::default();
    assert_eq!(
        message(&changed("v3-tiny", "hidden_size", json!(0)), plain),
        "config.json: 1 problem\n  hidden_size: is 0; expected a whole number from 1 to 2147483647"
    );
    assert_eq!(
        message(&text("v3-tiny"), InitOptions { dtype: Some(CheckpointDType::I8), ..plain }),
        "fresh weights cannot be I8; choose F32, BF16 or F16"
    );
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    fs::write(dir.path().join("config.json"), "{}").unwrap();
    assert_eq!(
        message(&text("v3-tiny"), plain),
        "DIR/config.json: already there; choose another directory, or remove it first"
    );
    fs::remove_file(dir.path().join("config.json")).unwrap();
    init(&text("v3-tiny"), dir.path(), plain, |_, _| {}).unwrap();
    fs::remove_file(dir.path().join("config.json")).unwrap();
    assert_eq!(
        message(&text("v3-tiny"), plain),
        "DIR/model.safetensors: already there; choose another directory, or remove it first"
    );
}
