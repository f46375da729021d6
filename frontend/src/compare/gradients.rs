//! Gradients of all weights against those that other software recorded: `eva compare --gradients`.

use super::learner::{Bits, Learner, failed};
use super::{CompareOptions, Row};
use crate::engine::{EngineError, Progress};
use eva_runtime::checkpoint::Checkpoint;
use std::path::Path;

/// The largest norm of a gradient's difference, over that of the recorded one, that is allowed.
const LIMIT: f64 = 1e-4;

/// The same for activations in a narrower type, where single choices of experts flip.
const NARROW: f64 = 0.15;
/// The same where operands of products are rounded to `tf32`.
const ROUNDED: f64 = 2e-2;

/// Computes the loss of the reference's `input_ids` and `labels` and its gradients; one row for each tensor recorded in
/// `gradients`, and one for the loss, sorted by name. Position `i` is held against the label at `i + 1`.
pub fn compare_gradients(
    dir: &Path,
    reference: &Path,
    gradients: &Path,
    options: &CompareOptions,
    progress: &dyn Progress,
) -> Result<Vec<Row>, EngineError> {
    let (reference, recorded) = (Checkpoint::open(reference)?, Checkpoint::open(gradients)?);
    let find = |name: &str| reference.get(&format!("{}{name}", options.prefix));
    let Learner { mut trainer, tensors, batch, bits } = Learner::new(dir, &find, 1, options, progress)?;
    let (have_loss, computed) = trainer.gradients(&batch).map_err(failed)?;

    let mut rows = Vec::new();
    if let Some(want) = find("loss").and_then(|loss| loss.to_f32().ok()) {
        let difference = (have_loss - f64::from(want[0])).abs();
        let limit = match bits {
            Bits::Full => 1e-5,
            Bits::Rounded => 1e-2,
            Bits::Narrow => 0.05,
        };
        let (name, ok) = ("loss".into(), difference <= limit);
        rows.push(Row { name, difference: Some(difference), limit: Some(limit), ok, note: String::new() });
    }
    for tensor in recorded.iter() {
        let name = tensor.name.to_string();
        let fail = |note: String| Row { name: name.clone(), difference: None, limit: None, ok: false, note };
        // Behind what is learned are parameters without gradients.
        let found = tensors.place(&name).and_then(|(shape, range)| Some((shape, computed.get(range)?)));
        let Some((shape, have)) = found else {
            rows.push(fail("no such gradient is computed".into()));
            continue;
        };
        if shape != tensor.shape {
            rows.push(fail(format!("the gradient is {shape:?}, the recorded one {:?}", tensor.shape)));
            continue;
        }
        let want = tensor.to_f32()?;
        let (error, size) = have.iter().zip(&want).fold((0.0, 0.0), |(error, size), (x, y)| {
            let (x, y) = (f64::from(*x), f64::from(*y));
            (error + (x - y) * (x - y), size + y * y)
        });
        // What is zero is zero exactly: an expert without tokens.
        let difference = if size == 0.0 { error.sqrt() } else { (error / size).sqrt() };
        let (limit, note) = match (size == 0.0, bits) {
            (true, _) => (0.0, "zero"),
            (false, Bits::Full) => (LIMIT, ""),
            (false, Bits::Rounded) => (ROUNDED, ""),
            (false, Bits::Narrow) => (NARROW, ""),
        };
        let ok = difference <= limit;
        rows.push(Row { name, difference: Some(difference), limit: Some(limit), ok, note: note.into() });
    }
    rows.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(rows)
}
