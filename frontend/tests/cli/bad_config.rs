//! Configurations that describe no model; messages are compared whole.

use super::support::{Sections, config, eva, path, refusal, with_config, without};
use serde_json::{Value, json};

#[test]
fn configurations() {
    let mut all = Sections::default();
    let mut add = |title: &str, text: &str| {
        let dir = with_config(text);
        let message = refusal(1, &["generate", path(&dir), "--tokens", "1", "--max-new-tokens", "3"]);
        // The same whatever asks for it.
        assert_eq!(refusal(1, &["print", path(&dir)]), message);
        all.add(title, &without(&dir, &message));
    };
    let v3 = |changes: &[(&str, Value)]| config("v3-tiny", changes);
    let v2 = |changes: &[(&str, Value)]| config("v2-lite-tiny", changes);
    add("not JSON", "{\"hidden_size\": 7,");
    add("not an object", "[1, 2]");
    add("nothing in it", "{}");
    add("another model", &v3(&[("model_type", json!("llama"))]));
    add("unknown router", &v3(&[("topk_method", json!("noaux_ts"))]));
    add("unknown scores", &v3(&[("scoring_func", json!("tanh"))]));
    add("a router and scores that do not go together", &v2(&[("scoring_func", json!("sigmoid"))]));
    add("unknown scaling", &v3(&[("rope_scaling", json!({"type": "dynamic", "factor": 2.0}))]));
    add("scaling without its numbers", &v3(&[("rope_scaling", json!({"type": "yarn"}))]));
    let zeros = ["hidden_size", "num_attention_heads", "kv_lora_rank", "vocab_size", "num_hidden_layers"];
    add("sizes of zero", &v3(&zeros.map(|key| (key, json!(0)))));
    add("a negative size", &v3(&[("intermediate_size", json!(-5))]));
    add("sizes that are not numbers", &v3(&[("hidden_size", json!("144")), ("v_head_dim", json!(40.5))]));
    add("sizes too large", &v3(&[("hidden_size", json!(1u64 << 62)), ("vocab_size", json!(1u64 << 62))]));
    add("groups that do not divide the experts", &v3(&[("n_group", json!(5))]));
    add("more experts for a token than are kept", &v3(&[("num_experts_per_tok", json!(9))]));
    add("more groups kept than there are", &v3(&[("topk_group", json!(7))]));
    add("an odd number of rotary columns", &v3(&[("qk_rope_head_dim", json!(15))]));
    add("no experts", &v3(&[("n_routed_experts", json!(0))]));
    add("missing sizes", &v3(&[("kv_lora_rank", Value::Null), ("v_head_dim", Value::Null)]));
    insta::assert_snapshot!(all.text());
}

#[test]
fn what_is_not_there_or_not_yet() {
    let mut all = Sections::default();
    let empty = tempfile::TempDir::new().unwrap();
    let run = |dir: &str| refusal(1, &["generate", dir, "--tokens", "1", "--max-new-tokens", "3"]);
    all.add("an empty directory", &without(&empty, &run(path(&empty))));
    let nowhere = format!("{}/nowhere", path(&empty));
    all.add("no directory", &without(&empty, &run(&nowhere)));
    let alone = with_config(&config("v3-tiny", &[]));
    all.add("a configuration without a checkpoint", &without(&alone, &run(path(&alone))));
    let biased = with_config(&config("v3-tiny", &[("attention_bias", json!(true))]));
    all.add("biases", &refusal(1, &["print", path(&biased)]));
    insta::assert_snapshot!(all.text());
    assert_eq!(eva(&["print", path(&alone)]).code, Some(0));
}
