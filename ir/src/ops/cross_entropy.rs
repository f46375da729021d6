//! `cross_entropy`: how surprised a model is.

use super::cross_entropy_rows::{self, CrossEntropyRows};
use super::{cross_entropy_grad::CrossEntropyGrad, label_count::LabelCount};
use crate::dim::Dim;
use crate::eval::{Array, Sizes};
use crate::lower::{Cx, LowerError, Lowering, View};
use crate::op::{OpDef, TypeError, op};
use crate::poly::Amount;
use crate::types::{DType, TensorType, Type};
use crate::vjp::{Shares, Vjp};

op! {
    /// The mean of `-log softmax(logits)[label]` over the rows of `logits[n, w]` whose label is in `0 .. w`;
    /// other rows (label -100, by custom) are left out. 0 if there are none.
    "cross_entropy" => CrossEntropy(logits, labels) {}
}

impl OpDef for CrossEntropy {
    fn infer(&self, args: &[&TensorType]) -> Result<Type, TypeError> {
        cross_entropy_rows::operands("cross_entropy", args)?;
        Ok(TensorType::new(DType::F32, []).into())
    }

    fn eval(&self, sizes: &Sizes, args: &[&Array]) -> Vec<Array> {
        let losses = CrossEntropyRows {}.eval(sizes, args).remove(0);
        let classes = Dim::from(args[0].shape[1] as i64);
        let count = LabelCount { classes }.eval(sizes, &args[1..]).remove(0);
        vec![Array::new(&[], vec![losses.data.iter().sum::<f64>() / count.data[0]])]
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> Shares {
        let [logits, labels] = cx.args();
        let (g, [n, classes]) = (cx.grad(), [0, 1].map(|i| cx.ty(logits).shape[i].clone()));
        let count = cx.op(LabelCount { classes }, &[labels])?;
        let each = cx.div(g, count)?;
        let each = cx.broadcast(each, &TensorType::new(DType::F32, [n]))?;
        Ok(vec![Some(cx.op(CrossEntropyGrad {}, &[logits, labels, each])?), None])
    }

    fn lowering(&self) -> Lowering {
        Lowering::Kernel
    }

    fn kernel<'k>(&self, _: &Cx<'k>, _: &[View<'k>]) -> Result<(), LowerError> {
        Err(LowerError::new("a loss is taken apart into its rows and their mean before lowering"))
    }

    fn flops<N: Amount>(&self, args: &[&TensorType], _: &Type, size: &dyn Fn(&TensorType) -> N) -> N {
        N::from(3.0) * size(args[0])
    }
}
