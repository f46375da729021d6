//! `softmax`: weights that add up to 1.

use super::rows::{Walk, keep};
use super::sum::Sum;
use crate::eval::{Array, Sizes};
use crate::graph::Value;
use crate::kernel::build::Tile;
use crate::lower::{Cx, LowerError, Lowering, Request, View};
use crate::op::{OpDef, TypeError, op};
use crate::types::{TensorType, Type};
use crate::vjp::NoGradient;
use crate::vjp::{Shares, Vjp};

op! {
    /// `exp(x)` divided by its sum along the last axis, computed so that nothing overflows.
    "softmax" => Softmax(x) {}
}

/// The softmax of a row.
pub(super) fn of_row(row: &[f64]) -> Vec<f64> {
    let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exp: Vec<f64> = row.iter().map(|x| (x - max).exp()).collect();
    let sum: f64 = exp.iter().sum();
    exp.iter().map(|e| e / sum).collect()
}

/// The softmax of the columns of `x` that count.
pub(super) fn of_tile<'k>(x: Tile<'k>, counted: Option<Tile<'k>>) -> Tile<'k> {
    let exp = keep(counted, (x - keep(counted, x, f64::NEG_INFINITY).max_along(1)).exp(), 0.0);
    keep(counted, exp * exp.sum_along(1).recip(), 0.0)
}

/// The largest element of a row, and the sum of `exp(x - largest)`. `row` gives the block from a column on.
pub(super) fn max_and_sum<'k>(
    cx: &Cx<'k>,
    walk: &Walk<'k>,
    row: &dyn Fn(Tile<'k>) -> Result<Tile<'k>, LowerError>,
) -> Result<[Tile<'k>; 2], LowerError> {
    let [max] = walk.fold([cx.k.float(f64::NEG_INFINITY)], |first, counted, [max]| {
        Ok([max.max(keep(counted, row(first)?, f64::NEG_INFINITY).max_along(1))])
    })?;
    let [sum] = walk.fold([cx.k.float(0.0)], |first, counted, [sum]| {
        Ok([sum + keep(counted, (row(first)? - max).exp(), 0.0).sum_along(1)])
    })?;
    Ok([max, sum])
}

/// Emits the softmax of row `index` of `x` over the columns before `end` (all, if there is none), and 0 beyond.
pub(super) fn kernel<'k>(
    cx: &Cx<'k>,
    x: &View<'k>,
    index: &[Tile<'k>],
    walk: &Walk<'k>,
    end: Option<Tile<'k>>,
) -> Result<(), LowerError> {
    let at = |first| Request::row(index, first, walk.cols);
    let seen = end.map_or(*walk, |end| walk.until(end));
    if walk.whole {
        let first = cx.k.int(0);
        return cx.emit(&at(first), of_tile(x.at(&at(first))?, seen.counted(first)));
    }
    let [max, sum] = max_and_sum(cx, &seen, &|first| x.at(&at(first)))?;
    let scale = sum.recip();
    walk.fold([], |first, _, []| {
        let weights = (x.at(&at(first))? - max).exp() * scale;
        let counted = end.and_then(|_| seen.counted(first));
        cx.emit(&at(first), keep(counted, weights, 0.0))?;
        Ok([])
    })?;
    Ok(())
}

/// `y·(g - Σ y·g)`: what a softmax `y` makes of its gradient.
pub(super) fn gradient(cx: &mut Vjp<'_>, y: Value, g: Value) -> Result<Value, NoGradient> {
    let axis = cx.ty(y).rank() as i64 - 1;
    let both = cx.mul(y, g)?;
    let total = cx.op(Sum { axis }, &[both])?;
    let rest = cx.sub(g, total)?;
    cx.mul(y, rest)
}

impl OpDef for Softmax {
    fn infer(&self, args: &[&TensorType]) -> Result<Type, TypeError> {
        super::pointwise::float("softmax", args[0])?;
        if args[0].rank() == 0 {
            return Err(TypeError::new(format!(
                "`softmax` runs along the last axis, but {} has none",
                args[0]
            ))
            .at(0));
        }
        Ok(args[0].clone().into())
    }

    fn eval(&self, _: &Sizes, args: &[&Array]) -> Vec<Array> {
        vec![Array::new(&args[0].shape, args[0].rows().flat_map(of_row).collect())]
    }

    /// `dx = y·(g - Σ y·g)`, row by row.
    fn vjp(&self, cx: &mut Vjp<'_>) -> Shares {
        let (g, y) = (cx.grad(), cx.out());
        Ok(vec![Some(gradient(cx, y, g)?)])
    }

    fn lowering(&self) -> Lowering {
        Lowering::Kernel
    }

    /// One program a row; one that is long, or whose length is not fixed, goes block by block, three times over.
    fn kernel<'k>(&self, cx: &Cx<'k>, args: &[View<'k>]) -> Result<(), LowerError> {
        let (last, leading) = args[0].ty.shape.split_last().expect("the type rule asks for an axis");
        let index = cx.programs(leading);
        kernel(cx, &args[0], &index, &Walk::over(cx, last), None)
    }
}
