//! From the tile phase to the block phase: a program is run by the threads of a GPU.
//!
//! The scheme:
//!
//! * **One layout a kernel.** Every tile is spread over the threads in the same way ([`layout`]), chosen for the
//!   kernel's largest tile ([`choose`]). Element-wise instructions are then one to one, and an extent of 1 stretches
//!   without a word between threads. A row's blocks lie where the row does ([`folds`]).
//! * **A tile is a register**, of as many slots as its elements need; what is the same in all threads has one slot.
//! * **Folds** go over a thread's own slots, then over the lanes of a warp by shuffles, then over warps through
//!   shared memory.
//! * **What changes places** (counts along a row, other orders of columns, other shapes) goes through shared memory,
//!   or by slots and shuffles where it can.
//! * **Bounds are checked where they are not known to hold**, once for a row, a column or the whole tile.
//! * **Small programs share a block**: where one warp is enough for a program, a block has several.
//! * **What follows a product** is done some columns at a time ([`parts`]): its other operands would not fit registers.
//! * **Products** of narrow floats are the tensor cores' ([`tensor`]): one role of the block fills pipes of tiles in
//!   shared memory, the others multiply ([`roles`]). The ordinary units do the others ([`product`]).

mod access;
mod across;
mod body;
mod choose;
mod folds;
mod layout;
mod lines;
mod outs;
mod parts;
mod pipes;
mod product;
mod roles;
mod scaled;
mod tensor;
mod uses;
mod write;

use super::{Result, SpreadError, info, simplify};
use crate::target::Hopper;
use eva_ir::entity::{Arena, Entity};
use eva_ir::kernel::block::{Block, Launch};
use eva_ir::kernel::{Kernel, Phase};
use std::collections::HashSet;

/// How many terms of a product are in shared memory at once, where all of them have no room.
const TERMS: [usize; 4] = [128, 64, 32, 16];

/// Whether a kernel of the tile phase that multiplies narrow floats is one that tensor cores can do. If not,
/// [`spread_block`] gives it to the ordinary units, for which its tiles may be too large.
pub fn suits_block(kernel: &Kernel, target: &Hopper) -> bool {
    let simple = simplify::simplify(kernel);
    let info = info::Info::new(&simple);
    !uses::multiplies_narrow(&info) || tensor::Products::find(&info, target).is_some()
}

/// The block phase of a verified `kernel` of the tile phase. Buffers and grid stay as they are, but that no buffer is
/// scaled any more: scales are read by instructions of their own.
pub fn spread_block(kernel: &Kernel, target: &Hopper) -> Result<Kernel> {
    if kernel.phase != Phase::Tile {
        return Err(SpreadError::Phase(kernel.name.clone()));
    }
    eva_ir::kernel::verify::verify(kernel).map_err(|errors| SpreadError::Malformed(errors.join("; ")))?;
    let simple = simplify::simplify(kernel);
    let info = info::Info::new(&simple);
    let products = tensor::Products::find(&info, target);
    let (family, per_block) = match &products {
        Some(products) => (roles::family(products), 1),
        None => choose::family(&info, target),
    };
    let write = |terms: usize| {
        let mut spread = body::Spread::new(&info, family.clone(), per_block, products.as_ref());
        spread.terms = terms;
        let block = if products.is_some() {
            spread.run_roles(target)?
        } else {
            spread.run()?;
            Block {
                warps: family.warps * per_block,
                launch: Launch::Each { per_block },
                shared: std::mem::take(&mut spread.w.shared),
                pipes: Arena::default(),
                maps: Arena::default(),
            }
        };
        let body = simplify::sweep(spread.w.finish(), &mut HashSet::new());
        let mut kernel =
            Kernel { phase: Phase::Block, regs: spread.w.regs, block: Some(block), body, ..simple.clone() };
        // Scales are loaded by instructions of their own.
        for i in 0..kernel.bufs.len() {
            kernel.bufs[Entity::new(i)].scaled = None;
        }
        Ok(kernel)
    };
    // Operands of long sums may have to come to shared memory in pieces.
    let mut written = write(usize::MAX)?;
    for terms in TERMS {
        if written.block.as_ref().is_some_and(|block| block.shared_bytes() <= target.shared) {
            break;
        }
        written = write(terms)?;
    }
    Ok(written)
}
