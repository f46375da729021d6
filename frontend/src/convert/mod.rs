//! Converting checkpoints: weights to 8-bit floats with scales of 128 × 128, as DeepSeek-V3 is published, and back to bf16.
//!
//! The input is mapped and one tensor is converted at a time, in bands of rows, so that memory does not grow with the model.
//! The output grows file by file. Each is written beside its name, synced, renamed, and noted in a journal with its hash; the
//! index and `config.json`, without which there is no model, come last. So whatever happens, what carries its name is whole,
//! and the same command goes on where an earlier one stopped.

mod journal;
mod numbers;
mod plan;

pub use numbers::{NotFinite, code, scales};
pub(crate) use numbers::{codes_of_band, in_pieces};

use crate::model::config::{CONFIG_FILE, CheckError, Config, ConfigError, ScaleFormat, read_text};
use eva_runtime::checkpoint::{Checkpoint, CheckpointError, INDEX_FILE, SINGLE_FILE, TensorDecl, Writer};
use journal::{Journal, atomic_write};
use plan::{Job, Plan};
use std::cell::Cell;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use thiserror::Error;

/// What to convert to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    /// Linear layers of attention, dense blocks and experts as F8_E4M3 with a scale for 128 × 128 of them; the rest stays.
    Fp8(ScaleFormat),
    /// The same layers as BF16; the rest stays.
    Bf16,
}

/// How to convert.
#[derive(Clone, Copy, Debug)]
pub struct ConvertOptions {
    /// What to.
    pub to: To,
    /// Largest file, in bytes, where a tensor is not larger itself.
    pub max_shard_bytes: u64,
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Converted {
    /// The safetensors files.
    pub files: Vec<PathBuf>,
    /// How many of them an earlier run had finished.
    pub kept: usize,
    /// Bytes of all tensors together.
    pub tensor_bytes: u64,
    /// How many weights were converted.
    pub weights: usize,
}

/// Why nothing, or not everything, was converted. Every message is complete.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum ConvertError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Check(#[from] CheckError),
    #[error("{}: its weights are {form} already; there is nothing to convert", .path.display())]
    Already { path: PathBuf, form: &'static str },
    #[error("{}: it is not empty; choose another directory, or remove it first", .path.display())]
    Exists { path: PathBuf },
    #[error(
        "{}: the conversion that was begun here is of another checkpoint or has other options; \
         choose another directory, or remove it first", .path.display()
    )]
    Another { path: PathBuf },
    #[error("{}: another process is converting into it", .path.display())]
    Locked { path: PathBuf },
    #[error(
        "{}: there is no room to write it ({error}); the files that are complete are kept: make room, and run the same \
         command again", .path.display()
    )]
    NoRoom { path: PathBuf, error: String },
    #[error("{}: cannot {action}: {error}", .path.display())]
    Io { path: PathBuf, action: &'static str, error: io::Error },
}

impl ConvertError {
    fn io(path: &Path, action: &'static str, error: io::Error) -> Self {
        let path = path.to_path_buf();
        match no_room(error.kind()) {
            true => Self::NoRoom { path, error: error.to_string() },
            false => Self::Io { path, action, error },
        }
    }
}

fn no_room(kind: io::ErrorKind) -> bool {
    matches!(kind, io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge)
}

/// Converts the model in the directory `from` into `out`, which is created.
///
/// `progress` is called with the bytes written so far and the bytes of all tensors. If `out` has an unfinished conversion of
/// the same checkpoint with the same options, its complete files are kept after their hashes were compared, and the rest is
/// made. Nothing else that is already there is replaced.
pub fn convert(
    from: &Path,
    out: &Path,
    options: &ConvertOptions,
    mut progress: impl FnMut(u64, u64),
) -> Result<Converted, ConvertError> {
    let (_, text) = read_text(from)?;
    let config = Config::load(from)?;
    let checkpoint = Checkpoint::open(from)?;
    config.check(&checkpoint, false)?;
    let plan = Plan::new(&config, &text, &checkpoint, options)?;
    let weights = plan.jobs.iter().filter(|job| matches!(job, Job::Codes(..) | Job::Numbers(_))).count();
    if weights == 0 {
        let form = if options.to == To::Bf16 { "BF16" } else { "8-bit floats" };
        return Err(ConvertError::Already { path: from.into(), form });
    }

    let files = plan.files(out);
    let mut journal = Journal::open(out, &plan.fingerprint(&checkpoint, &text, options)?)?;
    let total = plan.bytes.iter().sum();
    let (mut done, mut kept) = (0, 0);
    for (group, file) in plan.groups.iter().zip(&files) {
        let bytes: u64 = group.iter().map(|&i| plan.bytes[i]).sum();
        if journal.has(file)? {
            kept += 1;
        } else {
            write_file(&plan, group, file, &config, &checkpoint, |written| progress(done + written, total))?;
            journal.finished(file)?;
        }
        done += bytes;
        progress(done, total);
    }
    copy_others(from, out)?;
    if files.len() > 1 {
        atomic_write(&out.join(INDEX_FILE), plan.index(&files).as_bytes())?;
    }
    atomic_write(&out.join(CONFIG_FILE), plan.config.as_bytes())?;
    journal.close()?;
    Ok(Converted { files, kept, tensor_bytes: total, weights })
}

/// Writes one file; nothing is left of one that cannot be written.
fn write_file(
    plan: &Plan,
    group: &[usize],
    file: &Path,
    config: &Config,
    checkpoint: &Checkpoint,
    mut progress: impl FnMut(u64),
) -> Result<(), ConvertError> {
    let tensors: Vec<TensorDecl> = group.iter().map(|&i| plan.tensors[i].clone()).collect();
    // What the sink says gets into a text on its way here.
    let full = Cell::new(false);
    let mut written = 0;
    let writer = Writer::new().metadata("format", "pt").overwrite(true);
    let result = writer.write_file(file, &tensors, |i, sink| {
        let done = one(&plan.jobs[group[i]], config, checkpoint, sink);
        full.set(done.as_ref().is_err_and(|error| no_room(error.kind())));
        written += plan.bytes[group[i]];
        progress(written);
        done
    });
    match result {
        Ok(_) => Ok(()),
        Err(CheckpointError::Io { path, action, error }) => Err(ConvertError::io(&path, action, error)),
        Err(CheckpointError::Tensor { path, detail, .. }) if full.get() => {
            Err(ConvertError::NoRoom { path, error: detail })
        }
        Err(error) => Err(error.into()),
    }
}

/// Writes one tensor, and lets go of what was read for it.
fn one(job: &Job, config: &Config, checkpoint: &Checkpoint, sink: &mut dyn Write) -> io::Result<()> {
    let source = job.source();
    let gone = || io::Error::other(format!("`{source}` is not in the checkpoint"));
    let tensor = checkpoint.get(source).ok_or_else(gone)?;
    match job {
        Job::Copy(_) => sink.write_all(tensor.bytes)?,
        Job::Codes(_, encoding) => numbers::write_codes(&tensor, plan::BLOCK, *encoding, sink)?,
        Job::Scales(_, encoding) => {
            let scales = scales(&tensor, plan::BLOCK, *encoding).map_err(io::Error::other)?;
            sink.write_all(&scales.iter().flat_map(|scale| scale.to_le_bytes()).collect::<Vec<u8>>())?;
        }
        Job::Numbers(_) => {
            let scales = checkpoint.get(&format!("{source}{}", plan::SCALES));
            numbers::write_numbers(&tensor, scales.as_ref(), config.scale_block(), sink)?;
        }
    }
    checkpoint.release(source);
    Ok(())
}

/// Copies what belongs to a model beside its weights: tokenizer, generation settings, licence.
fn copy_others(from: &Path, out: &Path) -> Result<(), ConvertError> {
    let read = |error| ConvertError::io(from, "list it", error);
    let mut names = Vec::new();
    for entry in fs::read_dir(from).map_err(read)? {
        let entry = entry.map_err(read)?;
        if let (true, Ok(name)) = (entry.path().is_file(), entry.file_name().into_string()) {
            names.push(name);
        }
    }
    names.sort();
    for name in names.iter().filter(|name| is_other(name)) {
        let path = from.join(name);
        let bytes = fs::read(&path).map_err(|error| ConvertError::io(&path, "read it", error))?;
        atomic_write(&out.join(name), &bytes)?;
    }
    Ok(())
}

fn is_other(name: &str) -> bool {
    let made = [CONFIG_FILE, INDEX_FILE, SINGLE_FILE].contains(&name) || name.starts_with('.');
    let end = Path::new(name).extension().and_then(|end| end.to_str()).unwrap_or("");
    !made
        && (["json", "txt", "model", "jinja", "tiktoken", "py", "md"].contains(&end)
            || name.starts_with("LICENSE"))
}
