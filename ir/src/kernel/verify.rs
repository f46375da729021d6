//! What a well-formed kernel is.
//!
//! Of any kernel:
//! 1. A buffer has a stride for each axis; tiles of the grid are at least 1 long. Scaled are only buffers of the tile
//!    phase, of 8-bit floats that are read. Their scales are in a buffer of `F32` or `E8M0` that is read and not scaled
//!    itself, in blocks of at least 1, with a step for each axis of the scaled buffer.
//! 2. A register is assigned once, and used only after that and inside the block that assigns it; a loop's
//!    index and carried arguments belong to its body, its results to the block around it.
//! 3. A register has 1 to [`MAX_TILE`] elements.
//! 4. Operands have the element types that the instruction is for, and shapes that stretch to the result's:
//!    each extent is 1 or that of the result, which is the largest. Only `Zip`, `Select` and a gather's index stretch.
//! 5. Constants are of their register's element type. Grid indices, extents, trip counts, indices and limits
//!    are `i64` scalars.
//! 6. What a loop carries keeps its type.
//! 7. A kernel loads from buffers it reads and stores to buffers it writes: integers as `i64`, floats as `f32`.
//! 8. Blocks nest no deeper than 32.
//!
//! In the tile phase:
//! 9. There is no private memory, and no instruction of the lane phase.
//! 10. A place has an index for each axis of the buffer; rows and columns run along different axes of it,
//!     or have extent 1 (a gather's or scatter's may have any); limits are on axes of it.
//! 11. An index or mask of a scatter has the shape of the tile, an index of a gather that or extents of 1.
//! 12. Folds and counts are along axis 0 or 1; columns change places in pairs or halves of an even number.
//!
//! In the lane phase:
//! 13. There is no instruction of the tile phase.
//! 14. A register has one row, and 1 or [`LANES`] columns; an `i64` is a scalar.
//! 15. Private memory has at most [`MAX_SCRATCH`] elements each, read and written as their own type.
//! 16. `Across` and `SwapPairs` have vectors of [`LANES`] floats.
//! 17. A microkernel's operands are floats: buffers that are read, or `f32` private memory other than the
//!     result's; its result is `f32` private memory. Operands with scales are buffers of 8-bit floats, their scales
//!     buffers of `F32` or `E8M0` that are read, in blocks of at least 1.
//!
//! In the block phase:
//! 18. There is no instruction of another phase but `If`, and no private memory. Only here the kernel says what its
//!     blocks are.
//! 19. A register has one row and 1 to [`MAX_SLOTS`] columns.
//! 20. A block has 1 to [`MAX_WARPS`] warps; it, a multiprocessor, a tile in shared memory and a pipe are not empty.
//! 21. Shared memory holds `F32`, `Tf32`, `Bf16`, `F16`, `F8E4M3`, `F8E5M2` or `I64`, [`MAX_SHARED`] bytes in all. Swizzled
//!     tiles have a multiple of 8 rows, of a multiple of 128 bytes each.
//! 22. A tile is in one pipe at most, and has as many stages as the pipe.
//! 23. A tiling is of a buffer of 2 to 5 axes, along two of them; its columns have stride 1, all other strides and the
//!     offset are multiples of 16 bytes whatever the extents are; a box has at most 256 rows. One that is not swizzled
//!     has one row of at most 256 columns and a multiple of 128 bytes. Box and tile of a bulk copy have the same shape
//!     and type, and both are swizzled or neither is.
//! 24. Roles are the last instruction of the kernel's body. Their warps are multiples of 4 and those of the block;
//!     their threads have at most [`MAX_REGISTERS`] registers together.
//! 25. A pipe is acquired and all its tiles are filled by one role, of a single thread. Its consumers are the warps of
//!     the roles that wait for and release it. Those are not single threads, which also have no barrier, shuffle,
//!     product, fence or bulk copy to a buffer.
//! 26. No instruction that concerns other threads is guarded by an `If`: within it are only arithmetic, loops, loads
//!     and stores.
//! 27. A barrier of several warps is of all warps of the roles that come to it; before roles, or without, of all.
//! 28. A load or store has 1, 2, 4, 8 or 16 elements for each slot of the index, of 16 bytes at most, and a mask of
//!     one slot or of as many as the index.
//! 29. Products are by warpgroups: roles of a multiple of 4 warps. Shared operands are swizzled, of equal 16-bit types,
//!     both `Tf32`, or of 8-bit types; only 16-bit types are transposed, and `Tf32` is in shared memory. Terms come in multiples of
//!     16 (8-bit types: 32, `Tf32`: 8), start at a multiple of 16, and are inside the tile; columns are a multiple of 8 up to 256.
//! 30. What is waited for with [`BlockInst::MmaWait`] is assigned in the same body and not used afterwards; at
//!     most 7 products are left unfinished.

use super::block::BlockInst;
use super::print::{MAX_DEPTH, Names};
use super::*;
use crate::entity::Entity;
use crate::types::DType;
use inst::is_for;
use roles::{Part, Threads};

mod block;
mod inst;
mod roles;

/// The most elements of a register.
pub const MAX_TILE: usize = 1 << 20;
/// The most elements of one private memory.
pub const MAX_SCRATCH: usize = 1 << 24;
/// The number of lanes of a vector in the lane phase.
pub const LANES: usize = 4;
/// The most slots of a register in the block phase.
pub const MAX_SLOTS: usize = 512;
/// The most warps of a block.
pub const MAX_WARPS: usize = 32;
/// The most bytes of shared memory that a block has.
pub const MAX_SHARED: usize = 227 << 10;
/// The registers of a multiprocessor.
pub const MAX_REGISTERS: usize = 64 << 10;
/// How many barriers of several warps there are.
const BARRIERS: usize = 16;

impl RegType {
    /// Whether there are 1 to [`MAX_TILE`] elements.
    pub(super) fn fits(self) -> bool {
        self.rows.checked_mul(self.cols).is_some_and(|n| (1..=MAX_TILE).contains(&n))
    }
}

/// Checks that `kernel` is well-formed; see the [module](self) for what that is.
/// Errors are sentences without a full stop that name instructions and registers as its text does.
pub fn verify(kernel: &Kernel) -> Result<(), Vec<String>> {
    let mut check = Check {
        kernel,
        names: Names::new(kernel),
        errors: Vec::new(),
        assigned: vec![false; kernel.regs.len()],
        visible: vec![false; kernel.regs.len()],
        scope: Vec::new(),
        start: 0,
        block: Threads::default(),
    };
    check.header();
    check.block_header();
    check.block(&kernel.body, 1);
    check.finish_block();
    if check.errors.is_empty() { Ok(()) } else { Err(check.errors) }
}

/// The result of one check; an error is a clause that follows the instruction's text.
type Checked<T = ()> = Result<T, String>;

struct Check<'k> {
    kernel: &'k Kernel,
    names: Names<'k>,
    errors: Vec<String>,
    assigned: Vec<bool>,
    visible: Vec<bool>,
    /// The registers that are visible, in the order in which they became so.
    scope: Vec<Reg>,
    /// How many of them are from outside of the innermost body.
    start: usize,
    block: Threads<'k>,
}

impl<'k> Check<'k> {
    fn header(&mut self) {
        for (buf, data) in self.kernel.bufs.iter() {
            if data.strides.len() != data.shape.len() {
                let (strides, axes) = (data.strides.len(), data.shape.len());
                self.errors.push(format!(
                    "the buffer {buf} (`{}`) has {axes} axes and {strides} strides",
                    data.name
                ));
            }
        }
        for (buf, data) in self.kernel.bufs.iter() {
            let Some(scaled) = &data.scaled else { continue };
            if let Err(why) = self.scaled(data, scaled) {
                self.errors.push(format!("the buffer {buf} (`{}`) is scaled, but {why}", data.name));
            }
        }
        for (axis, data) in self.kernel.grid.iter().enumerate() {
            if data.tile < 1 {
                self.errors.push(format!("axis {axis} of the grid is cut into tiles of {}", data.tile));
            }
        }
        for (scratch, data) in self.kernel.scratch.iter() {
            if self.kernel.phase != Phase::Lane {
                let phase = phase_name(self.kernel.phase);
                self.errors.push(format!("the private memory {scratch} is there in the {phase} phase"));
            }
            if data.len > MAX_SCRATCH {
                let len = data.len;
                self.errors.push(format!(
                    "the private memory {scratch} has {len} elements, more than {MAX_SCRATCH}"
                ));
            }
        }
    }

    fn scaled(&self, data: &BufData, scaled: &Scaled) -> Checked {
        ensure(self.kernel.phase == Phase::Tile, || {
            format!("this is the {} phase", phase_name(self.kernel.phase))
        })?;
        ensure(data.access == Access::Read, || "it is written".into())?;
        ensure(is_code(data.dtype), || format!("its elements are {}, not 8-bit floats", data.dtype))?;
        self.scales(scaled.by)?;
        for axis in &scaled.along {
            let (block, steps, axes) = (axis.block, axis.steps.len(), data.shape.len());
            ensure(block >= 1, || format!("{block} neighbours share a scale"))?;
            ensure(steps == axes, || format!("it has {axes} axes and its scales {steps} steps"))?;
        }
        Ok(())
    }

    /// Checks a buffer that scales are read from.
    fn scales(&self, by: Buf) -> Checked {
        let by = self.kernel.bufs.get(by).ok_or_else(|| format!("there is no buffer {by} of scales"))?;
        let named = |why: String| format!("`{}`, which has its scales, {why}", by.name);
        ensure(by.access == Access::Read, || named("is only written".into()))?;
        ensure(by.scaled.is_none(), || named("is scaled itself".into()))?;
        ensure(matches!(by.dtype, DType::F32 | DType::E8M0), || named(format!("holds {}", by.dtype)))
    }

    fn block(&mut self, body: &'k [Inst], depth: usize) {
        if depth > MAX_DEPTH {
            self.errors.push(format!("blocks nest deeper than {MAX_DEPTH}"));
            return;
        }
        for (i, inst) in body.iter().enumerate() {
            self.block.last = depth == 1 && i + 1 == body.len();
            let checked = self.inst(inst);
            self.note(inst, checked);
            let (outer, start) = (self.scope.len(), self.start);
            self.start = outer;
            match inst {
                Inst::For { index, carried, body, .. } => {
                    for reg in [*index].into_iter().chain(carried.iter().map(|c| c.arg)) {
                        self.define(inst, reg);
                    }
                    self.block(body, depth + 1);
                    for c in carried {
                        let checked = self.carries(c);
                        self.note(inst, checked);
                    }
                    self.close(outer);
                    carried.iter().for_each(|c| self.define(inst, c.out));
                }
                Inst::If { body, .. } => {
                    let guarded = std::mem::replace(&mut self.block.guarded, true);
                    self.block(body, depth + 1);
                    self.block.guarded = guarded;
                    self.close(outer);
                }
                Inst::Block(BlockInst::Roles { roles }) if self.block.role.is_none() => {
                    self.block.roles = roles;
                    for (i, role) in roles.iter().enumerate() {
                        self.block.role = Some(i);
                        // As deep as it is printed.
                        self.block(&role.body, depth + 2);
                        self.close(outer);
                    }
                    self.block.role = None;
                }
                Inst::Block(BlockInst::MmaWait { values, .. }) => {
                    for &(out, x) in values {
                        if let Some(visible) = self.visible.get_mut(x.index()) {
                            *visible = false;
                        }
                        self.define(inst, out);
                    }
                }
                _ => {
                    if let Some(out) = super::print::single_out(inst) {
                        self.define(inst, out);
                    }
                }
            }
            self.start = start;
        }
    }

    /// Ends a block: what became visible in it is no longer.
    fn close(&mut self, outer: usize) {
        for reg in self.scope.drain(outer..) {
            self.visible[reg.index()] = false;
        }
    }

    fn note(&mut self, inst: &Inst, checked: Checked) {
        if let Err(why) = checked {
            self.errors.push(format!("`{}`: {why}", self.names.inst(inst)));
        }
    }

    /// Assigns a register.
    fn define(&mut self, inst: &Inst, reg: Reg) {
        let checked = self.definable(reg);
        self.note(inst, checked);
        if reg.index() < self.visible.len() {
            self.assigned[reg.index()] = true;
            self.visible[reg.index()] = true;
            self.scope.push(reg);
        }
    }

    fn definable(&mut self, reg: Reg) -> Checked {
        let name = self.names.reg(reg);
        let Some(&ty) = self.kernel.regs.get(reg) else { return Err(format!("{name} has no type")) };
        ensure(!self.assigned[reg.index()], || format!("{name} is assigned twice"))?;
        ensure(ty.fits(), || {
            format!("{name} has {} rows and {} columns: not 1 to {MAX_TILE} elements", ty.rows, ty.cols)
        })?;
        if self.kernel.phase == Phase::Lane {
            ensure(ty.rows == 1 && [1, LANES].contains(&ty.cols), || {
                format!("{name} is {ty}, not a scalar or a vector of {LANES} lanes")
            })?;
            ensure(ty.elem != Elem::I64 || ty.cols == 1, || format!("{name} is a vector of integers"))?;
        }
        if self.kernel.phase == Phase::Block {
            ensure(ty.rows == 1 && ty.cols <= MAX_SLOTS, || {
                format!("{name} is {ty}, not one row of at most {MAX_SLOTS} slots")
            })?;
        }
        Ok(())
    }

    /// The type of a register that is used.
    fn ty(&mut self, reg: Reg) -> Checked<RegType> {
        let visible = self.visible.get(reg.index()) == Some(&true);
        ensure(visible, || format!("{} is not assigned here", self.names.reg(reg)))?;
        Ok(self.kernel.regs[reg])
    }

    fn carries(&mut self, c: &Carried) -> Checked {
        // `init` is outside of the body and was checked there; `arg` may have been waited for.
        let declared = |reg| self.kernel.regs.get(reg).copied();
        let (init, arg, out) = (declared(c.init), declared(c.arg), declared(c.out));
        let (Some(arg), next) = (arg, self.ty(c.next)?) else { return Ok(()) };
        ensure(init == Some(arg) && next == arg && out == Some(arg), || {
            let show = |ty: Option<RegType>| ty.map_or("nothing".into(), |ty| ty.to_string());
            let (init, out) = (show(init), show(out));
            format!(
                "{} is {arg}, but starts as {init}, goes on as {next} and ends as {out}",
                self.names.reg(c.arg)
            )
        })
    }
}

fn phase_name(phase: Phase) -> &'static str {
    match phase {
        Phase::Tile => "tile",
        Phase::Lane => "lane",
        Phase::Block => "block",
    }
}

/// Whether numbers of this type may have scales.
fn is_code(dtype: DType) -> bool {
    matches!(dtype, DType::F8E4M3 | DType::F8E5M2)
}

fn ensure(holds: bool, why: impl FnOnce() -> String) -> Checked {
    if holds { Ok(()) } else { Err(why()) }
}
