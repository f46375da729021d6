//! Barriers in shared memory, and the copy engine.

use super::memory::Memory;
use super::{Arg, Block, Inst, MAPS};
use eva_ir::dim::{Dim, Sym};
use eva_ir::kernel::Kernel;
use eva_ir::kernel::block::MapData;

/// Bytes of a box's row.
const ROW: u64 = 128;

/// A barrier: phases end when all arrivals and all bytes have come.
pub struct Barrier {
    arrivals: u64,
    /// Arrivals of this phase that have not come.
    pending: u64,
    /// Bytes of this phase that have not come.
    bytes: i64,
    /// Whether the number of this phase is odd.
    odd: bool,
}

impl Barrier {
    fn check(&mut self) {
        if self.pending == 0 && self.bytes == 0 {
            (self.pending, self.odd) = (self.arrivals, !self.odd);
        }
    }
}

/// How a buffer is copied: from its innermost axis on, the extent and the distance of neighbours in bytes.
pub struct TensorMap {
    base: u64,
    axes: Vec<(i64, i64)>,
    element: u64,
    rows: u64,
    cols: u64,
    swizzle: bool,
    /// Which axis the rows of a box run along.
    row_axis: usize,
}

impl TensorMap {
    pub fn new(
        kernel: &Kernel,
        map: &MapData,
        sizes: &dyn Fn(&Sym) -> Option<i64>,
        binding: &[usize],
    ) -> Self {
        use eva_ir::entity::Entity;
        let buf = &kernel.bufs[map.buf];
        let value = |dim: &Dim| dim.eval(sizes).expect("every extent has a value");
        let element = buf.dtype.bytes();
        // The axis of the columns, then the others from the last to the first.
        let mut order: Vec<usize> = (0..buf.shape.len()).rev().filter(|&axis| axis != map.axes[1]).collect();
        order.insert(0, map.axes[1]);
        let axes = order.iter().map(|&i| (value(&buf.shape[i]), element * value(&buf.strides[i])));
        let base = Memory::address(binding[map.buf.index()]) + (element * value(&buf.offset)) as u64;
        let axes: Vec<(i64, i64)> = axes.collect();
        assert!(base.is_multiple_of(16) && axes[1..].iter().all(|(_, stride)| stride % 16 == 0), "{map:?}");
        assert_eq!(axes[0].1, element, "columns are neighbours");
        let row_axis = order.iter().position(|&axis| axis == map.axes[0]).expect("rows run along an axis");
        let cols = if map.swizzle { ROW / element as u64 } else { map.cols as u64 };
        let (rows, swizzle) = (map.rows as u64, map.swizzle);
        Self { base, axes, element: element as u64, rows, cols, swizzle, row_axis }
    }

    /// The address of an element of a box; `None` outside of the buffer.
    fn element(&self, start: &[i64], row: u64, col: u64) -> Option<u64> {
        let mut at = self.base as i64;
        for (axis, (&(extent, stride), &first)) in self.axes.iter().zip(start).enumerate() {
            let by = if axis == 0 {
                col
            } else if axis == self.row_axis {
                row
            } else {
                0
            };
            let index = first + by as i64;
            if !(0..extent).contains(&index) {
                return None;
            }
            at += index * stride;
        }
        Some(at as u64)
    }
}

/// The address of what lies at `at` in memory with the swizzle of 128 bytes.
pub fn swizzled(at: u64) -> u64 {
    at ^ (at >> 7 & 7) << 4
}

impl Block<'_> {
    pub fn try_wait(&mut self, t: usize, inst: &Inst) -> bool {
        let (at, parity) = (self.place(t, &inst.args[1]), self.value(t, &inst.args[2]));
        let barrier = self.barriers.get(&at).unwrap_or_else(|| panic!("{}: no barrier at {at}", inst.line));
        u64::from(barrier.odd) != parity
    }

    pub fn barrier(&mut self, t: usize, inst: &Inst, op: &[&str]) {
        let place =
            inst.args.iter().find(|arg| matches!(arg, Arg::Memory(..))).expect("a barrier has a place");
        let at = self.place(t, place);
        let number = inst.args.last().map(|arg| if arg == place { 0 } else { self.value(t, arg) });
        let number = number.expect("there are operands");
        if op[1] == "init" {
            self.memory.aligned(at, 8, inst.line);
            // It is in shared memory, and nothing else is there.
            assert_eq!(self.memory.read(at, 8, inst.line), u64::MAX, "{}", inst.line);
            self.barriers.insert(at, Barrier { arrivals: number, pending: number, bytes: 0, odd: false });
            return;
        }
        let barrier =
            self.barriers.get_mut(&at).unwrap_or_else(|| panic!("{}: no barrier at {at}", inst.line));
        if op[2] == "expect_tx" {
            barrier.bytes += number as i64;
        }
        barrier.pending = barrier.pending.checked_sub(1).expect("no more arrive than are expected");
        barrier.check();
    }

    pub fn copy(&mut self, t: usize, inst: &Inst, op: &[&str]) {
        let out = op[5] == "global";
        let (map, shared) = if out { (&inst.args[0], &inst.args[1]) } else { (&inst.args[1], &inst.args[0]) };
        let Arg::Memory(_, _, coords) = map else { panic!("{}", inst.line) };
        let start: Vec<i64> = coords.iter().map(|c| i64::from(self.value(t, c) as i32)).collect();
        let map = &self.maps[((self.place(t, map) - MAPS) >> 8) as usize];
        assert_eq!(start[0] * map.element as i64 % 16, 0, "{}: begins inside 16 bytes", inst.line);
        assert_eq!((op[4], start.len()), (format!("{}d", map.axes.len()).as_str(), map.axes.len()));
        let to = self.place(t, shared);
        self.memory.aligned(to, if map.swizzle { 1024 } else { 128 }, inst.line);
        let n = map.element as u32;
        for row in 0..map.rows {
            for col in 0..map.cols {
                let here = to + row * ROW + col * map.element;
                let here = if map.swizzle { swizzled(here) } else { here };
                let there = map.element(&start, row, col);
                if out {
                    let value = self.memory.read(here, n, inst.line);
                    there.into_iter().for_each(|there| self.memory.write(there, n, value, inst.line));
                } else {
                    let value = there.map_or(0, |there| self.memory.read(there, n, inst.line));
                    self.memory.write(here, n, value, inst.line);
                }
            }
        }
        if !out {
            let at = self.place(t, &inst.args[2]);
            let barrier = self.barriers.get_mut(&at).expect("a copy ends at a barrier");
            barrier.bytes -= (map.rows * map.cols * map.element) as i64;
            barrier.check();
        }
    }
}
