//! From a configuration to a run that goes on.

use super::checkpoint::Form;
use super::config::{DataKind, RunConfig};
use super::data::{Data, Fit};
use super::model::Graphs;
use super::params::{Groups, Tensors, WIDTH};
use super::run::{Begin, Ended, Observer, RunError, drive, may_begin};
use super::trainer::Trainer;
use crate::engine::EngineError;
use crate::model::config::{CONFIG_FILE, Config, read_text};
use crate::tokenizer::TOKENIZER_FILE;
use eva_runtime::checkpoint::Checkpoint;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

/// Why a checkpoint is not trained.
pub(crate) const EIGHT_BITS: &str =
    "its weights are 8-bit floats: convert them first, with `eva convert --to bf16`";

/// Runs a configuration. `stop` is looked at after each step: once it is true, the run saves and ends.
pub fn run(
    run: &RunConfig,
    begin: Begin,
    stop: &AtomicBool,
    observer: &mut dyn Observer,
) -> Result<Ended, RunError> {
    let model = run.model.config.as_deref().or(run.model.checkpoint.as_deref()).unwrap_or(Path::new(""));
    let (path, text) = read_text(model)?;
    let config = Config::load(&path)?;
    let folder = run.out.join("checkpoints");
    may_begin(begin, &folder)?;
    let graphs = Graphs::of(run, &config)?;
    let cache = run.out.join("data");
    let eos = config.eos.first().copied();
    observer.begin("reading the data");
    let data =
        Data::open(&run.data, &Fit { vocab: config.vocab, eos, cache: &cache, seed: run.data_seed() })?;
    observer.begin("compiling");
    let groups = Groups::new(run, &config);
    let mut trainer = Trainer::new(run, &graphs, &|name| groups.of(name))?;
    let tensors = Tensors::new(&config, trainer.layout());
    let elements = trainer.layout().all() * WIDTH;
    let flat = match &run.model.checkpoint {
        _ if begin.resume => None,
        None => {
            let mut flat = tensors.fresh(elements, run.model.init_std, run.init_seed());
            if run.model.router_skew != 0.0 {
                tensors.skew(&mut flat, run.model.router_skew);
            }
            Some(flat)
        }
        Some(from) => {
            if config.quantization.is_some() {
                return Err(RunError::Refused(format!("{}: {EIGHT_BITS}", from.display())));
            }
            let checkpoint = Checkpoint::open(from)?;
            config.check(&checkpoint, run.loss.mtp > 0.0).map_err(EngineError::from)?;
            Some(tensors.read(&checkpoint, elements)?)
        }
    };
    let copies = tokenizer_files(run, &path);
    let mut texts = vec![(CONFIG_FILE, config_text(&text, run, &config))];
    let is_bytes = run.data.kind == DataKind::Arithmetic
        || run.data.tokenizer == "bytes" && !run.data.kind.is_synthetic();
    if is_bytes && run.data.kind != DataKind::Tokens && copies.is_empty() {
        texts.push((TOKENIZER_FILE, byte_tokenizer(config.vocab)));
    }
    let form =
        Form { folder, texts, tensors, dtype: run.checkpoint.dtype, copies, keep: run.checkpoint.keep };
    drive(run, begin, &mut trainer, flat, data, form, stop, observer)
}

/// The tokenizer's files: beside the one that the run names, or beside the model's configuration.
fn tokenizer_files(run: &RunConfig, config: &Path) -> Vec<PathBuf> {
    let named = Path::new(&run.data.tokenizer);
    let folder = match run.data.tokenizer.as_str() {
        "bytes" => config.parent(),
        _ if named.is_dir() => Some(named),
        _ => named.parent(),
    };
    let files = [TOKENIZER_FILE, "tokenizer_config.json"].into_iter();
    files.filter_map(|name| Some(folder?.join(name))).filter(|path| path.is_file()).collect()
}

/// The model's configuration as checkpoints have it: with the type of their weights, without 8-bit floats, and with MTP
/// modules only if they are trained.
fn config_text(text: &str, run: &RunConfig, config: &Config) -> String {
    let Ok(serde_json::Value::Object(mut keys)) = serde_json::from_str(text) else { return text.into() };
    let name = if run.checkpoint.dtype == crate::prelude::BF16 { "bfloat16" } else { "float32" };
    let key = if keys.contains_key("dtype") { "dtype" } else { "torch_dtype" };
    keys.insert(key.into(), name.into());
    keys.remove("quantization_config");
    if config.mtp_layers > 0 && run.loss.mtp == 0.0 {
        keys.insert("num_nextn_predict_layers".into(), 0.into());
    }
    serde_json::to_string_pretty(&keys).map_or(text.into(), |text| text + "\n")
}

/// A `tokenizer.json` whose tokens are bytes, each by its own number, as far as there are so many tokens. A byte is a
/// character in it: itself if it is printed, one of those from U+0100 on otherwise, as GPT-2 has them.
fn byte_tokenizer(vocab: usize) -> String {
    let printed = |byte: u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut others = (0x100..).filter_map(char::from_u32);
    let character = |byte: u32| if printed(byte) { char::from_u32(byte) } else { others.next() };
    let characters: Vec<Option<char>> = (0..256).map(character).collect();
    let known = characters.into_iter().enumerate().take(vocab);
    let tokens: serde_json::Map<String, serde_json::Value> =
        known.filter_map(|(id, character)| Some((character?.to_string(), id.into()))).collect();
    let level = |kind: &str| serde_json::json!({"type": kind, "add_prefix_space": false, "trim_offsets": false, "use_regex": false});
    let all = serde_json::json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [],
        "normalizer": null,
        "pre_tokenizer": level("ByteLevel"),
        "post_processor": null,
        "decoder": level("ByteLevel"),
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": tokens, "merges": []},
    });
    format!("{all:#}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::Tokenizer;

    #[test]
    fn bytes_are_their_own_tokens() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(TOKENIZER_FILE);
        for (vocab, text) in
            [(128, "To be,\n or not\t~ "), (256, "h\u{e9} \u{4e16}\u{7f}\0"), (300, "two  spaces")]
        {
            std::fs::write(&path, byte_tokenizer(vocab)).unwrap();
            let tokenizer = Tokenizer::load(&path, vocab).unwrap();
            let ids = tokenizer.encode(text).unwrap();
            assert!(ids.iter().copied().eq(text.bytes().map(u32::from)), "{ids:?}");
            assert_eq!(tokenizer.decode(&ids).unwrap(), text);
        }
    }
}
