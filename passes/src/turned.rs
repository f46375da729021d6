//! Operands of products with their axes in another order: what is summed last, as one axis.

use crate::rebuild::Rebuild;
use eva_ir::attr::{Axis, Dims, Spec};
use eva_ir::dim::Dim;
use eva_ir::graph::{Def, Function, Uses, Value};
use eva_ir::lower::Lowering;
use eva_ir::op::TypeError;
use eva_ir::ops::Op;
use eva_ir::ops::einsum::Einsum;
use eva_ir::ops::grouped::Grouped;
use eva_ir::ops::reshape::Reshape;
use eva_ir::types::TensorType;
use std::collections::HashMap;

/// What has been turned, each operand once.
pub struct Turned {
    /// By operand, order of its axes, and how many of the last are one.
    made: HashMap<(Value, Vec<usize>, usize), Value>,
    uses: Uses,
}

impl Turned {
    /// For operands that are values of `f`.
    pub fn new(f: &Function) -> Self {
        Self { made: HashMap::new(), uses: f.uses() }
    }

    /// An operand with its axes in this order, the last `tokens` of them as one.
    pub fn operand(
        &mut self,
        r: &mut Rebuild<'_>,
        arg: Value,
        order: &[usize],
        tokens: usize,
        suffix: &str,
    ) -> Result<Value, TypeError> {
        let key = (arg, order.to_vec(), tokens);
        if let Some(&known) = self.made.get(&key) {
            return Ok(known);
        }
        let f = r.old;
        let ty = tensor(f, arg)?;
        let name = format!("{}_{suffix}", f.values[arg].name);
        let (kept, summed) = order.split_at(order.len() - tokens);
        let follow = summed.windows(2).all(|w| w[1] == w[0] + 1);
        let mut x = r.get(arg);
        let mut order = order.to_vec();
        // What follows each other is made one before anything is moved: then nothing is between moving and quantizing.
        let merged = summed.first().copied().filter(|_| tokens > 1 && follow);
        if let Some(first) = merged {
            x = self.merged(r, arg, [first, tokens])?;
            order = kept.iter().map(|&axis| if axis < first { axis } else { axis + 1 - tokens }).collect();
            order.push(first);
        }
        if !order.is_sorted() {
            let axes: Vec<usize> = (0..order.len()).collect();
            let spec = Spec::new(&[&axes], &order, |axis| char::from(b'a' + (axis as u8) % 26));
            x = r.op(&name, Einsum { spec }, &[x], arg)?;
        }
        if tokens > 1 && merged.is_none() {
            let all = Dim::product(summed.iter().map(|&axis| &ty.shape[axis]));
            let shape = Dims(kept.iter().map(|&axis| ty.shape[axis].clone()).chain([all]).collect());
            x = r.op(&name, Reshape { shape }, &[x], arg)?;
        }
        self.made.insert(key, x);
        Ok(x)
    }

    /// An operand with `n` axes from `first` on as one. What is computed element by element, for it alone, is computed of
    /// operands that are seen so: they are there, and it need not be.
    fn merged(
        &mut self,
        r: &mut Rebuild<'_>,
        arg: Value,
        [first, n]: [usize; 2],
    ) -> Result<Value, TypeError> {
        let f = r.old;
        let ty = tensor(f, arg)?;
        let name = format!("{}_merged", f.values[arg].name);
        if let Def::Op(op, args) = &f.values[arg].def
            && op.lowering() == Lowering::Pointwise
            && !args.is_empty()
            && self.uses.of(arg).len() == 1
            && args.iter().all(|&arg| f.tensor(arg).is_some_and(|own| own.shape == ty.shape))
        {
            let args =
                args.iter().map(|&arg| self.merged(r, arg, [first, n])).collect::<Result<Vec<_>, _>>()?;
            return r.op(&name, op.clone(), &args, arg);
        }
        let (before, rest) = ty.shape.split_at(first);
        let (summed, behind) = rest.split_at(n);
        let shape = before.iter().cloned().chain([Dim::product(summed)]).chain(behind.iter().cloned());
        r.op(&name, Reshape { shape: Dims(shape.collect()) }, &[r.get(arg)], arg)
    }
}

/// The type of an operand.
pub fn tensor(f: &Function, value: Value) -> Result<&TensorType, TypeError> {
    f.tensor(value).ok_or_else(|| TypeError::new("an operand is several tensors"))
}

/// A product whose operand `side` has its axes in this order.
pub fn with_order(op: &Op, side: usize, order: &[usize]) -> Op {
    let turned = |spec: &Spec| {
        let mut inputs = spec.inputs.clone();
        inputs[side] = order.iter().map(|&axis| spec.inputs[side][axis]).collect();
        let inputs: Vec<&[Axis]> = inputs.iter().map(|axes| &axes[..]).collect();
        Spec::new(&inputs, &spec.out, |axis| spec.letter(axis))
    };
    match op {
        Op::Einsum(einsum) => Einsum { spec: turned(&einsum.spec) }.into(),
        Op::Grouped(grouped) => Grouped { spec: turned(&grouped.spec) }.into(),
        other => other.clone(),
    }
}
