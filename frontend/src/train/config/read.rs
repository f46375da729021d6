//! From the text of `run.toml` to a [`RunConfig`].

use super::{GradientScale, RunConfig, check};
use eva_ir::types::DType;
use eva_passes::Form;
use eva_runtime::Device;
use serde::{Deserialize, Deserializer, de};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use toml::de::{DeTable, DeValue};

/// Longest file accepted, in bytes.
const MAX_BYTES: u64 = 1 << 20;

/// Why a run's configuration could not be used. Every message is complete.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum RunConfigError {
    #[error("{}: cannot read it: {error}", .path.display())]
    Io { path: PathBuf, error: io::Error },
    #[error("{}: it has {len} bytes; a run.toml has at most {MAX_BYTES}", .path.display())]
    TooLong { path: PathBuf, len: u64 },
    #[error("{}: {}", .path.display(), .detail.trim_end())]
    Toml { path: PathBuf, detail: String },
    #[error("--set {setting}: {detail}")]
    Setting { setting: String, detail: String },
    #[error("{}: {}", .path.display(), list(.problems))]
    Invalid { path: PathBuf, problems: Vec<String> },
}

fn list(problems: &[String]) -> String {
    let count = match problems.len() {
        1 => "1 problem".to_string(),
        n => format!("{n} problems"),
    };
    problems.iter().fold(count, |text, problem| format!("{text}\n  {problem}"))
}

/// Reads, sets, makes paths relative to the file's folder, and checks.
pub(super) fn load(path: &Path, set: &[String]) -> Result<RunConfig, RunConfigError> {
    let io = |error| RunConfigError::Io { path: path.into(), error };
    let len = std::fs::metadata(path).map_err(io)?.len();
    if len > MAX_BYTES {
        return Err(RunConfigError::TooLong { path: path.into(), len });
    }
    let text = std::fs::read_to_string(path).map_err(io)?;
    let mut config = parse(path, &text, set)?;
    check::resolve(&mut config, path.parent().unwrap_or(Path::new("")));
    let lines = Lines::of(&text);
    let problems: Vec<String> = check::problems(&config)
        .into_iter()
        .map(|(key, message)| match lines.line(key) {
            Some(line) => format!("line {line}: {key}: {message}"),
            None => format!("{key}: {message}"),
        })
        .collect();
    match problems.is_empty() {
        true => Ok(config),
        false => Err(RunConfigError::Invalid { path: path.into(), problems }),
    }
}

fn parse(path: &Path, text: &str, set: &[String]) -> Result<RunConfig, RunConfigError> {
    let bad = |e: toml::de::Error| RunConfigError::Toml { path: path.into(), detail: e.to_string() };
    if set.is_empty() {
        return toml::from_str(text).map_err(bad);
    }
    let mut table: toml::Table = toml::from_str(text).map_err(bad)?;
    for setting in set {
        let wrong = |detail: String| RunConfigError::Setting { setting: setting.clone(), detail };
        let (key, value) = setting.split_once('=').ok_or_else(|| wrong("it must be key=value".into()))?;
        // What is no value of TOML is text without its quotes.
        let parsed = toml::from_str::<toml::Table>(&format!("v = {value}"));
        let value = match parsed.ok().and_then(|mut table| table.remove("v")) {
            Some(value) => value,
            None => toml::Value::String(value.into()),
        };
        let before: Result<RunConfig, _> = table.clone().try_into();
        put(&mut table, key.trim(), value).map_err(wrong)?;
        // If it was right before, this setting is what is wrong.
        let after: Result<RunConfig, _> = table.clone().try_into();
        if let (Ok(_), Err(e)) = (before, after) {
            return Err(wrong(e.to_string().trim_end().to_string()));
        }
    }
    table.try_into().map_err(bad)
}

fn put(table: &mut toml::Table, key: &str, value: toml::Value) -> Result<(), String> {
    let Some((first, rest)) = key.split_once('.') else {
        table.insert(key.into(), value);
        return Ok(());
    };
    let inner = table.entry(first).or_insert_with(|| toml::Value::Table(toml::Table::new()));
    put(inner.as_table_mut().ok_or_else(|| format!("`{first}` is no table"))?, rest, value)
}

/// Where keys are in a text.
struct Lines<'a> {
    text: &'a str,
    table: Option<toml::Spanned<DeTable<'a>>>,
}

impl<'a> Lines<'a> {
    fn of(text: &'a str) -> Self {
        Self { text, table: DeTable::parse(text).ok() }
    }

    /// The line of a key, with dots for keys inside keys, or of the innermost table that is there.
    fn line(&self, key: &str) -> Option<usize> {
        let mut table = self.table.as_ref()?.get_ref();
        let mut found: Option<Range<usize>> = None;
        for part in key.split('.') {
            let Some((name, value)) = table.iter().find(|(name, _)| name.get_ref() == part) else { break };
            found = Some(name.span());
            match value.get_ref() {
                DeValue::Table(inner) => table = inner,
                _ => break,
            }
        }
        let start = found?.start;
        Some(self.text.get(..start)?.matches('\n').count() + 1)
    }
}

/// A device by its name.
pub(super) fn device<'de, D: Deserializer<'de>>(from: D) -> Result<Device, D::Error> {
    String::deserialize(from)?.parse().map_err(de::Error::custom)
}

/// A form of attention by its name.
pub(super) fn form<'de, D: Deserializer<'de>>(from: D) -> Result<Form, D::Error> {
    match String::deserialize(from)?.as_str() {
        "auto" => Ok(Form::Auto),
        "expanded" => Ok(Form::Expanded),
        "absorbed" => Ok(Form::Absorbed),
        "written" => Ok(Form::Written),
        other => Err(de::Error::custom(format!(
            "invalid form `{other}`: there are `auto`, `expanded`, `absorbed` and `written`"
        ))),
    }
}

/// `f32` or `bf16`.
pub(super) fn float<'de, D: Deserializer<'de>>(from: D) -> Result<DType, D::Error> {
    match String::deserialize(from)?.as_str() {
        "f32" => Ok(DType::F32),
        "bf16" => Ok(DType::Bf16),
        other => Err(de::Error::custom(format!("invalid type `{other}`: there are `f32` and `bf16`"))),
    }
}

/// A number, or `dynamic`.
pub(super) fn gradient_scale<'de, D: Deserializer<'de>>(from: D) -> Result<GradientScale, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Number(f64),
        Word(String),
    }
    let expected = |found: &str| {
        de::Error::custom(format!("invalid factor {found}: there are powers of two and \"dynamic\""))
    };
    match Either::deserialize(from) {
        Ok(Either::Number(scale)) => Ok(GradientScale::Fixed(scale)),
        Ok(Either::Word(word)) if word == "dynamic" => Ok(GradientScale::Dynamic),
        Ok(Either::Word(word)) => Err(expected(&format!("`{word}`"))),
        Err(_) => Err(expected("of another type")),
    }
}

/// `bf16`; nothing for `f32`.
pub(super) fn optional_float<'de, D: Deserializer<'de>>(from: D) -> Result<Option<DType>, D::Error> {
    float(from).map(|dtype| Some(dtype).filter(|dtype| *dtype != DType::F32))
}
