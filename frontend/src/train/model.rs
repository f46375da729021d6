//! What a step computes: a module with the loss and its gradients, and the names that the loop knows them by.

use super::config::RunConfig;
use super::params::{Group, Layout};
use crate::engine::{EngineError, check_supported};
use crate::model::config::Config;
use crate::model::training::ACCURACY;
use crate::model::{Balance, Training};
use crate::prelude::*;
use eva_ir::dim::Sym;
use eva_ir::graph::ParamKind;
use eva_passes::Exactness;
use eva_passes::cost::CostOptions;
use eva_passes::fp8::Recipe;
use eva_passes::grad::{self, budget::fit};
use eva_passes::plan::FuncPlan;
use eva_passes::target::Target;
use eva_runtime::Device;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What the gradient of a weight is called, after the weight.
pub use eva_passes::grad::GRADIENT as GRAD;

/// What the routed tokens of each expert of a layer are called, after the layer.
pub const LOAD: &str = ".load";

/// The bias that moves with the load of `layer`.
pub fn bias_of(layer: &str) -> String {
    format!("model.{layer}.mlp.gate.e_score_correction_bias")
}

/// The functions of a training module.
///
/// `@loss` takes `ids i64[b, s]`, `labels i64[b, s]` and, for an MTP module, `next_ids` and `next_labels`
/// ([`mod@crate::model::training`]). It gives `loss f32[]` and what else it reports: scalars are written to the metrics, and
/// `layers.{l}.load [e]`, how many tokens went to each expert, is what biases of routers move by. `@loss.grad` takes
/// `loss.grad f32[]`, too, what the gradients are multiplied with, and gives `{weight}.grad` of each weight that is learned.
pub struct Graphs {
    /// The module.
    pub module: Module,
    /// What the passes are told.
    pub passes: eva_passes::Options,
    /// Whether every batch must be as large as the run says, since the extents are fixed.
    pub whole: bool,
}

impl Graphs {
    /// Those of a model, as a run trains it.
    pub fn of(run: &RunConfig, config: &Config) -> Result<Self, EngineError> {
        let recipe = run.recipe().map_err(EngineError::Unsupported)?;
        Self::with_recipe(run, config, recipe, Exactness::default())
    }

    /// The same with this recipe of 8-bit floats, in place of the run's, and rewriting that moves results as far as this.
    pub fn with_recipe(
        run: &RunConfig,
        config: &Config,
        recipe: Option<Recipe>,
        numerics: Exactness,
    ) -> Result<Self, EngineError> {
        let RunConfig { precision, balance, loss, .. } = run;
        let training = Training {
            dtype: precision.compute,
            balance: match (balance.sequence_alpha, balance.expert_alpha) {
                (0.0, 0.0) => Balance::None,
                (0.0, alpha) => Balance::Expert(alpha),
                (alpha, _) => Balance::Sequence(alpha),
            },
            mtp: Some(loss.mtp).filter(|weight| *weight > 0.0),
            z_loss: loss.z,
        };
        check_supported(config)?;
        if training.mtp.is_some() && config.mtp_layers == 0 {
            let message =
                "`loss.mtp` is above 0, but the model has no MTP module (`num_nextn_predict_layers`)";
            return Err(EngineError::Unsupported(message.into()));
        }
        let mut module = crate::model::training(config, &training).map_err(EngineError::Module)?;
        let sizes = [("b", run.data.batch), ("s", run.data.sequence)];
        let sizes: BTreeMap<Sym, i64> = sizes.map(|(name, n)| (Sym::from(name), n as i64)).into();
        let whole = recipe.is_some() || precision.tf32;
        if whole {
            // In the gradients of weights, tiles of tokens share a scale, and tensor cores sum over tokens as neighbours: their
            // number must be known.
            for (sym, value) in &mut module.dims {
                *value = value.or_else(|| sizes.get(sym).copied());
            }
        }
        let fp8 = eva_passes::fp8::Options { recipe, observe: run.metrics.fp8, ..Default::default() };
        let (form, tf32) = (run.form, precision.tf32);
        let passes = eva_passes::Options { fp8, form, numerics, tf32, ..Default::default() };
        let target = match run.target {
            Device::Cpu => Target::cpu(),
            Device::Cuda(_) => Target::cuda(),
        };
        // What is cheap to compute again, and what to keep, is the machine's to say.
        let cost = CostOptions { sizes: sizes.clone(), ..CostOptions::new(target.costs.clone()) };
        let (store, form) = (run.memory.keep, run.form);
        let options = grad::Options { store, cost, form, numerics, ..Default::default() };
        let module = match run.memory.activations {
            None => {
                let module = grad::differentiate(&module, LOSS, &options);
                module.map_err(|diag| EngineError::Module(Diags(vec![diag])))?
            }
            budget => {
                let fitted = fit(&module, LOSS, &options, (&target, &passes), &sizes, budget);
                fitted.map_err(eva_runtime::Error::from)?.module
            }
        };
        Ok(Self { module: without_accuracy(module), passes, whole })
    }
}

/// The module whose steps do not look for the most likely tokens: that reads all logits once more, and is for measuring.
fn without_accuracy(mut module: Module) -> Module {
    if let Some(func) = module.func(LOSS_GRAD) {
        let function = Arc::make_mut(&mut module.funcs[func]);
        let values = &function.values;
        function.results.retain(|result| values[*result].name != ACCURACY);
    }
    module
}

/// The function that gives the loss alone.
pub const LOSS: &str = "loss";

/// The function that gives its gradients, too.
pub const LOSS_GRAD: &str = "loss.grad";

/// The layout of a function's weights: those without a gradient are frozen, the others as `group` says.
pub fn layout(
    plan: &FuncPlan,
    dims: &dyn Fn(&Dim) -> Option<i64>,
    group: &dyn Fn(&str) -> Group,
) -> Option<Layout> {
    let learned = |name: &str| {
        plan.results.iter().any(|result| result.name.strip_suffix(GRAD).is_some_and(|of| of == name))
    };
    let own = plan.params.iter().filter(|param| param.kind == ParamKind::Weight && param.prepared.is_none());
    let mut params = Vec::new();
    for param in own {
        let extent = |dim: &Dim| dims(dim).and_then(|n| usize::try_from(n).ok());
        let shape: Vec<usize> = param.ty.shape.iter().map(extent).collect::<Option<_>>()?;
        let group = if learned(&param.name) { group(&param.name) } else { Group::Frozen };
        params.push((param.name.clone(), shape, group));
    }
    Some(Layout::new(params))
}
