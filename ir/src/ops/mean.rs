//! `mean`: the mean along an axis.

use super::reduce::{self, Fold};
use super::sum::Sum;
use crate::eval::{Array, Sizes};
use crate::lower::{Cx, LowerError, Lowering, View};
use crate::op::{OpDef, TypeError, op};
use crate::poly::Amount;
use crate::types::{TensorType, Type};
use crate::vjp::{Shares, Vjp};

op! {
    /// The mean along `axis`, which stays with extent 1.
    "mean" => Mean(x) {
        /// Which axis, from 0.
        axis: i64,
    }
}

impl OpDef for Mean {
    fn infer(&self, args: &[&TensorType]) -> Result<Type, TypeError> {
        reduce::infer("mean", self.axis, args[0])
    }

    fn eval(&self, _: &Sizes, args: &[&Array]) -> Vec<Array> {
        vec![reduce::eval(args[0], self.axis as usize, |xs| xs.iter().sum::<f64>() / xs.len() as f64)]
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> Shares {
        let [x] = cx.args();
        let (g, ty) = (cx.grad(), cx.ty(x));
        // How many there are may not be known before it runs.
        let ones = cx.full(1.0, &ty.with_shape([ty.shape[self.axis as usize].clone()]))?;
        let count = cx.op(Sum { axis: 0 }, &[ones])?;
        let g = cx.div(g, count)?;
        Ok(vec![Some(cx.broadcast(g, &ty)?)])
    }

    fn lowering(&self) -> Lowering {
        Lowering::Kernel
    }

    fn kernel<'k>(&self, cx: &Cx<'k>, args: &[View<'k>]) -> Result<(), LowerError> {
        reduce::kernel(cx, &args[0], self.axis as usize, Fold::Mean)
    }

    fn flops<N: Amount>(&self, args: &[&TensorType], _: &Type, size: &dyn Fn(&TensorType) -> N) -> N {
        size(args[0])
    }
}
