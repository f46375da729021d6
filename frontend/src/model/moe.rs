//! Mixture of experts with shared experts (DeepSeekMoE, arXiv:2401.06066; routers of DeepSeek-V2, arXiv:2405.04434,
//! and DeepSeek-V3, arXiv:2412.19437).
//!
//! `y = Σ_{e chosen for x} weight_e · Expert_e(x) + Shared(x)`: each token goes to `k` of `e` SwiGLU blocks of width `f`,
//! and to one of width `shared · f` that is always on. Rows are sorted by expert, so that an expert
//! multiplies only the rows that were routed to it, and nothing is padded.

use super::config::{Moe, TopkMethod};
use super::mlp::SwiGlu;
use super::weights::Weights;
use crate::prelude::*;

/// The numbers of a block of experts.
#[derive(Clone, Debug)]
pub struct Experts {
    /// Routed experts, `e`.
    pub routed: Dim,
    /// Experts for a token, `k`.
    pub per_token: Dim,
    /// Inner columns of an expert, `f`.
    pub width: Dim,
    /// The width of the shared block, in experts; 0 for none.
    pub shared: i64,
    /// How experts are chosen.
    pub router: Router,
}

/// How a token's experts are chosen from its logits `z = x W_gᵀ [e]`, and how they are weighted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Router {
    /// DeepSeek-V3: by `sigmoid(z) + bias` within the groups whose two best sum highest; weights are `sigmoid(z)`.
    NoauxTc {
        /// The groups.
        groups: Groups,
        /// Whether weights are divided by their sum.
        normalize: bool,
        /// On every weight.
        scale: f64,
    },
    /// DeepSeek-V2-Lite: by `softmax(z)`, which is the weight, too.
    Greedy {
        /// On every weight.
        scale: f64,
    },
    /// DeepSeek-V2: by `softmax(z)` within the groups with the best single experts.
    GroupLimitedGreedy {
        /// The groups.
        groups: Groups,
        /// On every weight.
        scale: f64,
    },
}

/// What a block of experts did with the tokens of a batch.
#[derive(Clone, Debug)]
pub struct Routed {
    /// The router's logits, `f32[b, s, e]`.
    pub logits: Tensor,
    /// The experts of each token, `i32[b, s, k]`.
    pub chosen: Tensor,
}

impl Experts {
    /// Those of a configuration, with their extents declared in `p`.
    pub fn of(p: &Program, moe: &Moe) -> Self {
        let dim = |name: &str, n: usize| p.dim_fixed(name, n as i64);
        let groups = Groups { count: moe.groups as i64, kept: moe.groups_kept as i64 };
        let scale = moe.scale;
        let router = match moe.method {
            TopkMethod::NoauxTc => Router::NoauxTc { groups, normalize: moe.norm_topk, scale },
            TopkMethod::Greedy => Router::Greedy { scale },
            TopkMethod::GroupLimitedGreedy => Router::GroupLimitedGreedy { groups, scale },
        };
        Self {
            routed: dim("e", moe.routed),
            per_token: dim("k", moe.per_token),
            width: dim("f", moe.intermediate),
            shared: moe.shared as i64,
            router,
        }
    }

    /// `x [b, s, m] ↦ [b, s, m]`.
    ///
    /// The experts' weights are stacked: `experts.gate_proj.weight` and `experts.up_proj.weight [e, f, m]`,
    /// `experts.down_proj.weight [e, m, f]`, where a checkpoint has `experts.0.gate_proj.weight` and so on.
    #[track_caller]
    pub fn apply(&self, w: &Weights, x: &Tensor) -> Tensor {
        self.apply_and_tell(w, x).0
    }

    /// The same, and who went where.
    #[track_caller]
    pub fn apply_and_tell(&self, w: &Weights, x: &Tensor) -> (Tensor, Routed) {
        let Self { routed: e, per_token: k, width: f, .. } = self;
        let [b, s, m] = x.dims();
        let tokens = x.reshape([&(&b * &s), &m]).named("tokens");

        let (logits, chosen, weight) = self.route(&w.at("gate"), &tokens);
        let told = Routed {
            logits: logits.reshape([&b, &s, e]).tap("router_logits"),
            chosen: chosen.reshape([&b, &s, k]).tap("topk_idx"),
        };
        weight.reshape([&b, &s, k]).tap("topk_weight");

        let (order, position, offsets) = chosen.sort_by_expert(e);
        let (order, position, offsets) =
            (order.named("order"), position.named("position"), offsets.named("offsets"));
        let rows = tokens.dispatch(&order, k).named("rows");
        let experts = w.at("experts");
        let gate = rows.grouped("gm,efm->gf", &experts.get("gate_proj.weight", [e, f, &m]), &offsets);
        let up = rows.grouped("gm,efm->gf", &experts.get("up_proj.weight", [e, f, &m]), &offsets);
        let hidden = gate.silu() * up;
        let rows = hidden.grouped("gf,emf->gm", &experts.get("down_proj.weight", [e, &m, f]), &offsets);
        let routed = rows.combine(&position, &weight).reshape([&b, &s, &m]).named("routed");

        if self.shared == 0 {
            return (routed, told);
        }
        let shared = SwiGlu { width: f * self.shared }.apply(&w.at("shared_experts"), x).named("shared");
        (routed + shared, told)
    }

    /// For `tokens [t, m]` the router's logits `f32[t, e]`, the chosen experts `i32[t, k]`, best first, and their
    /// weights `f32[t, k]`; in `f32` throughout, since a rounding can change a choice.
    #[track_caller]
    pub fn route(&self, w: &Weights, tokens: &Tensor) -> (Tensor, Tensor, Tensor) {
        let (e, k) = (&self.routed, &self.per_token);
        let logits = tokens.cast(F32).linear(&w.get("weight", [e, &tokens.dim(-1)])).named("logits");
        let (chosen, weight) = match self.router {
            Router::NoauxTc { groups, normalize, scale } => {
                let bias = w.get("e_score_correction_bias", [e]).cast(F32);
                logits.route_noaux_tc(&bias, k, groups, normalize, scale)
            }
            Router::Greedy { scale } => logits.route_greedy(k, scale),
            Router::GroupLimitedGreedy { groups, scale } => {
                logits.route_group_limited_greedy(k, groups, scale)
            }
        };
        (logits, chosen.named("expert"), weight.named("weight"))
    }
}
