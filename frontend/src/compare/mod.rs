//! Comparing a compiled model with a recorded reference: what `eva compare` does.
//!
//! The reference is a safetensors file with `input_ids` and any of the tensors that [`RECORDED`] lists, each computed by
//! other software from the same checkpoint. Everything is computed by machine code: the forward pass with its
//! intermediate values, the losses, greedy generation through the cache, and the MTP module.

mod gradients;
mod learner;
mod training;

pub use gradients::compare_gradients;
pub use training::compare_training;

use crate::engine::{EngineError, LoadOptions, Model, Progress, default_recipe};
use crate::model::config::Config;
use crate::prelude::*;
use crate::train::data::IGNORED;
use eva_runtime::checkpoint::{Checkpoint, TensorRef};
use eva_runtime::sample::Sampling;
use eva_runtime::{CompileOptions, Executable, Session, Weights};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// The names that are understood, for messages and help.
pub const RECORDED: &str = "input_ids, labels, layers.N.{attn_out, mlp_out, out, kv_latent, k_rope, attn_probs, \
    router_logits, topk_idx, topk_weight}, final_norm, logits, loss, gen.{prompt, tokens, logits}, \
    mtp.{hidden, logits, loss, topk_idx, topk_weight}, train.*";

/// What was found for one recorded tensor.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Row {
    /// Its name in the reference.
    pub name: String,
    /// The largest difference (of indices and tokens: how many differ); `None` if it was not compared.
    pub difference: Option<f64>,
    /// The largest that is allowed.
    pub limit: Option<f64>,
    /// Whether it passes; skipped ones do.
    pub ok: bool,
    /// More about it, or nothing.
    pub note: String,
}

/// How to compare.
#[derive(Clone, Debug, Default)]
pub struct CompareOptions {
    /// Only tensors whose name starts so, without it.
    pub prefix: String,
    /// The form of attention, threads, and the compute type and recipe, of which limits depend.
    pub load: LoadOptions,
}

/// How a tensor's difference is measured and limited.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Hidden,
    Logits,
    RouterLogits,
    Router,
    Loss,
}

/// How numbers are computed, of which limits depend.
#[derive(Clone, Copy, PartialEq)]
enum Precision {
    /// In `f32`: limits are for the largest absolute difference.
    Full,
    /// In `f32`, activations being quantized, where one that rounds the other way moves single numbers far: limits are for
    /// the rms of the difference, over the reference's rms but for logits and losses.
    Quantized,
    /// In `f32`, operands of products being rounded to `tf32`: likewise.
    Rounded,
    /// In a narrower type: the rms of the difference over the reference's.
    Narrow,
}

impl Precision {
    fn of(load: &LoadOptions, config: &Config) -> Self {
        let recipe = load.fp8.clone().or_else(|| default_recipe(config));
        match load.dtype {
            F32 if recipe.is_some_and(|recipe| recipe.activations.is_some()) => Precision::Quantized,
            F32 if load.tf32 => Precision::Rounded,
            F32 => Precision::Full,
            _ => Precision::Narrow,
        }
    }

    /// The largest difference that is allowed.
    fn limit(self, kind: Kind) -> f64 {
        match (self, kind) {
            (Precision::Full, Kind::Hidden) => 3e-4,
            (Precision::Full, Kind::Logits | Kind::RouterLogits) => 2e-4,
            (Precision::Full, Kind::Router | Kind::Loss) => 1e-5,
            (Precision::Rounded, _) => 1e-2,
            (Precision::Quantized, Kind::Logits) => 0.05,
            (Precision::Quantized, _) => 2e-2,
            // One routing decision in two hundred may flip in bf16, which moves single values far.
            (Precision::Narrow, Kind::Loss) => 0.05,
            (Precision::Narrow, _) => 0.15,
        }
    }

    fn difference(self, kind: Kind, have: &[f64], want: &[f32]) -> f64 {
        let pairs = || have.iter().zip(want).map(|(&x, &y)| (x, f64::from(y)));
        if self == Precision::Full {
            return pairs().fold(0.0, |most, (x, y)| {
                if (x - y).is_nan() { f64::NAN } else { f64::max(most, (x - y).abs()) }
            });
        }
        let (error, size) = pairs().fold((0.0, 0.0), |(e, s), (x, y)| (e + (x - y) * (x - y), s + y * y));
        let size = match (self, kind) {
            (Precision::Quantized | Precision::Rounded, Kind::Logits | Kind::Loss) => want.len() as f64,
            _ => size,
        };
        (error / f64::max(size, 1e-30)).sqrt()
    }
}

/// Runs the model in `dir` on the reference's inputs; one row for each recorded tensor, sorted by name.
pub fn compare(
    dir: &Path,
    reference: &Path,
    options: &CompareOptions,
    progress: &dyn Progress,
) -> Result<Vec<Row>, EngineError> {
    let reference = Checkpoint::open(reference)?;
    let names = reference.iter().filter_map(|t| Some((t.name.strip_prefix(&options.prefix)?.to_string(), t)));
    let recorded: BTreeMap<String, TensorRef> = names.collect();
    let precision = Precision::of(&options.load, &Config::load(dir)?);
    let mut comparison = Comparison { recorded: &recorded, rows: Vec::new(), precision };
    let has = |name: &str| recorded.contains_key(name);

    let mut load = options.load.clone();
    load.taps = true;
    load.mtp = recorded.keys().any(|name| name.starts_with("mtp."));
    load.entries = vec!["main".into(), "forward".into()];
    if load.mtp {
        load.entries.push("mtp".into());
    }
    let mut computed = Computed::new();
    if has("input_ids") || has("gen.prompt") {
        let model = Model::load(dir, &load, progress)?;
        if has("input_ids") {
            forward(&model, &recorded, &load, &mut computed)?;
        }
        generate(&model, &recorded, &mut comparison)?;
    }
    // What a fused attention never has in memory is asked of a compilation of its own.
    if recorded.keys().any(|name| name.ends_with(".attn_probs")) && has("input_ids") {
        load.attn_probs = true;
        load.mtp = false;
        load.entries = vec!["forward".into()];
        let model = Model::load(dir, &load, progress)?;
        let ids = Ids::of(&recorded["input_ids"])?;
        let results = run_forward(&model, &ids)?;
        computed.extend(results.into_iter().filter(|(name, _)| name.ends_with(".attn_probs")));
    }
    comparison.tensors(&computed);
    comparison.rows.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(comparison.rows)
}

/// Tensors by name: extents and elements.
type Computed = BTreeMap<String, (Vec<usize>, Vec<f64>)>;

/// A batch of token ids.
struct Ids {
    batch: usize,
    len: usize,
    ids: Vec<i64>,
}

impl Ids {
    fn of(tensor: &TensorRef) -> Result<Self, EngineError> {
        let ids = tensor.to_i64()?;
        match *tensor.shape {
            [batch, len] if batch > 0 && len > 0 => Ok(Self { batch, len, ids }),
            _ => {
                let message =
                    format!("`{}` has the shape {:?}, not [sequences, tokens]", tensor.name, tensor.shape);
                Err(EngineError::Prompt(message))
            }
        }
    }

    fn row(&self, i: usize) -> &[i64] {
        &self.ids[i * self.len..][..self.len]
    }

    /// Of each sequence, `n` labels: for position `i` the one at `i + shift`, or one that does not count.
    fn shifted(&self, n: usize, shift: usize) -> Vec<i64> {
        let label = |b: usize, i: usize| self.row(b).get(i + shift).copied().unwrap_or(IGNORED);
        (0..self.batch).flat_map(|b| (0..n).map(move |i| label(b, i))).collect()
    }

    /// Ids as the engine takes them, checked against the vocabulary.
    fn checked(&self, model: &Model) -> Result<Vec<u32>, EngineError> {
        let ids: Vec<u32> = self.ids.iter().map(|&id| u32::try_from(id).unwrap_or(u32::MAX)).collect();
        model.check_tokens(&ids)?;
        Ok(ids)
    }
}

/// The forward pass with intermediate values, by the names of the reference.
fn run_forward(model: &Model, ids: &Ids) -> Result<Computed, EngineError> {
    ids.checked(model)?;
    let mut session = model.session("forward")?;
    let mut states = session.new_states(ids.batch, ids.len)?;
    let tokens = eva_runtime::Tensor::from_i64(&[ids.batch, ids.len], &ids.ids);
    let start = eva_runtime::Tensor::from_i32(&[ids.batch], &vec![0; ids.batch]);
    let inputs = [("ids", &tokens), ("start", &start)];
    let results = session.run(&inputs, Some(&mut states), &[("t", ids.len)])?;
    Ok(results.into_iter().map(|(name, t)| (name, (t.shape().to_vec(), t.to_f64()))).collect())
}

/// Everything that comes of `input_ids`: layers, logits, losses, MTP.
fn forward(
    model: &Model,
    recorded: &BTreeMap<String, TensorRef>,
    load: &LoadOptions,
    computed: &mut Computed,
) -> Result<(), EngineError> {
    let ids = Ids::of(&recorded["input_ids"])?;
    computed.extend(run_forward(model, &ids)?);
    // Where no labels are recorded, the tokens themselves are meant.
    let labels = recorded.get("labels").or_else(|| recorded.get("input_ids"));
    let labels = labels.map(Ids::of).transpose()?.filter(|l| (l.batch, l.len) == (ids.batch, ids.len));
    if let (Some(labels), Some((_, logits))) = (&labels, computed.get("logits")) {
        let loss = cross_entropy(logits, labels, ids.len, 1, model)?;
        computed.insert("loss".into(), (vec![], vec![loss]));
    }
    if !load.mtp || ids.len < 2 {
        return Ok(());
    }
    // Position i sees the state at i and the token at i + 1.
    let n = ids.len - 1;
    let next: Vec<i64> = (0..ids.batch).flat_map(|b| ids.row(b)[1..].to_vec()).collect();
    let Some((shape, states)) = computed.get("final_norm") else { return Ok(()) };
    let width = shape[2];
    let hidden: Vec<f64> = states.chunks(ids.len * width).flat_map(|row| row[..n * width].to_vec()).collect();
    let mut session = model.session("mtp")?;
    let mut cache = session.new_states(ids.batch, n)?;
    let next = eva_runtime::Tensor::from_i64(&[ids.batch, n], &next);
    let hidden = eva_runtime::Tensor::from_f64(load.dtype, &[ids.batch, n, width], &hidden);
    let start = eva_runtime::Tensor::from_i32(&[ids.batch], &vec![0; ids.batch]);
    let inputs = [("ids", &next), ("hidden", &hidden), ("start", &start)];
    let results = session.run(&inputs, Some(&mut cache), &[("t", n)])?;
    computed.extend(results.into_iter().map(|(name, t)| (name, (t.shape().to_vec(), t.to_f64()))));
    if let (Some(labels), Some((_, logits))) = (&labels, computed.get("mtp.logits")) {
        let loss = cross_entropy(logits, labels, n, 2, model)?;
        computed.insert("mtp.loss".into(), (vec![], vec![loss]));
    }
    Ok(())
}

/// The mean cross-entropy of `n` positions a sequence, position `i` against the label at `i + shift`, by machine code
/// where the model runs.
fn cross_entropy(
    logits: &[f64],
    labels: &Ids,
    n: usize,
    shift: usize,
    model: &Model,
) -> Result<f64, EngineError> {
    let vocab = model.config.vocab;
    let p = Program::new();
    let (rows, w) = (p.dim("n"), p.dim_fixed("w", vocab as i64));
    p.function("loss", |f| {
        let logits = f.input("logits", F32, [&rows, &w]);
        logits.cross_entropy(&f.input("labels", I64, [&rows])).named("loss")
    });
    let module = p.finish().map_err(EngineError::Module)?;
    let options = CompileOptions { device: model.executable().device(), ..CompileOptions::default() };
    let executable = Arc::new(Executable::compile(&module, &options)?);
    let mut session = Session::new(executable, "loss", &Weights::new())?;
    let labels = labels.shifted(n, shift);
    let logits = eva_runtime::Tensor::from_f64(F32, &[labels.len(), vocab], logits);
    let labels = eva_runtime::Tensor::from_i64(&[labels.len()], &labels);
    let results = session.run(&[("logits", &logits), ("labels", &labels)], None, &[])?;
    Ok(results.first().and_then(|(_, loss)| loss.to_f64().first().copied()).unwrap_or(f64::NAN))
}

/// Greedy generation through the cache, against the recorded tokens and the logits that chose them.
fn generate(
    model: &Model,
    recorded: &BTreeMap<String, TensorRef>,
    comparison: &mut Comparison,
) -> Result<(), EngineError> {
    let (Some(prompt), Some(tokens)) = (recorded.get("gen.prompt"), recorded.get("gen.tokens")) else {
        return Ok(());
    };
    let (prompt, tokens) = (Ids::of(prompt)?, Ids::of(tokens)?);
    if prompt.batch != tokens.batch || tokens.len < prompt.len {
        comparison.fail("gen.tokens", "it does not go on from `gen.prompt`");
        return Ok(());
    }
    if comparison.precision != Precision::Full {
        comparison.skip("gen.tokens", "greedy choices are compared in f32 only");
        comparison.skip("gen.logits", "greedy choices are compared in f32 only");
        return Ok(());
    }
    prompt.checked(model)?;
    let new = tokens.len - prompt.len;
    let (mut different, mut logits) = (0, Vec::new());
    for row in 0..prompt.batch {
        let ids: Vec<u32> = prompt.row(row).iter().map(|&id| id as u32).collect();
        let mut generator = model.generator(&ids, new, Sampling::default())?;
        generator.ignore_eos();
        for &want in &tokens.row(row)[prompt.len..] {
            let have = generator.step()?.map(i64::from);
            different += usize::from(have != Some(want));
            logits.extend(generator.logits().iter().map(|&x| f64::from(x)));
        }
    }
    comparison.count("gen.tokens", different);
    if let Some(tensor) = recorded.get("gen.logits") {
        let shape = vec![prompt.batch * new, model.config.vocab];
        let computed = Computed::from([("gen.logits".into(), (shape, logits))]);
        comparison.tensor("gen.logits", tensor, &computed, Kind::Logits);
    }
    Ok(())
}

/// The rows made so far.
struct Comparison<'a> {
    recorded: &'a BTreeMap<String, TensorRef<'a>>,
    rows: Vec<Row>,
    precision: Precision,
}

impl Comparison<'_> {
    fn row(&mut self, name: &str, difference: Option<f64>, limit: Option<f64>, note: &str) {
        if !self.recorded.contains_key(name) || self.rows.iter().any(|row| row.name == name) {
            return;
        }
        // A NaN is no difference that a limit allows.
        let ok = match (difference, limit) {
            (Some(difference), Some(limit)) => difference <= limit,
            _ => true,
        };
        self.rows.push(Row { name: name.into(), difference, limit, ok, note: note.into() });
    }

    fn skip(&mut self, name: &str, note: &str) {
        self.row(name, None, None, &format!("skipped: {note}"));
    }

    fn fail(&mut self, name: &str, note: &str) {
        if !self.rows.iter().any(|row| row.name == name) {
            let row = Row { name: name.into(), difference: None, limit: None, ok: false, note: note.into() };
            self.rows.push(row);
        }
    }

    fn count(&mut self, name: &str, different: usize) {
        self.row(name, Some(different as f64), Some(0.0), "");
    }

    /// Compares every recorded tensor that has no row yet.
    fn tensors(&mut self, computed: &Computed) {
        let recorded = self.recorded;
        for (name, tensor) in recorded {
            match name.as_str() {
                "input_ids" | "labels" | "gen.prompt" => self.row(name, None, None, "input"),
                _ if name.starts_with("train.") => self.skip(name, "training is compared by `--training`"),
                _ if name.ends_with("topk_idx") => self.choices(name, computed),
                // Weights are compared together with the choices they belong to.
                _ if name.ends_with("topk_weight") && self.rows.iter().any(|row| row.name == *name) => {}
                _ => match kind(name) {
                    None => self.fail(name, "no such tensor is known"),
                    Some(kind) => self.tensor(name, tensor, computed, kind),
                },
            }
        }
    }

    fn tensor(&mut self, name: &str, tensor: &TensorRef, computed: &Computed, kind: Kind) {
        if self.rows.iter().any(|row| row.name == name) {
            return;
        }
        let Some((shape, have)) = computed.get(name) else {
            return self.fail(name, "the model computes no such value");
        };
        let (Ok(want), true) = (tensor.to_f32(), tensor.shape == *shape) else {
            return self
                .fail(name, &format!("the model's is {shape:?}, the recorded one {:?}", tensor.shape));
        };
        let difference = self.precision.difference(kind, have, &want);
        self.row(name, Some(difference), Some(self.precision.limit(kind)), "");
    }

    /// Chosen experts and their weights, each token's sorted by expert.
    fn choices(&mut self, name: &str, computed: &Computed) {
        let weights = name.replace("topk_idx", "topk_weight");
        let (Some((shape, experts)), Some((_, have))) = (computed.get(name), computed.get(&weights)) else {
            self.fail(name, "the model computes no such value");
            return self.fail(&weights, "the model computes no such value");
        };
        let tensor = &self.recorded[name];
        let (Ok(want), true, Some(&k)) = (tensor.to_i64(), tensor.shape == *shape, shape.last()) else {
            return self
                .fail(name, &format!("the model's is {shape:?}, the recorded one {:?}", tensor.shape));
        };
        let mut sorted = Vec::with_capacity(have.len());
        let mut different = 0;
        for ((experts, weights), want) in experts.chunks(k).zip(have.chunks(k)).zip(want.chunks(k)) {
            let mut pairs: Vec<(i64, f64)> =
                experts.iter().map(|&e| e as i64).zip(weights.iter().copied()).collect();
            pairs.sort_by_key(|&(expert, _)| expert);
            different += usize::from(!pairs.iter().map(|(expert, _)| expert).eq(want));
            sorted.extend(pairs.into_iter().map(|(_, weight)| weight));
        }
        if self.precision == Precision::Full {
            self.count(name, different);
        } else {
            let most = (want.len() / k).div_ceil(20);
            self.row(
                name,
                Some(different as f64),
                Some(most as f64),
                match self.precision {
                    Precision::Quantized => "a few choices may flip where activations are quantized",
                    Precision::Rounded => "a few choices may flip where operands are rounded",
                    _ => "a few choices may flip in a narrower type",
                },
            );
        }
        if let Some(tensor) = self.recorded.get(&weights) {
            let sorted = Computed::from([(weights.clone(), (shape.clone(), sorted))]);
            self.tensor(&weights, tensor, &sorted, Kind::Router);
        }
    }
}

/// What a recorded name is; `None` if it is unknown.
fn kind(name: &str) -> Option<Kind> {
    let of_layer = name.strip_prefix("layers.").and_then(|rest| rest.split_once('.'));
    if let Some((layer, what)) = of_layer {
        layer.parse::<u32>().ok()?;
        return Some(match what {
            "attn_out" | "mlp_out" | "out" | "kv_latent" | "k_rope" => Kind::Hidden,
            "router_logits" => Kind::RouterLogits,
            "attn_probs" | "topk_weight" => Kind::Router,
            _ => return None,
        });
    }
    Some(match name {
        "final_norm" | "mtp.hidden" => Kind::Hidden,
        "logits" | "mtp.logits" | "gen.logits" | "gen.tokens" => Kind::Logits,
        "mtp.topk_weight" => Kind::Router,
        "loss" | "mtp.loss" => Kind::Loss,
        _ => return None,
    })
}
