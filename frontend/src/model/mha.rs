//! Standard multi-head attention (Vaswani et al., 2017, arXiv:1706.03762), with rotary positions: what latent attention is
//! measured against.
//!
//! Every head has a query, a key and a value of its own, and keys and values are cached as they are: `h·(n + p + v)` numbers
//! a token, where latent attention keeps `c + p`. With `x [b, s, m]` already normalized:
//!
//! | | | |
//! | --- | --- | --- |
//! | query, key | `q = x W_qᵀ`, `k = x W_kᵀ` | per head `n` columns without position, then `p` that are rotated |
//! | value | `x W_vᵀ` | per head `v` columns |
//! | scores | `τ q · k` | over cached and new tokens, none later than the query |
//! | output | `concat_heads(softmax(scores) value) W_oᵀ` | |
//!
//! Weights have the names of Llama's checkpoints, `q_proj`, `k_proj`, `v_proj` and `o_proj`, and are theirs where `n` is 0
//! and pairs are [`Pairs::Halves`].

use super::config::Config;
use super::mla::Tokens;
use super::rope::Rope;
use super::weights::Weights;
use crate::prelude::*;

/// The numbers of a block of standard attention.
#[derive(Clone, Debug)]
pub struct Mha {
    /// Heads, `h`.
    pub heads: Dim,
    /// Columns of a head's query and key without position, `n`; without any, all of them are rotated.
    pub nope: Option<Dim>,
    /// Rotary columns, `p`.
    pub rope: Dim,
    /// Columns of a head's value, `v`.
    pub value: Dim,
    /// Which rotary columns are pairs.
    pub pairs: Pairs,
    /// On the scores, `τ`.
    pub scale: f64,
    /// Whether the projections have biases.
    pub bias: bool,
    /// Whether the attention weights `[b, h, s, t]` are tapped, as `attn_probs`.
    pub observe: bool,
}

impl Mha {
    /// That of a configuration, with its extents declared in `p`.
    pub fn of(p: &Program, config: &Config) -> Self {
        let dim = |name: &str, n: usize| p.dim_fixed(name, n as i64);
        Self {
            heads: dim("h", config.heads),
            nope: (config.qk_nope > 0).then(|| dim("n", config.qk_nope)),
            rope: dim("p", config.qk_rope),
            value: dim("v", config.v_head),
            pairs: Rope::of(config).rotary.pairs,
            scale: config.softmax_scale(),
            bias: config.attention_bias,
            observe: false,
        }
    }

    /// `x [b, s, m] ↦ [b, s, m]`; keeps the keys and values of all tokens in the states `k [b, t, h, n+p]` and
    /// `v [b, t, h, v]`, or nothing, if [`Tokens::cached`] says so.
    #[track_caller]
    pub fn apply(&self, w: &Weights, x: &Tensor, tokens: &Tokens) -> Tensor {
        let Self { heads: h, rope: p, value: v, .. } = self;
        let [b, s, m] = x.dims();
        let width = match &self.nope {
            Some(n) => n + p,
            None => p.clone(),
        };
        let heads = |name: &str, width: &Dim| {
            w.at(name).linear(x, &(h * width), self.bias).reshape([&b, &s, h, width])
        };
        let rotated = |x: Tensor| match &self.nope {
            None => x.rope(&tokens.rope, self.pairs),
            Some(n) => {
                let [nope, pe] = x.split(-1, [n, p]);
                nope.concat(-1, &pe.rope(&tokens.rope, self.pairs))
            }
        };
        let q = rotated(heads("q_proj", &width)).named("q");
        let k = tokens.keep(w, "k", &rotated(heads("k_proj", &width)));
        let value = tokens.keep(w, "v", &heads("v_proj", v));

        let scores = q.einsum("bshq,bthq->bhst", &k) * self.scale;
        let probs = scores.causal_softmax(&tokens.start).named("probs");
        let probs = if self.observe { probs.tap("attn_probs") } else { probs };
        let out = probs.einsum("bhst,bthv->bshv", &value).reshape([&b, &s, &(h * v)]);
        w.at("o_proj").linear(&out, &m, self.bias).tap("attn_out")
    }
}
