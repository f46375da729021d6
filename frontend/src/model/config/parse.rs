//! From JSON to a checked [`Config`].

use std::path::PathBuf;

use eva_runtime::checkpoint::CheckpointDType;
use serde_json::Value;

use super::reader::{MAX_SIZE, Reader, shown, whole};
use super::{
    ActivationScheme, Attention, CONFIG_FILE, Config, ConfigError, ModelType, Moe, Quantization, Rope,
    ScaleFormat, Score, TopkMethod, Yarn,
};

/// Most layers, MTP modules included.
const MAX_LAYERS: u64 = 10_000;
/// Most experts in all layers together.
const MAX_EXPERTS: usize = 1 << 18;

pub(super) fn parse(text: &str) -> Result<Config, ConfigError> {
    let fail = |detail| ConfigError::Json { path: CONFIG_FILE.into(), detail };
    let value: Value = serde_json::from_str(text).map_err(|e| fail(e.to_string()))?;
    let Value::Object(map) = &value else {
        return Err(fail(format!("it is {}", shown(&value))));
    };
    let mut problems = Vec::new();
    let config = read(&mut Reader { map, prefix: "", problems: &mut problems });
    match config {
        Some(config) if problems.is_empty() => Ok(config),
        _ => Err(ConfigError::Invalid { path: PathBuf::from(CONFIG_FILE), problems }),
    }
}

/// Reads every key, whatever is wrong with the ones before. `None` only together with a problem.
fn read(r: &mut Reader) -> Option<Config> {
    let model_type = r.word("model_type", ModelType::ALL);
    let own = r.optional("eva", |r| r.inside("eva", own)).unwrap_or(Some((None, Attention::Latent)));
    let standard = matches!(own, Some((_, Attention::Standard)));
    r.optional("hidden_act", |r| r.word("hidden_act", &[((), "silu")]));
    let hidden = r.size("hidden_size");
    let layers = r.count("num_hidden_layers", 1, MAX_LAYERS);
    let heads = r.size("num_attention_heads");
    let key_heads = r.optional("num_key_value_heads", |r| r.size("num_key_value_heads"));
    if let (Some(heads), Some(found)) = (heads, key_heads.flatten())
        && heads != found
    {
        r.problem(
            "num_key_value_heads",
            format!("is {found}, but num_attention_heads is {heads}; there must be as many of both"),
        );
    }
    let q_lora = match r.map.get("q_lora_rank") {
        _ if standard => Some(None),
        Some(Value::Null) => Some(None),
        None => {
            r.problem(
                "q_lora_rank",
                "is missing; expected a rank, or null where queries are projected directly",
            );
            None
        }
        Some(_) => r.size("q_lora_rank").map(Some),
    };
    let kv_lora = if standard { Some(0) } else { r.size("kv_lora_rank") };
    let qk_nope = r.count("qk_nope_head_dim", u64::from(!standard), MAX_SIZE);
    let qk_rope = r.size("qk_rope_head_dim");
    if let Some(odd) = qk_rope.filter(|n| n % 2 == 1) {
        r.problem(
            "qk_rope_head_dim",
            format!("is {odd}; expected an even number: rotary columns come in pairs"),
        );
    }
    let v_head = r.size("v_head_dim");
    let intermediate = r.size("intermediate_size");
    let rms_eps = r.real_or("rms_norm_eps", 1e-6, "a number above 0 and below 1", |x| x > 0.0 && x < 1.0);
    let rope = rope(r);
    let max_positions = r.size("max_position_embeddings");
    let vocab = r.size("vocab_size");
    let tie_embeddings = r.flag_or("tie_word_embeddings", false);
    let attention_bias = r.flag_or("attention_bias", false);
    let mtp_layers = r.count_or("num_nextn_predict_layers", 0, 0, MAX_LAYERS);
    let dtype = dtype(r);
    let bos = r.optional("bos_token_id", |r| r.token("bos_token_id", r.map.get("bos_token_id")?));
    let eos = eos(r);
    let initializer_range =
        r.real_or("initializer_range", 0.02, "a number, 0 or above and at most 10", |x| {
            (0.0..=10.0).contains(&x)
        });
    let quantization = r.optional("quantization_config", |r| r.inside("quantization_config", quantization));
    let experts = moe(r, model_type);
    let first_dense = if matches!(experts, Some(None)) {
        r.count_or("first_k_dense_replace", 0, 0, MAX_SIZE)
    } else {
        r.count("first_k_dense_replace", 0, MAX_SIZE)
    };
    let moe_layer_freq = r.count_or("moe_layer_freq", 1, 1, MAX_SIZE);
    let config = Config {
        model_type: model_type?,
        hidden: hidden?,
        layers: layers?,
        first_dense: first_dense?,
        moe_layer_freq: moe_layer_freq?,
        heads: heads?,
        q_lora: q_lora?,
        kv_lora: kv_lora?,
        qk_nope: qk_nope?,
        qk_rope: qk_rope?,
        v_head: v_head?,
        intermediate: intermediate?,
        experts: experts?,
        rms_eps: rms_eps?,
        rope: rope?,
        max_positions: max_positions?,
        vocab: vocab?,
        tie_embeddings: tie_embeddings?,
        attention_bias: attention_bias?,
        mtp_layers: mtp_layers?,
        dtype: dtype?,
        bos: bos.map_or(Some(None), |id| id.map(Some))?,
        eos: eos?,
        initializer_range: initializer_range?,
        quantization: quantization.map_or(Some(None), |q| q.map(Some))?,
        kv_budget: own?.0,
        attention: own?.1,
    };
    check_totals(r, &config);
    Some(config)
}

/// The object `eva`, whose keys are eva's own: a budget for caches, and the kind of attention.
fn own(r: &mut Reader) -> Option<(Option<u64>, Attention)> {
    let budget = r.optional("kv_budget", |r| r.size("kv_budget"));
    let attention = r.word_or("attention", Attention::Latent, Attention::ALL);
    let budget = match budget {
        Some(budget) => Some(budget? as u64),
        None => None,
    };
    Some((budget, attention?))
}

/// Checks what only the whole shows: that everything can be counted.
fn check_totals(r: &mut Reader, config: &Config) {
    let layers = config.layers + config.mtp_layers;
    if let Some(moe) = &config.experts
        && layers * moe.routed > MAX_EXPERTS
    {
        let found = moe.routed;
        r.problem(
            "n_routed_experts",
            format!("is {found}, in {layers} layers; expected at most {MAX_EXPERTS} experts in all layers together"),
        );
        return;
    }
    let parameters = config.parameters();
    if parameters > (i64::MAX / 8) as u128 {
        r.problem(
            "hidden_size",
            format!("with the other sizes makes a model of {parameters} weights; that is absurd"),
        );
    }
    // A table of attention over every pair of positions is never made, but positions and widths are multiplied.
    let widest = config.heads as u128 * (config.qk_head() + config.v_head) as u128;
    if config.max_positions as u128 * widest.max(config.vocab as u128) > (i64::MAX / 8) as u128 {
        let found = config.max_positions;
        r.problem("max_position_embeddings", format!("is {found}; with the other sizes that is absurd"));
    }
}

/// The experts: `Some(None)` for a model without any.
fn moe(r: &mut Reader, model_type: Option<ModelType>) -> Option<Option<Moe>> {
    let keys = ["n_routed_experts", "moe_intermediate_size", "num_experts_per_tok"];
    let absent = keys.iter().all(|k| !r.map.contains_key(*k));
    if absent || r.map.get("n_routed_experts").is_some_and(Value::is_null) {
        return Some(None);
    }
    let v3 = model_type != Some(ModelType::DeepseekV2);
    let routed = r.count("n_routed_experts", 1, MAX_EXPERTS as u64);
    let per_token = r.size("num_experts_per_tok");
    let intermediate = r.size("moe_intermediate_size");
    let shared = r.count_or("n_shared_experts", 0, 0, MAX_EXPERTS as u64);
    let norm_topk = r.flag_or("norm_topk_prob", v3);
    let scale =
        r.real_or("routed_scaling_factor", if v3 { 2.5 } else { 1.0 }, "a number above 0", |x| x > 0.0);
    let score = r.word_or("scoring_func", if v3 { Score::Sigmoid } else { Score::Softmax }, Score::ALL);
    let method = if v3 { TopkMethod::NoauxTc } else { TopkMethod::Greedy };
    let method = r.word_or("topk_method", method, TopkMethod::ALL);
    let default = |v3_value| if v3 && method == Some(TopkMethod::NoauxTc) { v3_value } else { 1 };
    let groups = r.count_or("n_group", default(8), 1, MAX_EXPERTS as u64);
    let groups_kept = r.count_or("topk_group", default(4), 1, MAX_EXPERTS as u64);
    let mut moe = Moe {
        routed: routed?,
        shared: shared?,
        per_token: per_token?,
        intermediate: intermediate?,
        groups: groups?,
        groups_kept: groups_kept?,
        norm_topk: norm_topk?,
        scale: scale?,
        score: score?,
        method: method?,
    };
    check_router(r, &mut moe);
    Some(Some(moe))
}

fn check_router(r: &mut Reader, moe: &mut Moe) {
    let needed = match moe.method {
        TopkMethod::NoauxTc => Score::Sigmoid,
        TopkMethod::Greedy | TopkMethod::GroupLimitedGreedy => Score::Softmax,
    };
    if moe.score != needed {
        let message = format!(
            "is \"{}\", which topk_method \"{}\" does not go with; allowed with it: \"{needed}\"",
            moe.score, moe.method
        );
        r.problem("scoring_func", message);
    }
    if moe.norm_topk && moe.score == Score::Softmax {
        r.problem(
            "norm_topk_prob",
            "is true with scoring_func \"softmax\", where the public implementations disagree; expected false",
        );
    }
    if moe.method == TopkMethod::Greedy {
        // It has no groups; transformers and DeepSeek's code ignore the keys as well.
        (moe.groups, moe.groups_kept) = (1, 1);
    }
    let Moe { routed, groups, groups_kept, per_token, .. } = *moe;
    if routed % groups != 0 {
        r.problem("n_group", format!("is {groups}, which does not divide n_routed_experts ({routed})"));
        return;
    }
    let size = routed / groups;
    if moe.method == TopkMethod::NoauxTc && size < 2 {
        let message = format!(
            "is {groups}, with n_routed_experts {routed}: a group of \"noaux_tc\" has at least 2 experts"
        );
        r.problem("n_group", message);
    }
    if groups_kept > groups {
        r.problem("topk_group", format!("is {groups_kept}; expected at most n_group ({groups})"));
    } else if per_token > groups_kept * size {
        let message = if groups == 1 {
            format!("is {per_token}; expected at most n_routed_experts ({routed})")
        } else {
            let all = groups_kept * size;
            format!("is {per_token}; expected at most {all}: the experts of {groups_kept} groups of {size}")
        };
        r.problem("num_experts_per_tok", message);
    }
}

fn rope(r: &mut Reader) -> Option<Rope> {
    let interleave = r.flag_or("rope_interleave", true);
    let legacy = r.real_or("rope_theta", 10_000.0, THETA, is_theta);
    let new = r.optional("rope_parameters", |r| r.inside("rope_parameters", |r| scaling(r, legacy)));
    let old = r.optional("rope_scaling", |r| r.inside("rope_scaling", |r| scaling(r, legacy)));
    if let (Some(Some(new)), Some(Some(old))) = (&new, &old)
        && new != old
    {
        r.problem("rope_parameters", "says something else than rope_scaling; remove one of them");
    }
    let (theta, scaling) = match new.or(old) {
        Some(read) => read?,
        None => (legacy?, None),
    };
    Some(Rope { theta, interleave: interleave?, scaling })
}

const THETA: &str = "a number above 1";

fn is_theta(x: f64) -> bool {
    x > 1.0
}

/// `rope_scaling` or `rope_parameters`: the base and the scaling.
fn scaling(r: &mut Reader, outer_theta: Option<f64>) -> Option<(f64, Option<Yarn>)> {
    let theta = match r.optional("rope_theta", |r| r.real("rope_theta", THETA, is_theta)) {
        Some(inner) => inner,
        None => outer_theta,
    };
    let key =
        if r.map.contains_key("type") && !r.map.contains_key("rope_type") { "type" } else { "rope_type" };
    let nothing_else = r.map.keys().all(|k| k == "rope_theta");
    let yarn = match r.map.get(key) {
        None if nothing_else => false,
        _ => r.word(key, &[(false, "default"), (true, "yarn")])?,
    };
    if !yarn {
        return Some((theta?, None));
    }
    let positive = |x: f64| x > 0.0;
    let factor = r.real("factor", "a number from 1", |x| x >= 1.0);
    let beta_fast = r.real_or("beta_fast", 32.0, "a number above 0", positive);
    let beta_slow = r.real_or("beta_slow", 1.0, "a number above 0", positive);
    if let (Some(fast), Some(slow)) = (beta_fast, beta_slow)
        && fast <= slow
    {
        r.problem("beta_fast", format!("is {fast}; expected more than beta_slow ({slow})"));
    }
    let mscale = r.real_or("mscale", 0.0, "a number, 0 or above", |x| x >= 0.0);
    let mscale_all_dim = r.real_or("mscale_all_dim", 0.0, "a number, 0 or above", |x| x >= 0.0);
    let original = r.size("original_max_position_embeddings");
    let attention_factor =
        r.optional("attention_factor", |r| r.real("attention_factor", "a number above 0", positive));
    if r.flag_or("truncate", true) == Some(false) {
        r.problem("truncate", "is false; expected true: DeepSeek's models round the bounds of the ramp");
    }
    let yarn = Yarn {
        factor: factor?,
        beta_fast: beta_fast?,
        beta_slow: beta_slow?,
        mscale: mscale?,
        mscale_all_dim: mscale_all_dim?,
        original_max_position: original?,
        attention_factor: attention_factor.map_or(Some(None), |f| f.map(Some))?,
    };
    Some((theta?, Some(yarn)))
}

fn dtype(r: &mut Reader) -> Option<CheckpointDType> {
    let key = if r.map.get("dtype").is_some_and(|v| !v.is_null()) { "dtype" } else { "torch_dtype" };
    let names = [
        (CheckpointDType::F32, "float32"),
        (CheckpointDType::Bf16, "bfloat16"),
        (CheckpointDType::F16, "float16"),
    ];
    r.word_or(key, CheckpointDType::F32, &names)
}

fn eos(r: &mut Reader) -> Option<Vec<u32>> {
    const KEY: &str = "eos_token_id";
    match r.map.get(KEY) {
        None | Some(Value::Null) => Some(Vec::new()),
        Some(Value::Array(ids)) => ids.iter().map(|id| r.token(KEY, id)).collect(),
        Some(id) => r.token(KEY, id).map(|id| vec![id]),
    }
}

fn quantization(r: &mut Reader) -> Option<Quantization> {
    r.optional("quant_method", |r| r.word("quant_method", &[((), "fp8")]));
    let fmt = r.word_or("fmt", CheckpointDType::F8E4M3, &[(CheckpointDType::F8E4M3, "e4m3")]);
    let block = match r.map.get("weight_block_size") {
        None | Some(Value::Null) => Some([128, 128]),
        Some(Value::Array(sizes)) if sizes.len() == 2 => {
            let size = |v: &Value| whole(v).filter(|n| (1..=MAX_SIZE).contains(n)).map(|n| n as usize);
            size(&sizes[0]).zip(size(&sizes[1])).map(|(a, b)| [a, b])
        }
        Some(_) => None,
    };
    if block.is_none() {
        let found = shown(&r.map["weight_block_size"]);
        r.problem("weight_block_size", format!("is {found}; expected two sizes, such as [128, 128]"));
    }
    let float = ScaleFormat::Float;
    let scale_fmt = r.word_or("scale_fmt", float, &[(float, "float32"), (ScaleFormat::PowerOfTwo, "ue8m0")]);
    let activation = r.word_or("activation_scheme", ActivationScheme::Dynamic, ActivationScheme::ALL);
    Some(Quantization { fmt: fmt?, block: block?, scale_fmt: scale_fmt?, activation: activation? })
}
