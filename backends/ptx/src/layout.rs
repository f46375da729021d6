//! Where things lie in shared memory.

use eva_ir::entity::Entity;
use eva_ir::kernel::block::{Block, PipeData};

/// Bytes of a panel's row.
pub(crate) const PANEL: usize = 128;
/// The swizzle repeats after this many bytes, and depends on addresses: swizzled tiles are aligned to it.
pub(crate) const SWIZZLE_ALIGN: usize = 1024;
/// The alignment of tiles that are not swizzled: what bulk copies want.
const PLAIN_ALIGN: usize = 128;
/// That of barriers.
const BARRIER_ALIGN: usize = 16;
/// Bytes of a barrier of a pipe.
const BARRIER: usize = 8;

/// How a tile lies in shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TileLayout {
    /// Its first byte.
    pub start: usize,
    /// From one stage to the next, in bytes.
    pub stage: usize,
    /// From one panel to the next, in bytes; 0 where there are none.
    pub panel: usize,
    /// Panels of a stage; one row without panels counts as one.
    pub panels: usize,
}

/// Where everything lies, from the first byte of dynamic shared memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// By the number of the tile.
    pub tiles: Vec<TileLayout>,
    /// By the number of the pipe: its barriers, first those that tell of a full stage, then those of an empty one.
    pub pipes: Vec<usize>,
    /// The end.
    pub bytes: usize,
}

impl Layout {
    /// What [`Block::shared_bytes`] says in words, for a well-formed kernel.
    pub(crate) fn new(block: &Block) -> Self {
        let none = TileLayout { start: 0, stage: 0, panel: 0, panels: 0 };
        let (mut tiles, mut end) = (vec![none; block.shared.len()], 0usize);
        for swizzle in [true, false] {
            for (shared, data) in block.shared.iter().filter(|(_, data)| data.swizzle == swizzle) {
                let align = if swizzle { SWIZZLE_ALIGN } else { PLAIN_ALIGN };
                let row = data.cols * data.dtype.bytes() as usize;
                let (panel, panels) = if swizzle { (data.rows * PANEL, row / PANEL) } else { (0, 1) };
                let tile =
                    TileLayout { start: end.next_multiple_of(align), stage: data.rows * row, panel, panels };
                end = tile.start + tile.stage * data.stages;
                tiles[shared.index()] = tile;
            }
        }
        end = end.next_multiple_of(BARRIER_ALIGN);
        let start = |(_, pipe): (_, &PipeData)| {
            let start = end;
            end += 2 * BARRIER * pipe.stages;
            start
        };
        let pipes = block.pipes.iter().map(start).collect();
        Self { tiles, pipes, bytes: end }
    }
}
