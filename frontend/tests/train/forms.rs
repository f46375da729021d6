//! Forms of latent attention in training: the same losses, whichever it is.

use eva::train::RunConfig;
use eva::train::run::{Begin, Observer};
use eva::train::start;
use eva::train::trainer::StepReport;
use std::fs;
use std::sync::atomic::AtomicBool;
use tempfile::TempDir;

/// Latents of 16 beside keys of 40 and values of 48.
const SMALL: &str = r#"{
  "model_type": "deepseek_v3", "vocab_size": 264, "hidden_size": 56, "num_hidden_layers": 2,
  "first_k_dense_replace": 1, "num_attention_heads": 3, "q_lora_rank": 24, "kv_lora_rank": 16,
  "qk_nope_head_dim": 40, "qk_rope_head_dim": 8, "v_head_dim": 48, "intermediate_size": 72,
  "moe_intermediate_size": 32, "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2,
  "n_group": 1, "topk_group": 1, "norm_topk_prob": true, "routed_scaling_factor": 1.0,
  "scoring_func": "sigmoid", "topk_method": "noaux_tc", "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
  "max_position_embeddings": 512, "tie_word_embeddings": false, "num_nextn_predict_layers": 0,
  "torch_dtype": "float32"
}"#;

#[derive(Default)]
struct Losses(Vec<[f64; 2]>);

impl Observer for Losses {
    fn begin(&mut self, _: &str) {}
    fn step(&mut self, report: &StepReport, _: &[(String, f64)], _: u64) {
        self.0.push([report.loss, report.grad_norm]);
    }
    fn say(&mut self, _: &str) {}
}

/// Losses and norms of gradients of a few steps.
fn losses(set: &[&str]) -> Vec<[f64; 2]> {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("config.json"), SMALL).unwrap();
    let path = folder.path().join("run.toml");
    let text = "out = \"out\"\nsteps = 5\nthreads = 2\n[model]\nconfig = \"config.json\"\ninit_std = 0.05\n\
                [data]\nkind = \"copy\"\nsequence = 59\nbatch = 3\n[optimizer]\nlr = 3e-3\n[eval]\nevery = 0\nbatches = 1\n\
                [checkpoint]\nevery = 0\n";
    fs::write(&path, text).unwrap();
    let set: Vec<String> = set.iter().map(|set| set.to_string()).collect();
    let run = RunConfig::load(&path, &set).unwrap_or_else(|e| panic!("{e}"));
    let mut seen = Losses::default();
    let ended = start::run(&run, Begin { resume: false }, &AtomicBool::new(false), &mut seen);
    ended.unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(seen.0.len(), 5);
    seen.0
}

fn differ(have: &[[f64; 2]], want: &[[f64; 2]]) -> f64 {
    let pairs = have.iter().flatten().zip(want.iter().flatten());
    // NaN stays.
    let worst = |m: f64, d: f64| if m.is_nan() || d.is_nan() { f64::NAN } else { m.max(d) };
    pairs.map(|(x, y)| (x - y).abs() / y.abs()).fold(0.0, worst)
}

#[test]
fn losses_are_the_same_in_both_forms() {
    let expanded = losses(&["form=expanded"]);
    let absorbed = losses(&["form=absorbed"]);
    let d = differ(&absorbed, &expanded);
    assert!(d > 0.0 && d < 1e-5, "{d:e}");
    // By cost it is absorbed; and threads change nothing.
    assert_eq!(losses(&[]), absorbed);
    assert_eq!(losses(&["threads=1"]), absorbed);
    // Within a budget of memory, the same bits.
    assert_eq!(losses(&["form=absorbed", "memory.activations=1600000"]), absorbed);
}

#[test]
fn losses_are_near_in_fewer_bits() {
    for precision in
        [&["precision.compute=bf16"][..], &["precision.compute=bf16", "precision.fp8=deepseek-v3"]]
    {
        let expanded = losses(&[precision, &["form=expanded"]].concat());
        let absorbed = losses(&[precision, &["form=absorbed"]].concat());
        let d = differ(&absorbed, &expanded);
        assert!(d > 0.0 && d < 3e-2, "{precision:?}: {d:e}");
    }
}
