//! [`Trainer`]: a model, its parameters and an optimizer on a device, a step at a time.

use super::checkpoint::{RunState, Snapshot};
use super::config::{GradientScale, RunConfig};
use super::data::{Batch, IGNORED};
use super::model::{GRAD, Graphs, LOAD, LOSS, LOSS_GRAD, bias_of, layout};
use super::optimizer::{Buffers, Optimizer, OptimizerError};
use super::params::{Group, Layout, WIDTH};
use super::scaling::Scaling;
use super::schedule::rate;
use crate::prelude::DType;
use crate::quantized::Report;
use eva_ir::dim::Dim;
use eva_ir::graph::ParamKind;
use eva_runtime::{CompileOptions, Executable, Part, Session, Shared, States, Tensor, Weights};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What histories of scales are called in checkpoints, before their names.
const HISTORY: &str = "history.";

/// Why a step could not be taken.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum TrainError {
    #[error(transparent)]
    Runtime(#[from] eva_runtime::Error),
    #[error(transparent)]
    Optimizer(#[from] OptimizerError),
    #[error("the training module is wrong: {0}")]
    Module(String),
    #[error("step {step}: {what} is {value}; the parameters are as they were after step {}{op}", .step - 1)]
    NotFinite { step: u64, what: &'static str, value: f64, op: String },
}

/// What came of a step.
#[derive(Clone, Debug, Default)]
pub struct StepReport {
    /// Its number, from 1.
    pub step: u64,
    /// The mean loss of all labels of the step, before it.
    pub loss: f64,
    /// The norm of the gradients, before they were clipped.
    pub grad_norm: f64,
    /// The learning rate.
    pub lr: f64,
    /// Tokens of the step.
    pub tokens: u64,
    /// What else the model reports.
    pub more: Vec<(String, f64)>,
}

/// A model that learns.
pub struct Trainer {
    layout: Layout,
    weights: Weights,
    params: Arc<Shared>,
    /// Of each weight, the names of its gradient and where that goes: for the first batch of a step, and for those after it.
    gradients: Vec<(String, Part, Option<Part>)>,
    grad: Session,
    /// What `grad` keeps from call to call, if anything: histories of delayed scales.
    histories: Option<States>,
    scaling: Scaling,
    loss: Session,
    /// Whether `loss` has what is computed of the parameters as they are now.
    fresh: bool,
    optimizer: Optimizer,
    /// Of what is quantized, if the run has statistics of it; empty.
    statistics: Report,
    whole: bool,
    run: RunConfig,
}

/// What the batches of a step, or of a measurement, came to.
#[derive(Default)]
struct Sum {
    loss: f64,
    scalars: BTreeMap<String, f64>,
    loads: BTreeMap<String, Vec<f64>>,
}

impl Trainer {
    /// Compiles a training module. All parameters are zeros: see [`Trainer::set`].
    pub fn new(run: &RunConfig, graphs: &Graphs, group: &dyn Fn(&str) -> Group) -> Result<Self, TrainError> {
        let (threads, device) = (run.threads, run.target);
        let compile = CompileOptions { threads, device, passes: graphs.passes.clone(), ..Default::default() };
        let exe = Arc::new(Executable::compile(&graphs.module, &compile)?);
        let plan = exe.func_plan(exe.func(LOSS_GRAD)?);
        let fixed = |dim: &Dim| {
            dim.eval(&|sym| exe.plan().dims.iter().find(|(name, _)| name == sym).and_then(|(_, n)| *n))
        };
        let open = || TrainError::Module(format!("a weight of @{LOSS_GRAD} has an extent that is not fixed"));
        let layout = layout(plan, &fixed, group).ok_or_else(open)?;
        let other = plan.params.iter().find(|param| {
            param.kind == ParamKind::Weight
                && layout.get(&param.name).is_some()
                && param.ty.dtype != DType::F32
        });
        if let Some(other) = other {
            return Err(TrainError::Module(format!("`{}` is {}, not f32", other.name, other.ty)));
        }
        let buffer = |rows, what| Layout::buffer(&exe, rows, DType::F32, what);
        let params = buffer(layout.all(), "the parameters")?;
        let whole = buffer(layout.learned(), "the gradients")?;
        let partial = match run.data.accumulate {
            0 | 1 => None,
            _ => Some(buffer(layout.learned(), "the gradients of a batch")?),
        };
        let mut gradients = Vec::new();
        let mut more =
            partial.as_ref().map(|partial| layout.gradients(partial)).transpose()?.map(Vec::into_iter);
        for (name, part) in layout.gradients(&whole)? {
            let next = more.as_mut().and_then(Iterator::next).map(|(_, part)| part);
            gradients.push((format!("{name}{GRAD}"), part, next));
        }
        let weights = layout.weights(&params)?;
        let grad = Session::new(exe.clone(), LOSS_GRAD, &weights)?;
        let loss = Session::new(exe.clone(), LOSS, &weights)?;
        let buffers =
            Buffers { layout: &layout, params: &params, gradients: &whole, partial: partial.as_ref() };
        let optimizer = Optimizer::new(&run.optimizer, &buffers, &compile)?;
        let histories = histories(&grad)?;
        let scaling = Scaling::new(&run.precision);
        let statistics = Report::new(exe.plan(), LOSS_GRAD);
        let (run, whole, fresh) = (run.clone(), graphs.whole, false);
        Ok(Self {
            layout,
            weights,
            params,
            gradients,
            grad,
            histories,
            scaling,
            loss,
            fresh,
            optimizer,
            statistics,
            whole,
            run,
        })
    }

    /// Where parameters are.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Whether every batch must be as large as the run says.
    pub fn needs_whole_batches(&self) -> bool {
        self.whole
    }

    /// The executable of the model.
    pub fn executable(&self) -> &Arc<Executable> {
        self.grad.executable()
    }

    /// Gives all parameters these values, flat.
    pub fn set(&mut self, flat: &[f32]) -> Result<(), TrainError> {
        let bytes: Vec<u8> = flat.iter().flat_map(|x| x.to_le_bytes()).collect();
        Layout::part(&self.params, 0..self.layout.all(), DType::F32)?.write(&bytes)?;
        self.changed()
    }

    /// All parameters, flat.
    pub fn get(&self) -> Result<Vec<f32>, TrainError> {
        let all = Layout::part(&self.params, 0..self.layout.all(), DType::F32)?.read()?;
        Ok(all.bytes().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
    }

    fn changed(&mut self) -> Result<(), TrainError> {
        self.fresh = false;
        Ok(self.grad.refresh(&self.weights)?)
    }

    /// What a checkpoint has beside the parameters, the optimizer's moments and histories of scales: name, type, bytes.
    pub fn moments(&self) -> Vec<(String, DType, usize)> {
        let moments = self.optimizer.moments().iter();
        let mut all: Vec<_> = moments
            .map(|moment| (moment.name.to_string(), moment.values.dtype(), moment.values.bytes()))
            .collect();
        if let Some(states) = &self.histories {
            for name in states.whole() {
                let (dtype, shape) = states.shape(name).unwrap_or((DType::F32, &[]));
                let bytes = shape.iter().product::<usize>() * dtype.bytes() as usize;
                all.push((format!("{HISTORY}{name}"), dtype, bytes));
            }
        }
        all
    }

    /// All that a run goes on from, with its state.
    pub fn snapshot(&self, state: &RunState) -> Result<Snapshot, TrainError> {
        let mut moments = Vec::new();
        for moment in self.optimizer.moments() {
            let values = moment.values.read()?;
            moments.push((moment.name.to_string(), values.dtype(), values.bytes().to_vec()));
        }
        if let Some(states) = &self.histories {
            for name in states.whole() {
                let values = states.get(name)?;
                moments.push((format!("{HISTORY}{name}"), values.dtype(), values.bytes().to_vec()));
            }
        }
        let state = RunState { scaling: self.scaling, ..state.clone() };
        Ok(Snapshot { state, params: self.get()?, moments })
    }

    /// Goes on from a snapshot.
    pub fn restore(&mut self, snapshot: &Snapshot) -> Result<(), TrainError> {
        for (moment, (_, _, bytes)) in self.optimizer.moments().iter().zip(&snapshot.moments) {
            moment.values.write(bytes)?;
        }
        for (name, dtype, bytes) in &snapshot.moments {
            if let (Some(name), Some(states)) = (name.strip_prefix(HISTORY), &mut self.histories) {
                let shape = states.shape(name).map_or(Vec::new(), |(_, shape)| shape.to_vec());
                let values = Tensor::from_bytes(*dtype, &shape, bytes);
                states.write(
                    name,
                    &values.ok_or_else(|| TrainError::Module(format!("`{name}` has another size")))?,
                )?;
            }
        }
        self.scaling = snapshot.state.scaling.resumed(&self.run.precision);
        self.set(&snapshot.params)
    }

    /// Takes step `step`, counted from 1: from these batches' loss to new parameters. If loss or gradients are no finite
    /// numbers, nothing changes; with a dynamic factor on gradients that is a step, too, after which the factor is smaller.
    pub fn step(&mut self, step: u64, batches: &[Batch]) -> Result<StepReport, TrainError> {
        let counted = batches.iter().map(|batch| batch.counted).sum::<u64>().max(1) as f64;
        let Scaling { scale, skipped, .. } = self.scaling;
        let (mut sum, mut quantized) = (Sum::default(), self.statistics.clone());
        for (i, batch) in batches.iter().enumerate() {
            let share = batch.counted as f64 / counted;
            self.backward(i, batch, share * scale)?;
            sum.take(&mut self.grad, share)?;
            let of = |name: &str| Ok((name.to_string(), self.grad.take(name)?));
            let taken: Vec<_> = self.statistics.results().map(of).collect::<Result<_, TrainError>>()?;
            quantized.add(&taken);
            if i > 0 {
                self.optimizer.accumulate()?;
            }
        }
        let (norm, factor) = self.optimizer.norm(scale)?;
        let overflown = sum.loss.is_finite() && !norm.is_finite();
        let skips = overflown && self.scaling.shrink(&self.run.precision);
        for (what, value) in [("the loss", sum.loss), ("the norm of the gradients", f64::from(norm))] {
            if !value.is_finite() && !skips {
                let op = self.find(batches)?;
                return Err(TrainError::NotFinite { step, what, value, op });
            }
        }
        let lr = rate(&self.run.schedule, self.run.optimizer.lr, step, self.run.steps);
        if skips {
            // The histories have numbers that are not finite, and begin anew.
            self.histories = histories(&self.grad)?;
        } else {
            self.optimizer.update(step - skipped, lr, factor)?;
            self.balance(&sum.loads)?;
            self.changed()?;
            self.scaling.grow(&self.run.precision);
        }
        let tokens = batches.iter().map(|batch| batch.ids.shape().iter().product::<usize>() as u64).sum();
        let mut more: Vec<(String, f64)> = sum.scalars.into_iter().collect();
        more.extend(sum.loads.iter().flat_map(|(layer, load)| utilisation(layer, load)));
        more.extend(changes(&quantized));
        if self.run.precision.gradient_scale == GradientScale::Dynamic {
            more.push(("gradient_scale".into(), scale));
            more.push(("skipped".into(), self.scaling.skipped as f64));
        }
        Ok(StepReport { step, loss: sum.loss, grad_norm: norm.into(), lr, tokens, more })
    }

    /// Computes the gradients of batch `i` of a step, times `seed`.
    fn backward(&mut self, i: usize, batch: &Batch, seed: f64) -> Result<(), TrainError> {
        let into: Vec<(&str, &Part)> = self
            .gradients
            .iter()
            .map(|(name, first, next)| (name.as_str(), next.as_ref().filter(|_| i > 0).unwrap_or(first)))
            .collect();
        let inputs = Inputs::new(&self.grad, batch, Some(seed));
        Ok(self.grad.start_into(&inputs.with(batch), self.histories.as_mut(), &[], &into)?)
    }

    /// The loss of a batch, and the gradients of all parameters that are learned, flat; nothing changes.
    pub fn gradients(&mut self, batch: &Batch) -> Result<(f64, Vec<f32>), TrainError> {
        self.backward(0, batch, 1.0)?;
        let mut sum = Sum::default();
        sum.take(&mut self.grad, 1.0)?;
        let Some((_, first, _)) = self.gradients.first() else { return Ok((sum.loss, Vec::new())) };
        let all = Layout::part(first.memory(), 0..self.layout.learned(), DType::F32)?.read()?;
        Ok((sum.loss, all.to_f32()))
    }

    /// Runs a step again, looking at what every kernel writes; in words, where the first number is that is not finite.
    fn find(&mut self, batches: &[Batch]) -> Result<String, TrainError> {
        self.grad.check_finite(true);
        let mut found =
            String::from("; no op of the model makes one, so gradients are too large to be added up");
        for batch in batches {
            let inputs = Inputs::new(&self.grad, batch, Some(self.scaling.scale));
            match self.grad.start(&inputs.with(batch), self.histories.as_mut(), &[]) {
                Err(eva_runtime::Error::NotFinite(first)) => {
                    found = format!("; the first op to make one: {first}");
                    break;
                }
                done => done?,
            }
        }
        self.grad.check_finite(false);
        Ok(found)
    }

    /// Moves the biases of routers by the loads of their experts: DeepSeek-V3's balancing without a loss (arXiv:2412.19437,
    /// section 2.1.2), `b ← b + γ sign(mean load - load)`.
    fn balance(&mut self, loads: &BTreeMap<String, Vec<f64>>) -> Result<(), TrainError> {
        let gamma = self.run.balance.gamma as f32;
        if gamma == 0.0 {
            return Ok(());
        }
        for (layer, load) in loads {
            let Some(param) = self.layout.get(&bias_of(layer)) else { continue };
            let part = self.params.part(param.offset * 4, DType::F32, &param.shape)?;
            let mean = load.iter().sum::<f64>() / load.len().max(1) as f64;
            let moved = part.read()?.to_f32().into_iter().zip(load).map(|(bias, load)| {
                let sign = mean.partial_cmp(load).map_or(0, |order| order as i8);
                bias + gamma * f32::from(sign)
            });
            let bytes: Vec<u8> = moved.flat_map(f32::to_le_bytes).collect();
            part.write(&bytes)?;
        }
        Ok(())
    }

    /// The mean loss of batches (of the model's own, where others are added to it), and what else the model reports.
    pub fn measure(
        &mut self,
        batches: impl Iterator<Item = Result<Batch, super::data::DataError>>,
    ) -> Result<(f64, Vec<(String, f64)>), super::RunError> {
        if !std::mem::replace(&mut self.fresh, true) {
            self.loss.refresh(&self.weights).map_err(TrainError::from)?;
        }
        let (mut sum, mut counted) = (Sum::default(), 0.0);
        // Histories of this measurement alone: it depends on nothing but parameters and data.
        let mut histories = histories(&self.loss).map_err(TrainError::from)?;
        for batch in batches {
            let batch = batch?;
            let inputs = Inputs::new(&self.loss, &batch, None);
            self.loss.start(&inputs.with(&batch), histories.as_mut(), &[]).map_err(TrainError::from)?;
            sum.take(&mut self.loss, batch.counted as f64)?;
            counted += batch.counted as f64;
        }
        let mean = |x: f64| x / f64::max(counted, 1.0);
        // Without what is added to it for training alone.
        let loss = sum.scalars.get("lm_loss").copied().unwrap_or(sum.loss);
        Ok((mean(loss), sum.scalars.into_iter().map(|(name, x)| (name, mean(x))).collect()))
    }

    /// Bytes that the run has on the device: parameters, gradients, moments, and the activations of a step.
    pub fn device_bytes(&self, batch: usize, length: usize) -> usize {
        let learned = self.layout.learned() * WIDTH * 4;
        let gradients = if self.run.data.accumulate > 1 { 2 * learned } else { learned };
        let moments: usize = self.optimizer.moments().iter().map(|moment| moment.values.bytes()).sum();
        let arena = self.grad.arena_bytes(&[("b", batch), ("s", length)]).unwrap_or(0);
        self.params.bytes() + gradients + moments + arena
    }
}

/// What a function keeps from call to call, all zeros; nothing if it keeps nothing.
fn histories(session: &Session) -> Result<Option<States>, eva_runtime::Error> {
    let any = session.plan().params.iter().any(|param| param.kind == ParamKind::State);
    any.then(|| session.whole_states(&[])).transpose()
}

/// What a function takes of a batch.
struct Inputs {
    named: Vec<(&'static str, Tensor)>,
}

impl Inputs {
    fn new(session: &Session, batch: &Batch, seed: Option<f64>) -> Self {
        let has = |name: &str| {
            session.plan().params.iter().any(|param| param.name == name && param.kind == ParamKind::Input)
        };
        let mut named = Vec::new();
        if has("next_ids") {
            // Of the last token of a sequence the one after the next is not known.
            let length = batch.ids.shape()[1];
            let (ids, labels) = (batch.ids.to_i64(), batch.labels.to_i64());
            let (mut next_ids, mut next_labels) =
                (Vec::with_capacity(ids.len()), Vec::with_capacity(ids.len()));
            for (ids, labels) in ids.chunks(length).zip(labels.chunks(length)) {
                next_ids.extend(&ids[1..]);
                next_ids.push(labels[length - 1].max(0));
                next_labels.extend(&labels[1..]);
                next_labels.push(IGNORED);
            }
            let shape = batch.ids.shape();
            named.push(("next_ids", Tensor::from_i64(shape, &next_ids)));
            named.push(("next_labels", Tensor::from_i64(shape, &next_labels)));
        }
        named.extend(seed.map(|seed| ("loss.grad", Tensor::from_f32(&[], &[seed as f32]))));
        Self { named }
    }

    fn with<'a>(&'a self, batch: &'a Batch) -> Vec<(&'a str, &'a Tensor)> {
        let named = self.named.iter().map(|(name, tensor)| (*name, tensor));
        [("ids", &batch.ids), ("labels", &batch.labels)].into_iter().chain(named).collect()
    }
}

impl Sum {
    /// Adds what a call gives that is no gradient, `loss` and other scalars times `share`.
    fn take(&mut self, session: &mut Session, share: f64) -> Result<(), TrainError> {
        let results = session.plan().results.iter().filter(|result| result.state.is_none());
        let names: Vec<(String, usize)> =
            results.map(|result| (result.name.clone(), result.ty.rank())).collect();
        for (name, rank) in names.iter().filter(|(name, _)| !name.ends_with(GRAD)) {
            let numbers = || -> Result<Vec<f64>, TrainError> { Ok(session.take(name)?.to_f64()) };
            if let Some(layer) = name.strip_suffix(LOAD) {
                let load = { numbers }()?;
                let sum = self.loads.entry(layer.into()).or_insert_with(|| vec![0.0; load.len()]);
                sum.iter_mut().zip(load).for_each(|(sum, n)| *sum += n);
            } else if *rank == 0 {
                let x = { numbers }()?.first().copied().unwrap_or(0.0) * share;
                match name.as_str() {
                    LOSS => self.loss += x,
                    _ => *self.scalars.entry(name.clone()).or_default() += x,
                }
            }
        }
        Ok(())
    }
}

/// How evenly the experts of a layer are used: the loads of the fullest and of the emptiest, and the variance of all, relative
/// to the mean.
fn utilisation(layer: &str, load: &[f64]) -> [(String, f64); 3] {
    let mean = (load.iter().sum::<f64>() / load.len().max(1) as f64).max(f64::MIN_POSITIVE);
    let relative = || load.iter().map(|n| n / mean);
    let (most, least) = (relative().fold(0.0, f64::max), relative().fold(f64::INFINITY, f64::min));
    let variance = relative().map(|x| (x - 1.0) * (x - 1.0)).sum::<f64>() / load.len().max(1) as f64;
    let layer = layer.trim_start_matches("layers.");
    [("max", most), ("min", least), ("variance", variance)]
        .map(|(what, x)| (format!("balance.{layer}.{what}"), x))
}

/// What quantizing did in a step: the mean and the largest of the relative errors, and the largest shares of numbers that became
/// zero or were cut off.
fn changes(report: &Report) -> Vec<(String, f64)> {
    let rows = report.rows();
    if rows.is_empty() {
        return Vec::new();
    }
    let most = |of: fn(&crate::quantized::Row) -> f64| rows.iter().map(of).fold(0.0, f64::max);
    let error = |row: &crate::quantized::Row| row.error.unwrap_or(0.0);
    let mean = rows.iter().map(error).sum::<f64>() / rows.len() as f64;
    let all = [
        ("error.mean", mean),
        ("error.max", most(error)),
        ("underflow.max", most(|row| row.underflow)),
        ("saturated.max", most(|row| row.saturated)),
    ];
    all.into_iter().map(|(what, x)| (format!("fp8.{what}"), x)).collect()
}
