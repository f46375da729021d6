//! The command `eva`: models and IR files from the command line.
//!
//! Results go to standard output; messages, progress and logs go to standard error. The exit code is 0 for success,
//! 1 for failure and 2 for a command line that makes no sense.

mod bench;
mod check;
mod compare;
mod compile;
mod convert;
mod doctor;
mod explain;
mod fp8;
mod generate;
mod init;
mod input;
mod opt;
mod plot;
mod print;
mod train;
mod ui;
mod viz;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// A compiler for DeepSeek-style transformer blocks
#[derive(Parser)]
#[command(name = "eva", version, max_term_width = 100, arg_required_else_help = true, after_help = OVERVIEW)]
struct Cli {
    /// More on standard error: -v for a summary and what is being done, -vv for every pass
    #[arg(short, long, global = true, display_order = 998, action = clap::ArgAction::Count)]
    verbose: u8,
    #[command(subcommand)]
    command: Command,
}

const OVERVIEW: &str = "\
A model is a directory with config.json and safetensors files, as Hugging Face has them. Its layers \
become graphs, which can be printed, changed and checked as text (.eva files), and are compiled when \
the model is run.

  eva generate MODEL_DIR --prompt 'Once upon a time' --max-new-tokens 64
  eva train --config run.toml
  eva print MODEL_DIR/config.json --block attention --after attend | eva check -
  eva doctor

Environment:
  EVA_THREADS    threads that compile and run kernels, where --threads is not given
  EVA_DUMP       passes to print the module after, separated by commas, or `all`
  EVA_CACHE_DIR  the folder that compiled GPU kernels are kept in
  EVA_PTXAS      NVIDIA's assembler for `eva compile`, where it is not in PATH
  RUST_LOG       what to log, as in `eva_passes=debug`; goes before --verbose
  NO_COLOR       messages without colours";

#[derive(Subcommand)]
enum Command {
    /// Make text or token ids with a model
    Generate(generate::Args),
    /// Compare a model with outputs that other software recorded
    Compare(compare::Args),
    /// Compile a model's kernels, or an IR file's, for a GPU ahead of time
    Compile(compile::Args),
    /// Print a model, one of its blocks or an IR file as text
    Print(print::Args),
    /// Run passes on an IR file and print the result
    Opt(opt::Args),
    /// Check an IR file
    Check(check::Args),
    /// Say what the compiler decides for a block, and why
    Explain(explain::Args),
    /// Show what compiling does, as a page
    Viz(viz::Args),
    /// Train a model, from random weights or from a checkpoint
    Train(train::Args),
    /// Draw how runs went
    Plot(plot::Args),
    /// Make a model with random weights
    Init(init::Args),
    /// Convert a model's weights to 8-bit floats, or back
    Convert(convert::Args),
    /// Measure how fast compiled code is
    Bench(bench::Args),
    /// Show what this machine has, and test that compiling works
    Doctor(doctor::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    ui::start_logging(cli.verbose);
    let bars = ui::Bars::default();
    let done = match &cli.command {
        Command::Generate(args) => generate::run(args, cli.verbose > 0, &bars),
        Command::Compare(args) => compare::run(args, &bars),
        Command::Compile(args) => compile::run(args, &bars),
        Command::Print(args) => print::run(args, cli.verbose > 0),
        Command::Opt(args) => opt::run(args),
        Command::Check(args) => check::run(args),
        Command::Explain(args) => explain::run(args),
        Command::Viz(args) => viz::run(args),
        Command::Train(args) => train::run(args, &bars),
        Command::Plot(args) => plot::run(args),
        Command::Init(args) => init::run(args, &bars),
        Command::Convert(args) => convert::run(args, &bars),
        Command::Bench(args) => bench::run(args),
        Command::Doctor(args) => doctor::run(args),
    };
    bars.clear();
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => ui::report(&error),
    }
}
