//! Choosing a layout for a kernel's tiles.

use super::access;
use super::info::Info;
use super::layout::{Bit, Family, Order};
use crate::target::Hopper;
use eva_ir::kernel::{Inst, RegType};

/// The most threads that work on one program.
const MOST_THREADS: usize = 1024;
/// The most threads where a program multiplies: they need registers for more than one tile.
const MOST_THREADS_PRODUCT: usize = 256;
/// Slots of an operand that a thread has registers for, beside all else.
const MANY_SLOTS: usize = 64;
/// Warps of a block whose programs need one warp each.
const SHARE: usize = 4;

/// The layout of the tiles of a kernel, and how many programs share a block.
pub(super) fn family(info: &Info<'_>, target: &Hopper) -> (Family, usize) {
    let mut tiles = Tiles::default();
    tiles.visit(info, &info.kernel.body);
    let product = tiles.product.is_some();
    let [rows, cols] = tiles.product.unwrap_or(tiles.largest);
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
    let width = tiles.width.min((cols / 32).next_power_of_two()).max(1);
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

/// What decides the layout.
#[derive(Default)]
struct Tiles {
    /// The extents of the tile with the most elements.
    largest: [usize; 2],
    /// The extents of the largest product.
    product: Option<[usize; 2]>,
    /// The most neighbouring elements that one access can have.
    width: usize,
}

impl Tiles {
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
                    self.width = self.width.max(access::width(info, place, info.ty(*out)));
                }
                Inst::Store { place, value } => {
                    self.largest = larger(self.largest, info.ty(*value));
                    self.width = self.width.max(access::width(info, place, info.ty(*value)));
                }
                Inst::Scatter { value, .. } => self.largest = larger(self.largest, info.ty(*value)),
                _ => {}
            }
        }
    }
}
