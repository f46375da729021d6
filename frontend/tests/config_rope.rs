//! Rotary frequencies and factors against values recorded from transformers.

use std::fs;
use std::path::{Path, PathBuf};

use eva::model::config::Config;
use eva_runtime::checkpoint::Checkpoint;
use serde_json::{Value, json};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures")
}

fn config(width: usize, theta: f64, scaling: Value) -> Config {
    let text = fs::read_to_string(fixtures().join("v3-tiny/config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&text).unwrap();
    config["qk_rope_head_dim"] = json!(width);
    config["qk_nope_head_dim"] = json!(192 - width);
    config["rope_theta"] = json!(theta);
    config["rope_scaling"] = scaling;
    Config::from_json(&config.to_string()).unwrap()
}

/// Steps between two positive floats.
fn ulps(a: f32, b: f32) -> u32 {
    a.to_bits().abs_diff(b.to_bits())
}

#[test]
fn frequencies_and_factors() {
    let recorded = Checkpoint::open(&fixtures().join("ops/rope.safetensors")).unwrap();
    let yarn = |mscale: f64| {
        json!({"type": "yarn", "factor": 40, "beta_fast": 32, "beta_slow": 1, "mscale": mscale,
            "mscale_all_dim": mscale, "original_max_position_embeddings": 4096})
    };
    let ratio = json!({"type": "yarn", "factor": 8, "beta_fast": 16, "beta_slow": 2, "mscale": 1.0,
        "mscale_all_dim": 0.5, "original_max_position_embeddings": 512});
    let cases = [
        ("v3", config(64, 1e4, yarn(1.0))),
        ("v2lite", config(64, 1e4, yarn(0.707))),
        ("tiny", config(16, 1e4, yarn(1.0))),
        ("plain", config(16, 1e4, Value::Null)),
        ("ratio", config(20, 5e4, ratio)),
    ];
    for (case, config) in cases {
        let get = |name: &str| recorded.get(&format!("{case}.{name}")).unwrap();
        let expected = get("inv_freq").to_f32().unwrap();
        let found = config.inv_freq();
        assert_eq!(found.len(), expected.len(), "{case}");
        for (i, (&f, &e)) in found.iter().zip(&expected).enumerate() {
            assert!(ulps(f, e) <= 1, "{case}: frequency {i} is {f:e}, recorded {e:e}");
        }
        let scale = get("softmax_scale_qk192");
        let scale = f64::from_le_bytes(scale.bytes.try_into().unwrap());
        let off = (config.softmax_scale() - scale).abs() / scale;
        assert!(off < 1e-15, "{case}: {} against {scale}", config.softmax_scale());
        // At position 0 the cosine is the factor itself.
        let at = get("positions").to_i64().unwrap().iter().position(|&p| p == 0).unwrap();
        let cos = get("cos").to_f32().unwrap()[at * expected.len()];
        assert_eq!(config.rope_attention_factor() as f32, cos, "{case}");
    }
}

#[test]
fn factors_of_rarer_keys() {
    let scaling = |changes: Value| {
        let mut scaling = json!({"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096});
        scaling.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        config(64, 1e4, scaling)
    };
    let m = |mscale: f64| 0.1 * mscale * 40f64.ln() + 1.0;
    // Without mscale_all_dim the scores have no factor, and mscale is not looked at.
    let plain = scaling(json!({"mscale": 0.707}));
    assert_eq!(plain.softmax_scale(), 192f64.powf(-0.5));
    assert_eq!(plain.rope_attention_factor(), m(1.0));
    let given = scaling(json!({"mscale": 1.0, "mscale_all_dim": 0.707, "attention_factor": 0.75}));
    assert_eq!(given.rope_attention_factor(), 0.75);
    assert_eq!(given.softmax_scale(), 192f64.powf(-0.5) * m(0.707) * m(0.707));
    let one = scaling(json!({"factor": 1.0, "mscale": 1.0, "mscale_all_dim": 0.5}));
    assert_eq!((one.softmax_scale(), one.rope_attention_factor()), (192f64.powf(-0.5), 1.0));
}
