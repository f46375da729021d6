//! Rows as blocks of neighbours, where they lie.
//!
//! A row whose blocks are folded one by one is reshaped to blocks × neighbours. In the kernel's own layout that would be
//! another tile, whose elements other threads have. But where blocks are as long as a power of two, the low digits of an
//! index along the row are those of the place in a block, and the others the number of the block. So that tile gets a
//! [`Family`] with the row's digits divided among its axes; every thread has what it has. What is computed of such
//! tiles lies as they do, until they are a row again.

use super::super::walk::{operands, result};
use super::info::Info;
use super::layout::Family;
use eva_ir::kernel::{Inst, Reg, RegType};
use std::collections::{HashMap, HashSet};

/// The tiles of a kernel that are not laid out as the others.
#[derive(Default)]
pub(super) struct Folds {
    /// How each is laid out, and the reshape that began it.
    families: HashMap<Reg, (Family, Reg)>,
    /// Results of reshapes that lie as their operands do.
    stay: HashSet<Reg>,
}

impl Folds {
    /// Finds all that can be: what a tile so laid out is used for must be able to go on with it.
    pub fn find(info: &Info<'_>, family: &Family) -> Self {
        let mut refused = HashSet::new();
        loop {
            let mut search = Search { info, family, refused: &refused, found: Folds::default() };
            match search.block(&info.kernel.body) {
                Ok(()) => return search.found,
                Err(begin) => refused.insert(begin),
            };
        }
    }

    /// The layout that an instruction is written in, if it is not the kernel's.
    pub fn layout_of(&self, inst: &Inst) -> Option<Family> {
        if self.families.is_empty() || matches!(inst, Inst::For { .. }) {
            return None;
        }
        operands(inst).iter().find_map(|reg| self.families.get(reg)).map(|(family, _)| family.clone())
    }

    /// Whether every element of a reshape's result is where it was.
    pub fn stays(&self, out: Reg) -> bool {
        self.stay.contains(&out)
    }
}

/// Goes through a kernel; an error is the reshape that had better not be one of these.
struct Search<'a, 'k> {
    info: &'a Info<'k>,
    family: &'a Family,
    refused: &'a HashSet<Reg>,
    found: Folds,
}

impl Search<'_, '_> {
    fn block(&mut self, body: &[Inst]) -> Result<(), Reg> {
        body.iter().try_for_each(|inst| self.inst(inst))
    }

    fn inst(&mut self, inst: &Inst) -> Result<(), Reg> {
        if let Inst::For { body, carried, .. } = inst {
            self.block(body)?;
            let regs = operands(inst).into_iter().chain(carried.iter().map(|c| c.next));
            return regs
                .filter_map(|reg| self.found.families.get(&reg))
                .try_for_each(|(_, begin)| Err(*begin));
        }
        let found = operands(inst).iter().find_map(|reg| self.found.families.get(reg)).cloned();
        let Some((family, begin)) = found else {
            self.begin(inst);
            return Ok(());
        };
        match inst {
            Inst::Map { .. }
            | Inst::Zip { .. }
            | Inst::Select { .. }
            | Inst::Cast { .. }
            | Inst::Round { .. } => {
                if !operands(inst).iter().all(|&reg| self.lies(reg, &family)) {
                    return Err(begin);
                }
            }
            Inst::Reduce { .. } | Inst::Store { .. } => {}
            Inst::Reshape { out, x } => {
                let (from, to) = (self.info.ty(*x), self.info.ty(*out));
                let turned = Family { bits: [Vec::new(), family.bits[0].clone()], ..family.clone() };
                let ways = [self.family.clone(), turned, family.clone()];
                let way =
                    ways.into_iter().find(|way| places(way, to) == places(&family, from)).ok_or(begin)?;
                self.found.stay.insert(*out);
                if way != *self.family {
                    self.found.families.insert(*out, (way, begin));
                }
                return Ok(());
            }
            _ => return Err(begin),
        }
        // A single element is the same everywhere.
        if let Some(out) = result(inst).filter(|&out| elements(self.info.ty(out)) > 1) {
            self.found.families.insert(out, (family, begin));
        }
        Ok(())
    }

    /// Takes note of a row that becomes blocks where it lies.
    fn begin(&mut self, inst: &Inst) {
        let Inst::Reshape { out, x } = inst else { return };
        let (from, to) = (self.info.ty(*x), self.info.ty(*out));
        if from.rows != 1 || to.rows == 1 || self.refused.contains(out) {
            return;
        }
        let family = divided(self.family, to.cols, &self.family.bits[1]);
        if places(&family, to) == places(self.family, from) {
            self.found.stay.insert(*out);
            self.found.families.insert(*out, (family, *out));
        }
    }

    /// Whether a tile lies in `family`, or would if it were said to.
    fn lies(&self, reg: Reg, family: &Family) -> bool {
        let ty = self.info.ty(reg);
        match self.found.families.get(&reg) {
            Some((own, _)) => own == family,
            None => {
                elements(ty) == 1
                    || matches!(self.info.inst(reg), Some(Inst::Const { .. }))
                    || places(self.family, ty) == places(family, ty)
            }
        }
    }
}

fn elements(ty: RegType) -> usize {
    ty.rows * ty.cols
}

/// The layout in which columns have the low ones of a row's digits, as many as blocks of `cols` have, and rows the others.
fn divided(family: &Family, cols: usize, digits: &[super::layout::Bit]) -> Family {
    let (low, high) = digits.split_at(digits.len().min(cols.trailing_zeros() as usize));
    Family { bits: [high.to_vec(), low.to_vec()], ..family.clone() }
}

/// Where each element of a tile is: what digits of the thread's number add to its number in the order of rows, and slots.
fn places(family: &Family, ty: RegType) -> (Vec<(u32, usize)>, Vec<usize>) {
    let axes = family.axes([ty.rows, ty.cols]);
    let steps = [ty.cols, 1];
    let of_axis = |i: usize| axes[i].threads.iter().map(move |&(digit, by)| (digit, by * steps[i]));
    let mut threads: Vec<_> = of_axis(0).chain(of_axis(1)).collect();
    threads.sort();
    let place = |[row, col]: [usize; 2]| axes[0].slots[row] * steps[0] + axes[1].slots[col];
    (threads, family.slots([&axes[0], &axes[1]]).into_iter().map(place).collect())
}
