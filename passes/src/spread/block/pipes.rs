//! What comes to shared memory by bulk copies, and when.

use eva_ir::kernel::Place;
use eva_ir::types::DType;

/// A tile that bulk copies bring to shared memory.
#[derive(Clone)]
pub(super) struct Fill {
    /// Where it comes from.
    pub place: Place,
    /// The axes that its rows and columns in shared memory run along.
    pub axes: [usize; 2],
    /// Its extents there.
    pub rows: usize,
    pub cols: usize,
    pub dtype: DType,
    /// Whether products read it, from swizzled panels.
    pub swizzle: bool,
    /// The pipe that it goes through.
    pub pipe: usize,
}

/// A load that comes from a pipe.
#[derive(Clone, Copy)]
pub(super) struct Fed {
    /// The tile, by its place in [`Products::fills`].
    pub fill: usize,
    /// The first of its terms there.
    pub first: usize,
    /// Whether the load's columns are the tile's rows.
    pub transposed: bool,
}

/// Tiles that come and go together.
pub(super) struct PipePlan {
    pub fills: Vec<usize>,
    pub stages: usize,
}

/// The part of a block in which a pipe's turn is used.
#[derive(Clone, Copy)]
pub(super) struct Span {
    pub pipe: usize,
    /// The instructions that first and last need it, by their place in the block.
    pub first: usize,
    pub last: usize,
    /// The last of its loads.
    pub filled: usize,
}
