//! `slice`: some neighbours along one axis.

use super::concat::Concat;
use crate::attr::Range;
use crate::dim::Dim;
use crate::eval::{Array, Sizes};
use crate::graph::Value;
use crate::lower::{BufView, Lowering};
use crate::op::{OpDef, TypeError, op};
use crate::scales::{Block, may_be_whole};
use crate::types::{TensorType, Type};
use crate::vjp::gradient_type;
use crate::vjp::{Shares, Vjp};

op! {
    /// The elements `range.start .. range.end` along `axis`.
    "slice" => Slice(x) {
        /// Which axis, from 0.
        axis: i64,
        /// The first index and one past the last.
        range: Range,
    }
}

/// `axis` as an index into a shape of `rank` axes.
pub(super) fn axis_index(axis: i64, ty: &TensorType) -> Result<usize, TypeError> {
    let index = usize::try_from(axis).ok().filter(|&i| i < ty.rank());
    index.ok_or_else(|| TypeError::new(format!("there is no axis {axis} in {ty}")).at(0))
}

impl OpDef for Slice {
    fn infer(&self, args: &[&TensorType]) -> Result<Type, TypeError> {
        let axis = axis_index(self.axis, args[0])?;
        let Range { start, end } = &self.range;
        let (extent, len) = (&args[0].shape[axis], end - start);
        // What is left before, inside and after must be a sum of extents, none of them subtracted.
        let negative = |dim: &Dim| dim.terms().any(|(_, n)| n < 0);
        if negative(start) || negative(&len) || len.as_const() == Some(0) || negative(&(extent - end)) {
            return Err(TypeError::new(format!(
                "{start}..{end} is not a part of axis {axis}, which is {extent}"
            ))
            .at(0));
        }
        if let Some(Block::Of(n)) = args[0].block(axis) {
            // A block that is cut would need a scale on either side; the last one may be short.
            if !may_be_whole(start, n) || !(may_be_whole(end, n) || end == extent) {
                let message = format!("{start}..{end} cuts blocks of {n} that share a scale");
                return Err(TypeError::new(message).at(0).help("dequantize it first"));
            }
        }
        let mut ty = args[0].clone();
        ty.shape[axis] = len;
        Ok(ty.into())
    }

    fn eval(&self, sizes: &Sizes, args: &[&Array]) -> Vec<Array> {
        let (axis, start, end) = (self.axis as usize, sizes.of(&self.range.start), sizes.of(&self.range.end));
        let mut shape = args[0].shape.clone();
        shape[axis] = end - start;
        vec![Array::from_fn(&shape, |index| {
            let mut index = index.to_vec();
            index[axis] += start;
            args[0].at(&index)
        })]
    }

    /// The gradient in its place among zeros.
    fn vjp(&self, cx: &mut Vjp<'_>) -> Shares {
        let [x] = cx.args();
        let (g, ty, axis) = (cx.grad(), cx.ty(x), self.axis as usize);
        let Range { start, end } = &self.range;
        let mut parts = Vec::new();
        for (first, end) in [(&Dim::from(0), start), (end, &ty.shape[axis])] {
            let mut rest = gradient_type(&ty);
            rest.shape[axis] = end - first;
            let zeros = (rest.shape[axis] != Dim::from(0)).then(|| cx.full(0.0, &rest)).transpose()?;
            parts.push(zeros);
        }
        let parts: Vec<Value> = [parts[0], Some(g), parts[1]].into_iter().flatten().collect();
        Ok(vec![Some(if parts.len() == 1 { g } else { cx.op(Concat { axis: self.axis }, &parts)? })])
    }

    fn lowering(&self) -> Lowering {
        Lowering::Alias
    }

    fn alias(&self, arg: &BufView) -> Option<BufView> {
        let mut view = arg.clone();
        let axis = self.axis as usize;
        if view.pages.is_some() && axis < 2 {
            return None;
        }
        view.shape[axis] = &self.range.end - &self.range.start;
        view.offset = &view.offset + &(&view.strides[axis] * &self.range.start);
        view.scales.iter_mut().for_each(|scales| scales.slice(axis, &self.range.start));
        Some(view)
    }
}
