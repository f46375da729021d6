//! The instructions that touch memory, and the rules of touching it.

use super::arith::round;
use super::exec::{float, narrow, offset};
use super::memory::{int_from, int_into};
use super::*;
use smallvec::SmallVec;

/// A [`Place`] with its numbers.
struct Region {
    buf: Buf,
    start: SmallVec<[i64; 4]>,
    /// The first index along each axis that counts as outside.
    end: SmallVec<[i64; 4]>,
    axes: [Option<usize>; 2],
}

impl Launch<'_> {
    pub(super) fn load(&mut self, out: Reg, place: &Place, shift: Option<(usize, Reg)>) -> Result<(), Fault> {
        self.charge(self.elements(out))?;
        let (ty, region) = (self.kernel.regs[out], self.region(place));
        for r in 0..ty.rows {
            for c in 0..ty.cols {
                let by = shift.map(|(axis, index)| (axis, self.words[self.operand(index).at(r, c)] as i64));
                let word = match self.locate(&region, [r, c], by) {
                    Some((index, None)) => self.read_buf(region.buf, index)?,
                    Some((index, Some(scale))) => {
                        let code = self.read_buf(region.buf, index)?;
                        self.scale(code, scale)?
                    }
                    None => 0,
                };
                self.set(out, r, c, word);
            }
        }
        Ok(())
    }

    pub(super) fn store(
        &mut self,
        value: Reg,
        place: &Place,
        shift: Option<(usize, Reg)>,
        mask: Option<Reg>,
    ) -> Result<(), Fault> {
        self.charge(self.elements(value))?;
        let (ty, region, value) = (self.kernel.regs[value], self.region(place), self.operand(value));
        for r in 0..ty.rows {
            for c in 0..ty.cols {
                if mask.is_some_and(|mask| self.words[self.operand(mask).at(r, c)] == 0) {
                    continue;
                }
                let by = shift.map(|(axis, index)| (axis, self.words[self.operand(index).at(r, c)] as i64));
                if let Some((index, _)) = self.locate(&region, [r, c], by) {
                    self.write_buf(region.buf, index, self.words[value.at(r, c)])?;
                }
            }
        }
        Ok(())
    }

    pub(super) fn micro(&mut self, micro: &Micro) -> Result<(), Fault> {
        let size = |reg| match self.int(reg) {
            n if n < 0 => Err(Fault::Size(n)),
            n => Ok(n as usize),
        };
        let (m, n, k) = (size(micro.m)?, size(micro.n)?, size(micro.k)?);
        self.charge(m.saturating_mul(n).saturating_mul(k.saturating_add(1)))?;
        if m == 0 || n == 0 {
            return Ok(());
        }
        self.charge(m.saturating_add(n).saturating_mul(k))?;
        let a = self.matrix(micro.a, [m, k], micro.a_strides, micro.a_scales)?;
        let b = self.matrix(micro.b, [n, k], micro.b_strides, micro.b_scales)?;
        let exact = !self.options.f32;
        for i in 0..m {
            let row = offset(self.int(micro.c.index), i as i64, self.int(micro.c_stride))?;
            for j in 0..n {
                let products = (0..k).map(|t| narrow(a[i * k + t] * b[j * k + t], exact));
                let mut sum = products.fold(0.0, |sum, product| narrow(sum + product, exact));
                let at = offset(row, j as i64, 1)?;
                if micro.accumulate {
                    sum = narrow(float(self.read_mem(micro.c.space, at)?) + sum, exact);
                }
                self.write_mem(micro.c.space, at, sum.to_bits())?;
            }
        }
        Ok(())
    }

    fn matrix(
        &mut self,
        first: Mem,
        shape: [usize; 2],
        strides: [Reg; 2],
        scales: Option<MicroScales>,
    ) -> Result<Vec<f64>, Fault> {
        let strides = strides.map(|reg| self.int(reg));
        let mut items = Vec::with_capacity(shape[0] * shape[1]);
        for i in 0..shape[0] {
            let row = offset(self.int(first.index), i as i64, strides[0])?;
            for k in 0..shape[1] {
                let mut word = self.read_mem(first.space, offset(row, k as i64, strides[1])?)?;
                if let Some(scales) = scales {
                    let mut index = self.int(scales.first.index);
                    for (run, x) in [(scales.rows, i), (scales.terms, k)] {
                        let place = self.int(run.place).checked_add(x as i64).ok_or(Fault::Overflow)?;
                        index = offset(index, place.div_euclid(run.block), self.int(run.stride))?;
                    }
                    let Space::Buf(by) = scales.first.space else {
                        unreachable!("the verifier wants scales in buffers")
                    };
                    word = self.scale(word, (by, index))?;
                }
                items.push(float(word));
            }
        }
        Ok(items)
    }

    fn region(&self, place: &Place) -> Region {
        let mut end = SmallVec::from_slice(&self.views[place.buf.index()].shape);
        for &(axis, limit) in &place.limits {
            end[axis] = self.int(limit).min(end[axis]);
        }
        let start = place.at.iter().map(|&reg| self.int(reg)).collect();
        Region { buf: place.buf, start, end, axes: place.axes }
    }

    /// `code` times the scale with this number.
    fn scale(&mut self, code: u64, (by, index): (Buf, i64)) -> Result<u64, Fault> {
        let scale = self.read_buf(by, index)?;
        Ok(narrow(float(code) * float(scale), !self.options.f32).to_bits())
    }

    /// The number in its allocation of an element of a tile, `shift` further along an axis, and where its scale is if
    /// it has one; `None` if it is outside the buffer's shape or a limit.
    fn locate(
        &self,
        region: &Region,
        tile: [usize; 2],
        shift: Option<(usize, i64)>,
    ) -> Option<(i64, Option<(Buf, i64)>)> {
        let view = &self.views[region.buf.index()];
        let mut flat = view.offset;
        let mut places: SmallVec<[i64; 2]> = SmallVec::new();
        places.extend(view.scaled.iter().flat_map(|scaled| scaled.along.iter().map(|axis| axis.from)));
        for (axis, (&start, &end)) in region.start.iter().zip(&region.end).enumerate() {
            let mut index = start;
            for (along, i) in region.axes.iter().zip(tile) {
                if *along == Some(axis) {
                    index = index.saturating_add(i as i64);
                }
            }
            if let Some((_, by)) = shift.filter(|(along, _)| *along == axis) {
                index = index.saturating_add(by);
            }
            if index < 0 || index >= end {
                return None;
            }
            // Strides are not negative: what is too large stays too large, and outside every allocation.
            flat = flat.saturating_add(index.saturating_mul(view.strides[axis]));
            for (place, along) in places.iter_mut().zip(view.scaled.iter().flat_map(|scaled| &scaled.along)) {
                *place = place.saturating_add(index.saturating_mul(along.steps[axis]));
            }
        }
        let scale = view.scaled.as_ref().map(|scaled| {
            let blocks = scaled.along.iter().zip(&places);
            let steps = blocks.map(|(axis, place)| axis.stride.saturating_mul(place / axis.block));
            (scaled.by, steps.fold(scaled.offset, i64::saturating_add))
        });
        Some((flat, scale))
    }

    pub(super) fn read_mem(&mut self, space: Space, index: i64) -> Result<u64, Fault> {
        match space {
            Space::Buf(buf) => self.read_buf(buf, index),
            Space::Scratch(id) => {
                let i = inside(index, self.scratch[id.index()].words.len(), || id.to_string())?;
                let scratch = &self.scratch[id.index()];
                let word = scratch.written[i].then_some(scratch.words[i]);
                word.ok_or_else(|| Fault::Unwritten { memory: id.to_string(), index: i })
            }
            Space::Shared(_) => unreachable!("the verifier knows of no shared memory in the lane phase"),
        }
    }

    pub(super) fn write_mem(&mut self, space: Space, index: i64, word: u64) -> Result<(), Fault> {
        match space {
            Space::Buf(buf) => self.write_buf(buf, index, word),
            Space::Scratch(id) => {
                let scratch = &mut self.scratch[id.index()];
                let i = inside(index, scratch.words.len(), || id.to_string())?;
                scratch.words[i] = word;
                scratch.written[i] = true;
                Ok(())
            }
            Space::Shared(_) => unreachable!("the verifier knows of no shared memory in the lane phase"),
        }
    }

    fn read_buf(&mut self, buf: Buf, index: i64) -> Result<u64, Fault> {
        let storage = self.views[buf.index()].storage;
        let Storage { dtype, data } = &self.storages[storage];
        let i = inside(index, data.len(), || self.kernel.bufs[buf].name.clone())?;
        if self.options.races && !self.marks[storage].read(i, self.id) {
            return Err(self.race(buf, i));
        }
        self.stats.loaded[buf.index()] += 1;
        match dtype.is_int() {
            true => Ok(int_from(data[i], *dtype)? as u64),
            false => Ok(narrow(data[i], !self.options.f32).to_bits()),
        }
    }

    fn write_buf(&mut self, buf: Buf, index: i64, word: u64) -> Result<(), Fault> {
        let storage = self.views[buf.index()].storage;
        let Storage { dtype, data } = &mut self.storages[storage];
        let i = inside(index, data.len(), || self.kernel.bufs[buf].name.clone())?;
        if self.options.races && !self.marks[storage].write(i, self.id) {
            return Err(self.race(buf, i));
        }
        data[i] = if dtype.is_int() { int_into(word as i64, *dtype)? } else { round(float(word), *dtype) };
        self.stats.stored[buf.index()] += 1;
        Ok(())
    }

    fn race(&self, buf: Buf, index: usize) -> Fault {
        Fault::Race { memory: self.kernel.bufs[buf].name.clone(), index }
    }
}

pub(super) fn inside(index: i64, len: usize, memory: impl Fn() -> String) -> Result<usize, Fault> {
    let i = usize::try_from(index).ok().filter(|&i| i < len);
    i.ok_or_else(|| Fault::Outside { memory: memory(), index, len })
}
