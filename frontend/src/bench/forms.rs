//! Latent attention of some new tokens after many cached ones, in each form, beside what the cost model predicts.
//!
//! The block that is measured is DeepSeek-V2-Lite's: hidden 2048, 16 heads, latents of 512, in f32.

use super::lab::{Call, Lab};
use super::reference::{part, relative_error};
use super::{Bench, BenchError, Case, Measured, Options};
use eva_ir::text;
use eva_ir::types::DType::F32;
use eva_passes::Form;
use eva_passes::cost::{Cost, CostOptions};
use eva_passes::form::choose_and_report;
use eva_passes::rewrite::rules::Use;
use eva_passes::target::Target;
use eva_runtime::{Device, Executable, Session, Tensor, Weights};
use std::sync::Arc;

const TEXT: &str = include_str!("forms.eva");

/// Hidden, heads, nope, rope, value and latent.
const FULL: [usize; 6] = [2048, 16, 128, 64, 128, 512];
const SMALL: [usize; 6] = [40, 3, 10, 6, 14, 24];
const NEW: [usize; 9] = [1, 16, 64, 128, 160, 192, 256, 512, 1024];

const FORMS: [(&str, Form); 3] =
    [("absorbed", Form::Absorbed), ("expanded", Form::Expanded), ("auto", Form::Auto)];

/// How far two forms may be from each other: both round to f32 at every step.
const LIMIT: f64 = 1e-4;

/// Each number of new tokens in each form.
pub fn cases(options: &Options) -> Vec<Case> {
    let full = options.full;
    let (new, kv): (&[usize], usize) = if full { (&NEW, 4096) } else { (&[1, 7], 130) };
    let of = |new: usize| {
        FORMS.into_iter().map(move |(name, form)| Case {
            bench: Bench::Forms,
            words: vec![("new", new.into()), ("kv", kv.into()), ("form", name.into())],
            run: Box::new(move |lab| run(lab, full, form, [new, kv])),
        })
    };
    new.iter().flat_map(|&new| of(new)).collect()
}

fn run(lab: &mut Lab, full: bool, form: Form, [new, kv]: [usize; 2]) -> Result<Measured, BenchError> {
    let [m, h, n, p, v, c] = if full { FULL } else { SMALL };
    let sizes = format!("dim m = {m}\ndim h = {h}\ndim n = {n}\ndim p = {p}\ndim v = {v}\ndim c = {c}\n");
    let text = sizes + TEXT;
    let x = lab.elements(0, 0, 0).tensor(F32, &[1, kv, m])?;
    let late = lab.elements(1, 0, 0).tensor(F32, &[1, new, m])?;
    let numbers = |from: usize, to: usize| (from..to).map(|i| i as i32).collect::<Vec<i32>>();
    let positions = |from, to: usize| Tensor::from_i32(&[1, to - from], &numbers(from, to));
    let (all, last) = (positions(0, kv), positions(kv - new, kv));
    let [zero, start] = [0, kv - new].map(|at| Tensor::from_i32(&[1], &[at as i32]));
    let before = [("x", &x), ("positions", &all), ("start", &zero)];
    let now = [("x", &late), ("positions", &last), ("start", &start)];
    let cached = [("t", kv)];

    let session = |lab: &mut Lab, form: Form| -> Result<_, BenchError> {
        let exe = lab.executable_of(&text, form)?;
        let mut session = Session::new(exe.clone(), "mla", &weights(lab, &exe)?)?;
        let mut states = session.new_states(1, kv)?;
        session.run(&before, Some(&mut states), &cached)?;
        session.start(&now, Some(&mut states), &cached)?;
        let out = session.take("out")?;
        Ok((session, states, part(&out, 0, new * m)))
    };
    // The expanded form is what the block says; the absorbed one is checked against it, and it against that.
    let other = if form == Form::Expanded { Form::Absorbed } else { Form::Expanded };
    let (_, _, want) = session(lab, other)?;
    let (mut session, mut states, have) = session(lab, form)?;
    let error = relative_error(have.into_iter().zip(want));
    let mut call = [Call { session: &mut session, inputs: &now, states: Some(&mut states), sizes: &cached }];
    let (times, calls) = lab.time(&mut call)?;
    let kernels = lab.kernels(&mut call[0])?;

    // What the cost model says of this form at these lengths.
    let module = text::parse(&text)?;
    let machine = match lab.options.device {
        Device::Cpu => Target::cpu().costs,
        Device::Cuda(_) => Target::cuda().costs,
    };
    let lengths = [("b", 1), ("s", new as i64), ("t", kv as i64)].map(|(name, n)| (name.into(), n)).into();
    let costs = CostOptions { sizes: lengths, ..CostOptions::new(machine) };
    let (chosen, _) = choose_and_report(&module, form, &costs, Use::default())
        .map_err(|diag| BenchError::Program(diag.into()))?;
    let function = chosen.func("mla").map(|func| &chosen.funcs[func]);
    let function = function.ok_or_else(|| BenchError::Unsupported("a module without a block".into()))?;
    let cost = Cost::new(&chosen, function, &costs);
    let seconds = cost.estimate(function).eval(&|sym| cost.size_of(sym)).unwrap_or(f64::NAN);
    let work = cost.total(function);
    let more = vec![("predicted_us", seconds * 1e6)];
    let (flops, bytes) = (work.flops, work.bytes);
    Ok(Measured { times, sets: 1, calls, flops, bytes, error, limit: LIMIT, more, kernels })
}

/// Random weights, so that what a product gives is about as large as what it takes.
fn weights(lab: &Lab, exe: &Arc<Executable>) -> Result<Weights, BenchError> {
    let plan = exe.func_plan(exe.func("mla")?);
    let mut weights = Weights::new();
    let given = plan.params.iter().filter(|param| param.kind == eva_ir::graph::ParamKind::Weight);
    for (i, param) in given.enumerate() {
        let value = |dim: &eva_ir::dim::Dim| {
            let fixed = |sym: &_| exe.plan().dims.iter().find(|(name, _)| name == sym).and_then(|(_, n)| *n);
            dim.eval(&fixed).and_then(|n| usize::try_from(n).ok())
        };
        let shape: Option<Vec<usize>> = param.ty.shape.iter().map(value).collect();
        let shape =
            shape.ok_or_else(|| BenchError::Unsupported(format!("`{}` without a size", param.name)))?;
        let exponent = if shape.len() == 1 { 0 } else { -4 };
        let weight = lab.elements(2 + i, 1, exponent).weight(exe, F32, &shape, &param.name)?;
        weights.insert(param.name.clone(), Arc::new(weight));
    }
    Ok(weights)
}
