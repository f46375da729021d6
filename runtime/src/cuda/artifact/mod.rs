//! [`Artifact`]: kernels that were compiled ahead of time, in a folder.
//!
//! The folder has a file of PTX for each kernel, its machine code beside it where there was an assembler, and
//! [`MANIFEST`], which lists them with their hashes and says how each is called. What buffers there are and which kernel
//! runs when is not in it: that is made of the module as always, which takes milliseconds. So a kernel is found by a
//! hash of what it is made of, and an artifact of another model, or of another version, is noticed. Hashes tell of
//! accidents: an artifact is a program, to be run only if its maker is trusted.

mod error;
mod write;

pub use error::ArtifactError;
pub use write::{Assembler, Options, Written, write};

use eva_ir::entity::Entity;
use eva_ir::kernel::block::Launch;
use eva_ir::kernel::{Access, Kernel};
use eva_ptx::Ptx;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

/// The name of the file that lists the others.
pub const MANIFEST: &str = "manifest.json";

/// The version of the manifest's format.
const FORMAT: u32 = 1;

/// The version of eva, which decides what a kernel is made of.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What [`MANIFEST`] says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// The version of this format.
    pub format: u32,
    /// The version of eva that made the artifact.
    pub eva: String,
    /// The chip that the kernels are for.
    pub target: String,
    /// What made the machine code; nothing if there is none.
    pub assembler: Option<String>,
    /// What whoever made it wants to know again, such as the type of activations.
    pub notes: BTreeMap<String, String>,
    /// The kernels.
    pub kernels: Vec<Entry>,
}

/// A kernel of an artifact.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// The name, for people.
    pub name: String,
    /// The SHA-256 of what it is made of.
    pub kernel: String,
    /// The name of the entry point.
    pub entry: String,
    /// The entry point's parameters, in order.
    pub parameters: Vec<Parameter>,
    /// Threads of a block.
    pub threads: usize,
    /// Bytes of dynamic shared memory of a block.
    pub shared_bytes: usize,
    /// How many programs there are along each axis; those of a grid are their product.
    pub programs: Vec<String>,
    /// How programs come to blocks.
    pub blocks: Blocks,
    /// The PTX.
    pub ptx: FileEntry,
    /// The machine code, if there is some.
    pub cubin: Option<FileEntry>,
}

/// A parameter of an entry point.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Parameter {
    /// The 64-bit address of a tensor.
    Buffer {
        /// The tensor's name.
        name: String,
        /// The elements' type.
        dtype: String,
        /// Whether it is written.
        written: bool,
        /// The extents.
        shape: Vec<String>,
    },
    /// The value of an extent, a 64-bit integer.
    Extent {
        /// Its name.
        name: String,
    },
    /// A `CUtensorMap` of 128 bytes, by value.
    TensorMap {
        /// The number of the parameter with the tensor.
        buffer: usize,
        /// The tensor's axes that rows and columns of a box run along.
        axes: [usize; 2],
        /// Rows of a box.
        rows: usize,
        /// Elements of a row, fetched 128 bytes a box.
        cols: usize,
    },
}

/// How programs come to blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Blocks {
    /// Each block has this many programs.
    Programs(usize),
    /// At most this many blocks for each multiprocessor, which share the programs out.
    PerMultiprocessor(usize),
}

/// A file of an artifact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Its name, in the folder.
    pub file: String,
    /// The SHA-256 of its bytes.
    pub sha256: String,
}

/// Kernels that were compiled ahead of time.
#[derive(Debug)]
pub struct Artifact {
    folder: PathBuf,
    manifest: Manifest,
    /// Numbers of entries by what they are made of.
    found: HashMap<String, usize>,
}

impl Artifact {
    /// Reads the list of what is in `folder`. The files are read as they are asked for.
    pub fn open(folder: &Path) -> Result<Self, ArtifactError> {
        let path = folder.join(MANIFEST);
        let bytes = fs::read(&path).map_err(|e| ArtifactError::read(&path, e))?;
        let damaged = |what: String| ArtifactError::Damaged { path: path.clone(), what };
        // The version first: another one's manifest may look different.
        let versions: Versions = serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))?;
        if (versions.format, versions.eva.as_str()) != (FORMAT, VERSION) {
            let (path, want) = (folder.into(), VERSION.into());
            return Err(ArtifactError::OtherVersion { path, have: versions.eva, want });
        }
        let manifest: Manifest = serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))?;
        let chip = eva_ptx::Options::default().chip;
        if manifest.target != chip {
            return Err(ArtifactError::OtherTarget {
                path: folder.into(),
                have: manifest.target,
                want: chip,
            });
        }
        let files = manifest.kernels.iter().flat_map(|entry| [Some(&entry.ptx), entry.cubin.as_ref()]);
        if let Some(entry) = files.flatten().find(|entry| !is_plain(&entry.file)) {
            return Err(damaged(format!("`{}` is not the name of a file in this folder", entry.file)));
        }
        let found = manifest.kernels.iter().enumerate().map(|(i, entry)| (entry.kernel.clone(), i)).collect();
        Ok(Self { folder: folder.into(), manifest, found })
    }

    /// What is in it.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The PTX of a kernel of the block phase, and its machine code if the artifact has it.
    pub fn get(&self, kernel: &Kernel) -> Result<(Ptx, Option<Vec<u8>>), ArtifactError> {
        let none = || ArtifactError::NoKernel { path: self.folder.clone(), kernel: kernel.name.clone() };
        let entry = &self.manifest.kernels[*self.found.get(&hash_of(kernel)).ok_or_else(none)?];
        let path = self.folder.join(&entry.ptx.file);
        let text = String::from_utf8(self.read(&entry.ptx)?);
        let text = text.map_err(|e| ArtifactError::Damaged { path, what: e.to_string() })?;
        let code = entry.cubin.as_ref().map(|file| self.read(file)).transpose()?;
        let threads = 32 * kernel.block.as_ref().map_or(0, |block| block.warps);
        // As the kernel says it, which is what was hashed.
        let ptx = Ptx {
            name: kernel.name.clone(),
            entry: eva_ptx::entry_name(kernel),
            text,
            shared_bytes: eva_ptx::shared_bytes(kernel),
            threads,
            llvm: None,
        };
        Ok((ptx, code))
    }

    fn read(&self, entry: &FileEntry) -> Result<Vec<u8>, ArtifactError> {
        let path = self.folder.join(&entry.file);
        let bytes = fs::read(&path).map_err(|e| ArtifactError::read(&path, e))?;
        match sha256(&bytes) == entry.sha256 {
            true => Ok(bytes),
            false => Err(ArtifactError::Changed { path }),
        }
    }
}

/// What every version's manifest has.
#[derive(Deserialize)]
struct Versions {
    format: u32,
    eva: String,
}

/// Whether a name is that of a file, and of no folder.
fn is_plain(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    matches!((parts.next(), parts.next()), (Some(std::path::Component::Normal(part)), None) if part == name)
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What a kernel is found by. Its text for people leaves out what this must not.
fn hash_of(kernel: &Kernel) -> String {
    sha256(format!("{kernel:?}").as_bytes())
}

/// How a kernel is called, as the manifest says it; without files.
fn describe(kernel: &Kernel) -> Option<(Vec<Parameter>, Vec<String>, Blocks)> {
    let block = kernel.block.as_ref()?;
    let words = |dims: &[eva_ir::dim::Dim]| dims.iter().map(|dim| dim.to_string()).collect();
    let buffers = kernel.bufs.iter().map(|(_, buf)| Parameter::Buffer {
        name: buf.name.clone(),
        dtype: buf.dtype.to_string(),
        written: buf.access == Access::Write,
        shape: words(&buf.shape),
    });
    let extents = kernel.syms().into_iter().map(|sym| Parameter::Extent { name: sym.to_string() });
    let maps = block.maps.iter().map(|(_, map)| Parameter::TensorMap {
        buffer: map.buf.index(),
        axes: map.axes,
        rows: map.rows,
        cols: map.cols,
    });
    let programs = kernel.grid.iter().map(|axis| match axis.tile {
        1 => axis.extent.to_string(),
        tile => format!("ceil(({}) / {tile})", axis.extent),
    });
    let blocks = match block.launch {
        Launch::Each { per_block } => Blocks::Programs(per_block),
        Launch::Persistent { per_multiprocessor } => Blocks::PerMultiprocessor(per_multiprocessor),
    };
    Some((buffers.chain(extents).chain(maps).collect(), programs.collect(), blocks))
}
