//! Stores some columns at a time, with what is computed for nothing else.
//!
//! A tile of a product is as large as registers allow. What is done to it afterwards (`silu(gate) · up`, a residual
//! sum) has other operands as large, so all of it at once does not fit. Element-wise instructions that only lead to a
//! store are therefore written once for each part of its columns, the loads of a part before the arithmetic of the one
//! before it.

use super::super::walk::{operands, result};
use super::Result;
use super::body::Spread;
use super::layout::Axis;
use eva_ir::kernel::*;
use std::collections::{HashMap, HashSet};

/// How many slots a part should have.
const SLOTS: usize = 8;

/// What only leads to a store, in the kernel's order.
#[derive(Clone, Default)]
pub(super) struct Tail<'k> {
    loads: Vec<&'k Inst>,
    rest: Vec<&'k Inst>,
}

impl<'k> Tail<'k> {
    /// The instructions.
    pub fn insts(&self) -> impl Iterator<Item = &'k Inst> {
        self.loads.iter().chain(&self.rest).copied()
    }
}

/// Some columns of all tiles that have as many.
pub(super) struct Part {
    /// How many columns those tiles have.
    pub cols: usize,
    /// Slots along the columns.
    pub slots: Vec<usize>,
}

impl<'k> Spread<'_, 'k> {
    /// The layouts of the two axes of a tile, or of the part of it that is being written.
    pub fn axes(&self, extents: [usize; 2]) -> [Axis; 2] {
        [self.axis(0, extents[0]), self.axis(1, extents[1])]
    }

    /// The layout of one axis, likewise.
    pub fn axis(&self, axis: usize, n: usize) -> Axis {
        let mut layout = self.family.axis(axis, n);
        if let Some(part) = self.part.as_ref().filter(|part| axis == 1 && n == part.cols) {
            layout.slots = part.slots.iter().map(|&slot| layout.slots[slot]).collect();
        }
        layout
    }

    /// For each store of a block that is done in parts, what only leads to it.
    pub fn tails(&self, body: &'k [Inst]) -> HashMap<*const Inst, Tail<'k>> {
        let mut tails = HashMap::new();
        for (at, inst) in body.iter().enumerate() {
            let Inst::Store { value, .. } = inst else { continue };
            let ty = self.info.ty(*value);
            if ty.cols > 1 && self.slots(ty) > SLOTS {
                tails.insert(std::ptr::from_ref(inst), self.tail(&body[..at], *value, ty.cols));
            }
        }
        tails
    }

    fn tail(&self, before: &'k [Inst], value: Reg, cols: usize) -> Tail<'k> {
        let mut own: HashSet<Reg> = HashSet::new();
        let mut tail = Tail::default();
        // What is read later must not be written in between.
        let mut written = false;
        for inst in before.iter().rev() {
            written |= matches!(inst, Inst::For { .. } | Inst::Store { .. } | Inst::Scatter { .. });
            let Some(out) = result(inst) else { continue };
            let users = self.users.get(&out).map_or(&[][..], |users| users);
            // A store's operand is noted as a user of itself.
            let only =
                if out == value { users == [out] } else { users.iter().all(|user| own.contains(user)) };
            if users.is_empty() || !only || self.info.ty(out).cols != cols {
                continue;
            }
            match inst {
                Inst::Load { .. } if !written => tail.loads.push(inst),
                Inst::Map { .. }
                | Inst::Zip { .. }
                | Inst::Select { .. }
                | Inst::Cast { .. }
                | Inst::Round { .. } => tail.rest.push(inst),
                _ => continue,
            }
            own.insert(out);
        }
        tail.loads.reverse();
        tail.rest.reverse();
        tail
    }

    /// Slots along the columns of a tile of type `ty`, part by part.
    pub fn parts(&self, ty: RegType, slots: &[usize]) -> Vec<Vec<usize>> {
        // Pairs of neighbours stay together.
        let step = (SLOTS / self.family.axis(0, ty.rows).len().max(1)).max(2);
        slots.chunks(step).map(<[usize]>::to_vec).collect()
    }

    /// Calls `store` for each part of a store's columns, with what is stored.
    pub fn in_parts(
        &mut self,
        tail: &Tail<'k>,
        value: Reg,
        parts: Vec<Vec<usize>>,
        store: &mut dyn FnMut(&mut Self, usize, Reg) -> Result<()>,
    ) -> Result<()> {
        let own: HashSet<Reg> = tail.insts().filter_map(result).collect();
        let read = tail.insts().flat_map(operands).chain([value]);
        let cols = self.info.ty(value).cols;
        let outside: HashSet<Reg> =
            read.filter(|&reg| !own.contains(&reg) && self.info.ty(reg).cols == cols).collect();
        let mut whole = Vec::new();
        for reg in outside {
            whole.push((reg, self.value(reg)?));
        }
        whole.sort();
        let mut ahead = Vec::new();
        for part in 0..parts.len() {
            let loaded = match part {
                0 => self.load_part(tail, cols, &parts[0])?,
                _ => std::mem::take(&mut ahead),
            };
            if let Some(next) = parts.get(part + 1) {
                ahead = self.load_part(tail, cols, next)?;
            }
            for &(reg, all) in &whole {
                let value = self.picked(all, self.info.ty(reg), &parts[part]);
                self.set(reg, value);
            }
            self.part = Some(Part { cols, slots: parts[part].clone() });
            loaded.into_iter().for_each(|(reg, value)| self.set(reg, value));
            for inst in &tail.rest {
                self.inst(inst)?;
            }
            let part_value = self.full(value)?;
            store(self, part, part_value)?;
            self.part = None;
            whole.iter().for_each(|&(reg, all)| self.set(reg, all));
        }
        Ok(())
    }

    /// What the loads of a part give.
    fn load_part(&mut self, tail: &Tail<'k>, cols: usize, part: &[usize]) -> Result<Vec<(Reg, Reg)>> {
        self.part = Some(Part { cols, slots: part.to_vec() });
        let mut loaded = Vec::new();
        for inst in &tail.loads {
            self.inst(inst)?;
            let out = result(inst).expect("a load has a result");
            loaded.push((out, self.value(out)?));
        }
        self.part = None;
        Ok(loaded)
    }

    /// A part of a tile of all columns.
    fn picked(&mut self, value: Reg, ty: RegType, part: &[usize]) -> Reg {
        let axes = self.family.axes([ty.rows, ty.cols]);
        let slots = self.family.slots([&axes[0], &axes[1]]).into_iter().enumerate();
        let wanted = slots.filter(|(_, slot)| part.contains(&slot[1])).map(|(i, _)| i).collect();
        self.w.pick(value, wanted)
    }
}
