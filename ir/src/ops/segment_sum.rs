//! `segment_sum`: rows that belong together, added up.

use super::{check, rows};
use crate::eval::{Array, Sizes};
use crate::lower::{Cx, LowerError, Lowering, Request, View};
use crate::op::{OpDef, TypeError, op};
use crate::poly::Amount;
use crate::types::{TensorType, Type};

op! {
    /// Row `r` is the sum of `x[order[i]]` over `offsets[r] <= i < offsets[r + 1]`, with the order and the offsets of
    /// `sort_by_expert`: a scatter that adds, in an order that is always the same.
    "segment_sum" => SegmentSum(x, order, offsets) {}
}

impl OpDef for SegmentSum {
    fn infer(&self, args: &[&TensorType]) -> Result<Type, TypeError> {
        let [x, order, offsets] = args else { unreachable!("operands were counted") };
        super::pointwise::float("segment_sum", x)?;
        check::axes("input", "[n, m]", x, 0, false)?;
        check::ints("segment_sum", "order", order, 1)?;
        check::axes("order", "[n]", order, 1, false)?;
        check::extent(&order.shape[0], &x.shape[0], 1, "the number of rows")?;
        check::ints("segment_sum", "offsets", offsets, 2)?;
        check::axes("offsets", "[r+1]", offsets, 2, false)?;
        Ok(x.with_shape([&offsets.shape[0] - &1.into(), x.shape[1].clone()]).into())
    }

    fn eval(&self, _: &Sizes, args: &[&Array]) -> Vec<Array> {
        let [x, order, offsets] = args else { unreachable!("operands were counted") };
        vec![Array::from_fn(&[offsets.shape[0] - 1, x.shape[1]], |at| {
            let [first, end] = [0, 1].map(|i| offsets.data[at[0] + i].max(0.0) as usize);
            let items = (first..end).filter_map(|i| rows::row_of(x, *order.data.get(i)?));
            items.map(|row| row[at[1]]).sum()
        })]
    }

    fn lowering(&self) -> Lowering {
        Lowering::Kernel
    }

    /// One program for a row and a block of columns.
    fn kernel<'k>(&self, cx: &Cx<'k>, args: &[View<'k>]) -> Result<(), LowerError> {
        let [x, order, offsets] = args else { unreachable!("operands were counted") };
        let cols = cx.size(&x.ty.shape[1]).unwrap_or(usize::MAX).clamp(1, cx.schedule.block);
        let row = cx.program(&(&offsets.ty.shape[0] - &1.into()));
        let column = cx.program_tile(&x.ty.shape[1], cols);
        let first = offsets.at(&Request::element(&[row]))?;
        let end = offsets.at(&Request::element(&[row + 1]))?;
        let trips = (end - first).max(cx.k.int(0));
        let [sum] = rows::try_fold(trips, [cx.k.full([1, cols], 0.0)], |i, [sum]| {
            let item = order.at(&Request::element(&[first + i]))?;
            Ok([sum + x.at(&Request::row(&[item], column, cols))?])
        })?;
        cx.emit(&Request::row(&[row], column, cols), sum)
    }

    fn flops<N: Amount>(&self, args: &[&TensorType], _: &Type, size: &dyn Fn(&TensorType) -> N) -> N {
        size(args[0])
    }
}
