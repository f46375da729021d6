//! Gradients of all weights against those that other software recorded: `eva compare --gradients`.

use super::{CompareOptions, Computed, Ids, Row};
use crate::engine::{EngineError, Progress, expert_name};
use crate::model::config::Config;
use crate::model::{Training, training};
use crate::prelude::*;
use eva_passes::cost::CostOptions;
use eva_passes::grad::{self, GRADIENT, differentiate};
use eva_runtime::checkpoint::Checkpoint;
use eva_runtime::{CompileOptions, Executable, Session, Weights};
use std::path::Path;
use std::sync::Arc;

/// The largest norm of a gradient's difference, over that of the recorded one, that is allowed.
const LIMIT: f64 = 1e-4;

/// The same for activations in a narrower type, where single choices of experts flip.
const NARROW: f64 = 0.15;

/// Computes the loss of the reference's `input_ids` and `labels` and its gradients; one row for each tensor recorded in
/// `gradients`, and one for the loss, sorted by name. Position `i` is held against the label at `i + 1`.
pub fn compare_gradients(
    dir: &Path,
    reference: &Path,
    gradients: &Path,
    options: &CompareOptions,
    progress: &dyn Progress,
) -> Result<Vec<Row>, EngineError> {
    let config = Config::load(dir)?;
    let checkpoint = Checkpoint::open(dir)?;
    config.check(&checkpoint, false)?;
    let (reference, recorded) = (Checkpoint::open(reference)?, Checkpoint::open(gradients)?);
    let find = |name: &str| reference.get(&format!("{}{name}", options.prefix));
    let missing = || EngineError::Prompt("the reference has no `input_ids`".into());
    let ids = Ids::of(&find("input_ids").ok_or_else(missing)?)?;
    let labels = find("labels").map(|labels| Ids::of(&labels)).transpose()?;
    let labels = labels.as_ref().unwrap_or(&ids);
    if (labels.batch, labels.len) != (ids.batch, ids.len) {
        return Err(EngineError::Prompt("`labels` has another shape than `input_ids`".into()));
    }

    progress.begin("compiling", 0);
    let mut step = GradientStep::compile(&config, options)?;
    progress.end();
    let weights = step.read(&config, &checkpoint)?;
    let next = |b: usize, i: usize| labels.row(b).get(i + 1).copied().unwrap_or(-100);
    let labels: Vec<i64> = (0..ids.batch).flat_map(|b| (0..ids.len).map(move |i| next(b, i))).collect();
    let computed = step.run(&weights, &ids, &labels)?;

    let (_, loss) = &computed["loss"];
    let mut rows = Vec::new();
    if let Some(want) = find("loss").and_then(|loss| loss.to_f32().ok()) {
        let difference = (loss[0] - f64::from(want[0])).abs();
        let limit = if options.load.dtype == F32 { 1e-5 } else { 0.05 };
        let (name, ok) = ("loss".into(), difference <= limit);
        rows.push(Row { name, difference: Some(difference), limit: Some(limit), ok, note: String::new() });
    }
    let limit = if options.load.dtype == F32 { LIMIT } else { NARROW };
    for tensor in recorded.iter() {
        let name = tensor.name.to_string();
        let fail = |note: String| Row { name: name.clone(), difference: None, limit: None, ok: false, note };
        let Some((shape, have)) = find_gradient(&computed, &name) else {
            rows.push(fail("no such gradient is computed".into()));
            continue;
        };
        if shape != tensor.shape {
            rows.push(fail(format!("the gradient is {shape:?}, the recorded one {:?}", tensor.shape)));
            continue;
        }
        let want = tensor.to_f32()?;
        let (error, size) = have.iter().zip(&want).fold((0.0, 0.0), |(error, size), (x, y)| {
            let y = f64::from(*y);
            (error + (x - y) * (x - y), size + y * y)
        });
        // What is zero is zero exactly: an expert without tokens.
        let difference = if size == 0.0 { error.sqrt() } else { (error / size).sqrt() };
        let (limit, note) = if size == 0.0 { (0.0, "zero") } else { (limit, "") };
        let ok = difference <= limit;
        rows.push(Row { name, difference: Some(difference), limit: Some(limit), ok, note: note.into() });
    }
    rows.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(rows)
}

/// The gradient of the weight of this name in a checkpoint, perhaps that of one expert among those that are stacked.
fn find_gradient<'c>(computed: &'c Computed, name: &str) -> Option<(Vec<usize>, &'c [f64])> {
    if let Some((shape, data)) = computed.get(&format!("{name}{GRADIENT}")) {
        return Some((shape.clone(), data));
    }
    let (layer, rest) = name.split_once(".mlp.experts.")?;
    let (expert, weight) = rest.split_once('.')?;
    let expert: usize = expert.parse().ok()?;
    let (shape, data) = computed.get(&format!("{layer}.mlp.experts.{weight}{GRADIENT}"))?;
    let each: usize = shape[1..].iter().product();
    (expert < shape[0]).then(|| (shape[1..].to_vec(), &data[expert * each..][..each]))
}

/// The loss of a model and its gradients, compiled.
struct GradientStep {
    executable: Arc<Executable>,
}

impl GradientStep {
    fn compile(config: &Config, options: &CompareOptions) -> Result<Self, EngineError> {
        let load = &options.load;
        let module = training(config, &Training { dtype: load.dtype, ..Training::default() });
        let module = module.map_err(EngineError::Module)?;
        let grad = grad::Options { cost: CostOptions::default(), ..grad::Options::default() };
        let module =
            differentiate(&module, "loss", &grad).map_err(|diag| EngineError::Module(diag.into()))?;
        let mut compile =
            CompileOptions { threads: load.threads, device: load.device, ..CompileOptions::default() };
        compile.passes.form = load.form;
        compile.passes.numerics = load.numerics;
        Ok(Self { executable: Arc::new(Executable::compile(&module, &compile)?) })
    }

    /// The weights as `f32`, those of experts stacked.
    fn read(&self, config: &Config, checkpoint: &Checkpoint) -> Result<Weights, EngineError> {
        let plan = self.executable.func_plan(self.executable.func("loss.grad")?);
        let mut weights = Weights::new();
        for param in plan.weights() {
            let experts = config.experts.as_ref().map_or(0, |moe| moe.routed);
            let parts: Vec<String> = match checkpoint.get(&param.name) {
                Some(_) => vec![param.name.clone()],
                None => (0..experts).filter_map(|i| expert_name(&param.name, i)).collect(),
            };
            let (mut data, mut shape) = (Vec::new(), Vec::new());
            for part in &parts {
                let missing = || EngineError::Unsupported(format!("the checkpoint has no `{part}`"));
                let tensor = checkpoint.get(part).ok_or_else(missing)?;
                shape = tensor.shape.to_vec();
                data.extend(tensor.to_f32()?);
            }
            if parts.len() > 1 || checkpoint.get(&param.name).is_none() {
                shape.insert(0, parts.len());
            }
            let tensor = eva_runtime::Tensor::from_f32(&shape, &data);
            weights.insert(param.name.clone(), Arc::new(tensor.into()));
        }
        Ok(weights)
    }

    /// All results, by their names.
    fn run(&mut self, weights: &Weights, ids: &Ids, labels: &[i64]) -> Result<Computed, EngineError> {
        let mut session = Session::new(self.executable.clone(), "loss.grad", weights)?;
        let shape = [ids.batch, ids.len];
        let labels = eva_runtime::Tensor::from_i64(&shape, labels);
        let ids = eva_runtime::Tensor::from_i64(&shape, &ids.ids);
        let seed = eva_runtime::Tensor::from_f32(&[], &[1.0]);
        let inputs = [("ids", &ids), ("labels", &labels), ("loss.grad", &seed)];
        let results = session.run(&inputs, None, &[])?;
        Ok(results.into_iter().map(|(name, t)| (name, (t.shape().to_vec(), t.to_f64()))).collect())
    }
}
