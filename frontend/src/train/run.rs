//! A run, from its configuration to its last checkpoint.

use super::checkpoint::{self, Form, RunState, SaveError, Saver};
use super::config::{OnError, RunConfig, RunConfigError};
use super::data::{Batches, Data, DataError, Plan, batch};
use super::metrics::Metrics;
use super::params::WIDTH;
use super::trainer::{StepReport, TrainError, Trainer};
use super::watch::{Verdict, look};
use crate::engine::EngineError;
use crate::model::config::{CONFIG_FILE, ConfigError};
use crate::model::training::ACCURACY;
use eva_runtime::checkpoint::CheckpointError;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Why a run ended before its last step, or did not begin. Every message is complete.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum RunError {
    #[error(transparent)]
    RunConfig(#[from] RunConfigError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Data(#[from] DataError),
    #[error(transparent)]
    Train(#[from] TrainError),
    #[error("{error}{}", .last.as_ref().map_or(String::new(), |path| format!("; the last good checkpoint is {}", path.display())))]
    Stopped { error: Box<RunError>, last: Option<PathBuf> },
    #[error("step {step}: the loss is {loss:.4}, {above:.1} standard deviations above those before")]
    Spike { step: u64, loss: f64, above: f64 },
    #[error("a checkpoint could not be written: {0}")]
    Save(#[from] SaveError),
    #[error("{}: {error}", .path.display())]
    Io { path: PathBuf, error: io::Error },
    #[error("{0}")]
    Refused(String),
}

/// Told how a run goes.
pub trait Observer {
    /// What takes long and is no step begins.
    fn begin(&mut self, what: &str);
    /// A step was taken: it, the numbers that are written down, and how many steps the run has.
    fn step(&mut self, report: &StepReport, numbers: &[(String, f64)], steps: u64);
    /// Something to be said.
    fn say(&mut self, line: &str);
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Ended {
    /// The last step taken.
    pub step: u64,
    /// Whether it was asked to end before the last step of the run.
    pub interrupted: bool,
    /// The last checkpoint.
    pub checkpoint: Option<PathBuf>,
    /// The last measurement on held-out data.
    pub eval_loss: Option<f64>,
}

/// How a run begins.
#[derive(Clone, Copy, Debug, Default)]
pub struct Begin {
    /// Whether it goes on from the last checkpoint in its folder.
    pub resume: bool,
}

/// Refuses a run that would begin where one is already, or go on where there is none.
pub fn may_begin(begin: Begin, folder: &Path) -> Result<(), RunError> {
    let refused = |path: &Path, why: &str| Err(RunError::Refused(format!("{}: {why}", path.display())));
    match (begin.resume, checkpoint::list(folder)?.last()) {
        (true, None) => refused(folder, "there is no checkpoint to go on from"),
        (false, Some((_, path))) => {
            refused(path, "a run is there already; go on with --resume, or choose another `out`")
        }
        _ => Ok(()),
    }
}

/// Runs a model that is there already; `flat` are the parameters of a run that begins.
#[allow(clippy::too_many_arguments)]
pub fn drive(
    run: &RunConfig,
    begin: Begin,
    trainer: &mut Trainer,
    flat: Option<Vec<f32>>,
    data: Data,
    form: Form,
    stop: &AtomicBool,
    observer: &mut dyn Observer,
) -> Result<Ended, RunError> {
    let folder = form.folder.clone();
    let io = |path: &Path| {
        let path = path.to_path_buf();
        move |error| RunError::Io { path, error }
    };
    may_begin(begin, &folder)?;
    std::fs::create_dir_all(&folder).map_err(io(&folder))?;
    checkpoint::tidy(&folder)?;
    let same = same(run);
    let last = checkpoint::list(&folder)?.pop();
    let mut state = RunState::new(same.clone());
    match (begin.resume, last) {
        (true, Some((_, path))) => {
            let snapshot = checkpoint::read(&path, trainer.layout().all() * WIDTH, &trainer.moments())?;
            let differences = snapshot.state.differences(&same);
            if !differences.is_empty() {
                let list = differences.join("; ");
                let message = format!("{}: the run would not go on as it began: {list}", path.display());
                return Err(RunError::Refused(message));
            }
            trainer.restore(&snapshot)?;
            state = snapshot.state;
            observer.say(&format!("goes on after step {} ({})", state.step, path.display()));
        }
        _ => trainer.set(&flat.unwrap_or_default())?,
    }
    let metrics = Metrics::open(&run.out, state.step, run.metrics.tensorboard).map_err(io(&run.out))?;
    let mut going = Going {
        run,
        trainer,
        data,
        saver: Saver::new(form),
        metrics,
        observer,
        saved: None,
        last: checkpoint::list(&folder)?.pop().map(|(_, path)| path),
        eval_loss: None,
    };
    match going.steps(&mut state, stop) {
        Ok(interrupted) => {
            let Going { last, eval_loss, .. } = going;
            Ok(Ended { step: state.step, interrupted, checkpoint: last, eval_loss })
        }
        Err(error) => {
            // One that is being written may yet be good.
            if let Ok(Some(path)) = going.saver.wait() {
                going.last = Some(path);
            }
            Err(RunError::Stopped { error: Box::new(error), last: going.last })
        }
    }
}

/// A run that is going on.
struct Going<'a> {
    run: &'a RunConfig,
    trainer: &'a mut Trainer,
    data: Data,
    saver: Saver,
    metrics: Metrics,
    observer: &'a mut dyn Observer,
    /// The step of the last checkpoint that was begun.
    saved: Option<u64>,
    /// The last checkpoint that is complete.
    last: Option<PathBuf>,
    eval_loss: Option<f64>,
}

impl Going<'_> {
    /// Takes the steps that are left; whether it was interrupted.
    fn steps(&mut self, state: &mut RunState, stop: &AtomicBool) -> Result<bool, RunError> {
        let run = self.run;
        let plan = Plan {
            length: run.data.sequence,
            batch: run.data.batch,
            accumulate: run.data.accumulate,
            shuffle: run.data.shuffle && !run.data.kind.is_synthetic(),
            seed: run.data_seed(),
        };
        let mut batches = Batches::from(self.data.train.clone(), plan, state.sequences);
        self.observer.begin("");
        let mut measured = None;
        while state.step < run.steps && !stop.load(Ordering::Relaxed) {
            let started = Instant::now();
            let step = state.step + 1;
            let batch = batches.step()?;
            let report = self.trainer.step(step, &batch)?;
            state.step = step;
            state.sequences += (plan.batch * plan.accumulate) as u64;
            state.tokens += report.tokens;
            if let Verdict::Spike(above) = look(state, report.loss, run.metrics.spike) {
                let spike = RunError::Spike { step, loss: report.loss, above };
                match run.metrics.on_spike {
                    OnError::Stop => return Err(spike),
                    OnError::Continue => self.observer.say(&format!("warning: {spike}")),
                }
            }
            self.write(&report, state, started)?;
            let every = |n: u64| n > 0 && step.is_multiple_of(n);
            if every(run.eval.every) {
                self.measure(step)?;
                measured = Some(step);
            }
            if every(run.checkpoint.every) {
                self.save(state)?;
            }
            let before = self.saver.poll();
            self.settle(before)?;
        }
        let interrupted = state.step < run.steps;
        if !interrupted && measured != Some(state.step) {
            self.measure(state.step)?;
        }
        if self.saved != Some(state.step) && state.step > 0 {
            self.save(state)?;
        }
        let before = self.saver.wait();
        self.settle(before)?;
        Ok(interrupted)
    }

    fn write(&mut self, report: &StepReport, state: &RunState, started: Instant) -> Result<(), RunError> {
        let seconds = started.elapsed().as_secs_f64();
        let mut numbers = vec![
            ("loss".to_string(), report.loss),
            ("lr".to_string(), report.lr),
            ("grad_norm".to_string(), report.grad_norm),
            ("tokens".to_string(), state.tokens as f64),
            ("tokens_per_second".to_string(), (report.tokens as f64 / seconds.max(1e-9)).round()),
            ("seconds".to_string(), seconds),
        ];
        numbers.extend(memory(self.trainer).map(|bytes| ("memory".to_string(), bytes as f64)));
        numbers.extend(report.more.iter().cloned());
        self.observer.step(report, &numbers, self.run.steps);
        if report.step.is_multiple_of(self.run.metrics.every) || report.step == self.run.steps {
            self.put(report.step, &numbers)?;
        }
        Ok(())
    }

    fn put(&mut self, step: u64, numbers: &[(String, f64)]) -> Result<(), RunError> {
        let out = &self.run.out;
        self.metrics.write(step, numbers).map_err(|error| RunError::Io { path: out.clone(), error })
    }

    /// Measures on held-out data, if there are any.
    fn measure(&mut self, step: u64) -> Result<(), RunError> {
        let Some(held) = self.data.held.clone() else { return Ok(()) };
        let data = &self.run.data;
        let batches = match self.run.eval.batches {
            0 if data.kind.is_synthetic() => 16,
            0 => usize::MAX,
            n => n,
        };
        let all = held.sequences().min((batches as u64).saturating_mul(data.batch as u64));
        let all = match self.trainer.needs_whole_batches() {
            true => all - all % data.batch as u64,
            false => all,
        };
        if all == 0 {
            self.observer.say("warning: what is held out is less than a batch, and is not measured");
            return Ok(());
        }
        let starts = (0..all).step_by(data.batch);
        let batches = starts.map(|first| {
            let numbers: Vec<u64> = (first..all.min(first + data.batch as u64)).collect();
            batch(&*held, &numbers, data.sequence)
        });
        let (loss, more) = self.trainer.measure(batches)?;
        self.eval_loss = Some(loss);
        let mut numbers = vec![("eval_loss".to_string(), loss)];
        numbers.extend(more.iter().map(|(name, x)| (format!("eval_{name}"), *x)));
        let accuracy = more.iter().find(|(name, _)| name == ACCURACY);
        let accuracy = accuracy.map_or(String::new(), |(_, share)| format!(", {:.1} % right", share * 100.0));
        self.observer.say(&format!("step {step}: held-out loss {loss:.4}{accuracy}"));
        self.put(step, &numbers)
    }

    fn save(&mut self, state: &RunState) -> Result<(), RunError> {
        let snapshot = self.trainer.snapshot(state)?;
        self.saved = Some(state.step);
        let before = self.saver.save(snapshot);
        self.settle(before)
    }

    /// What became of a checkpoint.
    fn settle(&mut self, saved: Result<Option<PathBuf>, SaveError>) -> Result<(), RunError> {
        match (saved, self.run.checkpoint.on_error) {
            (Ok(None), _) => {}
            (Ok(path), _) => self.last = path,
            (Err(error), OnError::Stop) => return Err(error.into()),
            (Err(error), OnError::Continue) => {
                let last = self.last.as_ref().map_or("none".into(), |path| path.display().to_string());
                let line =
                    format!("warning: a checkpoint could not be written: {error}; the last good one: {last}");
                self.observer.say(&line);
            }
        }
        Ok(())
    }
}

/// Bytes in use: of the GPU's memory, or of this process.
fn memory(trainer: &Trainer) -> Option<usize> {
    #[cfg(feature = "cuda")]
    if let Some(gpu) = trainer.executable().gpu() {
        return gpu.free_memory().ok().map(|(free, total)| total - free);
    }
    let _ = trainer;
    let pages = std::fs::read_to_string("/proc/self/statm").ok()?;
    Some(pages.split(' ').nth(1)?.parse::<usize>().ok()? * 4096)
}

/// What a run that goes on must have as it was when it began.
fn same(run: &RunConfig) -> BTreeMap<String, String> {
    let data = &run.data;
    let paths = |paths: &[PathBuf]| {
        let names =
            paths.iter().map(|path| path.file_name().unwrap_or_default().to_string_lossy().into_owned());
        names.collect::<Vec<_>>().join(", ")
    };
    let list = [
        ("data.kind", data.kind.to_string()),
        ("data.paths", paths(&data.paths)),
        ("data.sequence", data.sequence.to_string()),
        ("data.batch", data.batch.to_string()),
        ("data.accumulate", data.accumulate.to_string()),
        ("data.holdout", data.holdout.to_string()),
        ("data.shuffle", data.shuffle.to_string()),
        ("data.seed", run.data_seed().to_string()),
        ("optimizer.name", format!("{:?}", run.optimizer.name).to_lowercase()),
        ("optimizer.moments", run.optimizer.moments.to_string()),
        ("optimizer.no_decay", format!("{:?}", run.optimizer.no_decay).to_lowercase()),
    ];
    list.into_iter().map(|(key, value)| (key.to_string(), value)).collect()
}

/// The folder of the last checkpoint of a run.
pub fn last_checkpoint(out: &Path) -> Result<Option<PathBuf>, SaveError> {
    let all = checkpoint::list(&out.join("checkpoints"))?;
    Ok(all.into_iter().rev().map(|(_, path)| path).find(|path| path.join(CONFIG_FILE).exists()))
}
