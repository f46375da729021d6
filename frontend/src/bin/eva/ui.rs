//! What all subcommands share in talking to the terminal: errors, logs, progress, and words for options.

use clap::{Args as ClapArgs, ValueEnum};
use eva::engine::{EngineError, Progress};
use eva::prelude::{DType, Diags};
use eva::report;
use eva_passes::{Exactness, Form};
use eva_runtime::Device;
use indicatif::{ProgressBar, ProgressStyle};
use std::cell::RefCell;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::prelude::*;

/// Options that do not go together; the exit code is 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}\n\nFor more information, try '--help'.")]
pub struct Usage(pub String);

/// Mistakes in an IR text, which is shown with them.
#[derive(Debug, thiserror::Error)]
#[error("{diags}")]
pub struct BadText {
    /// The text's file.
    pub name: String,
    /// The text.
    pub text: String,
    /// What is wrong with it; at least one mistake.
    pub diags: Diags,
}

/// Writes `text` to standard output. A reader who has gone away is an error that [`report`] knows.
pub fn emit(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Shows an error and says which exit code it means.
pub fn report(error: &anyhow::Error) -> ExitCode {
    let gone = |e: &io::Error| e.kind() == io::ErrorKind::BrokenPipe;
    if error.chain().any(|cause| cause.downcast_ref().is_some_and(gone)) {
        return ExitCode::SUCCESS;
    }
    if let Some(bad) = error.downcast_ref::<BadText>() {
        report::print(&bad.diags, Some((&bad.name, &bad.text)));
        let n = bad.diags.0.len();
        say(&format!("error: {}: {n} mistake{}", bad.name, if n == 1 { "" } else { "s" }));
    } else if let Some(diags) = diags(error) {
        report::print(diags, None);
    } else {
        let mut text = format!("error: {error}");
        for cause in error.chain().skip(1).map(|cause| cause.to_string()) {
            if !text.contains(&cause) {
                text += &format!("\n  because: {cause}");
            }
        }
        say(&text);
    }
    if error.is::<Usage>() { ExitCode::from(2) } else { ExitCode::FAILURE }
}

/// One more line on standard error. Nobody is left to hear that it cannot be written to.
pub fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// The diagnostics inside an error, if it is about a program.
fn diags(error: &anyhow::Error) -> Option<&Diags> {
    let runtime = match error.downcast_ref() {
        Some(EngineError::Module(diags)) => return Some(diags),
        Some(EngineError::Runtime(error)) => Some(error),
        _ => error.downcast_ref(),
    };
    let passes = match runtime {
        Some(eva_runtime::Error::Compile(error)) => Some(error),
        _ => error.downcast_ref(),
    };
    match passes {
        Some(eva_passes::Error::Invalid(diags)) => Some(diags),
        _ => None,
    }
}

/// Sends logs to standard error: those that `RUST_LOG` asks for, or those of eva at the level of `--verbose`.
pub fn start_logging(verbose: u8) {
    let level = match verbose {
        0 => LevelFilter::WARN,
        1 => LevelFilter::INFO,
        2 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    let mut filter = Targets::new().with_default(LevelFilter::WARN).with_target("eva", level);
    if let Ok(asked) = std::env::var("RUST_LOG") {
        match asked.parse() {
            Ok(targets) => filter = targets,
            Err(error) => say(&format!("warning: RUST_LOG is not understood: {error}")),
        }
    }
    let colour = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let lines = tracing_subscriber::fmt::layer().with_writer(io::stderr).with_ansi(colour).without_time();
    tracing_subscriber::registry().with(lines).with(filter).init();
}

/// Progress on standard error, if that is a terminal.
#[derive(Default)]
pub struct Bars(RefCell<Option<ProgressBar>>);

impl Bars {
    /// A bar that counts bytes, for work whose steps differ in size; `None` if nobody is looking.
    pub fn bytes(&self, what: &str) -> Option<ProgressBar> {
        self.show(what, 0, "{msg} {wide_bar} {bytes}/{total_bytes} {eta}");
        self.0.borrow().clone()
    }

    /// A bar that counts to `total`, for work on many threads; `None` if nobody is looking.
    #[cfg(feature = "cuda")]
    pub fn counter(&self, what: &str, total: usize) -> Option<ProgressBar> {
        self.begin(what, total);
        self.0.borrow().clone()
    }

    /// A bar of a run's steps; `None` if nobody is looking.
    pub fn steps(&self, steps: u64) -> Option<ProgressBar> {
        self.show("", steps as usize, "{pos}/{len} {wide_bar} {eta}  {msg}");
        self.0.borrow().clone()
    }

    /// Removes what is shown.
    pub fn clear(&self) {
        if let Some(bar) = self.0.take() {
            bar.finish_and_clear();
        }
    }

    fn show(&self, what: &str, total: usize, template: &str) {
        self.clear();
        if !io::stderr().is_terminal() {
            return;
        }
        let bar = ProgressBar::new(total as u64).with_message(what.to_owned());
        bar.set_style(
            ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()),
        );
        bar.enable_steady_tick(Duration::from_millis(100));
        self.0.replace(Some(bar));
    }
}

impl Progress for Bars {
    fn begin(&self, what: &str, total: usize) {
        let template = if total == 0 { "{spinner} {msg} {elapsed}" } else { "{msg} {wide_bar} {pos}/{len}" };
        self.show(what, total, template);
    }

    fn step(&self) {
        if let Some(bar) = &*self.0.borrow() {
            bar.inc(1);
        }
    }

    fn end(&self) {
        self.clear();
    }
}

/// The element types that a model computes in.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TypeArg {
    /// 32 bits
    F32,
    /// The upper 16 bits of an f32
    Bf16,
}

impl From<TypeArg> for DType {
    fn from(arg: TypeArg) -> Self {
        match arg {
            TypeArg::F32 => DType::F32,
            TypeArg::Bf16 => DType::Bf16,
        }
    }
}

/// How caches are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CacheArg {
    /// With the fewest bytes
    Auto,
    /// With the keys and values of every head
    Expanded,
}

impl CacheArg {
    /// What the passes are told.
    pub fn options(self, page: Option<usize>) -> eva_passes::CacheOptions {
        let layout = match self {
            CacheArg::Auto => eva_passes::cache::Layout::Auto,
            CacheArg::Expanded => eva_passes::cache::Layout::AsWritten,
        };
        eva_passes::CacheOptions { layout, page, ..Default::default() }
    }
}

/// The elements of caches.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CacheTypeArg {
    /// The type of activations
    Auto,
    /// 8-bit floats with a scale for 128, but for what has rotary positions
    Fp8,
    /// 8-bit floats throughout
    Fp8Rope,
}

impl From<CacheTypeArg> for eva_passes::cache::Elements {
    fn from(arg: CacheTypeArg) -> Self {
        match arg {
            CacheTypeArg::Auto => Self::AsWritten,
            CacheTypeArg::Fp8 => Self::Eight { rotary: false },
            CacheTypeArg::Fp8Rope => Self::Eight { rotary: true },
        }
    }
}

/// The forms of attention.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum FormArg {
    /// Scores against the cached latents
    Absorbed,
    /// Keys and values expanded for each head
    Expanded,
    /// As the module says: nothing is rewritten
    Written,
    /// Chosen by cost, for the lengths of each call
    Auto,
}

impl From<FormArg> for Form {
    fn from(arg: FormArg) -> Self {
        match arg {
            FormArg::Absorbed => Form::Absorbed,
            FormArg::Expanded => Form::Expanded,
            FormArg::Written => Form::Written,
            FormArg::Auto => Form::Auto,
        }
    }
}

/// How far rewriting may move results.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum NumericsArg {
    /// The same bits as the module as written, where every op rounds once
    Exact,
    /// The same real numbers, rounded in another order
    Reassociates,
    /// Other numbers too, by no more than a narrower type's rounding
    Rounds,
}

impl From<NumericsArg> for Exactness {
    fn from(arg: NumericsArg) -> Self {
        match arg {
            NumericsArg::Exact => Exactness::Exact,
            NumericsArg::Reassociates => Exactness::Reassociates,
            NumericsArg::Rounds => Exactness::Rounds,
        }
    }
}

/// How far rewriting may move results, where attention is to have this form: absorbing sums in another order.
pub fn numerics(form: FormArg, numerics: NumericsArg) -> Result<Exactness, Usage> {
    match (form, numerics) {
        (FormArg::Absorbed, NumericsArg::Exact) => Err(Usage(
            "--form absorbed --numerics exact: the absorbed form sums in another order (--numerics reassociates)"
                .into(),
        )),
        (_, numerics) => Ok(numerics.into()),
    }
}

/// What an artifact's note says that it was made with `--tf32`.
#[cfg(feature = "cuda")]
pub const TF32: &str = "tf32";

/// Products of `f32` on tensor cores.
#[derive(ClapArgs, Clone, Copy, Debug, Default)]
pub struct Tf32Arg {
    /// Round the operands of f32 products to tf32 (10 bits of mantissa), which a GPU's tensor cores take; sums stay f32
    #[arg(long)]
    pub tf32: bool,
}

impl Tf32Arg {
    /// Whether it was asked for, which makes no sense on a CPU.
    pub fn on(self, cpu: bool) -> Result<bool, Usage> {
        let message =
            "--tf32 is for GPUs (--target cuda): a CPU's products of f32 are f32, and gain nothing by it";
        if self.tf32 && cpu { Err(Usage(message.into())) } else { Ok(self.tf32) }
    }
}

/// What to run on, on the command line; only what this build can run on.
pub fn device(text: &str) -> Result<Device, String> {
    match text.parse().map_err(|error| format!("{error}"))? {
        Device::Cuda(_) if !cfg!(feature = "cuda") => Err(NO_CUDA.into()),
        device => Ok(device),
    }
}

/// What there is to say where GPUs were left out.
pub const NO_CUDA: &str = "this eva was built without CUDA; build it with `cargo build --release -p eva-compiler \
    --features cuda`, which needs LLVM 22 (LLVM_SYS_221_PREFIX names its folder)";

/// An option's value as it is written on the command line.
pub fn name_of(value: impl ValueEnum) -> String {
    value.to_possible_value().map_or(String::new(), |value| value.get_name().to_string())
}

/// A count on the command line: a whole number from 1.
pub fn count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n) if n > 0 => Ok(n),
        _ => Err("it must be a whole number, 1 or more".into()),
    }
}

/// A number of bytes on the command line, with a unit or without.
pub fn size(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let unit = match text[digits..].trim().to_ascii_lowercase().as_str() {
        "" | "b" => Some(1u64),
        "kb" => Some(1000),
        "mb" => Some(1_000_000),
        "gb" => Some(1_000_000_000),
        "kib" => Some(1 << 10),
        "mib" => Some(1 << 20),
        "gib" => Some(1 << 30),
        _ => None,
    };
    let number = text[..digits].parse::<f64>().ok();
    let size = number.zip(unit).map(|(n, unit)| n * unit as f64);
    let size = size.filter(|n| (1.0..u64::MAX as f64).contains(n)).map(|n| n as u64);
    size.ok_or_else(|| "it must be a number of bytes, as in 5GB, 500MiB or 4096".into())
}

/// Bytes for people to read.
pub fn bytes(n: usize) -> String {
    indicatif::BinaryBytes(n as u64).to_string()
}
