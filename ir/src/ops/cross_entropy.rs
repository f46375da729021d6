//! `cross_entropy`: how surprised a model is.

use super::rows::Walk;
use super::{check, rows, softmax};
use crate::eval::{Array, Sizes};
use crate::lower::{Cx, LowerError, Lowering, Request, View};
use crate::op::{OpDef, TypeError, op};
use crate::poly::Amount;
use crate::types::{DType, TensorType, Type};
use crate::vjp::{Shares, Vjp};
use super::{cross_entropy_grad::CrossEntropyGrad, label_count::LabelCount};

op! {
    /// The mean of `-log softmax(logits)[label]` over the rows of `logits[n, w]` whose label is in `0 .. w`;
    /// other rows (label -100, by custom) are left out. 0 if there are none.
    "cross_entropy" => CrossEntropy(logits, labels) {}
}

impl OpDef for CrossEntropy {
    fn infer(&self, args: &[&TensorType]) -> Result<Type, TypeError> {
        let [logits, labels] = args else { unreachable!("operands were counted") };
        super::pointwise::float("cross_entropy", logits)?;
        check::axes("logits", "[n, w]", logits, 0, false)?;
        check::ints("cross_entropy", "labels", labels, 1)?;
        check::axes("labels", "[n]", labels, 1, false)?;
        check::extent(&labels.shape[0], &logits.shape[0], 1, "the number of rows of the logits")?;
        Ok(TensorType::new(DType::F32, []).into())
    }

    fn eval(&self, _: &Sizes, args: &[&Array]) -> Vec<Array> {
        let [logits, labels] = args else { unreachable!("operands were counted") };
        let loss = |(r, &label): (usize, &f64)| {
            let row = rows::row_of(logits, r as f64)?;
            let x = (label >= 0.0).then(|| row.get(label as usize)).flatten()?;
            let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            Some(max + row.iter().map(|x| (x - max).exp()).sum::<f64>().ln() - x)
        };
        let losses: Vec<f64> = labels.data.iter().enumerate().filter_map(loss).collect();
        vec![Array::new(&[], vec![losses.iter().sum::<f64>() / losses.len().max(1) as f64])]
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

    /// One program, row after row.
    fn kernel<'k>(&self, cx: &Cx<'k>, args: &[View<'k>]) -> Result<(), LowerError> {
        let [logits, labels] = args else { unreachable!("operands were counted") };
        let [n, w] = [0, 1].map(|i| cx.extent(&logits.ty.shape[i]));
        let walk = Walk::over(cx, &logits.ty.shape[1]);
        let zero = cx.k.float(0.0);
        let [total, count] = rows::try_fold(n, [zero, zero], |r, [total, count]| {
            let [max, sum] =
                softmax::max_and_sum(cx, &walk, &|first| logits.at(&Request::row(&[r], first, walk.cols)))?;
            let label = labels.at(&Request::element(&[r]))?;
            let loss = max + sum.log() - logits.at(&Request::element(&[r, label]))?;
            let counts = label.lt(w).and(cx.k.int(0).le(label));
            let count = count + counts.select(cx.k.float(1.0), zero);
            Ok([total + counts.select(loss, zero), count])
        })?;
        cx.emit(&Request::element(&[]), total / count.max(cx.k.float(1.0)))
    }

    fn flops<N: Amount>(&self, args: &[&TensorType], _: &Type, size: &dyn Fn(&TensorType) -> N) -> N {
        N::from(3.0) * size(args[0])
    }
}
