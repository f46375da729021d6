//! Whole models, as a module with several entry points.
//!
//! | function | inputs | results |
//! | --- | --- | --- |
//! | `@main` | `ids i64[b, s]`, `start i32[b]`, `last i32[b]` | `logits f32[b, w]` of the new token `last[b]` of each sequence |
//! | `@forward` | `ids i64[b, s]`, `start i32[b]` | `logits f32[b, s, w]` of every new token; with [`Options::taps`] or [`Options::mtp`], `final_norm [b, s, m]` |
//! | `@mtp` | `ids i64[b, s]`, `hidden [b, s, m]`, `start i32[b]` | with [`Options::mtp`]: `mtp.logits f32[b, s, w]`, `mtp.hidden [b, s, m]`; see [`super::mtp`] |
//!
//! `start[b]` is how many tokens of sequence `b` are cached; the cached latents are the states
//! `model.layers.{l}.self_attn.ckv [b, t, c]` and `….kpe [b, t, p]` (of standard attention `….k [b, t, h, n+p]` and
//! `….v [b, t, h, v]`), where `t` is `s` plus the largest `start`. A sequence with
//! fewer new tokens than others is padded at its end with any ids: what follows `last` does not change what comes before.
//!
//! **Weights.** The name of a weight parameter is the name of the tensor in a Hugging Face checkpoint, and its extents are
//! that tensor's. The one exception: the experts of a layer are one parameter, `….mlp.experts.gate_proj.weight [e, f, m]`
//! (`up_proj` alike, `down_proj [e, m, f]`), made of the tensors `….mlp.experts.{0, 1, …}.gate_proj.weight` one after another.
//! A weight of 8-bit floats has its scales in the tensor `…_scale_inv`, those of experts stacked alike.
//! Where embedding and head are tied, the head is the parameter `model.embed_tokens.weight`. An entry point has those
//! weights that it uses; the same name in two entry points is the same tensor.
//!
//! **Layers** of the same kind, with weights stored alike, are one function: `@dense_layer`, `@moe_layer`.

use super::config::Config;
use super::layer::{Attention, Ffn, Layer};
use super::mla::Tokens;
use super::mtp;
use super::norm::rms_norm;
use super::rope::Rope;
use super::weights::Weights;
use crate::prelude::*;

/// What to make of a configuration.
#[derive(Clone, Copy)]
pub struct Options<'a> {
    /// The element type of activations and caches; `f32` by default.
    pub dtype: DType,
    /// The element type that a weight is stored in, by its parameter's name. By default the configuration's (8-bit floats
    /// for what its `quantization_config` covers), and `f32` for the bias of the router.
    pub weight_dtype: Option<&'a dyn Fn(&str) -> DType>,
    /// Whether what a reference records becomes a result of `@main`, `@forward` and `@mtp`, too: `layers.{l}.` with
    /// `attn_out`, `mlp_out`, `out`, `kv_latent`, `k_rope`, and in expert layers `router_logits`, `topk_idx` (best first)
    /// and `topk_weight`; `final_norm`.
    pub taps: bool,
    /// With `taps`: whether `layers.0.attn_probs`, the attention weights `[b, h, s, t]` of the first layer, is a result.
    pub attn_probs: bool,
    /// Whether latent attention caches the keys and values of every head, as [`Mla::expanded_cache`] says.
    ///
    /// [`Mla::expanded_cache`]: super::mla::Mla::expanded_cache
    pub expanded_cache: bool,
    /// How many bytes a token may take in the caches of one layer; the configuration's by default.
    pub kv_budget: Option<u64>,
    /// Whether the MTP modules that the configuration has become functions `@mtp`, `@mtp_1`, ….
    pub mtp: bool,
}

impl Default for Options<'_> {
    fn default() -> Self {
        Self {
            dtype: F32,
            weight_dtype: None,
            taps: false,
            attn_probs: false,
            expanded_cache: false,
            kv_budget: None,
            mtp: false,
        }
    }
}

/// The module of a model.
///
/// ```
/// use eva::model::{Options, causal_lm, config::Config};
/// # let json = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/v3-tiny/config.json"));
/// let config = Config::from_json(json).unwrap();
/// let module = causal_lm(&config, &Options::default()).unwrap();
/// assert!(module.func("main").is_some() && module.func("forward").is_some());
/// ```
pub fn causal_lm(config: &Config, options: &Options) -> Result<Module, Diags> {
    let p = Program::new().taps(options.taps);
    let p = match options.kv_budget.or(config.kv_budget) {
        Some(bytes) => p.kv_budget(bytes),
        None => p,
    };
    let default = |name: &str| default_dtype(config, name);
    let stored = options.weight_dtype.unwrap_or(&default);
    let mut model = Model::new(&p, config, options, stored);
    let layers: Vec<Func<Tensor>> = (0..config.layers).map(|l| model.layer(l)).collect();
    if options.mtp {
        for depth in 0..config.mtp_layers {
            let layer = model.layer(config.layers + depth);
            mtp::module(&model, &layer, depth);
        }
    }
    p.function("forward", |f| {
        let ids = f.input("ids", I64, [&model.b, &model.s]);
        let start = f.input("start", I32, [&model.b]);
        let hidden = model.final_norm(f, &model.trunk(f, &layers, &ids, &start)).tap("final_norm");
        let logits = model.head(f, model.head_weight(), &hidden).named("logits");
        if options.mtp { vec![logits, hidden] } else { vec![logits] }
    });
    p.function("main", |f| {
        let ids = f.input("ids", I64, [&model.b, &model.s]);
        let start = f.input("start", I32, [&model.b]);
        let last = f.input("last", I32, [&model.b]);
        let hidden = model.trunk(f, &layers, &ids, &start).take_row(&last);
        model.head(f, model.head_weight(), &model.final_norm(f, &hidden)).named("logits")
    });
    p.finish()
}

/// The configuration's element type, 8-bit floats for what it quantizes, and `f32` for the bias of the router.
fn default_dtype(config: &Config, name: &str) -> DType {
    use eva_runtime::checkpoint::CheckpointDType;
    match config.dtype {
        _ if name.ends_with("e_score_correction_bias") => F32,
        _ if config.quantizes(name) => F8E4M3,
        CheckpointDType::Bf16 => BF16,
        CheckpointDType::F16 => F16,
        _ => F32,
    }
}

/// What the functions of a model have in common.
pub(super) struct Model<'a> {
    pub p: &'a Program,
    pub config: &'a Config,
    pub options: &'a Options<'a>,
    pub stored: &'a dyn Fn(&str) -> DType,
    pub b: Dim,
    pub s: Dim,
    pub t: Dim,
    pub m: Dim,
    pub w: Dim,
    /// The distinct layers made so far.
    layers: Vec<Made>,
}

/// A layer that has become a function.
struct Made {
    func: Func<Tensor>,
    experts: bool,
    observe: bool,
}

impl<'a> Model<'a> {
    pub(super) fn new(
        p: &'a Program,
        config: &'a Config,
        options: &'a Options<'a>,
        stored: &'a dyn Fn(&str) -> DType,
    ) -> Self {
        let [b, s, t] = ["b", "s", "t"].map(|name| p.dim(name));
        let m = p.dim_fixed("m", config.hidden as i64);
        let w = p.dim_fixed("w", config.vocab as i64);
        Self { p, config, options, stored, b, s, t, m, w, layers: Vec::new() }
    }

    /// The function of layer `index`, made if no earlier layer is the same.
    fn layer(&mut self, index: usize) -> Func<Tensor> {
        let mut layer = Layer::of(self.p, self.config, index);
        let observe = self.options.taps && self.options.attn_probs && index == 0;
        layer.attention.observe(observe);
        if let Attention::Latent(mla) = &mut layer.attention {
            mla.expanded_cache = self.options.expanded_cache;
        }
        let experts = matches!(layer.ffn, Ffn::Experts(_));
        let stored = |name: &str| (self.stored)(&format!("model.layers.{index}.{name}"));
        let same = |made: &&Made| {
            made.experts == experts
                && made.observe == observe
                && made.func.weights().all(|(name, ty)| stored(name) == ty.dtype)
        };
        if let Some(made) = self.layers.iter().find(same) {
            return made.func.clone();
        }
        let kind = if experts { "moe_layer" } else { "dense_layer" };
        let name = match self.layers.iter().filter(|made| made.experts == experts).count() {
            0 => kind.to_string(),
            n => format!("{kind}_{n}"),
        };
        let func = self.p.function(&name, |f| {
            let x = f.input("x", self.options.dtype, [&self.b, &self.s, &self.m]);
            let table =
                [Dim::from(&self.b), Dim::from(&self.s), Dim::from(2), layer.attention.rope().clone()];
            let rope = f.input("rope", F32, table);
            let start = f.input("start", I32, [&self.b]);
            let tokens = Tokens { rope, start, cached: Some(self.t.clone()) };
            layer.apply(&self.weights(f, &stored), &x, &tokens)
        });
        self.layers.push(Made { func: func.clone(), experts, observe });
        func
    }

    /// The weights of a scope, those of 8 bits counting as the compute type.
    pub fn weights<'s>(&self, f: &Scope, stored: &'s dyn Fn(&str) -> DType) -> Weights<'s> {
        Weights::new(f, stored).scaled(self.options.dtype, self.config.scale_block())
    }

    /// The residual stream `[b, s, m]` after all layers.
    fn trunk(&self, f: &Scope, layers: &[Func<Tensor>], ids: &Tensor, start: &Tensor) -> Tensor {
        let x = self.embed(f, "model.embed_tokens.weight", ids);
        let rope = self.rope(f, start);
        let model = f.scope("model");
        let apply = |x, (l, layer)| model.call(layer, &format!("layers.{l}"), [&x, &rope, start]);
        layers.iter().enumerate().fold(x, apply)
    }

    /// Token embeddings `[b, s, m]` in the compute type.
    pub fn embed(&self, f: &Scope, weight: &str, ids: &Tensor) -> Tensor {
        let table = f.weight(weight, (self.stored)(weight), [&self.w, &self.m]);
        table.embedding(ids).cast(self.options.dtype)
    }

    /// The rotary table of the new tokens.
    pub fn rope(&self, f: &Scope, start: &Tensor) -> Tensor {
        let p = self.p.dim_fixed("p", self.config.qk_rope as i64);
        Rope::of(self.config).table(f, start, &self.s, &p)
    }

    /// The model's last norm.
    pub(super) fn final_norm(&self, f: &Scope, x: &Tensor) -> Tensor {
        rms_norm(&self.weights(f, self.stored).at("model.norm"), x, self.config.rms_eps)
    }

    /// The name of the head's weight.
    pub(super) fn head_weight(&self) -> &'static str {
        if self.config.tie_embeddings { "model.embed_tokens.weight" } else { "lm_head.weight" }
    }

    /// Logits `f32[…, w]` of normalized states.
    pub fn head(&self, f: &Scope, weight: &str, hidden: &Tensor) -> Tensor {
        let w = f.weight(weight, (self.stored)(weight), [&self.w, &self.m]);
        hidden.linear(&w).cast(F32)
    }
}
