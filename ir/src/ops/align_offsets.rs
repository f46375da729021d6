//! `align_offsets`: where experts' rows begin when each has whole blocks of them.

use super::check;
use crate::dim::Dim;
use crate::eval::{Array, Sizes};
use crate::kernel::Elem;
use crate::kernel::build::Tile;
use crate::lower::{Cx, LowerError, Lowering, Request, View};
use crate::op::{OpDef, TypeError, op};
use crate::ops::rows::try_fold;
use crate::types::{TensorType, Type};

op! {
    /// Where the rows of each expert begin if those of every expert before it fill whole blocks of `rows`: entry `i` is
    /// `Σ ⌈(offsets[j + 1] - offsets[j]) / rows⌉ · rows` over `j < i`.
    "align_offsets" => AlignOffsets(offsets) {
        /// How many rows a block has; positive.
        rows: i64,
    }
}

impl OpDef for AlignOffsets {
    fn infer(&self, args: &[&TensorType]) -> Result<Type, TypeError> {
        check::offsets("offsets", args[0], 0)?;
        if self.rows < 1 || u32::try_from(self.rows).is_err() {
            return Err(TypeError::new(format!("`rows` is {}, but should be positive", self.rows)));
        }
        Ok(args[0].clone().into())
    }

    fn eval(&self, _: &Sizes, args: &[&Array]) -> Vec<Array> {
        let (rows, mut start) = (self.rows as f64, 0.0);
        let mut starts = vec![0.0];
        for pair in args[0].data.windows(2) {
            start += ((pair[1] - pair[0]) / rows).ceil() * rows;
            starts.push(start);
        }
        vec![Array::new(&args[0].shape, starts)]
    }

    fn lowering(&self) -> Lowering {
        Lowering::Kernel
    }

    /// A program for each expert, and one for the end: it adds up the blocks of those before.
    fn kernel<'k>(&self, cx: &Cx<'k>, args: &[View<'k>]) -> Result<(), LowerError> {
        let (at, start) = start(cx, &args[0], self.rows)?;
        cx.emit(&at, start)
    }
}

/// The entry of this program, and what it is where a block has `rows` rows.
pub fn start<'k>(cx: &Cx<'k>, offsets: &View<'k>, rows: i64) -> Result<(Request<'k>, Tile<'k>), LowerError> {
    let all = &offsets.ty.shape[0];
    let cols = cx.size(all).unwrap_or(usize::MAX).clamp(1, cx.schedule.block);
    let me = cx.program(all);
    let zero = cx.k.int(0);
    let [blocks] = try_fold(me.div_ceil(cols as i64), [zero], |i, [blocks]| {
        let first = i * cols as i64;
        let from = offsets.at(&Request::row(&[], first, cols))?;
        let to = offsets.at(&Request::row(&[], first + 1i64, cols))?;
        let before = (cx.k.iota(1, cols) + first).lt(me);
        let own = before.select((to - from).div_ceil(rows), zero);
        Ok([blocks + own.cast(Elem::I64).sum_along(1)])
    })?;
    Ok((Request::element(&[me]), blocks * rows))
}

/// How many rows there is room for, whatever experts they belong to: `rows` and, for each expert, a block less one, and one
/// more so that they are blocks.
pub fn room(rows: &Dim, offsets: &Dim, block: i64) -> Dim {
    rows + &(&(offsets - 1) * &Dim::from(block))
}
