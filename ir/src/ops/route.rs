//! What the routers share.

use super::check;
use crate::dim::Dim;
use crate::eval::Array;
use crate::op::TypeError;
use crate::types::{DType, TensorType, Type};

/// Experts in groups of neighbours, of which a token may choose from a few.
#[derive(Clone, Copy)]
pub struct Groups {
    /// How many there are.
    pub count: i64,
    /// How many a token may choose from.
    pub kept: i64,
    /// How many of its best experts make a group's score: their sum.
    pub by: usize,
}

impl Groups {
    /// What does not fit `experts`, of which `k` are chosen, as far as they are known.
    pub fn check(&self, experts: Option<i64>, k: Option<i64>) -> Result<(), String> {
        let Groups { count, kept, by } = *self;
        if count < 1 || kept < 1 || kept > count {
            return Err(format!("{kept} of {count} groups cannot be kept"));
        }
        let Some(experts) = experts else { return Ok(()) };
        let size = experts / count;
        if size * count != experts {
            return Err(format!("{experts} experts do not make {count} equal groups"));
        }
        if count > 1 && size < by as i64 {
            return Err(format!(
                "a group is scored by its {by} best experts, but {count} groups of {experts} have {size}"
            ));
        }
        match k {
            Some(k) if k > kept * size => {
                Err(format!("{k} experts cannot be chosen from {kept} groups of {size}"))
            }
            _ => Ok(()),
        }
    }

    /// The scores, with `low` for experts outside the best groups.
    pub fn mask(&self, scores: &[f64], low: f64) -> Vec<f64> {
        let size = scores.len().div_ceil(self.count as usize).max(1);
        let score = |group: &[f64]| best(group, self.by.min(size)).iter().map(|&e| group[e]).sum::<f64>();
        let kept = best(&scores.chunks(size).map(score).collect::<Vec<_>>(), self.kept as usize);
        scores.iter().enumerate().map(|(e, &s)| if kept.contains(&(e / size)) { s } else { low }).collect()
    }
}

/// The type rule of a router, which may group experts.
pub fn infer(op: &str, logits: &TensorType, k: &Dim, groups: Option<Groups>) -> Result<Type, TypeError> {
    check::f32s(op, "logits", logits, 0)?;
    check::axes("logits", "[t, e]", logits, 0, false)?;
    let experts = &logits.shape[1];
    sizes(experts.as_const(), k.as_const(), groups).map_err(TypeError::new)?;
    let shape = [logits.shape[0].clone(), k.clone()];
    Ok(Type::Tuple(vec![TensorType::new(DType::I32, shape.clone()), TensorType::new(DType::F32, shape)]))
}

/// What does not fit, as far as the extents are known.
fn sizes(experts: Option<i64>, k: Option<i64>, groups: Option<Groups>) -> Result<(), String> {
    match (experts, k) {
        (_, Some(k)) if k < 1 => return Err(format!("{k} experts cannot be chosen")),
        (Some(e), Some(k)) if k > e => return Err(format!("{k} experts cannot be chosen from {e}")),
        _ => {}
    }
    groups.map_or(Ok(()), |groups| groups.check(experts, k))
}

/// The indices of the `k` largest scores (all, if there are fewer), largest first; of equals, the lowest first.
pub fn best(scores: &[f64], k: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    // Adding 0 makes -0 equal to 0.
    order.sort_by(|&a, &b| (scores[b] + 0.0).total_cmp(&(scores[a] + 0.0)));
    order.truncate(k);
    order
}

/// The experts and weights that `row` gives for each row of logits, at most `k`.
pub fn eval(logits: &Array, k: usize, row: impl Fn(&[f64]) -> Vec<(usize, f64)>) -> Vec<Array> {
    let (mut experts, mut weights) = (Vec::new(), Vec::new());
    for logits in logits.rows() {
        let mut chosen = row(logits);
        // More than there are cannot be chosen: that is refused before anything runs.
        chosen.resize(k, (0, 0.0));
        experts.extend(chosen.iter().map(|&(e, _)| e as f64));
        weights.extend(chosen.iter().map(|&(_, w)| w));
    }
    let shape = [logits.shape[0], k];
    vec![Array::new(&shape, experts), Array::new(&shape, weights)]
}
