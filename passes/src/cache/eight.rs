//! Caches of 8-bit floats: each token's row with a scale for 128 neighbours.
//!
//! ```text
//! %c = cache_write %cache, %new, %start   =>   %q = quantize %new {per = [1, 1, 128]}
//!                                              %e = cache_write %cache, %q, %start
//!                                              %c = dequantize %e
//! ```
//!
//! A latent of 512 numbers and a rotated key of 64 in bf16, 1152 bytes a token, become 512 + 4·4 + 128 = 656. Rows that were
//! rotated carry positions, which 3 bits of mantissa blur: they become 8 bits only where that is asked for.

use crate::rebuild::{free_name, ill_typed, push_op, without_dead};
use eva_ir::diag::Diag;
use eva_ir::entity::{Arena, Entity};
use eva_ir::graph::{Def, Func, Function, Module, ParamKind, Value, ValueData, call_type};
use eva_ir::ops::{Op, dequantize::Dequantize, quantize::Quantize};
use eva_ir::scales::{Block, Scales};
use eva_ir::types::{DType, TensorType};
use eva_ir::verify::{StateResults, state_results};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// Neighbours of a row that share a scale.
const BLOCK: u32 = 128;

/// The least magnitude that a scale is made of, as for activations.
const LEAST: f64 = 1e-4;

/// The module with its states, those of rotated rows too if `rotary`, as 8-bit floats.
pub(super) fn rewrite(module: &Module, rotary: bool) -> Result<Module, Diag> {
    let tables = state_results(module);
    let mut new = Module { dims: module.dims.clone(), kv_budget: module.kv_budget, ..Module::default() };
    let mut chosen: Arena<Func, HashSet<Value>> = Arena::default();
    for (_, f) in module.funcs.iter() {
        let states: HashSet<Value> = f
            .params()
            .filter(|&(param, kind)| kind == ParamKind::State && becomes_eight(f, param, rotary, &chosen))
            .map(|(param, _)| param)
            .collect();
        if states.is_empty() {
            new.funcs.push(f.clone());
        } else {
            if !f.alternatives.is_empty() {
                let message = format!("@{} has alternatives, and its states cannot be made 8 bits", f.name);
                return Err(Diag::new("eva::cache", message));
            }
            let writer = Writer {
                f,
                new: &new,
                results: &tables,
                chosen: &chosen,
                to: Function::new(&f.name),
                taken: f.values.iter().map(|(_, data)| data.name.clone()).collect(),
                map: HashMap::new(),
                eight: HashMap::new(),
                reads: HashMap::new(),
            };
            let function = writer.run(&states)?;
            new.funcs.push(Arc::new(function));
        }
        chosen.push(states);
    }
    Ok(new)
}

/// `ty` as a cache of 8-bit floats.
fn eight_bits(ty: &TensorType) -> TensorType {
    let last = ty.rank() - 1;
    let block = |axis| if axis == last { Block::Of(BLOCK) } else { Block::Each };
    ty.scaled(DType::F8E4M3, Scales::new((0..ty.rank()).map(block)))
}

/// Whether the state `param` becomes 8 bits: whether what is written to it is floats, rows of a token each, and not
/// rotated, or `rotary` is given.
fn becomes_eight(f: &Function, param: Value, rotary: bool, chosen: &Arena<Func, HashSet<Value>>) -> bool {
    let fits = f.tensor(param).is_some_and(|ty| ty.dtype.is_float() && ty.rank() >= 3);
    fits && f.values.iter().any(|(_, data)| match &data.def {
        Def::Op(Op::CacheWrite(_), args) => args[0] == param && (rotary || !is_rotated(f, args[1])),
        Def::Call(callee, args) => {
            let number = args.iter().position(|&arg| arg == param);
            number.is_some_and(|i| chosen[*callee].contains(&Value::new(i)))
        }
        _ => false,
    })
}

/// Whether `value` has rotary positions in it.
fn is_rotated(f: &Function, value: Value) -> bool {
    let mut stack = vec![value];
    while let Some(at) = stack.pop() {
        let Def::Op(op, args) = &f.values[at].def else { continue };
        match op {
            Op::Rope(_) => return true,
            Op::Reshape(_) | Op::Slice(_) | Op::Concat(_) | Op::Cast(_) | Op::Scale(_) | Op::Einsum(_) => {
                stack.extend(args)
            }
            _ => {}
        }
    }
    false
}

struct Writer<'a> {
    f: &'a Function,
    new: &'a Module,
    results: &'a Arena<Func, StateResults>,
    /// The states of earlier functions that are 8 bits now.
    chosen: &'a Arena<Func, HashSet<Value>>,
    to: Function,
    taken: HashSet<String>,
    map: HashMap<Value, Value>,
    /// The 8-bit form of each version of a state.
    eight: HashMap<Value, Value>,
    /// The numbers of each version that something reads.
    reads: HashMap<Value, Value>,
}

impl Writer<'_> {
    fn run(mut self, states: &HashSet<Value>) -> Result<Function, Diag> {
        for (value, data) in self.f.values.iter() {
            match &data.def {
                Def::Param(_) => {
                    let mut data = data.clone();
                    let is_eight = states.contains(&value);
                    if let Some(ty) = self.f.tensor(value).filter(|_| is_eight) {
                        data.ty = eight_bits(ty).into();
                    }
                    let new = self.to.values.push(data);
                    if is_eight {
                        self.eight.insert(value, new)
                    } else {
                        self.map.insert(value, new)
                    };
                }
                Def::Op(op @ Op::CacheWrite(_), args) if self.eight.contains_key(&args[0]) => {
                    let rows = self.get(args[1])?;
                    let name = self.free(&format!("{}_f8e4m3", self.f.values[args[1]].name));
                    let ty = self.to.tensor(rows).expect("rows are tensors");
                    let scales = eight_bits(ty).scales.expect("it has been given some");
                    let quantize = Quantize::new(ty, DType::F8E4M3, &scales, LEAST);
                    let rows = self.op(name, quantize, &[rows], value)?;
                    let start = self.get(args[2])?;
                    let new =
                        self.op(data.name.clone(), op.clone(), &[self.eight[&args[0]], rows, start], value)?;
                    self.eight.insert(value, new);
                }
                Def::Op(Op::Get(get), args) if self.is_eight(args[0], get.index as usize) => {
                    let new = self.op(data.name.clone(), get.clone(), &[self.map[&args[0]]], value)?;
                    self.eight.insert(value, new);
                }
                Def::Op(op, args) => {
                    let args = args.iter().map(|&arg| self.get(arg)).collect::<Result<Vec<_>, _>>()?;
                    let new = self.op(data.name.clone(), op.clone(), &args, value)?;
                    self.map.insert(value, new);
                }
                Def::Call(callee, args) => self.call(value, *callee, args)?,
            }
        }
        for result in &self.f.results {
            let new = self.eight.get(result).copied().unwrap_or_else(|| self.map[result]);
            self.to.results.push(new);
        }
        Ok(without_dead(&self.to))
    }

    fn free(&mut self, base: &str) -> String {
        let name = free_name(base, 1, |name| !self.taken.contains(name));
        self.taken.insert(name.clone());
        name
    }

    fn op(&mut self, name: String, op: impl Into<Op>, args: &[Value], source: Value) -> Result<Value, Diag> {
        push_op(&mut self.to, self.f, name, op, args, source).map_err(|e| ill_typed("cache", e))
    }

    /// A value, which may be the numbers of a state.
    fn get(&mut self, value: Value) -> Result<Value, Diag> {
        let Some(&eight) = self.eight.get(&value) else { return Ok(self.map[&value]) };
        if let Some(&read) = self.reads.get(&value) {
            return Ok(read);
        }
        let name = self.free(&format!("{}.numbers", self.f.values[value].name));
        let to = self.f.tensor(value).map_or(DType::F32, |ty| ty.dtype);
        let read = self.op(name, Dequantize { to }, &[eight], value)?;
        self.reads.insert(value, read);
        Ok(read)
    }

    /// Whether part `index` of what a call gives is a state of 8 bits.
    fn is_eight(&self, tuple: Value, index: usize) -> bool {
        let Def::Call(callee, _) = &self.f.values[tuple].def else { return false };
        let state = self.results[*callee].iter().find(|(_, result)| *result == Some(index));
        state.is_some_and(|(param, _)| self.chosen[*callee].contains(param))
    }

    fn call(&mut self, value: Value, callee: Func, args: &[Value]) -> Result<(), Diag> {
        let data = &self.f.values[value];
        let mut new_args = Vec::with_capacity(args.len());
        for (i, &arg) in args.iter().enumerate() {
            new_args.push(match self.eight.get(&arg) {
                Some(&eight) if self.chosen[callee].contains(&Value::new(i)) => eight,
                _ => self.get(arg)?,
            });
        }
        let ty = call_type(&self.new.funcs[callee], &self.to.values, &new_args)
            .map_err(|e| ill_typed("cache", e))?;
        let single = ty.tensor().is_some();
        let def = Def::Call(callee, new_args);
        let new = self.to.values.push(ValueData { name: data.name.clone(), ty, def, loc: data.loc });
        if single && self.is_eight(value, 0) {
            self.eight.insert(value, new)
        } else {
            self.map.insert(value, new)
        };
        Ok(())
    }
}
