//! `eva train`: training a model.

use super::ui::{Bars, bytes, emit, say};
use anyhow::Context;
use clap::Args as ClapArgs;
use eva::train::RunConfig;
use eva::train::run::{Begin, Observer};
use eva::train::start;
use eva::train::trainer::StepReport;
use indicatif::ProgressBar;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Arguments of `eva train`.
#[derive(ClapArgs)]
#[command(after_help = "\
Examples:
  eva train --config run.toml
  eva train --config run.toml --set optimizer.lr=1e-3 --set out=runs/faster
  eva train --config run.toml --resume

run.toml says everything: docs/training.md lists its keys. Ctrl-C saves a checkpoint and ends; a
second one ends at once. The checkpoints, OUT/checkpoints/step-…, are models for `eva generate`.")]
pub struct Args {
    /// What the run is
    #[arg(long, value_name = "run.toml")]
    config: PathBuf,
    /// Go on from the last checkpoint, as if nothing had happened
    #[arg(long)]
    resume: bool,
    /// A setting over the file's, as in data.batch=4
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Print how the run ended as JSON
    #[arg(long)]
    json: bool,
}

/// Trains.
pub fn run(args: &Args, bars: &Bars) -> anyhow::Result<bool> {
    let run = RunConfig::load(&args.config, &args.set)?;
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // In this order: the first one asks the run to end, the next finds that it has been asked.
        flag::register_conditional_shutdown(signal, 128 + signal, stop.clone())
            .and_then(|_| flag::register(signal, stop.clone()))
            .context("signals cannot be handled")?;
    }
    let mut progress = Progress { bars, bar: None };
    let ended = start::run(&run, Begin { resume: args.resume }, &stop, &mut progress)?;
    bars.clear();
    let place = ended.checkpoint.as_ref().map_or("no checkpoint".into(), |path| path.display().to_string());
    let text = match args.json {
        true => {
            let json = serde_json::json!({
                "step": ended.step,
                "interrupted": ended.interrupted,
                "checkpoint": ended.checkpoint,
                "eval_loss": ended.eval_loss,
            });
            format!("{json}\n")
        }
        false => {
            let how = if ended.interrupted { "interrupted after" } else { "done:" };
            let loss = ended.eval_loss.map_or(String::new(), |loss| format!(", held-out loss {loss:.4}"));
            let more = if ended.interrupted { "; go on with --resume" } else { "" };
            format!("{how} step {}{loss}: {place}{more}\n", ended.step)
        }
    };
    emit(&text)?;
    Ok(true)
}

/// How a run goes, on standard error.
struct Progress<'a> {
    bars: &'a Bars,
    bar: Option<ProgressBar>,
}

impl Observer for Progress<'_> {
    fn begin(&mut self, what: &str) {
        self.bar = None;
        match what.is_empty() {
            true => self.bars.clear(),
            false => eva::engine::Progress::begin(self.bars, what, 0),
        }
    }

    fn step(&mut self, report: &StepReport, numbers: &[(String, f64)], steps: u64) {
        if self.bar.is_none() {
            self.bar = self.bars.steps(steps);
        }
        let number = |key: &str| numbers.iter().find(|(name, _)| name == key).map_or(0.0, |(_, x)| *x);
        if let Some(bar) = &self.bar {
            bar.set_position(report.step);
            bar.set_message(format!(
                "loss {:.4}  {:.0} tokens/s  {}",
                report.loss,
                number("tokens_per_second"),
                bytes(number("memory") as usize)
            ));
        }
    }

    fn say(&mut self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| say(line)),
            None => say(line),
        }
    }
}
