//! Statistics of what is quantized, as results of the functions that quantize it.
//!
//! ```text
//! %q = quantize %x {per = [1, 1, 128]}   =>   %q, and the result
//!                                             %q.stats = quantize_stats %x, (dequantize %q), limit
//! ```
//!
//! A caller has the results of what it calls among its own, named by the calls on the way. So every call of the outermost
//! function gives, beside what it gave, six numbers for each row of everything that was quantized ([`PARTS`]).

use crate::rebuild::{Rebuild, ill_typed};
use eva_ir::attr::{Dims, Real};
use eva_ir::diag::{Diag, Loc};
use eva_ir::entity::Arena;
use eva_ir::graph::{Def, Func, Function, Module, ParamKind, Value};
use eva_ir::op::TypeError;
use eva_ir::ops::dequantize::Dequantize;
use eva_ir::ops::full::Full;
use eva_ir::ops::get::Get;
use eva_ir::ops::maximum::Maximum;
use eva_ir::ops::quantize_by::QuantizeBy;
pub use eva_ir::ops::quantize_stats::PARTS;
use eva_ir::ops::quantize_stats::QuantizeStats;
use eva_ir::ops::scale::Scale;
use eva_ir::ops::{Op, OpKind};
use eva_ir::types::DType;
use serde::Serialize;
use std::sync::Arc;

/// A quantization of which a function gives statistics.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Site {
    /// The result that has the statistics: `f32[…, 6]`.
    #[serde(skip)]
    pub result: String,
    /// The calls that lead to it, outermost first.
    pub calls: Vec<String>,
    /// The value that is quantized, by its name in its function.
    pub value: String,
    /// Whether it is a weight, or made of weights alone.
    pub is_weight: bool,
    /// The weights that it is multiplied with, by their names outside, or what else uses it; of a weight, the weight.
    pub used_by: Vec<String>,
    /// How many elements its rows have; none if that is not known before it runs.
    pub columns: Option<i64>,
    /// The type that it gets.
    pub ty: String,
    /// The line of what is quantized.
    #[serde(skip)]
    pub loc: Option<Loc>,
}

/// A site of one function, with weights as values where they are its parameters.
struct Known {
    site: Site,
    used_by: Vec<User>,
}

enum User {
    Weight(Value),
    Named(String),
}

/// The module with statistics of everything that is quantized among its functions' results, behind those they had.
///
/// Functions with alternatives, and those that prepare weights, give none.
pub fn observe(module: &Module) -> Result<Module, Diag> {
    let mut new = Module { dims: module.dims.clone(), kv_budget: module.kv_budget, ..Module::default() };
    let mut more: Arena<Func, Vec<String>> = Arena::default();
    for (_, f) in module.funcs.iter() {
        if !f.alternatives.is_empty() || f.prepares.is_some() {
            new.funcs.push(f.clone());
            more.push(Vec::new());
            continue;
        }
        let mut writer = Writer { r: Rebuild::new(f), new: &new, more: &more, stats: Vec::new() };
        for value in f.values.keys() {
            writer.value(value).map_err(|e| ill_typed("fp8", e))?;
        }
        let Writer { r, stats, .. } = writer;
        let mut to = r.new;
        to.results = f.results.iter().map(|result| r.map[result]).chain(stats.iter().copied()).collect();
        more.push(stats.iter().map(|&value| to.values[value].name.clone()).collect());
        if stats.is_empty() {
            new.funcs.push(f.clone());
        } else {
            new.funcs.push(Arc::new(to));
        }
    }
    Ok(new)
}

struct Writer<'a> {
    r: Rebuild<'a>,
    new: &'a Module,
    /// The names of the results that earlier functions have got.
    more: &'a Arena<Func, Vec<String>>,
    /// The new results.
    stats: Vec<Value>,
}

impl Writer<'_> {
    fn value(&mut self, value: Value) -> Result<(), TypeError> {
        let data = &self.r.old.values[value];
        if let Def::Call(callee, _) = data.def
            && !self.more[callee].is_empty()
        {
            return self.call(value, callee);
        }
        self.r.copy(value);
        let (x, given) = match &data.def {
            Def::Op(Op::Quantize(_), args) => (args[0], None),
            Def::Op(Op::QuantizeBy(op), args) => (args[0], Some((op.clone(), self.r.get(args[1])))),
            _ => return Ok(()),
        };
        let stats = self.statistics(value, self.r.get(x), given)?;
        self.stats.push(stats);
        Ok(())
    }

    /// The statistics of what `x` was quantized to; by a scale of a magnitude that was given, if one was.
    fn statistics(
        &mut self,
        quantized: Value,
        x: Value,
        given: Option<(QuantizeBy, Value)>,
    ) -> Result<Value, TypeError> {
        let to = self.r.new.tensor(x).map_or(DType::F32, |ty| ty.dtype);
        let name = self.r.old.values[quantized].name.clone();
        let named = |what: &str| format!("{name}.{what}");
        let numbers = self.r.op(&named("numbers"), Dequantize { to }, &[self.r.get(quantized)], quantized)?;
        let number =
            |value: f64| Full { value: Real::new(value), shape: Dims(Vec::new()), dtype: DType::F32 };
        let limit = match given {
            // A scale is made of the largest magnitude: nothing is cut off but what is no number.
            None => self.r.op(&named("limit"), number(f64::from(f32::MAX)), &[], quantized)?,
            Some((op, amax)) => {
                let least = self.r.op(&named("least"), number(op.least.get()), &[], quantized)?;
                let most = self.r.op(&named("most"), Maximum {}, &[amax, least], quantized)?;
                // What is less than half a step beyond the largest number is rounded to it.
                let by = Real::new(if op.to == DType::F8E5M2 { 61440.0 / 57344.0 } else { 464.0 / 448.0 });
                self.r.op(&named("limit"), Scale { by }, &[most], quantized)?
            }
        };
        self.r.op(&named("stats"), QuantizeStats {}, &[x, numbers, limit], quantized)
    }

    /// A call of a function that has got results.
    fn call(&mut self, value: Value, callee: Func) -> Result<(), TypeError> {
        let data = &self.r.old.values[value];
        let args = data.def.args().iter().map(|&arg| self.r.get(arg)).collect();
        let call = self.r.call_of_more(value, &self.new.funcs[callee], args)?;
        let before = data.ty.parts().len();
        for (i, result) in self.more[callee].iter().enumerate() {
            let index = (before + i) as i64;
            let part = self.r.op(&format!("{}.{result}", data.name), Get { index }, &[call], value)?;
            self.stats.push(part);
        }
        Ok(())
    }
}

/// Of what `func` gives statistics, in the order of its results.
pub fn sites(module: &Module, func: Func) -> Vec<Site> {
    // Functions call older ones alone.
    let mut all: Vec<Vec<Known>> = Vec::new();
    for (id, f) in module.funcs.iter() {
        let known = known(f, &all, module);
        if id == func {
            return known.into_iter().map(|known| known.named(f)).collect();
        }
        all.push(known);
    }
    Vec::new()
}

impl Known {
    /// The site, its weights named as in `f`.
    fn named(self, f: &Function) -> Site {
        let name = |user| match user {
            User::Weight(param) => f.values[param].name.clone(),
            User::Named(name) => name,
        };
        Site { used_by: self.used_by.into_iter().map(name).collect(), ..self.site }
    }
}

/// Of what `f` gives statistics, given that of the functions before it.
fn known(f: &Function, earlier: &[Vec<Known>], module: &Module) -> Vec<Known> {
    let uses = f.uses();
    let mut found = Vec::new();
    for &result in &f.results {
        let name = f.values[result].name.clone();
        match &f.values[result].def {
            Def::Op(Op::QuantizeStats(_), args) => {
                let Some(quantized) = quantized(f, args[1]) else { continue };
                let Some(ty) = f.tensor(quantized) else { continue };
                let mut used_by = Vec::new();
                match super::contraction::weight(f, args[0]) {
                    Some(weight) => used_by.push(User::Weight(weight)),
                    None => users(f, &uses, quantized, &mut used_by),
                }
                let site = Site {
                    result: name,
                    calls: Vec::new(),
                    value: f.values[args[0]].name.clone(),
                    is_weight: super::contraction::of_weights(f, args[0]),
                    used_by: Vec::new(),
                    columns: ty.shape.last().and_then(|dim| module.constant(dim)),
                    ty: ty.to_string(),
                    loc: f.values[quantized].loc,
                };
                found.push(Known { site, used_by });
            }
            Def::Op(Op::Get(get), args) => {
                let Def::Call(callee, given) = &f.values[args[0]].def else { continue };
                let inner = &module.funcs[*callee];
                let index = usize::try_from(get.index).ok();
                let part = index.and_then(|i| inner.results.get(i)).map(|&part| &inner.values[part].name);
                let known = &earlier[eva_ir::entity::Entity::index(*callee)];
                let Some(known) = known.iter().find(|known| Some(&known.site.result) == part) else {
                    continue;
                };
                let call = f.values[args[0]].name.trim_end_matches(".all").to_string();
                let outside = |user: &User| match user {
                    User::Weight(param) => outer_name(f, given[eva_ir::entity::Entity::index(*param)]),
                    User::Named(name) => User::Named(name.clone()),
                };
                let calls = std::iter::once(call).chain(known.site.calls.iter().cloned()).collect();
                let site = Site { result: name, calls, ..known.site.clone() };
                found.push(Known { site, used_by: known.used_by.iter().map(outside).collect() });
            }
            _ => {}
        }
    }
    found
}

/// The 8-bit floats whose numbers `rounded` is.
fn quantized(f: &Function, rounded: Value) -> Option<Value> {
    match &f.values[rounded].def {
        Def::Op(Op::Dequantize(_), args) => Some(args[0]),
        _ => None,
    }
}

/// What a weight of a callee is for the caller.
fn outer_name(f: &Function, value: Value) -> User {
    match f.values[value].def {
        Def::Param(ParamKind::Weight) => User::Weight(value),
        _ => User::Named(f.values[value].name.clone()),
    }
}

/// Who uses a value of 8 bits: the weights that it is multiplied with, or ops by name; views of it are looked through.
fn users(f: &Function, uses: &eva_ir::graph::Uses, value: Value, found: &mut Vec<User>) {
    for &(user, operand) in uses.of(value) {
        let Def::Op(op, args) = &f.values[user].def else { continue };
        match op {
            Op::Dequantize(_) => {}
            Op::Reshape(_) | Op::Slice(_) | Op::Dispatch(_) => users(f, uses, user, found),
            Op::Einsum(_) | Op::Grouped(_) => {
                let other =
                    args.get(1 - operand.min(1)).and_then(|&other| super::contraction::weight(f, other));
                found.push(other.map_or_else(|| User::Named(f.values[user].name.clone()), User::Weight));
            }
            op => found.push(User::Named(format!("{} {}", OpKind::name(op.kind()), f.values[user].name))),
        }
    }
}

/// What the rows of one site come to, over any number of calls.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sums {
    /// How many elements there were.
    pub elements: f64,
    parts: [f64; PARTS],
}

impl Sums {
    /// Adds rows of [`PARTS`] numbers, each of so many elements; where that is not known, those that are not zero count.
    pub fn add(&mut self, rows: &[f32], columns: Option<i64>) {
        for row in rows.chunks_exact(PARTS) {
            self.elements += columns.map_or(f64::from(row[1]), |n| n as f64);
            let amax = self.parts[0].max(f64::from(row[0]));
            self.parts.iter_mut().zip(row).for_each(|(sum, part)| *sum += f64::from(*part));
            self.parts[0] = amax;
        }
    }

    /// The largest magnitude.
    pub fn amax(&self) -> f64 {
        self.parts[0]
    }

    /// The share of the elements that are not zero that became zero.
    pub fn underflow(&self) -> f64 {
        self.parts[2] / self.parts[1].max(1.0)
    }

    /// The share of elements that were cut off.
    pub fn saturated(&self) -> f64 {
        self.parts[3] / self.elements.max(1.0)
    }

    /// The norm of the difference over the norm; NaN where there was one.
    pub fn error(&self) -> f64 {
        if self.parts[5] == 0.0 { 0.0 } else { (self.parts[4] / self.parts[5]).sqrt() }
    }
}
