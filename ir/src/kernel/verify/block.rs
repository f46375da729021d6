//! What each instruction of the block phase asks for.

use super::*;
use crate::kernel::block::{
    Block, BlockInst, Keep, Map, MapData, MmaLeft, MmaTile, Pipe, Shared, SharedData,
};

/// The number of threads of a warp.
const WARP: usize = 32;

impl<'k> Check<'k> {
    /// Checks all but what the bodies of roles and the assignment of the result ask for.
    pub(super) fn block_inst(&mut self, inst: &'k BlockInst) -> Checked {
        let Some(block) = &self.kernel.block else {
            return Err("the kernel says nothing of its threads".into());
        };
        self.place_of(inst, block)?;
        match inst {
            BlockInst::Thread { out } | BlockInst::Number { out } | BlockInst::Launched { out } => {
                self.gives(*out, RegType::scalar(Elem::I64))
            }
            BlockInst::Slots { out, values } => {
                self.gives(*out, RegType { elem: Elem::I64, rows: 1, cols: values.len() })
            }
            BlockInst::Pick { out, x, slots } => {
                let x = self.ty(*x)?;
                if let Some(slot) = slots.iter().find(|&&slot| usize::from(slot) >= x.cols) {
                    return Err(format!("{x} has no slot {slot}"));
                }
                self.gives(*out, RegType { cols: slots.len(), ..x })
            }
            BlockInst::Join { out, parts } => {
                let mut ty = RegType { cols: 0, ..self.out(*out)? };
                for &part in parts {
                    let part = self.ty(part)?;
                    is_for(&[ty.elem], part)?;
                    ty.cols = ty.cols.saturating_add(part.cols);
                }
                self.gives(*out, ty)
            }
            BlockInst::Fma { out, x, y, acc } => {
                let operands = [self.ty(*x)?, self.ty(*y)?, self.ty(*acc)?];
                for ty in operands {
                    is_for(&[Elem::F32], ty)?;
                }
                self.gives(*out, inst::stretch(&operands)?)
            }
            BlockInst::Load { out, from, mask } => {
                let (elem, out_ty) = (self.elements(from, Access::Read)?, self.out(*out)?);
                self.vectors(from, out_ty.cols, *mask)?;
                self.gives(*out, RegType { elem, rows: 1, ..out_ty })
            }
            BlockInst::Store { to, value, mask } => {
                let (elem, value) = (self.elements(to, Access::Write)?, self.ty(*value)?);
                is_for(&[elem], value)?;
                self.vectors(to, value.cols, *mask)
            }
            BlockInst::Shuffle { out, x, xor } => {
                let x = self.ty(*x)?;
                ensure((1..WARP).contains(xor), || format!("a warp has no threads {xor} apart"))?;
                self.gives(*out, x)
            }
            BlockInst::Barrier { id, warps } => {
                ensure(*id < BARRIERS, || format!("there are {BARRIERS} barriers"))?;
                if *warps != 1 {
                    self.block.barriers.push((self.block.role, *id, *warps));
                }
                Ok(())
            }
            BlockInst::Roles { roles } => self.roles(roles, block),

            BlockInst::Acquire { pipe, turn } | BlockInst::Wait { pipe, turn } => {
                self.pipe(block, *pipe)?;
                self.index(*turn)
            }
            BlockInst::Release { pipe, turn, when } => {
                self.pipe(block, *pipe)?;
                self.index(*turn)?;
                when.map_or(Ok(()), |when| self.truth(when))
            }
            BlockInst::Copy { pipe, turn, tile, map, at } => {
                let tiles = &self.pipe(block, *pipe)?.tiles;
                ensure(tiles.contains(tile), || format!("{tile} is not a tile of the pipe"))?;
                self.index(*turn)?;
                self.tiling(block, *tile, *map, at, Access::Read)
            }
            BlockInst::CopyOut { map, tile, turn, at, when } => {
                self.index(*turn)?;
                self.truth(*when)?;
                self.tiling(block, *tile, *map, at, Access::Write)
            }
            BlockInst::Mma { out, acc, keep, a, b, b_row, n, k } => {
                ensure(n % 8 == 0 && (8..=256).contains(n), || {
                    format!("{n} columns are not a multiple of 8 up to 256")
                })?;
                if let Keep::When(reg) = keep {
                    self.truth(*reg)?;
                }
                let right = self.operand(block, b, *b_row, *n, *k)?;
                match a {
                    MmaLeft::Shared { tile, row } => {
                        let left = self.operand(block, tile, *row, 64, *k)?;
                        let same = left == right || (left.bytes(), right.bytes()) == (1, 1);
                        ensure(same, || format!("{left} times {right}"))?;
                    }
                    MmaLeft::Registers(reg) => {
                        ensure(right != DType::Tf32, || format!("a left operand of {right} in registers"))?;
                        let (have, want) = (self.ty(*reg)?, floats(k / 2));
                        ensure(have == want, || format!("the left operand is {have}, not {want}"))?;
                    }
                }
                let acc = self.ty(*acc)?;
                ensure(acc == floats(n / 2), || {
                    format!("the product is {}, the accumulator {acc}", floats(n / 2))
                })?;
                self.gives(*out, acc)
            }
            BlockInst::MmaWait { pending, values } => {
                ensure(*pending < 8, || format!("{pending} products cannot be left unfinished: at most 7"))?;
                for (i, &(out, x)) in values.iter().enumerate() {
                    let ty = self.ty(x)?;
                    is_for(&[Elem::F32], ty)?;
                    let name = self.names.reg(x);
                    let once = !values[..i].iter().any(|(_, other)| *other == x);
                    ensure(once, || format!("{name} is waited for twice"))?;
                    ensure(self.scope[self.start..].contains(&x), || {
                        format!("{name} is assigned outside of this body, which may run again")
                    })?;
                    self.gives(out, ty)?;
                }
                Ok(())
            }
            BlockInst::FenceAsync | BlockInst::CopyOutWait { .. } => Ok(()),
        }
    }

    /// Checks that the instruction may be where it is, and notes what it does there.
    fn place_of(&mut self, inst: &'k BlockInst, block: &Block) -> Checked {
        use BlockInst::*;
        let plain = matches!(
            inst,
            Thread { .. }
                | Number { .. }
                | Launched { .. }
                | Slots { .. }
                | Pick { .. }
                | Join { .. }
                | Fma { .. }
                | Load { .. }
                | Store { .. }
        );
        ensure(plain || !self.block.guarded, || "is guarded by a condition".into())?;
        let role = self.block.role.map(|role| &self.block.roles[role]);
        let solo = role.is_some_and(|role| role.solo);
        let produces = matches!(inst, Acquire { .. } | Copy { .. });
        ensure(plain || produces || !solo, || "is not for a single thread".into())?;
        ensure(solo || !produces, || "is for a role of one thread".into())?;
        match inst {
            Wait { .. } | Release { .. } => ensure(role.is_some(), || "is for a role".into())?,
            Mma { .. } | MmaWait { .. } => {
                let warps = role.map_or(block.warps, |role| role.warps);
                ensure(warps.is_multiple_of(4), || format!("{warps} warps are no warpgroups"))?;
            }
            _ => {}
        }
        let part = match inst {
            Acquire { pipe, .. } => Some((*pipe, Part::Acquire)),
            Copy { pipe, tile, .. } => Some((*pipe, Part::Copy(*tile))),
            Wait { pipe, .. } => Some((*pipe, Part::Wait)),
            Release { pipe, .. } => Some((*pipe, Part::Release)),
            _ => None,
        };
        if let (Some((pipe, part)), Some(role)) = (part, self.block.role) {
            self.block.parts.push((pipe, role, part));
        }
        Ok(())
    }

    /// What elements of a memory are in a register, if it may be accessed like this.
    fn elements(&mut self, mem: &Mem, access: Access) -> Checked<Elem> {
        match mem.space {
            Space::Buf(buf) => self.access(buf, access),
            Space::Shared(shared) => {
                let data = self.kernel.block.as_ref().and_then(|block| block.shared.get(shared));
                let data = data.ok_or_else(|| format!("there is no shared memory {shared}"))?;
                Ok(if data.dtype.is_int() { Elem::I64 } else { Elem::F32 })
            }
            Space::Scratch(scratch) => Err(format!("{scratch} is not memory of the block phase")),
        }
    }

    /// Checks an access of `slots` elements of memory that exists.
    fn vectors(&mut self, mem: &Mem, slots: usize, mask: Option<Reg>) -> Checked {
        let index = self.ty(mem.index)?;
        is_for(&[Elem::I64], index)?;
        let v = slots / index.cols.max(1);
        ensure(v * index.cols == slots && [1, 2, 4, 8, 16].contains(&v), || {
            format!("{slots} elements are not 1, 2, 4, 8 or 16 for each of {} indices", index.cols)
        })?;
        let dtype = match mem.space {
            Space::Buf(buf) => self.kernel.bufs.get(buf).map(|data| data.dtype),
            Space::Shared(shared) => {
                self.kernel.block.as_ref().and_then(|block| block.shared.get(shared)).map(|data| data.dtype)
            }
            Space::Scratch(_) => None,
        };
        ensure(dtype.is_none_or(|dtype| v as i64 * dtype.bytes() <= 16), || {
            format!("{v} elements at once are more than 16 bytes")
        })?;
        let Some(mask) = mask else { return Ok(()) };
        let mask = self.ty(mask)?;
        is_for(&[Elem::Bool], mask)?;
        ensure([1, index.cols].contains(&mask.cols), || {
            format!("the mask {mask} is not for {} indices", index.cols)
        })
    }

    fn truth(&mut self, reg: Reg) -> Checked {
        let ty = self.ty(reg)?;
        ensure(ty == RegType::scalar(Elem::Bool), || {
            format!("{} is {ty}, not one truth value", self.names.reg(reg))
        })
    }

    fn pipe<'b>(&self, block: &'b Block, pipe: Pipe) -> Checked<&'b crate::kernel::block::PipeData> {
        block.pipes.get(pipe).ok_or_else(|| format!("there is no pipe {pipe}"))
    }

    fn shared<'b>(&self, block: &'b Block, shared: Shared) -> Checked<&'b SharedData> {
        block.shared.get(shared).ok_or_else(|| format!("there is no shared memory {shared}"))
    }

    /// Checks a bulk copy.
    fn tiling(&mut self, block: &Block, tile: Shared, map: Map, at: &[Reg], access: Access) -> Checked {
        let Some(&MapData { buf, rows, cols, swizzle, .. }) = block.maps.get(map) else {
            return Err(format!("there is no tiling {map}"));
        };
        self.access(buf, access)?;
        let (dtype, rank) = (self.kernel.bufs[buf].dtype, self.kernel.bufs[buf].shape.len());
        ensure(at.len() == rank, || format!("{} indices into a buffer of {rank} axes", at.len()))?;
        for &reg in at {
            self.index(reg)?;
        }
        let data = self.shared(block, tile)?;
        ensure(data.swizzle == swizzle, || {
            let [have, want] =
                [data.swizzle, swizzle].map(|yes| if yes { "swizzled" } else { "not swizzled" });
            format!("{tile} is {have}, but the boxes of {map} are {want}")
        })?;
        ensure((data.rows, data.cols, data.dtype) == (rows, cols, dtype), || {
            let tile = format!("{}[{}x{}]", data.dtype, data.rows, data.cols);
            format!("a box of {dtype}[{rows}x{cols}] and a tile of {tile}")
        })
    }

    /// Checks an operand of a product: `rows` rows from `row` on, `k` terms.
    fn operand(&mut self, block: &Block, tile: &MmaTile, row: Reg, rows: usize, k: usize) -> Checked<DType> {
        self.index(tile.turn)?;
        self.index(row)?;
        let data = self.shared(block, tile.tile)?;
        let (name, dtype) = (tile.tile, data.dtype);
        ensure(data.swizzle, || format!("{name} is not swizzled"))?;
        let types = [DType::Tf32, DType::Bf16, DType::F16, DType::F8E4M3, DType::F8E5M2];
        ensure(types.contains(&dtype), || format!("{dtype} is not a type of products"))?;
        ensure(!tile.transposed || dtype.bytes() == 2, || format!("{dtype} is not transposed"))?;
        let terms = 32 / dtype.bytes() as usize;
        ensure(k > 0 && k.is_multiple_of(terms), || format!("{k} terms are not a multiple of {terms}"))?;
        ensure(tile.first.is_multiple_of(16), || {
            format!("the first term, {}, is not a multiple of 16", tile.first)
        })?;
        let (all, summed) = if tile.transposed { (data.cols, data.rows) } else { (data.rows, data.cols) };
        ensure(rows <= all && tile.first.checked_add(k).is_some_and(|end| end <= summed), || {
            format!("{name} has {all} rows of {summed} terms")
        })
        .map(|()| dtype)
    }
}

fn floats(cols: usize) -> RegType {
    RegType { elem: Elem::F32, rows: 1, cols }
}
