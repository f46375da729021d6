//! `rope`: rotary position embedding.

use super::check::{self, Pairs};
use super::rope_transpose::RopeTranspose;
use super::rows;
use crate::attr::Word;
use crate::eval::{Array, Sizes};
use crate::kernel::ColumnOrder;
use crate::kernel::build::Tile;
use crate::lower::{Coord, Cx, LowerError, Lowering, Request, View};
use crate::op::{OpDef, TypeError, op};
use crate::types::{TensorType, Type};
use crate::vjp::{Shares, Vjp};

op! {
    /// Rotary position embedding (Su et al. 2021): every pair of columns turned by its token's angle.
    ///
    /// `x[b, s, …, p]` times the cosine row of `table[b, s, 2, p]` plus `x` with partners swapped times the sine row.
    "rope" => Rope(x, table) {
        /// How columns are paired: `interleaved` or `halves`.
        pairs: Word,
    }
}

impl OpDef for Rope {
    fn infer(&self, args: &[&TensorType]) -> Result<Type, TypeError> {
        let [x, table] = args else { unreachable!("operands were counted") };
        Pairs::named(&self.pairs)?;
        super::pointwise::float("rope", x)?;
        check::axes("input", "[b, s, ..., p]", x, 0, true)?;
        check::f32s("rope", "table", table, 1)?;
        check::axes("table", "[b, s, 2, p]", table, 1, false)?;
        check::extent(&table.shape[0], &x.shape[0], 1, "the batch of the input")?;
        check::extent(&table.shape[1], &x.shape[1], 1, "the number of tokens of the input")?;
        check::extent(&table.shape[2], &2.into(), 1, "the number of rows for a token (cosines, sines)")?;
        let width = &x.shape[x.rank() - 1];
        check::extent(&table.shape[3], width, 1, "the last axis of the input")?;
        check::even(width)?;
        Ok((*x).clone().into())
    }

    fn eval(&self, _: &Sizes, args: &[&Array]) -> Vec<Array> {
        vec![turned(&self.pairs, false, args)]
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> Shares {
        let [_, table] = cx.args();
        let (g, pairs) = (cx.grad(), self.pairs.clone());
        let of_table = cx.without(1, "rope", "table")?;
        Ok(vec![Some(cx.op(RopeTranspose { pairs }, &[g, table])?), of_table])
    }

    fn lowering(&self) -> Lowering {
        Lowering::View
    }

    fn whole_rows(&self) -> bool {
        true
    }

    fn tile<'k>(&self, cx: &Cx<'k>, args: &[View<'k>], at: &Request<'k>) -> Result<Tile<'k>, LowerError> {
        turn(&self.pairs, false, cx, args, at)
    }
}

/// A rotation, or its transposition: there partners are exchanged of what their sines make of them.
pub(super) fn turned(pairs: &Word, transposed: bool, args: &[&Array]) -> Array {
    let [x, table] = args else { unreachable!("operands were counted") };
    let pairs = Pairs::named(pairs).expect("the type rule has checked it");
    Array::from_fn(&x.shape, |index| {
        let last = index.len() - 1;
        let mut partner = index.to_vec();
        partner[last] = pairs.partner(index[last], x.shape[last]);
        let turn = |at: &[usize], row: usize| table.at(&[at[0], at[1], row, at[last]]);
        let sine = turn(if transposed { &partner } else { index }, 1);
        x.at(index) * turn(index, 0) + x.at(&partner) * sine
    })
}

/// The tile of a rotation, or of its transposition.
pub(super) fn turn<'k>(
    pairs: &Word,
    transposed: bool,
    cx: &Cx<'k>,
    args: &[View<'k>],
    at: &Request<'k>,
) -> Result<Tile<'k>, LowerError> {
    let [x, table] = args else { unreachable!("operands were counted") };
    let pairs = Pairs::named(pairs).map_err(|e| LowerError::new(e.message))?;
    let (axis, width) = (x.ty.rank() - 1, &x.ty.shape[x.ty.rank() - 1]);
    let column = at.coords[axis];
    let turn = |row: i64, at: &Request<'k>| {
        let coords = vec![at.coords[0], at.coords[1], Coord::At(cx.k.int(row)), at.coords[axis]];
        table.at(&at.with_coords(coords))
    };
    // What partners are exchanged of: the numbers, or in the transposition what their sines make of them.
    let swapped = |at: &Request<'k>| -> Result<Tile<'k>, LowerError> {
        let x = x.at(at)?;
        Ok(if transposed { x * turn(1, at)? } else { x })
    };
    let whole = matches!(column, Coord::Cols(first) if first.as_int() == Some(0));
    let partner = if whole && cx.size(width) == Some(at.cols) {
        let order = match pairs {
            Pairs::Interleaved => ColumnOrder::SwapPairs,
            Pairs::Halves => ColumnOrder::SwapHalves,
        };
        swapped(at)?.columns(order)
    } else {
        // A part of the columns: their partners are elsewhere, before or behind.
        let index = rows::indices(cx, column, at);
        let (first, by) = match pairs {
            Pairs::Interleaved => ((index % 2).equals(cx.k.int(0)), cx.k.int(1)),
            Pairs::Halves => {
                let half = cx.extent(width) / 2;
                (index.lt(half), half)
            }
        };
        let shifted = |by: Tile<'k>| {
            let mut coords = at.coords.clone();
            coords[axis] = column.shift(by);
            swapped(&at.with_coords(coords))
        };
        first.select(shifted(by)?, shifted(cx.k.int(0) - by)?)
    };
    let partner = if transposed { partner } else { partner * turn(1, at)? };
    Ok(x.at(at)? * turn(0, at)? + partner)
}
