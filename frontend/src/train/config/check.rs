//! What a configuration says that cannot be, beyond its syntax.

use super::{DataKind, GradientScale, Kind, OptimizerName, RunConfig};
use eva_runtime::Device;
use std::path::{Path, PathBuf};

/// Everything that is wrong, with its key.
pub(super) fn problems(config: &RunConfig) -> Vec<(&'static str, String)> {
    let mut found = Problems(Vec::new());
    let RunConfig { model, data, optimizer, schedule, precision, balance, loss, .. } = config;
    found.is(config.steps > 0, "steps", || "it is 0; a run has one step at least".into());
    found.is(config.threads != Some(0), "threads", || "it is 0; there is one thread at least".into());

    match (&model.config, &model.checkpoint) {
        (None, None) => {
            found.add("model", "give `config` (random weights) or `checkpoint` (weights to go on from)")
        }
        (Some(_), Some(_)) => found
            .add("model", "`config` and `checkpoint` are both there; a checkpoint has its own config.json"),
        _ => {}
    }
    found.positive("model.init_std", model.init_std);
    found.is(model.router_skew.is_finite(), "model.router_skew", || "it must be a finite number".into());
    found.is(model.router_skew == 0.0 || model.checkpoint.is_none(), "model.router_skew", || {
        "it is for random weights, and a checkpoint has its own".into()
    });

    let synthetic = data.kind.is_synthetic();
    found.is(synthetic || !data.paths.is_empty(), "data.paths", || {
        format!("it is empty, and data of kind `{}` come from files", data.kind)
    });
    found.is(!synthetic || data.paths.is_empty(), "data.paths", || {
        format!("data of kind `{}` are made, not read", data.kind)
    });
    found.is(data.kind != DataKind::Tokens || data.tokenizer == "bytes", "data.tokenizer", || {
        "data of kind `tokens` are token ids already".into()
    });
    for (key, n) in
        [("data.sequence", data.sequence), ("data.batch", data.batch), ("data.accumulate", data.accumulate)]
    {
        found.is((1..=1 << 24).contains(&n), key, || format!("it is {n}; it must be from 1 to {}", 1 << 24));
    }
    found.is((0.0..1.0).contains(&data.holdout), "data.holdout", || {
        format!("it is {}; it must be a share from 0 to less than 1", data.holdout)
    });
    found.is(data.symbols >= 2, "data.symbols", || format!("it is {}; two is the least", data.symbols));

    found.is(optimizer.betas.iter().all(|b| (0.0..1.0).contains(b)), "optimizer.betas", || {
        format!("they are {:?}; each must be from 0 to less than 1", optimizer.betas)
    });
    found.positive("optimizer.eps", optimizer.eps);
    for (key, x) in [
        ("optimizer.lr", optimizer.lr),
        ("optimizer.weight_decay", optimizer.weight_decay),
        ("optimizer.clip", optimizer.clip),
        ("balance.gamma", balance.gamma),
        ("balance.sequence_alpha", balance.sequence_alpha),
        ("balance.expert_alpha", balance.expert_alpha),
        ("loss.mtp", loss.mtp),
        ("loss.z", loss.z),
        ("metrics.spike", config.metrics.spike),
        ("schedule.last", schedule.last),
        ("schedule.factor", schedule.factor),
        ("schedule.floor", schedule.floor),
    ] {
        found.is(x >= 0.0 && x.is_finite(), key, || format!("it is {x}; it must be a number, 0 at least"));
    }
    found.is(balance.sequence_alpha == 0.0 || balance.expert_alpha == 0.0, "balance", || {
        "`sequence_alpha` and `expert_alpha` are both there: one loss balances experts".into()
    });
    found.is((0.0..1.0).contains(&optimizer.momentum), "optimizer.momentum", || {
        format!("it is {}; it must be from 0 to less than 1", optimizer.momentum)
    });
    found.is(
        optimizer.name == OptimizerName::Adamw || optimizer.moments == eva_ir::types::DType::F32,
        "optimizer.moments",
        || "`bf16` is for adamw".into(),
    );
    let twice = |kind: &Kind| optimizer.no_decay.iter().filter(|other| *other == kind).count() > 1;
    found.is(!optimizer.no_decay.iter().any(twice), "optimizer.no_decay", || "a kind is there twice".into());

    let rises = |shares: &[f64]| {
        shares.iter().all(|x| (0.0..=1.0).contains(x)) && shares.windows(2).all(|w| w[0] <= w[1])
    };
    found.is(rises(&schedule.at), "schedule.at", || {
        format!("they are {:?}; they must be shares of all steps that do not fall", schedule.at)
    });
    found.is(rises(&schedule.milestones), "schedule.milestones", || {
        format!("they are {:?}; they must be shares of all steps that do not fall", schedule.milestones)
    });

    if let GradientScale::Fixed(scale) = precision.gradient_scale {
        let power = scale.is_normal() && scale > 0.0 && scale.log2().fract() == 0.0;
        found.is(power, "precision.gradient_scale", || {
            format!("it is {scale}; it must be a power of two, so that nothing is rounded, or \"dynamic\"")
        });
    }
    found.is(!precision.tf32 || config.target != Device::Cpu, "precision.tf32", || {
        "it is for GPUs (`target = \"cuda\"`): a CPU's products of f32 are f32, and gain nothing by it".into()
    });
    found.is(precision.scale_steps > 0, "precision.scale_steps", || "it is 0; one is the least".into());
    if let Err(message) = config.recipe().map(drop) {
        found.add("precision.fp8", &message);
    }
    found.is(config.checkpoint.keep > 0, "checkpoint.keep", || "it is 0; one is the least".into());
    found.is(config.metrics.every > 0, "metrics.every", || "it is 0; one is the least".into());
    found.0
}

struct Problems(Vec<(&'static str, String)>);

impl Problems {
    fn add(&mut self, key: &'static str, message: &str) {
        self.0.push((key, message.into()));
    }

    fn is(&mut self, so: bool, key: &'static str, message: impl FnOnce() -> String) {
        if !so {
            self.0.push((key, message()));
        }
    }

    fn positive(&mut self, key: &'static str, x: f64) {
        self.is(x > 0.0 && x.is_finite(), key, || format!("it is {x}; it must be above 0"));
    }
}

/// Makes paths relative to `folder` that are relative to the file.
pub(super) fn resolve(config: &mut RunConfig, folder: &Path) {
    let at = |path: &mut PathBuf| *path = folder.join(&*path);
    at(&mut config.out);
    config.model.config.iter_mut().chain(&mut config.model.checkpoint).for_each(at);
    config.data.paths.iter_mut().chain(&mut config.data.holdout_paths).for_each(at);
    if config.data.tokenizer != "bytes" {
        config.data.tokenizer = folder.join(&config.data.tokenizer).to_string_lossy().into_owned();
    }
    // A recipe's name stays one.
    if let Some(fp8) = &mut config.precision.fp8
        && eva_passes::fp8::Recipe::named(fp8).is_none()
    {
        *fp8 = folder.join(&*fp8).to_string_lossy().into_owned();
    }
}
