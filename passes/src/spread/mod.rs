//! `spread`: from the tile phase to the lane phase of a target.
//!
//! For a CPU ([`spread_cpu`]) a program is one thread with vectors of four floats. The scheme:
//!
//! * **Scalars stay in registers.** A `1 × 1` tile is computed where it is defined.
//! * **Element-wise tiles are not kept.** `Map`, `Zip`, `Select`, `Cast`, `Round`, `Const`, `Iota`, `Load`, `Gather`
//!   and `Columns` are computed where they are used: by a *walk*, the loops over rows and columns of an instruction
//!   that needs every element (`Store`, `Scatter`, `Reduce`, `Scan`, the operands of `Dot` and `Reshape`, what a
//!   loop carries). A walk evaluates a whole expression in registers, four columns at a time where that pays and one by
//!   one for what is left over.
//! * **Some tiles are kept** in scratch memory, row by row without gaps: results of walks, what loops carry, and
//!   element-wise tiles that several walks need and that are not cheap. Truth values lie there as the
//!   floats 0 and 1.
//! * **Addresses and invariants move out of loops as they are written** (`emit`): arithmetic goes to the outermost
//!   block that knows its operands, once.
//! * **Bounds are cut, not checked.** A walk's region is clipped to what its store writes. A load that ends at
//!   the same place needs no check then; where a load ends earlier, the walk is cut in two there, so that it is
//!   inside in one part and zero in the other. Only loads that end at different places in one walk are checked
//!   element by element (`region`).
//! * **What no store can see is not computed** (`live`): a tile of 64 rows of which a store writes one has one row's
//!   work done.
//! * **Products** are calls of microkernels, on the buffer itself where the operand is a load of it, with sizes
//!   clipped to what is inside. A carried sum (`acc · decay + x · yᵀ`) is updated in place.
//! * **Scales** of 8-bit floats are read where their elements are, one for four columns where it is known that they share
//!   it (`scaled`).
//! * **Scratch memory is shared** by tiles that are not needed at the same time (`share`).
//!
//! The smallest and largest of a row of nothing but NaN are infinite.

mod block;
mod cpu;
mod emit;
mod eval;
mod info;
mod live;
mod plan;
mod product;
mod region;
mod scaled;
mod share;
mod simplify;
mod walk;
mod walks;

pub use block::{spread_block, suits_block};
use eva_ir::kernel::{Kernel, Phase};
use std::collections::HashSet;

/// Why a kernel could not be spread.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpreadError {
    /// The kernel is in the lane phase already.
    #[error("the kernel `{0}` is not in the tile phase")]
    Phase(String),
    /// The kernel is not well-formed.
    #[error("not a well-formed kernel: {0}")]
    Malformed(String),
    /// A mistake of this pass.
    #[error("internal error: {0}")]
    Internal(String),
}

impl SpreadError {
    fn internal(message: &str) -> Self {
        SpreadError::Internal(message.into())
    }
}

type Result<T> = std::result::Result<T, SpreadError>;

/// The lane phase of a verified `kernel` of the tile phase, for a CPU. Buffers and grid stay as they are, but that no
/// buffer is scaled any more: scales are read by instructions of their own.
pub fn spread_cpu(kernel: &Kernel) -> std::result::Result<Kernel, SpreadError> {
    if kernel.phase != Phase::Tile {
        return Err(SpreadError::Phase(kernel.name.clone()));
    }
    eva_ir::kernel::verify::verify(kernel).map_err(|errors| SpreadError::Malformed(errors.join("; ")))?;
    let simple = simplify::simplify(kernel);
    let info = info::Info::new(&simple);
    let plan = plan::Plan::new(&info);
    let (regs, scratch, body) = cpu::Cpu::new(&info, &plan).run()?;
    let body = simplify::sweep(body, &mut HashSet::new());
    let mut lanes = Kernel { phase: Phase::Lane, scratch, regs, body, ..simple.clone() };
    for buf in simple.bufs.keys() {
        lanes.bufs[buf].scaled = None;
    }
    share::share(&mut lanes);
    Ok(lanes)
}
