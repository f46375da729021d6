//! `quantize_stats`: what quantizing did to each row.

use super::check;
use super::rows::{Walk, keep};
use crate::dim::Dim;
use crate::eval::{Array, Sizes};
use crate::kernel::build::Tile;
use crate::lower::{Coord, Cx, LowerError, Lowering, Request, View};
use crate::op::{OpDef, TypeError, op};
use crate::types::{DType, TensorType, Type};

op! {
    /// How `rounded` differs from `x`, for each row along the last axis: six numbers, [`PARTS`].
    ///
    /// They are the largest magnitude (NaN aside); how many elements are not zero; how many of those are zero in
    /// `rounded`; how many have a magnitude above `limit`; the sum of `(x - rounded)²`, and that of `x²`. Sums and counts of
    /// rows add up to those of the tensor.
    "quantize_stats" => QuantizeStats(x, rounded, limit) {}
}

/// How many numbers a row has: `amax`, `nonzero`, `underflow`, `saturated`, `error` and `square`, in this order.
pub const PARTS: usize = 6;

impl OpDef for QuantizeStats {
    fn infer(&self, args: &[&TensorType]) -> Result<Type, TypeError> {
        let [x, rounded, limit] = args else { unreachable!("operands were counted") };
        super::pointwise::float("quantize_stats", x)?;
        if x.shape.is_empty() {
            return Err(TypeError::new(format!("`quantize_stats` takes rows, not {x}")).at(0));
        }
        if x != rounded {
            return Err(TypeError::new(format!("the rounded numbers {rounded} are not like {x}")).at(1));
        }
        check::f32s("quantize_stats", "limit", limit, 2)?;
        if limit.rank() != 0 {
            return Err(TypeError::new(format!("the limit is {limit}, not one number")).at(2));
        }
        let shape = x.shape[..x.rank() - 1].iter().cloned().chain([Dim::from(PARTS as i64)]);
        Ok(TensorType::new(DType::F32, shape).into())
    }

    fn eval(&self, _: &Sizes, args: &[&Array]) -> Vec<Array> {
        let [x, rounded, limit] = args else { unreachable!("operands were counted") };
        let limit = limit.data[0];
        let row = |(x, y): (&[f64], &[f64])| -> [f64; PARTS] {
            let mut parts = [0.0; PARTS];
            for (x, y) in x.iter().zip(y) {
                let counts = [x.abs() > 0.0, x.abs() > 0.0 && *y == 0.0, x.abs() > limit];
                parts[0] = x.abs().max(parts[0]);
                parts[1..4].iter_mut().zip(counts).for_each(|(part, counts)| *part += f64::from(counts));
                parts[4] += (x - y) * (x - y);
                parts[5] += x * x;
            }
            parts
        };
        let mut shape = x.shape.clone();
        let width = std::mem::replace(shape.last_mut().expect("the type rule asks for an axis"), PARTS);
        let data = match width {
            0 => vec![0.0; shape.iter().product()],
            _ => x.rows().zip(rounded.rows()).flat_map(row).collect(),
        };
        vec![Array::new(&shape, data)]
    }

    fn lowering(&self) -> Lowering {
        Lowering::Kernel
    }

    /// One program a row.
    fn kernel<'k>(&self, cx: &Cx<'k>, args: &[View<'k>]) -> Result<(), LowerError> {
        let [x, rounded, limit] = args else { unreachable!("operands were counted") };
        let (last, leading) = x.ty.shape.split_last().expect("the type rule asks for an axis");
        let index = cx.programs(leading);
        let limit = limit.at(&Request::element(&[]))?;
        let walk = Walk::over(cx, last);
        let (zero, one) = (cx.k.float(0.0), cx.k.float(1.0));
        let parts =
            walk.fold([zero; PARTS], |first, counted, [amax, nonzero, under, over, error, square]| {
                let at = Request::row(&index, first, walk.cols);
                let (x, y) = (x.at(&at)?, rounded.at(&at)?);
                let size = zero.max(x.max(-x));
                let not_zero = zero.lt(size);
                let sum = |x: Tile<'k>| keep(counted, x, 0.0).sum_along(1);
                let count = |holds: Tile<'k>| sum(holds.select(one, zero));
                let off = x - y;
                Ok([
                    amax.max(keep(counted, size, 0.0).max_along(1)),
                    nonzero + count(not_zero),
                    under + count(not_zero.and(y.equals(zero))),
                    over + count(limit.lt(size)),
                    error + sum(off * off),
                    square + sum(x * x),
                ])
            })?;
        for (i, part) in parts.into_iter().enumerate() {
            let mut at = Request::element(&index);
            at.coords.push(Coord::At(cx.k.int(i as i64)));
            cx.emit(&at, part)?;
        }
        Ok(())
    }
}
