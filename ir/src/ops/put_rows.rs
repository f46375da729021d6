//! `put_rows`: tokens in their place among zeros.

use super::take_rows::{TakeRows, zero_of};
use super::{check, rows};
use crate::dim::Dim;
use crate::eval::{Array, Sizes};
use crate::kernel::build::Tile;
use crate::lower::{Coord, Cx, LowerError, Lowering, Request, View};
use crate::op::{OpDef, TypeError, op};
use crate::poly::Amount;
use crate::types::{TensorType, Type};
use crate::vjp::{Shares, Vjp};

op! {
    /// `[b, tokens, …]`: zeros, with row `start[i] + j` of axis 1 of sequence `i` replaced by `new[i, j, …]`; rows that
    /// would lie outside are dropped. The transposition of `take_rows`.
    "put_rows" => PutRows(new, start) {
        /// The number of rows of the result.
        tokens: Dim,
    }
}

impl OpDef for PutRows {
    fn infer(&self, args: &[&TensorType]) -> Result<Type, TypeError> {
        let [new, start] = args else { unreachable!("operands were counted") };
        check::unscaled("put_rows", "rows", new, 0)?;
        check::axes("rows", "[b, s, ...]", new, 0, true)?;
        check::ints("put_rows", "start", start, 1)?;
        check::axes("start", "[b]", start, 1, false)?;
        check::extent(&start.shape[0], &new.shape[0], 1, "the batch of the rows")?;
        let mut ty = (*new).clone();
        ty.shape[1] = self.tokens.clone();
        Ok(ty.into())
    }

    fn eval(&self, sizes: &Sizes, args: &[&Array]) -> Vec<Array> {
        let [new, start] = args else { unreachable!("operands were counted") };
        let mut shape = new.shape.clone();
        shape[1] = sizes.of(&self.tokens);
        vec![Array::from_fn(&shape, |index| {
            let row = index[1] as f64 - start.data[index[0]];
            if row < 0.0 || row >= new.shape[1] as f64 {
                return 0.0;
            }
            let mut index = index.to_vec();
            index[1] = row as usize;
            new.at(&index)
        })]
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> Shares {
        let [new, start] = cx.args();
        let (g, rows) = (cx.grad(), cx.ty(new).shape[1].clone());
        Ok(vec![Some(cx.op(TakeRows { new: rows }, &[g, start])?), None])
    }

    fn lowering(&self) -> Lowering {
        Lowering::View
    }

    fn flops<N: Amount>(&self, _: &[&TensorType], _: &Type, _: &dyn Fn(&TensorType) -> N) -> N {
        N::from(0.0)
    }

    fn tile<'k>(&self, cx: &Cx<'k>, args: &[View<'k>], at: &Request<'k>) -> Result<Tile<'k>, LowerError> {
        let [new, start] = args else { unreachable!("operands were counted") };
        let batch = rows::single(at.coords[0], "put_rows")?;
        let start = start.at(&Request::element(&[batch]))?;
        let mut coords = at.coords.clone();
        coords[0] = Coord::At(batch);
        coords[1] = coords[1].shift(cx.k.int(0) - start);
        let index = rows::indices(cx, coords[1], at);
        let inside = cx.k.int(0).le(index).and(index.lt(cx.extent(&new.ty.shape[1])));
        let row = new.at(&at.with_coords(coords))?;
        Ok(inside.select(row, zero_of(row)))
    }
}
