//! Training: runs that are ended in every way, and what they leave.

use crate::support::{command, eva, finish, path, refusal, without};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A folder with a small model's configuration, a text, and `run.toml`.
fn folder(steps: u64, more: &str) -> TempDir {
    let dir = TempDir::new().unwrap();
    let config = json!({
        "model_type": "deepseek_v3", "vocab_size": 128, "hidden_size": 40, "num_hidden_layers": 2,
        "first_k_dense_replace": 1, "num_attention_heads": 2, "q_lora_rank": null, "kv_lora_rank": 24,
        "qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "v_head_dim": 16, "intermediate_size": 72,
        "moe_intermediate_size": 32, "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2,
        "n_group": 1, "topk_group": 1, "norm_topk_prob": true, "routed_scaling_factor": 1.0,
        "scoring_func": "sigmoid", "topk_method": "noaux_tc", "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
        "max_position_embeddings": 128, "tie_word_embeddings": false, "num_nextn_predict_layers": 0,
        "torch_dtype": "float32"
    });
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let text = include_str!("../../../docs/training.md").replace(|c: char| !c.is_ascii(), "");
    fs::write(dir.path().join("corpus.txt"), text).unwrap();
    let run = format!(
        "out = \"out\"\nsteps = {steps}\nthreads = 2\n[model]\nconfig = \"config.json\"\ninit_std = 0.05\n[data]\n\
         paths = [\"corpus.txt\"]\nsequence = 23\nbatch = 3\n[optimizer]\nlr = 5e-3\n[balance]\ngamma = 0.001\n\
         [eval]\nevery = 0\nbatches = 3\n{more}"
    );
    fs::write(dir.path().join("run.toml"), run).unwrap();
    dir
}

fn train(dir: &TempDir, more: &[&str]) -> Command {
    let mut command = command();
    command.arg("train").arg("--config").arg(dir.path().join("run.toml")).args(more);
    command
}

/// The checkpoints that are complete, in order.
fn checkpoints(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir.join("out/checkpoints")) else { return Vec::new() };
    let mut all: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    all.retain(|path| path.file_name().unwrap().to_string_lossy().starts_with("step-"));
    all.sort();
    all
}

/// All bytes of the last checkpoint, file by file.
fn last(dir: &TempDir) -> Vec<(String, Vec<u8>)> {
    let last = checkpoints(dir.path()).pop().expect("there is a checkpoint");
    let mut files: Vec<_> = fs::read_dir(last)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().to_string_lossy().into_owned(), fs::read(entry.path()).unwrap()))
        .collect();
    files.sort();
    files
}

fn start(mut command: Command) -> Child {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Waits until a run has so many checkpoints.
fn until(child: &mut Child, dir: &TempDir, count: usize) {
    let started = Instant::now();
    while checkpoints(dir.path()).len() < count {
        assert!(child.try_wait().unwrap().is_none(), "it ended before");
        assert!(started.elapsed() < Duration::from_secs(300), "it takes too long");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill").arg(format!("-{name}")).arg(child.id().to_string()).status().unwrap();
    assert!(sent.success());
}

#[test]
fn a_run_makes_a_model() {
    let dir = folder(60, "[checkpoint]\nevery = 40\n");
    let ran = finish(train(&dir, &["--json"]), "");
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    let ended: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!((&ended["step"], &ended["interrupted"]), (&json!(60), &json!(false)));
    assert!(ended["eval_loss"].as_f64().unwrap() < 4.0, "ln 128 is 4.85: {ended}");
    assert_eq!(checkpoints(dir.path()).len(), 2);

    // The checkpoint is a model with a tokenizer.
    let model = checkpoints(dir.path()).pop().unwrap();
    let generate = ["generate", path_of(&model), "--prompt", "The ", "--max-new-tokens", "5", "--ignore-eos"];
    let ran = eva(&generate);
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert!(!ran.out.trim().is_empty());

    // A run from a checkpoint begins where that ends.
    let set = format!("model.checkpoint={}", model.display());
    let other = folder(1, "");
    let text = fs::read_to_string(other.path().join("run.toml")).unwrap();
    fs::write(other.path().join("run.toml"), text.replace("config = \"config.json\"", "")).unwrap();
    let still = ["--set", "optimizer.lr=0.0", "--set", "balance.gamma=0.0"];
    let ran = finish(train(&other, &[&["--set", set.as_str(), "--json"], &still[..]].concat()), "");
    let again: Value = serde_json::from_str(&ran.out).unwrap_or_else(|_| panic!("{}", ran.err));
    assert_eq!(again["eval_loss"], ended["eval_loss"]);

    let out = dir.path().join("out");
    let ran = eva(&["plot", path_of(&out), path_of(&other.path().join("out")), "--smooth", "5"]);
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    let drawn: Vec<&str> = ran.out.lines().filter_map(|line| line.rsplit('/').next()).collect();
    let all = ["loss", "accuracy", "rate", "gradients", "speed", "balance", "balance-variance"];
    assert_eq!(drawn, all.map(|name| format!("{name}.svg")));
    assert!(fs::read_to_string(out.join("loss.svg")).unwrap().contains("held out"));
    let ran = eva(&["plot", path_of(&out), "--format", "png"]);
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert!(fs::read(out.join("loss.png")).unwrap().starts_with(b"\x89PNG\r\n\x1a\n"));

    let message = refusal(1, &["train", "--config", path_of(&dir.path().join("run.toml"))]);
    assert!(without(&dir, &message).contains("a run is there already; go on with --resume"), "{message}");
}

fn path_of(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_run_that_is_killed_goes_on() {
    let more = "[checkpoint]\nevery = 5\n";
    let whole = folder(40, more);
    let ran = finish(train(&whole, &["--set", "threads=1"]), "");
    assert_eq!(ran.code, Some(0), "{}", ran.err);

    let parts = folder(40, more);
    for (i, wait) in [0, 17, 3].into_iter().enumerate() {
        let resume: &[&str] = if i == 0 { &[] } else { &["--resume"] };
        let mut child = start(train(&parts, resume));
        // In the middle of a step, or of a checkpoint.
        let have = checkpoints(parts.path()).last().cloned();
        let started = Instant::now();
        while checkpoints(parts.path()).last() == have.as_ref() && child.try_wait().unwrap().is_none() {
            assert!(started.elapsed() < Duration::from_secs(300), "it takes too long");
            std::thread::sleep(Duration::from_millis(2));
        }
        std::thread::sleep(Duration::from_millis(wait));
        let _ = child.kill();
        child.wait().unwrap();
    }
    let ran = finish(train(&parts, &["--resume"]), "");
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert!(last(&parts) == last(&whole), "the same bytes, file by file");
    let losses = |dir: &TempDir| -> Vec<Value> {
        let text = fs::read_to_string(dir.path().join("out/metrics.jsonl")).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.filter(|line| line.get("loss").is_some()).map(|line| line["loss"].clone()).collect()
    };
    assert_eq!(losses(&parts), losses(&whole));
}

#[test]
fn a_signal_saves_and_ends() {
    let dir = folder(100_000, "[checkpoint]\nevery = 3\n");
    let mut child = start(train(&dir, &[]));
    until(&mut child, &dir, 1);
    signal(&child, "INT");
    let output = child.wait_with_output().unwrap();
    let out = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(out.starts_with("interrupted after step ") && out.ends_with("go on with --resume\n"), "{out}");
    let step: u64 = out["interrupted after step ".len()..].split(':').next().unwrap().parse().unwrap();
    assert!(path_of(&checkpoints(dir.path()).pop().unwrap()).ends_with(&format!("step-{step:08}")));
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_leaves_the_last_checkpoint() {
    let dir = folder(9, "[checkpoint]\nevery = 4\n");
    let ran = finish(train(&dir, &["--set", "steps=4"]), "");
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    let before = last(&dir);
    // No file may be longer than this, which writing to it finds out.
    let limited = |more: &str| {
        let mut shell = Command::new("sh");
        let script = format!("trap '' XFSZ; ulimit -f 64; exec \"$0\" train --config \"$1\" --resume {more}");
        shell.arg("-c").arg(script).arg(env!("CARGO_BIN_EXE_eva")).arg(dir.path().join("run.toml"));
        shell.env("NO_COLOR", "1");
        finish(shell, "")
    };
    let ran = limited("");
    assert_eq!(ran.code, Some(1), "{}", ran.out);
    let message = without(&dir, &ran.err);
    assert!(
        message.contains("a checkpoint could not be written: ") && message.contains("File too large"),
        "{message}"
    );
    assert!(message.contains("the last good checkpoint is DIR/out/checkpoints/step-00000004"), "{message}");
    assert!(last(&dir) == before);
    let ran = limited("--set checkpoint.on_error=continue");
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert!(ran.err.contains("warning: a checkpoint could not be written"), "{}", ran.err);
    assert!(last(&dir) == before);
    // And with room again it goes on from there.
    let ran = finish(train(&dir, &["--resume"]), "");
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert!(path_of(&checkpoints(dir.path()).pop().unwrap()).ends_with("step-00000009"));
}

#[test]
fn what_8_bits_change_is_written_down() {
    let dir = folder(3, "[metrics]\nfp8 = true\n[precision]\nfp8 = \"deepseek-v3\"\n");
    let ran = finish(train(&dir, &["--json"]), "");
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    let text = fs::read_to_string(dir.path().join("out/metrics.jsonl")).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 4);
    for line in &lines[..3] {
        let [mean, max, zero] =
            ["fp8.error.mean", "fp8.error.max", "fp8.underflow.max"].map(|key| line[key].as_f64().unwrap());
        // Three bits of mantissa: a relative error of some hundredths.
        assert!(0.01 < mean && mean <= max && max < 0.2, "{line}");
        assert!((0.0..0.5).contains(&zero), "{line}");
    }
    let out = dir.path().join("out");
    let ran = eva(&["plot", path_of(&out)]);
    assert!(ran.out.contains("out/fp8.svg"), "{}{}", ran.out, ran.err);
}

/// Scales that come of the steps before are the same where a run goes on.
#[test]
fn histories_of_scales_go_on() {
    let more = "[precision]\nfp8 = \"tensorwise-delayed\"\ngradient_scale = \"dynamic\"\nscale_steps = 3\n";
    let (whole, parts) = (folder(8, more), folder(8, more));
    for (dir, args) in [
        (&whole, &[][..]),
        (&parts, &["--set", "steps=5"][..]),
        (&parts, &["--resume", "--set", "threads=1"][..]),
    ] {
        let ran = finish(train(dir, args), "");
        assert_eq!(ran.code, Some(0), "{}", ran.err);
    }
    assert!(last(&parts) == last(&whole), "the same bytes, file by file");
    let (_, flats) = last(&whole).into_iter().find(|(name, _)| name == "optimizer.safetensors").unwrap();
    let flats = safetensors::SafeTensors::deserialize(&flats).unwrap();
    let histories: Vec<_> =
        flats.tensors().into_iter().filter(|(name, _)| name.starts_with("history.")).collect();
    let filled = histories.iter().filter(|(_, values)| values.data().iter().any(|byte| *byte != 0)).count();
    assert!(filled > 10, "{filled} of {}", histories.len());
}

#[test]
fn what_cannot_be_is_said_before_anything_is_done() {
    let dir = folder(5, "");
    let refused = |more: &[&str]| {
        let mut args = vec!["train", "--config"];
        let run = format!("{}/run.toml", path(&dir));
        args.push(&run);
        args.extend(more);
        without(&dir, &refusal(1, &args))
    };
    assert!(refused(&["--set", "data.batchs=3"]).contains("--set data.batchs=3: unknown field `batchs`"));
    assert!(refused(&["--resume"]).contains("there is no checkpoint to go on from"));
    assert!(refused(&["--set", "loss.mtp=0.3"]).contains("the model has no MTP module"));
    assert!(refused(&["--set", "data.paths=[\"none\"]"]).contains("DIR/none: cannot open it"));
    let message = refused(&["--set", "model.config=\"nowhere\""]);
    assert!(message.contains("DIR/nowhere: no such file or directory"), "{message}");
}
