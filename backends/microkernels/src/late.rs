//! Scales that are applied to sums over blocks of k, and not to their terms.

use crate::scales::{Run, Scaling};
use crate::vector::{Vector, lane_sums};

/// Scales of both operands where they are constant over the same blocks of k.
///
/// Products of codes are short numbers, of which sums lose next to nothing; so a block is summed before it is scaled, as
/// tensor cores do it.
#[derive(Clone, Copy)]
pub(crate) struct Late {
    pub a: Scaling,
    pub b: Scaling,
    /// The blocks along k.
    pub steps: Run,
}

impl Late {
    /// The scales of two operands; none if they change at other places.
    pub fn new(a: Scaling, b: Scaling) -> Option<Late> {
        let steps = Run::common(a.steps, b.steps)?;
        Some(Late { a, b, steps })
    }

    /// Those from row `i`, column `j` and term `k` on.
    pub fn from(self, i: usize, j: usize, k: usize) -> Late {
        Late { a: self.a.from(i, k), b: self.b.from(j, k), steps: self.steps.from(k).0 }
    }
}

/// Sums of a tile that are scaled block by block.
pub(crate) struct LateSums<const M: usize, const N: usize> {
    late: Late,
    /// The scales of rows and columns in the present block, from the first of all.
    offsets: ([isize; M], [isize; N]),
    /// Terms until the block's end.
    pub left: usize,
    pub sums: [[f32; N]; M],
}

impl<const M: usize, const N: usize> LateSums<M, N> {
    #[inline(always)]
    pub fn new(late: Late, i: usize, j: usize) -> Self {
        let offsets = (late.a.rows.offsets(i, 1), late.b.rows.offsets(j, 1));
        Self { late, offsets, left: late.steps.left(), sums: [[0.0; N]; M] }
    }

    /// Adds a block's sums, times its scales, and goes on to the next block.
    #[inline(always)]
    pub unsafe fn add<V: Vector>(&mut self, acc: &[[V; N]; M]) {
        // SAFETY: the tile's elements have these scales, and the processor the vector's features.
        unsafe {
            let mut of_columns = [0.0; N];
            for (scale, at) in of_columns.iter_mut().zip(&mut self.offsets.1) {
                *scale = self.late.b.read(*at);
                *at += self.late.b.steps.stride;
            }
            let rows = self.sums.iter_mut().zip(acc).zip(&mut self.offsets.0);
            for ((sums, acc), at) in rows {
                let of_row = self.late.a.read(*at);
                *at += self.late.a.steps.stride;
                let block = lane_sums(acc);
                for (sum, (x, of_column)) in sums.iter_mut().zip(block.iter().zip(&of_columns)) {
                    *sum += x * of_row * of_column;
                }
            }
        }
        self.left = self.late.steps.block;
    }
}
