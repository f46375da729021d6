//! A decoder layer: attention, then a feed-forward block, each normalized before and added to the residual stream.

use super::config::{self, Config};
use super::mha::Mha;
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
    pub attention: Attention,
    /// The feed-forward block, in the scope `mlp`.
    pub ffn: Ffn,
    /// Epsilon of both norms.
    pub eps: f64,
}

/// The attention block of a layer.
#[derive(Clone, Debug)]
pub enum Attention {
    /// Over cached latents.
    Latent(Mla),
    /// Over the keys and values of every head.
    Standard(Mha),
}

/// The feed-forward block of a layer.
#[derive(Clone, Debug)]
pub enum Ffn {
    /// One for all tokens.
    Dense(SwiGlu),
    /// Chosen for each token.
    Experts(Experts),
}

impl Attention {
    /// That of a configuration, with its extents declared in `p`.
    pub fn of(p: &Program, config: &Config) -> Self {
        match config.attention {
            config::Attention::Latent => Self::Latent(Mla::of(p, config)),
            config::Attention::Standard => Self::Standard(Mha::of(p, config)),
        }
    }

    /// Rotary columns, `p`.
    pub fn rope(&self) -> &Dim {
        match self {
            Self::Latent(mla) => &mla.rope,
            Self::Standard(mha) => &mha.rope,
        }
    }

    /// Whether the attention weights are tapped, as `attn_probs`.
    pub fn observe(&mut self, observe: bool) {
        match self {
            Self::Latent(mla) => mla.observe = observe,
            Self::Standard(mha) => mha.observe = observe,
        }
    }

    /// `x [b, s, m] ↦ [b, s, m]`, as [`Mla::apply`] and [`Mha::apply`] have it.
    #[track_caller]
    pub fn apply(&self, w: &Weights, x: &Tensor, tokens: &Tokens) -> Tensor {
        match self {
            Self::Latent(mla) => mla.apply(w, x, tokens),
            Self::Standard(mha) => mha.apply(w, x, tokens),
        }
    }
}

impl Layer {
    /// Layer `index` of a configuration (MTP modules count on after the last), with its extents declared in `p`.
    pub fn of(p: &Program, config: &Config, index: usize) -> Self {
        let ffn = match config.moe(index) {
            Some(moe) => Ffn::Experts(Experts::of(p, moe)),
            None => Ffn::Dense(SwiGlu { width: p.dim_fixed("i", config.intermediate as i64) }),
        };
        Self { attention: Attention::of(p, config), ffn, eps: config.rms_eps }
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
