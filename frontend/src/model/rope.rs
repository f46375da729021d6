//! Rotary positions (Su et al., 2021, arXiv:2104.09864), stretched by YaRN (Peng et al., 2023, arXiv:2309.00071).
//!
//! Pair `j` of the `p/2` pairs of rotary columns turns by `ω_j = theta^(-2j/p)` radians a position. YaRN keeps `ω_j` for
//! pairs that turn often over the length the model was first trained for, divides it by a factor for those that
//! turn rarely, and ramps in between. The public checkpoints pair neighbouring columns:
//! `x'₂ⱼ = x₂ⱼ cos - x₂ⱼ₊₁ sin`, `x'₂ⱼ₊₁ = x₂ⱼ sin + x₂ⱼ₊₁ cos`, and so does the cache.

use super::config::Config;
use crate::prelude::*;

/// A model's rotary embedding.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// The frequencies.
    pub rotary: Rotary,
    /// On every cosine and sine; 1 in all public models.
    pub factor: f64,
}

impl Rope {
    /// That of a configuration.
    pub fn of(config: &Config) -> Self {
        let yarn = config.rope.scaling.as_ref().map(|yarn| Yarn {
            factor: yarn.factor,
            beta_fast: yarn.beta_fast,
            beta_slow: yarn.beta_slow,
            original: i64::try_from(yarn.original_max_position).unwrap_or(i64::MAX),
        });
        let pairs = if config.rope.interleave { Pairs::Interleaved } else { Pairs::Halves };
        let rotary = Rotary { theta: config.rope.theta, pairs, yarn };
        Self { rotary, factor: config.rope_attention_factor() }
    }

    /// Cosines and signed sines `f32[b, s, 2, p]` of `s` new tokens after `start: i32[b]` cached ones; made once for
    /// all layers.
    #[track_caller]
    pub fn table(&self, f: &Scope, start: &Tensor, s: &Dim, p: &Dim) -> Tensor {
        let freqs = f.rope_freqs(p, &self.rotary);
        start.positions(s).rope_table(&freqs, self.factor).named("rope")
    }
}
