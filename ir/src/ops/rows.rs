//! What ops on rows share.

use crate::dim::Dim;
use crate::eval::Array;
use crate::kernel::build::Tile;
use crate::lower::{Coord, Cx, LowerError, Request};

/// Row `i` of a matrix, if there is one.
pub fn row_of(x: &Array, i: f64) -> Option<&[f64]> {
    if i < 0.0 { None } else { x.rows().nth(i as usize) }
}

/// The index of a coordinate that an op needs as a single number.
pub fn single<'k>(coord: Coord<'k>, op: &str) -> Result<Tile<'k>, LowerError> {
    match coord {
        Coord::At(i) => Ok(i),
        _ => Err(LowerError::new(format!("`{op}` is computed row by row"))),
    }
}

/// The index along an axis of each element of a tile: one number, or one for each row or column.
pub fn indices<'k>(cx: &Cx<'k>, coord: Coord<'k>, at: &Request<'k>) -> Tile<'k> {
    match coord {
        Coord::At(i) => i,
        Coord::Rows(i) => cx.k.iota(0, at.rows) + i,
        Coord::Cols(i) => cx.k.iota(1, at.cols) + i,
    }
}

/// A row, walked over block by block; a single block if it is short and its length is fixed.
#[derive(Clone, Copy)]
pub struct Walk<'k> {
    /// The columns of a block.
    pub cols: usize,
    /// Whether there is a single block.
    pub whole: bool,
    /// Where the walk ends, and whether a block may reach beyond.
    end: Tile<'k>,
    ragged: bool,
}

impl<'k> Walk<'k> {
    /// Over an axis of this extent.
    pub fn over(cx: &Cx<'k>, extent: &Dim) -> Self {
        let end = cx.extent(extent);
        match cx.size(extent) {
            Some(n) if n <= cx.schedule.row => Self { cols: n.max(1), whole: true, end, ragged: n == 0 },
            n => {
                let cols = cx.schedule.block;
                Self { cols, whole: false, end, ragged: n.is_none_or(|n| n % cols != 0) }
            }
        }
    }

    /// The same blocks, but only as far as `end`, which is not beyond the axis.
    pub fn until(&self, end: Tile<'k>) -> Self {
        Self { end, ragged: true, ..*self }
    }

    /// Which columns of the block from `first` on count, if not all.
    pub fn counted(&self, first: Tile<'k>) -> Option<Tile<'k>> {
        self.ragged.then(|| (first.build().iota(1, self.cols) + first).lt(self.end))
    }

    /// Runs `body` on each block, given its first column, which of its columns count (if not all), and what is carried.
    pub fn fold<const N: usize>(
        &self,
        init: [Tile<'k>; N],
        body: impl FnOnce(Tile<'k>, Option<Tile<'k>>, [Tile<'k>; N]) -> Result<[Tile<'k>; N], LowerError>,
    ) -> Result<[Tile<'k>; N], LowerError> {
        let k = self.end.build();
        if self.whole {
            let first = k.int(0);
            return body(first, self.counted(first), init);
        }
        try_fold(self.end.div_ceil(self.cols as i64), init, |i, carried| {
            let first = i * self.cols as i64;
            body(first, self.counted(first), carried)
        })
    }
}

/// [`crate::kernel::build::Build::fold`] with a body that may fail.
pub fn try_fold<'k, const N: usize>(
    trips: Tile<'k>,
    init: [Tile<'k>; N],
    body: impl FnOnce(Tile<'k>, [Tile<'k>; N]) -> Result<[Tile<'k>; N], LowerError>,
) -> Result<[Tile<'k>; N], LowerError> {
    let mut error = None;
    let out = trips.build().fold(trips, init, |i, carried| {
        body(i, carried).unwrap_or_else(|e| {
            error = Some(e);
            carried
        })
    });
    error.map_or(Ok(out), Err)
}

/// `x` where `counted` holds (everywhere, if there is none), else `other`.
pub fn keep<'k>(counted: Option<Tile<'k>>, x: Tile<'k>, other: f64) -> Tile<'k> {
    counted.map_or(x, |counted| counted.select(x, x.build().float(other)))
}
