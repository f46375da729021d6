//! Optimizers: graphs over flat buffers of parameters, gradients and moments ([`super::params`]).
//!
//! | function | does |
//! | --- | --- |
//! | `@norm` | the Euclidean norm of all gradients times `share`, and what they are multiplied with: rows are summed first, then their sums |
//! | `@adamw` | `p ← p·decay`; `m ← m + (1-β1)(g-m)`; `v ← β2 v + (1-β2) g²`; `p ← p - rate·m / (√v / root + ε)` (Loshchilov and Hutter, arXiv:1711.05101), each operation rounded as PyTorch's |
//! | `@sgd` | `m ← momentum·m + (g + decay·p)`; `p ← p - rate·m` |
//! | `@accumulate` | adds gradients to those before |
//!
//! Numbers that a step decides (`rate = lr / (1 - β1^t)`, `root = √(1 - β2^t)`, `decay = 1 - lr·wd`) are computed on the host in
//! `f64` and given as scalars, so a step differs from another in nothing but its inputs.

use super::config::{OptimizerConfig, OptimizerName};
use super::params::{Group, Layout, WIDTH};
use crate::prelude::*;
use eva_passes::Hoist;
use eva_runtime::{CompileOptions, Executable, Part, Session, Shared, States, Tensor as Numbers, Weight};
use std::ops::Range;
use std::sync::Arc;

/// Added to a norm before something is divided by it, as `clip_grad_norm_` does.
const CLIP_EPS: f64 = 1e-6;

/// The optimizers as one module.
pub fn module(config: &OptimizerConfig) -> Result<Module, Diags> {
    let p = Program::new();
    let shape = [p.dim("r"), p.dim_fixed("c", WIDTH as i64)];
    let none = || [] as [Dim; 0];
    let one = || [Dim::from(1), Dim::from(1)];
    p.function("norm", |f| {
        let g = f.weight("g", F32, &shape);
        let share = f.input("share", F32, none()).reshape(one());
        let rows = (&g * &g).sum(1).reshape([&Dim::from(1), &shape[0]]);
        let norm = rows.sum(1).sqrt() * &share;
        let factor = match config.clip {
            0.0 => share,
            clip => {
                let clipped = f.full(clip, F32, one()) / (&norm + CLIP_EPS);
                // The lesser of it and 1.
                -((-clipped).maximum(&f.full(-1.0, F32, one()))) * share
            }
        };
        vec![norm.reshape(none()).named("norm"), factor.reshape(none()).named("factor")]
    });
    p.function("accumulate", |f| {
        let g = f.weight("g", F32, &shape);
        let sum = f.state("sum", F32, &shape);
        sum.assign(&(sum.value() + &g));
        Vec::<Tensor>::new()
    });
    match config.name {
        OptimizerName::Adamw => p.function("update", |f| {
            let [factor, decay, rate, root] =
                ["factor", "decay", "rate", "root"].map(|name| f.input(name, F32, none()));
            let g = f.weight("g", F32, &shape) * &factor;
            let [m, v] = ["m", "v"].map(|name| f.state(name, config.moments, &shape));
            let p = f.state("p", F32, &shape);
            let [b1, b2] = config.betas;
            let (old_m, old_v) = (m.value().cast(F32), v.value().cast(F32));
            let new_m = &old_m + (&g - &old_m) * (1.0 - b1);
            let new_v = &old_v * b2 + (&g * (1.0 - b2)) * &g;
            m.assign(&new_m.cast(config.moments));
            v.assign(&new_v.cast(config.moments));
            let below = new_v.sqrt() / &root + config.eps;
            p.assign(&(p.value() * &decay - (&new_m * &rate) / below));
            Vec::<Tensor>::new()
        }),
        OptimizerName::Sgd => p.function("update", |f| {
            let [factor, decay, rate] = ["factor", "decay", "rate"].map(|name| f.input(name, F32, none()));
            let g = f.weight("g", F32, &shape) * &factor;
            let [p, m] = ["p", "m"].map(|name| f.state(name, F32, &shape));
            let new_m = m.value() * config.momentum + (&g + p.value() * &decay);
            m.assign(&new_m);
            p.assign(&(p.value() - &new_m * &rate));
            Vec::<Tensor>::new()
        }),
    };
    p.finish()
}

/// An optimizer with its state, on a device.
pub struct Optimizer {
    config: OptimizerConfig,
    norm: Session,
    /// For each group that there is: how it is updated, and whether it decays.
    updates: Vec<(Session, States, bool)>,
    accumulate: Option<(Session, States)>,
    moments: Vec<Moment>,
}

/// A moment of all parameters that are learned.
pub struct Moment {
    /// Its name.
    pub name: &'static str,
    /// `[rows, 4096]`.
    pub values: Part,
}

/// Why there is no optimizer.
#[derive(Debug, thiserror::Error)]
pub enum OptimizerError {
    /// Its module.
    #[error("{0}")]
    Module(Diags),
    /// Compiling or running.
    #[error(transparent)]
    Runtime(#[from] eva_runtime::Error),
}

/// What an optimizer works on.
pub struct Buffers<'a> {
    /// Where parameters are.
    pub layout: &'a Layout,
    /// All parameters.
    pub params: &'a Arc<Shared>,
    /// Gradients of those that are learned.
    pub gradients: &'a Arc<Shared>,
    /// Gradients of one batch, to be added to those of the batches before, if steps have several.
    pub partial: Option<&'a Arc<Shared>>,
}

impl Optimizer {
    /// Compiles it; moments are zeros.
    pub fn new(
        config: &OptimizerConfig,
        buffers: &Buffers,
        compile: &CompileOptions,
    ) -> Result<Self, OptimizerError> {
        let module = module(config).map_err(OptimizerError::Module)?;
        let mut compile =
            CompileOptions { device: compile.device, threads: compile.threads, ..compile.clone() };
        compile.passes = eva_passes::Options { hoist: Hoist::Never, ..Default::default() };
        let exe = Arc::new(Executable::compile(&module, &compile)?);
        let Buffers { layout, params, gradients, partial } = *buffers;
        let learned = 0..layout.learned();
        let session = |function: &str, buffer: &Arc<Shared>, rows: Range<usize>| {
            let part = Layout::part(buffer, rows, F32)?;
            let weights = [("g".to_string(), Arc::new(Weight::of_part(&part)))].into();
            Session::new(exe.clone(), function, &weights)
        };
        let names: &[&'static str] = match config.name {
            OptimizerName::Adamw => &["m", "v"],
            OptimizerName::Sgd => &["m"],
        };
        let mut moments = Vec::with_capacity(names.len());
        for name in names {
            let buffer = Layout::buffer(&exe, learned.end, config.moments, "an optimizer's moments")?;
            let values = Layout::part(&buffer, learned.clone(), config.moments)?;
            moments.push(Moment { name, values });
        }
        let mut updates = Vec::with_capacity(2);
        for (group, decays) in [(Group::Decay, true), (Group::Plain, false)] {
            let rows = layout.rows(group);
            if rows.is_empty() {
                continue;
            }
            let mut states = vec![("p", Layout::part(params, rows.clone(), F32)?)];
            for Moment { name, values } in &moments {
                states.push((name, Layout::part(values.memory(), rows.clone(), config.moments)?));
            }
            updates.push((session("update", gradients, rows)?, States::of_parts(&states), decays));
        }
        let accumulate = match partial {
            None => None,
            Some(partial) => {
                let sum = Layout::part(gradients, learned.clone(), F32)?;
                let states = States::of_parts(&[("sum", sum)]);
                Some((session("accumulate", partial, learned.clone())?, states))
            }
        };
        let norm = session("norm", gradients, learned)?;
        Ok(Self { config: config.clone(), norm, updates, accumulate, moments })
    }

    /// What it keeps beside the parameters.
    pub fn moments(&self) -> &[Moment] {
        &self.moments
    }

    /// Adds the gradients of one batch to those of the batches before.
    pub fn accumulate(&mut self) -> Result<(), eva_runtime::Error> {
        match &mut self.accumulate {
            Some((session, states)) => session.start(&[], Some(states), &[]),
            None => Ok(()),
        }
    }

    /// The norm of the gradients divided by `scale`, a power of two, not clipped, and what [`Optimizer::update`] multiplies
    /// them with.
    pub fn norm(&mut self, scale: f64) -> Result<(f32, f32), eva_runtime::Error> {
        let share = Numbers::from_f32(&[], &[scale.recip() as f32]);
        self.norm.start(&[("share", &share)], None, &[])?;
        Ok((self.norm.take("norm")?.to_f32()[0], self.norm.take("factor")?.to_f32()[0]))
    }

    /// Changes the parameters for the `step`th time, counted from 1.
    pub fn update(&mut self, step: u64, lr: f64, factor: f32) -> Result<(), eva_runtime::Error> {
        let config = &self.config;
        let power = |beta: f64| 1.0 - beta.powf(step as f64);
        let scalar = |x: f64| Numbers::from_f32(&[], &[x as f32]);
        let factor = Numbers::from_f32(&[], &[factor]);
        let (rate, root) = match config.name {
            OptimizerName::Adamw => (lr / power(config.betas[0]), Some(power(config.betas[1]).sqrt())),
            OptimizerName::Sgd => (lr, None),
        };
        let (rate, root) = (scalar(rate), root.map(scalar));
        for (session, states, decays) in &mut self.updates {
            let weight_decay = if *decays { config.weight_decay } else { 0.0 };
            let decay = scalar(match config.name {
                OptimizerName::Adamw => 1.0 - lr * weight_decay,
                OptimizerName::Sgd => weight_decay,
            });
            let mut inputs = vec![("factor", &factor), ("decay", &decay), ("rate", &rate)];
            inputs.extend(root.as_ref().map(|root| ("root", root)));
            session.start(&inputs, Some(states), &[])?;
        }
        Ok(())
    }
}
