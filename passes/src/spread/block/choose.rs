//! Choosing a layout for a kernel's tiles.

use super::access;
use super::info::Info;
use super::layout::{Bit, Family, Order};
use crate::target::Hopper;
use eva_ir::kernel::{Inst, Place, RegType};

/// The most threads that work on one program.
const MOST_THREADS: usize = 1024;
/// The most threads where a program multiplies: they need registers for more than one tile.
const MOST_THREADS_PRODUCT: usize = 256;
/// Slots of an operand that a thread has registers for, beside all else.
const MANY_SLOTS: usize = 64;
/// Digits of the columns that a thread has of a tile that is read the other way round: 16 bytes of codes.
const TURNED_SLOTS: usize = 4;
/// Digits of a lane's number that go along its rows.
const TURNED_LANES: usize = 4;
/// Warps of a block whose programs need one warp each.
const SHARE: usize = 4;

/// The layout of the tiles of a kernel, and how many programs share a block.
pub(super) fn family(info: &Info<'_>, target: &Hopper) -> (Family, usize) {
    let mut tiles = Tiles::default();
    tiles.visit(info, &info.kernel.body);
    let product = tiles.product.is_some();
    let [rows, cols] = tiles.product.unwrap_or(tiles.largest);
    if tiles.turned && !product {
        return (turned([rows, cols]), 1);
    }
    // Operands go through registers on their way to shared memory, and may be larger than the product.
    let largest = tiles.largest[0] * tiles.largest[1];
    let most = match product {
        false => MOST_THREADS,
        true if largest > MANY_SLOTS * MOST_THREADS_PRODUCT => 2 * MOST_THREADS_PRODUCT,
        true => MOST_THREADS_PRODUCT,
    };
    let operands = if product { largest.div_ceil(2 * target.slots) } else { 0 };
    let threads = (rows * cols).div_ceil(target.slots).max(operands).next_power_of_two().clamp(32, most);
    let digits = threads.trailing_zeros();

    // Neighbouring columns of a thread, as far as every lane has some.
    let width = tiles.width().min((cols / 32).next_power_of_two()).max(1);
    let width = if product || !cols.is_multiple_of(width) { 1 } else { width };
    let mut bits: [Vec<Bit>; 2] = [Vec::new(), vec![Bit::Slot; width.trailing_zeros() as usize]];
    let mut left = [rows, cols.div_ceil(width)];
    for digit in 0..digits {
        // Lanes go along a row, so that a warp reads neighbours; a product needs some along columns too.
        let coalesced = if product { 3 } else { 5 };
        let axis = match (left[0] > 1, left[1] > 1) {
            (_, true) if digit < coalesced => 1,
            (true, true) if product => usize::from(left[1] > left[0]),
            (true, _) => 0,
            _ => 1,
        };
        bits[axis].push(Bit::Thread(digit));
        left[axis] = left[axis].div_ceil(2);
    }
    let warps = threads / 32;
    (Family { warps, bits, top: [None; 2], order: Order::Rows }, if warps == 1 { SHARE } else { 1 })
}

/// The layout where neighbours in memory are rows as they are read, and columns as they are written: lanes go down the
/// columns, a thread has as many columns as one access writes, and two threads write neighbours.
fn turned([rows, cols]: [usize; 2]) -> Family {
    let digits = |n: usize| n.next_power_of_two().trailing_zeros() as usize;
    let (down, along) = (digits(rows), digits(cols));
    let own = along.min(TURNED_SLOTS);
    // Two neighbouring rows are read together, where there are that many.
    let pair = usize::from(down > TURNED_LANES);
    let mut bits: [Vec<Bit>; 2] = [vec![Bit::Slot; pair], vec![Bit::Slot; own]];
    let mut threads = (0..).map(Bit::Thread);
    bits[0].extend(threads.by_ref().take(down.min(TURNED_LANES)));
    bits[1].extend(threads.by_ref().take(along - own));
    let used = bits[0].len() - pair + along - own;
    let spare = (MOST_THREADS.trailing_zeros() as usize).saturating_sub(used);
    let more = (down - bits[0].len()).min(spare).max(5usize.saturating_sub(used));
    bits[0].extend(threads.take(more));
    let warps = 1 << (used + more - 5);
    Family { warps, bits, top: [None; 2], order: Order::Rows }
}

/// What decides the layout.
#[derive(Default)]
struct Tiles {
    /// The extents of the tile with the most elements.
    largest: [usize; 2],
    /// The extents of the largest product.
    product: Option<[usize; 2]>,
    /// The most neighbouring elements that one access can have, codes aside that are computed here.
    width: usize,
    /// The same of those codes.
    codes: usize,
    /// Whether numbers are of 16 bits in memory, or would be.
    narrow: bool,
    /// Whether a tile is read whose rows are neighbours in memory, and whose columns are not.
    turned: bool,
}

impl Tiles {
    /// The most neighbouring elements that one access can have: of codes as many as of the numbers that they are made of, so
    /// that these are summed in the same order whether they are stored as codes or as they are.
    fn width(&self) -> usize {
        let numbers = if self.narrow { access::MOST_BYTES / 2 } else { access::MOST_BYTES / 4 };
        self.width.max(self.codes.min(numbers as usize))
    }

    fn visit(&mut self, info: &Info<'_>, body: &[Inst]) {
        let larger =
            |a: [usize; 2], b: RegType| if a[0] * a[1] >= b.rows * b.cols { a } else { [b.rows, b.cols] };
        for inst in body {
            if let Some(out) = super::super::walk::result(inst) {
                self.largest = larger(self.largest, info.ty(out));
            }
            match inst {
                Inst::For { body, .. } => self.visit(info, body),
                Inst::Dot { out, .. } => {
                    self.product = Some(larger(self.product.unwrap_or_default(), info.ty(*out)));
                }
                Inst::Load { out, place } => {
                    self.narrow |= info.kernel.bufs[place.buf].dtype.bytes() == 2;
                    self.width = self.width.max(access::width(info, place, info.ty(*out)));
                    self.turned |= is_turned(info, place, info.ty(*out));
                }
                Inst::Gather { out, place, axis, index } => {
                    let (ty, by) = (info.ty(*out), info.ty(*index));
                    self.narrow |= info.kernel.bufs[place.buf].dtype.bytes() == 2;
                    self.turned |= is_turned_by(info, place, ty, (*axis, by));
                }
                Inst::Store { place, value } => {
                    self.largest = larger(self.largest, info.ty(*value));
                    let bytes = info.kernel.bufs[place.buf].dtype.bytes();
                    let moved = matches!(info.inst(*value), Some(Inst::Load { .. } | Inst::Gather { .. }));
                    let width = if bytes == 1 && !moved { &mut self.codes } else { &mut self.width };
                    *width = access::width(info, place, info.ty(*value)).max(*width);
                    self.narrow |= bytes == 2;
                }
                Inst::Scatter { value, .. } => self.largest = larger(self.largest, info.ty(*value)),
                Inst::Round { to, .. } => self.narrow |= to.bytes() == 2,
                _ => {}
            }
        }
    }
}

/// Whether the rows of a tile are neighbours in memory, and its columns are wherever they are shifted to.
fn is_turned_by(info: &Info<'_>, place: &Place, ty: RegType, (axis, by): (usize, RegType)) -> bool {
    let ([Some(row), None], [1, cols]) = (place.axes, [by.rows, by.cols]) else { return false };
    let near = info.kernel.bufs[place.buf].strides[row].as_const() == Some(1);
    row != axis && near && ty.rows > 1 && cols > 1
}

/// Whether the rows of a tile are neighbours in memory, and its columns are not.
fn is_turned(info: &Info<'_>, place: &Place, ty: RegType) -> bool {
    let [Some(row), Some(col)] = place.axes else { return false };
    let strides = &info.kernel.bufs[place.buf].strides;
    let near = |axis: usize| strides[axis].as_const() == Some(1);
    ty.rows > 1 && ty.cols > 1 && near(row) && !near(col)
}
