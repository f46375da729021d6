//! Buffers, and which threads have touched what.

use super::*;
use crate::kernel::run::access::inside;
use crate::kernel::run::arith::round;
use crate::kernel::run::exec::{float, narrow};
use crate::kernel::run::memory::{int_from, int_into};

/// Nobody.
const NOBODY: u32 = 0;
/// More than one.
const SEVERAL: u32 = u32::MAX;

/// Who has touched each element of an allocation. Threads and blocks count from 1.
pub(super) struct Owners {
    /// The thread that has read it.
    readers: Vec<u32>,
    /// The thread that has written it.
    writers: Vec<u32>,
    /// The block that has written it.
    blocks: Vec<u32>,
}

impl Owners {
    pub(super) fn new(len: usize) -> Self {
        Self { readers: vec![NOBODY; len], writers: vec![NOBODY; len], blocks: vec![NOBODY; len] }
    }

    /// Whether no other thread has written the element.
    fn read(&mut self, i: usize, thread: u32) -> bool {
        let reader = &mut self.readers[i];
        *reader = if [NOBODY, thread].contains(reader) { thread } else { SEVERAL };
        [NOBODY, thread].contains(&self.writers[i])
    }

    /// Whether no other thread has touched the element. Others of the block may have written the `same` number there.
    fn write(&mut self, i: usize, thread: u32, block: u32, same: bool) -> Result<(), bool> {
        let first = self.writers[i] == NOBODY;
        if ![NOBODY, thread].contains(&self.readers[i]) || ![NOBODY, block].contains(&self.blocks[i]) {
            return Err(false);
        }
        if !first && self.writers[i] != thread {
            self.writers[i] = SEVERAL;
            return if same { Ok(()) } else { Err(true) };
        }
        (self.writers[i], self.blocks[i]) = (thread, block);
        Ok(())
    }
}

impl Machine<'_> {
    /// The number of a thread in the launch, from 1; `run` has seen to it that there are not too many.
    fn thread(&self, w: usize, lane: usize) -> u32 {
        (self.number as usize * self.block.warps * WARP + w * WARP + lane + 1) as u32
    }

    pub(super) fn read_buf(&mut self, w: usize, lane: usize, buf: Buf, index: i64) -> Result<u64, Fault> {
        let (storage, thread) = (self.views[buf.index()].storage, self.thread(w, lane));
        let Storage { dtype, data } = &self.storages[storage];
        let name = || self.kernel.bufs[buf].name.clone();
        let i = inside(index, data.len(), name)?;
        if self.options.races && !self.owners[storage].read(i, thread) {
            return Err(Fault::Race { memory: name(), index: i });
        }
        self.stats.loaded[buf.index()] += 1;
        match dtype.is_int() {
            true => Ok(int_from(data[i], *dtype)? as u64),
            false => Ok(narrow(data[i], !self.options.f32).to_bits()),
        }
    }

    pub(super) fn write_buf(
        &mut self,
        w: usize,
        lane: usize,
        buf: Buf,
        index: i64,
        word: u64,
    ) -> Result<(), Fault> {
        let (storage, thread) = (self.views[buf.index()].storage, self.thread(w, lane));
        let Storage { dtype, data } = &mut self.storages[storage];
        let name = || self.kernel.bufs[buf].name.clone();
        let i = inside(index, data.len(), name)?;
        let value = if dtype.is_int() { int_into(word as i64, *dtype)? } else { round(float(word), *dtype) };
        if self.options.races {
            let same = data[i].to_bits() == value.to_bits();
            let block = self.number as u32 + 1;
            self.owners[storage].write(i, thread, block, same).map_err(|here| match here {
                true => Fault::Conflict { memory: name(), index: i },
                false => Fault::Race { memory: name(), index: i },
            })?;
        }
        data[i] = value;
        self.stats.stored[buf.index()] += 1;
        Ok(())
    }

    /// The number in its allocation of element `(row, col)` of a box of a tiling that starts at `at`; `None` outside
    /// of the buffer.
    pub(super) fn locate(
        &self,
        map: crate::kernel::block::Map,
        at: &[i64],
        row: usize,
        col: usize,
    ) -> Option<i64> {
        let map = &self.block.maps[map];
        let view = &self.views[map.buf.index()];
        let mut flat = view.offset;
        for (axis, &start) in at.iter().enumerate() {
            let by = match axis {
                _ if axis == map.axes[0] => row,
                _ if axis == map.axes[1] => col,
                _ => 0,
            };
            let index = start.saturating_add(by as i64);
            if index < 0 || index >= view.shape[axis] {
                return None;
            }
            flat = flat.saturating_add(index.saturating_mul(view.strides[axis]));
        }
        Some(flat)
    }
}
