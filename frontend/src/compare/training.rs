//! Steps of training against those that other software recorded: `eva compare --training`.

use super::{CompareOptions, Ids, Row};
use crate::engine::{EngineError, Progress};
use crate::model::config::Config;
use crate::prelude::*;
use crate::train::RunConfig;
use crate::train::config::OptimizerConfig;
use crate::train::data::{Batch, IGNORED};
use crate::train::model::Graphs;
use crate::train::params::{Group, Tensors, WIDTH};
use crate::train::trainer::{TrainError, Trainer};
use eva_runtime::checkpoint::Checkpoint;
use std::path::Path;

/// The largest difference of a loss that is allowed: AdamW's first steps turn tiny gradients into full-size updates.
const LOSS: f64 = 1e-3;

/// The largest difference of a norm, over the recorded one.
const NORM: f64 = 1e-3;

/// Both for activations in a narrower type.
const NARROW: f64 = 0.05;

/// Trains the model on the reference's `input_ids` and `labels`, as many steps as `train.losses` and `train.grad_norms` have: AdamW
/// with a rate of 1e-3, betas 0.9 and 0.95, ε 1e-8, decay 0.1 of every parameter, and a clip of 1, biases of routers frozen.
/// A row for each loss and norm before a step. Position `i` is held against the label at `i + 1`.
pub fn compare_training(
    dir: &Path,
    reference: &Path,
    options: &CompareOptions,
    progress: &dyn Progress,
) -> Result<Vec<Row>, EngineError> {
    let config = Config::load(dir)?;
    let checkpoint = Checkpoint::open(dir)?;
    config.check(&checkpoint, false)?;
    let reference = Checkpoint::open(reference)?;
    let find = |name: &str| {
        let missing = || EngineError::Prompt(format!("the reference has no `{name}`"));
        reference.get(&format!("{}{name}", options.prefix)).ok_or_else(missing)
    };
    let (losses, norms) = (find("train.losses")?.to_f32()?, find("train.grad_norms")?.to_f32()?);
    let ids = Ids::of(&find("input_ids")?)?;
    let labels = Ids::of(&find("labels").or_else(|_| find("input_ids"))?)?;
    if (labels.batch, labels.len) != (ids.batch, ids.len) || losses.len() != norms.len() {
        return Err(EngineError::Prompt("what the reference recorded does not go together".into()));
    }

    let mut run = RunConfig::new(losses.len() as u64);
    (run.threads, run.target, run.precision.compute) =
        (options.load.threads, options.load.device, options.load.dtype);
    run.optimizer = OptimizerConfig { lr: 1e-3, no_decay: Vec::new(), ..OptimizerConfig::default() };
    (run.data.batch, run.data.sequence) = (ids.batch, ids.len);
    progress.begin("compiling", 0);
    let mut graphs = Graphs::of(&run, &config)?;
    graphs.passes.fp8.recipe = options.load.fp8.clone();
    let failed = |error: TrainError| match error {
        TrainError::Runtime(error) => EngineError::Runtime(error),
        error => EngineError::Unsupported(error.to_string()),
    };
    let mut trainer = Trainer::new(&run, &graphs, &|_| Group::Decay).map_err(failed)?;
    progress.end();
    let tensors = Tensors::new(&config, trainer.layout());
    let flat = tensors.read(&checkpoint, trainer.layout().all() * WIDTH)?;
    trainer.set(&flat).map_err(failed)?;

    let next = |b: usize, i: usize| labels.row(b).get(i + 1).copied().unwrap_or(IGNORED);
    let labels: Vec<i64> = (0..ids.batch).flat_map(|b| (0..ids.len).map(move |i| next(b, i))).collect();
    let shape = [ids.batch, ids.len];
    let batch = Batch {
        ids: eva_runtime::Tensor::from_i64(&shape, &ids.ids),
        labels: eva_runtime::Tensor::from_i64(&shape, &labels),
        counted: labels.iter().filter(|label| **label >= 0).count() as u64,
    };
    let narrow = options.load.dtype != F32 || options.load.fp8.is_some();
    let mut rows = Vec::new();
    progress.begin("training", losses.len());
    for (i, (loss, norm)) in losses.iter().zip(&norms).enumerate() {
        let report = trainer.step(i as u64 + 1, std::slice::from_ref(&batch)).map_err(failed)?;
        let (loss, norm) = (f64::from(*loss), f64::from(*norm));
        let mut row = |what: &str, difference: f64, limit: f64| {
            let limit = if narrow { NARROW } else { limit };
            rows.push(Row {
                name: format!("train.{what}.{i}"),
                difference: Some(difference),
                limit: Some(limit),
                ok: difference <= limit,
                note: String::new(),
            });
        };
        row("losses", (report.loss - loss).abs(), LOSS);
        row("grad_norms", (report.grad_norm - norm).abs() / norm, NORM);
        progress.step();
    }
    progress.end();
    rows.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(rows)
}
