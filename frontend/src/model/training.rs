//! A model's losses, over whole sequences: what training differentiates.
//!
//! | function | inputs | results |
//! | --- | --- | --- |
//! | `@loss` | `ids i64[b, s]`, `labels i64[b, s]`; with [`Training::mtp`] also `next_ids` and `next_labels` | `loss f32[]`, the sum of all; `lm_loss f32[]`; [`ACCURACY`]` f32[]`, the share of the labels that are the most likely token; where asked for `balance_loss`, `mtp_loss` and `z_loss f32[]`, weighed already; `layers.{l}.load f32[e]` for each layer with experts |
//!
//! `labels[b, i]` is the token that position `i` is to predict; one outside the vocabulary (-100, by custom) does not count.
//! Of the MTP module position `i` sees the token `next_ids[b, i]`, which follows that of the main model, and is to predict
//! `next_labels[b, i]`. A load is how many tokens of the batch went to each expert.
//!
//! There are no caches: every token sees those before it in its own sequence. Weights are `f32`, and cast to the type that
//! is computed in; their names are those of [`mod@super::causal_lm`]. An MTP module has no embedding and head of its own:
//! it uses the main model's, as DeepSeek-V3's report says (arXiv:2412.19437, section 2.2).

use super::causal_lm::{self, Model};
use super::config::Config;
use super::layer::{Ffn, Layer};
use super::mla::Tokens;
use super::moe::{Experts, Routed, Router};
use super::mtp;
use super::norm::rms_norm;
use crate::prelude::*;
use eva_ir::ops::count_by_expert::CountByExpert;
use eva_ir::ops::route_greedy::RouteGreedy;
use eva_ir::ops::step::Step;

/// What the share of the labels that are the most likely token is called, among the results.
pub const ACCURACY: &str = "accuracy";

/// A loss that keeps experts equally loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Balance {
    /// None.
    #[default]
    None,
    /// DeepSeek-V3's complementary loss of each sequence (arXiv:2412.19437, section 2.1.2), times this.
    Sequence(f64),
    /// DeepSeek-V2's loss at the level of experts (arXiv:2405.04434, section 2.1.3), of each sequence, times this.
    Expert(f64),
}

/// What is trained, and how.
#[derive(Clone, Copy, Debug)]
pub struct Training {
    /// The element type of activations.
    pub dtype: DType,
    /// The loss that balances experts.
    pub balance: Balance,
    /// The weight of the MTP module's loss, if it is trained, too (0.3 and later 0.1 for DeepSeek-V3).
    pub mtp: Option<f64>,
    /// The weight of `mean(log²Σ exp(logits))`, which keeps logits from growing (PaLM, arXiv:2204.02311, section 5); 0 for
    /// none.
    pub z_loss: f64,
}

impl Default for Training {
    fn default() -> Self {
        Self { dtype: F32, balance: Balance::None, mtp: None, z_loss: 0.0 }
    }
}

/// The module with a model's `@loss`.
///
/// ```
/// use eva::model::{Training, config::Config, training};
/// # let json = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/v3-tiny/config.json"));
/// let config = Config::from_json(json).unwrap();
/// let module = training(&config, &Training::default()).unwrap();
/// assert!(module.func("loss").is_some());
/// ```
pub fn training(config: &Config, training: &Training) -> Result<Module, Diags> {
    let p = Program::new();
    let stored = |_: &str| F32;
    let options = causal_lm::Options { dtype: training.dtype, ..Default::default() };
    let model = Model::new(&p, config, &options, &stored);
    let mut made: Vec<(bool, Func<Vec<Tensor>>)> = Vec::new();
    let mut layer_of = |index: usize| {
        let layer = Layer::of(&p, config, index);
        let experts = matches!(layer.ffn, Ffn::Experts(_));
        if let Some((_, func)) = made.iter().find(|(of, _)| *of == experts) {
            return func.clone();
        }
        let func = layer_function(&model, &layer, training, experts);
        made.push((experts, func.clone()));
        func
    };
    let layers: Vec<_> = (0..config.layers).map(&mut layer_of).collect();
    let with_mtp = training.mtp.filter(|_| config.mtp_layers > 0);
    let predictor = with_mtp.map(|weight| (weight, layer_of(config.layers)));
    p.function("loss", |f| {
        let ids = f.input("ids", I64, [&model.b, &model.s]);
        let labels = f.input("labels", I64, [&model.b, &model.s]);
        let start = f.apply(zeros(&model.b), &[]);
        let rope = model.rope(f, &start);
        let mut losses = Losses { loads: Vec::new(), balance: Vec::new() };

        let mut x = model.embed(f, "model.embed_tokens.weight", &ids);
        let scope = f.scope("model");
        for (l, layer) in layers.iter().enumerate() {
            let results = scope.call(layer, &format!("layers.{l}"), [&x, &rope, &start]);
            x = losses.take(results, l);
        }
        let hidden = model.final_norm(f, &x);
        let logits = model.head(f, model.head_weight(), &hidden);
        let lm_loss = mean_loss(&model, &logits, &labels).named("lm_loss");

        let mut extra = Vec::new();
        if let Some((weight, layer)) = &predictor {
            let next_ids = f.input("next_ids", I64, [&model.b, &model.s]);
            let next_labels = f.input("next_labels", I64, [&model.b, &model.s]);
            let at = format!("model.layers.{}", config.layers);
            let w = model.weights(f, &stored).at(&at);
            let embedded = model.embed(f, "model.embed_tokens.weight", &next_ids);
            let z = mtp::joined(&model, &w, &embedded, &hidden);
            let z = losses.take(f.call(layer, &at, [&z, &rope, &start]), config.layers);
            let hidden = rms_norm(&w.at("shared_head.norm"), &z, config.rms_eps);
            let logits = model.head(f, model.head_weight(), &hidden);
            extra.push((mean_loss(&model, &logits, &next_labels) * *weight).named("mtp_loss"));
        }
        if training.z_loss != 0.0 {
            let top = logits.max(-1);
            let sum = (&logits - &top).exp().sum(-1).log() + top;
            let mean = (&sum * &sum).mean(0).mean(1).reshape(Vec::<Dim>::new());
            extra.push((mean * training.z_loss).named("z_loss"));
        }
        let balance = losses.balance.iter().cloned().reduce(|a, b| a + b);
        extra.extend(balance.map(|sum| sum.named("balance_loss")));

        let total = extra.iter().fold(lm_loss.clone(), |sum, loss| sum + loss);
        // Of one loss alone there are two results all the same, which are two values.
        let total = if extra.is_empty() { total * 1.0 } else { total };
        let mut results = vec![total.named("loss"), lm_loss, accuracy(f, &model, &logits, &labels)];
        results.extend(extra);
        results.extend(losses.loads.iter().map(|(l, load)| load.named(&format!("layers.{l}.load"))));
        results
    });
    p.finish()
}

/// What layers give besides their states.
struct Losses {
    loads: Vec<(usize, Tensor)>,
    balance: Vec<Tensor>,
}

impl Losses {
    /// The state that layer `l` gives, of all its results.
    fn take(&mut self, results: Vec<Tensor>, l: usize) -> Tensor {
        let mut results = results.into_iter();
        let x = results.next().expect("a layer gives its state first");
        self.loads.extend(results.next().map(|load| (l, load)));
        self.balance.extend(results.next());
        x
    }
}

/// No token of any sequence comes before those of the batch.
fn zeros(b: &Dim) -> eva_ir::ops::full::Full {
    let (value, shape) = (eva_ir::attr::Real::new(0.0), eva_ir::attr::Dims(vec![b.clone()]));
    eva_ir::ops::full::Full { value, shape, dtype: I32 }
}

/// The mean cross-entropy of `logits [b, s, w]`.
fn mean_loss(model: &Model, logits: &Tensor, labels: &Tensor) -> Tensor {
    let tokens = &model.b * &model.s;
    logits.reshape([&tokens, &model.w]).cross_entropy(&labels.reshape([&tokens]))
}

/// The share of the labels whose logit is the largest of its row in `logits [b, s, w]`; 0 if none counts.
fn accuracy(f: &Scope, model: &Model, logits: &Tensor, labels: &Tensor) -> Tensor {
    let (tokens, w, one) = (&model.b * &model.s, &model.w, Dim::from(1));
    let number = model.config.vocab as f64;
    let is_above = |x: Tensor| f.apply(Step {}, &[&x]);
    let largest = logits.reshape([&tokens, w]).max(-1);
    let own = logits.reshape([&tokens, w, &one]).take_row(&labels.reshape([&tokens]));
    // 1/2 where they are equal, and else 0.
    let hit = is_above(own - largest) * 2.0;
    let label = labels.cast(F32).reshape([&tokens, &one]);
    let counts = is_above(&label + 0.5) * is_above(-&label + (number - 0.5));
    let shares = (hit * &counts).sum(0) / counts.sum(0).maximum(&f.full(1.0, F32, [&one, &one]));
    shares.reshape(Vec::<Dim>::new()).named(ACCURACY)
}

/// `@dense_layer` or `@moe_layer`: `x, rope, start ↦ x'`, and with experts their load and the loss of their balance.
fn layer_function(model: &Model, layer: &Layer, training: &Training, experts: bool) -> Func<Vec<Tensor>> {
    let name = if experts { "moe_layer" } else { "dense_layer" };
    model.p.function(name, |f| {
        let x = f.input("x", training.dtype, [&model.b, &model.s, &model.m]);
        let table = [model.b.clone(), model.s.clone(), Dim::from(2), layer.attention.rope().clone()];
        let rope = f.input("rope", F32, table);
        let start = f.input("start", I32, [&model.b]);
        let tokens = Tokens { rope, start, cached: None };
        let (x, routed) = layer.apply_and_tell(&model.weights(f, model.stored), &x, &tokens);
        let mut results = vec![x];
        if let (Some(routed), Ffn::Experts(experts)) = (routed, &layer.ffn) {
            let all = [&Dim::from(1), &(&model.b * &model.s), &experts.per_token];
            let load = count(f, &routed.chosen.reshape(all), &experts.routed);
            results.push(load.reshape([&experts.routed]).named("load"));
            results.extend(balance_loss(f, model, experts, &routed, training.balance));
        }
        results
    })
}

/// How many of `chosen[…, t, k]` each expert has, `f32[…, e]`.
fn count(f: &Scope, chosen: &Tensor, experts: &Dim) -> Tensor {
    f.apply(CountByExpert { experts: experts.clone() }, &[chosen])
}

/// `α · mean_b Σ_e f_e P_e`, with `f_e = E/(kT) · (items of e)` and `P_e` the mean over `T` tokens of the normalized scores.
fn balance_loss(
    f: &Scope,
    model: &Model,
    experts: &Experts,
    routed: &Routed,
    balance: Balance,
) -> Option<Tensor> {
    let (b, s, e, k) = (&model.b, &model.s, &experts.routed, &experts.per_token);
    let number = model.p.value_of(e)? as f64;
    // DeepSeek-V3 counts by the scores alone, without biases and groups.
    let (alpha, chosen) = match balance {
        Balance::None => return None,
        Balance::Expert(alpha) => (alpha, routed.chosen.clone()),
        Balance::Sequence(alpha) => {
            let logits = routed.logits.reshape([&(b * s), e]);
            let op = RouteGreedy { k: k.clone(), scale: eva_ir::attr::Real::new(1.0) };
            let [chosen, _] = f.apply_tuple(op, &[&logits]);
            (alpha, chosen.reshape([b, s, k]))
        }
    };
    let items = count(f, &chosen, e);
    let share = &items / &items.sum(-1);
    let scores = match experts.router {
        Router::NoauxTc { .. } => {
            let scores = routed.logits.sigmoid();
            &scores / &scores.sum(-1)
        }
        Router::Greedy { .. } | Router::GroupLimitedGreedy { .. } => {
            f.apply(eva_ir::ops::softmax::Softmax {}, &[&routed.logits])
        }
    };
    let mean = scores.mean(1).reshape([b, e]);
    let each = (share * mean).sum(-1).mean(0).reshape(Vec::<Dim>::new());
    Some((each * (alpha * number)).named("balance_loss"))
}
