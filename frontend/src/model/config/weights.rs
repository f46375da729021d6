//! The tensors a model consists of, under their Hugging Face names.

use eva_runtime::checkpoint::CheckpointDType;

use super::{Attention, Config, Moe, TopkMethod};

/// A tensor that a checkpoint of the model holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightSpec {
    /// Its name, such as `model.layers.0.self_attn.o_proj.weight`.
    pub name: String,
    /// Its extents; a linear weight is `[out, in]`.
    pub shape: Vec<usize>,
    /// What it is for.
    pub role: Role,
    /// How it is stored.
    pub storage: Storage,
    /// Whether it belongs to an MTP module.
    pub mtp: bool,
}

/// What a weight is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Token embedding, `[vocab, hidden]`.
    Embedding,
    /// Gain of an RMSNorm.
    Norm,
    /// Linear layer, `[out, in]`.
    Linear,
    /// Bias of a linear layer.
    LinearBias,
    /// Router, `[experts, hidden]`.
    Router,
    /// Bias that chooses experts, `e_score_correction_bias`.
    RouterBias,
    /// Output head, `[vocab, hidden]`.
    Head,
    /// Scales of a quantised linear layer, one for each block.
    Scale,
}

/// How a weight is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// Any of F32, BF16 and F16.
    Float,
    /// Codes of this type, with scales in `<name>_scale_inv`.
    Codes(CheckpointDType),
    /// F32.
    Scale,
}

impl Storage {
    /// The element types a checkpoint may use.
    pub fn dtypes(self) -> Vec<CheckpointDType> {
        match self {
            Storage::Float => vec![CheckpointDType::F32, CheckpointDType::Bf16, CheckpointDType::F16],
            Storage::Codes(dtype) => vec![dtype],
            Storage::Scale => vec![CheckpointDType::F32],
        }
    }
}

impl Config {
    /// Every tensor of the model: embedding, layers, MTP modules, final norm, head.
    ///
    /// Without a head where the embedding serves as one ([`Config::tie_embeddings`]).
    pub fn weights(&self) -> Vec<WeightSpec> {
        let mut list = List { config: self, specs: Vec::new(), mtp: false };
        list.float("model.embed_tokens.weight", &[self.vocab, self.hidden], Role::Embedding);
        for layer in 0..self.layers {
            list.layer(layer);
        }
        list.mtp = true;
        for layer in self.layers..self.layers + self.mtp_layers {
            list.mtp_module(layer);
        }
        list.mtp = false;
        list.norm("model.norm", self.hidden);
        if !self.tie_embeddings {
            list.specs.push(self.head());
        }
        list.specs
    }

    /// Whether the weight of this name is stored as 8-bit floats: the linear layers of attention, dense blocks and experts.
    /// The name of a tensor, or that of a parameter, which stacks the experts' tensors ([`mod@crate::model::causal_lm`]).
    pub fn quantizes(&self, name: &str) -> bool {
        self.quantization.is_some() && is_projection(name)
    }

    /// How many rows and columns of a weight share a scale, if any do.
    pub fn scale_block(&self) -> [usize; 2] {
        self.quantization.as_ref().map_or([128, 128], |quantization| quantization.block)
    }

    /// The output head.
    pub(super) fn head(&self) -> WeightSpec {
        WeightSpec {
            name: "lm_head.weight".into(),
            shape: vec![self.vocab, self.hidden],
            role: Role::Head,
            storage: Storage::Float,
            mtp: false,
        }
    }

    /// Number of weights, MTP modules included, scales of quantised ones not; exact.
    pub(super) fn parameters(&self) -> u128 {
        let n = |x: usize| x as u128;
        let (hidden, rank, heads) = (n(self.hidden), n(self.kv_lora), n(self.heads));
        let q = heads * n(self.qk_head());
        let v = heads * n(self.v_head);
        let standard = (2 * q + 2 * v) * hidden + (2 * q + v + hidden) * u128::from(self.attention_bias);
        let queries = self.q_lora.map_or(hidden * q, |l| n(l) * (hidden + q + 1));
        let latent = hidden * n(self.cache_width()) + rank;
        let bias = n(self.q_lora.unwrap_or(0)) + n(self.cache_width()) + hidden;
        let attention = match self.attention {
            Attention::Standard => standard,
            Attention::Latent => {
                let expansion = rank * heads * n(self.qk_nope + self.v_head);
                queries + latent + expansion + v * hidden + bias * u128::from(self.attention_bias)
            }
        };
        let ffn = |layer| match self.moe(layer) {
            None => 3 * hidden * n(self.intermediate),
            Some(moe) => {
                let bias = u128::from(moe.method == TopkMethod::NoauxTc);
                n(moe.routed) * (hidden + bias)
                    + 3 * hidden * n(moe.intermediate) * n(moe.routed + moe.shared)
            }
        };
        let layer = |l| attention + ffn(l) + 2 * hidden;
        let table = n(self.vocab) * hidden;
        let main: u128 = (0..self.layers).map(layer).sum();
        let mtp: u128 = (self.layers..self.layers + self.mtp_layers)
            .map(|l| layer(l) + 2 * table + 2 * hidden * hidden + 3 * hidden)
            .sum();
        main + mtp + table * if self.tie_embeddings { 1 } else { 2 } + hidden
    }
}

/// Whether a name is that of a linear layer that quantised checkpoints quantise.
pub fn is_projection(name: &str) -> bool {
    let Some((_, layer)) = name.rsplit_once(".self_attn.").or_else(|| name.rsplit_once(".mlp.")) else {
        return false;
    };
    layer.strip_suffix(".weight").is_some_and(|layer| {
        let last = layer.rsplit('.').next().unwrap_or(layer);
        last.ends_with("_proj") || last == "kv_a_proj_with_mqa"
    })
}

struct List<'a> {
    config: &'a Config,
    specs: Vec<WeightSpec>,
    mtp: bool,
}

impl List<'_> {
    fn push(&mut self, name: &str, shape: &[usize], role: Role, storage: Storage) {
        let (name, shape, mtp) = (name.into(), shape.into(), self.mtp);
        self.specs.push(WeightSpec { name, shape, role, storage, mtp });
    }

    fn float(&mut self, name: &str, shape: &[usize], role: Role) {
        self.push(name, shape, role, Storage::Float);
    }

    fn norm(&mut self, name: &str, width: usize) {
        self.float(&format!("{name}.weight"), &[width], Role::Norm);
    }

    /// A linear layer that a quantised checkpoint quantises.
    fn linear(&mut self, name: &str, out: usize, input: usize) {
        let name = format!("{name}.weight");
        let Some(quantization) = &self.config.quantization else {
            return self.float(&name, &[out, input], Role::Linear);
        };
        let [rows, columns] = quantization.block;
        let grid = [out.div_ceil(rows), input.div_ceil(columns)];
        self.push(&name, &[out, input], Role::Linear, Storage::Codes(quantization.fmt));
        self.push(&format!("{name}_scale_inv"), &grid, Role::Scale, Storage::Scale);
    }

    fn layer(&mut self, layer: usize) {
        let config = self.config;
        let at = format!("model.layers.{layer}");
        self.norm(&format!("{at}.input_layernorm"), config.hidden);
        self.attention(&format!("{at}.self_attn"));
        self.norm(&format!("{at}.post_attention_layernorm"), config.hidden);
        match config.moe(layer) {
            None => self.ffn(&format!("{at}.mlp"), config.intermediate),
            Some(moe) => self.experts(&format!("{at}.mlp"), moe),
        }
    }

    fn attention(&mut self, at: &str) {
        let c = self.config;
        let queries = c.heads * c.qk_head();
        let values = c.heads * c.v_head;
        if c.attention == Attention::Standard {
            for (name, out) in [("q_proj", queries), ("k_proj", queries), ("v_proj", values)] {
                self.biased(&format!("{at}.{name}"), out, c.hidden);
            }
            return self.biased(&format!("{at}.o_proj"), c.hidden, values);
        }
        match c.q_lora {
            None => self.linear(&format!("{at}.q_proj"), queries, c.hidden),
            Some(rank) => {
                self.biased(&format!("{at}.q_a_proj"), rank, c.hidden);
                self.norm(&format!("{at}.q_a_layernorm"), rank);
                self.linear(&format!("{at}.q_b_proj"), queries, rank);
            }
        }
        self.biased(&format!("{at}.kv_a_proj_with_mqa"), c.cache_width(), c.hidden);
        self.norm(&format!("{at}.kv_a_layernorm"), c.kv_lora);
        self.linear(&format!("{at}.kv_b_proj"), c.heads * (c.qk_nope + c.v_head), c.kv_lora);
        self.biased(&format!("{at}.o_proj"), c.hidden, values);
    }

    /// A linear layer of attention that has a bias if `attention_bias` says so.
    fn biased(&mut self, name: &str, out: usize, input: usize) {
        self.linear(name, out, input);
        if self.config.attention_bias {
            self.float(&format!("{name}.bias"), &[out], Role::LinearBias);
        }
    }

    fn ffn(&mut self, at: &str, width: usize) {
        let hidden = self.config.hidden;
        self.linear(&format!("{at}.gate_proj"), width, hidden);
        self.linear(&format!("{at}.up_proj"), width, hidden);
        self.linear(&format!("{at}.down_proj"), hidden, width);
    }

    fn experts(&mut self, at: &str, moe: &Moe) {
        self.float(&format!("{at}.gate.weight"), &[moe.routed, self.config.hidden], Role::Router);
        if moe.method == TopkMethod::NoauxTc {
            self.float(&format!("{at}.gate.e_score_correction_bias"), &[moe.routed], Role::RouterBias);
        }
        for expert in 0..moe.routed {
            self.ffn(&format!("{at}.experts.{expert}"), moe.intermediate);
        }
        if moe.shared > 0 {
            self.ffn(&format!("{at}.shared_experts"), moe.shared * moe.intermediate);
        }
    }

    fn mtp_module(&mut self, layer: usize) {
        let (hidden, vocab) = (self.config.hidden, self.config.vocab);
        let at = format!("model.layers.{layer}");
        self.float(&format!("{at}.embed_tokens.weight"), &[vocab, hidden], Role::Embedding);
        self.norm(&format!("{at}.enorm"), hidden);
        self.norm(&format!("{at}.hnorm"), hidden);
        self.float(&format!("{at}.eh_proj.weight"), &[hidden, 2 * hidden], Role::Linear);
        self.layer(layer);
        self.norm(&format!("{at}.shared_head.norm"), hidden);
        self.float(&format!("{at}.shared_head.head.weight"), &[vocab, hidden], Role::Head);
    }
}
