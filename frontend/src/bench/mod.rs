//! Benchmarks: parts of a transformer block at the sizes of DeepSeek-V3, each compiled as a user's program is, checked
//! against a reference in `f64`, and timed.
//!
//! [`cases`] lists what there is to measure, and [`Lab::run`] measures one. Operands are random; on a GPU, several sets
//! of them that do not fit the cache together take turns, and runs of many calls are started as one graph each and
//! timed by the GPU's clock. Outputs are no numbers before the call that is checked.

mod attention;
mod calibrate;
mod experts;
mod forms;
mod fp8;
mod gemm;
mod grouped;
mod lab;
mod layer;
mod mla;
mod numbers;
mod reference;
mod routing;
mod rows;

pub use calibrate::calibrate;
use eva_ir::diag::Diags;
use eva_ir::types::DType;
use eva_runtime::Device;
pub use experts::chart as experts_chart;
pub use lab::Lab;
use std::fmt;
use std::time::Duration;

/// A group of cases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bench {
    /// Products of dense layers.
    Gemm,
    /// Products of the experts' layers.
    Grouped,
    /// Absorbed latent attention of one new token a sequence.
    MlaDecode,
    /// Expanded latent attention of a whole sequence.
    MlaPrefill,
    /// Kernels that go over rows and do little with them.
    Rows,
    /// A whole decoder layer with experts.
    Layer,
    /// Latent attention in each form.
    Forms,
    /// Blocks of latent and of standard attention.
    Attention,
    /// Blocks of more and more experts.
    Experts,
    /// Products of 8-bit operands.
    Fp8,
}

impl Bench {
    /// All, the order they are best run in.
    pub const ALL: [Bench; 10] = [
        Bench::Gemm,
        Bench::Fp8,
        Bench::MlaDecode,
        Bench::MlaPrefill,
        Bench::Grouped,
        Bench::Rows,
        Bench::Forms,
        Bench::Attention,
        Bench::Experts,
        Bench::Layer,
    ];

    /// The name in commands and rows.
    pub fn name(self) -> &'static str {
        match self {
            Bench::Gemm => "gemm",
            Bench::Grouped => "grouped",
            Bench::MlaDecode => "mla-decode",
            Bench::MlaPrefill => "mla-prefill",
            Bench::Rows => "rows",
            Bench::Layer => "layer",
            Bench::Forms => "forms",
            Bench::Attention => "attention",
            Bench::Experts => "experts",
            Bench::Fp8 => "fp8",
        }
    }
}

/// How to measure.
#[derive(Clone, Debug)]
pub struct Options {
    /// What the benchmarks run on.
    pub device: Device,
    /// The sizes of DeepSeek-V3, or small ones.
    pub full: bool,
    /// The heads of whole blocks of attention; the configuration's if not given.
    pub heads: Option<usize>,
    /// The element type of products.
    pub dtype: DType,
    /// Whether products of `f32` have operands rounded to `tf32`, which is measured with them.
    pub tf32: bool,
    /// How many runs are timed.
    pub runs: usize,
    /// How long a run is, about.
    pub run: Duration,
    /// How long the device rests before a run.
    pub rest: Duration,
    /// How many threads compile and, on the CPU, run kernels; the machine's processors if not given.
    pub threads: Option<usize>,
}

impl Options {
    /// Those for a device: full sizes on a GPU, small ones on the CPU.
    pub fn of(device: Device) -> Self {
        let (run, rest) = (Duration::from_millis(25), Duration::from_millis(30));
        let full = device != Device::Cpu;
        let (dtype, tf32) = (DType::Bf16, false);
        Self { device, full, heads: None, dtype, tf32, runs: 7, run, rest, threads: None }
    }
}

/// Something to measure.
pub struct Case {
    /// The group.
    pub bench: Bench,
    /// What tells it from the other cases of the group, in order: `("m", "4096")`.
    pub words: Vec<(&'static str, Word)>,
    run: Work,
}

type Work = Box<dyn Fn(&mut Lab) -> Result<Measured, BenchError>>;

/// A size, or a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Word {
    /// A size.
    Size(usize),
    /// A name.
    Name(String),
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Word::Size(n) => write!(f, "{n}"),
            Word::Name(name) => f.write_str(name),
        }
    }
}

impl From<usize> for Word {
    fn from(n: usize) -> Self {
        Word::Size(n)
    }
}

impl From<&str> for Word {
    fn from(name: &str) -> Self {
        Word::Name(name.into())
    }
}

impl fmt::Display for Case {
    /// The group and the words: `gemm m=4096 n=2112 k=7168 dtype=bf16`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.bench.name())?;
        self.words.iter().try_for_each(|(name, word)| write!(f, " {name}={word}"))
    }
}

/// The cases of a group.
pub fn cases(bench: Bench, options: &Options) -> Vec<Case> {
    match bench {
        Bench::Gemm => gemm::cases(options),
        Bench::Grouped => grouped::cases(options),
        Bench::MlaDecode => mla::decode_cases(options),
        Bench::MlaPrefill => mla::prefill_cases(options),
        Bench::Rows => rows::cases(options),
        Bench::Layer => layer::cases(options),
        Bench::Forms => forms::cases(options),
        Bench::Attention => attention::cases(options),
        Bench::Experts => experts::cases(options),
        Bench::Fp8 => fp8::cases(options),
    }
}

/// What a case gave.
#[derive(Clone, Debug)]
pub struct Measured {
    /// The middle, the shortest and the longest of the runs' times, of one call each.
    pub times: [Duration; 3],
    /// How many sets of operands took turns, and how many calls a run had.
    pub sets: usize,
    /// See `sets`.
    pub calls: usize,
    /// Floating-point operations of a call; 0 where they do not matter.
    pub flops: f64,
    /// Bytes that a call must read and write at least.
    pub bytes: f64,
    /// How far the outputs are from the reference: the norm of the difference over that of the reference.
    pub error: f64,
    /// The largest error that is right.
    pub limit: f64,
    /// What else there is to say, as a name and a number.
    pub more: Vec<(&'static str, f64)>,
    /// How long each kernel took, the slowest first: name, launches, and the time of all of them.
    pub kernels: Vec<(String, usize, Duration)>,
}

impl Measured {
    /// Whether the outputs are right.
    pub fn is_right(&self) -> bool {
        self.error <= self.limit
    }

    /// TFLOP/s by the middle time.
    pub fn teraflops(&self) -> f64 {
        self.flops / self.times[0].as_secs_f64() / 1e12
    }

    /// GB/s by the middle time.
    pub fn gigabytes(&self) -> f64 {
        self.bytes / self.times[0].as_secs_f64() / 1e9
    }
}

/// Why a case could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// Compiling or running failed.
    #[error(transparent)]
    Runtime(#[from] eva_runtime::Error),
    /// The benchmark's own program is wrong.
    #[error("the benchmark's program: {0}")]
    Program(#[from] Diags),
    /// Something that a benchmark cannot do.
    #[error("there is no benchmark for {0}")]
    Unsupported(String),
    /// What was to be measured computes something else.
    #[error("the results are wrong: their relative error is {0:e}")]
    Wrong(f64),
    /// Runs that should be the same were not.
    #[error("`{0}` is not the same after the timed runs as before, which means that a kernel has a race")]
    Changed(String),
}
