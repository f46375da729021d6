//! Texts as files of tokens, made once and kept in the run's folder.

use super::{DataError, Fit};
use crate::tokenizer::Tokenizer;
use crate::train::config::{DataConfig, DataKind};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

/// Bytes of a text that are tokenized at a time, about: it is cut after a line.
const PIECE: usize = 1 << 20;

/// For each text the file of its tokens, of 32 bits each, in `fit.cache`. A file is named after what it is made of, so what
/// is there already is right.
pub(super) fn tokenize(config: &DataConfig, paths: &[PathBuf], fit: &Fit) -> Result<Vec<PathBuf>, DataError> {
    let tokenizer = match config.tokenizer.as_str() {
        "bytes" => None,
        path => Some(Tokenizer::load(Path::new(path), fit.vocab)?),
    };
    let mut settings = Sha256::new();
    settings.update(format!("{}\n{}\n{:?}\n", config.kind, config.field, config.separator.or(fit.eos)));
    if tokenizer.is_some() {
        let path = Path::new(&config.tokenizer);
        let path = if path.is_dir() { path.join(crate::tokenizer::TOKENIZER_FILE) } else { path.into() };
        settings.update(fs::read(&path).map_err(io(&path, "cannot read it"))?);
    }
    let make = |path: &PathBuf| -> Result<PathBuf, DataError> {
        let mut hash = settings.clone();
        hash_file(path, &mut hash)?;
        let name: String = hash.finalize().iter().take(12).map(|byte| format!("{byte:02x}")).collect();
        let out = fit.cache.join(format!("{name}.u32"));
        if !out.exists() {
            fs::create_dir_all(fit.cache).map_err(io(fit.cache, "cannot make the folder"))?;
            let part = fit.cache.join(format!("{name}.part"));
            let file = File::create(&part).map_err(io(&part, "cannot write it"))?;
            let mut sink = Sink { out: BufWriter::new(file), path: &part };
            match config.kind {
                DataKind::Jsonl => documents(config, path, fit, tokenizer.as_ref(), &mut sink)?,
                _ => text(path, tokenizer.as_ref(), &mut sink)?,
            }
            let file = sink.out.into_inner().map_err(|e| io(&part, "cannot write it")(e.into_error()))?;
            file.sync_all().map_err(io(&part, "cannot write it"))?;
            fs::rename(&part, &out).map_err(io(&out, "cannot write it"))?;
        }
        Ok(out)
    };
    paths.iter().map(make).collect()
}

fn io(path: &Path, what: &'static str) -> impl FnOnce(std::io::Error) -> DataError {
    let path = path.to_path_buf();
    move |error| DataError::Io { path, what, error }
}

fn hash_file(path: &Path, hash: &mut Sha256) -> Result<(), DataError> {
    let mut file = File::open(path).map_err(io(path, "cannot open it"))?;
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer).map_err(io(path, "cannot read it"))? {
            0 => return Ok(()),
            n => hash.update(&buffer[..n]),
        }
    }
}

struct Sink<'a> {
    out: BufWriter<File>,
    path: &'a Path,
}

impl Sink<'_> {
    fn put(&mut self, tokens: impl IntoIterator<Item = u32>) -> Result<(), DataError> {
        let mut write = |token: u32| self.out.write_all(&token.to_le_bytes());
        tokens.into_iter().try_for_each(&mut write).map_err(io(self.path, "cannot write it"))
    }
}

fn encode(tokenizer: Option<&Tokenizer>, text: &str) -> Result<Vec<u32>, DataError> {
    match tokenizer {
        None => Ok(text.bytes().map(u32::from).collect()),
        Some(tokenizer) => Ok(tokenizer.encode(text)?),
    }
}

/// A text, in pieces of whole lines.
fn text(path: &Path, tokenizer: Option<&Tokenizer>, sink: &mut Sink) -> Result<(), DataError> {
    let mut reader = BufReader::new(File::open(path).map_err(io(path, "cannot open it"))?);
    let mut piece = Vec::new();
    loop {
        let n = reader.read_until(b'\n', &mut piece).map_err(io(path, "cannot read it"))?;
        if piece.len() >= PIECE || n == 0 && !piece.is_empty() {
            let text = std::str::from_utf8(&piece)
                .map_err(|e| DataError::Bad { path: path.into(), detail: format!("not UTF-8: {e}") })?;
            sink.put(encode(tokenizer, text)?)?;
            piece.clear();
        }
        if n == 0 {
            return Ok(());
        }
    }
}

/// Documents, each with the separator after it.
fn documents(
    config: &DataConfig,
    path: &Path,
    fit: &Fit,
    tokenizer: Option<&Tokenizer>,
    sink: &mut Sink,
) -> Result<(), DataError> {
    let reader = BufReader::new(File::open(path).map_err(io(path, "cannot open it"))?);
    for (i, line) in reader.lines().enumerate() {
        let line = line.map_err(io(path, "cannot read it"))?;
        if line.trim().is_empty() {
            continue;
        }
        let wrong = |detail: String| DataError::Line { path: path.into(), line: i + 1, detail };
        let value: Value = serde_json::from_str(&line).map_err(|e| wrong(format!("not JSON: {e}")))?;
        let text = value.get(&config.field).and_then(Value::as_str);
        let text = text.ok_or_else(|| wrong(format!("no text under `{}`", config.field)))?;
        sink.put(encode(tokenizer, text)?)?;
        sink.put(config.separator.or(fit.eos))?;
    }
    Ok(())
}
