//! Checkpoints: safetensors files, mapped into memory, and how they are written.
//!
//! A file is checked completely before any tensor of it is handed out ([`parse_header`]), so a [`TensorRef`]
//! always has as many bytes as its shape and type say. The bytes of a tensor may lie at any address: files need
//! not align their data.

mod convert;
mod dtype;
mod error;
mod header;
mod index;
mod writer;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

pub use dtype::CheckpointDType;
pub use error::CheckpointError;
pub use header::{Extents, Header, HeaderError, MAX_HEADER_BYTES, MAX_RANK, TensorEntry, parse_header};
pub use index::parse_index;
pub use writer::{TensorDecl, Writer, Written};

use header::clip;

/// Name of a checkpoint in one file.
pub const SINGLE_FILE: &str = "model.safetensors";

/// Name of the index of a checkpoint in several files.
pub const INDEX_FILE: &str = "model.safetensors.index.json";

/// Longest index accepted, in bytes.
const MAX_INDEX_BYTES: u64 = 100_000_000;

/// An open checkpoint: every tensor's place in the mapped files.
///
/// The files must not be changed while they are open, as with any memory map.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    shards: Vec<Shard>,
    tensors: BTreeMap<String, Place>,
}

#[derive(Debug)]
struct Shard {
    path: PathBuf,
    map: Mmap,
    metadata: BTreeMap<String, String>,
}

#[derive(Debug)]
struct Place {
    shard: usize,
    dtype: CheckpointDType,
    shape: Vec<usize>,
    range: Range<usize>,
}

/// A tensor in a mapped file.
#[derive(Clone, Copy, Debug)]
pub struct TensorRef<'a> {
    /// Name in the checkpoint.
    pub name: &'a str,
    /// Element type.
    pub dtype: CheckpointDType,
    /// Extents, outermost first; empty for a scalar.
    pub shape: &'a [usize],
    /// The elements, row-major and little-endian, at any alignment; as long as shape and type say.
    pub bytes: &'a [u8],
    /// The file it lies in.
    pub file: &'a Path,
}

impl TensorRef<'_> {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.bytes.len() / self.dtype.bytes()
    }
}

impl Checkpoint {
    /// Opens the checkpoint in a directory ([`SINGLE_FILE`] if it is there, else [`INDEX_FILE`] and its shards), or
    /// one given `.safetensors` file, or one given index.
    ///
    /// Every file's header is checked; no tensor is read yet.
    pub fn open(path: &Path) -> Result<Checkpoint, CheckpointError> {
        let kind = stat(path)?;
        if kind.is_dir() {
            let (single, index) = (path.join(SINGLE_FILE), path.join(INDEX_FILE));
            if single.exists() {
                return Self::open_single(path, &single);
            }
            if index.exists() {
                return Self::open_sharded(path, &index);
            }
            return Err(CheckpointError::NoCheckpoint { path: path.into(), others: others(path) });
        }
        if path.extension().is_some_and(|e| e == "json") {
            Self::open_sharded(path, path)
        } else {
            Self::open_single(path, path)
        }
    }

    fn open_single(path: &Path, file: &Path) -> Result<Checkpoint, CheckpointError> {
        let (shard, header) = open_shard(file)?;
        let tensors = header.tensors.into_iter().map(|t| place(0, t)).collect();
        Ok(Checkpoint { path: path.into(), shards: vec![shard], tensors })
    }

    fn open_sharded(path: &Path, index: &Path) -> Result<Checkpoint, CheckpointError> {
        let map = read_index(index)?;
        let dir = index.parent().unwrap_or(Path::new(""));
        // The first tensor of every file, to name in messages.
        let mut files: BTreeMap<&str, &str> = BTreeMap::new();
        for (tensor, file) in &map {
            files.entry(file).or_insert(tensor);
        }
        for (file, tensor) in &files {
            let blame = |file| (index.to_path_buf(), clip(tensor), clip(file));
            if !index::is_plain_name(file) {
                let (path, tensor, file) = blame(file);
                return Err(CheckpointError::ShardPath { path, tensor, file });
            }
            if !dir.join(file).exists() {
                let (path, tensor, file) = blame(file);
                return Err(CheckpointError::ShardMissing { path, tensor, file });
            }
        }
        let names: Vec<&str> = files.into_keys().collect();
        let mut shards = Vec::with_capacity(names.len());
        let mut tensors: BTreeMap<String, Place> = BTreeMap::new();
        for (number, file) in names.iter().enumerate() {
            let (shard, header) = open_shard(&dir.join(file))?;
            shards.push(shard);
            for tensor in header.tensors {
                if let Some(earlier) = tensors.get(&tensor.name) {
                    return Err(CheckpointError::Duplicate {
                        path: index.into(),
                        tensor: clip(&tensor.name),
                        first: names[earlier.shard].into(),
                        second: (*file).into(),
                    });
                }
                tensors.extend([place(number, tensor)]);
            }
        }
        for (tensor, place) in &tensors {
            let (path, found) = (index.to_path_buf(), names[place.shard]);
            match map.get(tensor) {
                Some(expected) if expected == found => {}
                Some(expected) => {
                    let (tensor, expected, found) = (clip(tensor), expected.clone(), found.into());
                    return Err(CheckpointError::WrongShard { path, tensor, expected, found });
                }
                None => {
                    return Err(CheckpointError::Unlisted { path, tensor: clip(tensor), file: found.into() });
                }
            }
        }
        if let Some((tensor, file)) = map.iter().find(|(tensor, _)| !tensors.contains_key(*tensor)) {
            let (path, tensor, file) = (index.into(), clip(tensor), file.clone());
            return Err(CheckpointError::NotInShard { path, tensor, file });
        }
        Ok(Checkpoint { path: path.into(), shards, tensors })
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The mapped files.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.shards.iter().map(|s| s.path.as_path())
    }

    /// Number of tensors.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// Whether there is no tensor at all.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// Bytes of all tensors together.
    pub fn total_bytes(&self) -> u64 {
        self.tensors.values().map(|p| p.range.len() as u64).sum()
    }

    /// The names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The tensors, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = TensorRef<'_>> {
        self.tensors.iter().map(|(name, place)| self.tensor(name, place))
    }

    /// The tensor of this name.
    pub fn get(&self, name: &str) -> Option<TensorRef<'_>> {
        self.tensors.get_key_value(name).map(|(name, place)| self.tensor(name, place))
    }

    /// The free text of all files; of a key in several files, the first file's.
    pub fn metadata(&self) -> BTreeMap<&str, &str> {
        let mut all = BTreeMap::new();
        for (key, value) in self.shards.iter().flat_map(|s| &s.metadata) {
            all.entry(key.as_str()).or_insert(value.as_str());
        }
        all
    }

    fn tensor<'a>(&'a self, name: &'a str, place: &'a Place) -> TensorRef<'a> {
        let shard = &self.shards[place.shard];
        TensorRef {
            name,
            dtype: place.dtype,
            shape: &place.shape,
            bytes: &shard.map[place.range.clone()],
            file: &shard.path,
        }
    }

    /// Gives the memory pages that lie wholly inside a tensor back to the system, and returns how many bytes that
    /// is; 0 for an unknown name and on systems that cannot.
    ///
    /// For copying weights out without holding both copies. The tensor stays readable: its pages come back from
    /// the file when they are touched.
    pub fn release(&self, name: &str) -> usize {
        let Some(place) = self.tensors.get(name) else { return 0 };
        release_pages(&self.shards[place.shard].map, &place.range)
    }
}

#[cfg(unix)]
fn release_pages(map: &Mmap, range: &Range<usize>) -> usize {
    // SAFETY: sysconf only reads a constant of the system.
    let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096).max(1);
    // A map starts on a page, so offsets into it are as aligned as addresses.
    let (start, end) = (range.start.next_multiple_of(page), range.end / page * page);
    if start >= end {
        return 0;
    }
    // SAFETY: the map is read-only and backed by a file, so the pages that come back hold the same bytes, under the
    // condition (no one changes the file) under which it was mapped.
    let done = unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, end - start) };
    if done.is_ok() { end - start } else { 0 }
}

#[cfg(not(unix))]
fn release_pages(_: &Mmap, _: &Range<usize>) -> usize {
    0
}

fn place(shard: usize, entry: TensorEntry) -> (String, Place) {
    (entry.name, Place { shard, dtype: entry.dtype, shape: entry.shape, range: entry.range })
}

fn stat(path: &Path) -> Result<fs::Metadata, CheckpointError> {
    fs::metadata(path).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
            CheckpointError::NotFound { path: path.into() }
        }
        _ => CheckpointError::io(path, "look at it", e),
    })
}

/// Up to three names in `dir` that look like weights, for a message.
fn others(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().take(10_000);
    let names = entries.filter_map(|e| e.ok()?.file_name().into_string().ok());
    let mut names: Vec<_> = names.filter(|n| n.ends_with(".safetensors")).collect();
    names.sort();
    names.truncate(3);
    names
}

/// Opens a regular file; anything else (a pipe would block) is refused first.
fn open_file(path: &Path) -> Result<(File, u64), CheckpointError> {
    let kind = stat(path)?;
    if !kind.is_file() {
        return Err(CheckpointError::NotAFile { path: path.into() });
    }
    let file = File::open(path).map_err(|e| CheckpointError::io(path, "open it", e))?;
    Ok((file, kind.len()))
}

fn open_shard(path: &Path) -> Result<(Shard, Header), CheckpointError> {
    let (file, len) = open_file(path)?;
    let fail = |error| CheckpointError::Header { path: path.into(), error };
    if len == 0 {
        return Err(fail(HeaderError::Empty));
    }
    // SAFETY: the map is read-only; that nobody shortens or changes the file meanwhile is the contract of
    // `Checkpoint`.
    let map = unsafe { Mmap::map(&file) }.map_err(|e| CheckpointError::io(path, "map it into memory", e))?;
    let header = parse_header(&map, map.len() as u64).map_err(fail)?;
    let metadata = header.metadata.clone();
    Ok((Shard { path: path.into(), map, metadata }, header))
}

fn read_index(path: &Path) -> Result<BTreeMap<String, String>, CheckpointError> {
    let (_, len) = open_file(path)?;
    let fail = |detail| CheckpointError::Index { path: path.into(), detail };
    if len > MAX_INDEX_BYTES {
        return Err(fail(format!("it has {len} bytes, more than the {MAX_INDEX_BYTES} allowed")));
    }
    let json = fs::read(path).map_err(|e| CheckpointError::io(path, "read it", e))?;
    let map = parse_index(&json).map_err(fail)?;
    if map.is_empty() {
        return Err(fail("its weight_map names no tensor".into()));
    }
    Ok(map)
}
