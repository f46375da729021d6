//! A whole block of attention in bf16, latent and standard with as many heads: a prompt, a decode step, and what a token
//! takes in the cache.
//!
//! Heads are those of DeepSeek-V3: 128 columns without position and 64 that are rotated, values of 128. Latent attention is
//! in the form that costs least, as users have it.

use super::lab::{Call, Lab};
use super::layer::reference::{Reference, parallel};
use super::layer::{CACHES, INPUTS, LIMIT, angles, config, random_weights, shapes, stored};
use super::reference::{attend, dot, part, places, relative_error};
use super::{Bench, BenchError, Case, Measured, Options};
use crate::engine::caches;
use crate::model::config::{self, Config};
use crate::model::layer::Attention;
use crate::model::mla::Tokens;
use crate::model::rope::Rope;
use crate::model::weights::Weights as Declared;
use crate::prelude::*;
use eva_passes::Form;
use eva_runtime::{Executable, Session, Tensor as Data};
use std::sync::Arc;

/// How many tokens are checked.
const CHECKED: usize = 4;

const KINDS: [config::Attention; 2] = [config::Attention::Latent, config::Attention::Standard];

/// What a call is.
#[derive(Clone, Copy)]
struct Step {
    kind: config::Attention,
    /// Sequences.
    batch: usize,
    /// New tokens of each.
    new: usize,
    /// Tokens in the cache after the call.
    cached: usize,
}

/// A prompt, and a decode step, of each kind.
pub fn cases(options: &Options) -> Vec<Case> {
    let (prompt, kv) = if options.full { (2048, 4096) } else { (67, 130) };
    let heads = options.heads.or(config(options.full).ok().map(|config| config.heads)).unwrap_or(1);
    let of = |op: &'static str| {
        KINDS.into_iter().map(move |kind| {
            let (step, size) = match op {
                "prefill" => {
                    (Step { kind, batch: 1, new: prompt, cached: prompt }, ("tokens", prompt.into()))
                }
                _ => (Step { kind, batch: 1, new: 1, cached: kv }, ("kv", kv.into())),
            };
            let name = kind.to_string();
            let words =
                vec![("op", op.into()), size, ("heads", heads.into()), ("kind", name.as_str().into())];
            Case { bench: Bench::Attention, words, run: Box::new(move |lab| run(lab, heads, step)) }
        })
    };
    ["prefill", "decode"].into_iter().flat_map(of).collect()
}

/// `@attention`, and `@rope`, which makes the angles once for all layers.
fn module(config: &Config) -> Result<Module, Diags> {
    let p = Program::new();
    let [b, s, t] = ["b", "s", "t"].map(|name| p.dim(name));
    let m = p.dim_fixed("m", config.hidden as i64);
    let attention = Attention::of(&p, config);
    p.function("rope", |f| {
        let start = f.input("start", I32, [&b]);
        Rope::of(config).table(f, &start, &s, attention.rope())
    });
    p.function("attention", |f| {
        let x = f.input("x", BF16, [&b, &s, &m]);
        let rope = f.input("rope", F32, [b.clone(), s.clone(), Dim::from(2), attention.rope().clone()]);
        let start = f.input("start", I32, [&b]);
        let tokens = Tokens { rope, start, cached: Some(t.clone()) };
        attention.apply(&Declared::new(f, &stored).at("self_attn"), &x, &tokens).named("y")
    });
    p.finish()
}

fn run(lab: &mut Lab, heads: usize, step: Step) -> Result<Measured, BenchError> {
    // The weights of other cases make room.
    lab.kit = None;
    let Step { kind, batch, new, cached } = step;
    let mut config = Config { heads, attention: kind, ..config(lab.options.full)? };
    if kind == config::Attention::Standard {
        (config.q_lora, config.kv_lora) = (None, 0);
    }
    let config = &config;
    let moe = config.moe(0).ok_or_else(|| BenchError::Unsupported("a layer without experts".into()))?;
    let module = module(config)?;
    let mut options = lab.compile_options(Form::Auto);
    options.passes.cache = caches(config, options.passes.cache);
    let exe = Arc::new(Executable::compile(&module, &options)?);
    let start = Data::from_i32(&[batch], &vec![(cached - new) as i32; batch]);
    let rope = angles(&exe, &start, new)?;

    let weights = random_weights(lab, &exe, shapes(&module, "attention"))?;
    let mut session = Session::new(exe.clone(), "attention", &weights)?;
    let mut states = session.new_states(batch, cached)?;
    let states_of = states_of(config);
    if new < cached {
        for (i, (name, widths)) in states_of.iter().enumerate() {
            let shape = [&[batch, cached], &widths[..]].concat();
            states.write(name, &lab.elements(CACHES, i, 0).tensor(BF16, &shape)?)?;
        }
    }
    let x = lab.elements(INPUTS, 0, 0).tensor(BF16, &[batch, new, config.hidden])?;
    let inputs = [("x", &x), ("rope", &rope), ("start", &start)];
    let sizes = [("t", cached)];
    session.start(&inputs, Some(&mut states), &sizes)?;
    session.poison()?;
    session.start(&inputs, Some(&mut states), &sizes)?;
    let before = session.take("y")?;
    let kept = states_of.iter().map(|(name, _)| states.read(name, cached)).collect::<Result<Vec<_>, _>>()?;
    let reference = Reference::new(lab, config, moe, shapes(&module, "attention"));
    let error = check(&reference, step, &x, &before, &kept);

    let mut call =
        [Call { session: &mut session, inputs: &inputs, states: Some(&mut states), sizes: &sizes }];
    let (times, calls) = lab.time(&mut call)?;
    let kernels = lab.kernels(&mut call[0])?;
    if session.take("y")?.bytes() != before.bytes() {
        return Err(BenchError::Changed("y".into()));
    }
    let arena = session.arena_bytes(&[("b", batch), ("s", new), ("t", cached), ("@capacity", cached)]);
    let more = vec![
        ("cache_bytes_per_token", session.state_bytes_per_token() as f64),
        ("weights_gb", session.weight_bytes() as f64 / 1e9),
        ("arena_gb", arena.unwrap_or(0) as f64 / 1e9),
    ];
    let (flops, bytes) = work(config, step);
    Ok(Measured { times, sets: 1, calls, flops, bytes, error, limit: LIMIT, more, kernels })
}

/// What is cached, and the extents of a token's part.
fn states_of(config: &Config) -> [(&'static str, Vec<usize>); 2] {
    match config.attention {
        config::Attention::Latent => {
            [("self_attn.ckv", vec![config.kv_lora]), ("self_attn.kpe", vec![config.qk_rope])]
        }
        config::Attention::Standard => [
            ("self_attn.k", vec![config.heads, config.qk_head()]),
            ("self_attn.v", vec![config.heads, config.v_head]),
        ],
    }
}

/// The error of some tokens: the larger of what is cached, and what attention gives.
fn check(reference: &Reference<'_>, step: Step, x: &Data, y: &Data, caches: &[Data]) -> f64 {
    let (hidden, Step { batch, new, cached, .. }) = (reference.config.hidden, step);
    let widths = states_of(reference.config).map(|(_, widths)| widths.iter().product::<usize>());
    let (mut kept, mut given) = (Vec::new(), Vec::new());
    for [b, i] in places(CHECKED.min(batch * new), [batch, new], 8) {
        let position = cached - new + i;
        let row = |token: usize| {
            let at = b * cached + token;
            [part(&caches[0], at * widths[0], widths[0]), part(&caches[1], at * widths[1], widths[1])]
                .concat()
        };
        let at = (b * new + i) * hidden;
        let x = part(x, at, hidden);
        let (want, want_kept) = match step.kind {
            config::Attention::Latent => {
                let before: Vec<Vec<f64>> = (0..position).map(row).collect();
                reference.attention(&x, position, &before)
            }
            config::Attention::Standard => {
                let cached = |cache: usize, token: usize, head: usize| {
                    let width = widths[cache] / reference.config.heads;
                    part(&caches[cache], (b * cached + token) * widths[cache] + head * width, width)
                };
                standard(reference, &x, position, &cached)
            }
        };
        kept.extend(row(position).into_iter().zip(want_kept));
        given.extend(part(y, at, hidden).into_iter().zip(want));
    }
    // Of the two, NaN counts.
    let [kept, given] = [relative_error(kept), relative_error(given)];
    if kept > given || kept.is_nan() { kept } else { given }
}

/// What standard attention gives for the token at `position`, and what is cached for it: keys, then values.
/// `cached(0, token, head)` is a key of a token before it, and `cached(1, …)` a value.
fn standard(
    reference: &Reference<'_>,
    x: &[f64],
    position: usize,
    cached: &(dyn Fn(usize, usize, usize) -> Vec<f64> + Sync),
) -> (Vec<f64>, Vec<f64>) {
    let Config { heads, qk_nope: n, v_head: v, .. } = *reference.config;
    let width = reference.config.qk_head();
    let [q, k, value, o] = ["q", "k", "v", "o"].map(|name| format!("self_attn.{name}_proj.weight"));
    let rotated = |name: &str| -> Vec<f64> {
        let head = |head: &[f64]| [head[..n].to_vec(), reference.rope(&head[n..], position)].concat();
        reference.all(name, x).chunks(width).flat_map(head).collect()
    };
    let (queries, keys, values) = (rotated(&q), rotated(&k), reference.all(&value, x));
    let of_heads = parallel(heads, |head| {
        let query = &queries[head * width..][..width];
        let key = |j: usize| match j < position {
            true => cached(0, j, head),
            false => keys[head * width..][..width].to_vec(),
        };
        let value = |j: usize| match j < position {
            true => cached(1, j, head),
            false => values[head * v..][..v].to_vec(),
        };
        let scale = (width as f64).sqrt().recip();
        let scores: Vec<f64> = (0..=position).map(|j| dot(query, &key(j)) * scale).collect();
        attend(&scores, v, value)
    });
    (reference.all(&o, &of_heads.concat()), [keys, values].concat())
}

/// Floating-point operations, and bytes of weights and caches.
fn work(config: &Config, step: Step) -> (f64, f64) {
    let Config { hidden, heads, kv_lora, qk_nope, qk_rope, v_head, .. } = *config;
    let Step { kind, batch, new, cached } = step;
    let head = config.qk_head();
    let query = config.q_lora.map_or(hidden * heads * head, |q| q * (hidden + heads * head));
    let keys_and_values = match kind {
        config::Attention::Latent => hidden * (kv_lora + qk_rope) + heads * (qk_nope + v_head) * kv_lora,
        config::Attention::Standard => hidden * heads * (head + v_head),
    };
    let weights = query + keys_and_values + hidden * heads * v_head;
    let absorbed = kind == config::Attention::Latent && new == 1;
    let width = if absorbed { 2 * kv_lora + qk_rope } else { head + v_head };
    let tokens = (batch * new) as f64;
    // Of the new tokens, each sees half on the average.
    let seen = tokens * ((cached - new) as f64 + new as f64 / 2.0);
    let flops = 2.0 * tokens * weights as f64 + 2.0 * seen * (heads * width) as f64;
    (flops, 2.0 * (weights + batch * cached * config.cache_width()) as f64)
}
