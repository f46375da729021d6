//! Delayed scaling: a tensor's scale is made of its largest magnitudes in the calls before.
//!
//! ```text
//! %q = quantize %x {per = [b, m]}   =>   %now   = the largest magnitude of %x
//!                                        %past  = max %history, or %now where all of that is zero
//!                                        %q     = quantize_by %x, %past · 2^margin
//!                                        %next  = assign %history, [%now, %history without its last]
//! ```
//!
//! So codes can be written in one pass over `x`. Each quantization, on each way that calls lead to it, has a history of its
//! own: a state that callers have among theirs. What is made of weights alone is quantized when they are loaded, and needs none.
//! (Micikevicius et al., "FP8 formats for deep learning", 2022; the recipe is that of NVIDIA's Transformer Engine.)

use super::recipe::Delayed;
use crate::rebuild::{Rebuild, ill_typed};
use eva_ir::attr::{Dims, Range, Real};
use eva_ir::diag::Diag;
use eva_ir::dim::Dim;
use eva_ir::entity::Arena;
use eva_ir::graph::{Def, Func, Function, Module, ParamKind, Value};
use eva_ir::op::TypeError;
use eva_ir::ops::quantize::Quantize;
use eva_ir::ops::{
    Op, add::Add, assign::Assign, cast::Cast, concat::Concat, get::Get, max::Max, maximum::Maximum, mul::Mul,
    offset::Offset, quantize_by::QuantizeBy, reshape::Reshape, scale::Scale, slice::Slice, step::Step,
};
use eva_ir::scales::{Block, Encoding};
use eva_ir::types::{DType, TensorType};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The module with histories for everything but weights that has one scale.
pub fn delay(module: &Module, delayed: Delayed) -> Result<Module, Diag> {
    let mut new = Module { dims: module.dims.clone(), kv_budget: module.kv_budget, ..Module::default() };
    let mut more: Arena<Func, Vec<String>> = Arena::default();
    for (_, f) in module.funcs.iter() {
        if f.prepares.is_some() || !needs(f, &more) {
            new.funcs.push(f.clone());
            more.push(Vec::new());
            continue;
        }
        if !f.alternatives.is_empty() {
            let message = format!("@{} has alternatives, and cannot be given histories", f.name);
            return Err(
                Diag::new("eva::fp8", message).help("use another recipe than one with delayed scales")
            );
        }
        let (histories, next) = Default::default();
        let mut writer = Writer { r: Rebuild::new(f), new: &new, more: &more, delayed, histories, next };
        writer.declare();
        for value in f.values.keys() {
            writer.value(value).map_err(|e| ill_typed("fp8", e))?;
        }
        let Writer { r, next, histories, .. } = writer;
        let mut to = r.new;
        to.results = f.results.iter().map(|result| r.map[result]).chain(next).collect();
        more.push(histories.values().map(|(_, name)| name.clone()).collect());
        new.funcs.push(Arc::new(to));
    }
    Ok(new)
}

/// Whether a function quantizes with delayed scales, or calls one that does.
fn needs(f: &Function, more: &Arena<Func, Vec<String>>) -> bool {
    f.values.iter().any(|(value, data)| match &data.def {
        Def::Call(callee, _) => !more[*callee].is_empty(),
        _ => is_delayed(f, value),
    })
}

/// Whether a value is quantized with one scale for all of it, and not made of weights alone.
fn is_delayed(f: &Function, value: Value) -> bool {
    let Def::Op(Op::Quantize(_), args) = &f.values[value].def else { return false };
    let whole = |ty: &TensorType| {
        let single = |scales: &eva_ir::scales::Scales| {
            scales.encoding == Encoding::F32 && scales.blocks.iter().all(|block| *block == Block::Whole)
        };
        ty.scales.as_ref().is_some_and(single)
    };
    f.tensor(value).is_some_and(whole) && !super::contraction::of_weights(f, args[0])
}

struct Writer<'a> {
    r: Rebuild<'a>,
    new: &'a Module,
    /// The names of the histories that earlier functions have got.
    more: &'a Arena<Func, Vec<String>>,
    delayed: Delayed,
    /// The histories, by the quantization or call that they are for and their number there, in order; with their names.
    histories: BTreeMap<(Value, usize), (Value, String)>,
    /// Their new versions.
    next: Vec<Value>,
}

impl Writer<'_> {
    /// The histories, behind the parameters.
    fn declare(&mut self) {
        let f = self.r.old;
        for (value, data) in f.values.iter() {
            let names: Vec<String> = match &data.def {
                Def::Call(callee, _) => {
                    self.more[*callee].iter().map(|name| format!("{}.{name}", data.name)).collect()
                }
                _ if is_delayed(f, value) => vec![format!("{}.amax_history", data.name)],
                _ => Vec::new(),
            };
            for (i, name) in names.into_iter().enumerate() {
                let name = self.r.free(&name);
                let ty = TensorType::new(DType::F32, [Dim::from(self.delayed.window as i64)]);
                let state = self.r.new.param(ParamKind::State, &name, ty);
                self.histories.insert((value, i), (state, name));
            }
        }
    }

    fn value(&mut self, value: Value) -> Result<(), TypeError> {
        match &self.r.old.values[value].def {
            Def::Call(callee, _) if !self.more[*callee].is_empty() => self.call(value, *callee),
            Def::Op(Op::Quantize(op), args) if self.histories.contains_key(&(value, 0)) => {
                self.quantize(value, op, self.r.get(args[0]))
            }
            _ => {
                self.r.copy(value);
                Ok(())
            }
        }
    }

    fn quantize(&mut self, value: Value, op: &Quantize, x: Value) -> Result<(), TypeError> {
        let history = self.histories[&(value, 0)].0;
        let name = self.r.old.values[value].name.clone();
        let one = |shape: &[i64]| Reshape { shape: Dims(shape.iter().map(|&n| Dim::from(n)).collect()) };

        // The largest magnitude.
        let ty = self.r.new.tensor(x).cloned().ok_or_else(|| TypeError::new("it is several tensors"))?;
        let minus = self.r.op(&format!("{name}.minus"), Scale { by: Real::new(-1.0) }, &[x], value)?;
        let mut now = self.r.op(&format!("{name}.size"), Maximum {}, &[x, minus], value)?;
        for axis in (0..ty.rank()).rev() {
            now = self.r.op(&format!("{name}.most"), Max { axis: axis as i64 }, &[now], value)?;
        }
        if ty.dtype != DType::F32 {
            now = self.r.op(&format!("{name}.wide"), Cast { to: DType::F32 }, &[now], value)?;
        }
        let now = self.r.op(&format!("{name}.amax"), one(&[1]), &[now], value)?;

        // That of the history; of this call, where there is none.
        let past = self.r.op(&format!("{name}.past"), Max { axis: 0 }, &[history], value)?;
        let seen = self.r.op(&format!("{name}.seen"), Step {}, &[past], value)?;
        let twice = self.r.op(&format!("{name}.twice"), Scale { by: Real::new(-2.0) }, &[seen], value)?;
        let first = self.r.op(&format!("{name}.first"), Offset { by: Real::new(2.0) }, &[twice], value)?;
        let given = self.r.op(&format!("{name}.given"), Mul {}, &[now, first], value)?;
        let mut amax = self.r.op(&format!("{name}.used"), Add {}, &[past, given], value)?;
        if self.delayed.margin != 0 {
            let by = Real::new(f64::from(self.delayed.margin).exp2());
            amax = self.r.op(&format!("{name}.roomy"), Scale { by }, &[amax], value)?;
        }
        let amax = self.r.op(&format!("{name}.given_amax"), one(&[]), &[amax], value)?;
        let by = QuantizeBy { to: op.to, least: op.least };
        self.r.replace(value, by, &[x, amax])?;

        let mut next = now;
        if self.delayed.window > 1 {
            let range = Range { start: Dim::from(0), end: Dim::from(self.delayed.window as i64 - 1) };
            let older = self.r.op(&format!("{name}.older"), Slice { axis: 0, range }, &[history], value)?;
            next = self.r.op(&format!("{name}.newer"), Concat { axis: 0 }, &[now, older], value)?;
        }
        let next = self.r.op(&format!("{name}.amax_history.next"), Assign {}, &[history, next], value)?;
        self.next.push(next);
        Ok(())
    }

    /// A call of a function that has got histories.
    fn call(&mut self, value: Value, callee: Func) -> Result<(), TypeError> {
        let data = &self.r.old.values[value];
        let count = self.more[callee].len();
        let histories = (0..count).map(|i| self.histories[&(value, i)].0);
        let args = data.def.args().iter().map(|&arg| self.r.get(arg)).chain(histories).collect();
        let call = self.r.call_of_more(value, &self.new.funcs[callee], args)?;
        let before = data.ty.parts().len();
        for i in 0..count {
            let name = format!("{}.next", self.histories[&(value, i)].1);
            let part = self.r.op(&name, Get { index: (before + i) as i64 }, &[call], value)?;
            self.next.push(part);
        }
        Ok(())
    }
}
