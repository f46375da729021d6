//! Checkpoints that are damaged or of another model; messages are compared whole.

use super::support::{Sections, config, fixture, path, refusal, with_config, without};
use eva::model::config::{Config, WeightSpec};
use eva_runtime::checkpoint::{CheckpointDType, TensorDecl, Writer};
use serde_json::{Value, json};
use std::fs;
use tempfile::TempDir;

const MODEL: &str = "v2-lite-tiny";

fn message(dir: &TempDir) -> String {
    let message = refusal(1, &["generate", path(dir), "--tokens", "1", "--max-new-tokens", "3"]);
    without(dir, &message)
}

/// What is said of a checkpoint of zeros whose list of tensors was changed.
fn changed(edit: impl FnOnce(&mut Vec<TensorDecl>)) -> String {
    let dir = with_config(&config(MODEL, &[]));
    let decl = |w: WeightSpec| TensorDecl { dtype: CheckpointDType::Bf16, name: w.name, shape: w.shape };
    let mut tensors: Vec<TensorDecl> =
        Config::load(dir.path()).unwrap().weights().into_iter().map(decl).collect();
    edit(&mut tensors);
    let bytes = |i: usize| tensors[i].dtype.bytes_of(&tensors[i].shape).unwrap() as usize;
    Writer::new().write_dir(dir.path(), &tensors, |i, out| out.write_all(&vec![0; bytes(i)])).unwrap();
    message(&dir)
}

fn find<'a>(tensors: &'a mut [TensorDecl], name: &str) -> &'a mut TensorDecl {
    tensors.iter_mut().find(|t| t.name == name).unwrap()
}

#[test]
fn tensors_that_do_not_fit() {
    let mut all = Sections::default();
    all.add("missing", &changed(|tensors| tensors.retain(|t| t.name != "model.norm.weight")));
    all.add("misspelt", &changed(|tensors| find(tensors, "lm_head.weight").name = "lm_haed.weight".into()));
    all.add(
        "extra",
        &changed(|tensors| {
            let (name, shape) = ("model.layers.1.self_attn.q_norm.weight".into(), vec![24]);
            tensors.push(TensorDecl { name, dtype: CheckpointDType::F32, shape });
        }),
    );
    all.add(
        "misshaped",
        &changed(|tensors| find(tensors, "model.layers.2.self_attn.o_proj.weight").shape.reverse()),
    );
    all.add(
        "wrongly typed",
        &changed(|tensors| {
            find(tensors, "model.layers.0.mlp.up_proj.weight").dtype = CheckpointDType::I64;
            find(tensors, "model.embed_tokens.weight").dtype = CheckpointDType::F8E4M3;
        }),
    );
    all.add(
        "experts of two types",
        &changed(|tensors| {
            find(tensors, "model.layers.1.mlp.experts.7.up_proj.weight").dtype = CheckpointDType::F32;
        }),
    );
    all.add(
        "all at once",
        &changed(|tensors| {
            tensors.retain(|t| !t.name.starts_with("model.layers.2."));
            find(tensors, "model.norm.weight").shape = vec![81];
        }),
    );
    insta::assert_snapshot!(all.text());
}

/// What is said of a checkpoint of 8-bit weights whose list of tensors was changed, in two files.
fn changed_fp8(edit: impl FnOnce(&mut Vec<TensorDecl>)) -> String {
    let dir = with_config(&config("v3-tiny-fp8", &[]));
    let decl = |w: WeightSpec| TensorDecl { dtype: w.storage.dtypes()[0], name: w.name, shape: w.shape };
    let mut tensors: Vec<TensorDecl> =
        Config::load(dir.path()).unwrap().weights().into_iter().map(decl).collect();
    edit(&mut tensors);
    let bytes = |i: usize| tensors[i].dtype.bytes_of(&tensors[i].shape).unwrap() as usize;
    let writer = Writer::new().max_shard_bytes(700_000);
    writer.write_dir(dir.path(), &tensors, |i, out| out.write_all(&vec![0; bytes(i)])).unwrap();
    message(&dir)
}

#[test]
fn weights_of_8_bits_that_do_not_fit() {
    let mut all = Sections::default();
    let weight = "model.layers.1.self_attn.kv_b_proj.weight";
    let scales = "model.layers.1.self_attn.kv_b_proj.weight_scale_inv";
    all.add("scales are missing", &changed_fp8(|tensors| tensors.retain(|t| t.name != scales)));
    all.add("scales of another shape", &changed_fp8(|tensors| find(tensors, scales).shape = vec![2, 1]));
    all.add(
        "scales of another type",
        &changed_fp8(|tensors| find(tensors, scales).dtype = CheckpointDType::Bf16),
    );
    all.add("a weight of another shape", &changed_fp8(|tensors| find(tensors, weight).shape[0] += 1));
    all.add(
        "a weight that was not converted",
        &changed_fp8(|tensors| find(tensors, weight).dtype = CheckpointDType::Bf16),
    );
    all.add(
        "another kind of code",
        &changed_fp8(|tensors| find(tensors, weight).dtype = CheckpointDType::F8E5M2),
    );
    all.add(
        "an expert without scales",
        &changed_fp8(|tensors| {
            tensors.retain(|t| t.name != "model.layers.2.mlp.experts.5.up_proj.weight_scale_inv")
        }),
    );
    all.add(
        "scales of what has none",
        &changed_fp8(|tensors| {
            let (name, shape) = ("model.layers.1.mlp.gate.weight_scale_inv".into(), vec![1, 2]);
            tensors.push(TensorDecl { name, dtype: CheckpointDType::F32, shape });
        }),
    );
    // Codes where the configuration has none of them.
    let dir = with_config(&config("v3-tiny-fp8", &[("quantization_config", Value::Null)]));
    for entry in fs::read_dir(fixture("v3-tiny-fp8")).unwrap().map(|entry| entry.unwrap()) {
        if entry.file_name().to_str().unwrap().starts_with("model") {
            fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
        }
    }
    let text = message(&dir);
    assert!(
        text.ends_with("8-bit floats with scales, but config.json has no `quantization_config`\n"),
        "{text}"
    );
    all.add("no `quantization_config`", &text[..text.find("\n  and").unwrap()]);
    insta::assert_snapshot!(all.text());
}

/// What is said of one file with this header and so many bytes of data.
fn file(header: &str, data: usize) -> String {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    raw(&bytes)
}

fn raw(bytes: &[u8]) -> String {
    let dir = with_config(&config(MODEL, &[]));
    fs::write(dir.path().join("model.safetensors"), bytes).unwrap();
    message(&dir)
}

#[test]
fn files_that_are_cut_short_or_lie() {
    let whole = fs::read(fixture(MODEL).join("model.safetensors")).unwrap();
    let mut all = Sections::default();
    all.add("empty", &raw(&[]));
    all.add("cut in its length", &raw(&whole[..5]));
    all.add("cut in its header", &raw(&whole[..800]));
    all.add("cut in its data", &raw(&whole[..whole.len() - 1000]));
    all.add("longer than its header says", &raw(&[&whole[..], &[0; 9]].concat()));
    all.add("an endless header", &raw(&[0xff; 64]));
    all.add("a header that is not JSON", &file("{\"a\": 7", 0));
    all.add("a header that is a list", &file("[]", 0));
    let entry = |dtype: &str, shape: &str, start: u64, end: u64| {
        format!(r#"{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{start},{end}]}}"#)
    };
    let one = |entry: &str| format!(r#"{{"a":{entry}}}"#);
    all.add("data beyond the end", &file(&one(&entry("F32", "[5]", 0, 20)), 12));
    all.add("fewer bytes than the shape needs", &file(&one(&entry("F32", "[5]", 0, 12)), 12));
    all.add("an end before the start", &file(&one(&entry("F32", "[5]", 20, 0)), 20));
    let two = format!(r#"{{"a":{},"b":{}}}"#, entry("F32", "[3]", 0, 12), entry("F32", "[3]", 8, 20));
    all.add("tensors that overlap", &file(&two, 20));
    all.add("an unknown type", &file(&one(&entry("F33", "[5]", 0, 20)), 20));
    all.add("a shape beyond counting", &file(&one(&entry("F32", "[4294967296,4294967296]", 0, 20)), 20));
    let size = u64::MAX - 3;
    all.add("offsets beyond counting", &file(&one(&entry("U8", "[7]", size, size + 3)), 20));
    insta::assert_snapshot!(all.text());
}

/// What is said of the fixture in shards whose index was changed.
fn index(edit: impl FnOnce(&mut Value, &TempDir)) -> String {
    let dir = with_config(&config("v3-tiny", &[]));
    let from = fixture("v3-tiny-fp8");
    let mut shards: Vec<_> = fs::read_dir(&from).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    shards.retain(|name| name.to_str().unwrap().starts_with("model-"));
    assert_eq!(shards.len(), 2);
    for shard in shards {
        fs::copy(from.join(&shard), dir.path().join(&shard)).unwrap();
    }
    let name = "model.safetensors.index.json";
    let mut index: Value = serde_json::from_str(&fs::read_to_string(from.join(name)).unwrap()).unwrap();
    edit(&mut index, &dir);
    fs::write(dir.path().join(name), index.to_string()).unwrap();
    message(&dir)
}

#[test]
fn indexes_that_lie() {
    let shard = |n: usize| format!("model-{n:05}-of-00002.safetensors");
    let norm = "model.norm.weight";
    let mut all = Sections::default();
    all.add("not an index", &index(|index, _| *index = json!([1])));
    all.add("without a map", &index(|index, _| *index = json!({"metadata": {}})));
    all.add("a file outside", &index(|index, _| index["weight_map"][norm] = json!("../../etc/passwd")));
    all.add("a shard that is gone", &index(|_, dir| fs::remove_file(dir.path().join(shard(2))).unwrap()));
    all.add("another shard", &index(|index, _| index["weight_map"][norm] = json!(shard(1))));
    all.add("a tensor too many", &index(|index, _| index["weight_map"]["model.norm.bias"] = json!(shard(2))));
    all.add(
        "a tensor too few",
        &index(|index, _| drop(index["weight_map"].as_object_mut().unwrap().remove(norm))),
    );
    all.add(
        "a shard cut short",
        &index(|_, dir| {
            let path = dir.path().join(shard(1));
            let bytes = fs::read(&path).unwrap();
            fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
        }),
    );
    insta::assert_snapshot!(all.text());
}
