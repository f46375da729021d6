//! What a model learns from: sequences of tokens, in an order that a seed decides.
//!
//! A [`Source`] has numbered sequences. Training goes through them epoch by epoch, each in an [`order`] of its own; how many
//! sequences it has taken is all that there is to remember. [`Batches`] are made ahead on a thread.

mod files;
pub mod order;
mod prefetch;
mod synthetic;
mod tokenize;

pub use prefetch::{Batches, Plan};

use super::config::{DataConfig, DataKind, TokenType};
use eva_runtime::Tensor;
use order::Order;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A label that does not count.
pub const IGNORED: i64 = -100;

/// Why there are no data. Every message is complete.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum DataError {
    #[error("{}: {what}: {error}", .path.display())]
    Io { path: PathBuf, what: &'static str, error: io::Error },
    #[error("{}: {detail}", .path.display())]
    Bad { path: PathBuf, detail: String },
    #[error("{}, line {line}: {detail}", .path.display())]
    Line { path: PathBuf, line: usize, detail: String },
    #[error("{}: token {token} at {at} is not in the model's vocabulary of {vocab}", .path.display())]
    Token { path: PathBuf, token: u64, at: u64, vocab: usize },
    #[error(transparent)]
    Tokenizer(#[from] crate::tokenizer::TokenizerError),
    #[error("{0}")]
    Small(String),
    #[error("the thread that reads the data has ended")]
    Gone,
}

/// Numbered sequences of tokens with their labels.
pub trait Source: Send + Sync {
    /// How many there are; at least one.
    fn sequences(&self) -> u64;

    /// Sequence `index`: its tokens, and for each the one that should follow, or [`IGNORED`].
    fn read(&self, index: u64, ids: &mut [i64], labels: &mut [i64]) -> Result<(), DataError>;
}

/// Some sequences.
pub struct Batch {
    /// `i64[b, s]`.
    pub ids: Tensor,
    /// `i64[b, s]`; [`IGNORED`] where nothing is asked.
    pub labels: Tensor,
    /// How many labels count.
    pub counted: u64,
}

/// Data to train with, and data to measure with.
#[derive(Clone)]
pub struct Data {
    /// What is learned from.
    pub train: Arc<dyn Source>,
    /// What is held out, if anything is.
    pub held: Option<Arc<dyn Source>>,
}

/// What data must fit.
pub struct Fit<'a> {
    /// How many tokens the model knows.
    pub vocab: usize,
    /// The token that ends a text, if the model has one.
    pub eos: Option<u32>,
    /// Where texts are kept as tokens.
    pub cache: &'a Path,
    /// Where random data start.
    pub seed: u64,
}

impl Data {
    /// Opens what `config` names.
    pub fn open(config: &DataConfig, fit: &Fit) -> Result<Data, DataError> {
        if config.kind.is_synthetic() {
            let task = |held| synthetic::Task::new(config, fit, held).map(|task| Arc::new(task) as _);
            return Ok(Data { train: task(false)?, held: Some(task(true)?) });
        }
        let open = |paths: &[PathBuf]| -> Result<files::Windows, DataError> {
            let (paths, width) = match (config.kind, config.tokenizer.as_str()) {
                (DataKind::Tokens, _) => match config.token_type {
                    TokenType::U16 => (paths.to_vec(), files::Width::Two),
                    TokenType::U32 => (paths.to_vec(), files::Width::Four),
                },
                (DataKind::Text, "bytes") => (paths.to_vec(), files::Width::One),
                _ => (tokenize::tokenize(config, paths, fit)?, files::Width::Four),
            };
            files::Windows::open(&paths, width, config.sequence, fit.vocab)
        };
        let all = open(&config.paths)?;
        if !config.holdout_paths.is_empty() {
            return Ok(Data { train: Arc::new(all), held: Some(Arc::new(open(&config.holdout_paths)?)) });
        }
        let (train, held) = all.split(config.holdout)?;
        Ok(Data { train: Arc::new(train), held: held.map(|held| Arc::new(held) as _) })
    }
}

/// Reads the sequences of these numbers.
pub fn batch(source: &dyn Source, numbers: &[u64], length: usize) -> Result<Batch, DataError> {
    let mut ids = vec![0; numbers.len() * length];
    let mut labels = vec![IGNORED; numbers.len() * length];
    for ((ids, labels), &number) in ids.chunks_mut(length).zip(labels.chunks_mut(length)).zip(numbers) {
        source.read(number, ids, labels)?;
    }
    let counted = labels.iter().filter(|label| **label >= 0).count() as u64;
    let shape = [numbers.len(), length];
    Ok(Batch { ids: Tensor::from_i64(&shape, &ids), labels: Tensor::from_i64(&shape, &labels), counted })
}

/// The numbers of the sequences from `position` on, where `position` counts all sequences taken in all epochs.
pub fn numbers(sequences: u64, seed: u64, shuffle: bool, position: u64, count: usize) -> Vec<u64> {
    let at = |taken: u64| {
        let (epoch, place) = (taken / sequences, taken % sequences);
        if shuffle { Order::new(sequences, seed, epoch).at(place) } else { place }
    };
    (position..position + count as u64).map(at).collect()
}
