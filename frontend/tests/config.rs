//! Reading configurations: both spellings, every default, and everything that can be wrong.

use std::fs;
use std::path::{Path, PathBuf};

use eva::model::config::{
    ActivationScheme, Attention, Config, ConfigError, ModelType, Moe, Quantization, ScaleFormat, Score,
    TopkMethod, Yarn,
};
use eva_runtime::checkpoint::CheckpointDType;
use proptest::prelude::*;
use serde_json::{Value, json};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures")
}

fn v3() -> Value {
    serde_json::from_str(&fs::read_to_string(fixtures().join("v3-tiny/config.json")).unwrap()).unwrap()
}

fn v2() -> Value {
    serde_json::from_str(&fs::read_to_string(fixtures().join("v2-lite-tiny/config.json")).unwrap()).unwrap()
}

/// A configuration with keys replaced; `remove` takes a key out.
fn with(mut config: Value, changes: Value) -> Value {
    for (key, value) in changes.as_object().unwrap() {
        if value == "remove" {
            config.as_object_mut().unwrap().remove(key);
        } else {
            config[key] = value.clone();
        }
    }
    config
}

fn read(config: &Value) -> Config {
    Config::from_json(&config.to_string()).unwrap()
}

/// The message about a configuration, without the line that counts.
fn refusal(config: Value) -> Vec<String> {
    let message = Config::from_json(&config.to_string()).expect_err("this must be refused").to_string();
    let mut lines = message.lines();
    let first = lines.next().unwrap();
    let lines: Vec<String> = lines.map(|l| l.strip_prefix("  ").unwrap().to_string()).collect();
    let s = if lines.len() == 1 { "" } else { "s" };
    assert_eq!(first, format!("config.json: {} problem{s}", lines.len()));
    lines
}

#[test]
fn reads_v3() {
    let config = Config::load(&fixtures().join("v3-tiny")).unwrap();
    assert_eq!(config, read(&v3()));
    let yarn = Yarn {
        factor: 40.0,
        beta_fast: 32.0,
        beta_slow: 1.0,
        mscale: 1.0,
        mscale_all_dim: 1.0,
        original_max_position: 4096,
        attention_factor: None,
    };
    let moe = Moe {
        routed: 16,
        shared: 1,
        per_token: 4,
        intermediate: 24,
        groups: 4,
        groups_kept: 2,
        norm_topk: true,
        scale: 2.5,
        score: Score::Sigmoid,
        method: TopkMethod::NoauxTc,
    };
    assert_eq!(config.model_type, ModelType::DeepseekV3);
    assert_eq!((config.hidden, config.layers, config.first_dense, config.moe_layer_freq), (144, 3, 1, 1));
    assert_eq!((config.heads, config.q_lora, config.kv_lora), (4, Some(48), 32));
    assert_eq!((config.qk_nope, config.qk_rope, config.v_head), (32, 16, 40));
    assert_eq!((config.qk_head(), config.cache_width(), config.intermediate), (48, 48, 192));
    assert_eq!(
        (config.rope.theta, config.rope.interleave, config.rope.scaling.clone()),
        (1e4, true, Some(yarn))
    );
    assert_eq!((config.max_positions, config.vocab, config.rms_eps), (163_840, 288, 1e-6));
    assert_eq!((config.tie_embeddings, config.attention_bias, config.mtp_layers), (false, false, 1));
    assert_eq!((config.dtype, config.bos, config.eos.clone()), (CheckpointDType::Bf16, Some(0), vec![1]));
    assert_eq!((config.initializer_range, &config.quantization), (0.02, &None));
    assert_eq!((config.moe(0), config.moe(1), config.moe(3)), (None, Some(&moe), Some(&moe)));
}

#[test]
fn reads_v2_and_quantised() {
    let config = read(&v2());
    let moe = config.experts.clone().unwrap();
    assert_eq!((config.model_type, config.q_lora, config.mtp_layers), (ModelType::DeepseekV2, None, 0));
    assert_eq!(
        (moe.score, moe.method, moe.norm_topk, moe.scale),
        (Score::Softmax, TopkMethod::Greedy, false, 1.0)
    );
    assert_eq!((moe.routed, moe.shared, moe.per_token, moe.groups, moe.groups_kept), (12, 2, 3, 1, 1));
    let fp8 = Config::load(&fixtures().join("v3-tiny-fp8/config.json")).unwrap();
    let quantization = Quantization {
        fmt: CheckpointDType::F8E4M3,
        block: [128, 128],
        scale_fmt: ScaleFormat::Float,
        activation: ActivationScheme::Dynamic,
    };
    assert_eq!(fp8.quantization, Some(quantization));
    let ue8m0 = json!({"fmt": "e4m3", "scale_fmt": "ue8m0", "weight_block_size": [64, 96]});
    let quantization = read(&with(v3(), json!({"quantization_config": ue8m0}))).quantization.unwrap();
    assert_eq!((quantization.block, quantization.scale_fmt), ([64, 96], ScaleFormat::PowerOfTwo));
}

#[test]
fn both_spellings_mean_the_same() {
    let yarn = v3()["rope_scaling"].clone();
    let mut parameters = with(yarn, json!({"type": "remove", "rope_type": "yarn"}));
    parameters["rope_theta"] = json!(10000.0);
    let changes = json!({
        "rope_scaling": "remove", "rope_theta": "remove", "rope_parameters": parameters,
        "torch_dtype": "remove", "dtype": "bfloat16"
    });
    let new = with(v3(), changes.clone());
    assert_eq!(read(&new), read(&v3()));
    // Both at once are fine while they agree.
    let both = with(new, json!({"rope_scaling": v3()["rope_scaling"], "rope_theta": 10000}));
    assert_eq!(read(&both), read(&v3()));
    let odd = with(both, json!({"rope_scaling": {"type": "default"}}));
    assert_eq!(refusal(odd), ["rope_parameters: says something else than rope_scaling; remove one of them"]);
}

#[test]
fn ways_to_have_no_scaling() {
    let none = |changes| {
        let rope = read(&with(v3(), changes)).rope;
        assert_eq!(rope.scaling, None);
        rope.theta
    };
    assert_eq!(none(json!({"rope_scaling": null, "rope_theta": 5e4})), 5e4);
    assert_eq!(none(json!({"rope_scaling": "remove", "rope_theta": "remove"})), 1e4);
    assert_eq!(none(json!({"rope_scaling": {"type": "default"}, "rope_theta": 7})), 7.0);
    let parameters = json!({"rope_type": "default", "rope_theta": 3e5});
    assert_eq!(none(json!({"rope_scaling": "remove", "rope_parameters": parameters})), 3e5);
    assert_eq!(none(json!({"rope_scaling": "remove", "rope_parameters": {"rope_theta": 2e5}})), 2e5);
}

#[test]
fn absent_keys_have_the_defaults_of_transformers() {
    let absent = |config, keys: &[&str]| {
        let changes: serde_json::Map<_, _> = keys.iter().map(|k| (k.to_string(), json!("remove"))).collect();
        read(&with(config, changes.into()))
    };
    let router =
        ["scoring_func", "topk_method", "n_group", "topk_group", "norm_topk_prob", "routed_scaling_factor"];
    assert_eq!(absent(v2(), &router), read(&v2()));
    let moe = absent(with(v3(), json!({"n_routed_experts": 32})), &router).experts.unwrap();
    assert_eq!(
        (moe.score, moe.method, moe.norm_topk, moe.scale),
        (Score::Sigmoid, TopkMethod::NoauxTc, true, 2.5)
    );
    assert_eq!((moe.groups, moe.groups_kept), (8, 4));
    let plain = [
        "attention_bias",
        "bos_token_id",
        "eos_token_id",
        "hidden_act",
        "initializer_range",
        "moe_layer_freq",
        "n_shared_experts",
        "num_key_value_heads",
        "num_nextn_predict_layers",
        "rms_norm_eps",
        "tie_word_embeddings",
        "torch_dtype",
    ];
    let config = absent(v3(), &plain);
    assert_eq!(
        (config.bos, config.eos.len(), config.mtp_layers, config.dtype),
        (None, 0, 0, CheckpointDType::F32)
    );
    assert_eq!((config.experts.unwrap().shared, config.rms_eps, config.moe_layer_freq), (0, 1e-6, 1));
    let betas = json!({"type": "yarn", "factor": 8, "original_max_position_embeddings": 512});
    let yarn = read(&with(v3(), json!({"rope_scaling": betas}))).rope.scaling.unwrap();
    assert_eq!((yarn.beta_fast, yarn.beta_slow, yarn.mscale, yarn.mscale_all_dim), (32.0, 1.0, 0.0, 0.0));
}

#[test]
fn variants() {
    let config =
        read(&with(v3(), json!({"eos_token_id": [7, 9], "rope_interleave": false, "hidden_size": 144.0})));
    assert_eq!((config.eos, config.rope.interleave, config.hidden), (vec![7, 9], false, 144));
    let dense = read(&with(v3(), json!({"n_routed_experts": null})));
    assert_eq!((dense.experts.clone(), dense.moe(2)), (None, None));
    let sparse = read(&with(v3(), json!({"moe_layer_freq": 2, "num_hidden_layers": 6})));
    assert_eq!((0..6).filter(|&l| sparse.moe(l).is_some()).collect::<Vec<_>>(), [2, 4]);
    let groups = json!({"topk_method": "group_limited_greedy", "n_group": 3, "topk_group": 2, "num_experts_per_tok": 8});
    let moe = read(&with(v2(), groups)).experts.unwrap();
    assert_eq!((moe.method, moe.groups, moe.groups_kept), (TopkMethod::GroupLimitedGreedy, 3, 2));
}

#[test]
fn wrong_sizes() {
    let changes = json!({
        "hidden_size": 0, "num_hidden_layers": -3, "num_attention_heads": 4.5, "kv_lora_rank": "32",
        "v_head_dim": null, "vocab_size": 4_294_967_296u64, "intermediate_size": [1, 2], "rms_norm_eps": 0,
        "qk_rope_head_dim": 17, "first_k_dense_replace": -1, "moe_layer_freq": 0, "q_lora_rank": 0,
        "max_position_embeddings": "remove", "tie_word_embeddings": "no", "num_nextn_predict_layers": 1e9,
        "eos_token_id": [1, -2], "bos_token_id": "<s>", "initializer_range": -0.02
    });
    assert_eq!(
        refusal(with(v3(), changes)),
        [
            "hidden_size: is 0; expected a whole number from 1 to 2147483647",
            "num_hidden_layers: is -3; expected a whole number from 1 to 10000",
            "num_attention_heads: is 4.5; expected a whole number from 1 to 2147483647",
            "q_lora_rank: is 0; expected a whole number from 1 to 2147483647",
            "kv_lora_rank: is \"32\"; expected a whole number from 1 to 2147483647",
            "qk_rope_head_dim: is 17; expected an even number: rotary columns come in pairs",
            "v_head_dim: is null; expected a whole number from 1 to 2147483647",
            "intermediate_size: is [1,2]; expected a whole number from 1 to 2147483647",
            "rms_norm_eps: is 0; expected a number above 0 and below 1",
            "max_position_embeddings: is missing; expected a whole number from 1 to 2147483647",
            "vocab_size: is 4294967296; expected a whole number from 1 to 2147483647",
            "tie_word_embeddings: is \"no\"; expected true or false",
            "num_nextn_predict_layers: is 1000000000.0; expected a whole number from 0 to 10000",
            "bos_token_id: is \"<s>\"; expected a token id",
            "eos_token_id: is -2; expected a token id",
            "initializer_range: is -0.02; expected a number, 0 or above and at most 10",
            "first_k_dense_replace: is -1; expected a whole number from 0 to 2147483647",
            "moe_layer_freq: is 0; expected a whole number from 1 to 2147483647",
        ]
    );
    assert_eq!(
        refusal(with(v3(), json!({"num_key_value_heads": 2, "q_lora_rank": "remove"}))),
        [
            "num_key_value_heads: is 2, but num_attention_heads is 4; there must be as many of both",
            "q_lora_rank: is missing; expected a rank, or null where queries are projected directly",
        ]
    );
}

#[test]
fn absurd_sizes() {
    let big = 2_147_483_647u64;
    assert_eq!(
        refusal(with(v3(), json!({"hidden_size": big, "vocab_size": big}))),
        ["hidden_size: with the other sizes makes a model of 27670127535177403554 weights; that is absurd"]
    );
    let heads = json!({"num_attention_heads": big, "num_key_value_heads": big, "qk_nope_head_dim": big, "kv_lora_rank": big});
    let lines = refusal(with(v3(), heads));
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert_eq!(
        refusal(with(v3(), json!({"num_hidden_layers": 9999, "n_routed_experts": 64}))),
        ["n_routed_experts: is 64, in 10000 layers; expected at most 262144 experts in all layers together"]
    );
    let long = json!({"max_position_embeddings": big, "vocab_size": 1 << 30, "hidden_size": 2});
    assert_eq!(
        refusal(with(v3(), long)),
        ["max_position_embeddings: is 2147483647; with the other sizes that is absurd"]
    );
}

#[test]
fn unknown_names() {
    let changes = json!({
        "model_type": "llama", "hidden_act": "gelu", "scoring_func": "tanh", "topk_method": "topk",
        "torch_dtype": "int8", "rope_scaling": {"type": "linear", "factor": 2.0},
        "quantization_config": {"quant_method": "gptq", "fmt": "e5m2", "weight_block_size": [128],
            "scale_fmt": "x", "activation_scheme": "static"}
    });
    assert_eq!(
        refusal(with(v3(), changes)),
        [
            "model_type: is \"llama\"; expected \"deepseek_v2\" or \"deepseek_v3\"",
            "hidden_act: is \"gelu\"; expected \"silu\"",
            "rope_scaling.type: is \"linear\"; expected \"default\" or \"yarn\"",
            "torch_dtype: is \"int8\"; expected \"float32\" or \"bfloat16\" or \"float16\"",
            "quantization_config.quant_method: is \"gptq\"; expected \"fp8\"",
            "quantization_config.fmt: is \"e5m2\"; expected \"e4m3\"",
            "quantization_config.weight_block_size: is [128]; expected two sizes, such as [128, 128]",
            "quantization_config.scale_fmt: is \"x\"; expected \"float32\" or \"ue8m0\"",
            "quantization_config.activation_scheme: is \"static\"; expected \"dynamic\"",
            "scoring_func: is \"tanh\"; expected \"sigmoid\" or \"softmax\"",
            "topk_method: is \"topk\"; expected \"noaux_tc\" or \"greedy\" or \"group_limited_greedy\"",
        ]
    );
    assert_eq!(
        refusal(json!({"model_type": 3, "rope_parameters": [], "n_routed_experts": 0}))[0],
        "model_type: is 3; expected \"deepseek_v2\" or \"deepseek_v3\""
    );
}

#[test]
fn standard_attention_has_no_latents() {
    let standard = json!({"eva": {"attention": "standard", "kv_budget": 900}, "kv_lora_rank": "remove"});
    let config = read(&with(v3(), standard));
    assert_eq!((config.attention, config.kv_budget), (Attention::Standard, Some(900)));
    assert_eq!((config.q_lora, config.kv_lora, config.qk_nope), (None, 0, 32));
    assert_eq!(config.cache_width(), 4 * (32 + 16 + 40));
    let whole = read(&with(v3(), json!({"eva": {"attention": "standard"}, "qk_nope_head_dim": 0})));
    assert_eq!((whole.qk_head(), whole.cache_width()), (16, 4 * (16 + 40)));

    let latent = read(&with(v3(), json!({"eva": {"attention": "latent"}})));
    assert_eq!((latent.attention, latent.kv_lora, latent.kv_budget), (Attention::Latent, 32, None));
    assert_eq!(
        refusal(with(v3(), json!({"eva": {"attention": "linear"}, "qk_nope_head_dim": 0}))),
        [
            "eva.attention: is \"linear\"; expected \"latent\" or \"standard\"",
            "qk_nope_head_dim: is 0; expected a whole number from 1 to 2147483647",
        ]
    );
}

#[test]
fn wrong_scaling() {
    let scaling = |value| refusal(with(v3(), json!({ "rope_scaling": value })));
    assert_eq!(
        scaling(
            json!({"type": "yarn", "factor": 0.5, "beta_fast": 1, "beta_slow": 2, "mscale": "1", "truncate": false})
        ),
        [
            "rope_scaling.factor: is 0.5; expected a number from 1",
            "rope_scaling.beta_fast: is 1; expected more than beta_slow (2)",
            "rope_scaling.mscale: is \"1\"; expected a number, 0 or above",
            "rope_scaling.original_max_position_embeddings: is missing; expected a whole number from 1 to 2147483647",
            "rope_scaling.truncate: is false; expected true: DeepSeek's models round the bounds of the ramp",
        ]
    );
    assert_eq!(scaling(json!("yarn")), ["rope_scaling: is \"yarn\"; expected an object"]);
    assert_eq!(
        scaling(json!({"factor": 40})),
        ["rope_scaling.rope_type: is missing; expected \"default\" or \"yarn\""]
    );
    assert_eq!(
        refusal(with(v3(), json!({"rope_theta": 1.0}))),
        ["rope_theta: is 1.0; expected a number above 1"]
    );
}

#[test]
fn routers_that_do_not_add_up() {
    let v3 = |changes| refusal(with(v3(), changes));
    assert_eq!(v3(json!({"n_group": 5})), ["n_group: is 5, which does not divide n_routed_experts (16)"]);
    assert_eq!(v3(json!({"topk_group": 6})), ["topk_group: is 6; expected at most n_group (4)"]);
    assert_eq!(
        v3(json!({"num_experts_per_tok": 9})),
        ["num_experts_per_tok: is 9; expected at most 8: the experts of 2 groups of 4"]
    );
    assert_eq!(
        v3(json!({"n_group": 16, "topk_group": 5})),
        ["n_group: is 16, with n_routed_experts 16: a group of \"noaux_tc\" has at least 2 experts"]
    );
    assert_eq!(
        v3(json!({"topk_method": "greedy", "norm_topk_prob": false})),
        [
            "scoring_func: is \"sigmoid\", which topk_method \"greedy\" does not go with; allowed with it: \"softmax\""
        ]
    );
    let v2 = |changes| refusal(with(v2(), changes));
    assert_eq!(
        v2(json!({"num_experts_per_tok": 13})),
        ["num_experts_per_tok: is 13; expected at most n_routed_experts (12)"]
    );
    assert_eq!(
        v2(json!({"norm_topk_prob": true})),
        [
            "norm_topk_prob: is true with scoring_func \"softmax\", where the public implementations disagree; \
             expected false"
        ]
    );
    assert_eq!(
        v2(
            json!({"moe_intermediate_size": "remove", "num_experts_per_tok": "remove", "first_k_dense_replace": "remove"})
        ),
        [
            "num_experts_per_tok: is missing; expected a whole number from 1 to 2147483647",
            "moe_intermediate_size: is missing; expected a whole number from 1 to 2147483647",
            "first_k_dense_replace: is missing; expected a whole number from 0 to 2147483647",
        ]
    );
}

#[test]
fn files_that_are_no_configuration() {
    let message = |text: &str| Config::from_json(text).unwrap_err().to_string();
    assert_eq!(message(""), "config.json: not a JSON object: EOF while parsing a value at line 1 column 0");
    assert_eq!(message("{\"a\": 1,}"), "config.json: not a JSON object: trailing comma at line 1 column 9");
    assert_eq!(message("[1, 2]"), "config.json: not a JSON object: it is [1,2]");
    assert!(
        message(&"[".repeat(100_000)).starts_with("config.json: not a JSON object: recursion limit exceeded")
    );
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.json");
    assert_eq!(
        Config::load(dir.path()).unwrap_err().to_string(),
        format!("{}: no such file or directory; give a model's directory or its config.json", path.display())
    );
    fs::write(&path, with(v3(), json!({"hidden_size": 0})).to_string()).unwrap();
    assert_eq!(
        Config::load(dir.path()).unwrap_err().to_string(),
        format!(
            "{}: 1 problem\n  hidden_size: is 0; expected a whole number from 1 to 2147483647",
            path.display()
        )
    );
    fs::write(&path, [0xff, 0xfe]).unwrap();
    assert_eq!(
        Config::load(&path).unwrap_err().to_string(),
        format!("{}: cannot read it: stream did not contain valid UTF-8", path.display())
    );
    fs::write(&path, vec![b' '; 17 << 20]).unwrap();
    assert_eq!(
        Config::load(&path).unwrap_err().to_string(),
        format!("{}: it has 17825792 bytes; a config.json has at most 16777216", path.display())
    );
}

/// A value that may stand in a configuration, mostly wrong.
fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (0u64..64).prop_map(Value::from),
        Just(json!(u64::MAX)),
        Just(json!((1u64 << 31) - 1)),
        any::<f64>().prop_map(Value::from),
        "[a-z_]{0,8}".prop_map(Value::from),
        Just(json!([])),
        Just(json!([0, 128])),
        Just(json!({})),
        Just(json!({"type": "yarn", "factor": 1e300, "original_max_position_embeddings": 1})),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Any values for any keys: a usable configuration or named problems, and never a panic.
    #[test]
    fn any_values_are_answered(changes in prop::collection::vec((0usize..40, value()), 1..4), old in any::<bool>()) {
        let mut config = if old { v2() } else { v3() };
        let keys: Vec<String> = config.as_object().unwrap().keys().cloned().collect();
        for (key, value) in changes {
            config[&keys[key % keys.len()]] = value;
        }
        match Config::from_json(&config.to_string()) {
            Ok(config) if config.layers < 100 => {
                prop_assert!(config.softmax_scale() > 0.0);
                prop_assert!(config.rope_attention_factor() > 0.0);
                for spec in config.weights() {
                    prop_assert!(CheckpointDType::F64.bytes_of(&spec.shape).is_some(), "{spec:?}");
                }
            }
            Ok(_) => {}
            Err(ConfigError::Invalid { problems, .. }) => prop_assert!(!problems.is_empty()),
            Err(e) => prop_assert!(false, "{e}"),
        }
    }
}
