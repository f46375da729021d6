//! `embedding`: rows of a table.

use super::{check, rows};
use crate::eval::{Array, Sizes};
use crate::kernel::build::Tile;
use crate::lower::{Coord, Cx, LowerError, Lowering, Request, View};
use crate::op::{OpDef, TypeError, op};
use crate::poly::Amount;
use crate::types::{TensorType, Type};

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
