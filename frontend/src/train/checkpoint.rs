//! Checkpoints of a run: `OUT/checkpoints/step-00000500/`, written in the background and all at once.
//!
//! | file | has |
//! | --- | --- |
//! | `config.json`, `model.safetensors` | the model, as Hugging Face and every command of eva read it |
//! | `tokenizer.json`, `tokenizer_config.json` | copies, if the run has a tokenizer; where tokens are bytes, a tokenizer of bytes |
//! | `optimizer.safetensors` | the parameters as the run goes on from them, and the optimizer's moments, as flat buffers; histories of delayed scales |
//! | `state.json` | the step, the position in the data, and what a run that goes on must have alike |
//!
//! There are no random numbers to be kept: those of weights and data are functions of seeds and positions. A folder is
//! written under another name, its files and it are flushed to the disk, and then it is renamed; one that has its name is
//! complete. What is left of one that was not finished is removed when a run begins.

use super::params::Tensors;
use super::scaling::Scaling;
use eva_ir::types::DType;
use eva_runtime::checkpoint::{Checkpoint, CheckpointDType, CheckpointError, TensorDecl, Writer};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

/// The file of the optimizer's state.
pub const OPTIMIZER_FILE: &str = "optimizer.safetensors";
/// The file of a run's state.
pub const STATE_FILE: &str = "state.json";
/// What folders are called that are not complete, or no longer.
const PARTIAL: &str = "partial-";
/// The version of what is written here.
const VERSION: u32 = 1;

/// Where a run is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RunState {
    /// Of this file.
    pub version: u32,
    /// Optimizer steps done.
    pub step: u64,
    /// Sequences taken from the training data.
    pub sequences: u64,
    /// Tokens of those.
    pub tokens: u64,
    /// Mean and mean square of recent losses, for what counts as a spike.
    pub recent: [f64; 2],
    /// How many losses these are of.
    pub losses: u64,
    /// What gradients are multiplied with.
    #[serde(default)]
    pub scaling: Scaling,
    /// What a run that goes on must have alike, by its keys in `run.toml`.
    pub same: BTreeMap<String, String>,
}

/// All that is needed to go on, in the host's memory.
pub struct Snapshot {
    /// Where the run is.
    pub state: RunState,
    /// All parameters, flat.
    pub params: Vec<f32>,
    /// The optimizer's moments, flat, and histories of scales: name, type, bytes.
    pub moments: Vec<(String, DType, Vec<u8>)>,
}

/// Why a checkpoint could not be written or read. Every message is complete.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum SaveError {
    #[error("{}: cannot {what}: {error}", .path.display())]
    Io { path: PathBuf, what: &'static str, error: io::Error },
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error("{}: {detail}", .path.display())]
    Bad { path: PathBuf, detail: String },
    #[error("the thread that writes checkpoints has failed")]
    Thread,
}

fn io(path: &Path, what: &'static str) -> impl FnOnce(io::Error) -> SaveError {
    let path = path.to_path_buf();
    move |error| SaveError::Io { path, what, error }
}

/// What every checkpoint of a run has alike.
pub struct Form {
    /// The folder of checkpoints.
    pub folder: PathBuf,
    /// Files with these names and texts, such as `config.json`.
    pub texts: Vec<(&'static str, String)>,
    /// The tensors of the model.
    pub tensors: Tensors,
    /// Their type.
    pub dtype: DType,
    /// Files that are copied.
    pub copies: Vec<PathBuf>,
    /// How many checkpoints are kept.
    pub keep: usize,
}

/// Writes checkpoints in the background, one at a time.
pub struct Saver {
    form: Arc<Form>,
    under_way: Option<JoinHandle<Result<PathBuf, SaveError>>>,
}

impl Saver {
    /// One for checkpoints like this.
    pub fn new(form: Form) -> Self {
        Self { form: Arc::new(form), under_way: None }
    }

    /// Begins to write a checkpoint, when the one before is written; returns what became of that.
    pub fn save(&mut self, snapshot: Snapshot) -> Result<Option<PathBuf>, SaveError> {
        let before = self.wait();
        let form = self.form.clone();
        self.under_way = Some(std::thread::spawn(move || form.write(&snapshot)));
        before
    }

    /// What became of the last one, if it is done.
    pub fn poll(&mut self) -> Result<Option<PathBuf>, SaveError> {
        match self.under_way.as_ref().is_some_and(JoinHandle::is_finished) {
            true => self.wait(),
            false => Ok(None),
        }
    }

    /// Waits for the last one; where it is.
    pub fn wait(&mut self) -> Result<Option<PathBuf>, SaveError> {
        match self.under_way.take() {
            None => Ok(None),
            Some(thread) => thread.join().unwrap_or(Err(SaveError::Thread)).map(Some),
        }
    }
}

impl Form {
    /// Writes a checkpoint; where it is.
    pub fn write(&self, snapshot: &Snapshot) -> Result<PathBuf, SaveError> {
        let name = format!("step-{:08}", snapshot.state.step);
        let (done, part) = (self.folder.join(&name), self.folder.join(format!("{PARTIAL}{name}")));
        clear(&part)?;
        fs::create_dir_all(&part).map_err(io(&part, "make it"))?;
        let filled = self.fill(&part, snapshot);
        let placed = filled.and_then(|()| {
            flush_folder(&part)?;
            if done.exists() {
                // Of a run that was here before and went on from an earlier step: the same numbers.
                self.remove(&done)?;
            }
            fs::rename(&part, &done).map_err(io(&done, "put it in its place"))?;
            flush_folder(&self.folder)
        });
        if let Err(error) = placed {
            // Room for the next one; the error is about this one.
            let _ = fs::remove_dir_all(&part);
            return Err(error);
        }
        let all = list(&self.folder)?;
        for (_, old) in &all[..all.len().saturating_sub(self.keep)] {
            self.remove(old)?;
        }
        Ok(done)
    }

    fn fill(&self, part: &Path, snapshot: &Snapshot) -> Result<(), SaveError> {
        let Snapshot { state, params, moments } = snapshot;
        let tensors = self.tensors.declare(self.dtype);
        if !tensors.is_empty() {
            let writer = Writer::new().metadata("format", "pt").metadata("made_by", "eva train");
            writer
                .write_dir(part, &tensors, |i, sink| self.tensors.write(i, tensors[i].dtype, params, sink))?;
        }
        let flat = |name: &str, dtype, n: usize| TensorDecl { name: name.into(), dtype, shape: vec![n] };
        let mut flats = vec![flat("params", CheckpointDType::F32, params.len())];
        for (name, dtype, bytes) in moments {
            let (dtype, n) = match dtype {
                DType::Bf16 => (CheckpointDType::Bf16, bytes.len() / 2),
                _ => (CheckpointDType::F32, bytes.len() / 4),
            };
            flats.push(flat(name, dtype, n));
        }
        Writer::new().write_file(&part.join(OPTIMIZER_FILE), &flats, |i, sink| match i.checked_sub(1) {
            Some(i) => sink.write_all(&moments[i].2),
            None => params.chunks(1 << 16).try_for_each(|piece| {
                let bytes: Vec<u8> = piece.iter().flat_map(|x| x.to_le_bytes()).collect();
                sink.write_all(&bytes)
            }),
        })?;
        for from in &self.copies {
            let to = part.join(from.file_name().unwrap_or_default());
            fs::copy(from, &to).map_err(io(&to, "write it"))?;
        }
        for (name, text) in &self.texts {
            write_text(&part.join(name), text)?;
        }
        let text = serde_json::to_string_pretty(state).map_err(io::Error::from);
        let path = part.join(STATE_FILE);
        write_text(&path, &(text.map_err(io(&path, "write it"))? + "\n"))
    }

    /// Removes a complete checkpoint so that nothing incomplete has its name meanwhile.
    fn remove(&self, path: &Path) -> Result<(), SaveError> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let aside = self.folder.join(format!("{PARTIAL}old-{name}"));
        clear(&aside)?;
        fs::rename(path, &aside).map_err(io(path, "move it away"))?;
        clear(&aside)
    }
}

fn write_text(path: &Path, text: &str) -> Result<(), SaveError> {
    let mut file = File::create(path).map_err(io(path, "write it"))?;
    file.write_all(text.as_bytes()).map_err(io(path, "write it"))
}

/// Flushes a folder's files and the folder to the disk.
fn flush_folder(folder: &Path) -> Result<(), SaveError> {
    for entry in fs::read_dir(folder).map_err(io(folder, "read it"))? {
        let path = entry.map_err(io(folder, "read it"))?.path();
        if path.is_file() {
            File::open(&path).and_then(|file| file.sync_all()).map_err(io(&path, "flush it"))?;
        }
    }
    File::open(folder).and_then(|file| file.sync_all()).map_err(io(folder, "flush it"))
}

fn clear(folder: &Path) -> Result<(), SaveError> {
    match fs::remove_dir_all(folder) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(io(folder, "remove it")(e)),
        _ => Ok(()),
    }
}

/// The complete checkpoints in a folder with their steps, in the order of these.
pub fn list(folder: &Path) -> Result<Vec<(u64, PathBuf)>, SaveError> {
    let mut found = Vec::new();
    let entries = match fs::read_dir(folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(found),
        entries => entries.map_err(io(folder, "read it"))?,
    };
    for entry in entries {
        let path = entry.map_err(io(folder, "read it"))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if let Some(step) = name.strip_prefix("step-").and_then(|step| step.parse().ok()) {
            found.push((step, path));
        }
    }
    found.sort();
    Ok(found)
}

/// Removes what is left in a folder of checkpoints that were not finished.
pub fn tidy(folder: &Path) -> Result<(), SaveError> {
    let Ok(entries) = fs::read_dir(folder) else { return Ok(()) };
    for entry in entries {
        let path = entry.map_err(io(folder, "read it"))?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PARTIAL)) {
            clear(&path)?;
        }
    }
    Ok(())
}

/// Reads a checkpoint, whose flat buffers must have these sizes: elements of the parameters, and bytes of each moment.
pub fn read(path: &Path, params: usize, moments: &[(String, DType, usize)]) -> Result<Snapshot, SaveError> {
    let bad = |detail: String| SaveError::Bad { path: path.into(), detail };
    let file = path.join(STATE_FILE);
    let text = fs::read_to_string(&file).map_err(io(&file, "read it"))?;
    let state: RunState = serde_json::from_str(&text)
        .map_err(|e| SaveError::Bad { path: file.clone(), detail: format!("not the state of a run: {e}") })?;
    if state.version != VERSION {
        return Err(bad(format!("it has version {}, and this program knows {VERSION}", state.version)));
    }
    let flats = Checkpoint::open(&path.join(OPTIMIZER_FILE))?;
    let get = |name: &str, dtype: DType, bytes: usize| {
        let tensor = flats.get(name).ok_or_else(|| bad(format!("{OPTIMIZER_FILE} has no `{name}`")))?;
        match eva_runtime::weights::dtype(tensor.dtype) == Some(dtype) && tensor.bytes.len() == bytes {
            true => Ok(tensor.bytes),
            false => Err(bad(format!(
                "`{name}` of {OPTIMIZER_FILE} is {}{:?}, and the run's has {bytes} bytes of {dtype}",
                tensor.dtype, tensor.shape
            ))),
        }
    };
    let flat = get("params", DType::F32, params * 4)?;
    let params = flat.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    let moments = moments
        .iter()
        .map(|(name, dtype, bytes)| Ok((name.clone(), *dtype, get(name, *dtype, *bytes)?.to_vec())))
        .collect::<Result<_, SaveError>>()?;
    Ok(Snapshot { state, params, moments })
}

impl RunState {
    /// That of a run that has not begun.
    pub fn new(same: BTreeMap<String, String>) -> Self {
        Self { version: VERSION, same, ..Self::default() }
    }

    /// What differs between this state's run and one with `same`, in words.
    pub fn differences(&self, same: &BTreeMap<String, String>) -> Vec<String> {
        let none = String::from("nothing");
        let keys: std::collections::BTreeSet<&String> = self.same.keys().chain(same.keys()).collect();
        let pairs = keys
            .into_iter()
            .map(|key| (key, self.same.get(key).unwrap_or(&none), same.get(key).unwrap_or(&none)));
        let differ = pairs.filter(|(_, was, is)| was != is);
        differ.map(|(key, was, is)| format!("{key} was {was}, and is {is}")).collect()
    }
}
