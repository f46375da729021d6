//! Root-mean-square normalization (Zhang and Sennrich, 2019, arXiv:1910.07467).

use super::weights::Weights;
use crate::prelude::*;

/// `x[…, m] ↦ x / √(mean(x²) + eps) · w`, with `w = weight [m]`.
///
/// Statistics are taken in `f32` whatever the element type.
#[track_caller]
pub fn rms_norm(w: &Weights, x: &Tensor, eps: f64) -> Tensor {
    x.rms_norm(&w.get("weight", [x.dim(-1)]), eps)
}
