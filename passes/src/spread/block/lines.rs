//! Rows and columns of numbers that come through pipes beside the operands of products: scales of 8-bit floats, each
//! row's and each column's own.
//!
//! Each thread needs some of every line, and neighbours in it the same ones: read from memory by themselves they would
//! take more instructions, registers and waiting than the products.

use super::Result;
use super::access::{begins_aligned, is_aligned};
use super::body::Spread;
use super::info::Info;
use super::pipes::{Fed, Fill};
use super::tensor::{GROUP_ROWS, Products};
use super::uses::{is_plain, load_of};
use eva_ir::dim::Dim;
use eva_ir::entity::Entity;
use eva_ir::kernel::block::Shared;
use eva_ir::kernel::*;
use eva_ir::types::DType;
use std::collections::HashMap;

/// Bytes that a line is a multiple of, as bulk copies write it.
const LINE: usize = 128;
/// The most elements that a thread reads at once: 16 bytes.
const LONGEST_READ: usize = 4;
/// The most elements of a line.
const LONGEST: usize = 256;

impl Products {
    /// Takes lines of `f32` into the pipes of the products that they are in a block with, where those are of 8-bit floats.
    pub(super) fn find_lines(&mut self, info: &Info<'_>, body: &[Inst], users: &HashMap<Reg, Vec<Reg>>) {
        let pipe = body.iter().find_map(|inst| match inst {
            Inst::Dot { out, x, .. } if self.is_fresh(*out) => Some(self.fills[self.fed.get(x)?.fill].pipe),
            _ => None,
        });
        for inst in body {
            match inst {
                Inst::For { body, .. } => self.find_lines(info, body, users),
                Inst::Load { out, .. } if let Some(pipe) = pipe => {
                    // What a loop carries is read a trip before, and is there in time.
                    let carried = users.get(out).is_some_and(|users| users.contains(out));
                    if !carried {
                        self.find_line(info, *out, pipe);
                    }
                }
                _ => {}
            }
        }
    }

    /// Takes a load into a pipe, if it is of a line that a bulk copy can bring.
    fn find_line(&mut self, info: &Info<'_>, load: Reg, pipe: usize) {
        let (ty, Some(place)) = (info.ty(load), load_of(info, load)) else { return };
        let side = match (ty.rows, ty.cols) {
            (1, 1) => return,
            (_, 1) => 0,
            (1, _) => 1,
            _ => return,
        };
        let (data, Some(along)) = (&info.kernel.bufs[place.buf], place.axes[side]) else { return };
        let aligned = |dim: &Dim| is_aligned(dim, DType::F32);
        let mut others = (0..data.shape.len()).rev().filter(|&axis| axis != along);
        let cols = if side == 0 { ty.rows.next_multiple_of(GROUP_ROWS * self.groups[0]) } else { ty.cols };
        let cols = cols.next_multiple_of(LINE / DType::F32.bytes() as usize);
        let fits = data.dtype == DType::F32
            && data.scaled.is_none()
            && (2..=5).contains(&data.shape.len())
            && data.strides[along] == Dim::from(1)
            && aligned(&data.offset)
            && others.clone().all(|axis| aligned(&data.strides[axis]))
            && cols <= LONGEST
            && self.groups[1] == 1
            && place.limits.is_empty()
            && begins_aligned(info, place.at[along], DType::F32)
            && place.at.iter().all(|&at| is_plain(info, at));
        let (true, Some(other)) = (fits, others.next()) else { return };
        let (place, axes, dtype) = (place.clone(), [other, along], DType::F32);
        self.fills.push(Fill { place, axes, rows: 1, cols, dtype, swizzle: false, pipe });
        let fill = self.fills.len() - 1;
        self.pipes[pipe].fills.push(fill);
        self.fed.insert(load, Fed { fill, first: 0, transposed: false });
    }

    /// Whether there are any.
    pub fn has_lines(&self) -> bool {
        self.fills.iter().any(|fill| !fill.swizzle)
    }

    /// The fill of a load that is a line.
    pub fn line_of(&self, load: Reg) -> Option<usize> {
        self.fed.get(&load).map(|fed| fed.fill).filter(|&fill| !self.fills[fill].swizzle)
    }
}

impl Spread<'_, '_> {
    /// A thread's elements of a line that a pipe has brought.
    pub(super) fn line(&mut self, load: Reg, fill: usize) -> Result<Reg> {
        let products = self.products.expect("a pipe is a product's");
        let ty = self.info.ty(load);
        let data = &products.fills[fill];
        let (turn, stages) = (self.turns[&data.pipe], products.pipes[data.pipe].stages);
        let axes = self.axes([ty.rows, ty.cols]);
        let side = usize::from(ty.rows == 1);
        let run = if side == 1 { axes[1].run().min(LONGEST_READ) } else { 1 };
        let slots = self.family.slots([&axes[0], &axes[1]]).into_iter().step_by(run);
        let table = slots.map(|slot| axes[side].slots[slot[side]] as i64).collect();
        let stage = self.w.zip_int(Fn2::Rem, turn, stages as i64);
        let first = self.w.times(stage, data.cols as i64);
        let mine = self.digits(&axes[side].threads);
        let mine = self.w.add(first, mine);
        let table = self.w.table(table);
        let index = self.w.add(mine, table);
        let count = self.w.slots(index) * run;
        let tile = Shared::new(self.tile_of(fill));
        Ok(self.w.load(Elem::F32, count, Space::Shared(tile), index, None))
    }
}
