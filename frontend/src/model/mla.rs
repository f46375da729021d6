//! Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, section 2.1).
//!
//! Keys and values of all heads are made from one latent vector a token, and only that and one rotary key are cached:
//! `c + p` numbers a token. With `x [b, s, m]` already normalized:
//!
//! | | | |
//! | --- | --- | --- |
//! | query | `q = RMSNorm(x W_qaᵀ) W_qbᵀ`, or `x W_qᵀ` | per head `n` columns `q_nope`, then `p` columns `q_pe` |
//! | latent | `[y ; z] = x W_kvaᵀ` | `ckv = RMSNorm(y) [c]`, `k_pe = RoPE(z) [p]`: cached |
//! | expansion | `k_nope = ckv W_ukᵀ`, `value = ckv W_uvᵀ` | rows of `kv_b_proj`: per head `n` of `W_uk`, then `v` of `W_uv` |
//! | scores | `τ (q_nope · k_nope + RoPE(q_pe) · k_pe)` | over cached and new tokens, none later than the query |
//! | output | `concat_heads(softmax(scores) value) W_oᵀ` | |
//!
//! This is the expanded form, which says what attention is. That `W_uk` and `W_uv` can be multiplied into the
//! query and the output instead, and that scores need not be stored, is for the compiler to use.

use super::config::{Config, LATENT_NORM_EPS};
use super::norm::rms_norm;
use super::rope::Rope;
use super::weights::Weights;
use crate::prelude::*;

/// The numbers of an attention block.
#[derive(Clone, Debug)]
pub struct Mla {
    /// Heads, `h`.
    pub heads: Dim,
    /// Columns of a head's query and key without position, `n`.
    pub nope: Dim,
    /// Rotary columns, `p`.
    pub rope: Dim,
    /// Columns of a head's value, `v`.
    pub value: Dim,
    /// Columns of the cached latent, `c`.
    pub latent: Dim,
    /// Columns of the query latent, `q`; without one, queries are projected directly.
    pub query_latent: Option<Dim>,
    /// Which rotary columns are pairs.
    pub pairs: Pairs,
    /// On the scores, `τ`.
    pub scale: f64,
    /// Whether `q_a_proj`, `kv_a_proj_with_mqa` and `o_proj` have biases.
    pub bias: bool,
    /// Whether the keys and values of every head are cached, not the latents they are made of: `h·(n + p + v)` numbers
    /// a token, if the compiler leaves it at that.
    pub expanded_cache: bool,
    /// Whether the attention weights `[b, h, s, t]` are tapped, as `attn_probs`.
    pub observe: bool,
}

/// What attention must know of the tokens, besides their states.
#[derive(Clone, Debug)]
pub struct Tokens {
    /// The rotary table `f32[b, s, 2, p]`, from [`Rope::table`].
    pub rope: Tensor,
    /// How many tokens of each sequence are cached, `i32[b]`.
    pub start: Tensor,
    /// The extent of the cache, `t`; without one nothing is kept, and tokens see those of this call alone (training).
    pub cached: Option<Dim>,
}

impl Tokens {
    /// Of all tokens what `new [b, s, …]` is of the new ones: kept in the state `name [b, t, …]` of the block `w`, if
    /// anything is; `new` itself otherwise.
    #[track_caller]
    pub fn keep(&self, w: &Weights, name: &str, new: &Tensor) -> Tensor {
        match &self.cached {
            None => new.clone(),
            Some(t) => {
                let extent = |i: i64| if i == 1 { t.clone() } else { new.dim(i) };
                let shape = (0..new.rank() as i64).map(extent);
                w.scope().state(name, new.dtype(), shape).write(new, &self.start)
            }
        }
    }
}

impl Mla {
    /// That of a configuration, with its extents declared in `p`.
    pub fn of(p: &Program, config: &Config) -> Self {
        let dim = |name: &str, n: usize| p.dim_fixed(name, n as i64);
        Self {
            heads: dim("h", config.heads),
            nope: dim("n", config.qk_nope),
            rope: dim("p", config.qk_rope),
            value: dim("v", config.v_head),
            latent: dim("c", config.kv_lora),
            query_latent: config.q_lora.map(|q| dim("q", q)),
            pairs: Rope::of(config).rotary.pairs,
            scale: config.softmax_scale(),
            bias: config.attention_bias,
            expanded_cache: false,
            observe: false,
        }
    }

    /// `x [b, s, m] ↦ [b, s, m]`; keeps the latents of all tokens in the states `ckv [b, t, c]` and `kpe [b, t, p]`, or the
    /// keys and values in `k [b, t, h, n+p]` and `v [b, t, h, v]`; or nothing, if [`Tokens::cached`] says so.
    #[track_caller]
    pub fn apply(&self, w: &Weights, x: &Tensor, tokens: &Tokens) -> Tensor {
        let Self { heads: h, nope: n, rope: p, value: v, latent: c, .. } = self;
        let [b, s, m] = x.dims();

        // Queries.
        let q = match &self.query_latent {
            Some(rank) => {
                let latent = w.at("q_a_proj").linear(x, rank, self.bias);
                let latent = rms_norm(&w.at("q_a_layernorm"), &latent, LATENT_NORM_EPS);
                latent.linear(&w.get("q_b_proj.weight", [&(h * &(n + p)), rank]))
            }
            None => x.linear(&w.get("q_proj.weight", [&(h * &(n + p)), &m])),
        };
        let [q_nope, q_pe] = q.reshape([&b, &s, h, &(n + p)]).split(-1, [n, p]);
        let (q_nope, q_pe) = (q_nope.named("q_nope"), q_pe.rope(&tokens.rope, self.pairs).named("q_pe"));

        // Latents of the new tokens.
        let [y, z] = w.at("kv_a_proj_with_mqa").linear(x, &(c + p), self.bias).split(-1, [c, p]);
        let latent = rms_norm(&w.at("kv_a_layernorm"), &y, LATENT_NORM_EPS).tap("kv_latent");
        let k_pe = z.rope(&tokens.rope, self.pairs).tap("k_rope");

        // What makes the keys and values of each head of them.
        let expansion = w.get("kv_b_proj.weight", [&(h * &(n + v)), c]).reshape([h, &(n + v), c]);
        let [w_uk, w_uv] = expansion.split(1, [n, v]);
        let (w_uk, w_uv) = (w_uk.cast(x.dtype()).named("w_uk"), w_uv.cast(x.dtype()).named("w_uv"));
        let expand = |ckv: &Tensor| {
            let k_nope = ckv.einsum("btc,hnc->bthn", &w_uk).named("k_nope");
            (k_nope, ckv.einsum("btc,hvc->bthv", &w_uv).named("value"))
        };

        // Latents, or keys and values, of all tokens.
        let keep = |name: &str, new: &Tensor| tokens.keep(w, name, new);
        let (scores, value) = if self.expanded_cache {
            let (k_nope, value) = expand(&latent);
            let of_each_head = w.scope().full(1.0, x.dtype(), [h]);
            let k_pe = k_pe.einsum("bsp,h->bshp", &of_each_head).named("k_pe");
            let k = keep("k", &k_nope.concat(-1, &k_pe));
            let value = keep("v", &value);
            (q_nope.concat(-1, &q_pe).einsum("bshq,bthq->bhst", &k), value)
        } else {
            let ckv = keep("ckv", &latent);
            let k_pe = keep("kpe", &k_pe);
            let (k_nope, value) = expand(&ckv);
            let scores = q_nope.einsum("bshn,bthn->bhst", &k_nope) + q_pe.einsum("bshp,btp->bhst", &k_pe);
            (scores, value)
        };
        let probs = (scores * self.scale).causal_softmax(&tokens.start).named("probs");
        let probs = if self.observe { probs.tap("attn_probs") } else { probs };
        let out = probs.einsum("bhst,bthv->bshv", &value).reshape([&b, &s, &(h * v)]);
        w.at("o_proj").linear(&out, &m, self.bias).tap("attn_out")
    }
}
