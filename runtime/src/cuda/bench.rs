//! How long things take on a GPU, by its own clock.
//!
//! A card under load lowers its clock, so a figure says little without another that was taken in turns with it. Data
//! that is all zeros runs faster than real data, and what fits the cache faster than what does not: hence random
//! numbers, and several sets of buffers that take turns.

use super::device::Event;
use super::graph::Graph;
use super::launch::Launch;
use super::{Buffer, CudaError, Gpu, Loaded};
use crate::bind::{last_element, programs};
use crate::error::Error;
use crate::exec::{Code, Executable};
use crate::session::Session;
use crate::states::States;
use crate::tensor::Tensor;
use eva_ir::dim::{Dim, Sym};
use eva_ir::entity::Entity;
use eva_ir::kernel::{Access, BufData, Kernel};
use eva_ir::types::DType;
use eva_passes::plan::KernelId;
use half::{bf16, f16};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// How long each of several runs took, the shortest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timing(Vec<Duration>);

impl Timing {
    /// The runs' times.
    pub fn new(mut runs: Vec<Duration>) -> Self {
        runs.sort();
        Self(runs)
    }

    /// The middle one; zero if there were no runs. Of an even number, the later of the two in the middle.
    pub fn median(&self) -> Duration {
        self.0.get(self.0.len() / 2).copied().unwrap_or_default()
    }

    /// All, the shortest first.
    pub fn runs(&self) -> &[Duration] {
        &self.0
    }
}

/// Times `n` runs of what `run` starts on a GPU, one after the other.
pub fn runs<E: From<CudaError>>(
    gpu: &Arc<Gpu>,
    n: usize,
    mut run: impl FnMut() -> Result<(), E>,
) -> Result<Timing, E> {
    let mut moments = Vec::with_capacity(n);
    for _ in 0..n {
        let before = Event::record(gpu)?;
        run()?;
        moments.push((before, Event::record(gpu)?));
    }
    let times: Result<Vec<Duration>, CudaError> =
        moments.iter().map(|(before, after)| after.since(before)).collect();
    Ok(Timing::new(times?))
}

/// How a kernel is timed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelOptions {
    /// Sets of buffers that take turns; enough of them do not fit the cache together.
    pub sets: usize,
    /// Launches of a run, started as one graph.
    pub launches: usize,
    /// Runs that are timed; one before them is not.
    pub runs: usize,
    /// A rest before each run, in which the card cools.
    pub rest: Duration,
}

impl Default for KernelOptions {
    fn default() -> Self {
        Self { sets: 2, launches: 20, runs: 7, rest: Duration::from_millis(30) }
    }
}

/// Times launches of one kernel of an executable for a GPU; each run's time is that of one launch of it. `sizes` has the
/// values of the kernel's extents. `fill` gives a buffer that is read its bytes, by the set's number, the buffer and how
/// many elements it has; see [`random`]. What is written starts as NaN.
pub fn kernel(
    exe: &Executable,
    kernel: KernelId,
    sizes: &HashMap<Sym, i64>,
    options: &KernelOptions,
    fill: &mut dyn FnMut(usize, &BufData, usize) -> Vec<u8>,
) -> Result<Timing, Error> {
    let internal = |what: &str| Error::Internal(format!("timing a kernel: {what}"));
    let Code::Cuda(code) = &exe.code else { return Err(internal("it is not on a GPU")) };
    let ir: &Kernel = &exe.plan().kernels[kernel];
    let gpu = code.gpu();
    let known = |dim: &Dim| {
        let value = dim.eval(&|sym| sizes.get(sym).copied());
        value.ok_or_else(|| internal(&format!("the extent {dim} has no value")))
    };
    let syms: Vec<i64> =
        ir.syms().iter().map(|sym| known(&Dim::sym(sym.as_str()))).collect::<Result<_, _>>()?;
    let programs = programs(ir, &known)?;

    let mut kept: Vec<Buffer> = Vec::new();
    let mut launches = Vec::new();
    for set in 0..options.sets.max(1) {
        let first = kept.len();
        for (_, buf) in ir.bufs.iter() {
            let last = last_element(buf, &known)?;
            let elements = last.map_or(0, |last| usize::try_from(last).unwrap_or(0) + 1);
            let bytes = elements.saturating_mul(buf.dtype.bytes() as usize);
            let buffer = gpu.allocate(bytes, &format!("the buffer `{}`", buf.name))?;
            match buf.access {
                Access::Write => buffer.fill(0xff)?,
                Access::Read => buffer.write(0, &fill(set, buf, elements))?,
            }
            kept.push(buffer);
        }
        let addresses: Vec<*mut u8> = kept[first..].iter().map(super::address).collect();
        let launch = code.prepare(kernel.index(), ir, &addresses, &syms, programs)?;
        launches.push(launch.ok_or_else(|| internal("there is nothing to do"))?);
    }
    let n = options.launches.max(1);
    let all: Vec<_> = launches.iter().cycle().take(n).cloned().collect();
    let graph = Graph::new(gpu, code.kernels(), &all)?;
    let mut warm = false;
    let mut times = Vec::with_capacity(options.runs);
    while times.len() < options.runs.max(1) {
        gpu.synchronize()?;
        std::thread::sleep(options.rest);
        let before = Event::record(gpu)?;
        // SAFETY: the buffers are as long as the kernel reaches, and live until it is done.
        unsafe { graph.start() }?;
        let spent = Event::record(gpu)?.since(&before)?;
        if std::mem::replace(&mut warm, true) {
            times.push(spent / u32::try_from(n).unwrap_or(u32::MAX));
        }
    }
    Ok(Timing::new(times))
}

/// A call that is timed.
pub struct Timed<'a> {
    /// What is called.
    pub session: &'a mut Session,
    /// See [`Session::run`].
    pub inputs: &'a [(&'a str, &'a Tensor)],
    /// See [`Session::run`].
    pub states: Option<&'a mut States>,
    /// See [`Session::run`].
    pub sizes: &'a [(&'a str, usize)],
}

impl Timed<'_> {
    /// Makes the call, which puts the inputs on the GPU.
    fn start(&mut self) -> Result<(), Error> {
        self.session.start(self.inputs, self.states.as_deref_mut(), self.sizes)
    }

    /// What the last call started.
    fn launched(&self) -> Result<Launched<'_>, Error> {
        let on_cpu = || Error::Internal("timing a call: it is not on a GPU".into());
        let code = match &self.session.executable().code {
            Code::Cuda(code) => code,
            Code::Cpu(_) => return Err(on_cpu()),
        };
        let calls = self.session.calls().ok_or_else(on_cpu)?;
        Ok(Launched { gpu: code.gpu(), kernels: code.kernels(), launches: calls.launches() })
    }
}

/// The launches of a call.
struct Launched<'a> {
    gpu: &'a Arc<Gpu>,
    kernels: &'a [Loaded],
    launches: &'a [Launch],
}

/// How calls are timed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallOptions {
    /// How long a run takes, about: as many calls as fit, all calls equally often, started as one graph.
    pub run: Duration,
    /// The most launches of a run.
    pub launches: usize,
    /// Runs that are timed; one before them is not.
    pub runs: usize,
    /// A rest before each run, in which the card cools.
    pub rest: Duration,
}

impl Default for CallOptions {
    fn default() -> Self {
        Self { run: Duration::from_millis(25), launches: 4096, runs: 7, rest: Duration::from_millis(30) }
    }
}

/// Times calls that take turns, which are of sessions on one GPU and of one executable. Each run's time is that of one
/// call of it; with how many calls a run had.
pub fn calls(calls: &mut [Timed], options: &CallOptions) -> Result<(Timing, usize), Error> {
    let mut all: Vec<Launch> = Vec::new();
    let alike = |pair: &[Timed]| Arc::ptr_eq(pair[0].session.executable(), pair[1].session.executable());
    if !calls.windows(2).all(alike) {
        return Err(Error::Internal("timing calls: they are of several executables".into()));
    }
    for call in calls.iter_mut() {
        call.start()?;
        all.extend_from_slice(call.launched()?.launches);
    }
    let (Some(first), false) = (calls.first(), all.is_empty()) else {
        return Err(Error::Internal("timing calls: there is nothing to do".into()));
    };
    let Launched { gpu, kernels, .. } = first.launched()?;
    let time = |graph: &Graph| -> Result<Duration, Error> {
        let before = Event::record(gpu)?;
        // SAFETY: the calls were started with the same buffers, which their sessions and states keep.
        unsafe { graph.start() }?;
        Ok(Event::record(gpu)?.since(&before)?)
    };
    let one = Graph::new(gpu, kernels, &all)?;
    time(&one)?;
    let once = time(&one)?.as_secs_f64().max(1e-6);
    let rounds = (options.run.as_secs_f64() / once).ceil() as usize;
    let rounds = rounds.min(options.launches / all.len()).max(1);
    let many: Vec<Launch> = (0..rounds).flat_map(|_| all.iter().cloned()).collect();
    let graph = if rounds == 1 { one } else { Graph::new(gpu, kernels, &many)? };
    time(&graph)?;
    let count = rounds * calls.len();
    let mut times = Vec::with_capacity(options.runs);
    for _ in 0..options.runs.max(1) {
        gpu.synchronize()?;
        std::thread::sleep(options.rest);
        times.push(time(&graph)?.div_f64(count as f64));
    }
    Ok((Timing::new(times), count))
}

/// The launches of one call in their order: each kernel's number in the plan, and how long it took, the middle one of
/// several runs. A launch is repeated in place for this, so that what it reads was just read before.
pub fn launches(call: &mut Timed, options: &CallOptions) -> Result<Vec<(KernelId, Duration)>, Error> {
    call.start()?;
    let Launched { gpu, kernels, launches } = call.launched()?;
    let mut spent = Vec::with_capacity(launches.len());
    // In the order of the call, since a launch's operands may be gone once later ones have run.
    for launch in launches {
        let repeated = vec![launch.clone(); LAUNCHES];
        let graph = Graph::new(gpu, kernels, &repeated)?;
        let timing = runs(gpu, options.runs.max(1), || {
            // SAFETY: the call was started with the same buffers, which its session and states keep.
            unsafe { graph.start() }
        })?;
        spent.push((KernelId::new(launch.kernel), timing.median() / LAUNCHES as u32));
    }
    Ok(spent)
}

/// How often a launch is repeated.
const LAUNCHES: usize = 8;

/// How long the driver takes to copy `bytes` bytes to another place of the GPU's memory.
pub fn copy(gpu: &Arc<Gpu>, bytes: usize, options: &CallOptions) -> Result<Timing, CudaError> {
    let buffer = gpu.allocate(2 * bytes, "what is copied")?;
    let mut done = bytes.min(32 << 20);
    buffer.write(0, &random(DType::Bf16, done / 2, 1))?;
    while done < 2 * bytes {
        let n = done.min(2 * bytes - done);
        buffer.copy_within(0, done, n)?;
        done += n;
    }
    let mut times = Vec::with_capacity(options.runs);
    for _ in 0..options.runs.max(1) {
        gpu.synchronize()?;
        std::thread::sleep(options.rest);
        let before = Event::record(gpu)?;
        for _ in 0..LAUNCHES {
            buffer.copy_within(0, bytes, bytes)?;
        }
        times.push(Event::record(gpu)?.since(&before)? / LAUNCHES as u32);
    }
    Ok(Timing::new(times))
}

/// Numbers for a buffer of floats, evenly from -1 to 1; of integers, zeros. The same for the same seed.
pub fn random(dtype: DType, elements: usize, seed: u64) -> Vec<u8> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    // 24 bits of an `f32`'s fraction.
    let mut number = || (random.next_u32() >> 8) as f32 / (1 << 23) as f32 - 1.0;
    match dtype {
        DType::F32 => (0..elements).flat_map(|_| number().to_le_bytes()).collect(),
        // The lower 13 bits are those that it does not have.
        DType::Tf32 => {
            (0..elements).flat_map(|_| (number().to_bits() & (u32::MAX << 13)).to_le_bytes()).collect()
        }
        DType::F64 => (0..elements).flat_map(|_| f64::from(number()).to_le_bytes()).collect(),
        DType::Bf16 => (0..elements).flat_map(|_| bf16::from_f32(number()).to_le_bytes()).collect(),
        DType::F16 => (0..elements).flat_map(|_| f16::from_f32(number()).to_le_bytes()).collect(),
        // Bits of numbers whose magnitude is below one.
        DType::F8E4M3 | DType::F8E5M2 => {
            let one = if dtype == DType::F8E4M3 { 0x38 } else { 0x3c };
            let number = |bits: u32| ((bits >> 8) % one) as u8 | (bits as u8 & 0x80);
            (0..elements).map(|_| number(random.next_u32())).collect()
        }
        // Exponents of numbers around one.
        DType::E8M0 => (0..elements).map(|_| 120 + (random.next_u32() & 7) as u8).collect(),
        DType::I32 | DType::I64 => vec![0; elements * dtype.bytes() as usize],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        let timing = |ms: &[u64]| Timing::new(ms.iter().map(|&ms| Duration::from_millis(ms)).collect());
        assert_eq!(timing(&[7, 1, 5]).median(), Duration::from_millis(5));
        assert_eq!(timing(&[7, 1, 5, 2]).median(), Duration::from_millis(5));
        assert_eq!(timing(&[3]).median(), Duration::from_millis(3));
        assert_eq!(timing(&[]).median(), Duration::ZERO);
        assert_eq!(timing(&[7, 1]).runs()[0], Duration::from_millis(1));
    }

    #[test]
    fn random_numbers_are_numbers() {
        for dtype in [DType::F32, DType::F64, DType::Bf16, DType::F16] {
            let bytes = random(dtype, 101, 3);
            let numbers = crate::tensor::numbers(dtype, &bytes);
            assert_eq!(numbers.len(), 101);
            assert!(
                numbers.iter().all(|x| x.abs() <= 1.0) && numbers.iter().any(|x| x.abs() > 0.5),
                "{dtype}"
            );
            assert!(bytes == random(dtype, 101, 3) && bytes != random(dtype, 101, 4));
        }
        assert!(random(DType::F8E4M3, 999, 1).iter().all(|byte| byte & 0x7f < 0x38), "at most 1");
        assert!(random(DType::F8E5M2, 999, 1).iter().all(|byte| byte & 0x7f < 0x3c), "at most 1");
        assert_eq!(random(DType::I32, 5, 1), [0; 20]);
    }
}
