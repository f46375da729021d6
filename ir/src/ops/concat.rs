//! `concat`: tensors one after another along an axis.

use super::slice::Slice;
use super::{check, rows};
use crate::attr::Range;
use crate::dim::Dim;
use crate::eval::{Array, Sizes};
use crate::kernel::build::Tile;
use crate::lower::{Cx, LowerError, Lowering, Request, View};
use crate::op::{OpDef, TypeError, op};
use crate::poly::Amount;
use crate::types::{TensorType, Type};
use crate::vjp::{Shares, Vjp};

op! {
    /// The operands one after another along `axis`.
    "concat" => Concat(; x...) {
        /// Which axis, from 0.
        axis: i64,
    }
}

impl OpDef for Concat {
    fn infer(&self, args: &[&TensorType]) -> Result<Type, TypeError> {
        let mut ty = args[0].clone();
        let axis = super::slice::axis_index(self.axis, args[0])?;
        for (i, x) in args.iter().enumerate() {
            check::unscaled("concat", "operand", x, i)?;
            check::same_dtype(["first operand", "other"], args[0], x, i)?;
            let fits = x.rank() == ty.rank() && (0..x.rank()).all(|a| a == axis || x.shape[a] == ty.shape[a]);
            if !fits {
                let message = format!("{x} does not fit {} but for axis {axis}", args[0]);
                return Err(TypeError::new(message).at(i));
            }
        }
        ty.shape[axis] = args.iter().fold(Dim::from(0), |sum, x| &sum + &x.shape[axis]);
        Ok(ty.into())
    }

    fn eval(&self, _: &Sizes, args: &[&Array]) -> Vec<Array> {
        let axis = self.axis as usize;
        let mut shape = args[0].shape.clone();
        shape[axis] = args.iter().map(|x| x.shape[axis]).sum();
        vec![Array::from_fn(&shape, |index| {
            let (mut index, mut part) = (index.to_vec(), 0);
            while index[axis] >= args[part].shape[axis] {
                index[axis] -= args[part].shape[axis];
                part += 1;
            }
            args[part].at(&index)
        })]
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> Shares {
        let (g, mut start, mut shares) = (cx.grad(), Dim::from(0), Vec::new());
        for x in cx.all_args() {
            let end = &start + &cx.ty(x).shape[self.axis as usize];
            let range = Range { start, end: end.clone() };
            shares.push(Some(cx.op(Slice { axis: self.axis, range }, &[g])?));
            start = end;
        }
        Ok(shares)
    }

    fn lowering(&self) -> Lowering {
        Lowering::View
    }

    fn flops<N: Amount>(&self, _: &[&TensorType], _: &Type, _: &dyn Fn(&TensorType) -> N) -> N {
        N::from(0.0)
    }

    fn tile<'k>(&self, cx: &Cx<'k>, args: &[View<'k>], at: &Request<'k>) -> Result<Tile<'k>, LowerError> {
        let axis = self.axis as usize;
        let index = rows::indices(cx, at.coords[axis], at);
        // Where each operand begins.
        let mut start = Dim::from(0);
        let starts = args.iter().map(|x| {
            let next = &start + &x.ty.shape[axis];
            std::mem::replace(&mut start, next)
        });
        let mut result = None;
        for (x, start) in args.iter().zip(starts) {
            let mut at = at.clone();
            let start = cx.extent(&start);
            at.coords[axis] = at.coords[axis].shift(cx.k.int(0) - start);
            at.limits.clear();
            let part = x.at(&at)?;
            result = Some(match result {
                None => part,
                Some(before) => index.lt(start).select(before, part),
            });
        }
        result.ok_or_else(|| LowerError::new("`concat` has no operands"))
    }
}
