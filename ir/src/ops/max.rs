//! `max`: the largest element along an axis.

use super::reduce::{self, Fold};
use super::{offset::Offset, step::Step, sum::Sum};
use crate::attr::Real;
use crate::eval::{Array, Sizes};
use crate::lower::{Cx, LowerError, Lowering, View};
use crate::op::{OpDef, TypeError, op};
use crate::poly::Amount;
use crate::types::{TensorType, Type};
use crate::vjp::{Shares, Vjp};

op! {
    /// The largest element along `axis`, which stays with extent 1.
    "max" => Max(x) {
        /// Which axis, from 0.
        axis: i64,
    }
}

impl OpDef for Max {
    fn infer(&self, args: &[&TensorType]) -> Result<Type, TypeError> {
        reduce::infer("max", self.axis, args[0])
    }

    fn eval(&self, _: &Sizes, args: &[&Array]) -> Vec<Array> {
        vec![reduce::eval(args[0], self.axis as usize, |xs| {
            xs.iter().copied().fold(f64::NEG_INFINITY, f64::max)
        })]
    }

    /// All of it to the largest, in equal parts where several are.
    fn vjp(&self, cx: &mut Vjp<'_>) -> Shares {
        let [x] = cx.args();
        let (g, largest) = (cx.grad(), cx.out());
        // 1 where x is not the largest, 1/2 where it is.
        let short = cx.sub(largest, x)?;
        let short = cx.op(Step {}, &[short])?;
        let hits = cx.scale(short, -2.0)?;
        let hits = cx.op(Offset { by: Real::new(2.0) }, &[hits])?;
        let count = cx.op(Sum { axis: self.axis }, &[hits])?;
        let each = cx.div(g, count)?;
        Ok(vec![Some(cx.mul(hits, each)?)])
    }

    fn lowering(&self) -> Lowering {
        Lowering::Kernel
    }

    fn kernel<'k>(&self, cx: &Cx<'k>, args: &[View<'k>]) -> Result<(), LowerError> {
        reduce::kernel(cx, &args[0], self.axis as usize, Fold::Max)
    }

    fn flops<N: Amount>(&self, args: &[&TensorType], _: &Type, size: &dyn Fn(&TensorType) -> N) -> N {
        size(args[0])
    }
}
