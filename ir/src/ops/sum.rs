//! `sum`: the sum along an axis.

use super::reduce::{self, Fold};
use crate::eval::{Array, Sizes};
use crate::lower::{Cx, LowerError, Lowering, View};
use crate::op::{OpDef, TypeError, op};
use crate::poly::Amount;
use crate::types::{TensorType, Type};
use crate::vjp::{Shares, Vjp};

op! {
    /// The sum along `axis`, which stays with extent 1.
    "sum" => Sum(x) {
        /// Which axis, from 0.
        axis: i64,
    }
}

impl OpDef for Sum {
    fn infer(&self, args: &[&TensorType]) -> Result<Type, TypeError> {
        reduce::infer("sum", self.axis, args[0])
    }

    fn eval(&self, _: &Sizes, args: &[&Array]) -> Vec<Array> {
        vec![reduce::eval(args[0], self.axis as usize, |xs| xs.iter().sum())]
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> Shares {
        let [x] = cx.args();
        let (g, ty) = (cx.grad(), cx.ty(x));
        Ok(vec![Some(cx.broadcast(g, &ty)?)])
    }

    fn lowering(&self) -> Lowering {
        Lowering::Kernel
    }

    fn kernel<'k>(&self, cx: &Cx<'k>, args: &[View<'k>]) -> Result<(), LowerError> {
        reduce::kernel(cx, &args[0], self.axis as usize, Fold::Sum)
    }

    fn flops<N: Amount>(&self, args: &[&TensorType], _: &Type, size: &dyn Fn(&TensorType) -> N) -> N {
        size(args[0])
    }
}
