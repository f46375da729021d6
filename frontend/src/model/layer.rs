//! A decoder layer: attention, then a feed-forward block, each normalized before and added to the residual stream.

use super::config::Config;
use super::mla::{Mla, Tokens};
use super::mlp::SwiGlu;
use super::moe::{Experts, Routed};
use super::norm::rms_norm;
use super::weights::Weights;
use crate::prelude::*;

/// The numbers of a decoder layer.
#[derive(Clone, Debug)]
pub struct Layer {
    /// The attention block, in the scope `self_attn`.
    pub attention: Mla,
    /// The feed-forward block, in the scope `mlp`.
    pub ffn: Ffn,
    /// Epsilon of both norms.
    pub eps: f64,
}

/// The feed-forward block of a layer.
#[derive(Clone, Debug)]
pub enum Ffn {
    /// One for all tokens.
    Dense(SwiGlu),
    /// Chosen for each token.
    Experts(Experts),
}

impl Layer {
    /// Layer `index` of a configuration (MTP modules count on after the last), with its extents declared in `p`.
    pub fn of(p: &Program, config: &Config, index: usize) -> Self {
        let ffn = match config.moe(index) {
            Some(moe) => Ffn::Experts(Experts::of(p, moe)),
            None => Ffn::Dense(SwiGlu { width: p.dim_fixed("i", config.intermediate as i64) }),
        };
        Self { attention: Mla::of(p, config), ffn, eps: config.rms_eps }
    }

    /// `x [b, s, m] ↦ x' + FFN(RMSNorm(x'))` with `x' = x + Attention(RMSNorm(x))`.
    #[track_caller]
    pub fn apply(&self, w: &Weights, x: &Tensor, tokens: &Tokens) -> Tensor {
        self.apply_and_tell(w, x, tokens).0
    }

    /// The same, and of a layer with experts which of them were chosen.
    #[track_caller]
    pub fn apply_and_tell(&self, w: &Weights, x: &Tensor, tokens: &Tokens) -> (Tensor, Option<Routed>) {
        let normed = rms_norm(&w.at("input_layernorm"), x, self.eps).named("attn_in");
        let x = (x + self.attention.apply(&w.at("self_attn"), &normed, tokens)).named("mid");
        let normed = rms_norm(&w.at("post_attention_layernorm"), &x, self.eps).named("mlp_in");
        let mlp = w.at("mlp");
        let (ffn, told) = match &self.ffn {
            Ffn::Dense(swiglu) => (swiglu.apply(&mlp, &normed), None),
            Ffn::Experts(experts) => {
                let (out, told) = experts.apply_and_tell(&mlp, &normed);
                (out, Some(told))
            }
        };
        ((x + ffn.tap("mlp_out")).tap("out"), told)
    }
}
