//! A model that learns from a reference's batch: what its gradients and its steps are compared on.

use super::{CompareOptions, Ids};
use crate::engine::{EngineError, Progress};
use crate::model::config::Config;
use crate::prelude::*;
use crate::train::RunConfig;
use crate::train::config::OptimizerConfig;
use crate::train::data::Batch;
use crate::train::model::Graphs;
use crate::train::params::{Group, Tensors, WIDTH};
use crate::train::start::EIGHT_BITS;
use crate::train::trainer::{TrainError, Trainer};
use eva_runtime::checkpoint::{Checkpoint, TensorRef};
use std::path::Path;

/// In how many bits something is computed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Bits {
    /// `f32` throughout.
    Full,
    /// `f32`, but operands of products are rounded to `tf32`.
    Rounded,
    /// Fewer.
    Narrow,
}

/// A model with its weights, and what it learns from.
pub(super) struct Learner {
    pub trainer: Trainer,
    /// Where each tensor of the checkpoint is among the trainer's parameters.
    pub tensors: Tensors,
    /// The reference's tokens; position `i` is held against the label at `i + 1`.
    pub batch: Batch,
    /// In how many bits it computes, which limits follow.
    pub bits: Bits,
}

impl Learner {
    /// The model in `dir` and the tokens that `find` has as `input_ids` and `labels` (the same, if there are none). Steps
    /// are AdamW's with a rate of 1e-3, betas 0.9 and 0.95, ε 1e-8, decay 0.1 of every parameter, and a clip of 1; biases of
    /// routers are frozen.
    pub fn new<'t>(
        dir: &Path,
        find: &dyn Fn(&str) -> Option<TensorRef<'t>>,
        steps: usize,
        options: &CompareOptions,
        progress: &dyn Progress,
    ) -> Result<Self, EngineError> {
        let config = Config::load(dir)?;
        let checkpoint = Checkpoint::open(dir)?;
        config.check(&checkpoint, false)?;
        if config.quantization.is_some() {
            return Err(EngineError::Unsupported(format!("{}: {EIGHT_BITS}", dir.display())));
        }
        let missing = || EngineError::Prompt("the reference has no `input_ids`".into());
        let ids = Ids::of(&find("input_ids").ok_or_else(missing)?)?;
        let labels = find("labels").map(|labels| Ids::of(&labels)).transpose()?;
        let labels = labels.as_ref().unwrap_or(&ids);
        if (labels.batch, labels.len) != (ids.batch, ids.len) {
            return Err(EngineError::Prompt("`labels` has another shape than `input_ids`".into()));
        }

        let load = &options.load;
        let mut run = RunConfig::new(steps as u64);
        (run.threads, run.target, run.precision.compute) = (load.threads, load.device, load.dtype);
        run.precision.tf32 = load.tf32;
        run.optimizer = OptimizerConfig { lr: 1e-3, no_decay: Vec::new(), ..OptimizerConfig::default() };
        (run.data.batch, run.data.sequence) = (ids.batch, ids.len);
        progress.begin("compiling", 0);
        run.form = load.form;
        let mut graphs = Graphs::with_recipe(&run, &config, load.fp8.clone(), load.numerics)?;
        graphs.passes.fp8.deny_fallback = load.deny_fp8_fallback;
        let mut trainer = Trainer::new(&run, &graphs, &|_| Group::Decay).map_err(failed)?;
        progress.end();
        let tensors = Tensors::new(&config, trainer.layout());
        let flat = tensors.read(&checkpoint, trainer.layout().all() * WIDTH)?;
        trainer.set(&flat).map_err(failed)?;

        let bits = match load.dtype {
            F32 if load.fp8.is_none() && load.tf32 => Bits::Rounded,
            F32 if load.fp8.is_none() => Bits::Full,
            _ => Bits::Narrow,
        };
        let shape = [ids.batch, ids.len];
        let labels = labels.shifted(ids.len, 1);
        let batch = Batch {
            ids: eva_runtime::Tensor::from_i64(&shape, &ids.ids),
            counted: labels.iter().filter(|label| **label >= 0).count() as u64,
            labels: eva_runtime::Tensor::from_i64(&shape, &labels),
        };
        Ok(Self { trainer, tensors, batch, bits })
    }
}

/// What stopped a step.
pub(super) fn failed(error: TrainError) -> EngineError {
    match error {
        TrainError::Runtime(error) => EngineError::Runtime(error),
        error => EngineError::Unsupported(error.to_string()),
    }
}
