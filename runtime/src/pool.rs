//! The threads that run kernels.

use crate::error::Error;
use crate::tensor::Bytes;
use eva_cranelift::KernelFn;
use std::num::NonZeroUsize;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, Ordering};

/// A fixed number of threads, each with private memory for kernels.
pub struct Pool {
    pool: rayon::ThreadPool,
    threads: NonZeroUsize,
    scratch: Vec<Mutex<Bytes>>,
}

/// Below this many operations in all, one thread is done before another has woken up.
const WORTH_SHARING: usize = 100_000;

/// The number of threads asked for: `EVA_THREADS`, or the machine's processors.
pub fn default_threads() -> usize {
    let asked = std::env::var("EVA_THREADS").ok().and_then(|n| n.parse().ok()).filter(|&n| n > 0);
    asked.or_else(|| std::thread::available_parallelism().ok().map(NonZeroUsize::get)).unwrap_or(1)
}

impl Pool {
    /// Starts the threads.
    pub fn new(threads: Option<usize>) -> Result<Self, Error> {
        let threads = NonZeroUsize::new(threads.unwrap_or_else(default_threads)).unwrap_or(NonZeroUsize::MIN);
        let builder =
            rayon::ThreadPoolBuilder::new().num_threads(threads.get()).thread_name(|i| format!("eva-{i}"));
        let pool =
            builder.build().map_err(|e| Error::Threads { threads: threads.get(), reason: e.to_string() })?;
        let scratch = (0..threads.get()).map(|_| Mutex::new(Bytes::zeroed(0))).collect();
        Ok(Self { pool, threads, scratch })
    }

    /// How many threads there are.
    pub fn threads(&self) -> NonZeroUsize {
        self.threads
    }

    /// Runs `f` on one of the threads, from where launches are shared with the others.
    pub fn enter(&self, f: impl FnOnce() + Send) {
        self.pool.install(f);
    }

    /// Runs every program of a kernel's grid, on several threads if there is enough to do.
    ///
    /// # Safety
    /// See [`KernelFn::call`]: the arguments fit the kernel, and nothing else uses what it writes.
    pub unsafe fn launch(
        &self,
        code: KernelFn<'_>,
        bufs: &[*mut u8],
        syms: &[i64],
        programs: i64,
        work: usize,
    ) {
        let scratch = code.scratch_bytes();
        let args = Args { bufs, syms };
        let total = work.saturating_mul(usize::try_from(programs).unwrap_or(0));
        let n = if total < WORTH_SHARING { 1 } else { self.threads.get().min(programs.max(1) as usize) };
        // Small pieces, handed out as threads become free.
        let piece = (programs / (n as i64 * 4)).max(1);
        let next = AtomicI64::new(0);
        let worker = |i: usize| {
            let args = &args;
            let mut memory = self.scratch[i].lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            if memory.len() < scratch {
                *memory = Bytes::zeroed(scratch);
            }
            loop {
                let first = next.fetch_add(piece, Ordering::Relaxed);
                if first >= programs {
                    return;
                }
                let last = (first + piece).min(programs);
                // SAFETY: the caller's; ranges of programs do not overlap, and each worker has its own memory.
                unsafe { code.call(args.bufs.as_ptr(), args.syms.as_ptr(), first, last, memory.as_ptr()) };
            }
        };
        if n == 1 {
            worker(0);
            return;
        }
        rayon::scope(|scope| {
            for i in 1..n {
                let worker = &worker;
                scope.spawn(move |_| worker(i));
            }
            worker(0);
        });
    }
}

/// A launch's arguments on their way to other threads.
struct Args<'a> {
    bufs: &'a [*mut u8],
    syms: &'a [i64],
}
// SAFETY: kernels of one launch write apart from each other, which the caller of `launch` answers for.
unsafe impl Sync for Args<'_> {}
