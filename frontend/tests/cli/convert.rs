//! `eva convert`, and runs of it that are killed.

use super::support::{command, fixture, output, path, refusal};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};
use tempfile::TempDir;

fn contents(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    entries.map(|e| (e.file_name().into_string().unwrap(), fs::read(e.path()).unwrap())).collect()
}

#[test]
fn a_converted_model_runs() {
    let dir = TempDir::new().unwrap();
    let (out, back) = (format!("{}/fp8", path(&dir)), format!("{}/bf16", path(&dir)));
    let from = fixture("v2-lite-tiny");
    let from = from.to_str().unwrap();
    let text = output(&["convert", from, &out, "--to", "fp8", "--scale-fmt", "ue8m0", "--json"]);
    let report: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&report["kept"], report["files"].as_array().unwrap().len()), (&0.into(), 1));
    assert!(report["weights"].as_u64().unwrap() > 80, "{report}");
    // Codes as numbers are what is converted back.
    assert!(output(&["convert", &out, &back, "--to", "bf16"]).starts_with(&back));
    let tokens = |dir: &str, more: &[&str]| {
        output(
            &[&["generate", dir, "--tokens", "5,17,3", "--max-new-tokens", "9", "--ignore-eos"], more]
                .concat(),
        )
    };
    assert_eq!(tokens(&out, &["--fp8", "dequant"]), tokens(&back, &[]));
    assert_eq!(tokens(&out, &[]).matches(',').count(), 8);
}

#[test]
fn options_that_make_no_sense() {
    let dir = TempDir::new().unwrap();
    let (from, out) = (fixture("v3-tiny-fp8"), format!("{}/out", path(&dir)));
    let args = ["convert", from.to_str().unwrap(), &out, "--to", "bf16"];
    let message = refusal(2, &[&args[..], &["--scale-fmt", "ue8m0"]].concat());
    assert!(message.starts_with("error: --scale-fmt is for --to fp8"), "{message}");
    assert!(!Path::new(&out).exists());
}

/// Killed at several moments, a run goes on where it was, and the result is the same to the byte.
#[test]
fn a_run_that_is_killed_loses_nothing() {
    let dir = TempDir::new().unwrap();
    let whole = dir.path().join("whole");
    let from = fixture("v3-tiny");
    let args = |out: &Path| {
        let out = out.display().to_string();
        ["convert", from.to_str().unwrap(), &out, "--to", "fp8", "--max-shard-size", "60000"]
            .map(String::from)
    };
    let run = |out: &Path| output(&args(out).each_ref().map(String::as_str));
    run(&whole);
    let files = contents(&whole).len();
    assert!(files > 9, "{files}");
    let mut interrupted = 0;
    for (i, wanted) in [1, files / 3, files / 2].into_iter().enumerate() {
        let out = dir.path().join(format!("killed-{i}"));
        let mut child =
            command().args(args(&out)).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let started = Instant::now();
        let finished = || {
            let names = fs::read_dir(&out).into_iter().flatten().map(|e| e.unwrap().file_name());
            names.filter(|name| name.to_str().unwrap().starts_with("model-")).count()
        };
        while finished() < wanted && started.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_micros(200));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        if !out.join("config.json").exists() {
            interrupted += 1;
            assert!(contents(&out).len() < files + 3);
            let text = run(&out);
            assert!(wanted < 2 || text.contains("of which were there"), "{text}");
        }
        assert_eq!(contents(&out), contents(&whole), "{wanted}");
    }
    assert!(interrupted > 0, "every run was over before it was killed");
}

/// Where there is no room, the message says so, and what is complete stays.
#[cfg(unix)]
#[test]
fn no_room() {
    let dir = TempDir::new().unwrap();
    let out = dir.path().join("out");
    let from = fixture("v3-tiny");
    // A limit on the size of a file, in blocks of 512 bytes, which is met like a full disk.
    let script =
        "trap '' XFSZ; ulimit -f 800; exec \"$0\" convert \"$1\" \"$2\" --to fp8 --max-shard-size 3MB";
    let run = std::process::Command::new("sh")
        .args(["-c", script, env!("CARGO_BIN_EXE_eva"), from.to_str().unwrap(), out.to_str().unwrap()])
        .output()
        .unwrap();
    let message = String::from_utf8(run.stderr).unwrap();
    assert_eq!(run.status.code(), Some(1), "{message}");
    assert!(
        message.contains("there is no room to write it") && message.contains("run the same command again"),
        "{message}"
    );
    assert!(!out.join("config.json").exists());
    let text = output(&[
        "convert",
        from.to_str().unwrap(),
        out.to_str().unwrap(),
        "--to",
        "fp8",
        "--max-shard-size",
        "3MB",
    ]);
    assert!(text.contains("weights converted"), "{text}");
}
