//! A whole decoder layer with experts in bf16: a prompt, decode steps, and how long compiling takes.

pub(super) mod reference;
mod train;

use super::lab::{Call, Lab};
use super::reference::{part, places, relative_error};
use super::{Bench, BenchError, Case, Measured, Options, Work};
use crate::model::config::{Config, Moe};
use crate::model::layer::Layer;
use crate::model::mla::Tokens;
use crate::model::rope::Rope;
use crate::model::weights::Weights as Declared;
use crate::prelude::*;
use eva_passes::Form;
use eva_runtime::{Executable, Session, Tensor as Data, Weights};
use reference::Reference;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The extents of DeepSeek-V3, without YaRN, which changes no time.
const FULL: &str = r#"{
  "model_type": "deepseek_v3", "torch_dtype": "bfloat16", "hidden_act": "silu", "attention_bias": false,
  "vocab_size": 129280, "hidden_size": 7168, "num_hidden_layers": 1, "first_k_dense_replace": 0, "moe_layer_freq": 1,
  "num_attention_heads": 128, "num_key_value_heads": 128, "q_lora_rank": 1536, "kv_lora_rank": 512,
  "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "intermediate_size": 18432,
  "moe_intermediate_size": 2048, "n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8,
  "n_group": 8, "topk_group": 4, "topk_method": "noaux_tc", "scoring_func": "sigmoid", "norm_topk_prob": true,
  "routed_scaling_factor": 2.5, "rms_norm_eps": 1e-6, "rope_theta": 10000, "max_position_embeddings": 163840,
  "tie_word_embeddings": false, "initializer_range": 0.02, "bos_token_id": 0, "eos_token_id": 1
}"#;

/// A small one.
const SMALL: &str = r#"{
  "model_type": "deepseek_v3", "torch_dtype": "bfloat16", "hidden_act": "silu", "attention_bias": false,
  "vocab_size": 288, "hidden_size": 328, "num_hidden_layers": 1, "first_k_dense_replace": 0, "moe_layer_freq": 1,
  "num_attention_heads": 5, "num_key_value_heads": 5, "q_lora_rank": 104, "kv_lora_rank": 72,
  "qk_nope_head_dim": 24, "qk_rope_head_dim": 16, "v_head_dim": 40, "intermediate_size": 520,
  "moe_intermediate_size": 136, "n_routed_experts": 24, "n_shared_experts": 1, "num_experts_per_tok": 3,
  "n_group": 6, "topk_group": 2, "topk_method": "noaux_tc", "scoring_func": "sigmoid", "norm_topk_prob": true,
  "routed_scaling_factor": 2.5, "rms_norm_eps": 1e-6, "rope_theta": 10000, "max_position_embeddings": 163840,
  "tie_word_embeddings": false, "initializer_range": 0.02, "bos_token_id": 0, "eos_token_id": 1
}"#;

/// Each of some tens of kernels rounds to bf16.
pub(super) const LIMIT: f64 = 2e-2;

/// How many tokens are checked, of how many candidates; see [`reference::Token::margin`].
const CHECKED: usize = 3;
const CANDIDATES: usize = 12;
/// Inputs that are tried until the choice of experts of some token is clear.
pub(super) const TRIES: usize = 16;
/// Ten times what rounding moves a router's score by.
pub(super) const MARGIN: f64 = 3e-3;

/// The numbers of random tensors that are not weights: sets of operands, as of [`Lab::elements`].
pub(super) const CACHES: usize = 1;
pub(super) const INPUTS: usize = 2;

/// What a call is.
#[derive(Clone, Copy)]
struct Step {
    form: Form,
    /// Sequences.
    batch: usize,
    /// New tokens of each.
    new: usize,
    /// Tokens in the cache after the call.
    cached: usize,
}

/// The layer as a module, and what was made of it.
pub(super) struct Kit {
    config: Config,
    module: Module,
    compiled: Vec<(Form, Arc<Executable>)>,
    weights: Weights,
}

/// A prompt, decode steps, and compiling.
pub fn cases(options: &Options) -> Vec<Case> {
    let case = |words, run: Work| Case { bench: Bench::Layer, words, run };
    let (prompt, batches, kv): (usize, &[usize], usize) =
        if options.full { (4096, &[1, 32, 128], 4096) } else { (67, &[1, 3], 130) };
    let words = vec![("op", "prefill".into()), ("tokens", prompt.into())];
    let step = Step { form: Form::Expanded, batch: 1, new: prompt, cached: prompt };
    let mut cases = vec![case(words, Box::new(move |lab| run(lab, step)))];
    for &batch in batches {
        let words = vec![("op", "decode".into()), ("batch", batch.into()), ("kv", kv.into())];
        let step = Step { form: Form::Absorbed, batch, new: 1, cached: kv };
        cases.push(case(words, Box::new(move |lab| run(lab, step))));
    }
    for &experts in if options.full { &[64, 256][..] } else { &[24] } {
        for recipe in [None, Some("deepseek-v3")] {
            let mut words =
                vec![("op", "train".into()), ("tokens", prompt.into()), ("experts", experts.into())];
            words.extend(recipe.map(|recipe| ("fp8", recipe.into())));
            let step = move |lab: &mut Lab| {
                let mut config = config(lab.options.full)?;
                config.experts.iter_mut().for_each(|moe| moe.routed = experts);
                train::run(lab, &config, prompt, recipe)
            };
            cases.push(case(words, Box::new(step)));
        }
    }
    for (name, form) in [("expanded", Form::Expanded), ("absorbed", Form::Absorbed)] {
        let words = vec![("op", "compile".into()), ("form", name.into())];
        cases.push(case(words, Box::new(move |lab| compile(lab, form))));
    }
    cases
}

pub(super) fn config(full: bool) -> Result<Config, BenchError> {
    let text = if full { FULL } else { SMALL };
    Config::from_json(text).map_err(|e| BenchError::Unsupported(format!("this configuration: {e}")))
}

pub(super) fn stored(name: &str) -> DType {
    if name.ends_with("e_score_correction_bias") { F32 } else { BF16 }
}

/// `@layer`, and `@rope`, which makes the angles once for all layers.
fn module(config: &Config) -> Result<Module, Diags> {
    let p = Program::new();
    let [b, s, t] = ["b", "s", "t"].map(|name| p.dim(name));
    let m = p.dim_fixed("m", config.hidden as i64);
    let layer = Layer::of(&p, config, 0);
    let width = layer.attention.rope().clone();
    p.function("rope", |f| {
        let start = f.input("start", I32, [&b]);
        Rope::of(config).table(f, &start, &s, &width)
    });
    p.function("layer", |f| {
        let x = f.input("x", BF16, [&b, &s, &m]);
        let rope = f.input("rope", F32, [b.clone(), s.clone(), Dim::from(2), width.clone()]);
        let start = f.input("start", I32, [&b]);
        let tokens = Tokens { rope, start, cached: Some(t.clone()) };
        layer.apply(&Declared::new(f, &stored), &x, &tokens).named("y")
    });
    p.finish()
}

impl Kit {
    fn new(full: bool) -> Result<Self, BenchError> {
        let config = config(full)?;
        let module = module(&config)?;
        Ok(Self { config, module, compiled: Vec::new(), weights: Weights::new() })
    }

    /// The weights' names and shapes, in the order of the parameters.
    fn shapes(&self) -> Vec<(String, Vec<usize>)> {
        shapes(&self.module, "layer")
    }
}

/// What `@rope` makes: the angles of `new` tokens of each sequence.
pub(super) fn angles(exe: &Arc<Executable>, start: &Data, new: usize) -> Result<Data, BenchError> {
    let mut rope = Session::new(exe.clone(), "rope", &Weights::new())?;
    let angles = rope.run(&[("start", start)], None, &[("s", new)])?.pop();
    angles.map(|(_, angles)| angles).ok_or_else(|| BenchError::Unsupported("no angles".into()))
}

/// The names and shapes of the weights of a function, in the order of the parameters.
pub(super) fn shapes(module: &Module, function: &str) -> Vec<(String, Vec<usize>)> {
    let Some(func) = module.func(function) else { return Vec::new() };
    let f = &module.funcs[func];
    let shape = |ty: &eva_ir::types::TensorType| {
        let extents = ty.shape.iter().map(|dim| module.constant(dim).unwrap_or(1) as usize);
        extents.collect::<Vec<usize>>()
    };
    f.params()
        .filter(|(_, kind)| *kind == eva_ir::graph::ParamKind::Weight)
        .filter_map(|(value, _)| Some((f.values[value].name.clone(), shape(f.tensor(value)?))))
        .collect()
}

/// Random weights of these names and shapes.
pub(super) fn random_weights(
    lab: &Lab,
    exe: &Executable,
    shapes: Vec<(String, Vec<usize>)>,
) -> Result<Weights, BenchError> {
    let weight = |(i, (name, shape)): (usize, (String, Vec<usize>))| {
        let elements = lab.elements(0, i, exponent_of(&name, &shape));
        let weight = elements.weight(exe, stored(&name), &shape, &name)?;
        Ok((name, Arc::new(weight)))
    };
    shapes.into_iter().enumerate().map(weight).collect()
}

/// Weights whose products with numbers near 1 stay near 1; gains are near 1 themselves.
fn exponent(shape: &[usize]) -> i32 {
    match shape {
        [_] => 0,
        [.., terms] => -((*terms as f64).sqrt().log2().round() as i32),
        [] => 0,
    }
}

/// The bias of a router is small beside its scores.
pub(super) fn exponent_of(name: &str, shape: &[usize]) -> i32 {
    if name.ends_with("e_score_correction_bias") { -6 } else { exponent(shape) }
}

/// Makes what all cases share, and the executable for a form, if they are not there yet.
fn prepare(lab: &mut Lab, form: Form) -> Result<(Kit, Arc<Executable>), BenchError> {
    let mut kit = match lab.kit.take() {
        Some(kit) => *kit,
        None => Kit::new(lab.options.full)?,
    };
    let exe = match kit.compiled.iter().find(|(have, _)| *have == form) {
        Some((_, exe)) => exe.clone(),
        None => {
            let exe = Arc::new(Executable::compile(&kit.module, &lab.compile_options(form))?);
            kit.compiled.push((form, exe.clone()));
            exe
        }
    };
    if kit.weights.is_empty() {
        kit.weights = random_weights(lab, &exe, kit.shapes())?;
    }
    Ok((kit, exe))
}

fn run(lab: &mut Lab, step: Step) -> Result<Measured, BenchError> {
    let (kit, exe) = prepare(lab, step.form)?;
    let measured = measure(lab, &kit, exe, step);
    lab.kit = Some(Box::new(kit));
    measured
}

fn measure(lab: &mut Lab, kit: &Kit, exe: Arc<Executable>, step: Step) -> Result<Measured, BenchError> {
    let Step { batch, new, cached, .. } = step;
    let config = &kit.config;
    let moe = config.moe(0).ok_or_else(|| BenchError::Unsupported("a layer without experts".into()))?;
    let start = Data::from_i32(&[batch], &vec![(cached - new) as i32; batch]);
    let rope = angles(&exe, &start, new)?;

    let mut session = Session::new(exe.clone(), "layer", &kit.weights)?;
    let mut states = session.new_states(batch, cached)?;
    let widths = [("self_attn.ckv", config.kv_lora), ("self_attn.kpe", config.qk_rope)];
    if new < cached {
        for (i, (name, width)) in widths.into_iter().enumerate() {
            let rows = lab.elements(CACHES, i, 0).tensor(BF16, &[batch, cached, width])?;
            states.write(name, &rows)?;
        }
    }
    let reference = Reference::new(lab, config, moe, kit.shapes());

    let sizes = [("t", cached)];
    let mut found = None;
    for attempt in 0..TRIES {
        let elements = lab.elements(INPUTS + attempt, 0, 0);
        let x = elements.tensor(BF16, &[batch, new, config.hidden])?;
        let inputs = [("x", &x), ("rope", &rope), ("start", &start)];
        session.start(&inputs, Some(&mut states), &sizes)?;
        session.poison()?;
        session.start(&inputs, Some(&mut states), &sizes)?;
        let y = session.take("y")?;
        let caches = [states.read(widths[0].0, cached)?, states.read(widths[1].0, cached)?];
        if let Some(error) = check(&reference, step, &x, &y, &caches) {
            found = Some((x, y, error));
            break;
        }
    }
    let (x, before, error) =
        found.ok_or_else(|| BenchError::Unsupported("a router that is never sure".into()))?;

    let inputs = [("x", &x), ("rope", &rope), ("start", &start)];
    let mut call =
        [Call { session: &mut session, inputs: &inputs, states: Some(&mut states), sizes: &sizes }];
    let (times, calls) = lab.time(&mut call)?;
    let kernels = lab.kernels(&mut call[0])?;
    if session.take("y")?.bytes() != before.bytes() {
        return Err(BenchError::Changed("y".into()));
    }
    let (flops, bytes, hit) = work(config, moe, step);
    let sum: Duration = kernels.iter().map(|(_, _, time)| *time).sum();
    let launches: usize = kernels.iter().map(|(_, launches, _)| launches).sum();
    let arena = session.arena_bytes(&[("b", batch), ("s", new), ("t", cached), ("@capacity", cached)]);
    let mut more = vec![
        ("experts_hit_about", hit.round()),
        ("weights_gb", session.weight_bytes() as f64 / 1e9),
        ("arena_gb", arena.unwrap_or(0) as f64 / 1e9),
    ];
    if launches > 0 {
        more.extend([("launches", launches as f64), ("kernels_us", sum.as_secs_f64() * 1e6)]);
    }
    Ok(Measured { times, sets: 1, calls, flops, bytes, error, limit: LIMIT, more, kernels })
}

/// The error of some tokens, the larger of what is cached and what is added to the residual stream; `None` if no
/// token's experts are sure.
fn check(reference: &Reference<'_>, step: Step, x: &Data, y: &Data, caches: &[Data; 2]) -> Option<f64> {
    let Config { hidden, kv_lora, qk_rope, .. } = *reference.config;
    let Step { batch, new, cached, .. } = step;
    let row = |b: usize, token: usize| -> Vec<f64> {
        let at = b * cached + token;
        [part(&caches[0], at * kv_lora, kv_lora), part(&caches[1], at * qk_rope, qk_rope)].concat()
    };
    let (mut kept, mut added) = (Vec::new(), Vec::new());
    let mut sure = 0;
    for [b, i] in places(CANDIDATES, [batch, new], 6) {
        let position = cached - new + i;
        let before: Vec<Vec<f64>> = (0..position).map(|token| row(b, token)).collect();
        let at = (b * new + i) * hidden;
        let x = part(x, at, hidden);
        let token = reference.token(&x, position, &before);
        kept.extend(row(b, position).into_iter().zip(token.cached));
        if token.margin < MARGIN {
            continue;
        }
        let have = part(y, at, hidden);
        added.extend(have.iter().zip(&x).map(|(y, x)| y - x).zip(token.added));
        sure += 1;
        if sure == CHECKED || batch * new == 1 {
            break;
        }
    }
    // Of the two, NaN counts.
    let [kept, added] = [relative_error(kept), relative_error(added)];
    (sure > 0).then_some(if kept > added || kept.is_nan() { kept } else { added })
}

/// How many weights every token meets, and how many an expert has.
fn sizes(config: &Config, moe: &Moe) -> (usize, usize) {
    let Config { hidden, heads, kv_lora, qk_nope, qk_rope, v_head, .. } = *config;
    let query = config.q_lora.map_or(0, |q| q * (hidden + heads * (qk_nope + qk_rope)));
    let expert = 3 * hidden * moe.intermediate;
    let dense = query
        + hidden * (kv_lora + qk_rope)
        + heads * (qk_nope + v_head) * kv_lora
        + hidden * heads * v_head
        + moe.shared * expert
        + hidden * moe.routed;
    (dense, expert)
}

/// Floating-point operations, bytes of weights and caches, and how many experts have rows, as expected of random
/// choices.
fn work(config: &Config, moe: &Moe, step: Step) -> (f64, f64, f64) {
    let Config { heads, kv_lora, qk_nope, qk_rope, v_head, .. } = *config;
    let Step { form, batch, new, cached } = step;
    let tokens = (batch * new) as f64;
    let (dense, expert) = sizes(config, moe);
    let width = match form {
        Form::Absorbed => 2 * kv_lora + qk_rope,
        _ => qk_nope + qk_rope + v_head,
    };
    // Of the new tokens, each sees half on the average.
    let seen = tokens * ((cached - new) as f64 + new as f64 / 2.0);
    let flops = 2.0 * tokens * (dense + moe.per_token * expert) as f64 + 2.0 * seen * (heads * width) as f64;
    let missed = (1.0 - moe.per_token as f64 / moe.routed as f64).powf(tokens);
    let hit = moe.routed as f64 * (1.0 - missed);
    let cache = (batch * cached * (kv_lora + qk_rope)) as f64;
    (flops, 2.0 * (dense as f64 + hit * expert as f64 + cache), hit)
}

/// How long it takes from the module to loaded kernels, with nothing kept and with compiled kernels kept.
fn compile(lab: &mut Lab, form: Form) -> Result<Measured, BenchError> {
    let module = module(&config(lab.options.full)?)?;
    #[cfg_attr(not(feature = "cuda"), expect(unused_mut, reason = "only a GPU's kernels are kept"))]
    let mut options = lab.compile_options(form);
    let folder = std::env::temp_dir().join(format!("eva-bench-{}-{form:?}", std::process::id()));
    #[cfg(feature = "cuda")]
    {
        options.cuda.cache = eva_runtime::cuda::CacheFolder::At(folder.clone());
    }
    let timed = || -> Result<(Duration, Executable), BenchError> {
        let started = Instant::now();
        let exe = Executable::compile(&module, &options)?;
        Ok((started.elapsed(), exe))
    };
    let both = timed().and_then(|cold| Ok((cold, timed()?)));
    let _ = std::fs::remove_dir_all(&folder);
    let ((cold, exe), (kept, again)) = both?;
    let times = exe.times;
    let seconds = |time: Duration| time.as_secs_f64();
    let more = vec![
        ("again_s", seconds(kept)),
        ("again_from_cache", again.times.cached as f64),
        ("kernels", exe.plan().kernels.len() as f64),
        ("code_bytes", exe.code_bytes() as f64),
        ("passes_s", seconds(times.passes)),
        ("ptx_thread_s", seconds(times.ptx)),
        ("assemble_thread_s", seconds(times.assemble)),
        ("load_thread_s", seconds(times.load)),
    ];
    let (flops, bytes, kernels) = (0.0, 0.0, Vec::new());
    Ok(Measured { times: [cold; 3], sets: 1, calls: 1, flops, bytes, error: 0.0, limit: 0.0, more, kernels })
}
