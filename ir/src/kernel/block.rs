//! The block phase: what a kernel may contain when a program is run by the threads of a GPU.
//!
//! A kernel of this phase describes one **block** of threads: warps of 32, which run in lock-step. A register holds
//! `cols` values *for each thread* (its **slots**; `rows` is 1), and the instructions that all phases share work on
//! every slot of every thread. Which element of a tile a thread's slot is, is the business of the pass that wrote the
//! kernel; instructions that fix it say so ([`BlockInst::Mma`]).
//!
//! * **Loops** are gone round equally often by all threads of a role; where a block has several programs
//!   ([`Launch::Each`]), by all threads of a program.
//! * **Roles.** [`BlockInst::Roles`] divides the threads: each role runs a body of its own, with registers of its
//!   own. Outside of roles all threads are one role.
//! * **Shared memory** ([`SharedData`]) is seen by all threads of a block. What one warp writes another may read
//!   after a [`BlockInst::Barrier`] that both pass.
//! * **Pipes** ([`PipeData`]) move tiles from buffers to shared memory while threads compute. A pipe has some
//!   stages; use number `turn` (0, 1, 2, …) of it has stage `turn % stages`. One role, of a single thread,
//!   **produces**: it acquires a turn (waits until all consumers have released the one that had the stage before) and
//!   starts copies into the stage. Other roles **consume**: each of their warps waits for every turn in its order
//!   (until all its bytes are there), uses the stage, and releases it, having waited for its own products that read
//!   it. Ordinary writes to the stage are fenced ([`BlockInst::FenceAsync`]) before it is released. Neither waiting
//!   nor releasing orders ordinary accesses to other memory.
//! * **Products** run beside the threads too ([`BlockInst::Mma`]): a result may be read only after a
//!   [`BlockInst::MmaWait`] has seen it finished. Each product is a group; groups finish in order.
//!
//! The interpreter is stricter than a machine: data under way read as poison, and every warp may run ahead of, or
//! behind, any other as far as barriers and pipes let it.

use super::{Mem, Reg};
use crate::entity::{Arena, entity};
use crate::types::DType;

entity! {
    /// A tile in shared memory.
    Shared, "#"
}
entity! {
    /// A pipe.
    Pipe, "|"
}
entity! {
    /// How a buffer is cut into tiles for asynchronous copies.
    Map, "~"
}

/// What a kernel of the block phase has beside its instructions.
#[derive(Clone, Debug, PartialEq)]
pub struct Block {
    /// Warps of a block.
    pub warps: usize,
    /// How many blocks are launched.
    pub launch: Launch,
    /// Tiles in shared memory.
    pub shared: Arena<Shared, SharedData>,
    /// Pipes.
    pub pipes: Arena<Pipe, PipeData>,
    /// Tilings of buffers.
    pub maps: Arena<Map, MapData>,
}

impl Block {
    /// The bytes of shared memory of a block: swizzled tiles, each from a multiple of 1024 on, then the others, each
    /// from a multiple of 128 on, then 16 bytes for each stage of a pipe (a barrier for those that wait for it to be
    /// full, one for those that wait for it to be free). All in the order of their numbers.
    pub fn shared_bytes(&self) -> usize {
        let lay = |swizzle: bool, align: usize, start: usize| {
            let tiles = self.shared.iter().filter(|(_, data)| data.swizzle == swizzle);
            tiles.fold(start, |end, (_, data)| {
                let bytes = [data.rows, data.cols, data.stages].into_iter().fold(1, usize::saturating_mul);
                let bytes = bytes.saturating_mul(data.dtype.bytes() as usize);
                end.checked_next_multiple_of(align).unwrap_or(usize::MAX).saturating_add(bytes)
            })
        };
        let tiles = lay(false, 128, lay(true, 1024, 0));
        let barriers = self.pipes.iter().fold(0, |sum: usize, (_, pipe)| sum.saturating_add(pipe.stages));
        let aligned = tiles.checked_next_multiple_of(16).unwrap_or(usize::MAX);
        aligned.saturating_add(barriers.saturating_mul(16))
    }
}

/// How the programs of a grid come to blocks. A program's number counts the grid's axes as digits, the last fastest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Launch {
    /// Block `i` has the programs from `i · per_block` on: `ceil(programs / per_block)` blocks.
    Each {
        /// Programs of a block, at least 1.
        per_block: usize,
    },
    /// As many blocks as run at once, at most one a program; they share the programs out by themselves.
    Persistent {
        /// Blocks that one multiprocessor holds at once, at least 1.
        per_multiprocessor: usize,
    },
}

/// A tile in shared memory, once for each stage. Element `(stage, row, col)` is number
/// `(stage · rows + row) · cols + col` for loads and stores.
///
/// How that number becomes an address is the backend's: tiles that products use, or bulk copies of several rows, lie as panels of
/// 128 bytes a row (`rows × 128` bytes each), their 16-byte pieces exchanged by the 128-byte swizzle; others lie as
/// they are numbered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedData {
    /// What it holds, for people.
    pub name: String,
    /// The elements' type; `F32`, `Tf32`, `Bf16`, `F16`, `F8E4M3`, `F8E5M2` or `I64`.
    pub dtype: DType,
    /// Rows of a stage.
    pub rows: usize,
    /// Columns of a stage; where `swizzle` holds, a multiple of 128 bytes.
    pub cols: usize,
    /// How many stages there are, at least 1.
    pub stages: usize,
    /// Whether it lies in swizzled panels, as products need it and bulk copies of more than one row.
    pub swizzle: bool,
}

/// A pipe: tiles that are filled and emptied together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PipeData {
    /// What goes through it, for people.
    pub name: String,
    /// The tiles; each has as many stages as the pipe.
    pub tiles: Vec<Shared>,
    /// How many stages there are, at least 1.
    pub stages: usize,
    /// How many warps release a turn: all warps of the consuming roles.
    pub consumers: usize,
}

/// Boxes of `rows × cols` elements of a buffer, for asynchronous copies.
///
/// The buffer has stride 1 along the axis of the columns, and all other strides, its offset and its base are
/// multiples of 16 bytes; at most 5 axes. The copy engine's descriptor has the axes innermost first: that of the
/// columns, then the buffer's others from the last to the first; a [`BlockInst::Copy`]'s `at` is in the buffer's order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapData {
    /// The buffer.
    pub buf: super::Buf,
    /// The axes that rows and columns run along.
    pub axes: [usize; 2],
    /// Rows of a box: those of the shared tile, at most 256.
    pub rows: usize,
    /// Columns of a box: those of the shared tile.
    pub cols: usize,
    /// Whether boxes come to swizzled tiles. Others have one row, of at most 256 elements and a multiple of 128 bytes.
    pub swizzle: bool,
}

/// Threads that run a body of their own.
#[derive(Clone, Debug, PartialEq)]
pub struct Role {
    /// What they do, for people.
    pub name: String,
    /// Warps, a multiple of 4; consecutive, in the order of the roles.
    pub warps: usize,
    /// Registers a thread gets, a multiple of 8 from 24 to 240.
    pub registers: usize,
    /// Whether the first thread alone runs the body, the others being there for the hardware's sake.
    pub solo: bool,
    /// What they run.
    pub body: Vec<super::Inst>,
}

/// The left operand of a product.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum MmaLeft {
    /// Rows `row .. row + 64` and columns `col .. col + k` of a tile in shared memory, or, `transposed`, columns
    /// `row .. row + 64` and rows `col .. col + k` of it.
    Shared {
        /// The tile.
        tile: MmaTile,
        /// The first row of this warpgroup's 64: an `i64` scalar, the same in all threads of a warpgroup.
        row: Reg,
    },
    /// `k/2` slots of floats, laid out as the result of a product of `k` columns is; rounded to the type of the
    /// right operand.
    Registers(Reg),
}

/// A stage of a tile in shared memory, as an operand of a product.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MmaTile {
    /// The tile; swizzled.
    pub tile: Shared,
    /// Which stage: an `i64` scalar; taken modulo the number of stages.
    pub turn: Reg,
    /// Whether the summed axis is that of the tile's rows instead of its columns (16-bit types only).
    pub transposed: bool,
    /// The first element along the summed axis: a multiple of 16.
    pub first: usize,
}

/// Whether a product adds to its accumulator.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Keep {
    /// It adds.
    Yes,
    /// It does not: the accumulator's values are not read. (Naming it lets its registers be used again.)
    No,
    /// It adds where this truth value, a scalar that is the same in all threads, holds.
    When(Reg),
}

/// Instructions of the block phase. Scalars (registers of one slot) are per thread as all registers are.
#[expect(missing_docs, reason = "a variant's text names its fields")]
#[derive(Clone, Debug, PartialEq)]
pub enum BlockInst {
    /// The number of this thread in its role: an `i64` scalar.
    Thread { out: Reg },
    /// The number of this block among those launched: an `i64` scalar.
    Number { out: Reg },
    /// How many blocks were launched: an `i64` scalar.
    Launched { out: Reg },
    /// Slot `i` of `out`, an `i64`, is `values[i]` in all threads.
    Slots { out: Reg, values: Vec<i64> },
    /// Slot `i` of `out` is slot `slots[i]` of `x`.
    Pick { out: Reg, x: Reg, slots: Vec<u16> },
    /// The slots of all of `parts`, one after the other.
    Join { out: Reg, parts: Vec<Reg> },
    /// `x · y + acc`, rounded once; an operand with one slot serves all slots of `out`.
    Fma { out: Reg, x: Reg, y: Reg, acc: Reg },
    /// `out` has `v` slots for each slot of `from.index`: the consecutive elements from there on (aligned to `v`
    /// elements if `v > 1`; `v` is 1, 2, 4, 8 or 16, and they are at most 16 bytes). Where `mask` (one slot for each
    /// of the index, or one for all) does not hold, nothing is read and the slots are zero.
    Load { out: Reg, from: Mem, mask: Option<Reg> },
    /// Writes likewise; nothing is written where `mask` does not hold.
    Store { to: Mem, value: Reg, mask: Option<Reg> },
    /// Each slot of the thread of this warp whose number differs in the bits of `xor` (1 to 31).
    Shuffle { out: Reg, x: Reg, xor: usize },
    /// Waits until `warps` warps have come to barrier `id` (0 to 15); all of a role pass the same ones.
    /// Ordinary accesses to shared memory before it are seen after it. With `warps` 1 it is among the threads of each
    /// warp alone, and `id` means nothing.
    Barrier { id: usize, warps: usize },
    /// The threads part. Only at the end of a kernel's body.
    Roles { roles: Vec<Role> },

    /// Waits until the stage of `turn` is free. By the producing role, once, before the turn's copies.
    Acquire { pipe: Pipe, turn: Reg },
    /// Starts to copy a box of a buffer into the stage of `turn` of a tile of the pipe. `at` is the index of its
    /// first element along each axis of the buffer, a multiple of 16 bytes along the columns; elements outside the buffer's
    /// shape become zero. Every tile of the pipe is filled by one copy a turn.
    Copy { pipe: Pipe, turn: Reg, tile: Shared, map: Map, at: Vec<Reg> },
    /// Waits until all copies of `turn` are there.
    Wait { pipe: Pipe, turn: Reg },
    /// Tells that this warp is done with the stage of `turn`; where `when` is given and does not hold, nothing
    /// happens (a truth value that is the same in all threads of a warp).
    Release { pipe: Pipe, turn: Reg, when: Option<Reg> },

    /// `out = keep · acc + Σ_k a[i,k] · b[j,k]`, started by the four warps of a warpgroup together.
    ///
    /// `a` is 64 rows of this warpgroup's; `b` is `n` rows of a shared tile (columns, where transposed) from `b_row`
    /// on, a multiple of 8 that is the same in all threads of a warpgroup (where `b` is transposed and they do not all lie
    /// in one panel of 128 bytes, they begin with one); `k` a multiple of 16 (32 for 8-bit
    /// types, 8 for `Tf32`). `out` has `n/2` slots, `n` a multiple of 8 up to 256: slot `s` of thread `t` of the warpgroup is row
    /// `16·(t / 32) + (t % 32) / 4 + 8·(s / 2 % 2)`, column `2·(t % 4) + s % 2 + 8·(s / 4)`.
    ///
    /// Products and sums are of `f32` accuracy. `acc` may be the result of a product still under way; `a` in
    /// registers must not be.
    Mma { out: Reg, acc: Reg, keep: Keep, a: MmaLeft, b: MmaTile, b_row: Reg, n: usize, k: usize },
    /// Waits until at most `pending` of this warpgroup's products are unfinished. `out` of each pair is `x` from here
    /// on (`x` is not used again).
    MmaWait { pending: usize, values: Vec<(Reg, Reg)> },
    /// Ordinary writes of this thread to shared memory before it are seen by products and bulk copies that are
    /// started after a following barrier.
    FenceAsync,
    /// Starts to copy stage `turn` of a tile to a box of a buffer, by one thread (that with `when`, a truth value,
    /// which holds in one thread of the role at most). It begins as [`Self::Copy`] does. Elements outside the buffer's
    /// shape are not written. The stage is not written, and the kernel does not end, before the thread has waited for it.
    CopyOut { map: Map, tile: Shared, turn: Reg, at: Vec<Reg>, when: Reg },
    /// Waits until at most `pending` of this thread's `CopyOut`s have not yet read their tile.
    CopyOutWait { pending: usize },
}

impl BlockInst {
    /// The register that the instruction assigns, if it is a single one.
    pub fn out(&self) -> Option<Reg> {
        match self {
            BlockInst::Thread { out }
            | BlockInst::Number { out }
            | BlockInst::Launched { out }
            | BlockInst::Slots { out, .. }
            | BlockInst::Pick { out, .. }
            | BlockInst::Join { out, .. }
            | BlockInst::Fma { out, .. }
            | BlockInst::Load { out, .. }
            | BlockInst::Shuffle { out, .. }
            | BlockInst::Mma { out, .. } => Some(*out),
            _ => None,
        }
    }

    /// Calls `f` with each register that the instruction itself reads: not those read in the bodies of roles.
    pub fn operands_mut(&mut self, f: &mut dyn FnMut(&mut Reg)) {
        match self {
            BlockInst::Thread { .. }
            | BlockInst::Number { .. }
            | BlockInst::Launched { .. }
            | BlockInst::Slots { .. }
            | BlockInst::Barrier { .. }
            | BlockInst::Roles { .. }
            | BlockInst::FenceAsync
            | BlockInst::CopyOutWait { .. } => {}
            BlockInst::Pick { x, .. } | BlockInst::Shuffle { x, .. } => f(x),
            BlockInst::Join { parts, .. } => parts.iter_mut().for_each(f),
            BlockInst::Fma { x, y, acc, .. } => [x, y, acc].into_iter().for_each(f),
            BlockInst::Load { from, mask, .. } => {
                f(&mut from.index);
                mask.iter_mut().for_each(f);
            }
            BlockInst::Store { to, value, mask } => {
                [&mut to.index, value].into_iter().chain(mask).for_each(f);
            }
            BlockInst::Acquire { turn, .. } | BlockInst::Wait { turn, .. } => f(turn),
            BlockInst::Copy { turn, at, .. } => std::iter::once(turn).chain(at).for_each(f),
            BlockInst::Release { turn, when, .. } => std::iter::once(turn).chain(when).for_each(f),
            BlockInst::Mma { acc, keep, a, b, b_row, .. } => {
                [acc, &mut b.turn, b_row].into_iter().for_each(&mut *f);
                if let Keep::When(reg) = keep {
                    f(reg);
                }
                match a {
                    MmaLeft::Shared { tile, row } => [&mut tile.turn, row].into_iter().for_each(f),
                    MmaLeft::Registers(reg) => f(reg),
                }
            }
            BlockInst::MmaWait { values, .. } => values.iter_mut().for_each(|(_, x)| f(x)),
            BlockInst::CopyOut { turn, at, when, .. } => [turn, when].into_iter().chain(at).for_each(f),
        }
    }

    /// The registers that [`BlockInst::operands_mut`] visits.
    pub fn operands(&self) -> Vec<Reg> {
        let mut regs = Vec::new();
        self.clone().operands_mut(&mut |reg| regs.push(*reg));
        regs
    }
}
