//! `eva bench`: how fast compiled code is, and whether it is right.

mod row;
mod worker;

use super::ui::{Tf32Arg, TypeArg, Usage, count, emit, say};
use anyhow::Context;
use clap::{Args as ClapArgs, ValueEnum};
use eva::bench::{Bench, BenchError, Case, Lab, Measured, Options, calibrate, cases};
use eva_ir::types::DType;
use eva_runtime::Device;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Arguments of `eva bench`.
#[derive(ClapArgs)]
#[command(after_help = "\
Examples:
  eva bench
  eva bench gemm mla-decode --target cuda --json
  eva bench gemm --target cuda --filter m=1,m=16 --filter n=2112
  eva bench calibrate -o machine.toml

Each case is compiled, checked against a reference in f64 and timed; a row is printed when it is \
done. A case that fails does not stop the others. The exit code is 1 if one failed or was wrong.")]
pub struct Args {
    /// What to measure [default: all]
    #[arg(value_enum, value_name = "BENCH")]
    benches: Vec<BenchArg>,
    /// Where to run: cpu, cuda (the first GPU), cuda:1, …
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    target: Device,
    /// Only cases with one of these words, as `--list` shows them; repeated, with one of each
    #[arg(long, value_name = "WORD,…")]
    filter: Vec<String>,
    /// Print the cases and measure nothing
    #[arg(long)]
    list: bool,
    /// Sizes: those of DeepSeek-V3, or small ones [default: small on the CPU, full on a GPU]
    #[arg(long, value_enum)]
    sizes: Option<Sizes>,
    /// Heads of `attention` [default: 128, or 5 of small sizes]
    #[arg(long, value_name = "N", value_parser = count)]
    heads: Option<usize>,
    /// Type of the operands of `gemm` [default: bf16, or f32 with --tf32]
    #[arg(long, value_enum)]
    dtype: Option<TypeArg>,
    #[command(flatten)]
    tf32: Tf32Arg,
    /// Runs that are timed; the middle one counts
    #[arg(long, value_name = "N", default_value_t = 7, value_parser = count)]
    runs: usize,
    /// Milliseconds of a run, about: it has as many calls as fit
    #[arg(long, value_name = "MS", default_value_t = 25)]
    run: u64,
    /// Milliseconds of rest before a run
    #[arg(long, value_name = "MS", default_value_t = 30)]
    rest: u64,
    /// Threads [default: EVA_THREADS, or the processors]
    #[arg(long, value_name = "N", value_parser = count)]
    threads: Option<usize>,
    /// Print each row as JSON, on a line of its own
    #[arg(long)]
    json: bool,
    /// Seconds for a case, after which it has failed [default: none on the CPU, 120 on a GPU]
    #[arg(long, value_name = "S", value_parser = count)]
    timeout: Option<usize>,
    /// File for what `calibrate` finds [default: print it]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Run the cases from this one on for another process
    #[arg(long, value_name = "N", hide = true)]
    worker: Option<usize>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum BenchArg {
    /// Products of dense layers, with many rows and few
    Gemm,
    /// Products of rows with the weights of the experts they are routed to
    Grouped,
    /// Absorbed latent attention of one new token a sequence
    MlaDecode,
    /// Expanded latent attention of a whole sequence
    MlaPrefill,
    /// Kernels that go over rows and do little with them, beside a copy
    Rows,
    /// A whole decoder layer with experts, and compiling it
    Layer,
    /// Latent attention of some new tokens after many cached ones, in each form
    Forms,
    /// A block of latent attention and one of standard attention with as many heads, and their caches
    Attention,
    /// Blocks of 8 to 256 experts, of which a token has eight: the time a token
    Experts,
    /// Products of 8-bit operands with scales, dense and of experts, and quantizing
    Fp8,
    /// This machine's rates, as a file for `eva explain --target FILE`; by itself, and not one of all
    Calibrate,
}

impl BenchArg {
    /// The group of cases, if it is one.
    fn group(self) -> Option<Bench> {
        match self {
            BenchArg::Gemm => Some(Bench::Gemm),
            BenchArg::Grouped => Some(Bench::Grouped),
            BenchArg::MlaDecode => Some(Bench::MlaDecode),
            BenchArg::MlaPrefill => Some(Bench::MlaPrefill),
            BenchArg::Rows => Some(Bench::Rows),
            BenchArg::Layer => Some(Bench::Layer),
            BenchArg::Forms => Some(Bench::Forms),
            BenchArg::Attention => Some(Bench::Attention),
            BenchArg::Experts => Some(Bench::Experts),
            BenchArg::Fp8 => Some(Bench::Fp8),
            BenchArg::Calibrate => None,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Sizes {
    Full,
    Small,
}

/// Measures, and prints a row for each case; whether all were right.
pub fn run(args: &Args) -> anyhow::Result<bool> {
    let mut options = Options::of(args.target);
    options.full = args.sizes.map_or(options.full, |sizes| sizes == Sizes::Full);
    options.heads = args.heads;
    options.tf32 = args.tf32.on(args.target == Device::Cpu)?;
    let dtype = if options.tf32 { TypeArg::F32 } else { TypeArg::Bf16 };
    options.dtype = args.dtype.unwrap_or(dtype).into();
    if options.tf32 && options.dtype != DType::F32 {
        let message =
            format!("--tf32 rounds operands that are f32; with --dtype {} there are none", options.dtype);
        return Err(Usage(message).into());
    }
    options.runs = args.runs;
    options.run = Duration::from_millis(args.run);
    options.rest = Duration::from_millis(args.rest);
    options.threads = args.threads;

    let mut benches: Vec<Bench> = args.benches.iter().filter_map(|bench| bench.group()).collect();
    match (args.benches.contains(&BenchArg::Calibrate), benches.is_empty()) {
        (true, true) => return calibrated(options, args.output.as_deref()),
        (true, false) => return Err(Usage("`calibrate` is measured by itself".into()).into()),
        (false, _) if args.output.is_some() => return Err(Usage("--output is for `calibrate`".into()).into()),
        (false, _) => {}
    }
    if benches.is_empty() {
        benches = Bench::ALL.to_vec();
    }
    let all = benches.into_iter().flat_map(|bench| cases(bench, &options));
    let chosen: Vec<Case> = all.filter(|case| wanted(case, &args.filter)).collect();
    if chosen.is_empty() {
        let message = format!("no case has the words {}; --list shows all", args.filter.join(" and "));
        return Err(Usage(message).into());
    }
    if args.list {
        chosen.iter().try_for_each(|case| emit(&format!("{case}\n")))?;
        return Ok(true);
    }

    let print = Print { json: args.json, options: &options };
    // A kernel that hangs or faults takes its process with it: the others' rows are not to be lost.
    let timeout = args.timeout.or((options.device != Device::Cpu).then_some(120));
    let right = match (args.worker, timeout) {
        (Some(first), _) => return worker::work(&chosen, first, &print),
        (None, Some(seconds)) => worker::watch(&chosen, Duration::from_secs(seconds as u64), &print)?,
        (None, None) => {
            let mut lab = Lab::new(options.clone())?;
            let mut right = true;
            for case in &chosen {
                let outcome = measure(&mut lab, case);
                right &= outcome.as_ref().is_ok_and(Measured::is_right);
                emit(&print.row(case, &outcome, &lab.device_name()))?;
            }
            right
        }
    };
    if !right {
        say("error: not every case is right");
    }
    Ok(right)
}

/// Measures the machine, and writes what it reaches to a file, or prints it.
fn calibrated(options: Options, output: Option<&Path>) -> anyhow::Result<bool> {
    let mut lab = Lab::new(options)?;
    let name = lab.device_name();
    let machine = calibrate(&mut lab, &name)?;
    match output {
        None => emit(&machine.to_toml())?,
        Some(path) => {
            std::fs::write(path, machine.to_toml())
                .with_context(|| format!("cannot write {}", path.display()))?;
            say(&format!("wrote {}", path.display()));
        }
    }
    Ok(true)
}

/// What a case gave, or why it gave nothing.
type Outcome = Result<Measured, String>;

fn measure(lab: &mut Lab, case: &Case) -> Outcome {
    let done = catch_unwind(AssertUnwindSafe(|| lab.run(case)));
    let done = done.map_err(|_| "it panicked".to_string());
    done.and_then(|done| done.map_err(|error: BenchError| error.to_string()))
}

/// How rows are printed.
struct Print<'a> {
    json: bool,
    options: &'a Options,
}

impl Print<'_> {
    /// The text of a row, with the end of its last line.
    fn row(&self, case: &Case, outcome: &Outcome, device: &str) -> String {
        match self.json {
            true => format!("{}\n", row::json(case, outcome, device, self.options)),
            false => row::text(case, outcome),
        }
    }
}

/// Whether a case has a word of each list.
fn wanted(case: &Case, filters: &[String]) -> bool {
    let text = case.to_string();
    let has = |word: &str| text.split(' ').any(|have| have == word);
    filters.iter().all(|list| list.split(',').any(|word| has(word.trim())))
}
