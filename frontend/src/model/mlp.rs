//! The gated feed-forward block SwiGLU (Shazeer, 2020, arXiv:2002.05202).

use super::weights::Weights;
use crate::prelude::*;

/// The numbers of a dense feed-forward block.
#[derive(Clone, Debug)]
pub struct SwiGlu {
    /// Inner columns, `i`.
    pub width: Dim,
}

impl SwiGlu {
    /// `x[…, m] ↦ (silu(x W_gateᵀ) ⊙ x W_upᵀ) W_downᵀ`, with `W_gate, W_up [i, m]` and `W_down [m, i]`.
    #[track_caller]
    pub fn apply(&self, w: &Weights, x: &Tensor) -> Tensor {
        let (i, m) = (&self.width, &x.dim(-1));
        let gate = x.linear(&w.get("gate_proj.weight", [i, m])).named("gate");
        let up = x.linear(&w.get("up_proj.weight", [i, m])).named("up");
        (gate.silu() * up).linear(&w.get("down_proj.weight", [m, i]))
    }
}
