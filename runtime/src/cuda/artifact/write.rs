//! Making an artifact: PTX of every kernel, and machine code where something can make it.

use super::{
    ArtifactError, Entry, FORMAT, FileEntry, MANIFEST, Manifest, VERSION, describe, hash_of, sha256,
};
use crate::cuda::code::pool;
use crate::cuda::module;
use crate::error::Error;
use eva_ir::kernel::Kernel;
use eva_ptx::Ptx;
use rayon::prelude::*;
use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// How an artifact is made.
#[derive(Debug, Default)]
pub struct Options {
    /// How many threads compile; one if 0.
    pub threads: usize,
    /// Whether to write each kernel's LLVM IR, too, to a file that ends in `.ll`.
    pub llvm: bool,
    /// Whether to write each kernel's text, too, to a file that ends in `.kernel`.
    pub kernels: bool,
    /// What makes machine code; there is none if not given.
    pub assembler: Option<Assembler>,
    /// What [`Manifest::notes`] is to say.
    pub notes: BTreeMap<String, String>,
}

/// What was written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// How many kernels.
    pub kernels: usize,
    /// Bytes of PTX.
    pub ptx_bytes: usize,
    /// Bytes of machine code.
    pub code_bytes: usize,
    /// The files, in the kernels' order; the manifest is the last.
    pub files: Vec<PathBuf>,
}

/// `ptxas`, NVIDIA's assembler. (The driver has one, too, but gives away only code that other modules could be linked
/// to, which is slow where products or roles are.)
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assembler {
    /// Where it is.
    pub program: PathBuf,
    /// Its version, as it says it.
    pub version: String,
}

impl Assembler {
    /// The one that `EVA_PTXAS` names or `PATH` has, if there is one. It is an error if it cannot be run.
    pub fn find() -> Result<Option<Self>, ArtifactError> {
        let named = std::env::var_os("EVA_PTXAS").filter(|name| !name.is_empty()).map(PathBuf::from);
        let in_path = || {
            let path = std::env::var_os("PATH")?;
            std::env::split_paths(&path).map(|folder| folder.join("ptxas")).find(|file| file.is_file())
        };
        let Some(program) = named.or_else(in_path) else { return Ok(None) };
        let failed = |reason: String| ArtifactError::NoPtxas { path: program.clone(), reason };
        let output = Command::new(&program).arg("--version").output().map_err(|e| failed(e.to_string()))?;
        let said = String::from_utf8_lossy(&output.stdout);
        // As in "Cuda compilation tools, release 13.0, V13.0.88".
        let version = said.split_whitespace().find_map(|word| word.strip_prefix('V'));
        let version = version.ok_or_else(|| failed("it does not say its version".into()))?.to_string();
        Ok(Some(Self { program, version }))
    }

    /// What it is called in the manifest.
    pub fn name(&self) -> String {
        format!("ptxas {}", self.version)
    }

    /// Machine code of the PTX, which is in `file` already.
    fn assemble(&self, ptx: &Ptx, file: &Path) -> Result<Vec<u8>, ArtifactError> {
        let path = self.program.clone();
        let made = file.with_extension("part");
        let mut command = Command::new(&self.program);
        command.arg(format!("-arch={}", eva_ptx::Options::default().chip));
        command.args(["-v", "-o"]).args([made.as_path(), file]);
        let output = match command.output() {
            Ok(output) => output,
            Err(e) => return Err(ArtifactError::NoPtxas { path, reason: e.to_string() }),
        };
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).trim().to_string();
        if !output.status.success() {
            return Err(ArtifactError::Ptxas { path, kernel: ptx.name.clone(), said });
        }
        module::report(&ptx.name, &said);
        let code = fs::read(&made).map_err(|e| ArtifactError::read(&made, e))?;
        fs::remove_file(&made).map_err(|e| ArtifactError::write(&made, e))?;
        Ok(code)
    }
}

/// Makes an artifact of kernels of the block phase in `folder`, which must be empty, or is made. `done` is told of each
/// kernel that is. If it fails, what was written is removed.
pub fn write(
    folder: &Path,
    kernels: &[&Kernel],
    options: &Options,
    done: &(dyn Fn() + Sync),
) -> Result<Written, Error> {
    fs::create_dir_all(folder).map_err(|e| ArtifactError::write(folder, e))?;
    let mut there = fs::read_dir(folder).map_err(|e| ArtifactError::read(folder, e))?;
    if there.next().is_some() {
        return Err(ArtifactError::NotEmpty { path: folder.into() }.into());
    }
    let written = fill(folder, kernels, options, done);
    if written.is_err() {
        // The folder was empty: everything in it is from here. If it cannot be removed, the next attempt says so.
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let _ = fs::remove_file(entry.path());
        }
    }
    written
}

fn fill(
    folder: &Path,
    kernels: &[&Kernel],
    options: &Options,
    done: &(dyn Fn() + Sync),
) -> Result<Written, Error> {
    let mut seen = HashSet::new();
    let kernels: Vec<(&Kernel, String)> = kernels
        .iter()
        .map(|&kernel| (kernel, hash_of(kernel)))
        .filter(|(_, hash)| seen.insert(hash.clone()))
        .collect();
    let make = |(number, (kernel, hash)): (usize, &(&Kernel, String))| {
        let made = one(folder, number, kernel, hash, options);
        done();
        made
    };
    let made: Vec<Result<Made, Error>> =
        pool(options.threads.max(1))?.install(|| kernels.par_iter().enumerate().map(make).collect());
    let (mut written, mut entries) = (Written::default(), Vec::new());
    for made in made {
        let made = made?;
        written.kernels += 1;
        written.ptx_bytes += made.ptx_bytes;
        written.code_bytes += made.code_bytes;
        written.files.extend(made.files);
        entries.push(made.entry);
    }
    let manifest = Manifest {
        format: FORMAT,
        eva: VERSION.into(),
        target: eva_ptx::Options::default().chip,
        assembler: options.assembler.as_ref().map(Assembler::name),
        notes: options.notes.clone(),
        kernels: entries,
    };
    let text = serde_json::to_string_pretty(&manifest);
    let text = text.map_err(|e| Error::Internal(format!("the manifest is no JSON: {e}")))?;
    put(folder, MANIFEST, format!("{text}\n").as_bytes(), &mut written.files)?;
    Ok(written)
}

/// What became of a kernel.
struct Made {
    entry: Entry,
    ptx_bytes: usize,
    code_bytes: usize,
    files: Vec<PathBuf>,
}

fn one(folder: &Path, number: usize, kernel: &Kernel, hash: &str, options: &Options) -> Result<Made, Error> {
    let backend = eva_ptx::Options { keep_llvm: options.llvm, ..eva_ptx::Options::default() };
    let ptx = eva_ptx::compile(kernel, &backend)?;
    let internal = || Error::Internal(format!("kernel `{}` is not of the block phase", kernel.name));
    let (parameters, programs, blocks) = describe(kernel).ok_or_else(internal)?;
    let mut files = Vec::new();
    let name = |ending: &str| format!("{number:03}-{}.{ending}", short(&kernel.name));
    let entry = |ending: &str, bytes: &[u8]| FileEntry { file: name(ending), sha256: sha256(bytes) };
    if options.kernels {
        put(folder, &name("kernel"), format!("{kernel}\n").as_bytes(), &mut files)?;
    }
    if let Some(llvm) = &ptx.llvm {
        put(folder, &name("ll"), llvm.as_bytes(), &mut files)?;
    }
    put(folder, &name("ptx"), ptx.text.as_bytes(), &mut files)?;
    let assemble = |assembler: &Assembler| assembler.assemble(&ptx, &folder.join(name("ptx")));
    let code = options.assembler.as_ref().map(assemble).transpose()?;
    if let Some(code) = &code {
        put(folder, &name("cubin"), code, &mut files)?;
    }
    let entry = Entry {
        name: kernel.name.clone(),
        kernel: hash.into(),
        entry: ptx.entry.clone(),
        parameters,
        threads: ptx.threads,
        shared_bytes: ptx.shared_bytes,
        programs,
        blocks,
        ptx: entry("ptx", ptx.text.as_bytes()),
        cubin: code.as_ref().map(|code| entry("cubin", code)),
    };
    Ok(Made { entry, ptx_bytes: ptx.text.len(), code_bytes: code.map_or(0, |code| code.len()), files })
}

/// Writes a file, and notes that.
fn put(folder: &Path, name: &str, bytes: &[u8], files: &mut Vec<PathBuf>) -> Result<(), ArtifactError> {
    let path = folder.join(name);
    fs::write(&path, bytes).map_err(|e| ArtifactError::write(&path, e))?;
    files.push(path);
    Ok(())
}

/// A kernel's name as part of a file's.
fn short(name: &str) -> String {
    let valid = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' };
    name.chars().take(80).map(valid).collect()
}
