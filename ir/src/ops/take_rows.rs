//! `take_rows`: neighbouring tokens of each sequence.

use super::{check, rows};
use crate::dim::Dim;
use crate::eval::{Array, Sizes};
use crate::graph::Value;
use crate::kernel::build::Tile;
use crate::lower::{Coord, Cx, LowerError, Lowering, Request, View};
use crate::op::{OpDef, TypeError, op};
use crate::poly::Amount;
use crate::types::{TensorType, Type};
use crate::vjp::{NoGradient, Shares, Vjp};

op! {
    /// `[b, new, …]`: row `start[i] + j` of axis 1 of `x[b, t, …]` for each sequence `i`; zeros for a row that is not in
    /// `0 .. t`. From `-start` on it is the transposition: rows in their place among zeros.
    "take_rows" => TakeRows(x, start) {
        /// The number of rows.
        new: Dim,
    }
}

impl OpDef for TakeRows {
    fn infer(&self, args: &[&TensorType]) -> Result<Type, TypeError> {
        let [x, start] = args else { unreachable!("operands were counted") };
        check::unscaled("take_rows", "input", x, 0)?;
        check::axes("input", "[b, t, ...]", x, 0, true)?;
        check::ints("take_rows", "start", start, 1)?;
        check::axes("start", "[b]", start, 1, false)?;
        check::extent(&start.shape[0], &x.shape[0], 1, "the batch of the input")?;
        let mut ty = (*x).clone();
        ty.shape[1] = self.new.clone();
        Ok(ty.into())
    }

    fn eval(&self, sizes: &Sizes, args: &[&Array]) -> Vec<Array> {
        let [x, start] = args else { unreachable!("operands were counted") };
        let mut shape = x.shape.clone();
        shape[1] = sizes.of(&self.new);
        vec![Array::from_fn(&shape, |index| {
            let row = index[1] as f64 + start.data[index[0]];
            if row < 0.0 || row >= x.shape[1] as f64 {
                return 0.0;
            }
            let mut index = index.to_vec();
            index[1] = row as usize;
            x.at(&index)
        })]
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> Shares {
        let [x, start] = cx.args();
        let (g, tokens) = (cx.grad(), cx.ty(x).shape[1].clone());
        Ok(vec![Some(put_rows(cx, g, start, tokens)?), None])
    }

    fn lowering(&self) -> Lowering {
        Lowering::View
    }

    fn flops<N: Amount>(&self, _: &[&TensorType], _: &Type, _: &dyn Fn(&TensorType) -> N) -> N {
        N::from(0.0)
    }

    fn tile<'k>(&self, cx: &Cx<'k>, args: &[View<'k>], at: &Request<'k>) -> Result<Tile<'k>, LowerError> {
        let [x, start] = args else { unreachable!("operands were counted") };
        let batch = rows::single(at.coords[0], "take_rows")?;
        let start = start.at(&Request::element(&[batch]))?;
        let mut coords = at.coords.clone();
        coords[0] = Coord::At(batch);
        coords[1] = coords[1].shift(start);
        let index = rows::indices(cx, coords[1], at);
        let inside = cx.k.int(0).le(index).and(index.lt(cx.extent(&x.ty.shape[1])));
        let taken = x.at(&at.with_coords(coords))?;
        Ok(inside.select(taken, zero_of(taken)))
    }
}

/// `[b, tokens, …]`: zeros, but rows `start[i] + j` of axis 1 are `new[i, j, …]`.
pub(super) fn put_rows(cx: &mut Vjp<'_>, new: Value, start: Value, tokens: Dim) -> Result<Value, NoGradient> {
    let ty = cx.ty(start);
    let zero = cx.full(0.0, &ty)?;
    let back = cx.sub(zero, start)?;
    cx.op(TakeRows { new: tokens }, &[new, back])
}

/// Zero, of the elements that `x` has.
fn zero_of(x: Tile<'_>) -> Tile<'_> {
    if x.ty().elem == crate::kernel::Elem::I64 { x.build().int(0) } else { x.build().float(0.0) }
}
