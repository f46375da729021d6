//! Running the command, and models to run it on.

use serde_json::Value;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tempfile::TempDir;

/// What a run of the command came to.
pub struct Ran {
    /// The exit code.
    pub code: Option<i32>,
    /// Standard output.
    pub out: String,
    /// Standard error, without the paths of this machine.
    pub err: String,
}

pub fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(path)
}

/// The command, away from the settings of whoever runs the tests.
pub fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_eva"));
    for name in ["EVA_CACHE_DIR", "EVA_DUMP", "EVA_PTXAS", "EVA_THREADS", "RUST_LOG"] {
        command.env_remove(name);
    }
    command.env("NO_COLOR", "1");
    command
}

pub fn finish(mut command: Command, input: &str) -> Ran {
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // A command that fails early does not read it.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    let fixtures = fixture("").display().to_string();
    let passes = format!("[possible values: {}]", eva_passes::PASSES.join(", "));
    let err = err.replace(&fixtures, "FIXTURES/").replace(&passes, "[possible values: PASSES]");
    Ran { code: output.status.code(), out: String::from_utf8(output.stdout).unwrap(), err }
}

/// Runs `eva` with some text on standard input.
pub fn eva_reading(args: &[&str], input: &str) -> Ran {
    let mut command = command();
    command.args(args);
    finish(command, input)
}

/// Runs `eva`.
pub fn eva(args: &[&str]) -> Ran {
    eva_reading(args, "")
}

/// What a run prints that must succeed without a word on standard error.
pub fn output(args: &[&str]) -> String {
    let ran = eva(args);
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""), "{args:?}: {}", ran.out);
    ran.out
}

/// The message of a run that must fail with `code` and print nothing.
pub fn refusal(code: i32, args: &[&str]) -> String {
    let ran = eva(args);
    assert_eq!((ran.code, ran.out.as_str()), (Some(code), ""), "{args:?}: {}", ran.err);
    assert!(!ran.err.contains("panicked"), "{}", ran.err);
    ran.err
}

/// A message about files in `dir`, without its path.
pub fn without(dir: &TempDir, message: &str) -> String {
    message.replace(dir.path().to_str().unwrap(), "DIR")
}

pub fn path(dir: &TempDir) -> &str {
    dir.path().to_str().unwrap()
}

/// The `config.json` of a fixture with some keys changed; `null` removes one.
pub fn config(model: &str, changes: &[(&str, Value)]) -> String {
    let text = fs::read_to_string(fixture(model).join("config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&text).unwrap();
    for (key, value) in changes {
        match value {
            Value::Null => drop(config.as_object_mut().unwrap().remove(*key)),
            value => config[*key] = value.clone(),
        }
    }
    config.to_string()
}

/// A directory with a configuration and nothing else.
pub fn with_config(text: &str) -> TempDir {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("config.json"), text).unwrap();
    dir
}

/// Sections of one snapshot.
#[derive(Default)]
pub struct Sections(String);

impl Sections {
    pub fn add(&mut self, title: &str, text: &str) {
        self.0 += &format!("## {title}\n{}\n\n", text.trim_end());
    }

    pub fn text(self) -> String {
        self.0
    }
}
