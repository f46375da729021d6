//! The blocks of a model, each as a module of its own.

use anyhow::{Context, bail};
use eva::engine::EngineError;
use eva::model::config::Config;
use eva::model::layer::{Attention, Layer};
use eva::model::mla::Tokens;
use eva::model::mlp::SwiGlu;
use eva::model::moe::Experts;
use eva::model::norm::rms_norm;
use eva::model::weights::Weights;
use eva::prelude::*;
use eva_ir::graph::{Def, Func as FuncId, Function, ParamKind};
use std::collections::{HashMap, HashSet};

/// A part of a layer.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Layer,
    Attention,
    Norm,
    PostNorm,
    Mlp,
    Experts,
    Router,
    Shared,
}

/// What blocks are called.
const NAMES: [(&str, Kind); 16] = [
    ("layer", Kind::Layer),
    ("attention", Kind::Attention),
    ("norm", Kind::Norm),
    ("mlp", Kind::Mlp),
    ("experts", Kind::Experts),
    ("router", Kind::Router),
    ("shared", Kind::Shared),
    // What checkpoints and papers call them.
    ("self_attn", Kind::Attention),
    ("input_layernorm", Kind::Norm),
    ("post_attention_layernorm", Kind::PostNorm),
    ("ffn", Kind::Mlp),
    ("moe", Kind::Experts),
    ("gate", Kind::Router),
    ("shared_experts", Kind::Shared),
    ("attn", Kind::Attention),
    ("mla", Kind::Attention),
];

/// How many of [`NAMES`] messages list.
const LISTED: usize = 7;

/// The module of the block that `wanted` names; `whole` is the model's, with its MTP modules.
pub fn find(config: &Config, whole: &Module, wanted: &str, dtype: DType) -> anyhow::Result<Module> {
    if let Some(func) = whole.func(wanted.trim_start_matches('@')) {
        return Ok(only(whole, func));
    }
    let layers = config.layers + config.mtp_layers;
    let unknown = || {
        let kinds: Vec<String> = NAMES[..LISTED].iter().map(|(name, _)| format!("`{name}`")).collect();
        format!(
            "there is no block `{wanted}`; there are {}, each also of one layer as in `layer.{}.attention` \
             (layers 0 to {}), and the functions {}",
            kinds.join(", "),
            layers - 1,
            layers - 1,
            functions(whole)
        )
    };
    let kind = |name: &str| NAMES.iter().find(|(known, _)| *known == name).map(|(_, kind)| *kind);
    let (index, kind) = match wanted.strip_prefix("layer.").or_else(|| wanted.strip_prefix("layers.")) {
        None => (None, kind(wanted)),
        Some(rest) => {
            let (index, name) = rest.split_once('.').unwrap_or((rest, "layer"));
            let index = index.parse().ok().filter(|i: &usize| *i < layers);
            (Some(index.with_context(unknown)?), kind(name))
        }
    };
    let kind = kind.with_context(unknown)?;
    let first = (0..layers).find(|&l| has(config, l, kind));
    let Some(first) = first else {
        bail!("the model has no block `{wanted}`: its `config.json` sets none up")
    };
    let layer = index.unwrap_or(first);
    if !has(config, layer, kind) {
        bail!("layer {layer} has no block `{wanted}`; the first layer that has one is {first}");
    }
    let stored = stored(whole);
    let stored = |name: &str| stored.get(name).copied().unwrap_or(dtype);
    Ok(build(config, layer, kind, wanted, dtype, &stored).map_err(EngineError::Module)?)
}

/// Whether a layer has a block of this kind.
fn has(config: &Config, layer: usize, kind: Kind) -> bool {
    let moe = config.moe(layer);
    match kind {
        Kind::Experts | Kind::Router => moe.is_some(),
        Kind::Shared => moe.is_some_and(|moe| moe.shared > 0),
        _ => true,
    }
}

/// The types of the model's weights, by their names in a checkpoint.
fn stored(whole: &Module) -> HashMap<String, DType> {
    let mut types = HashMap::new();
    for (_, f) in whole.funcs.iter() {
        for (param, _) in f.params().filter(|(_, kind)| *kind == ParamKind::Weight) {
            let data = &f.values[param];
            types.extend(data.ty.tensor().map(|ty| (data.name.clone(), ty.dtype)));
        }
    }
    types
}

/// A program with one function, which is the block.
fn build(
    config: &Config,
    layer: usize,
    kind: Kind,
    name: &str,
    dtype: DType,
    stored: &dyn Fn(&str) -> DType,
) -> Result<Module, Diags> {
    let p = Program::new();
    let [b, s] = ["b", "s"].map(|name| p.dim(name));
    let m = p.dim_fixed("m", config.hidden as i64);
    let prefix = format!("model.layers.{layer}");
    let stored = |name: &str| stored(&format!("{prefix}.{name}"));
    p.function(name, |f| {
        let w = Weights::new(f, &stored).scaled(dtype, config.scale_block());
        let x = f.input("x", dtype, [&b, &s, &m]);
        let tokens = || {
            let table = [b.clone(), s.clone(), Dim::from(2), p.dim_fixed("p", config.qk_rope as i64)];
            Tokens {
                rope: f.input("rope", F32, table),
                start: f.input("start", I32, [&b]),
                cached: Some(p.dim("t")),
            }
        };
        let mlp = w.at("mlp");
        match kind {
            Kind::Layer => vec![Layer::of(&p, config, layer).apply(&w, &x, &tokens())],
            Kind::Attention => vec![Attention::of(&p, config).apply(&w.at("self_attn"), &x, &tokens())],
            Kind::Norm => vec![rms_norm(&w.at("input_layernorm"), &x, config.rms_eps)],
            Kind::PostNorm => vec![rms_norm(&w.at("post_attention_layernorm"), &x, config.rms_eps)],
            Kind::Mlp | Kind::Experts | Kind::Router | Kind::Shared => {
                let Some(moe) = config.moe(layer) else {
                    let width = p.dim_fixed("i", config.intermediate as i64);
                    return vec![SwiGlu { width }.apply(&mlp, &x)];
                };
                let experts = Experts::of(&p, moe);
                match kind {
                    Kind::Router => {
                        let rows = x.reshape([&(&b * &s), &m]);
                        let (logits, chosen, weight) = experts.route(&mlp.at("gate"), &rows);
                        vec![logits, chosen, weight]
                    }
                    Kind::Shared => {
                        let width = &experts.width * experts.shared;
                        vec![SwiGlu { width }.apply(&mlp.at("shared_experts"), &x)]
                    }
                    _ => vec![experts.apply(&mlp, &x)],
                }
            }
        }
    });
    p.finish()
}

/// The functions' names, for messages.
pub fn functions(module: &Module) -> String {
    let names: Vec<String> = module.funcs.iter().map(|(_, f)| format!("@{}", f.name)).collect();
    if names.is_empty() { "no functions".into() } else { names.join(", ") }
}

/// The module with `func` and what it calls only.
pub fn only(module: &Module, func: FuncId) -> Module {
    let mut wanted = vec![func];
    let mut needed = HashSet::new();
    while let Some(next) = wanted.pop() {
        if needed.insert(next) {
            let values = module.funcs[next].bodies().flat_map(|(body, _)| body.values.iter());
            wanted.extend(values.filter_map(|(_, data)| match data.def {
                Def::Call(callee, _) => Some(callee),
                _ => None,
            }));
        }
    }
    let mut smaller = Module { dims: module.dims.clone(), kv_budget: module.kv_budget, ..Module::default() };
    let mut moved = HashMap::new();
    for (id, f) in module.funcs.iter().filter(|(id, _)| needed.contains(id)) {
        let f = f.map_bodies(|body| {
            let mut values = body.values.clone();
            for value in body.values.keys() {
                if let Def::Call(callee, _) = &mut values[value].def {
                    // Callees come before their callers, so they have moved already.
                    *callee = moved[callee];
                }
            }
            Function { values, ..body.clone() }
        });
        moved.insert(id, smaller.add(f));
    }
    smaller
}
