//! `embedding`: rows of a table.

use super::{check, rows};
use super::{get::Get, segment_sum::SegmentSum, sort_by_expert::SortByExpert};
use crate::dim::Dim;
use crate::eval::{Array, Sizes};
use crate::kernel::build::Tile;
use crate::lower::{Coord, Cx, LowerError, Lowering, Request, View};
use crate::op::{OpDef, TypeError, op};
use crate::poly::Amount;
use crate::types::{TensorType, Type};
use crate::vjp::{Shares, Vjp};

op! {
    /// The row of `table[w, m]` that each of `ids` names; zeros for an id that is not in `0 .. w`.
    "embedding" => Embedding(table, ids) {}
}

impl OpDef for Embedding {
    fn infer(&self, args: &[&TensorType]) -> Result<Type, TypeError> {
        let [table, ids] = args else { unreachable!("operands were counted") };
        check::unscaled("embedding", "table", table, 0)?;
        check::axes("table", "[w, m]", table, 0, false)?;
        check::ints("embedding", "ids", ids, 1)?;
        Ok(table.with_shape(ids.shape.iter().chain([&table.shape[1]]).cloned()).into())
    }

    fn eval(&self, _: &Sizes, args: &[&Array]) -> Vec<Array> {
        let [table, ids] = args else { unreachable!("operands were counted") };
        let shape = [ids.shape.as_slice(), &[table.shape[1]]].concat();
        vec![Array::from_fn(&shape, |index| {
            let (&column, index) = index.split_last().expect("the table has columns");
            rows::row_of(table, ids.at(index)).map_or(0.0, |row| row[column])
        })]
    }

    /// The rows that came from one row of the table, added up: sorted by their ids, so that nothing is added in an order
    /// that chance decides.
    fn vjp(&self, cx: &mut Vjp<'_>) -> Shares {
        let [table, ids] = cx.args();
        let ([w, m], items) = ([0, 1].map(|i| cx.ty(table).shape[i].clone()), cx.ty(ids).elements());
        let g = cx.grad();
        let rows = cx.reshape(g, &[items.clone(), m])?;
        let ids = cx.reshape(ids, &[items, Dim::from(1)])?;
        // Ids that name no row come before the first or after the last.
        let sorted = cx.op(SortByExpert { experts: w }, &[ids])?;
        let [order, offsets] = [0, 2].map(|index| cx.op(Get { index }, &[sorted]));
        Ok(vec![Some(cx.op(SegmentSum {}, &[rows, order?, offsets?])?), None])
    }

    fn lowering(&self) -> Lowering {
        Lowering::View
    }

    fn flops<N: Amount>(&self, _: &[&TensorType], _: &Type, _: &dyn Fn(&TensorType) -> N) -> N {
        N::from(0.0)
    }

    fn tile<'k>(&self, _: &Cx<'k>, args: &[View<'k>], at: &Request<'k>) -> Result<Tile<'k>, LowerError> {
        let [table, ids] = args else { unreachable!("operands were counted") };
        let (&column, index) = at.coords.split_last().expect("the table has columns");
        let index: Result<Vec<_>, _> = index.iter().map(|&i| rows::single(i, "embedding")).collect();
        let id = ids.at(&Request::element(&index?))?;
        table.at(&at.with_coords(vec![Coord::At(id), column]))
    }
}
