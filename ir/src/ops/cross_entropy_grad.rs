//! `cross_entropy_grad`: what a loss asks of logits.

use super::rows::{Walk, indices};
use super::{check, cross_entropy_rows, softmax};
use crate::eval::{Array, Sizes};
use crate::kernel::Elem;
use crate::lower::{Cx, LowerError, Lowering, Request, View};
use crate::op::{OpDef, TypeError, op};
use crate::poly::Amount;
use crate::types::{TensorType, Type};

op! {
    /// `g[i] · (softmax(logits[i]) - onehot(labels[i]))` for each row of `logits[n, w]`: the gradient of
    /// `g[i] · -log softmax(logits[i])[labels[i]]`. Zeros for a row whose label is not in `0 .. w`.
    "cross_entropy_grad" => CrossEntropyGrad(logits, labels, g) {}
}

impl OpDef for CrossEntropyGrad {
    fn infer(&self, args: &[&TensorType]) -> Result<Type, TypeError> {
        cross_entropy_rows::operands("cross_entropy_grad", args)?;
        let (logits, g) = (args[0], args[2]);
        check::f32s("cross_entropy_grad", "gradient", g, 2)?;
        check::axes("gradient", "[n]", g, 2, false)?;
        check::extent(&g.shape[0], &logits.shape[0], 2, "the number of rows of the logits")?;
        Ok(logits.clone().into())
    }

    fn eval(&self, _: &Sizes, args: &[&Array]) -> Vec<Array> {
        let [logits, labels, g] = args else { unreachable!("operands were counted") };
        let w = logits.shape[1];
        let row = |(i, row): (usize, &[f64])| {
            let label = labels.data[i];
            if label < 0.0 || label >= w as f64 {
                return vec![0.0; w];
            }
            let mut share = softmax::of_row(row);
            share[label as usize] -= 1.0;
            share.iter_mut().for_each(|x| *x *= g.data[i]);
            share
        };
        vec![Array::new(&logits.shape, logits.rows().enumerate().flat_map(row).collect())]
    }

    fn lowering(&self) -> Lowering {
        Lowering::Kernel
    }

    /// One program a row.
    fn kernel<'k>(&self, cx: &Cx<'k>, args: &[View<'k>]) -> Result<(), LowerError> {
        let [logits, labels, g] = args else { unreachable!("operands were counted") };
        let walk = Walk::over(cx, &logits.ty.shape[1]);
        let row = cx.program(&logits.ty.shape[0]);
        let at = |first| Request::row(&[row], first, walk.cols);
        let (label, g) = (labels.at(&Request::element(&[row]))?, g.at(&Request::element(&[row]))?);
        let valid = cx.k.int(0).le(label).and(label.lt(cx.extent(&logits.ty.shape[1])));
        let g = valid.select(g, cx.k.float(0.0));
        let [max, sum] = softmax::max_and_sum(cx, &walk, &|first| logits.at(&at(first)))?;
        let scale = sum.recip();
        walk.fold([], |first, _, []| {
            let at = at(first);
            let hit = indices(cx, at.coords[1], &at).equals(label).cast(Elem::I64).cast(Elem::F32);
            let share = ((logits.at(&at)? - max).exp() * scale - hit) * g;
            // A row that does not count may hold anything.
            cx.emit(&at, valid.select(share, cx.k.float(0.0)))?;
            Ok([])
        })?;
        Ok(())
    }

    fn flops<N: Amount>(&self, args: &[&TensorType], _: &Type, size: &dyn Fn(&TensorType) -> N) -> N {
        N::from(4.0) * size(args[0])
    }
}
