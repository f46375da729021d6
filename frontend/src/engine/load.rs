//! Weights from a checkpoint, as the entry points take them.

use super::{EngineError, Progress};
use crate::model::config::Config;
use eva_runtime::checkpoint::Checkpoint;
use eva_runtime::{Executable, Weights, weights};
use std::sync::Arc;

/// The tensor of expert `i` among those that the parameter `name` stacks; `None` for other parameters.
pub(crate) fn expert_name(name: &str, i: usize) -> Option<String> {
    let (layer, weight) = name.split_once(".mlp.experts.")?;
    Some(format!("{layer}.mlp.experts.{i}.{weight}"))
}

/// Every weight that the entry points take, mapped or stacked, where the executable runs.
pub(super) fn load_weights(
    config: &Config,
    executable: &Executable,
    checkpoint: &Arc<Checkpoint>,
    entries: &[String],
    progress: &dyn Progress,
) -> Result<Weights, EngineError> {
    let mut names: Vec<String> = Vec::new();
    for entry in entries {
        let plan = executable.func_plan(executable.func(entry)?);
        names.extend(plan.weights().map(|param| param.name.clone()));
    }
    names.sort();
    names.dedup();
    progress.begin("loading", names.len());
    let mut all = Weights::new();
    for name in names {
        let weight = match weights::load(executable, checkpoint, &name)? {
            Some(weight) => Some(weight),
            None => {
                let experts = config.experts.as_ref().map_or(0, |moe| moe.routed);
                let parts: Option<Vec<String>> = (0..experts).map(|i| expert_name(&name, i)).collect();
                match parts {
                    Some(parts) => weights::load_stacked(executable, checkpoint, &parts)?,
                    None => None,
                }
            }
        };
        let mixed = || {
            let message = format!(
                "the tensors of `{name}` differ in shape or element type, or have one that eva does not know"
            );
            EngineError::Unsupported(message)
        };
        all.insert(name.clone(), Arc::new(weight.ok_or_else(mixed)?));
        progress.step();
    }
    progress.end();
    Ok(all)
}
