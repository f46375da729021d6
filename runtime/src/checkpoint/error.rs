//! What can be wrong with a checkpoint.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::header::HeaderError;
use super::{CheckpointDType, INDEX_FILE, SINGLE_FILE};

/// Why a checkpoint could not be read or written. Every message is complete: it names the file, the tensor where
/// there is one, what was found and what to do.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum CheckpointError {
    #[error("{}: no such file or directory; give the directory that holds {SINGLE_FILE} or {INDEX_FILE}", .path.display())]
    NotFound { path: PathBuf },
    #[error(
        "{}: no checkpoint in this directory: neither {SINGLE_FILE} nor {INDEX_FILE} is there{}",
        .path.display(), beside(.others)
    )]
    NoCheckpoint { path: PathBuf, others: Vec<String> },
    #[error("{}: not a regular file; give a .safetensors file or the directory that holds it", .path.display())]
    NotAFile { path: PathBuf },
    #[error("{}: cannot {action}: {error}", .path.display())]
    Io { path: PathBuf, action: &'static str, error: io::Error },
    #[error("{}: {error}", .path.display())]
    Header { path: PathBuf, error: HeaderError },
    #[error("{}: not a checkpoint index: {detail}; copy or download it again", .path.display())]
    Index { path: PathBuf, detail: String },
    #[error(
        "{}: the index puts tensor `{tensor}` into `{file}`, which is not a plain file name; \
         shards must lie beside the index", .path.display()
    )]
    ShardPath { path: PathBuf, tensor: String, file: String },
    #[error(
        "{}: the index puts tensor `{tensor}` into `{file}`, which is not there; \
         copy or download that file too", .path.display()
    )]
    ShardMissing { path: PathBuf, tensor: String, file: String },
    #[error(
        "{}: the index puts tensor `{tensor}` into `{file}`, but that file does not hold it; \
         the index and the shards are not of one checkpoint", .path.display()
    )]
    NotInShard { path: PathBuf, tensor: String, file: String },
    #[error(
        "{}: the index puts tensor `{tensor}` into `{expected}`, but it is in `{found}`; \
         the index and the shards are not of one checkpoint", .path.display()
    )]
    WrongShard { path: PathBuf, tensor: String, expected: String, found: String },
    #[error(
        "{}: tensor `{tensor}` is both in `{first}` and in `{second}`; \
         the shards are not of one checkpoint", .path.display()
    )]
    Duplicate { path: PathBuf, tensor: String, first: String, second: String },
    #[error(
        "{}: `{file}` holds tensor `{tensor}`, which the index does not name; \
         the index and the shards are not of one checkpoint", .path.display()
    )]
    Unlisted { path: PathBuf, tensor: String, file: String },
    #[error("{}: tensor `{tensor}` is {found}; expected {expected}", .path.display())]
    Type { path: PathBuf, tensor: String, found: CheckpointDType, expected: &'static str },
    #[error("{}: already there; choose another directory, or remove it first", .path.display())]
    Exists { path: PathBuf },
    #[error("{}: cannot write tensor `{tensor}`: {detail}", .path.display())]
    Tensor { path: PathBuf, tensor: String, detail: String },
}

fn beside(names: &[String]) -> String {
    if names.is_empty() {
        return "; give the directory that holds the model's weights".into();
    }
    let names: Vec<_> = names.iter().map(|n| format!("`{}`", n.escape_debug())).collect();
    format!("; it does hold {}: give that file's path, or rename it", names.join(", "))
}

impl CheckpointError {
    pub(super) fn io(path: &Path, action: &'static str, error: io::Error) -> CheckpointError {
        CheckpointError::Io { path: path.to_path_buf(), action, error }
    }
}
