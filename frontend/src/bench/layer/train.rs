//! A training step of a layer with experts in bf16, or with 8-bit products: forward, and the gradients of its input and of all
//! weights. 8-bit weights are made of the bf16 ones where those change, after an optimizer's step; what that takes is measured
//! by itself (`weights_us`).
//!
//! What is checked is that a step along the gradient of the input changes the loss by as much as the gradient says.

use super::super::lab::{Call, Lab};
use super::super::{BenchError, Measured};
use super::{CACHES, INPUTS, random_weights, shapes, sizes, stored};
use crate::model::config::{Config, Moe};
use crate::model::layer::Layer;
use crate::model::mla::Tokens;
use crate::model::rope::Rope;
use crate::model::weights::Weights as Declared;
use crate::prelude::*;
use eva_passes::Form;
use eva_passes::cost::CostOptions;
use eva_passes::fp8::{self, Recipe};
use eva_passes::grad::{self, GRADIENT, differentiate};
use eva_passes::target::Target;
use eva_runtime::{Executable, Session, Tensor as Data, Weights};
use std::sync::Arc;
use std::time::Duration;

/// How far the change of the loss may be from what the gradient says, over that: some choices of experts flip, and
/// everything is rounded to bf16.
const LIMIT: f64 = 5e-2;

/// The same with products of 8 bits.
const LIMIT_FP8: f64 = 0.15;

/// The rms of the step along the gradient; that of the input is about 1.
const STEP: f64 = 0.04;

/// `@loss`: the sum of the layer's result times `dy`.
fn module(config: &Config, tokens: usize) -> Result<Module, Diags> {
    let p = Program::new();
    // Tiles of tokens that share a scale have fixed extents.
    let [b, s] = [("b", 1), ("s", tokens as i64)].map(|(name, n)| p.dim_fixed(name, n));
    let m = p.dim_fixed("m", config.hidden as i64);
    let layer = Layer::of(&p, config, 0);
    let width = layer.attention.rope().clone();
    p.function("loss", |f| {
        let x = f.input("x", BF16, [&b, &s, &m]);
        let dy = f.input("dy", BF16, [&b, &s, &m]);
        let start = f.input("start", I32, [&b]);
        let rope = Rope::of(config).table(f, &start, &s, &width);
        let tokens = Tokens { rope, start, cached: None };
        let y = layer.apply(&Declared::new(f, &stored), &x, &tokens);
        (y.cast(F32) * dy.cast(F32)).sum(2).sum(1).sum(0).reshape(Vec::<Dim>::new()).named("loss")
    });
    p.finish()
}

/// A step of one sequence of `tokens` tokens, with a recipe for 8 bits or without.
pub(super) fn run(
    lab: &mut Lab,
    config: &Config,
    tokens: usize,
    recipe: Option<&str>,
) -> Result<Measured, BenchError> {
    // The weights of other cases make room.
    lab.kit = None;
    let moe = config.moe(0).ok_or_else(|| BenchError::Unsupported("a layer without experts".into()))?;
    let internal = |e: eva_ir::diag::Diag| BenchError::Unsupported(e.to_string());
    let module = module(config, tokens)?;
    let loss = &module.funcs[module.func("loss").expect("it was just made")];
    let float = |value: eva_ir::graph::Value| loss.tensor(value).filter(|ty| ty.dtype == BF16).is_some();
    let wrt =
        loss.params().filter(|(value, _)| float(*value)).map(|(value, _)| loss.values[value].name.clone());
    let wrt: Vec<String> = wrt.filter(|name| name != "dy").collect();
    let mut cost = CostOptions::new(Target::cuda().costs);
    cost.sizes.extend([("b".into(), 1), ("s".into(), tokens as i64)]);
    let options = grad::Options { wrt: Some(wrt), cost, ..grad::Options::default() };
    let module = differentiate(&module, "loss", &options).map_err(internal)?;
    let mut compile = lab.compile_options(Form::Expanded);
    if let Some(name) = recipe {
        let recipe =
            Recipe::named(name).ok_or_else(|| BenchError::Unsupported(format!("the recipe {name}")))?;
        compile.passes.fp8 = fp8::Options { recipe: Some(recipe), ..fp8::Options::default() };
    }
    let exe = Arc::new(Executable::compile(&module, &compile)?);

    let mut weights = random_weights(lab, &exe, shapes(&module, "loss.grad"))?;
    let preparing = prepare(lab, &exe, &mut weights)?;
    let mut session = Session::new(exe.clone(), "loss.grad", &weights)?;
    let shape = [1, tokens, config.hidden];
    let x = lab.elements(INPUTS, 0, 0).tensor(BF16, &shape)?;
    let dy = lab.elements(CACHES, 0, 0).tensor(BF16, &shape)?;
    let start = Data::from_i32(&[1], &[0]);
    let seed = Data::from_f32(&[], &[1.0]);

    let mut loss_at = |x: &Data, wants: bool| -> Result<(f64, Option<Data>), BenchError> {
        let inputs = [("x", x), ("dy", &dy), ("start", &start), ("loss.grad", &seed)];
        session.start(&inputs, None, &[])?;
        let gradient = if wants { Some(session.take(&format!("x{GRADIENT}"))?) } else { None };
        Ok((session.take("loss")?.to_f64()[0], gradient))
    };
    let (_, gradient) = loss_at(&x, true)?;
    let gradient = gradient.expect("it was asked for").to_f64();
    let rms = (gradient.iter().map(|g| g * g).sum::<f64>() / gradient.len() as f64).sqrt();
    let numbers = x.to_f64();
    let moved = |sign: f64| {
        let numbers: Vec<f64> =
            numbers.iter().zip(&gradient).map(|(x, g)| x + sign * STEP * g / rms).collect();
        Data::from_f64(BF16, &shape, &numbers)
    };
    let (up, down) = (moved(1.0), moved(-1.0));
    let change = loss_at(&up, false)?.0 - loss_at(&down, false)?.0;
    // Of the steps that were taken, after rounding.
    let taken = up.to_f64().into_iter().zip(down.to_f64()).map(|(up, down)| up - down);
    let said: f64 = taken.zip(&gradient).map(|(step, g)| step * g).sum();
    let error = ((change - said) / said).abs();

    let inputs = [("x", &x), ("dy", &dy), ("start", &start), ("loss.grad", &seed)];
    let mut call = [Call { session: &mut session, inputs: &inputs, states: None, sizes: &[] }];
    let (times, calls) = lab.time(&mut call)?;
    let kernels = lab.kernels(&mut call[0])?;
    let launches: usize = kernels.iter().map(|(_, launches, _)| launches).sum();
    let arena = session.arena_bytes(&[("b", 1), ("s", tokens)]).unwrap_or(0);
    let mut more =
        vec![("weights_gb", session.weight_bytes() as f64 / 1e9), ("arena_gb", arena as f64 / 1e9)];
    more.extend(preparing.map(|time| ("weights_us", time.as_secs_f64() * 1e6)));
    if launches > 0 {
        more.push(("launches", launches as f64));
    }
    let (flops, bytes) = work(config, moe, tokens as f64);
    let limit = if recipe.is_some() { LIMIT_FP8 } else { LIMIT };
    Ok(Measured { times, sets: 1, calls, flops, bytes, error, limit, more, kernels })
}

/// Makes what the step has of weights alone, and lets go of those that it does not need any more: how long making it takes,
/// if there is any.
fn prepare(
    lab: &mut Lab,
    exe: &Arc<Executable>,
    weights: &mut Weights,
) -> Result<Option<Duration>, BenchError> {
    const STEP: &str = "loss.grad";
    let Some(companion) = exe.func_plan(exe.func(STEP)?).prepare else { return Ok(None) };
    let mut session = Session::new(exe.clone(), &exe.func_plan(companion).name, weights)?;
    let call = Call { session: &mut session, inputs: &[], states: None, sizes: &[] };
    let ([middle, ..], _) = lab.time(&mut [call])?;
    // Its results make room for those that stay.
    drop(session);
    exe.prepare(&[STEP], weights)?;
    Ok(Some(middle))
}

/// Floating-point operations of forward and backward, and the bytes of weights read twice and gradients written.
fn work(config: &Config, moe: &Moe, tokens: f64) -> (f64, f64) {
    let Config { heads, qk_nope, qk_rope, v_head, .. } = *config;
    let (dense, expert) = sizes(config, moe);
    // Of attention's products backward has five, where forward has two.
    let attention = tokens * tokens / 2.0 * (heads * (qk_nope + qk_rope + v_head)) as f64;
    let flops = 6.0 * tokens * (dense + moe.per_token * expert) as f64 + 7.0 * attention;
    (flops, 6.0 * (dense + moe.routed * expert) as f64)
}
