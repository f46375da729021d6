//! From the tile phase to the block phase: a program is run by the threads of a GPU.
//!
//! The scheme:
//!
//! * **One layout a kernel.** Every tile is spread over the threads in the same way ([`layout`]), chosen for the
//!   kernel's largest tile ([`choose`]). Element-wise instructions are then one to one, and an extent of 1 stretches
//!   without a word between threads.
//! * **A tile is a register**, of as many slots as its elements need; what is the same in all threads has one slot.
//! * **Folds** go over a thread's own slots, then over the lanes of a warp by shuffles, then over warps through
//!   shared memory.
//! * **What changes places** (counts along a row, other orders of columns, other shapes) goes through shared memory,
//!   or by slots and shuffles where it can.
//! * **Bounds are checked where they are not known to hold**, once for a row, a column or the whole tile.
//! * **Small programs share a block**: where one warp is enough for a program, a block has several.
//! * **Products** of narrow floats are the tensor cores' ([`tensor`]): one role of the block fills pipes of tiles in
//!   shared memory, the others multiply ([`roles`]). The ordinary units do the others ([`product`]).

mod access;
mod across;
mod body;
mod choose;
mod layout;
mod product;
mod roles;
mod tensor;
mod uses;
mod write;

use super::{Result, SpreadError, info, simplify};
use crate::target::Hopper;
use eva_ir::entity::Arena;
use eva_ir::kernel::block::{Block, Launch};
use eva_ir::kernel::{Kernel, Phase};
use std::collections::HashSet;

/// The block phase of a verified `kernel` of the tile phase. Buffers and grid stay as they are.
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
    let warps = family.warps * per_block;
    let mut spread = body::Spread::new(&info, family, per_block, products.as_ref());
    let mut block = Block {
        warps,
        launch: Launch::Each { per_block },
        shared: Arena::default(),
        pipes: Arena::default(),
        maps: Arena::default(),
    };
    if products.is_some() {
        block = spread.run_roles(target)?;
    } else {
        spread.run()?;
        block.shared = std::mem::take(&mut spread.w.shared);
    }
    let body = simplify::sweep(spread.w.finish(), &mut HashSet::new());
    Ok(Kernel { phase: Phase::Block, regs: spread.w.regs, block: Some(block), body, ..simple.clone() })
}
