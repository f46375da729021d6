//! [`Code`]: a module's kernels, loaded on a GPU.

use super::artifact::Artifact;
use super::cache::{Cache, Key};
use super::device::Gpu;
use super::error::CudaError;
use super::launch::{self, Launch};
use super::memory::Buffer;
use super::module::{LoadTimes, Loaded};
use super::tensor_map::{Encoded, TensorMap};
use crate::error::Error;
use eva_ir::dim::{Dim, Sym};
use eva_ir::kernel::Kernel;
use rayon::prelude::*;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// What a compilation for a GPU may be told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CudaOptions {
    /// Where compiled kernels are kept.
    pub cache: CacheFolder,
    /// The folder of an artifact that has the kernels; they are compiled if not given.
    pub artifact: Option<PathBuf>,
    /// Whether to wait for every kernel before the next, so that an error names the kernel that made it; if not said,
    /// `EVA_CUDA_SYNC` decides.
    pub wait: Option<bool>,
}

/// Where compiled kernels are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum CacheFolder {
    /// In the user's folder; see [`Cache::of_user`].
    #[default]
    User,
    /// In this one.
    At(PathBuf),
    /// Nowhere.
    None,
}

/// How long the kernels took, summed over the threads that made them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CudaTimes {
    /// From kernels to PTX; zero if that was in an artifact.
    pub ptx: Duration,
    /// From PTX to machine code, by the driver.
    pub assemble: Duration,
    /// Loading, the cache included.
    pub load: Duration,
    /// How many kernels were in the cache.
    pub cached: usize,
}

/// How many tensor maps are kept.
const MAPS: usize = 1 << 14;

/// Bytes of stack of the threads that make PTX: LLVM recurses.
const STACK: usize = 16 << 20;

/// The largest value that a kernel takes for a symbol.
const LARGEST_SYM: i64 = i32::MAX as i64;

/// A kernel's PTX: made before by this very program, or now.
fn ptx_of(kernel: &Kernel, options: &eva_ptx::Options, cache: &Cache) -> Result<eva_ptx::Ptx, Error> {
    let (text, options_text) = (kernel.to_string(), format!("{options:?}"));
    let key = Key::of(&[b"ptx", program().as_bytes(), options_text.as_bytes(), text.as_bytes()]);
    let make = || eva_ptx::compile(kernel, options).map(|ptx| ptx.text.into_bytes());
    let (text, _) = cache.get_or_make(key, make)?;
    let Ok(text) = String::from_utf8(text) else { return Ok(eva_ptx::compile(kernel, options)?) };
    Ok(eva_ptx::Ptx {
        name: kernel.name.clone(),
        entry: eva_ptx::entry_name(kernel),
        text,
        shared_bytes: eva_ptx::shared_bytes(kernel),
        threads: kernel.block.as_ref().map_or(0, |block| 32 * block.warps),
        llvm: None,
    })
}

/// Tells this program from others, whose backend may be another.
fn program() -> &'static str {
    static PROGRAM: OnceLock<String> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let file = std::env::current_exe().and_then(|path| path.metadata());
        let built = file.and_then(|file| Ok((file.len(), file.modified()?)));
        format!("{} {built:?}", env!("CARGO_PKG_VERSION"))
    })
}

/// Threads for work with LLVM.
pub(super) fn pool(threads: usize) -> Result<rayon::ThreadPool, Error> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).stack_size(STACK).build();
    pool.map_err(|e| Error::Threads { threads, reason: e.to_string() })
}

/// Kernels on a GPU, by their numbers in the plan.
pub(crate) struct Code {
    gpu: Arc<Gpu>,
    kernels: Vec<Loaded>,
    /// Each kernel's symbols, in the order of its parameters.
    syms: Vec<Vec<Sym>>,
    /// What a buffer without elements has for an address.
    zeros: Buffer,
    /// The maps made before.
    encoded: Mutex<HashMap<TensorMap, Encoded>>,
    wait: bool,
}

impl Code {
    /// Makes machine code of kernels of the block phase, on `threads` threads.
    pub(crate) fn compile(
        gpu: &Arc<Gpu>,
        kernels: &[&Kernel],
        options: &CudaOptions,
        threads: usize,
    ) -> Result<(Self, CudaTimes), Error> {
        let cache = match &options.cache {
            CacheFolder::User => Cache::of_user(),
            CacheFolder::At(folder) => Cache::at(folder),
            CacheFolder::None => Cache::none(),
        };
        let artifact = options.artifact.as_deref().map(Artifact::open).transpose()?;
        let backend = eva_ptx::Options::default();
        // One kernel is assembled while PTX of another is made.
        let make = |kernel: &&Kernel| -> Result<(Loaded, Duration, LoadTimes), Error> {
            if let Some(artifact) = &artifact {
                let (ptx, code) = artifact.get(kernel)?;
                let (loaded, times) = Loaded::new(gpu, &ptx, code.as_deref(), &cache)?;
                return Ok((loaded, Duration::ZERO, times));
            }
            let started = Instant::now();
            let ptx = ptx_of(kernel, &backend, &cache)?;
            let spent = started.elapsed();
            let (loaded, times) = Loaded::new(gpu, &ptx, None, &cache)?;
            Ok((loaded, spent, times))
        };
        let made: Vec<Result<_, Error>> = pool(threads)?.install(|| kernels.par_iter().map(make).collect());
        let (mut times, mut refused) = (CudaTimes::default(), 0);
        let mut all = Vec::with_capacity(kernels.len());
        for made in made {
            let (loaded, ptx, load) = made?;
            times.ptx += ptx;
            times.assemble += load.assemble;
            times.load += load.load;
            times.cached += usize::from(load.cached);
            refused += usize::from(load.refused);
            tracing::debug!(
                kernel = loaded.name,
                registers = loaded.registers,
                spilled = loaded.spilled,
                shared = loaded.shared,
                threads = loaded.threads,
                resident = loaded.resident,
                cached = load.cached,
                "kernel"
            );
            all.push(loaded);
        }
        if refused > 0 {
            tracing::warn!(
                "the driver does not take the artifact's machine code of {refused} kernels, so it compiles their PTX; an \
                 artifact made on this machine, or with an older `ptxas`, would start faster"
            );
        }
        cache.trim();
        let asked = || std::env::var("EVA_CUDA_SYNC").is_ok_and(|value| !value.is_empty() && value != "0");
        let code = Self {
            gpu: gpu.clone(),
            kernels: all,
            syms: kernels.iter().map(|kernel| kernel.syms()).collect(),
            zeros: gpu.zeroed(256, "an empty buffer")?,
            encoded: Mutex::default(),
            wait: options.wait.unwrap_or_else(asked),
        };
        Ok((code, times))
    }

    /// The GPU.
    pub(crate) fn gpu(&self) -> &Arc<Gpu> {
        &self.gpu
    }

    /// The kernels.
    pub(crate) fn kernels(&self) -> &[Loaded] {
        &self.kernels
    }

    /// Whether to wait for every kernel.
    pub(super) fn waits(&self) -> bool {
        self.wait
    }

    /// A launch of kernel `number`, which is `kernel`, with its arguments; `None` if there is nothing to do.
    pub(super) fn prepare(
        &self,
        number: usize,
        kernel: &Kernel,
        bufs: &[*mut u8],
        syms: &[i64],
        programs: i64,
    ) -> Result<Option<Launch>, Error> {
        let loaded = &self.kernels[number];
        let internal = |what: String| Error::Internal(format!("kernel `{}`: {what}", kernel.name));
        let too_large = |what: String| Error::TooLarge(format!("{what} of `{}`", kernel.name));
        let block = kernel.block.as_ref().ok_or_else(|| internal("it is not of the block phase".into()))?;
        let multiprocessors = self.gpu.properties.multiprocessors;
        let blocks = launch::blocks(block.launch, programs, multiprocessors, loaded.resident);
        let blocks = blocks.ok_or_else(|| too_large("the grid".into()))?;
        if blocks == 0 {
            return Ok(None);
        }
        let names = &self.syms[number];
        if let Some((sym, n)) = names.iter().zip(syms).find(|(_, n)| !(0..=LARGEST_SYM).contains(*n)) {
            return Err(too_large(format!("`{sym}` = {n}")));
        }
        let value = |sym: &Sym| Some(syms[names.iter().position(|name| name == sym)?]);
        let eval = |dim: &Dim| dim.eval(&value);
        let mut maps = Vec::with_capacity(block.maps.len());
        for (_, map) in block.maps.iter() {
            let buf = &kernel.bufs[map.buf];
            let base = bufs[eva_ir::entity::Entity::index(map.buf)] as u64;
            let made = TensorMap::new(map, buf, base, &eval);
            let made = made.map_err(|e| internal(format!("buffer `{}`: {e}", buf.name)))?;
            maps.push(self.encode(made.unwrap_or_else(|| TensorMap::empty(map, buf, self.zeros.address())))?);
        }
        let words = bufs.iter().map(|&buf| buf as u64).chain(syms.iter().map(|&n| n as u64)).collect();
        Ok(Some(Launch { kernel: number, blocks, words, maps }))
    }

    /// The map as kernels take it, made once.
    fn encode(&self, map: TensorMap) -> Result<Encoded, CudaError> {
        let mut encoded = self.encoded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(&encoded) = encoded.get(&map) {
            return Ok(encoded);
        }
        self.gpu.bind()?;
        let made = map.encode()?;
        // Lengths that grow make new maps; the old ones are of no use any more.
        if encoded.len() >= MAPS {
            encoded.clear();
        }
        encoded.insert(map, made);
        Ok(made)
    }
}
