//! What `sum`, `mean` and `max` share.

use super::rows::{Walk, keep, try_fold};
use crate::dim::Dim;
use crate::eval::Array;
use crate::kernel::Elem;
use crate::kernel::build::Tile;
use crate::lower::{Coord, Cx, LowerError, Request, View};
use crate::op::TypeError;
use crate::types::{TensorType, Type};

/// The type rule: the axis stays with extent 1.
pub fn infer(op: &str, axis: i64, x: &TensorType) -> Result<Type, TypeError> {
    super::pointwise::float(op, x)?;
    let axis = super::slice::axis_index(axis, x)?;
    let mut ty = x.clone();
    ty.shape[axis] = Dim::from(1);
    Ok(ty.into())
}

/// `f` of the elements along `axis`.
pub fn eval(x: &Array, axis: usize, f: impl Fn(&[f64]) -> f64) -> Array {
    let mut shape = x.shape.clone();
    let n = std::mem::replace(&mut shape[axis], 1);
    Array::from_fn(&shape, |index| {
        let mut index = index.to_vec();
        let along: Vec<f64> = (0..n)
            .map(|i| {
                index[axis] = i;
                x.at(&index)
            })
            .collect();
        f(&along)
    })
}

/// What is made of the elements along an axis.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Fold {
    /// Their sum.
    Sum,
    /// Their sum over their number.
    Mean,
    /// The largest.
    Max,
}

impl Fold {
    /// What no elements give.
    fn start(self) -> f64 {
        if self == Fold::Max { f64::NEG_INFINITY } else { 0.0 }
    }

    fn two<'k>(self, x: Tile<'k>, y: Tile<'k>) -> Tile<'k> {
        if self == Fold::Max { x.max(y) } else { x + y }
    }

    fn columns(self, x: Tile<'_>) -> Tile<'_> {
        if self == Fold::Max { x.max_along(1) } else { x.sum_along(1) }
    }
}

/// One program a row if the axis is the last; else one for each block of the last axis, looping over `axis`.
pub fn kernel<'k>(cx: &Cx<'k>, x: &View<'k>, axis: usize, fold: Fold) -> Result<(), LowerError> {
    let (shape, last) = (&x.ty.shape, x.ty.rank() - 1);
    let zero = cx.k.int(0);
    let mut index: Vec<Tile<'k>> = vec![zero; last];
    (0..last).filter(|&i| i != axis).for_each(|i| index[i] = cx.program(&shape[i]));
    let (at, total) = if axis == last {
        let walk = Walk::over(cx, &shape[axis]);
        let [total] = walk.fold([cx.k.float(fold.start())], |first, counted, [acc]| {
            let x = x.at(&Request::row(&index, first, walk.cols))?;
            Ok([fold.two(acc, fold.columns(keep(counted, x, fold.start())))])
        })?;
        index.push(zero);
        (Request::element(&index), total)
    } else {
        let cols = cx.size(&shape[last]).unwrap_or(usize::MAX).clamp(1, cx.schedule.block);
        let first = cx.program_tile(&shape[last], cols);
        let at = Request::row(&index, first, cols);
        let start = cx.k.full([1, cols], fold.start());
        let [total] = try_fold(cx.extent(&shape[axis]), [start], |i, [acc]| {
            let mut at = at.clone();
            at.coords[axis] = Coord::At(i);
            Ok([fold.two(acc, x.at(&at)?)])
        })?;
        (at, total)
    };
    let result = match fold {
        Fold::Mean => total / cx.extent(&shape[axis]).cast(Elem::F32),
        Fold::Sum | Fold::Max => total,
    };
    cx.emit(&at, result)
}
