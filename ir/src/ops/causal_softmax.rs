//! `causal_softmax`: softmax over the keys that a token may see.

use super::rows::Walk;
use super::{check, softmax};
use crate::eval::{Array, Sizes};
use crate::lower::{Cx, LowerError, Lowering, Request, View};
use crate::op::{OpDef, TypeError, op};
use crate::types::{TensorType, Type};
use crate::vjp::{Shares, Vjp};

op! {
    /// Softmax along the last axis over the keys that a token may see; 0 for the others.
    ///
    /// `scores[b, …, s, t]` has a row for each of `s` new tokens and a column for each of `t` keys.
    /// `start[b]` is how many keys came before the new tokens, so that token `i` sees keys `0 ..= start + i`.
    "causal_softmax" => CausalSoftmax(scores, start) {}
}

impl OpDef for CausalSoftmax {
    fn infer(&self, args: &[&TensorType]) -> Result<Type, TypeError> {
        let [scores, start] = args else { unreachable!("operands were counted") };
        super::pointwise::float("causal_softmax", scores)?;
        check::axes("scores", "[b, ..., s, t]", scores, 0, true)?;
        check::ints("causal_softmax", "start", start, 1)?;
        check::axes("start", "[b]", start, 1, false)?;
        check::extent(&start.shape[0], &scores.shape[0], 1, "the batch of the scores")?;
        Ok((*scores).clone().into())
    }

    fn eval(&self, _: &Sizes, args: &[&Array]) -> Vec<Array> {
        let [scores, start] = args else { unreachable!("operands were counted") };
        let [.., s, t] = scores.shape[..] else { unreachable!("the type rule asks for both") };
        let rows_per_batch = scores.shape[1..scores.rank() - 1].iter().product::<usize>();
        let row = |(r, row): (usize, &[f64])| {
            let last = start.data[r / rows_per_batch] as i64 + (r % s) as i64;
            let seen = usize::try_from(last + 1).unwrap_or(0).min(t);
            let mut weights = softmax::of_row(&row[..seen]);
            weights.resize(t, 0.0);
            weights
        };
        vec![Array::new(&scores.shape, scores.rows().enumerate().flat_map(row).collect())]
    }

    /// `dx = y·(g - Σ y·g)`, row by row; keys that are not seen have `y = 0`.
    fn vjp(&self, cx: &mut Vjp<'_>) -> Shares {
        let (g, y) = (cx.grad(), cx.out());
        Ok(vec![Some(softmax::gradient(cx, y, g)?), None])
    }

    fn lowering(&self) -> Lowering {
        Lowering::Kernel
    }

    /// Like `softmax`, but the first two times only over the keys that are seen.
    fn kernel<'k>(&self, cx: &Cx<'k>, args: &[View<'k>]) -> Result<(), LowerError> {
        let [scores, start] = args else { unreachable!("operands were counted") };
        let (last, leading) = scores.ty.shape.split_last().expect("the type rule asks for axes");
        let index = cx.programs(leading);
        let token = index[leading.len() - 1];
        let seen = start.at(&Request::element(&index[..1]))? + token + 1;
        let seen = seen.min(cx.extent(last)).max(cx.k.int(0));
        softmax::kernel(cx, scores, &index, &Walk::over(cx, last), Some(seen))
    }
}
