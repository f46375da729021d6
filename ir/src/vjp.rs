//! Gradient rules: what a rule of an op sees, and what it builds with.
//!
//! Reverse mode (Griewank and Walther, "Evaluating Derivatives", 2008, chapter 3): a rule is given the gradient of the
//! result, and says what share of it each operand gets, in ordinary ops that are appended to the same function. Nothing
//! is recorded: that a rule uses an operand, the result, or computes something anew is an ordinary use of a value, and
//! which of them are kept until then is decided later.
//!
//! A gradient has the type of what it is the gradient of; only that of 8-bit floats is `f32`.

use crate::attr::{Dims, Real, Spec};
use crate::dim::Dim;
use crate::graph::{Def, Function, Value, ValueData, op_type};
use crate::op::TypeError;
use crate::ops::{Op, add, cast, dequantize, div, einsum, full, get, mul, reshape, scale, sub};
use crate::types::{DType, TensorType};
use std::collections::{HashMap, HashSet};

/// Why there is no gradient.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoGradient {
    /// The op has no rule.
    #[error("`{op}` has no gradient rule")]
    Op {
        /// Its name in the IR text.
        op: &'static str,
    },
    /// The op has a rule, but not for this operand.
    #[error("`{op}` has no gradient rule for its operand `{operand}`")]
    Operand {
        /// The op's name in the IR text.
        op: &'static str,
        /// The operand's.
        operand: &'static str,
    },
    /// A rule that builds what is not well-typed: a mistake in the rule.
    #[error("the gradient rule builds an ill-typed op: {0}")]
    Rule(String),
}

impl From<TypeError> for NoGradient {
    fn from(error: TypeError) -> Self {
        NoGradient::Rule(error.message)
    }
}

/// The type of the gradient of a value of type `ty`: `f32` for those whose only use is to be multiplied.
pub fn gradient_type(ty: &TensorType) -> TensorType {
    match ty.dtype.is_f8() || ty.dtype == DType::Tf32 {
        true => TensorType::new(DType::F32, ty.shape.iter().cloned()),
        false => ty.clone(),
    }
}

/// A function that grows, each value but once: an op that is there already, on the same operands, is not added again.
#[derive(Debug)]
pub struct Growing {
    /// The function so far.
    pub function: Function,
    names: HashSet<String>,
    known: HashMap<(Op, Vec<Value>), Value>,
}

impl Growing {
    /// Starts with a whole function.
    pub fn new(function: Function) -> Self {
        let names = function.values.iter().map(|(_, data)| data.name.clone()).collect();
        let mut known = HashMap::new();
        for (value, data) in function.values.iter() {
            if let Def::Op(op, args) = &data.def {
                known.entry((op.clone(), args.clone())).or_insert(value);
            }
        }
        Self { function, names, known }
    }

    /// `base`, or the first of `base_1`, `base_2`, … that no value has; it is taken from now on.
    pub fn name(&mut self, base: &str) -> String {
        let mut name = base.to_string();
        let mut n = 0;
        while !self.names.insert(name.clone()) {
            n += 1;
            name = format!("{base}_{n}");
        }
        name
    }

    /// Adds a value as it is, but for its name, which is `data`'s or one like it.
    pub fn push(&mut self, data: ValueData) -> Value {
        let name = self.name(&data.name);
        let value = self.function.values.push(ValueData { name, ..data });
        if let Def::Op(op, args) = &self.function.values[value].def {
            self.known.entry((op.clone(), args.clone())).or_insert(value);
        }
        value
    }

    /// Gives `value` this name; whoever has it gets another.
    pub fn rename(&mut self, value: Value, name: &str) {
        if self.names.contains(name) {
            let has_it = |(other, data): &(Value, &ValueData)| *other != value && data.name == name;
            let other = self.function.values.iter().find(has_it).map(|(other, _)| other);
            if let Some(other) = other {
                let free = self.name(name);
                self.function.values[other].name = free;
            }
        }
        self.names.insert(name.into());
        self.function.values[value].name = name.into();
    }

    /// A tensor of one number, of this type, for the sake of `source`.
    pub fn full(
        &mut self,
        base: &str,
        value: f64,
        ty: &TensorType,
        source: Value,
    ) -> Result<Value, TypeError> {
        let (value, shape) = (Real::new(value), Dims(ty.shape.to_vec()));
        self.op(base, full::Full { value, shape, dtype: ty.dtype }, &[], source)
    }

    /// `op` of `args`, for the sake of `source`, whose line it gets.
    pub fn op(
        &mut self,
        base: &str,
        op: impl Into<Op>,
        args: &[Value],
        source: Value,
    ) -> Result<Value, TypeError> {
        let key = (op.into(), args.to_vec());
        if let Some(&value) = self.known.get(&key) {
            return Ok(value);
        }
        let ty = op_type(&key.0, &self.function.values, args)?;
        let (name, loc) = (self.name(base), self.function.values[source].loc);
        let def = Def::Op(key.0.clone(), key.1.clone());
        let value = self.function.values.push(ValueData { name, ty, def, loc });
        self.known.insert(key, value);
        Ok(value)
    }
}

/// What an op's gradient rule sees: its operands, its result, and the gradient of its result.
pub struct Vjp<'a> {
    grown: &'a mut Growing,
    value: Value,
    args: Vec<Value>,
    grads: Vec<Option<Value>>,
    wanted: Vec<bool>,
    base: String,
}

/// What a rule gives: the share of each operand, none for one that has no gradient.
pub type Shares = Result<Vec<Option<Value>>, NoGradient>;

impl<'a> Vjp<'a> {
    /// For the op that `value` is the result of, given the gradient of each part of it (one, if it is no tuple), and
    /// whose gradients are wanted.
    pub fn new(grown: &'a mut Growing, value: Value, grads: Vec<Option<Value>>, wanted: Vec<bool>) -> Self {
        let data = &grown.function.values[value];
        let (args, base) = (data.def.args().to_vec(), format!("{}.grad", data.name));
        Self { grown, value, args, grads, wanted, base }
    }

    /// The operands.
    pub fn args<const N: usize>(&self) -> [Value; N] {
        self.args.as_slice().try_into().expect("operands are counted before a rule is asked")
    }

    /// The operands, of an op that takes any number of them.
    pub fn all_args(&self) -> Vec<Value> {
        self.args.clone()
    }

    /// The result.
    pub fn out(&self) -> Value {
        self.value
    }

    /// Part `i` of the result, which is a tuple.
    pub fn part(&mut self, i: usize) -> Result<Value, NoGradient> {
        let value = self.value;
        self.op(get::Get { index: i as i64 }, &[value])
    }

    /// The gradient of the result, which is a tensor.
    pub fn grad(&self) -> Value {
        self.grads[0].expect("a rule is asked only where there is a gradient")
    }

    /// The gradient of part `i` of the result: zeros where nothing came back.
    pub fn part_grad(&mut self, i: usize) -> Result<Value, NoGradient> {
        match self.grads[i] {
            Some(grad) => Ok(grad),
            None => {
                let ty = self.grown.function.values[self.value].ty.parts()[i].clone();
                self.full(0.0, &gradient_type(&ty))
            }
        }
    }

    /// The gradient of part `i` of the result; `None` where nothing came back.
    pub fn known_part_grad(&self, i: usize) -> Option<Value> {
        self.grads[i]
    }

    /// Whether the gradient of operand `i` is wanted: what is not wanted is dropped.
    pub fn wants(&self, i: usize) -> bool {
        self.wanted[i]
    }

    /// Refuses if the gradient of operand `i` of the op `op` is wanted.
    pub fn without(
        &self,
        i: usize,
        op: &'static str,
        operand: &'static str,
    ) -> Result<Option<Value>, NoGradient> {
        if self.wanted[i] { Err(NoGradient::Operand { op, operand }) } else { Ok(None) }
    }

    /// The type of a value, which is a tensor.
    pub fn ty(&self, value: Value) -> TensorType {
        self.grown.function.tensor(value).expect("a rule asks for types of tensors").clone()
    }

    /// Where a value comes from.
    pub fn def(&self, value: Value) -> &Def {
        &self.grown.function.values[value].def
    }

    /// An op.
    pub fn op(&mut self, op: impl Into<Op>, args: &[Value]) -> Result<Value, NoGradient> {
        Ok(self.grown.op(&self.base, op, args, self.value)?)
    }

    /// A tensor of one number, of this type.
    pub fn full(&mut self, value: f64, ty: &TensorType) -> Result<Value, NoGradient> {
        Ok(self.grown.full(&self.base, value, ty, self.value)?)
    }

    /// `x + y`.
    pub fn add(&mut self, x: Value, y: Value) -> Result<Value, NoGradient> {
        self.op(add::Add {}, &[x, y])
    }

    /// `x - y`.
    pub fn sub(&mut self, x: Value, y: Value) -> Result<Value, NoGradient> {
        self.op(sub::Sub {}, &[x, y])
    }

    /// `x · y`.
    pub fn mul(&mut self, x: Value, y: Value) -> Result<Value, NoGradient> {
        self.op(mul::Mul {}, &[x, y])
    }

    /// `x / y`.
    pub fn div(&mut self, x: Value, y: Value) -> Result<Value, NoGradient> {
        self.op(div::Div {}, &[x, y])
    }

    /// `by · x`.
    pub fn scale(&mut self, x: Value, by: f64) -> Result<Value, NoGradient> {
        self.op(scale::Scale { by: Real::new(by) }, &[x])
    }

    /// The product along `spec`, such as `"ab,bc->ac"`.
    pub fn einsum(&mut self, spec: &str, args: &[Value]) -> Result<Value, NoGradient> {
        let spec: Spec = spec.parse().map_err(|()| NoGradient::Rule(format!("\"{spec}\" is no spec")))?;
        self.op(einsum::Einsum { spec }, args)
    }

    /// The same elements in another shape.
    pub fn reshape(&mut self, x: Value, shape: &[Dim]) -> Result<Value, NoGradient> {
        if self.ty(x).shape[..] == *shape {
            return Ok(x);
        }
        self.op(reshape::Reshape { shape: Dims(shape.to_vec()) }, &[x])
    }

    /// The same numbers with other elements; those of 8 bits as what they count as.
    pub fn cast(&mut self, x: Value, to: DType) -> Result<Value, NoGradient> {
        match self.ty(x).dtype {
            from if from == to => Ok(x),
            from if from.is_f8() => self.op(dequantize::Dequantize { to }, &[x]),
            _ => self.op(cast::Cast { to }, &[x]),
        }
    }

    /// `x` repeated to fill `ty`, by the rule of broadcasting.
    pub fn broadcast(&mut self, x: Value, ty: &TensorType) -> Result<Value, NoGradient> {
        if self.ty(x) == *ty {
            return Ok(x);
        }
        let zeros = self.full(0.0, ty)?;
        self.add(zeros, x)
    }

    /// The transposition of broadcasting: `x` summed over the axes along which an operand of type `ty` was repeated.
    pub fn sum_to(&mut self, x: Value, ty: &TensorType) -> Result<Value, NoGradient> {
        let (from, one) = (self.ty(x), Dim::from(1));
        if from.shape == ty.shape {
            return Ok(x);
        }
        let lead = from.rank() - ty.rank();
        let kept = |i: &usize| *i >= lead && (ty.shape[i - lead] != one || from.shape[*i] == one);
        let axes: Vec<usize> = (0..from.rank()).collect();
        let out: Vec<usize> = axes.iter().copied().filter(kept).collect();
        let summed = match out.len() == axes.len() {
            true => x,
            false => {
                let letters = "abcdefghijklmnopqrstuvwxyz".as_bytes();
                let spec = Spec::new(&[&axes[..]], &out, |axis| letters[axis % letters.len()] as char);
                self.op(einsum::Einsum { spec }, &[x])?
            }
        };
        self.reshape(summed, &ty.shape)
    }
}

/// Whether gradients can flow through a tensor of this type at all.
pub fn is_differentiable(ty: &TensorType) -> bool {
    ty.dtype.is_float() || ty.dtype.is_f8()
}
