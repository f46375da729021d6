//! One more op.

use super::Maker;
use crate::attr::{Dims, Range, Real, Spec};
use crate::dim::Dim;
use crate::graph::{Def, Value, ValueData, call_type};
use crate::ops::add::Add;
use crate::ops::cast::Cast;
use crate::ops::concat::Concat;
use crate::ops::div::Div;
use crate::ops::einsum::Einsum;
use crate::ops::exp::Exp;
use crate::ops::get::Get;
use crate::ops::log::Log;
use crate::ops::max::Max;
use crate::ops::maximum::Maximum;
use crate::ops::mean::Mean;
use crate::ops::mul::Mul;
use crate::ops::offset::Offset;
use crate::ops::recip::Recip;
use crate::ops::reshape::Reshape;
use crate::ops::rms_norm::RmsNorm;
use crate::ops::rsqrt::Rsqrt;
use crate::ops::scale::Scale;
use crate::ops::sigmoid::Sigmoid;
use crate::ops::silu::Silu;
use crate::ops::slice::Slice;
use crate::ops::softmax::Softmax;
use crate::ops::sqrt::Sqrt;
use crate::ops::sub::Sub;
use crate::ops::sum::Sum;
use crate::types::{DType, TensorType, Type};

/// No contraction has more terms in all.
const MAX_TERMS: f64 = 100_000.0;

impl Maker<'_> {
    /// Adds one op or call; now and then one more that it needs.
    pub(super) fn step(&mut self) {
        let tries = 30;
        for _ in 0..tries {
            let done = match self.rng.below(14) {
                0..=2 => self.unary(),
                3..=5 => self.binary(),
                6..=7 => self.einsum(),
                8 => self.reshape(),
                9 => self.slice_or_concat(),
                10 => self.rms_norm(),
                11 => self.reduction(),
                12 => self.cast(),
                _ => self.call(),
            };
            if done {
                return;
            }
        }
        let x = self.float();
        self.add(Sigmoid {}, &[x], (0.0, 1.0));
    }

    /// A tensor of `f32`; there are always some. Later values more often than earlier ones.
    fn float(&mut self) -> Value {
        let is_float = |data: &ValueData| data.ty.tensor().is_some_and(|ty| ty.dtype == DType::F32);
        let values: Vec<Value> =
            self.f.values.iter().filter(|(_, data)| is_float(data)).map(|(v, _)| v).collect();
        let first = if self.rng.chance(0.5) { values.len().saturating_sub(4) } else { 0 };
        *self.rng.pick(&values[first..])
    }

    fn ty(&self, value: Value) -> &TensorType {
        self.f.tensor(value).expect("only tensors are picked")
    }

    fn real(&mut self, low: f64, high: f64) -> Real {
        // Few digits, so that texts are short.
        Real::new(((low + (high - low) * self.rng.unit()) * 64.0).round() / 64.0)
    }

    fn unary(&mut self) -> bool {
        let x = self.float();
        let (low, high) = self.range(x);
        let largest = low.abs().max(high.abs());
        match self.rng.below(10) {
            0 if high <= 4.0 => self.add(Exp {}, &[x], (low.exp(), high.exp())),
            1 if low >= 0.2 => self.add(Log {}, &[x], (low.ln(), high.ln())),
            2 if low >= 0.05 => self.add(Sqrt {}, &[x], (low.sqrt(), high.sqrt())),
            3 if low >= 0.05 => self.add(Rsqrt {}, &[x], (1.0 / high.sqrt(), 1.0 / low.sqrt())),
            4 if low >= 0.2 => self.add(Recip {}, &[x], (1.0 / high, 1.0 / low)),
            5 => self.add(Sigmoid {}, &[x], (1.0 / (1.0 + (-low).exp()), 1.0 / (1.0 + (-high).exp()))),
            6 => self.add(Silu {}, &[x], (-0.3, high.max(0.0))),
            7 => {
                let by = self.real(-2.0, 2.0);
                let range = by.get().abs() * largest;
                self.add(Scale { by }, &[x], (-range, range))
            }
            8 => {
                let by = self.real(-2.0, 2.0);
                self.add(Offset { by }, &[x], (low + by.get(), high + by.get()))
            }
            // Squares, which later ops can take roots of.
            9 => {
                self.add(Mul {}, &[x, x], (0.0, largest * largest)) && {
                    let square = self.last();
                    self.add(Offset { by: Real::new(0.25) }, &[square], (0.25, largest * largest + 0.25))
                }
            }
            _ => false,
        }
    }

    fn last(&self) -> Value {
        self.f.values.keys().next_back().expect("there are parameters")
    }

    fn binary(&mut self) -> bool {
        let (x, y) = (self.float(), self.float());
        let ((a, b), (c, d)) = (self.range(x), self.range(y));
        let products = [a * c, a * d, b * c, b * d];
        let least = products.into_iter().fold(f64::INFINITY, f64::min);
        let most = products.into_iter().fold(f64::NEG_INFINITY, f64::max);
        match self.rng.below(5) {
            0 => self.add(Add {}, &[x, y], (a + c, b + d)),
            1 => self.add(Sub {}, &[x, y], (a - d, b - c)),
            2 => self.add(Mul {}, &[x, y], (least, most)),
            3 if c >= 0.2 => {
                let largest = a.abs().max(b.abs()) / c;
                self.add(Div {}, &[x, y], (-largest, largest))
            }
            4 => self.add(Maximum {}, &[x, y], (a.max(c), b.max(d))),
            _ => false,
        }
    }

    /// One to three operands; a transposition where nothing is summed.
    fn einsum(&mut self) -> bool {
        let operands = [1, 2, 2, 2, 3][self.rng.below(5)];
        let args: Vec<Value> = (0..operands).map(|_| self.float()).collect();
        let mut axes: Vec<Dim> = Vec::new();
        let mut inputs: Vec<Vec<u8>> = Vec::new();
        let mut bound = 1.0;
        for &arg in &args {
            let (low, high) = self.range(arg);
            bound *= low.abs().max(high.abs());
            let mut input: Vec<u8> = Vec::new();
            for dim in self.ty(arg).shape.clone() {
                let known = (0..axes.len()).find(|&i| axes[i] == dim && !input.contains(&(i as u8)));
                let axis = known.filter(|_| self.rng.chance(0.9)).unwrap_or_else(|| {
                    axes.push(dim.clone());
                    axes.len() - 1
                });
                input.push(axis as u8);
            }
            inputs.push(input);
        }
        let keep = if self.rng.chance(0.3) { 1.0 } else { 0.6 };
        let mut out: Vec<u8> = (0..axes.len() as u8).filter(|_| self.rng.chance(keep)).collect();
        self.rng.shuffle(&mut out);
        let summed =
            (0..axes.len() as u8).filter(|axis| !out.contains(axis)).map(|axis| axes[axis as usize].clone());
        let summed: Vec<Dim> = summed.collect();
        if axes.len() > 7 || self.elements(&axes) > MAX_TERMS {
            return false;
        }
        bound *= self.elements(&summed);
        let inputs: Vec<&[u8]> = inputs.iter().map(Vec::as_slice).collect();
        let spec = Spec::new(&inputs, &out, |axis| (b'a' + axis) as char);
        self.add(Einsum { spec }, &args, (-bound, bound))
    }

    /// Two axes made one, one made two again, or a 1 more or less.
    fn reshape(&mut self) -> bool {
        let x = self.float();
        let mut shape = self.ty(x).shape.to_vec();
        let axis = self.rng.below(shape.len() + 1);
        match self.rng.below(3) {
            0 if axis + 1 < shape.len() => {
                let next = shape.remove(axis + 1);
                shape[axis] = &shape[axis] * &next;
            }
            1 if axis < shape.len() => {
                let dim = shape[axis].clone();
                let mut terms = dim.terms();
                let (Some((syms, n)), None) = (terms.next(), terms.next()) else { return false };
                if dim == Dim::from(1) {
                    shape.remove(axis);
                } else if let [first, rest @ ..] = syms
                    && (n > 1 || !rest.is_empty())
                {
                    let rest: Vec<Dim> = rest.iter().map(|sym| Dim::sym(sym.as_str())).collect();
                    shape[axis] = Dim::sym(first.as_str());
                    shape.insert(axis + 1, Dim::product(&rest) * n.into());
                } else {
                    return false;
                }
            }
            2 => shape.insert(axis, 1.into()),
            _ => return false,
        }
        let range = self.range(x);
        self.add(Reshape { shape: Dims(shape) }, &[x], range)
    }

    /// Neighbours put together, or a part of them.
    fn slice_or_concat(&mut self) -> bool {
        let x = self.float();
        let rank = self.ty(x).rank();
        if rank == 0 {
            return false;
        }
        let axis = self.rng.below(rank);
        let (low, high) = self.range(x);
        if self.rng.chance(0.4) {
            let y = if self.rng.chance(0.5) { x } else { self.float() };
            let (c, d) = self.range(y);
            return self.add(Concat { axis: axis as i64 }, &[x, y], (low.min(c), high.max(d)));
        }
        let extent = self.ty(x).shape[axis].clone();
        let range = match extent.as_const() {
            Some(n) if n > 1 => {
                let start = self.rng.below(n as usize - 1) as i64;
                let end = start + 1 + self.rng.below((n - start) as usize) as i64;
                Range { start: start.into(), end: end.into() }
            }
            Some(_) => return false,
            None => {
                // One copy of the first symbol's term, from either end.
                let Some((syms, n)) = extent.terms().find(|(syms, _)| !syms.is_empty()) else { return false };
                let syms: Vec<Dim> = syms.iter().map(|sym| Dim::sym(sym.as_str())).collect();
                let part = Dim::product(&syms);
                if n == 1 && extent == part {
                    return false;
                }
                match self.rng.chance(0.5) {
                    true => Range { start: 0.into(), end: part },
                    false => Range { start: &extent - &part, end: extent },
                }
            }
        };
        self.add(Slice { axis: axis as i64, range }, &[x], (low, high))
    }

    /// With a gain, if there is one of the right length.
    fn rms_norm(&mut self) -> bool {
        let x = self.float();
        let shape = self.ty(x).shape.clone();
        let Some(last) = shape.last() else { return false };
        if self.rng.chance(0.4) {
            return self.add(Softmax {}, &[x], (0.0, 1.0));
        }
        let fits = |data: &ValueData| {
            data.ty
                .tensor()
                .is_some_and(|ty| ty.dtype == DType::F32 && ty.shape.as_slice() == std::slice::from_ref(last))
        };
        let fixed = last.syms().iter().all(|sym| !matches!(sym.as_str(), "b" | "s"));
        let gains: Vec<Value> = self.f.values.iter().filter(|(_, data)| fits(data)).map(|(v, _)| v).collect();
        if gains.is_empty() || !fixed {
            return false;
        }
        let gain = *self.rng.pick(&gains);
        let (low, high) = self.range(gain);
        let bound = self.elements(std::slice::from_ref(last)).sqrt() * low.abs().max(high.abs());
        let eps = Real::new(*self.rng.pick(&[0.01, 0.125, 0.5]));
        self.add(RmsNorm { eps }, &[x, gain], (-bound, bound))
    }

    fn reduction(&mut self) -> bool {
        let x = self.float();
        let shape = self.ty(x).shape.clone();
        if shape.is_empty() {
            return false;
        }
        let axis = self.rng.below(shape.len());
        let n = self.elements(&shape[axis..axis + 1]);
        let (low, high) = self.range(x);
        let axis = axis as i64;
        match self.rng.below(3) {
            0 => self.add(Sum { axis }, &[x], (n * low, n * high)),
            1 => self.add(Mean { axis }, &[x], (low, high)),
            _ => self.add(Max { axis }, &[x], (low, high)),
        }
    }

    /// To `f32`, exactly; to narrower types and back if the options allow it.
    fn cast(&mut self) -> bool {
        let other = |data: &ValueData| data.ty.tensor().is_some_and(|ty| ty.dtype != DType::F32);
        let others: Vec<Value> =
            self.f.values.iter().filter(|(_, data)| other(data)).map(|(v, _)| v).collect();
        if self.options.narrow && self.rng.chance(0.5) {
            let x = self.float();
            let (low, high) = self.range(x);
            let to = *self.rng.pick(&[DType::Bf16, DType::F16, DType::F64]);
            // Rounding may leave the range by half a unit in the last place.
            let wider = low.abs().max(high.abs()) / 256.0;
            return self.add(Cast { to }, &[x], (low - wider, high + wider));
        }
        let x = *self.rng.pick(&others);
        let range = self.range(x);
        self.add(Cast { to: DType::F32 }, &[x], range)
    }

    /// A call with values that fit, or else the parameters that are there for it.
    fn call(&mut self) -> bool {
        let Some(callee) = self.callee else { return false };
        let mut args = Vec::new();
        for ((param, _), &(low, high)) in callee.function.params().zip(&callee.params) {
            let ty = &callee.function.values[param].ty;
            let fits = |(value, data): (Value, &ValueData)| {
                let (least, most) = self.range(value);
                (data.ty == *ty && least >= low && most <= high).then_some(value)
            };
            let values: Vec<Value> = self.f.values.iter().filter_map(fits).collect();
            args.push(*self.rng.pick(&values));
        }
        let name = format!("v{}", self.f.values.len());
        let Ok(ty) = call_type(&callee.function, &self.f.values, &args) else { return false };
        let def = Def::Call(callee.func, args);
        let parts = match &ty {
            Type::Tensor(_) => 0,
            Type::Tuple(parts) => parts.len(),
        };
        let call = self.f.values.push(ValueData { name, ty, def, loc: None });
        self.ranges.push((-callee.bounds[0], callee.bounds[0]));
        for (index, bound) in callee.bounds.iter().enumerate().take(parts) {
            self.add(Get { index: index as i64 }, &[call], (-bound, *bound));
        }
        true
    }
}
