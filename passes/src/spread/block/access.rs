//! Loads and stores of tiles: addresses, and what must not be touched.

use super::Result;
use super::body::Spread;
use super::info::{Along, Check, Def, End, Info};
use super::layout::Axis;
use super::scaled::Codes;
use eva_ir::dim::Dim;
use eva_ir::kernel::*;
use eva_ir::types::DType;
use std::collections::HashMap;

/// The most bytes of one access of a thread.
pub(super) const MOST_BYTES: i64 = 16;
/// How far a chain of operands is followed.
const DEEPEST: usize = 40;

/// The largest power of two, up to [`MOST_BYTES`], that divides a register's value.
fn multiple(info: &Info<'_>, reg: Reg, depth: usize) -> i64 {
    let known =
        |n: i64| if n == 0 { MOST_BYTES } else { (1i64 << n.trailing_zeros().min(62)).min(MOST_BYTES) };
    let Some(depth) = depth.checked_sub(1) else { return 1 };
    match info.def(reg) {
        Ok(Def::Inst(Inst::Const { value: Const::I(n), .. })) => known(*n),
        Ok(Def::Inst(Inst::Extent { dim, .. })) => dim_multiple(dim),
        Ok(Def::Inst(Inst::Zip { f, x, y, .. })) => {
            let (a, b) = (multiple(info, *x, depth), multiple(info, *y, depth));
            match f {
                Fn2::Mul => (a * b).min(MOST_BYTES),
                Fn2::Add | Fn2::Sub | Fn2::Min | Fn2::Max => a.min(b),
                _ => 1,
            }
        }
        _ => 1,
    }
}

/// The same of any register.
pub(super) fn multiple_of(info: &Info<'_>, reg: Reg) -> i64 {
    multiple(info, reg, DEEPEST)
}

/// The largest power of two, up to [`MOST_BYTES`], that certainly divides an extent.
pub(super) fn dim_multiple(dim: &Dim) -> i64 {
    let power = |n: i64| if n == 0 { MOST_BYTES } else { 1i64 << n.trailing_zeros().min(62) };
    dim.terms().map(|(_, n)| power(n)).min().unwrap_or(MOST_BYTES).min(MOST_BYTES)
}

/// Whether so many elements are a multiple of 16 bytes, as the copy engine has strides.
pub(super) fn is_aligned(dim: &Dim, dtype: DType) -> bool {
    dim.terms().all(|(_, n)| n * dtype.bytes() % MOST_BYTES == 0)
}

/// Whether an index certainly is a multiple of 16 bytes, where the copy engine may begin.
pub(super) fn begins_aligned(info: &Info<'_>, at: Reg, dtype: DType) -> bool {
    multiple_of(info, at) * dtype.bytes() % MOST_BYTES == 0
}

/// How many neighbouring columns one access may have, whatever the layout.
pub(super) fn width(info: &Info<'_>, place: &Place, ty: RegType) -> usize {
    width_along(info, place, ty, None, 1)
}

/// How many neighbouring columns (`side` 1) or rows (0) one access may have, whatever the layout. Those of a gather have the
/// same shift, along another axis.
fn width_along(
    info: &Info<'_>,
    place: &Place,
    ty: RegType,
    gather: Option<(usize, Reg)>,
    side: usize,
) -> usize {
    let (data, extents) = (&info.kernel.bufs[place.buf], [ty.rows, ty.cols]);
    let Some(near) = place.axes[side].filter(|_| extents[side] > 1) else { return 1 };
    if data.strides[near].as_const() != Some(1) {
        return 1;
    }
    if let Some((along, by)) = gather {
        let by = info.ty(by);
        if along == near || [by.rows, by.cols][side] > 1 {
            return 1;
        }
    }
    let mut width = (MOST_BYTES / data.dtype.bytes()).min(dim_multiple(&data.offset));
    for (axis, &at) in place.at.iter().enumerate() {
        // A power of two that divides a factor divides the product: the larger one counts.
        let (at, stride) = (multiple(info, at, DEEPEST), dim_multiple(&data.strides[axis]));
        let at = if gather.is_some_and(|(along, _)| along == axis) { 1 } else { at };
        width = width.min((at * stride).min(MOST_BYTES));
        if place.axes[1 - side] == Some(axis) && extents[1 - side] > 1 {
            width = width.min(stride);
        }
    }
    // Bounds must not cut an access in two.
    let along = if side == 0 { Along::Row } else { Along::Col };
    for check in info.checks(place, ty).iter().filter(|check| check.along == along) {
        let end = match &check.end {
            End::Low => MOST_BYTES,
            End::Dim(dim) => dim_multiple(dim),
            End::Reg(reg) => multiple(info, *reg, DEEPEST),
        };
        width = width.min(end).min(multiple(info, check.at, DEEPEST));
    }
    width as usize
}

impl<'k> Spread<'_, 'k> {
    /// A tile from memory.
    pub fn load(&mut self, out: Reg, place: &Place, gather: Option<(usize, Reg)>) -> Result<Reg> {
        let ty = self.info.ty(out);
        let axes = self.axes([ty.rows, ty.cols]);
        // Neighbouring rows are read together where they are neighbours in memory.
        let plain = self.info.kernel.bufs[place.buf].scaled.is_none();
        let tall = if plain { width_along(self.info, place, ty, gather, 0).min(axes[0].run()) } else { 1 };
        let side = usize::from(tall == 1);
        let (index, mut mask, width) = self.access(place, ty, gather, side)?;
        let slots = self.w.slots(index) * width;
        // What this kernel also writes is read by the threads that do, and no others.
        if self.info.kernel.is_updated(place.buf) {
            let own = self.owner(&self.axes([ty.rows, ty.cols]));
            mask = self.w.both(mask, own);
            mask = self.w.both(mask, self.stores);
        }
        let values = self.w.load(ty.elem, slots, Space::Buf(place.buf), index, mask);
        if side == 0 {
            let own = self.family.slots([&axes[0], &axes[1]]);
            let firsts: HashMap<[usize; 2], usize> = own
                .iter()
                .filter(|slot| slot[0] % width == 0)
                .enumerate()
                .map(|(i, &slot)| (slot, i))
                .collect();
            let place_of =
                |&[row, col]: &[usize; 2]| firsts[&[row / width * width, col]] * width + row % width;
            return Ok(self.w.pick(values, own.iter().map(place_of).collect()));
        }
        let Some(scaled) = &self.info.kernel.bufs[place.buf].scaled else { return Ok(values) };
        let slots = self.family.slots([&axes[0], &axes[1]]);
        self.scaled(values, scaled, &Codes { place, ty, gather, axes: &axes, slots: &slots, width, mask })
    }

    /// A tile into memory.
    pub fn store(
        &mut self,
        place: &Place,
        value: Reg,
        scatter: Option<(usize, Reg)>,
        mask: Option<Reg>,
    ) -> Result<()> {
        let ty = self.info.ty(value);
        let (index, inside, width) = self.access(place, ty, scatter, 1)?;
        let slots = self.w.slots(index);
        let own = self.owner(&self.axes([ty.rows, ty.cols]));
        let mut guard = self.w.both(inside, own);
        guard = self.w.both(guard, self.stores);
        if let Some(mask) = mask {
            let mask = self.value(mask)?;
            guard = self.w.both(guard, Some(mask));
        }
        let value = self.value(value)?;
        let value = self.w.stretch(value, slots * width);
        self.w.store(Space::Buf(place.buf), index, value, guard);
        Ok(())
    }

    /// Whether this thread is the one that writes a tile with these axes, if others have the same elements.
    pub fn owner(&mut self, axes: &[Axis; 2]) -> Option<Reg> {
        self.is_first(self.family.unused(axes))
    }

    /// Whether some digits of this thread's number, given as a mask, are zero; nothing if there are none.
    pub fn is_first(&mut self, digits: usize) -> Option<Reg> {
        (digits != 0).then(|| {
            let digits: Vec<(u32, usize)> =
                (0..usize::BITS).filter(|d| digits >> d & 1 == 1).map(|d| (d, 1 << d)).collect();
            let part = self.digits(&digits);
            self.w.zip_int(Fn2::Eq, part, 0)
        })
    }

    /// Which of some slots of a tile are elements of it, if not all.
    pub fn elements(&mut self, axes: &[Axis; 2], slots: &[[usize; 2]]) -> Option<Reg> {
        let mut mask = None;
        for i in 0..2 {
            if axes[i].padded {
                let inside = self.inside(&axes[i], i);
                let inside = self.w.pick(inside, slots.iter().map(|slot| slot[i]).collect());
                mask = self.w.both(mask, Some(inside));
            }
        }
        mask
    }

    /// The number of the first element of each access, whether it may be done (if that is in question), and how many
    /// elements it has: neighbouring columns (`side` 1) or rows (0).
    fn access(
        &mut self,
        place: &Place,
        ty: RegType,
        gather: Option<(usize, Reg)>,
        side: usize,
    ) -> Result<(Reg, Option<Reg>, usize)> {
        let axes = self.axes([ty.rows, ty.cols]);
        let width = width_along(self.info, place, ty, gather, side).min(axes[side].run());
        let slots = self.family.slots([&axes[0], &axes[1]]).into_iter().enumerate();
        let (firsts, slots): (Vec<usize>, Vec<[usize; 2]>) =
            slots.filter(|(_, slot)| slot[side] % width == 0).unzip();
        let data = self.info.kernel.bufs[place.buf].clone();

        let mut index = self.w.extent(&data.offset);
        for (axis, &at) in place.at.iter().enumerate() {
            let (at, stride) = (self.value(at)?, self.w.extent(&data.strides[axis]));
            let part = self.w.mul(at, stride);
            index = self.w.add(index, part);
        }
        for (i, axis) in place.axes.iter().enumerate() {
            let Some(axis) = axis.filter(|_| axes[i].n > 1) else { continue };
            let stride = self.w.extent(&data.strides[axis]);
            let part = self.digits(&axes[i].threads);
            let part = self.w.mul(part, stride);
            index = self.w.add(index, part);
        }
        for (i, axis) in place.axes.iter().enumerate() {
            let Some(axis) = axis.filter(|_| axes[i].n > 1) else { continue };
            let stride = self.w.extent(&data.strides[axis]);
            let table = self.w.table(slots.iter().map(|slot| axes[i].slots[slot[i]] as i64).collect());
            let part = self.w.mul(table, stride);
            index = self.w.add(index, part);
        }

        let mut mask = None;
        for axis in 0..place.at.len() {
            if gather.is_some_and(|(along, _)| along == axis) {
                continue;
            }
            for check in self.info.axis_checks(place, ty, axis) {
                let holds = self.check(&check, &axes, &slots)?;
                mask = self.w.both(mask, Some(holds));
            }
        }
        let elements = self.elements(&axes, &slots);
        mask = self.w.both(mask, elements);
        if let Some((axis, by)) = gather {
            let by = self.shift(by, ty)?;
            let by = self.w.pick(by, firsts);
            let stride = self.w.extent(&data.strides[axis]);
            let part = self.w.mul(by, stride);
            index = self.w.add(index, part);
            let first = self.value(place.at[axis])?;
            let mut at = self.w.add(first, by);
            // A gather along an axis of the tile shifts each of its elements.
            for i in 0..2 {
                if place.axes[i] == Some(axis) && axes[i].n > 1 {
                    let along = self.index(i, axes[i].n);
                    let along = self.w.pick(along, slots.iter().map(|slot| slot[i]).collect());
                    at = self.w.add(at, along);
                }
            }
            let mut ends = self.info.ends(place, axis);
            ends.extend([End::Dim(data.shape[axis].clone()), End::Low]);
            for end in ends {
                let holds = self.respects(at, &end)?;
                mask = self.w.both(mask, Some(holds));
            }
        }
        let index = self.w.stretch(index, slots.len());
        Ok((index, mask, width))
    }

    /// By how much each element of a tile of type `ty` is shifted.
    pub fn shift(&mut self, by: Reg, ty: RegType) -> Result<Reg> {
        let value = self.value(by)?;
        Ok(self.stretched(value, self.info.ty(by), RegType { elem: Elem::I64, ..ty }))
    }

    /// Whether each access respects an end; one slot if all do or none.
    fn check(&mut self, check: &Check, axes: &[Axis; 2], slots: &[[usize; 2]]) -> Result<Reg> {
        let at = self.value(check.at)?;
        let i = match check.along {
            Along::All => return self.respects(at, &check.end),
            Along::Row => 0,
            Along::Col => 1,
        };
        let along = self.index(i, axes[i].n);
        let at = self.w.add(at, along);
        let holds = self.respects(at, &check.end)?;
        Ok(self.w.pick(holds, slots.iter().map(|slot| slot[i]).collect()))
    }

    fn respects(&mut self, at: Reg, end: &End) -> Result<Reg> {
        let end = match end {
            End::Low => {
                let zero = self.w.int(0);
                return Ok(self.w.zip(Fn2::Le, zero, at));
            }
            End::Dim(dim) => self.w.extent(dim),
            End::Reg(reg) => self.value(*reg)?,
        };
        Ok(self.w.zip(Fn2::Lt, at, end))
    }

    /// Which slots along an axis are not beyond its extent.
    pub fn inside(&mut self, axis: &Axis, i: usize) -> Reg {
        let index = self.index(i, axis.n);
        self.w.zip_int(Fn2::Lt, index, axis.n as i64)
    }
}
