//! Results that bulk copies write: they go through shared memory, some columns at a time.

use super::Result;
use super::access::{begins_aligned, is_aligned};
use super::body::Spread;
use super::info::Info;
use super::parts::Tail;
use super::tensor::{GROUP_ROWS, PANEL};
use eva_ir::dim::Dim;
use eva_ir::entity::Entity;
use eva_ir::kernel::block::*;
use eva_ir::kernel::*;
use eva_ir::types::DType;
use std::collections::HashMap;

/// Stages of the tile that results go through, where there are not as many as chunks.
const STAGES: usize = 2;

/// The stores that bulk copies do, each in chunks of some columns.
#[derive(Clone, Default)]
pub(super) struct Outs {
    stores: HashMap<*const Inst, usize>,
    maps: Vec<MapData>,
    /// Whether each store has as many chunks as to end with the last of [`STAGES`].
    even: bool,
    stages: usize,
}

impl Outs {
    /// Finds stores that bulk copies can do: of whole tiles of 16-bit numbers, whose only bounds are the buffer's.
    pub fn find(info: &Info<'_>, groups: [usize; 2]) -> Self {
        let mut outs = Self { even: true, stages: STAGES, ..Self::default() };
        outs.visit(info, groups, &info.kernel.body);
        outs
    }

    fn visit(&mut self, info: &Info<'_>, groups: [usize; 2], body: &[Inst]) {
        for inst in body {
            match inst {
                Inst::For { body, .. } => self.visit(info, groups, body),
                Inst::Store { place, value } => {
                    let (ty, data) = (info.ty(*value), &info.kernel.bufs[place.buf]);
                    let [Some(row), Some(col)] = place.axes else { continue };
                    let bytes = data.dtype.bytes() as usize;
                    let aligned = |dim: &Dim| is_aligned(dim, data.dtype);
                    let others = data.strides.iter().enumerate().filter(|(axis, _)| *axis != col);
                    let fits = matches!(data.dtype, DType::Bf16 | DType::F16)
                        && groups[1] == 1
                        && ty.rows == groups[0] * GROUP_ROWS
                        && ty.cols.is_multiple_of(PANEL / bytes)
                        && data.shape.len() <= 5
                        && data.strides[col].as_const() == Some(1)
                        && others.into_iter().all(|(_, stride)| aligned(stride))
                        && aligned(&data.offset)
                        && begins_aligned(info, place.at[col], data.dtype)
                        && place.limits.is_empty();
                    if fits {
                        self.stores.insert(inst, self.maps.len());
                        let (rows, cols) = (ty.rows, PANEL / bytes);
                        let (buf, axes) = (place.buf, [row, col]);
                        self.maps.push(MapData { buf, axes, rows, cols, swizzle: true });
                        self.even &= (ty.cols / cols).is_multiple_of(STAGES);
                    }
                }
                _ => {}
            }
        }
    }

    /// The same with two stages, and with one.
    pub fn choices(&self) -> [Outs; 2] {
        [STAGES, 1].map(|stages| Outs { stages, ..self.clone() })
    }

    /// The number of a store, if a bulk copy does it.
    pub fn of(&self, inst: &Inst) -> Option<usize> {
        self.stores.get(&(inst as *const Inst)).copied()
    }

    /// The boxes of all stores.
    pub fn maps(&self) -> &[MapData] {
        &self.maps
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.maps.is_empty()
    }

    /// Bytes of the tiles that stores go through.
    pub fn bytes(&self) -> usize {
        self.stages * self.maps.iter().map(|map| map.rows).max().unwrap_or(0) * PANEL
    }
}

impl<'k> Spread<'_, 'k> {
    /// Stores a tile through shared memory, some columns at a time: bulk copies write them while the next are put there.
    pub fn store_bulk(&mut self, place: &Place, value: Reg, out: usize, tail: &Tail<'k>) -> Result<()> {
        let products = self.products.expect("there are products");
        let (outs, ty) = (&products.outs, self.info.ty(value));
        let map = &outs.maps[out];
        let dtype = self.info.kernel.bufs[map.buf].dtype;
        let (rows, cols, stages, col_axis) = (map.rows, map.cols, outs.stages, map.axes[1]);
        let data = SharedData { name: "out".into(), dtype, rows, cols, stages, swizzle: true };
        let tile = self.w.tile(data);
        let map = Map::new(products.fills.len() + out);
        let at = place.at.iter().map(|&at| self.value(at)).collect::<Result<Vec<_>>>()?;
        let thread = self.w.thread();
        let when = self.w.zip_int(Fn2::Eq, thread, 0);

        let axes = self.family.axes([ty.rows, ty.cols]);
        let slots = self.family.slots([&axes[0], &axes[1]]);
        let chunks = ty.cols / cols;
        // How many copies may still read when a chunk is put into its stage. Of two stages, one is used again two chunks
        // later, or one where some tiles have an odd number of them.
        let pending = if outs.even { stages - 1 } else { 0 };
        let (row, col) = (self.digits(&axes[0].threads), self.digits(&axes[1].threads));
        let row = self.w.times(row, cols as i64);
        let mine = self.w.add(row, col);
        let chunk_of = |slot: usize| axes[1].slots[slot] / cols;
        let mut parts = Vec::new();
        for chunk in 0..chunks {
            let own: Vec<usize> = (0..axes[1].len()).filter(|&slot| chunk_of(slot) == chunk).collect();
            parts.extend(self.parts(ty, &own));
        }
        let chunk_of_part: Vec<usize> = parts.iter().map(|part| chunk_of(part[0])).collect();
        let all = parts.clone();
        self.in_parts(tail, value, parts, &mut |spread, part, values| {
            let chunk = chunk_of_part[part];
            let (first, stage) = (chunk * cols, chunk % stages);
            if part == 0 || chunk_of_part[part - 1] != chunk {
                spread.w.push(Inst::Block(BlockInst::CopyOutWait { pending }));
                spread.sync();
            }
            // Pairs of neighbours are stored together.
            let number = |[r, c]: [usize; 2]| {
                ((stage * rows + axes[0].slots[r]) * cols + axes[1].slots[c] - first) as i64
            };
            let own = slots.iter().filter(|slot| all[part].contains(&slot[1])).step_by(2);
            let index = spread.w.table(own.map(|&slot| number(slot)).collect());
            let index = spread.w.add(index, mine);
            spread.w.store(Space::Shared(tile), index, values, None);
            if chunk_of_part.get(part + 1) == Some(&chunk) {
                return Ok(());
            }
            spread.w.push(Inst::Block(BlockInst::FenceAsync));
            spread.sync();
            let turn = spread.w.int(stage as i64);
            let mut at = at.clone();
            at[col_axis] = spread.w.zip_int(Fn2::Add, at[col_axis], first as i64);
            spread.w.push(Inst::Block(BlockInst::CopyOut { map, tile, turn, at, when }));
            Ok(())
        })
    }
}
