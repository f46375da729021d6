//! What a run is told: `run.toml`.
//!
//! Every key has a default but `out`, `steps`, `model.config` or `model.checkpoint`, and `data.paths` for data of files.
//! Keys that there are not are errors with their line. Paths are relative to the file.

use eva_ir::types::DType;
use eva_passes::Form;
use eva_passes::fp8::Recipe;
use eva_runtime::Device;
use serde::Deserialize;
use std::fmt;
use std::path::{Path, PathBuf};

mod check;
mod default;
mod read;

pub use read::RunConfigError;

/// A run.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct RunConfig {
    /// The folder for checkpoints and metrics; made if it is not there.
    pub out: PathBuf,
    /// How many optimizer steps the run has.
    pub steps: u64,
    /// Where random numbers start that have no seed of their own. Default 0.
    #[serde(default)]
    pub seed: u64,
    /// Threads, on the CPU. By default `EVA_THREADS`, or the machine's processors. They do not change results.
    #[serde(default)]
    pub threads: Option<usize>,
    /// `cpu`, `cuda` or `cuda:1`. Default `cpu`.
    #[serde(default, deserialize_with = "read::device")]
    pub target: Device,
    /// The form of attention over latents, in both directions: `auto` (by cost), `expanded`, `absorbed` or `written`.
    /// Default `auto`.
    #[serde(default, deserialize_with = "read::form")]
    pub form: Form,
    /// The model.
    #[serde(default)]
    pub model: ModelConfig,
    /// What it learns from.
    #[serde(default)]
    pub data: DataConfig,
    /// How its parameters change.
    #[serde(default)]
    pub optimizer: OptimizerConfig,
    /// How fast they do.
    #[serde(default)]
    pub schedule: ScheduleConfig,
    /// What is computed in how many bits.
    #[serde(default)]
    pub precision: PrecisionConfig,
    /// How much a step may keep.
    #[serde(default)]
    pub memory: MemoryConfig,
    /// How experts come to an equal share.
    #[serde(default)]
    pub balance: BalanceConfig,
    /// What is added to the loss.
    #[serde(default)]
    pub loss: LossConfig,
    /// Measuring on held-out data.
    #[serde(default)]
    pub eval: EvalConfig,
    /// Checkpoints.
    #[serde(default)]
    pub checkpoint: CheckpointConfig,
    /// What is written down.
    #[serde(default)]
    pub metrics: MetricsConfig,
}

/// `[model]`.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct ModelConfig {
    /// A `config.json`, or a folder with one: a model of random weights.
    pub config: Option<PathBuf>,
    /// A folder with a checkpoint to go on from (weights only; a run goes on with `--resume`).
    pub checkpoint: Option<PathBuf>,
    /// The standard deviation of random weights. Default 0.006, DeepSeek-V3's. Gains of norms are 1, biases 0.
    pub init_std: f64,
    /// Where random weights start; `seed` by default.
    pub init_seed: Option<u64>,
    /// How unevenly routers begin, for trying out what balances them; see [`Tensors::skew`]. Default 0.
    ///
    /// [`Tensors::skew`]: super::params::Tensors::skew
    pub router_skew: f64,
}

/// `[data]`.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct DataConfig {
    /// What kind of data. Default `text`.
    pub kind: DataKind,
    /// The files, in order.
    pub paths: Vec<PathBuf>,
    /// For `jsonl`: the field with the text. Default `text`.
    pub field: String,
    /// For `text` and `jsonl`: `bytes`, or a `tokenizer.json` (or its folder). Default `bytes`.
    pub tokenizer: String,
    /// For `jsonl`: the token between documents. The configuration's `eos_token_id` by default, or none.
    pub separator: Option<u32>,
    /// For `tokens`: `u16` or `u32`. Default `u16`.
    pub token_type: TokenType,
    /// Tokens of a sequence. Default 256.
    pub sequence: usize,
    /// Sequences of a batch. Default 8.
    pub batch: usize,
    /// Batches of a step, whose gradients are added up. Default 1.
    pub accumulate: usize,
    /// The share of sequences, at the end of the data, that is held out. Default 0.05.
    pub holdout: f64,
    /// Files of held-out data, of the same kind, instead of a share.
    pub holdout_paths: Vec<PathBuf>,
    /// Whether sequences come in random order, another one in each epoch. Default true.
    pub shuffle: bool,
    /// Where that order starts, or synthetic data; `seed` by default.
    pub seed: Option<u64>,
    /// For synthetic tasks: how many symbols there are. Default 64, and no more than the vocabulary has room for.
    pub symbols: usize,
}

/// `data.kind`.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum DataKind {
    /// Files of text, one after another.
    #[default]
    Text,
    /// Files of one JSON object a line.
    Jsonl,
    /// Files of token ids, as they lie in memory.
    Tokens,
    /// Synthetic: symbols, a separator, the same symbols again.
    Copy,
    /// Synthetic: what followed a symbol when it was seen before follows it again.
    Induction,
    /// Synthetic: pairs of keys and values, then keys whose values are asked for.
    Recall,
    /// Synthetic: sums of decimal numbers, as text in bytes.
    Arithmetic,
}

/// `data.token_type`.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum TokenType {
    /// 16 bits, little-endian.
    #[default]
    U16,
    /// 32 bits, little-endian.
    U32,
}

/// `[optimizer]`.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct OptimizerConfig {
    /// `adamw` or `sgd`. Default `adamw`.
    pub name: OptimizerName,
    /// The learning rate at its highest. Default 3e-4.
    pub lr: f64,
    /// AdamW: how much of the moments stays. Default `[0.9, 0.95]`.
    pub betas: [f64; 2],
    /// AdamW: what is added to the square root. Default 1e-8.
    pub eps: f64,
    /// AdamW: decoupled decay; SGD: added to gradients. Default 0.1.
    pub weight_decay: f64,
    /// The longest that all gradients together may be; 0 for no limit. Default 1.
    pub clip: f64,
    /// AdamW: the type that moments are kept in, `f32` or `bf16`. Default `f32`.
    #[serde(deserialize_with = "read::float")]
    pub moments: DType,
    /// SGD: how much of the last change stays. Default 0.9.
    pub momentum: f64,
    /// Which weights do not decay: any of `norm`, `embedding`, `head`, `router`. Default `["norm"]`.
    pub no_decay: Vec<Kind>,
}

/// `optimizer.name`.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerName {
    /// AdamW, as PyTorch has it.
    #[default]
    Adamw,
    /// Gradient descent with momentum, as PyTorch has it.
    Sgd,
}

/// A kind of weights, in `optimizer.no_decay`.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Gains of norms.
    Norm,
    /// The token embedding.
    Embedding,
    /// The output head.
    Head,
    /// Routers.
    Router,
}

/// `[schedule]`; see [`super::schedule`].
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct ScheduleConfig {
    /// `constant`, `cosine`, `deepseek-v3` or `step`. Default `constant`.
    pub kind: ScheduleKind,
    /// Steps in which the rate rises from 0. Default 0.
    pub warmup: u64,
    /// `cosine` and `deepseek-v3`: the rate at the end of the fall, as a share of `optimizer.lr`. Default 0.1.
    pub floor: f64,
    /// `deepseek-v3`: the shares of all steps at which the rate begins to fall, is at the floor, and is at `last`.
    /// Default `[0.676, 0.966, 0.989]`, the report's (10, 14.3 and 14.633 of 14.8 T tokens).
    pub at: [f64; 3],
    /// `deepseek-v3`: the rate of the last steps, as a share. Default 0.0332 (7.3e-6 of 2.2e-4).
    pub last: f64,
    /// `step`: the shares of all steps at which the rate falls. Default `[0.6, 0.9]`, DeepSeek-V2's.
    pub milestones: Vec<f64>,
    /// `step`: what the rate is multiplied with there. Default 0.316.
    pub factor: f64,
}

/// `schedule.kind`.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum ScheduleKind {
    /// The same after the warm-up.
    #[default]
    Constant,
    /// Half a cosine down to the floor.
    Cosine,
    /// Constant, half a cosine, constant, constant.
    DeepseekV3,
    /// Down by a factor at each milestone.
    Step,
}

/// `[precision]`.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct PrecisionConfig {
    /// The type of activations, `f32` or `bf16`; weights are kept in `f32` and rounded to it. Default `f32`.
    #[serde(deserialize_with = "read::float")]
    pub compute: DType,
    /// Whether products of `f32` have operands rounded to `tf32`, so that a GPU's tensor cores take them. Default no.
    pub tf32: bool,
    /// A recipe of 8-bit floats: a name or a file. None by default.
    pub fp8: Option<String>,
    /// What the loss is multiplied with for the backward pass, and gradients divided by: a power of two, or `dynamic`.
    /// Default 1.
    #[serde(deserialize_with = "read::gradient_scale")]
    pub gradient_scale: GradientScale,
    /// For `dynamic`: how many steps with finite gradients it takes until the factor is doubled. Default 2000.
    pub scale_steps: u64,
}

/// `precision.gradient_scale`; see [`super::scaling`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum GradientScale {
    /// The same in all steps.
    Fixed(f64),
    /// Halved when gradients overflow, and doubled when they have not done so for a while.
    Dynamic,
}

/// `[memory]`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct MemoryConfig {
    /// The most bytes that the activations of a batch may take; what does not fit is computed again. No limit by default.
    pub activations: Option<usize>,
    /// What wide values may be kept as for the backward pass: `f32` (as they are) or `bf16`, which changes gradients.
    /// Default `f32`.
    #[serde(deserialize_with = "read::optional_float")]
    pub keep: Option<DType>,
}

/// `[balance]`. The first goes with either of the others.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct BalanceConfig {
    /// DeepSeek-V3's method without a loss: how far the bias of an expert moves in a step. Default 0.
    pub gamma: f64,
    /// On DeepSeek-V3's loss, by sequence. Default 0.
    pub sequence_alpha: f64,
    /// On DeepSeek-V2's loss of experts. Default 0.
    pub expert_alpha: f64,
}

/// `[loss]`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct LossConfig {
    /// On the mean loss of the MTP modules. Default 0: they are not trained, and not part of checkpoints.
    pub mtp: f64,
    /// On the mean square of the logits' logarithmic sum. Default 0.
    pub z: f64,
}

/// `[eval]`.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct EvalConfig {
    /// Steps between measurements on held-out data; 0 for none but at the end. Default 100.
    pub every: u64,
    /// The most batches of one. Default 16; 0 for all there are.
    pub batches: usize,
}

/// `[checkpoint]`.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct CheckpointConfig {
    /// Steps between checkpoints; 0 for none but at the end. Default 500.
    pub every: u64,
    /// How many are kept. Default 2.
    pub keep: usize,
    /// The type of weights in `model.safetensors`, `f32` or `bf16`. What the run goes on with is `f32` always. Default
    /// `f32`.
    #[serde(deserialize_with = "read::float")]
    pub dtype: DType,
    /// What happens if one cannot be written: `stop` or `continue`. The last good one stays either way. Default `stop`.
    pub on_error: OnError,
}

/// `checkpoint.on_error`, `metrics.on_spike`.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum OnError {
    /// The run ends.
    #[default]
    Stop,
    /// It is said, and the run goes on.
    Continue,
}

/// `[metrics]`.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct MetricsConfig {
    /// Steps between lines of `metrics.jsonl`. Default 1.
    pub every: u64,
    /// Whether TensorBoard's events are written, too. Default true.
    pub tensorboard: bool,
    /// Whether statistics of what is quantized are written, too, which takes some time. Default false.
    pub fp8: bool,
    /// A loss that is above the mean of those before by this many of their standard deviations is a spike; 0 for none.
    /// Default 8.
    pub spike: f64,
    /// What happens then: `stop` or `continue`. Default `continue`.
    pub on_spike: OnError,
}

impl RunConfig {
    /// A run of so many steps without a model, data, or a folder: all else as by default.
    pub fn new(steps: u64) -> Self {
        Self {
            out: PathBuf::new(),
            steps,
            seed: 0,
            threads: None,
            target: Device::Cpu,
            form: Form::Auto,
            model: ModelConfig::default(),
            data: DataConfig::default(),
            optimizer: OptimizerConfig::default(),
            schedule: ScheduleConfig::default(),
            precision: PrecisionConfig::default(),
            memory: MemoryConfig::default(),
            balance: BalanceConfig::default(),
            loss: LossConfig::default(),
            eval: EvalConfig::default(),
            checkpoint: CheckpointConfig::default(),
            metrics: MetricsConfig::default(),
        }
    }

    /// Reads a file, with settings in the form `key=value` over it (`data.batch=4`).
    pub fn load(path: &Path, set: &[String]) -> Result<Self, RunConfigError> {
        read::load(path, set)
    }

    /// Where random weights start.
    pub fn init_seed(&self) -> u64 {
        self.model.init_seed.unwrap_or(self.seed)
    }

    /// Where the order of the data starts.
    pub fn data_seed(&self) -> u64 {
        self.data.seed.unwrap_or(self.seed)
    }

    /// The recipe of 8-bit floats, if there is one.
    pub fn recipe(&self) -> Result<Option<Recipe>, String> {
        let Some(name) = &self.precision.fp8 else { return Ok(None) };
        let file = || {
            let no_file =
                |e| format!("`{name}` is no recipe ({}), and no file: {e}", Recipe::NAMES.join(", "));
            let text = std::fs::read_to_string(Path::new(name)).map_err(no_file)?;
            Recipe::from_toml(&text).map_err(|e| format!("{name}: {e}"))
        };
        Recipe::named(name).map_or_else(file, Ok).map(Some)
    }
}

impl DataKind {
    /// Whether the data are made and not read.
    pub fn is_synthetic(self) -> bool {
        !matches!(self, DataKind::Text | DataKind::Jsonl | DataKind::Tokens)
    }
}

impl fmt::Display for DataKind {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            DataKind::Text => "text",
            DataKind::Jsonl => "jsonl",
            DataKind::Tokens => "tokens",
            DataKind::Copy => "copy",
            DataKind::Induction => "induction",
            DataKind::Recall => "recall",
            DataKind::Arithmetic => "arithmetic",
        })
    }
}
