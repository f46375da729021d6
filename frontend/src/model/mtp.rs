//! Multi-token prediction (DeepSeek-V3, arXiv:2412.19437, section 2.2): a layer that predicts the token after the next.
//!
//! At position `i`, with the state `h_i` of the model after its final norm and the next token `t_{i+1}`:
//!
//! `z_i = W_eh [RMSNorm_e(Emb(t_{i+1})) ; RMSNorm_h(h_i)]`, `z' = Layer(z)`, `hidden_i = RMSNorm_s(z'_i)`, and the logits
//! `hidden_i W_headᵀ` are for `t_{i+2}`.
//!
//! The report writes `[h ; Emb]`; the columns of the public `eh_proj` are for `[Emb ; h]`. The layer is an
//! ordinary one with a cache of its own. Its tensors are those of `model.layers.{l}` after the model's last layer, with
//! stored copies of the embedding and the head.

use super::causal_lm::Model;
use super::norm::rms_norm;
use super::weights::Weights;
use crate::prelude::*;

/// Adds `@mtp` (or `@mtp_{depth}`, for depths above 0, which take the state `hidden` of the one before).
pub(super) fn module(model: &Model, layer: &Func<Tensor>, depth: usize) {
    let name = match depth {
        0 => "mtp".to_string(),
        depth => format!("mtp_{depth}"),
    };
    let (config, dtype) = (model.config, model.options.dtype);
    let at = format!("model.layers.{}", config.layers + depth);
    model.p.function(&name, |f| {
        let ids = f.input("ids", I64, [&model.b, &model.s]);
        let hidden = f.input("hidden", dtype, [&model.b, &model.s, &model.m]);
        let start = f.input("start", I32, [&model.b]);
        let w = model.weights(f, model.stored).at(&at);

        let embedded = model.embed(f, &format!("{at}.embed_tokens.weight"), &ids);
        let z = joined(model, &w, &embedded, &hidden);

        let z = f.call_tapped(layer, &at, &name, [&z, &model.rope(f, &start), &start]);
        let hidden = rms_norm(&w.at("shared_head.norm"), &z, config.rms_eps).named(&format!("{name}.hidden"));
        let logits = model.head(f, &format!("{at}.shared_head.head.weight"), &hidden);
        (logits.named(&format!("{name}.logits")), hidden)
    });
}

/// What the layer begins with: `z = W_eh [RMSNorm_e(embedded) ; RMSNorm_h(hidden)]`.
pub(super) fn joined(model: &Model, w: &Weights, embedded: &Tensor, hidden: &Tensor) -> Tensor {
    let eps = model.config.rms_eps;
    let embedded = rms_norm(&w.at("enorm"), embedded, eps);
    let hidden = rms_norm(&w.at("hnorm"), hidden, eps);
    embedded.concat(-1, &hidden).linear(&w.get("eh_proj.weight", [&model.m, &(&model.m * 2)]))
}
