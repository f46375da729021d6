//! `config.json` of DeepSeek-V2- and V3-style models, read into one checked form.
//!
//! Both spellings of transformers are understood: `rope_scaling` with `rope_theta` and `rope_parameters`,
//! `torch_dtype` and `dtype`, `type` and `rope_type`. Everything a [`Config`] says has been checked: sizes are
//! positive and their products fit, the router's numbers agree, names are known. What is wrong is collected, so that
//! one run shows all of it.

mod check;
mod parse;
mod reader;
mod rope;
mod weights;

use std::fmt;
use std::path::{Path, PathBuf};

use eva_runtime::checkpoint::CheckpointDType;

pub use check::{CheckError, CheckProblem};
pub use weights::{Role, Storage, WeightSpec, is_projection};

/// Name of the file in a model's directory.
pub const CONFIG_FILE: &str = "config.json";

/// Longest configuration accepted, in bytes.
const MAX_CONFIG_BYTES: u64 = 16 << 20;

/// The shape of a model. All sizes are counts of elements.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// `model_type`.
    pub model_type: ModelType,
    /// `hidden_size`: width of the residual stream.
    pub hidden: usize,
    /// `num_hidden_layers`, without the MTP modules.
    pub layers: usize,
    /// `first_k_dense_replace`: so many layers at the start have a dense FFN.
    pub first_dense: usize,
    /// `moe_layer_freq`: of the later layers those whose index this divides have experts.
    pub moe_layer_freq: usize,
    /// `num_attention_heads`.
    pub heads: usize,
    /// `q_lora_rank`: width of the query latent; `None` where queries are projected directly.
    pub q_lora: Option<usize>,
    /// `kv_lora_rank`: width of the cached latent; 0 in standard attention.
    pub kv_lora: usize,
    /// `qk_nope_head_dim`: part of a head's key without position; may be 0 in standard attention.
    pub qk_nope: usize,
    /// `qk_rope_head_dim`: rotary part of a head's key, even; in latent attention all heads share it.
    pub qk_rope: usize,
    /// `v_head_dim`: width of a head's value.
    pub v_head: usize,
    /// `intermediate_size`: width of a dense FFN.
    pub intermediate: usize,
    /// The expert layers; `None` for a model with dense FFNs only.
    pub experts: Option<Moe>,
    /// `rms_norm_eps`, for the norms of the residual stream. Those of the latents use [`LATENT_NORM_EPS`].
    pub rms_eps: f64,
    /// Rotary position embedding.
    pub rope: Rope,
    /// `max_position_embeddings`: the longest sequence.
    pub max_positions: usize,
    /// `vocab_size`.
    pub vocab: usize,
    /// `tie_word_embeddings`: the head is the embedding.
    pub tie_embeddings: bool,
    /// `attention_bias`: q_a_proj, kv_a_proj_with_mqa and o_proj have biases. No public model has.
    pub attention_bias: bool,
    /// `num_nextn_predict_layers`: MTP modules after the last layer.
    pub mtp_layers: usize,
    /// `dtype` or `torch_dtype`: F32, BF16 or F16; F32 where absent.
    pub dtype: CheckpointDType,
    /// `bos_token_id`.
    pub bos: Option<u32>,
    /// `eos_token_id`: every id that ends a generation.
    pub eos: Vec<u32>,
    /// `initializer_range`: standard deviation of fresh weights; 0.02 where absent.
    pub initializer_range: f64,
    /// `quantization_config`: how the weights are stored.
    pub quantization: Option<Quantization>,
    /// How many bytes a token may take in the caches of one layer: `kv_budget` of the object `eva`, which is eva's own.
    pub kv_budget: Option<u64>,
    /// The kind of attention: `attention` of the object `eva`. Standard attention has no latents: `q_lora` is `None` and
    /// `kv_lora` 0, whatever the file says.
    pub attention: Attention,
}

/// Epsilon of the norms inside attention (q_a_layernorm, kv_a_layernorm). transformers never passes `rms_norm_eps`
/// to them, so they keep its default.
pub const LATENT_NORM_EPS: f64 = 1e-6;

/// The family, `model_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelType {
    /// `deepseek_v2`.
    DeepseekV2,
    /// `deepseek_v3`.
    DeepseekV3,
}

/// How a token attends to those before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Attention {
    /// Multi-head latent attention, as every public model has it.
    #[default]
    Latent,
    /// Multi-head attention in which every head has keys and values of its own, in weights named as Llama's.
    Standard,
}

/// A mixture of experts.
#[derive(Clone, Debug, PartialEq)]
pub struct Moe {
    /// `n_routed_experts`.
    pub routed: usize,
    /// `n_shared_experts`: the width of the one shared FFN, in experts; 0 for none.
    pub shared: usize,
    /// `num_experts_per_tok`.
    pub per_token: usize,
    /// `moe_intermediate_size`: width of an expert.
    pub intermediate: usize,
    /// `n_group`; 1 where the method has no groups.
    pub groups: usize,
    /// `topk_group`: groups that experts are chosen from.
    pub groups_kept: usize,
    /// `norm_topk_prob`: the chosen weights are divided by their sum.
    pub norm_topk: bool,
    /// `routed_scaling_factor`.
    pub scale: f64,
    /// `scoring_func`.
    pub score: Score,
    /// `topk_method`.
    pub method: TopkMethod,
}

/// `scoring_func`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Score {
    /// Each logit by itself.
    Sigmoid,
    /// Over all experts.
    Softmax,
}

/// `topk_method`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TopkMethod {
    /// V3: biased scores choose groups (sum of the two largest) and experts; needs [`Score::Sigmoid`].
    NoauxTc,
    /// V2-Lite: the largest scores; needs [`Score::Softmax`].
    Greedy,
    /// V2: groups by their largest score, then the largest scores; needs [`Score::Softmax`].
    GroupLimitedGreedy,
}

/// Rotary position embedding.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// `rope_theta`: base of the frequencies.
    pub theta: f64,
    /// `rope_interleave`: a pair is two neighbouring columns, as in every public checkpoint; otherwise columns
    /// `i` and `i + qk_rope / 2`.
    pub interleave: bool,
    /// `None` for frequencies as they are.
    pub scaling: Option<Yarn>,
}

/// Parameters of YaRN.
#[derive(Clone, Debug, PartialEq)]
pub struct Yarn {
    /// `factor`, at least 1.
    pub factor: f64,
    /// `beta_fast`: rotations above which a frequency stays.
    pub beta_fast: f64,
    /// `beta_slow`: rotations below which a frequency is divided by the factor.
    pub beta_slow: f64,
    /// `mscale`; 0 where absent.
    pub mscale: f64,
    /// `mscale_all_dim`; 0 where absent.
    pub mscale_all_dim: f64,
    /// `original_max_position_embeddings`.
    pub original_max_position: usize,
    /// `attention_factor`, which replaces the factor that follows from the mscales.
    pub attention_factor: Option<f64>,
}

/// How quantised weights are stored, `quantization_config`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quantization {
    /// `fmt`: type of the codes; F8_E4M3.
    pub fmt: CheckpointDType,
    /// `weight_block_size`: rows and columns that share a scale.
    pub block: [usize; 2],
    /// `scale_fmt`.
    pub scale_fmt: ScaleFormat,
    /// `activation_scheme`.
    pub activation: ActivationScheme,
}

/// `scale_fmt`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScaleFormat {
    /// Any positive number; where absent.
    Float,
    /// `ue8m0`: powers of two.
    PowerOfTwo,
}

/// `activation_scheme`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActivationScheme {
    /// Scales are computed from the data at run time.
    Dynamic,
}

/// One thing wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The key in `config.json`, with dots for keys inside keys.
    pub key: String,
    /// What was found there and what is allowed.
    pub message: String,
}

/// Why a configuration could not be read. Every message is complete.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum ConfigError {
    #[error("{}: no such file or directory; give a model's directory or its {CONFIG_FILE}", .path.display())]
    NotFound { path: PathBuf },
    #[error("{}: cannot read it: {error}", .path.display())]
    Io { path: PathBuf, error: std::io::Error },
    #[error("{}: it has {len} bytes; a {CONFIG_FILE} has at most {MAX_CONFIG_BYTES}", .path.display())]
    TooLong { path: PathBuf, len: u64 },
    #[error("{}: not a JSON object: {detail}", .path.display())]
    Json { path: PathBuf, detail: String },
    #[error("{}: {}", .path.display(), list(.problems))]
    Invalid { path: PathBuf, problems: Vec<Problem> },
}

fn list(problems: &[Problem]) -> String {
    let mut text = match problems.len() {
        1 => "1 problem".to_string(),
        n => format!("{n} problems"),
    };
    for Problem { key, message } in problems {
        text += &format!("\n  {key}: {message}");
    }
    text
}

impl ConfigError {
    fn path_mut(&mut self) -> &mut PathBuf {
        match self {
            ConfigError::NotFound { path }
            | ConfigError::Io { path, .. }
            | ConfigError::TooLong { path, .. }
            | ConfigError::Json { path, .. }
            | ConfigError::Invalid { path, .. } => path,
        }
    }
}

impl Config {
    /// Reads the text of a `config.json`. Errors call it by that name.
    pub fn from_json(text: &str) -> Result<Config, ConfigError> {
        parse::parse(text)
    }

    /// Reads a `config.json`, given by its path or by its directory's.
    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        let (path, text) = read_text(path)?;
        Config::from_json(&text).map_err(|mut e| {
            *e.path_mut() = path;
            e
        })
    }

    /// Columns of a head's query and key: `qk_nope + qk_rope`.
    pub fn qk_head(&self) -> usize {
        self.qk_nope + self.qk_rope
    }

    /// The expert layer's numbers, if this layer (MTP modules count on from `layers`) has experts.
    pub fn moe(&self, layer: usize) -> Option<&Moe> {
        let yes = layer >= self.first_dense && layer.is_multiple_of(self.moe_layer_freq);
        self.experts.as_ref().filter(|_| yes)
    }

    /// Values cached per token and layer: the latent and the shared rotary key, `kv_lora + qk_rope`; in standard attention
    /// the key and value of every head.
    pub fn cache_width(&self) -> usize {
        match self.attention {
            Attention::Latent => self.kv_lora + self.qk_rope,
            Attention::Standard => self.heads * (self.qk_head() + self.v_head),
        }
    }
}

/// Reads a `config.json`, given by its path or by its directory's; returns its own path and its text.
pub fn read_text(path: &Path) -> Result<(PathBuf, String), ConfigError> {
    let file = if path.is_dir() { path.join(CONFIG_FILE) } else { path.to_path_buf() };
    let metadata = match std::fs::metadata(&file) {
        Ok(metadata) => metadata,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(ConfigError::NotFound { path: file });
        }
        Err(error) => return Err(ConfigError::Io { path: file, error }),
    };
    if !metadata.is_file() {
        return Err(ConfigError::Io { path: file, error: std::io::Error::other("not a regular file") });
    }
    if metadata.len() > MAX_CONFIG_BYTES {
        return Err(ConfigError::TooLong { path: file, len: metadata.len() });
    }
    match std::fs::read_to_string(&file) {
        Ok(text) => Ok((file, text)),
        Err(error) => Err(ConfigError::Io { path: file, error }),
    }
}

macro_rules! words {
    ($($type:ident { $($variant:ident $word:literal),* })*) => {$(
        impl $type {
            const ALL: &[($type, &str)] = &[$(($type::$variant, $word)),*];
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $($type::$variant => $word),* })
            }
        }
    )*};
}

words! {
    ModelType { DeepseekV2 "deepseek_v2", DeepseekV3 "deepseek_v3" }
    Score { Sigmoid "sigmoid", Softmax "softmax" }
    TopkMethod { NoauxTc "noaux_tc", Greedy "greedy", GroupLimitedGreedy "group_limited_greedy" }
    ActivationScheme { Dynamic "dynamic" }
    Attention { Latent "latent", Standard "standard" }
}
