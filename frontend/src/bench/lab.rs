//! [`Lab`]: where cases run: the device, random numbers, and what was compiled for cases before.

use super::layer::Kit;
use super::numbers::{Elements, Numbers};
use super::{BenchError, Case, Measured, Options};
use eva_ir::text;
use eva_ir::types::DType;
use eva_passes::Form;
use eva_runtime::{CompileOptions, Device, Executable, Session, States, Tensor, Weights};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Where cases run.
pub struct Lab {
    /// How to measure.
    pub options: Options,
    numbers: Arc<Numbers>,
    /// By the forms of attention and the modules' texts.
    compiled: HashMap<String, Arc<Executable>>,
    /// What the cases of a whole layer share.
    pub(super) kit: Option<Box<Kit>>,
    /// How many GB/s the device's own copy reads and writes, once that is known.
    copied: Option<f64>,
    #[cfg(feature = "cuda")]
    gpu: Option<Arc<eva_runtime::cuda::Gpu>>,
}

/// A function that a case calls, with operands that are all weights, and so stay on the device.
pub(super) struct Program<'a> {
    /// The module.
    pub text: &'a str,
    /// The function.
    pub function: &'a str,
    /// Every parameter.
    pub operands: &'a [Operand<'a>],
    /// Floating-point operations of a call.
    pub flops: f64,
    /// Bytes that a call must read and write at least.
    pub bytes: f64,
    /// The largest error that is right.
    pub limit: f64,
}

/// A parameter's name, type and contents.
pub(super) struct Operand<'a> {
    pub name: &'a str,
    pub dtype: DType,
    pub shape: &'a [usize],
    pub fill: Fill<'a>,
}

/// What an operand holds.
#[derive(Clone, Copy)]
pub(super) enum Fill<'a> {
    /// Normal numbers times two to this power.
    Normal(i32),
    /// The magnitudes of such.
    Positive(i32),
    /// These integers.
    Ints(&'a [i32]),
}

/// A call, to be timed.
pub(super) struct Call<'a> {
    pub session: &'a mut Session,
    pub inputs: &'a [(&'a str, &'a Tensor)],
    pub states: Option<&'a mut States>,
    pub sizes: &'a [(&'a str, usize)],
}

/// How many tensors of random numbers a set has at most.
const OPERANDS: usize = 64;

impl Lab {
    /// Opens the device.
    pub fn new(options: Options) -> Result<Self, BenchError> {
        let period = if options.full { (1 << 25) - 128 } else { (1 << 20) - 128 };
        #[cfg(feature = "cuda")]
        let gpu = match options.device {
            Device::Cpu => None,
            Device::Cuda(n) => Some(eva_runtime::cuda::Gpu::open(n).map_err(eva_runtime::Error::from)?),
        };
        #[cfg(not(feature = "cuda"))]
        if let device @ Device::Cuda(_) = options.device {
            return Err(eva_runtime::Error::NoSuchDevice(device).into());
        }
        Ok(Self {
            options,
            numbers: Arc::new(Numbers::new(period)),
            compiled: HashMap::new(),
            kit: None,
            copied: None,
            #[cfg(feature = "cuda")]
            gpu,
        })
    }

    /// What the cases run on, for people.
    pub fn device_name(&self) -> String {
        #[cfg(feature = "cuda")]
        if let Some(gpu) = &self.gpu {
            return gpu.properties.name.clone();
        }
        "cpu".into()
    }

    /// Waits for the device; an error if it does not work any more.
    pub fn wait(&self) -> Result<(), BenchError> {
        #[cfg(feature = "cuda")]
        if let Some(gpu) = &self.gpu {
            gpu.synchronize().map_err(eva_runtime::Error::from)?;
        }
        Ok(())
    }

    /// Measures a case.
    pub fn run(&mut self, case: &Case) -> Result<Measured, BenchError> {
        (case.run)(self)
    }

    /// The random numbers of operand `operand` of set `set`.
    pub(super) fn elements(&self, set: usize, operand: usize, exponent: i32) -> Elements<'_> {
        self.numbers.elements(set * OPERANDS + operand, exponent)
    }

    /// Whether operands of `f32` products are rounded to `tf32`.
    pub(super) fn rounds(&self) -> bool {
        self.options.tf32
    }

    /// How modules are compiled.
    pub(super) fn compile_options(&self, form: Form) -> CompileOptions {
        CompileOptions {
            passes: eva_passes::Options { form, tf32: self.options.tf32, ..eva_passes::Options::default() },
            device: self.options.device,
            threads: self.options.threads,
            ..CompileOptions::default()
        }
    }

    /// The module of a text, compiled once.
    fn executable(&mut self, text: &str) -> Result<Arc<Executable>, BenchError> {
        self.executable_of(text, Form::default())
    }

    /// The same in a form of attention.
    pub(super) fn executable_of(&mut self, text: &str, form: Form) -> Result<Arc<Executable>, BenchError> {
        let key = format!("{form:?} {text}");
        if let Some(exe) = self.compiled.get(&key) {
            return Ok(exe.clone());
        }
        let mut options = self.compile_options(form);
        // Operands are weights, so that they stay on the device: what is computed of them is measured all the same.
        options.passes.hoist = eva_passes::Hoist::Never;
        let exe = Arc::new(Executable::compile(&text::parse(text)?, &options)?);
        self.compiled.insert(key, exe.clone());
        Ok(exe)
    }

    /// How many sets of operands do not fit the device's cache together: three times what it holds.
    pub(super) fn sets(&self, bytes: usize) -> usize {
        #[cfg(feature = "cuda")]
        if let Some(gpu) = &self.gpu {
            return (3 * gpu.properties.l2).div_ceil(bytes.max(1)).clamp(1, 64);
        }
        let _ = bytes;
        2
    }

    /// Compiles a program, checks the results of its first set of operands with `check`, which gives their error, and
    /// times it.
    pub(super) fn measure(
        &mut self,
        program: &Program<'_>,
        check: &dyn Fn(&Lab, &[Tensor]) -> f64,
    ) -> Result<Measured, BenchError> {
        let exe = self.executable(program.text)?;
        let size = |o: &Operand| o.shape.iter().product::<usize>() * o.dtype.bytes() as usize;
        let sets = self.sets(program.operands.iter().map(size).sum());
        let mut sessions = Vec::with_capacity(sets);
        for set in 0..sets {
            let mut weights = Weights::new();
            for (i, operand) in program.operands.iter().enumerate() {
                let Operand { name, dtype, shape, fill } = *operand;
                let weight = match fill {
                    Fill::Normal(exponent) => {
                        self.elements(set, i, exponent).weight(&exe, dtype, shape, name)?
                    }
                    Fill::Positive(exponent) => {
                        self.elements(set, i, exponent).positive().weight(&exe, dtype, shape, name)?
                    }
                    Fill::Ints(numbers) => Tensor::from_i32(shape, numbers).into(),
                };
                weights.insert(name.into(), Arc::new(weight));
            }
            sessions.push(Session::new(exe.clone(), program.function, &weights)?);
        }
        let results = |session: &mut Session| -> Result<Vec<(String, Tensor)>, BenchError> {
            let plan = exe.func_plan(exe.func(program.function)?);
            let take = |result: &eva_passes::plan::ResultPlan| -> Result<_, BenchError> {
                Ok((result.name.clone(), session.take(&result.name)?))
            };
            plan.results.iter().filter(|result| result.state.is_none()).map(take).collect()
        };

        let first = &mut sessions[0];
        first.start(&[], None, &[])?;
        first.poison()?;
        first.start(&[], None, &[])?;
        let (names, before): (Vec<String>, Vec<Tensor>) = results(first)?.into_iter().unzip();
        let error = check(self, &before);

        let call = |session| Call { session, inputs: &[], states: None, sizes: &[] };
        let (times, calls) = self.time(&mut sessions.iter_mut().map(call).collect::<Vec<_>>())?;
        for ((_, after), (name, before)) in results(&mut sessions[0])?.iter().zip(names.iter().zip(&before)) {
            // NaN is for the check to complain about.
            if after.bytes() != before.bytes() {
                return Err(BenchError::Changed(name.clone()));
            }
        }
        let Program { flops, bytes, limit, .. } = *program;
        let (more, kernels) = (Vec::new(), Vec::new());
        Ok(Measured { times, sets, calls, flops, bytes, error, limit, more, kernels })
    }

    /// How many GB/s the device's own copy of `bytes` bytes reads and writes; measured once.
    pub(super) fn copy_rate(&mut self, bytes: usize) -> Result<f64, BenchError> {
        if let Some(rate) = self.copied {
            return Ok(rate);
        }
        let rate = self.copy(bytes)?.gigabytes();
        self.copied = Some(rate);
        Ok(rate)
    }

    /// Times the device's own copy of `bytes` bytes, which reads and writes as many.
    pub(super) fn copy(&self, bytes: usize) -> Result<Measured, BenchError> {
        let runs = match self.options.device {
            #[cfg(feature = "cuda")]
            Device::Cuda(_) => {
                let gpu = self.gpu.as_ref().ok_or(BenchError::Unsupported("a copy without a GPU".into()))?;
                let timing = eva_runtime::cuda::bench::copy(gpu, bytes, &self.call_options());
                timing.map_err(eva_runtime::Error::from)?.runs().to_vec()
            }
            _ => {
                let from = vec![1u8; bytes];
                let mut to = vec![0u8; bytes];
                let mut copy = || {
                    let started = Instant::now();
                    std::hint::black_box(&mut to).copy_from_slice(std::hint::black_box(&from));
                    started.elapsed()
                };
                copy();
                let mut runs: Vec<Duration> = (0..self.options.runs.max(1)).map(|_| copy()).collect();
                runs.sort();
                runs
            }
        };
        let times = spread(&runs);
        let bytes = 2.0 * bytes as f64;
        let (more, kernels) = (Vec::new(), Vec::new());
        Ok(Measured { times, sets: 1, calls: 1, flops: 0.0, bytes, error: 0.0, limit: 0.0, more, kernels })
    }

    /// Times calls that take turns: the middle, the shortest and the longest time of one, and how many calls a run had.
    pub(super) fn time(&self, calls: &mut [Call<'_>]) -> Result<([Duration; 3], usize), BenchError> {
        let (runs, count) = match self.options.device {
            #[cfg(feature = "cuda")]
            Device::Cuda(_) => {
                use eva_runtime::cuda::bench;
                let timed = calls.iter_mut().map(Call::timed);
                let mut timed: Vec<bench::Timed> = timed.collect();
                let (timing, count) = bench::calls(&mut timed, &self.call_options())?;
                (timing.runs().to_vec(), count)
            }
            _ => self.time_by_host(calls)?,
        };
        Ok((spread(&runs), count))
    }

    /// How long each kernel of a call takes on a GPU, all its launches together, the slowest first; none on the CPU.
    pub(super) fn kernels(&self, call: &mut Call<'_>) -> Result<Vec<(String, usize, Duration)>, BenchError> {
        #[cfg(feature = "cuda")]
        if self.gpu.is_some() {
            let exe = call.session.executable().clone();
            let mut kernels: Vec<(String, usize, Duration)> = Vec::new();
            for (kernel, time) in eva_runtime::cuda::bench::launches(&mut call.timed(), &self.call_options())?
            {
                let name = &exe.plan().kernels[kernel].name;
                match kernels.iter_mut().find(|(have, ..)| have == name) {
                    Some((_, launches, sum)) => (*launches, *sum) = (*launches + 1, *sum + time),
                    None => kernels.push((name.clone(), 1, time)),
                }
            }
            kernels.sort_by_key(|(.., time)| std::cmp::Reverse(*time));
            return Ok(kernels);
        }
        let _ = call;
        Ok(Vec::new())
    }

    /// How calls on a GPU are timed.
    #[cfg(feature = "cuda")]
    pub(super) fn call_options(&self) -> eva_runtime::cuda::bench::CallOptions {
        let Options { runs, run, rest, .. } = self.options;
        eva_runtime::cuda::bench::CallOptions { run, runs, rest, ..Default::default() }
    }

    /// Times calls by the host's clock: the runs, the shortest first.
    fn time_by_host(&self, calls: &mut [Call<'_>]) -> Result<(Vec<Duration>, usize), BenchError> {
        let mut round = || calls.iter_mut().try_for_each(Call::start);
        round()?;
        let started = Instant::now();
        round()?;
        let once = started.elapsed().as_secs_f64().max(1e-6);
        let rounds = ((self.options.run.as_secs_f64() / once).ceil() as usize).clamp(1, 1 << 16);
        let mut runs = Vec::new();
        for _ in 0..self.options.runs.max(1) {
            std::thread::sleep(self.options.rest);
            let started = Instant::now();
            (0..rounds).try_for_each(|_| round())?;
            runs.push(started.elapsed());
        }
        runs.sort();
        let count = rounds * calls.len();
        Ok((runs.into_iter().map(|run| run.div_f64(count as f64)).collect(), count))
    }
}

/// The middle, the first and the last.
fn spread(runs: &[Duration]) -> [Duration; 3] {
    [runs.len() / 2, 0, runs.len().saturating_sub(1)].map(|i| runs.get(i).copied().unwrap_or_default())
}

impl Call<'_> {
    /// Makes the call; on a GPU, it is under way when this returns.
    pub(super) fn start(&mut self) -> Result<(), BenchError> {
        Ok(self.session.start(self.inputs, self.states.as_deref_mut(), self.sizes)?)
    }

    #[cfg(feature = "cuda")]
    pub(super) fn timed(&mut self) -> eva_runtime::cuda::bench::Timed<'_> {
        let Call { session, inputs, states, sizes } = self;
        eva_runtime::cuda::bench::Timed { session, inputs, states: states.as_deref_mut(), sizes }
    }
}
