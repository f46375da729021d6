//! `mean`: the mean along an axis.

use super::reduce::{self, Fold};
use crate::eval::{Array, Sizes};
use crate::lower::{Cx, LowerError, Lowering, View};
use crate::op::{OpDef, TypeError, op};
use crate::poly::Amount;
use crate::types::{TensorType, Type};

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
