//! `take_row`: one token of each sequence.

use super::take_rows::put_rows;
use super::{check, rows};
use crate::eval::{Array, Sizes};
use crate::kernel::build::Tile;
use crate::lower::{Coord, Cx, LowerError, Lowering, Request, View};
use crate::op::{OpDef, TypeError, op};
use crate::poly::Amount;
use crate::types::{TensorType, Type};
use crate::vjp::{Shares, Vjp};

op! {
    /// `x[i, at[i], …]` for each `i`: one token of each sequence; zeros where `at[i]` is not in `0 .. s`.
    "take_row" => TakeRow(x, at) {}
}

impl OpDef for TakeRow {
    fn infer(&self, args: &[&TensorType]) -> Result<Type, TypeError> {
        let [x, at] = args else { unreachable!("operands were counted") };
        check::unscaled("take_row", "input", x, 0)?;
        check::axes("input", "[b, s, m, ...]", x, 0, true)?;
        check::ints("take_row", "places", at, 1)?;
        check::axes("places", "[b]", at, 1, false)?;
        check::extent(&at.shape[0], &x.shape[0], 1, "the batch of the input")?;
        Ok(x.with_shape([&x.shape[..1], &x.shape[2..]].concat()).into())
    }

    fn eval(&self, _: &Sizes, args: &[&Array]) -> Vec<Array> {
        let [x, at] = args else { unreachable!("operands were counted") };
        let shape = [&x.shape[..1], &x.shape[2..]].concat();
        vec![Array::from_fn(&shape, |index| {
            let row = at.data[index[0]];
            if row < 0.0 || row >= x.shape[1] as f64 {
                return 0.0;
            }
            x.at(&[&[index[0], row as usize], &index[1..]].concat())
        })]
    }

    /// The gradient as the row of its sequence, among zeros.
    fn vjp(&self, cx: &mut Vjp<'_>) -> Shares {
        let [x, at] = cx.args();
        let (g, ty) = (cx.grad(), cx.ty(x));
        let mut one = ty.clone();
        one.shape[1] = 1.into();
        let g = cx.reshape(g, &one.shape)?;
        Ok(vec![Some(put_rows(cx, g, at, ty.shape[1].clone())?), None])
    }

    fn lowering(&self) -> Lowering {
        Lowering::View
    }

    fn flops<N: Amount>(&self, _: &[&TensorType], _: &Type, _: &dyn Fn(&TensorType) -> N) -> N {
        N::from(0.0)
    }

    fn tile<'k>(&self, _: &Cx<'k>, args: &[View<'k>], at: &Request<'k>) -> Result<Tile<'k>, LowerError> {
        let [x, places] = args else { unreachable!("operands were counted") };
        let batch = rows::single(at.coords[0], "take_row")?;
        let row = places.at(&Request::element(&[batch]))?;
        let coords = [&[Coord::At(batch), Coord::At(row)], &at.coords[1..]].concat();
        x.at(&at.with_coords(coords))
    }
}
