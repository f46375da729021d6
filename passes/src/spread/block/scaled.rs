//! Scales of what is loaded from a buffer of 8-bit floats; see [`Scaled`].

use super::Result;
use super::access::{dim_multiple, multiple_of};
use super::body::Spread;
use super::layout::Axis;
use eva_ir::kernel::*;

/// A load of codes, as it is written.
pub(super) struct Codes<'a> {
    pub place: &'a Place,
    pub ty: RegType,
    pub gather: Option<(usize, Reg)>,
    pub axes: &'a [Axis; 2],
    /// Which slot of each axis the slots of the tile are.
    pub slots: &'a [[usize; 2]],
    /// How many slots one access has.
    pub width: usize,
    /// Which accesses are done, if not all are: one slot for each access, or one for all.
    pub mask: Option<Reg>,
}

impl Spread<'_, '_> {
    /// `values` times their scales.
    pub fn scaled(&mut self, values: Reg, scaled: &Scaled, codes: &Codes<'_>) -> Result<Reg> {
        let Codes { place, ty, gather, axes, slots, width, mask } = *codes;
        // Codes of one access have one scale where no block ends among them.
        let shared = codes.gather.is_none() && scaled.along.iter().all(|axis| self.is_shared(axis, codes));
        let step = if shared { width } else { 1 };
        let slots: Vec<[usize; 2]> = slots.iter().copied().step_by(step).collect();
        let mut index = self.w.extent(&scaled.offset);
        for along in &scaled.along {
            let mut at = self.w.extent(&along.from);
            for (axis, steps) in along.steps.iter().enumerate() {
                if steps.as_const() == Some(0) {
                    continue;
                }
                let mut own = self.value(place.at[axis])?;
                for i in 0..2 {
                    if place.axes[i] == Some(axis) && axes[i].n > 1 {
                        let part = self.digits(&axes[i].threads);
                        let table = self.w.table(slots.iter().map(|s| axes[i].slots[s[i]] as i64).collect());
                        let part = self.w.add(part, table);
                        own = self.w.add(own, part);
                    }
                }
                if let Some((_, by)) = gather.filter(|(along, _)| *along == axis) {
                    let by = self.shift(by, ty)?;
                    own = self.w.add(own, by);
                }
                let steps = self.w.extent(steps);
                let part = self.w.mul(own, steps);
                at = self.w.add(at, part);
            }
            let (number, stride) = (self.w.zip_int(Fn2::Div, at, along.block), self.w.extent(&along.stride));
            let part = self.w.mul(number, stride);
            index = self.w.add(index, part);
        }
        let one = self.w.slots(index) == 1;
        // One scale for all is read if any code is, and it is no code of such a tile that has no place in memory.
        let mask = match mask {
            Some(mask) if self.w.slots(mask) > 1 && step == 1 && width > 1 => {
                Some(self.w.pick(mask, (0..slots.len()).map(|slot| slot / width).collect()))
            }
            mask => mask,
        };
        if one && mask.is_some_and(|mask| self.w.slots(mask) > 1) {
            index = self.w.stretch(index, slots.len());
        }
        let n = self.w.slots(index);
        let scales = self.w.load(Elem::F32, n, Space::Buf(scaled.by), index, mask);
        let scales = if n == 1 || step == 1 {
            scales
        } else {
            self.w.pick(scales, (0..n * step).map(|slot| slot / step).collect())
        };
        Ok(self.w.zip(Fn2::Mul, values, scales))
    }

    /// Whether codes of one access, which are neighbours along the columns, are in one block along an axis.
    fn is_shared(&self, along: &ScaledAxis, codes: &Codes<'_>) -> bool {
        let Some(col) = codes.place.axes[1].filter(|_| codes.width > 1) else { return true };
        let width = codes.width as i64;
        let others = along.steps.iter().enumerate().filter(|(axis, _)| *axis != col);
        let whole = |axis: usize| multiple_of(self.info, codes.place.at[axis]) % width == 0;
        along.steps[col].as_const() == Some(0)
            || along.steps[col].as_const() == Some(1)
                && along.block % width == 0
                && dim_multiple(&along.from) % width == 0
                && whole(col)
                && others.into_iter().all(|(_, steps)| dim_multiple(steps) % width == 0)
    }
}
