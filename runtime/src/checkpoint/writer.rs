//! Writing checkpoints without holding them in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::{CheckpointDType, CheckpointError, INDEX_FILE, MAX_HEADER_BYTES, SINGLE_FILE, clip};

/// A tensor that will be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorDecl {
    /// Name, unique in the checkpoint.
    pub name: String,
    /// Element type.
    pub dtype: CheckpointDType,
    /// Extents, outermost first; empty for a scalar.
    pub shape: Vec<usize>,
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// The safetensors files.
    pub files: Vec<PathBuf>,
    /// Bytes of all tensors together.
    pub tensor_bytes: u64,
}

/// Writes safetensors files tensor by tensor.
///
/// Files appear under their names only when all of them are complete; after a failure nothing is left behind.
#[derive(Clone, Debug, Default)]
pub struct Writer {
    max_shard_bytes: Option<u64>,
    metadata: BTreeMap<String, String>,
    overwrite: bool,
}

/// One file in the making.
struct Shard {
    /// Indices of its tensors, in the order of their data.
    members: Vec<usize>,
    header: Vec<u8>,
}

impl Writer {
    /// A writer of one file, which replaces nothing.
    pub fn new() -> Writer {
        Writer::default()
    }

    /// Starts a new shard where the tensors of one would exceed this many bytes. A larger tensor gets a shard of
    /// its own. For [`write_dir`](Self::write_dir) only.
    pub fn max_shard_bytes(mut self, bytes: u64) -> Writer {
        self.max_shard_bytes = Some(bytes);
        self
    }

    /// Stores free text in every file.
    pub fn metadata(mut self, key: &str, value: &str) -> Writer {
        self.metadata.insert(key.into(), value.into());
        self
    }

    /// Whether to replace a checkpoint that is already there.
    pub fn overwrite(mut self, yes: bool) -> Writer {
        self.overwrite = yes;
        self
    }

    /// Writes a checkpoint into a directory, which is created: [`SINGLE_FILE`], or numbered shards and
    /// [`INDEX_FILE`] if they are more than one.
    ///
    /// `fill` is called once for every tensor with its position in `tensors` and must write exactly its bytes,
    /// row-major and little-endian. Calls come in the order of the data: shards fill in the order of `tensors`, and
    /// within one wider types come first, so that data lie aligned.
    pub fn write_dir(
        &self,
        dir: &Path,
        tensors: &[TensorDecl],
        fill: impl FnMut(usize, &mut dyn Write) -> io::Result<()>,
    ) -> Result<Written, CheckpointError> {
        let bytes = check(dir, tensors)?;
        let (single, index) = (dir.join(SINGLE_FILE), dir.join(INDEX_FILE));
        if let Some(path) = [&single, &index].into_iter().find(|p| !self.overwrite && p.exists()) {
            return Err(CheckpointError::Exists { path: path.clone() });
        }
        fs::create_dir_all(dir).map_err(|e| CheckpointError::io(dir, "create it", e))?;
        let groups = split(&bytes, self.max_shard_bytes);
        if groups.len() == 1 {
            let written = self.write_files(tensors, &bytes, groups, vec![single], fill)?;
            remove_stale(&index)?;
            return Ok(written);
        }
        let names: Vec<String> =
            (1..=groups.len()).map(|i| format!("model-{i:05}-of-{:05}.safetensors", groups.len())).collect();
        let mut weight_map = BTreeMap::new();
        for (group, file) in groups.iter().zip(&names) {
            weight_map.extend(group.iter().map(|&i| (&tensors[i].name, file)));
        }
        let total: u64 = bytes.iter().sum();
        let text = json!({"metadata": {"total_size": total}, "weight_map": weight_map});
        let paths = names.iter().map(|n| dir.join(n)).collect();
        let written = self.write_files(tensors, &bytes, groups, paths, fill)?;
        let mut file = TempFile::create(&index)?;
        let done = serde_json::to_writer_pretty(&mut file.out, &text).map_err(io::Error::from);
        done.and_then(|()| file.out.write_all(b"\n"))
            .map_err(|e| CheckpointError::io(&index, "write it", e))?;
        file.finish()?.publish()?;
        remove_stale(&single)?;
        Ok(written)
    }

    /// Writes one safetensors file. See [`write_dir`](Self::write_dir) for `fill`.
    pub fn write_file(
        &self,
        path: &Path,
        tensors: &[TensorDecl],
        fill: impl FnMut(usize, &mut dyn Write) -> io::Result<()>,
    ) -> Result<Written, CheckpointError> {
        let bytes = check(path, tensors)?;
        if !self.overwrite && path.exists() {
            return Err(CheckpointError::Exists { path: path.into() });
        }
        self.write_files(tensors, &bytes, split(&bytes, None), vec![path.into()], fill)
    }

    fn write_files(
        &self,
        tensors: &[TensorDecl],
        bytes: &[u64],
        groups: Vec<Vec<usize>>,
        paths: Vec<PathBuf>,
        mut fill: impl FnMut(usize, &mut dyn Write) -> io::Result<()>,
    ) -> Result<Written, CheckpointError> {
        // All headers are made first: a list that cannot be written fails before any work is done.
        let mut shards = Vec::with_capacity(groups.len());
        for (group, path) in groups.into_iter().zip(&paths) {
            shards.push(self.plan(tensors, bytes, group, path)?);
        }
        let mut complete = Vec::with_capacity(paths.len());
        for (shard, path) in shards.iter().zip(&paths) {
            let mut file = TempFile::create(path)?;
            let begin = file.out.write_all(&shard.header);
            begin.map_err(|e| CheckpointError::io(path, "write it", e))?;
            for &i in &shard.members {
                let fail = |detail: String| {
                    let (path, tensor) = (path.clone(), clip(&tensors[i].name));
                    CheckpointError::Tensor { path, tensor, detail }
                };
                let mut sink = Sink { out: &mut file.out, left: bytes[i] };
                fill(i, &mut sink).map_err(|e| fail(e.to_string()))?;
                if sink.left > 0 {
                    let (made, all) = (bytes[i] - sink.left, bytes[i]);
                    return Err(fail(format!("{made} bytes were produced of the {all} it has")));
                }
            }
            complete.push(file.finish()?);
        }
        for file in complete {
            file.publish()?;
        }
        Ok(Written { files: paths, tensor_bytes: bytes.iter().sum() })
    }

    fn plan(
        &self,
        tensors: &[TensorDecl],
        bytes: &[u64],
        mut members: Vec<usize>,
        path: &Path,
    ) -> Result<Shard, CheckpointError> {
        members.sort_by_key(|&i| std::cmp::Reverse(tensors[i].dtype.bytes()));
        let mut header = Map::new();
        if !self.metadata.is_empty() {
            header.insert("__metadata__".into(), json!(self.metadata));
        }
        let mut at = 0;
        for &i in &members {
            let TensorDecl { name, dtype, shape } = &tensors[i];
            let end = at + bytes[i];
            let entry = json!({"dtype": dtype.name(), "shape": shape, "data_offsets": [at, end]});
            header.insert(name.clone(), entry);
            at = end;
        }
        let mut json = Value::Object(header).to_string().into_bytes();
        json.resize((json.len() + 8).next_multiple_of(64) - 8, b' ');
        if json.len() as u64 > MAX_HEADER_BYTES {
            let what = io::Error::other(format!("its header would need {} bytes", json.len()));
            return Err(CheckpointError::io(path, "write it", what));
        }
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.append(&mut json);
        Ok(Shard { members, header: bytes })
    }
}

/// Checks the names and shapes of a list; returns the bytes of each tensor.
fn check(path: &Path, tensors: &[TensorDecl]) -> Result<Vec<u64>, CheckpointError> {
    let mut seen = BTreeSet::new();
    let mut total = 0u64;
    let mut bytes = Vec::with_capacity(tensors.len());
    for tensor in tensors {
        let fail = |detail: &str| {
            let (path, tensor) = (path.to_path_buf(), clip(&tensor.name));
            CheckpointError::Tensor { path, tensor, detail: detail.into() }
        };
        if tensor.name == "__metadata__" {
            return Err(fail("this name is reserved for the file's free text"));
        }
        if !seen.insert(&tensor.name) {
            return Err(fail("the name occurs twice"));
        }
        if tensor.shape.len() > super::MAX_RANK {
            return Err(fail(&format!("it has more than {} extents", super::MAX_RANK)));
        }
        let size = tensor.dtype.bytes_of(&tensor.shape).and_then(|n| {
            total = total.checked_add(n).filter(|&t| t <= i64::MAX as u64)?;
            Some(n)
        });
        bytes.push(size.ok_or_else(|| fail("with it the checkpoint has more than 2^63 bytes"))?);
    }
    Ok(bytes)
}

/// Cuts the tensors into consecutive groups of at most `max` bytes; at least one group.
fn split(bytes: &[u64], max: Option<u64>) -> Vec<Vec<usize>> {
    let mut groups: Vec<Vec<usize>> = vec![Vec::new()];
    let mut filled = 0;
    for (i, &n) in bytes.iter().enumerate() {
        let last = groups.len() - 1;
        if filled + n > max.unwrap_or(u64::MAX) && !groups[last].is_empty() {
            groups.push(vec![i]);
            filled = n;
        } else {
            groups[last].push(i);
            filled += n;
        }
    }
    groups
}

/// Removes a file of an older checkpoint that would hide the new one.
fn remove_stale(path: &Path) -> Result<(), CheckpointError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(CheckpointError::io(path, "remove the older checkpoint", e))
        }
        _ => Ok(()),
    }
}

/// Passes on the bytes of one tensor and refuses more than it has.
struct Sink<'a> {
    out: &'a mut dyn Write,
    left: u64,
}

impl Write for Sink<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() as u64 > self.left {
            return Err(io::Error::other(format!(
                "more bytes were produced than it has: {} left, {} more came",
                self.left,
                bytes.len()
            )));
        }
        let n = self.out.write(bytes)?;
        self.left -= n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// A file under a temporary name beside its own, removed unless it is published.
struct TempFile {
    out: BufWriter<File>,
    pending: Pending,
}

struct Pending {
    temporary: PathBuf,
    path: PathBuf,
    published: bool,
}

impl TempFile {
    fn create(path: &Path) -> Result<TempFile, CheckpointError> {
        let mut name = std::ffi::OsString::from(".");
        name.push(path.file_name().unwrap_or_default());
        name.push(format!(".{}.tmp", std::process::id()));
        let temporary = path.with_file_name(name);
        let file = OpenOptions::new().write(true).create(true).truncate(true).open(&temporary);
        let file = file.map_err(|e| CheckpointError::io(&temporary, "create it", e))?;
        let pending = Pending { temporary, path: path.into(), published: false };
        Ok(TempFile { out: BufWriter::with_capacity(1 << 20, file), pending })
    }

    fn finish(mut self) -> Result<Pending, CheckpointError> {
        let done = self.out.flush().and_then(|()| self.out.get_ref().sync_all());
        done.map_err(|e| CheckpointError::io(&self.pending.path, "write it", e))?;
        Ok(self.pending)
    }
}

impl Pending {
    fn publish(mut self) -> Result<(), CheckpointError> {
        let done = fs::rename(&self.temporary, &self.path);
        done.map_err(|e| CheckpointError::io(&self.path, "put it into place", e))?;
        self.published = true;
        Ok(())
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if !self.published {
            // Nothing can be done about a failure here; the file has a name that says what it is.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}
