//! `cross_entropy_rows`: how surprised a model is by each token.

use super::cross_entropy_grad::CrossEntropyGrad;
use super::rows::Walk;
use super::{check, rows, softmax};
use crate::eval::{Array, Sizes};
use crate::lower::{Cx, LowerError, Lowering, Request, View};
use crate::op::{OpDef, TypeError, op};
use crate::poly::Amount;
use crate::types::{DType, TensorType, Type};
use crate::vjp::{Shares, Vjp};

op! {
    /// `-log softmax(logits)[label]` of each row of `logits[n, w]`, 0 for a row whose label is not in `0 .. w`.
    "cross_entropy_rows" => CrossEntropyRows(logits, labels) {}
}

/// What the ops of losses ask of logits and labels.
pub(super) fn operands(op: &str, args: &[&TensorType]) -> Result<(), TypeError> {
    let (logits, labels) = (args[0], args[1]);
    super::pointwise::float(op, logits)?;
    check::axes("logits", "[n, w]", logits, 0, false)?;
    check::ints(op, "labels", labels, 1)?;
    check::axes("labels", "[n]", labels, 1, false)?;
    check::extent(&labels.shape[0], &logits.shape[0], 1, "the number of rows of the logits")
}

impl OpDef for CrossEntropyRows {
    fn infer(&self, args: &[&TensorType]) -> Result<Type, TypeError> {
        operands("cross_entropy_rows", args)?;
        Ok(TensorType::new(DType::F32, [args[0].shape[0].clone()]).into())
    }

    fn eval(&self, _: &Sizes, args: &[&Array]) -> Vec<Array> {
        let [logits, labels] = args else { unreachable!("operands were counted") };
        let loss = |(r, &label): (usize, &f64)| {
            let row = rows::row_of(logits, r as f64)?;
            let x = (label >= 0.0).then(|| row.get(label as usize)).flatten()?;
            let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            Some(max + row.iter().map(|x| (x - max).exp()).sum::<f64>().ln() - x)
        };
        let losses = labels.data.iter().enumerate().map(|row| loss(row).unwrap_or(0.0));
        vec![Array::new(&labels.shape, losses.collect())]
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> Shares {
        let ([logits, labels], g) = (cx.args(), cx.grad());
        Ok(vec![Some(cx.op(CrossEntropyGrad {}, &[logits, labels, g])?), None])
    }

    fn lowering(&self) -> Lowering {
        Lowering::Kernel
    }

    /// One program a row.
    fn kernel<'k>(&self, cx: &Cx<'k>, args: &[View<'k>]) -> Result<(), LowerError> {
        let [logits, labels] = args else { unreachable!("operands were counted") };
        let (row, w) = (cx.program(&logits.ty.shape[0]), cx.extent(&logits.ty.shape[1]));
        let walk = Walk::over(cx, &logits.ty.shape[1]);
        let [max, sum] =
            softmax::max_and_sum(cx, &walk, &|first| logits.at(&Request::row(&[row], first, walk.cols)))?;
        let label = labels.at(&Request::element(&[row]))?;
        let loss = max + sum.log() - logits.at(&Request::element(&[row, label]))?;
        let counts = label.lt(w).and(cx.k.int(0).le(label));
        cx.emit(&Request::element(&[row]), counts.select(loss, cx.k.float(0.0)))
    }

    fn flops<N: Amount>(&self, args: &[&TensorType], _: &Type, size: &dyn Fn(&TensorType) -> N) -> N {
        N::from(3.0) * size(args[0])
    }
}
