//! `eva init`.

use super::support::{Sections, config, fixture, output, path, refusal, with_config, without};
use serde_json::{Value, json};
use std::fs;
use tempfile::TempDir;

#[test]
fn a_fresh_model_of_odd_sizes_generates() {
    let changes = [
        ("hidden_size", json!(95)),
        ("num_attention_heads", json!(5)),
        ("num_key_value_heads", json!(5)),
        ("kv_lora_rank", json!(72)),
        ("n_routed_experts", json!(24)),
        ("n_group", json!(3)),
        ("rope_scaling", Value::Null),
    ];
    let from = with_config(&config("v3-tiny", &changes));
    let base = TempDir::new().unwrap();
    let init = |name: &str, more: &[&str]| {
        let out = base.path().join(name).display().to_string();
        let args = ["init", "--config", path(&from), "--seed", "11", &out];
        let said = output(&[&args, more].concat());
        (out, without(&base, &said))
    };
    let (one, said) = init("one", &[]);
    assert!(said.starts_with("DIR/one: ") && said.ends_with(" in 1 file\n"), "{said}");
    let (split, said) = init("split", &["--max-shard-size", "300kB", "--json"]);
    let said: Value = serde_json::from_str(&said).unwrap();
    let files = said["files"].as_array().unwrap();
    assert!(files.len() > 2, "{said}");
    for file in files {
        let file = file.as_str().unwrap().replace("DIR", path(&base));
        assert!(fs::metadata(file).unwrap().len() < 340_000);
    }
    let generate = |dir: &str| output(&["generate", dir, "--tokens", "1,287,3", "--max-new-tokens", "7"]);
    let tokens = generate(&one);
    assert_eq!(tokens.trim().split(',').count(), 7);
    assert_eq!(generate(&split), tokens);
    // The seed alone decides.
    let bytes = |dir: &str| fs::read(format!("{dir}/model.safetensors")).unwrap();
    assert_eq!(bytes(&one), bytes(&init("again", &[]).0));
    let other = base.path().join("other").display().to_string();
    output(&["init", "--config", path(&from), "--seed", "12", &other]);
    assert_ne!(bytes(&one), bytes(&other));
    assert!(bytes(&init("wide", &["--dtype", "f32"]).0).len() > 3 * bytes(&one).len() / 2);
}

#[test]
fn what_cannot_be_made() {
    let base = TempDir::new().unwrap();
    let out = base.path().join("out").display().to_string();
    let v2 = fixture("v2-lite-tiny");
    let v2 = v2.to_str().unwrap();
    let mut all = Sections::default();
    output(&["init", "--config", v2, &out]);
    all.add("already there", &without(&base, &refusal(1, &["init", "--config", v2, &out])));
    let bad = with_config(&config("v3-tiny", &[("n_group", json!(5))]));
    let other = base.path().join("other").display().to_string();
    all.add("a wrong configuration", &without(&bad, &refusal(1, &["init", "--config", path(&bad), &other])));
    for size in ["5XB", "0", "99999999999GB", "GB"] {
        let message = refusal(2, &["init", "--config", v2, &other, "--max-shard-size", size]);
        all.add(&format!("a size of {size}"), &message);
    }
    assert!(!fs::exists(&other).unwrap());
    insta::assert_snapshot!(all.text());
}
