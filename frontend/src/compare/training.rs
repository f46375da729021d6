//! Steps of training against those that other software recorded: `eva compare --training`.

use super::learner::{Bits, Learner, failed};
use super::{CompareOptions, Row};
use crate::engine::{EngineError, Progress};
use eva_runtime::checkpoint::Checkpoint;
use std::path::Path;

/// The largest difference of a loss that is allowed: AdamW's first steps turn tiny gradients into full-size updates.
const LOSS: f64 = 1e-3;

/// The largest difference of a norm, over the recorded one.
const NORM: f64 = 1e-3;

/// Both for activations in a narrower type, or operands that are rounded.
const NARROW: f64 = 0.05;

/// Trains the model on the reference's `input_ids` and `labels`, as many steps as `train.losses` and `train.grad_norms` have
/// (`Learner::new` says how).
/// A row for each loss and norm before a step. Position `i` is held against the label at `i + 1`.
pub fn compare_training(
    dir: &Path,
    reference: &Path,
    options: &CompareOptions,
    progress: &dyn Progress,
) -> Result<Vec<Row>, EngineError> {
    let reference = Checkpoint::open(reference)?;
    let find = |name: &str| reference.get(&format!("{}{name}", options.prefix));
    let numbers = |name: &str| {
        let missing = || EngineError::Prompt(format!("the reference has no `{name}`"));
        Ok::<_, EngineError>(find(name).ok_or_else(missing)?.to_f32()?)
    };
    let (losses, norms) = (numbers("train.losses")?, numbers("train.grad_norms")?);
    if losses.len() != norms.len() {
        return Err(EngineError::Prompt("what the reference recorded does not go together".into()));
    }
    let Learner { mut trainer, batch, bits, .. } = Learner::new(dir, &find, losses.len(), options, progress)?;
    let mut rows = Vec::new();
    progress.begin("training", losses.len());
    for (i, (loss, norm)) in losses.iter().zip(&norms).enumerate() {
        let report = trainer.step(i as u64 + 1, std::slice::from_ref(&batch)).map_err(failed)?;
        let (loss, norm) = (f64::from(*loss), f64::from(*norm));
        let mut row = |what: &str, difference: f64, limit: f64| {
            let limit = if bits == Bits::Full { limit } else { NARROW };
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
