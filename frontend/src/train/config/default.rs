//! What a run is if nothing else is said.

use super::{
    CheckpointConfig, DataConfig, DataKind, EvalConfig, GradientScale, Kind, MetricsConfig, ModelConfig,
    OnError, OptimizerConfig, OptimizerName, PrecisionConfig, ScheduleConfig, ScheduleKind, TokenType,
};
use eva_ir::types::DType;

impl Default for ModelConfig {
    fn default() -> Self {
        Self { config: None, checkpoint: None, init_std: 0.006, init_seed: None, router_skew: 0.0 }
    }
}

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            kind: DataKind::Text,
            paths: Vec::new(),
            field: "text".into(),
            tokenizer: "bytes".into(),
            separator: None,
            token_type: TokenType::U16,
            sequence: 256,
            batch: 8,
            accumulate: 1,
            holdout: 0.05,
            holdout_paths: Vec::new(),
            shuffle: true,
            seed: None,
            symbols: 64,
        }
    }
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self {
            name: OptimizerName::Adamw,
            lr: 3e-4,
            betas: [0.9, 0.95],
            eps: 1e-8,
            weight_decay: 0.1,
            clip: 1.0,
            moments: DType::F32,
            momentum: 0.9,
            no_decay: vec![Kind::Norm],
        }
    }
}

impl Default for ScheduleConfig {
    fn default() -> Self {
        Self {
            kind: ScheduleKind::Constant,
            warmup: 0,
            floor: 0.1,
            at: [0.676, 0.966, 0.989],
            last: 0.0332,
            milestones: vec![0.6, 0.9],
            factor: 0.316,
        }
    }
}

impl Default for PrecisionConfig {
    fn default() -> Self {
        Self {
            compute: DType::F32,
            tf32: false,
            fp8: None,
            gradient_scale: GradientScale::Fixed(1.0),
            scale_steps: 2000,
        }
    }
}

impl Default for EvalConfig {
    fn default() -> Self {
        Self { every: 100, batches: 16 }
    }
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        Self { every: 500, keep: 2, dtype: DType::F32, on_error: OnError::Stop }
    }
}

impl Default for MetricsConfig {
    fn default() -> Self {
        Self { every: 1, tensorboard: true, fp8: false, spike: 8.0, on_spike: OnError::Continue }
    }
}
