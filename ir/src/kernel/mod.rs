//! The kernel IR: one program that runs once per point of a grid, over buffers.
//!
//! A kernel goes through two phases of this one type. In the **tile phase** a register is a small
//! rectangle of numbers (`rows × cols`, both fixed; a scalar is `1 × 1`), and nothing says how it is
//! spread over vector lanes or threads: an op's lowering is written in this phase ([`build`]). In the
//! **lane phase** registers are vectors of one row, tiles live in scratch memory, loops over their
//! elements are explicit, and products are calls of microkernels. For a GPU there is the **[`block`] phase**
//! instead, in which a program is run by many threads. A pass (`spread`) goes from the tile phase to that of a
//! target; a backend translates the latter one to one. [`verify`] says what each phase may contain, and [`run`]
//! what it means.
//!
//! * Kernels are symbolic: grids, strides and trip counts are polynomials over the module's extents,
//!   evaluated when the kernel is launched. One kernel serves all lengths.
//! * The programs of a grid run in any order and at the same time. A kernel does not read what it writes.
//! * In the tile phase an element outside its buffer (or outside a limit) reads as zero and is not written.
//! * Registers hold `f32`, `i64` or truth values. Buffers hold any [`DType`]; loads widen, stores round.

pub mod block;
pub mod build;
pub mod print;
pub mod run;
mod scales;
pub mod verify;

pub use scales::{MicroRun, MicroScales};

use crate::dim::Dim;
use crate::entity::{Arena, entity};
use crate::types::DType;

entity! {
    /// A register.
    Reg, "%"
}
entity! {
    /// A tensor in memory: a parameter of the kernel.
    Buf, "$"
}
entity! {
    /// Memory that one program owns while it runs (lane phase).
    Scratch, "&"
}

/// One kernel.
#[derive(Clone, Debug, PartialEq)]
pub struct Kernel {
    /// What it computes, for people.
    pub name: String,
    /// Which instructions it may contain.
    pub phase: Phase,
    /// The buffers, in the order they are passed.
    pub bufs: Arena<Buf, BufData>,
    /// Private memory (lane phase only).
    pub scratch: Arena<Scratch, ScratchData>,
    /// Threads, shared memory, pipes (in the block phase, and only there).
    pub block: Option<block::Block>,
    /// How many programs there are along each axis; the last axis varies fastest.
    pub grid: Vec<GridAxis>,
    /// The registers' types.
    pub regs: Arena<Reg, RegType>,
    /// The program.
    pub body: Vec<Inst>,
}

/// How far a kernel has been lowered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Rectangles of numbers; no memory but the buffers.
    Tile,
    /// Vectors, scratch memory, microkernels.
    Lane,
    /// Threads of a GPU; see [`block`].
    Block,
}

/// A buffer: a tensor with an address for each element.
///
/// Element `i` is at `base + (offset + Σ i[axis] · strides[axis]) · bytes`, `base` being given at launch.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BufData {
    /// The tensor's name, for people.
    pub name: String,
    /// The elements' type in memory.
    pub dtype: DType,
    /// Whether the kernel reads or writes it.
    pub access: Access,
    /// Extents.
    pub shape: Vec<Dim>,
    /// Distance between neighbours along each axis, in elements.
    pub strides: Vec<Dim>,
    /// Where the first element is, in elements from the base.
    pub offset: Dim,
    /// For 8-bit floats that are numbers only with their scales: where those are. Loads give `element · scale`, an `f32`
    /// product. Without it, loads give elements as they are. In the lane phase, loads of codes and of scales are
    /// instructions of their own ([`Micro`] has its own fields for them), and no buffer says this.
    pub scaled: Option<Box<Scaled>>,
}

/// The scales of a buffer's elements, which are in another buffer.
///
/// The scale of element `i` is element `offset + Σ_along stride · floor((from + Σ i[axis] · steps[axis]) / block)` of
/// the buffer `by`, counted from its base. An element outside the buffer is zero, and its scale is not read.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Scaled {
    /// The buffer of the scales, one that is read: `F32`, or `E8M0`.
    pub by: Buf,
    /// Where the first scale is, in elements from the base of `by`.
    pub offset: Dim,
    /// One entry for each axis of the tensor as it was quantized, along which scales differ.
    pub along: Vec<ScaledAxis>,
}

/// An axis along which neighbours share scales; see [`Scaled`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ScaledAxis {
    /// How many neighbours share one, at least 1.
    pub block: i64,
    /// The place on the quantized tensor's axis of the element with index 0 everywhere.
    pub from: Dim,
    /// How far each axis of the buffer goes along it: one entry an axis, most of them 0.
    pub steps: Vec<Dim>,
    /// The distance of neighbouring scales, in elements of `by`.
    pub stride: Dim,
}

/// What a kernel does with a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// Only reads.
    Read,
    /// Only writes.
    Write,
}

/// Memory private to a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScratchData {
    /// The type of its elements.
    pub elem: Elem,
    /// How many there are.
    pub len: usize,
}

/// `ceil(extent / tile)` programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GridAxis {
    /// The length of the axis that is cut into tiles.
    pub extent: Dim,
    /// The length of a tile, at least 1.
    pub tile: i64,
}

/// What a register's elements are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Elem {
    /// A single-precision float.
    F32,
    /// A signed 64-bit integer: an index.
    I64,
    /// A truth value.
    Bool,
}

/// The type of a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RegType {
    /// The elements' type.
    pub elem: Elem,
    /// 1 in the lane and block phases.
    pub rows: usize,
    /// In the lane phase: the number of vector lanes, 1 or the target's width. In the block phase: slots a thread.
    pub cols: usize,
}

impl RegType {
    /// A single number.
    pub fn scalar(elem: Elem) -> Self {
        Self { elem, rows: 1, cols: 1 }
    }
    /// Whether there is one element only.
    pub fn is_scalar(self) -> bool {
        self.rows == 1 && self.cols == 1
    }
}

/// A constant of any element type.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Const {
    /// A float.
    F(f64),
    /// An integer.
    I(i64),
    /// A truth value.
    B(bool),
}

/// Where a tile lies in a buffer.
#[derive(Clone, Debug, PartialEq)]
pub struct Place {
    /// The buffer.
    pub buf: Buf,
    /// The index of the tile's first element along each axis: `i64` scalars.
    pub at: Vec<Reg>,
    /// The axes that the tile's rows and columns run along; `None` for a tile of extent 1 there.
    pub axes: [Option<usize>; 2],
    /// Axes with an end of their own, an `i64` scalar: elements from there on count as outside.
    pub limits: Vec<(usize, Reg)>,
}

/// One instruction. `out` registers are assigned once.
#[expect(missing_docs, reason = "a variant's text names its fields")]
#[derive(Clone, Debug, PartialEq)]
pub enum Inst {
    /// The index of this program along a grid axis.
    Program { out: Reg, axis: usize },
    /// The value of an extent.
    Extent { out: Reg, dim: Dim },
    /// A constant, in every element.
    Const { out: Reg, value: Const },
    /// `f(x)`, element by element.
    Map { out: Reg, f: Fn1, x: Reg },
    /// `f(x, y)`, element by element; an extent of 1 stretches to the other operand's.
    Zip { out: Reg, f: Fn2, x: Reg, y: Reg },
    /// `if cond { x } else { y }`, element by element, with stretching.
    Select { out: Reg, cond: Reg, x: Reg, y: Reg },
    /// `x` as the element type of `out`: integers to the nearest float, floats to integers towards zero,
    /// truth values to 0 and 1.
    Cast { out: Reg, x: Reg },
    /// Floats rounded to the nearest value of `to` (ties to even; to `E8M0` up to a power of two), still held as `f32`.
    /// To `F32` it does nothing but in an interpreter that computes in `f64`.
    Round { out: Reg, x: Reg, to: DType },
    /// Runs `body` for `index` in `0..trips`; each carried register starts as `init`, is `arg` inside the
    /// body, and takes the value of `next` for the next trip; `out` is its value after the last.
    For { index: Reg, trips: Reg, carried: Vec<Carried>, body: Vec<Inst> },

    /// Tile phase. `0, 1, 2, …` along the rows (axis 0) or columns (axis 1).
    Iota { out: Reg, axis: usize },
    /// Tile phase. A rectangle of a buffer, widened to the register's element type.
    Load { out: Reg, place: Place },
    /// Tile phase. Elements of a buffer, each shifted along `axis` by its own `index` (`i64`, whose extents of 1 stretch to
    /// those of `out`).
    Gather { out: Reg, place: Place, axis: usize, index: Reg },
    /// Tile phase. Writes a rectangle, rounded to the buffer's type. Where a program writes to a place more than once, it
    /// is by the same element of the tile.
    Store { place: Place, value: Reg },
    /// Tile phase. Writes each element where `mask` holds, shifted along `axis` by its own `index`. No two elements
    /// that are written go to the same place.
    Scatter { place: Place, axis: usize, index: Reg, value: Reg, mask: Reg },
    /// Tile phase. Folds an axis (0 rows, 1 columns) down to extent 1.
    Reduce { out: Reg, f: Fn2, axis: usize, x: Reg },
    /// Tile phase. Sums of `x` along the columns up to and including each element.
    Scan { out: Reg, x: Reg },
    /// Tile phase. The columns of `x` in another order.
    Columns { out: Reg, x: Reg, order: ColumnOrder },
    /// Tile phase. The same elements, row by row, in another shape.
    Reshape { out: Reg, x: Reg },
    /// Tile phase. `acc + x · yᵀ`: `x` is `m × k`, `y` is `n × k`, `acc` and `out` are `m × n`.
    Dot { out: Reg, acc: Reg, x: Reg, y: Reg },

    /// Lane phase. `out.cols` consecutive elements.
    VLoad { out: Reg, from: Mem },
    /// Lane phase. Writes `value.cols` consecutive elements.
    VStore { to: Mem, value: Reg },
    /// Lane and block phase. Runs `body` where the scalar `cond` holds. The body only writes memory; in the block
    /// phase each thread has a `cond` of its own, and the body has no barrier, pipe, product or shuffle.
    If { cond: Reg, body: Vec<Inst> },
    /// Lane phase. Folds the lanes of a vector to a scalar: in pairs at distance 2, then 1.
    Across { out: Reg, f: Fn2, x: Reg },
    /// Lane phase. Lanes `0 1 2 3` as `1 0 3 2`.
    SwapPairs { out: Reg, x: Reg },
    /// Lane phase. A product by a microkernel; see [`Micro`].
    Micro(Micro),

    /// Block phase. See [`block::BlockInst`].
    Block(block::BlockInst),
}

/// A register carried round a loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Carried {
    /// Its value before the first trip.
    pub init: Reg,
    /// Its name inside the body.
    pub arg: Reg,
    /// Its value for the next trip.
    pub next: Reg,
    /// Its value after the last trip.
    pub out: Reg,
}

/// An element in memory (lane phase).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mem {
    /// Which memory.
    pub space: Space,
    /// The element's number from the base of the memory (offsets and strides included): an `i64` scalar.
    pub index: Reg,
}

/// A memory (lane phase).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Space {
    /// A parameter.
    Buf(Buf),
    /// Private memory.
    Scratch(Scratch),
    /// Shared memory (block phase).
    Shared(block::Shared),
}

/// `c[i,j] = (accumulate ? c[i,j] : 0) + Σ_k a[i,k] · b[j,k]` for `i < m`, `j < n`, `k` terms.
///
/// `a` and `b` are floats of any type; `c` is `f32` scratch with neighbouring columns at distance 1. An operand with
/// scales is `code · scale`, rounded to `f32`.
/// All numbers are `i64` scalars; strides are in elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Micro {
    /// Rows of the result.
    pub m: Reg,
    /// Columns of the result.
    pub n: Reg,
    /// Length of the sums.
    pub k: Reg,
    /// The first element of the left operand.
    pub a: Mem,
    /// Its strides along `i` and `k`.
    pub a_strides: [Reg; 2],
    /// The first element of the right operand.
    pub b: Mem,
    /// Its strides along `j` and `k`.
    pub b_strides: [Reg; 2],
    /// The first element of the result.
    pub c: Mem,
    /// Its stride along `i`.
    pub c_stride: Reg,
    /// Whether to add to what is there.
    pub accumulate: bool,
    /// The scales of the left operand, if it has any.
    pub a_scales: Option<MicroScales>,
    /// The scales of the right operand, if it has any.
    pub b_scales: Option<MicroScales>,
}

/// Functions of one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fn1 {
    /// `-x`
    Neg,
    /// `e^x`
    Exp,
    /// `2^x`; a backend may be off by some 1e-6 of it where `x` is moderate
    Exp2,
    /// The natural logarithm.
    Log,
    /// The square root.
    Sqrt,
    /// `1/√x`
    Rsqrt,
    /// `1/x`
    Recip,
    /// The sine of an angle in radians, reduced exactly for any finite angle.
    Sin,
    /// The cosine, likewise.
    Cos,
    /// `!x`, of truth values.
    Not,
}

/// Functions of two numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fn2 {
    /// `x + y`
    Add,
    /// `x - y`
    Sub,
    /// `x · y`
    Mul,
    /// `x / y`; of integers, rounded towards minus infinity (`y > 0`).
    Div,
    /// `x / y` of floats that is rounded to 8 bits next, and less than `2^17` in magnitude if it is a number: as [`Fn2::Div`]
    /// where it is at least `2^-20` (below that codes are zero), and perhaps off by the last bit where it is less, or `0` for `-0`.
    Quotient,
    /// `x - y · floor(x / y)`, of integers (`y > 0`).
    Rem,
    /// The larger; of floats, the other one if one is NaN.
    Max,
    /// The smaller; of floats, the other one if one is NaN.
    Min,
    /// `x < y`
    Lt,
    /// `x <= y`
    Le,
    /// `x == y`
    Eq,
    /// `x && y`
    And,
    /// `x || y`
    Or,
}

impl Fn2 {
    /// Whether the result is a truth value.
    pub fn is_predicate(self) -> bool {
        matches!(self, Fn2::Lt | Fn2::Le | Fn2::Eq | Fn2::And | Fn2::Or)
    }
}

/// An order of columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ColumnOrder {
    /// Column `c` is column `c ^ 1`: neighbours change places.
    SwapPairs,
    /// Column `c` of `n` is column `(c + n/2) % n`: the halves change places.
    SwapHalves,
}

impl Kernel {
    /// Whether elements of `buf`, which is read, are written by this kernel too: whether a buffer of the same tensor is.
    /// Each is then read by the thread that writes it, for what it writes there, and by no other.
    pub fn is_updated(&self, buf: Buf) -> bool {
        let BufData { name, access, .. } = &self.bufs[buf];
        let written = |other: &BufData| other.access == Access::Write && other.name == *name;
        *access == Access::Read && self.bufs.iter().any(|(_, other)| written(other))
    }

    /// The symbols that the kernel's grid, buffers and extents depend on, each once, in alphabetical order:
    /// the order in which their values are passed at launch.
    pub fn syms(&self) -> Vec<crate::dim::Sym> {
        fn visit(body: &[Inst], syms: &mut Vec<crate::dim::Sym>) {
            for inst in body {
                match inst {
                    Inst::Extent { dim, .. } => syms.extend(dim.syms()),
                    Inst::For { body, .. } | Inst::If { body, .. } => visit(body, syms),
                    Inst::Block(block::BlockInst::Roles { roles }) => {
                        roles.iter().for_each(|role| visit(&role.body, syms));
                    }
                    _ => {}
                }
            }
        }
        let mut syms: Vec<_> = self.grid.iter().flat_map(|axis| axis.extent.syms()).collect();
        for (_, buf) in self.bufs.iter() {
            let dims = buf.shape.iter().chain(&buf.strides).chain([&buf.offset]);
            syms.extend(dims.flat_map(Dim::syms));
            let Some(scaled) = &buf.scaled else { continue };
            let along =
                scaled.along.iter().flat_map(|axis| axis.steps.iter().chain([&axis.from, &axis.stride]));
            syms.extend(along.chain([&scaled.offset]).flat_map(Dim::syms));
        }
        visit(&self.body, &mut syms);
        syms.sort();
        syms.dedup();
        syms
    }
}
