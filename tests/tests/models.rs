//! Models of odd sizes, of every routing and both families: evaluator, interpreters and machine code agree.

use eva::model::config::Config;
use eva::model::{Options, causal_lm};
use eva::prelude::*;
use eva_tests::check_chain;
use std::collections::HashMap;

/// A configuration with the keys of the public ones, `changes` put in.
fn config(changes: &str) -> Config {
    let mut json: serde_json::Value = serde_json::from_str(BASE).expect("the text below is JSON");
    let changes: serde_json::Value = serde_json::from_str(changes).expect("changes are JSON");
    for (key, value) in changes.as_object().expect("changes are an object") {
        json[key] = value.clone();
    }
    Config::from_json(&json.to_string()).unwrap_or_else(|e| panic!("{e}"))
}

const BASE: &str = r#"{
  "model_type": "deepseek_v3", "hidden_size": 95, "num_hidden_layers": 2, "first_k_dense_replace": 1,
  "num_attention_heads": 5, "num_key_value_heads": 5, "q_lora_rank": 21, "kv_lora_rank": 72, "qk_nope_head_dim": 11,
  "qk_rope_head_dim": 6, "v_head_dim": 13, "intermediate_size": 37, "moe_intermediate_size": 17,
  "n_routed_experts": 24, "n_shared_experts": 1, "num_experts_per_tok": 3, "n_group": 3, "topk_group": 2,
  "norm_topk_prob": true, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid", "topk_method": "noaux_tc",
  "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "rope_scaling": null, "max_position_embeddings": 512, "vocab_size": 41,
  "hidden_act": "silu", "tie_word_embeddings": false, "attention_bias": false, "torch_dtype": "float32",
  "num_nextn_predict_layers": 0
}"#;

fn check(changes: &str, entry: &str, seed: u64) {
    let module = causal_lm(&config(changes), &Options::default()).unwrap_or_else(|e| panic!("{e}"));
    let func = module.func(entry).expect("the model has this entry");
    let ids = (0..12).map(|i| (i * 7 + 3) % 41).collect();
    let ints = HashMap::from([("ids", ids), ("start", vec![2, 0]), ("last", vec![4, 1])]);
    check_chain(&module, func, &[("b", 2), ("s", 5), ("t", 7)], &ints, seed);
}

#[test]
fn v3_with_odd_sizes_groups_and_no_scaling() {
    check("{}", "forward", 1);
}

#[test]
fn the_last_row_alone() {
    check("{}", "main", 2);
}

#[test]
fn no_query_latent_and_softmax_routing() {
    let changes = r#"{"model_type": "deepseek_v2", "q_lora_rank": null, "scoring_func": "softmax", "topk_method": "greedy",
        "n_group": 1, "topk_group": 1, "norm_topk_prob": false, "n_shared_experts": 2, "routed_scaling_factor": 1.0}"#;
    check(changes, "forward", 3);
}

#[test]
fn group_limited_routing_and_yarn() {
    let changes = r#"{"model_type": "deepseek_v2", "scoring_func": "softmax", "topk_method": "group_limited_greedy",
        "norm_topk_prob": false, "routed_scaling_factor": 16.0, "tie_word_embeddings": true,
        "rope_scaling": {"type": "yarn", "factor": 4.0, "beta_fast": 32, "beta_slow": 1, "mscale": 0.707,
            "mscale_all_dim": 0.707, "original_max_position_embeddings": 64}}"#;
    check(changes, "forward", 4);
}

#[test]
fn dense_layers_only_and_one_head() {
    let changes = r#"{"first_k_dense_replace": 2, "num_attention_heads": 1, "num_key_value_heads": 1}"#;
    check(changes, "forward", 5);
}

#[test]
fn standard_attention() {
    check(r#"{"eva": {"attention": "standard"}, "kv_lora_rank": null}"#, "forward", 8);
}

#[test]
fn standard_attention_whose_heads_are_rotated_whole() {
    let changes = r#"{"eva": {"attention": "standard"}, "qk_nope_head_dim": 0, "qk_rope_head_dim": 10, "rope_interleave": false,
        "tie_word_embeddings": true}"#;
    check(changes, "main", 9);
}

#[test]
fn every_expert_for_every_token() {
    let changes = r#"{"n_routed_experts": 4, "num_experts_per_tok": 4, "n_group": 1, "topk_group": 1}"#;
    check(changes, "forward", 6);
}

#[test]
fn activations_in_bf16() {
    let config = config(r#"{"torch_dtype": "bfloat16", "first_k_dense_replace": 2}"#);
    let options = Options { dtype: BF16, ..Options::default() };
    let module = causal_lm(&config, &options).unwrap_or_else(|e| panic!("{e}"));
    let func = module.func("forward").expect("the model has this entry");
    let ints = HashMap::from([("ids", vec![3, 9, 40, 0, 17]), ("start", vec![1, 0])]);
    // Small weights keep the rounding of bf16 from being multiplied layer by layer.
    check_chain(&module, func, &[("b", 2), ("s", 3), ("t", 4)], &ints, 7);
}
