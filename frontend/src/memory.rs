//! What a training step takes in memory, and which forms of attention it has: what `eva explain --memory` prints.

mod forms;

pub use forms::{Candidate, Forms, Sides};

use crate::model::config::Config;
use crate::model::{Training, training};
use crate::prelude::*;
use eva_ir::dim::Sym;
use eva_ir::types::TensorType;
use eva_passes::cost::CostOptions;
use eva_passes::grad::budget::{Fitted, fit};
use eva_passes::grad::{GRADIENT, Options};
use eva_passes::target::Target;
use eva_passes::{Error, plan::Plan};
use eva_passes::{Exactness, Form};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write;

/// What is asked.
#[derive(Clone, Debug)]
pub struct Question {
    /// Sequences.
    pub batch: i64,
    /// Tokens of each.
    pub tokens: i64,
    /// What is trained.
    pub training: Training,
    /// The most bytes of activations; as fast as can be if there is none.
    pub budget: Option<usize>,
    /// What activations may be kept as, if narrower than they are.
    pub store: Option<DType>,
    /// The form of attention that is asked for.
    pub form: Form,
    /// How far forms may move results.
    pub numerics: Exactness,
}

/// A value that a called function keeps until the backward pass.
#[derive(Clone, Debug, Serialize)]
pub struct Kept {
    /// Its name.
    pub name: String,
    /// Its type.
    pub ty: String,
    /// The bytes of a call's.
    pub bytes: usize,
}

/// What one function keeps.
#[derive(Clone, Debug, Serialize)]
pub struct Function {
    /// The function.
    pub function: String,
    /// How often it is called.
    pub calls: usize,
    /// What each call keeps, besides its arguments.
    pub kept: Vec<Kept>,
    /// What the backward pass computes a second time.
    pub again: Vec<String>,
}

/// The answer.
#[derive(Clone, Debug, Serialize)]
pub struct Answer {
    /// Sequences, and tokens of each.
    pub lengths: (i64, i64),
    /// Bytes of the weights, in `f32`; gradients take as much, and AdamW's moments twice that.
    pub weights: usize,
    /// Bytes of activations at their most: the arena of a step.
    pub peak: usize,
    /// The budget, if there was one.
    pub budget: Option<usize>,
    /// The price of a byte that was taken, in seconds.
    pub seconds_per_byte: f64,
    /// The largest things in the arena, by name.
    pub largest: Vec<(String, usize)>,
    /// The forms of attention that were compared, for each function with latents.
    pub forms: Vec<Forms>,
    /// What called functions keep.
    pub functions: Vec<Function>,
}

/// What a step of training a model takes.
pub fn memory(config: &Config, question: &Question, target: &Target) -> Result<Answer, Error> {
    let module = training(config, &question.training).map_err(Error::Invalid)?;
    let sizes: BTreeMap<Sym, i64> =
        [("b".into(), question.batch), ("s".into(), question.tokens)].into_iter().collect();
    let cost = CostOptions::new(target.costs.clone());
    let Question { store, form, numerics, .. } = *question;
    let options = Options { cost, store, form, numerics, ..Options::default() };
    let passes = eva_passes::Options { form, numerics, ..eva_passes::Options::default() };
    let fitted = fit(&module, "loss", &options, (target, &passes), &sizes, question.budget)?;
    let value = |sym: &Sym| sizes.get(sym).copied().or_else(|| fitted.module.size_of(sym));
    let of = |ty: &TensorType| {
        let elements = ty.shape.iter().map(|dim| dim.eval(&value).unwrap_or(0)).product::<i64>();
        (elements * ty.dtype.bytes()) as usize
    };
    let calls = |name: &str| {
        let name = format!("{name}.forward");
        let root = fitted.module.func(&format!("loss{GRADIENT}")).map(|f| &fitted.module.funcs[f]);
        let is_call = |def: &eva_ir::graph::Def| match def {
            eva_ir::graph::Def::Call(func, _) => fitted.module.funcs[*func].name == name,
            _ => false,
        };
        root.map_or(0, |root| root.values.iter().filter(|(_, data)| is_call(&data.def)).count())
    };
    let functions = fitted.report.splits.iter().map(|split| {
        let kept = split.kept.iter().map(|kept| {
            let (name, ty) = (kept.name.clone(), kept.ty.to_string());
            Kept { name, ty, bytes: of(&kept.ty) }
        });
        let (function, again) = (split.function.clone(), split.again.clone());
        Function { calls: calls(&function), function, kept: kept.collect(), again }
    });
    let forms = fitted.report.forms.iter().map(|choice| Forms::of(choice, calls(&choice.function), question));
    let forms = forms.collect();
    let (functions, largest) = (functions.collect(), largest(&fitted.plan, &value));
    let weights = weights(&fitted.plan, &of);
    let Fitted { seconds_per_byte, peak, .. } = fitted;
    let (lengths, budget) = ((question.batch, question.tokens), question.budget);
    Ok(Answer { lengths, weights, peak, budget, seconds_per_byte, largest, forms, functions })
}

fn weights(plan: &Plan, of: &dyn Fn(&TensorType) -> usize) -> usize {
    let root = plan.funcs.iter().find(|(_, f)| f.name == format!("loss{GRADIENT}"));
    root.map_or(0, |(_, f)| f.weights().map(|param| of(&param.ty)).sum())
}

/// The largest buffers of the outermost function, those alike together.
fn largest(plan: &Plan, value: &dyn Fn(&Sym) -> Option<i64>) -> Vec<(String, usize)> {
    let Some((_, f)) = plan.funcs.iter().find(|(_, f)| f.name == format!("loss{GRADIENT}")) else {
        return Vec::new();
    };
    let mut all: BTreeMap<String, usize> = BTreeMap::new();
    for base in &f.bases {
        if let eva_passes::plan::Base::Temp(temp) = base {
            let name = temp.name.rsplit('.').next().unwrap_or(&temp.name).to_string();
            let bytes = temp.bytes.eval(value).and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
            *all.entry(name).or_default() += bytes;
        }
    }
    let mut all: Vec<(String, usize)> = all.into_iter().collect();
    all.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    all.truncate(8);
    all
}

/// The answer for people.
pub fn text(answer: &Answer) -> String {
    let size = |bytes: usize| match bytes {
        0..10_000 => format!("{bytes} B"),
        10_000..10_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        10_000_000..10_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    };
    let (b, s) = answer.lengths;
    let mut out = format!("A training step of {b} × {s} tokens\n\n");
    let mut line = |what: &str, bytes: usize, note: &str| {
        let _ = writeln!(out, "  {what:24} {:>10}  {note}", size(bytes));
    };
    line("weights, f32", answer.weights, "");
    line("gradients, f32", answer.weights, "");
    line("moments of AdamW, f32", 2 * answer.weights, "");
    let note = match answer.budget {
        Some(budget) => {
            format!("at most {}: a kept byte counts as {:.0e} s", size(budget), answer.seconds_per_byte)
        }
        None => "as fast as can be".into(),
    };
    line("activations at most", answer.peak, &note);
    out.push_str("\nWhat is largest among the activations of all layers (not all of it at the same time):\n");
    for (name, bytes) in &answer.largest {
        let _ = writeln!(out, "  {name:24} {:>10}", size(*bytes));
    }
    answer.forms.iter().for_each(|forms| out.push_str(&forms.text(answer.lengths)));
    for f in &answer.functions {
        let each: usize = f.kept.iter().map(|kept| kept.bytes).sum();
        let times = if f.calls == 1 { "once".into() } else { format!("{} times", f.calls) };
        let _ = writeln!(out, "\n@{}, called {times}, keeps {} a call:", f.function, size(each));
        for kept in &f.kept {
            let _ = writeln!(out, "  {:24} {:>10}  {}", kept.name, size(kept.bytes), kept.ty);
        }
        if !f.again.is_empty() {
            let _ = writeln!(out, "  computed again: {}", f.again.join(", "));
        }
    }
    out
}
