//! Products with parts of a weight whose blocks the parts cut: the whole product, of which parts are taken.
//!
//! A head of `kv_b_proj` has `n + v` rows, and 128 rows share a scale: where heads are not whole blocks, no type says what
//! the scales of a head's rows are. The product with all rows is one of 8 bits, and its columns are those of the parts.

use crate::rebuild::Rebuild;
use eva_ir::attr::{Axis, Dims, Spec};
use eva_ir::graph::{Def, Function, Value};
use eva_ir::op::TypeError;
use eva_ir::ops::Op;
use eva_ir::ops::cast::Cast;
use eva_ir::ops::einsum::Einsum;
use eva_ir::ops::reshape::Reshape;
use eva_ir::ops::slice::Slice;
use eva_ir::types::DType;

/// The whole products made so far, by their operands.
pub type Made = Vec<([Value; 2], Spec, Value)>;

/// A product with a part of a weight.
pub struct Part<'f> {
    /// The weight, `[rows, summed]`.
    param: Value,
    /// How its rows become axes, and which of those are taken.
    reshape: &'f Reshape,
    slice: Option<&'f Slice>,
    /// The product with the whole weight.
    spec: Spec,
    /// How many axes of the result are the other operand's.
    others: usize,
    dtype: DType,
}

impl<'f> Part<'f> {
    /// What the product `value` is, the operand `weight` of which is made of `param`; none if it is another thing.
    pub fn of(f: &'f Function, value: Value, weight: usize, param: Value) -> Option<Self> {
        let Def::Op(Op::Einsum(Einsum { spec }), args) = &f.values[value].def else { return None };
        let (mut reshape, mut slice, mut at) = (None, None, args[weight]);
        while at != param {
            let Def::Op(op, args) = &f.values[at].def else { return None };
            match op {
                Op::Dequantize(_) | Op::Cast(_) => {}
                Op::Slice(op) if slice.is_none() && reshape.is_none() => slice = Some(op),
                Op::Reshape(op) if reshape.is_none() => reshape = Some(op),
                _ => return None,
            }
            at = args[0];
        }
        let reshape: &Reshape = reshape?;
        let stored = f.tensor(param)?;
        let rows = reshape.shape.0.len().checked_sub(1)?;
        let whole = stored.rank() == 2 && stored.shape.last() == reshape.shape.0.last();
        // The weight's axes come last in the result, and the other operand has none of them.
        let (x, w) = (&spec.inputs[1 - weight], &spec.inputs[weight]);
        let summed = *w.last()?;
        let kept: Vec<Axis> = x.iter().copied().filter(|axis| *axis != summed).collect();
        let out = [&kept[..], &w[..rows]].concat();
        let inside = slice.is_none_or(|slice| usize::try_from(slice.axis).is_ok_and(|axis| axis < rows));
        let apart = w[..rows].iter().all(|axis| !x.contains(axis)) && x.contains(&summed);
        if !(whole && inside && apart && w.len() == rows + 1 && spec.out == out) {
            return None;
        }
        let all = Axis::try_from(spec.axes()).ok()?;
        let letter = |axis: Axis| if axis == all { 'r' } else { spec.letter(axis) };
        let spec = Spec::new(&[x, &[all, summed]], &[&kept[..], &[all]].concat(), letter);
        let dtype = f.tensor(value)?.dtype;
        Some(Self { param, reshape, slice, spec, others: kept.len(), dtype })
    }

    /// Puts the part of the whole product in place of `value`; `x` is the other operand, in 8 bits.
    pub fn replace(&self, r: &mut Rebuild, made: &mut Made, value: Value, x: Value) -> Result<(), TypeError> {
        let args = [x, r.get(self.param)];
        let known = made.iter().find(|(of, spec, _)| (of, spec) == (&args, &self.spec));
        let whole = match known {
            Some((.., whole)) => *whole,
            None => {
                let name = format!("{}_whole", r.old.values[value].name);
                let mut whole = r.op(&name, Einsum { spec: self.spec.clone() }, &args, value)?;
                if self.dtype != DType::F32 {
                    whole = r.op(&format!("{name}_cast"), Cast { to: self.dtype }, &[whole], value)?;
                }
                made.push((args, self.spec.clone(), whole));
                whole
            }
        };
        let ty = r.new.tensor(whole).ok_or_else(|| TypeError::new("a product is several tensors"))?;
        let rows = &self.reshape.shape.0[..self.reshape.shape.0.len() - 1];
        let shape = Dims([&ty.shape[..self.others], rows].concat());
        let Some(slice) = self.slice else {
            return r.replace(value, Reshape { shape }, &[whole]).map(drop);
        };
        let name = format!("{}_all", r.old.values[value].name);
        let all = r.op(&name, Reshape { shape }, &[whole], value)?;
        let slice = Slice { axis: slice.axis + self.others as i64, range: slice.range.clone() };
        r.replace(value, slice, &[all]).map(drop)
    }
}
