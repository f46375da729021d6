//! What needs elements of other threads: folds, counts, other orders and shapes.

use super::Result;
use super::body::Spread;
use super::layout::Axis;
use eva_ir::kernel::block::{BlockInst, Shared, SharedData};
use eva_ir::kernel::*;
use eva_ir::types::DType;

impl Spread<'_, '_> {
    /// Waits for the program's other threads.
    pub fn sync(&mut self) {
        let (id, warps) = self.barrier;
        self.w.push(Inst::Block(BlockInst::Barrier { id, warps }));
    }

    /// Shared memory for `rows × cols` elements of a program, and the number of the first. The same name and extents
    /// give the same memory.
    pub fn shared(&mut self, name: &str, elem: Elem, rows: usize, cols: usize) -> (Shared, Reg) {
        let dtype = if elem == Elem::I64 { DType::I64 } else { DType::F32 };
        // Every use begins with a barrier, so tiles of a kind may follow each other in the same memory.
        let data =
            SharedData { name: name.into(), dtype, rows, cols, stages: self.per_block, swizzle: false };
        let shared = self.w.tile(data);
        let base = if self.per_block == 1 {
            self.w.int(0)
        } else {
            let mine = self.place_in_block();
            self.w.times(mine, (rows * cols) as i64)
        };
        (shared, base)
    }

    /// A value as shared memory holds it: truth values are the floats 0 and 1.
    fn as_stored(&mut self, value: Reg) -> Reg {
        if self.w.elem(value) == Elem::Bool { self.w.cast(Elem::F32, value) } else { value }
    }

    fn as_value(&mut self, value: Reg, elem: Elem) -> Reg {
        if elem != Elem::Bool {
            return value;
        }
        let one = self.w.constant(Const::F(1.0), 1);
        self.w.zip(Fn2::Eq, value, one)
    }

    /// The number that each slot of a tile has in shared memory with rows of `pitch` elements.
    fn flat(&mut self, ty: RegType, pitch: usize) -> Reg {
        let axes = self.family.axes([ty.rows, ty.cols]);
        let slots = self.family.slots([&axes[0], &axes[1]]);
        let (rows, cols) = (self.index(0, ty.rows), self.index(1, ty.cols));
        let rows = self.w.pick(rows, slots.iter().map(|slot| slot[0]).collect());
        let cols = self.w.pick(cols, slots.iter().map(|slot| slot[1]).collect());
        let rows = self.w.times(rows, pitch as i64);
        let flat = self.w.add(rows, cols);
        self.w.stretch(flat, slots.len())
    }

    /// Which slots of a tile are elements of it, if not all.
    fn elements_of(&mut self, ty: RegType) -> Option<Reg> {
        let axes = self.family.axes([ty.rows, ty.cols]);
        let slots = self.family.slots([&axes[0], &axes[1]]);
        self.elements(&axes, &slots)
    }

    /// Puts a tile into shared memory, row by row with a pitch; seen by all threads of the program afterwards.
    pub fn put(&mut self, value: Reg, ty: RegType, shared: Shared, base: Reg, pitch: usize) {
        self.sync();
        self.put_now(value, ty, shared, base, pitch);
        self.sync();
    }

    /// [`Self::put`] without waiting for anyone.
    pub fn put_now(&mut self, value: Reg, ty: RegType, shared: Shared, base: Reg, pitch: usize) {
        let index = self.flat(ty, pitch);
        let index = self.w.add(index, base);
        let elements = self.elements_of(ty);
        let own = self.owner(&self.family.axes([ty.rows, ty.cols]));
        let mask = self.w.both(elements, own);
        let value = self.as_stored(value);
        let value = self.w.stretch(value, self.w.slots(index));
        self.w.store(Space::Shared(shared), index, value, mask);
    }

    /// Puts some columns of a tile into shared memory, the first of them first; seen by all afterwards.
    pub fn put_columns(
        &mut self,
        value: Reg,
        ty: RegType,
        columns: std::ops::Range<usize>,
        shared: Shared,
        base: Reg,
        pitch: usize,
    ) {
        let axes = self.family.axes([ty.rows, ty.cols]);
        let slots = self.family.slots([&axes[0], &axes[1]]);
        let col = self.index(1, ty.cols);
        let col = self.w.pick(col, slots.iter().map(|slot| slot[1]).collect());
        let first = self.w.int(columns.start as i64);
        let (from, below) =
            (self.w.zip(Fn2::Le, first, col), self.w.zip_int(Fn2::Lt, col, columns.end as i64));
        let within = self.w.both(Some(from), Some(below));
        let elements = self.elements_of(ty);
        let own = self.owner(&axes);
        let mask = self.w.both(within, elements);
        let mask = self.w.both(mask, own);
        let index = self.flat(ty, pitch);
        let index = self.w.zip(Fn2::Sub, index, first);
        let index = self.w.add(index, base);
        let index = self.w.stretch(index, slots.len());
        let value = self.as_stored(value);
        let value = self.w.stretch(value, slots.len());
        self.sync();
        self.w.store(Space::Shared(shared), index, value, mask);
        self.sync();
    }

    /// Elements of a tile in shared memory.
    fn fetch(&mut self, shared: Shared, base: Reg, index: Reg, elem: Elem, mask: Option<Reg>) -> Reg {
        let index = self.w.add(index, base);
        let stored = if elem == Elem::Bool { Elem::F32 } else { elem };
        let value = self.w.load(stored, self.w.slots(index), Space::Shared(shared), index, mask);
        self.as_value(value, elem)
    }

    /// The tile with its elements taken from elsewhere in `x`: `from` gives their numbers, of `to`'s slots.
    fn exchange(&mut self, x: Reg, ty: RegType, to: RegType, from: Reg) -> Reg {
        let stored = if ty.elem == Elem::Bool { Elem::F32 } else { ty.elem };
        let (shared, base) = self.shared("exchange", stored, ty.rows, ty.cols);
        self.put(x, ty, shared, base, ty.cols);
        let mask = self.elements_of(to);
        self.fetch(shared, base, from, ty.elem, mask)
    }

    /// Folds an axis.
    pub fn reduce(&mut self, f: Fn2, axis: usize, x: Reg) -> Result<Reg> {
        let ty = self.info.ty(x);
        let mut value = self.full(x)?;
        let axes = self.family.axes([ty.rows, ty.cols]);
        let slots = self.family.slots([&axes[0], &axes[1]]);
        let along = &axes[axis];
        let other = &axes[1 - axis];
        if along.padded {
            let inside = self.inside(along, axis);
            let inside = self.w.pick(inside, slots.iter().map(|slot| slot[axis]).collect());
            let neutral = self.w.constant(neutral(f, ty.elem), 1);
            value = self.w.select(inside, value, neutral);
        }

        // A thread's own elements, halves at a time.
        let others = other.len();
        let place =
            |slot: [usize; 2]| slots.iter().position(|&have| have == slot).expect("all slots are there");
        let order =
            (0..along.len()).flat_map(|a| (0..others).map(move |o| if axis == 0 { [a, o] } else { [o, a] }));
        value = self.w.pick(value, order.map(place).collect());
        let (mut left, mut rest) = (along.len(), None);
        while left > 1 {
            let half = left / 2 * others;
            if left % 2 == 1 {
                let odd = self.w.pick(value, (2 * half..left * others).collect());
                rest = Some(rest.map_or(odd, |rest| self.w.zip(f, rest, odd)));
            }
            let low = self.w.pick(value, (0..half).collect());
            let high = self.w.pick(value, (half..2 * half).collect());
            value = self.w.zip(f, low, high);
            left /= 2;
        }
        if let Some(rest) = rest {
            value = self.w.zip(f, value, rest);
        }

        // The lanes of a warp.
        for &(digit, _) in along.threads.iter().filter(|(digit, _)| *digit < 5) {
            let partner = self.w.shuffle(value, 1 << digit);
            value = self.w.zip(f, value, partner);
        }
        let warps: Vec<(u32, usize)> =
            along.threads.iter().copied().filter(|(digit, _)| *digit >= 5).collect();
        if warps.is_empty() { Ok(value) } else { Ok(self.fold_warps(f, value, ty.elem, &warps, other, axis)) }
    }

    /// Folds what the warps have that differ in some digits, through shared memory.
    fn fold_warps(
        &mut self,
        f: Fn2,
        value: Reg,
        elem: Elem,
        warps: &[(u32, usize)],
        other: &Axis,
        axis: usize,
    ) -> Reg {
        let count = 1 << warps.len();
        let stored = if elem == Elem::Bool { Elem::F32 } else { elem };
        let (shared, base) = self.shared("exchange", stored, count, other.n);
        let digits: Vec<(u32, usize)> =
            warps.iter().enumerate().map(|(i, &(digit, _))| (digit, 1 << i)).collect();
        let row = self.digits(&digits);
        let row = self.w.times(row, other.n as i64);
        let at = self.index(1 - axis, other.n);
        let here = self.w.add(row, at);
        let here = self.w.add(here, base);

        // One thread writes each: that whose digits are zero but for the warp's and the other axis'.
        let used = digits.iter().chain(&other.threads).fold(0usize, |mask, (digit, _)| mask | 1 << digit);
        let mut mask = self.is_first((self.family.threads() - 1) & !used);
        let inside = other.padded.then(|| self.inside(other, 1 - axis));
        mask = self.w.both(mask, inside);
        let stored_value = self.as_stored(value);
        self.sync();
        self.w.store(Space::Shared(shared), here, stored_value, mask);
        self.sync();
        let mut sum = None;
        for warp in 0..count {
            let from = self.w.zip_int(Fn2::Add, at, (warp * other.n) as i64);
            let part = self.fetch(shared, base, from, elem, inside);
            sum = Some(sum.map_or(part, |sum| self.w.zip(f, sum, part)));
        }
        sum.expect("there are warps")
    }

    /// Sums along the columns up to each element, by steps of 1, 2, 4, … columns.
    pub fn scan(&mut self, x: Reg) -> Result<Reg> {
        let ty = self.info.ty(x);
        let mut value = self.full(x)?;
        let (flat, axes) = (self.flat(ty, ty.cols), self.family.axes([ty.rows, ty.cols]));
        let slots = self.family.slots([&axes[0], &axes[1]]);
        let col = self.index(1, ty.cols);
        let col = self.w.pick(col, slots.iter().map(|slot| slot[1]).collect());
        let elements = self.elements_of(ty);
        let (shared, base) = self.shared("exchange", ty.elem, ty.rows, ty.cols);
        let mut step = 1;
        while step < ty.cols {
            self.put(value, ty, shared, base, ty.cols);
            let from = self.w.zip_int(Fn2::Sub, flat, step as i64);
            let least = self.w.int(step as i64);
            let reaches = self.w.zip(Fn2::Le, least, col);
            let mask = self.w.both(Some(reaches), elements);
            let before = self.fetch(shared, base, from, ty.elem, mask);
            value = self.w.zip(Fn2::Add, before, value);
            step *= 2;
        }
        Ok(value)
    }

    /// The columns in another order.
    pub fn columns(&mut self, x: Reg, order: ColumnOrder) -> Result<Reg> {
        let ty = self.info.ty(x);
        let value = self.full(x)?;
        let axes = self.family.axes([ty.rows, ty.cols]);
        let slots = self.family.slots([&axes[0], &axes[1]]);
        let half = ty.cols / 2;
        // Where columns that change places differ in one digit of their number, that is a slot's or a lane's.
        let distance = match order {
            ColumnOrder::SwapPairs => Some(1),
            ColumnOrder::SwapHalves => ty.cols.is_power_of_two().then_some(half),
        };
        if let Some(distance) = distance.filter(|_| !axes[1].padded) {
            let lane = axes[1].threads.iter().find(|(digit, weight)| *weight == distance && *digit < 5);
            if let Some(&(digit, _)) = lane {
                return Ok(self.w.shuffle(value, 1 << digit));
            }
            let at =
                |col: usize| axes[1].slots.iter().position(|&slot| slot == axes[1].slots[col] ^ distance);
            let place = |[row, col]: [usize; 2]| {
                let col = at(col)?;
                slots.iter().position(|&have| have == [row, col])
            };
            if let Some(picked) = slots.iter().map(|&slot| place(slot)).collect::<Option<Vec<_>>>() {
                return Ok(self.w.pick(value, picked));
            }
        }
        let col = self.index(1, ty.cols);
        let from = match order {
            ColumnOrder::SwapPairs => {
                let odd = self.w.zip_int(Fn2::Rem, col, 2);
                let twice = self.w.times(odd, 2);
                let up = self.w.zip_int(Fn2::Add, col, 1);
                self.w.zip(Fn2::Sub, up, twice)
            }
            ColumnOrder::SwapHalves => {
                let up = self.w.zip_int(Fn2::Add, col, half as i64);
                self.w.zip_int(Fn2::Rem, up, ty.cols as i64)
            }
        };
        let from = self.w.pick(from, slots.iter().map(|slot| slot[1]).collect());
        let row = self.index(0, ty.rows);
        let row = self.w.pick(row, slots.iter().map(|slot| slot[0]).collect());
        let row = self.w.times(row, ty.cols as i64);
        let from = self.w.add(row, from);
        let from = self.w.stretch(from, slots.len());
        Ok(self.exchange(value, ty, ty, from))
    }

    /// The same elements, row by row, in another shape.
    pub fn reshape(&mut self, x: Reg, to: RegType) -> Result<Reg> {
        let ty = self.info.ty(x);
        if (ty.rows, ty.cols) == (to.rows, to.cols) {
            return self.value(x);
        }
        let value = self.full(x)?;
        let from = self.flat(to, to.cols);
        Ok(self.exchange(value, ty, to, from))
    }
}

/// What changes nothing when folded with.
fn neutral(f: Fn2, elem: Elem) -> Const {
    match (f, elem) {
        (Fn2::Mul, Elem::F32) => Const::F(1.0),
        (Fn2::Mul, _) => Const::I(1),
        (Fn2::Max, Elem::F32) => Const::F(f64::NEG_INFINITY),
        (Fn2::Max, _) => Const::I(i64::MIN),
        (Fn2::Min, Elem::F32) => Const::F(f64::INFINITY),
        (Fn2::Min, _) => Const::I(i64::MAX),
        (Fn2::And, _) => Const::B(true),
        (Fn2::Or, _) => Const::B(false),
        (_, Elem::F32) => Const::F(0.0),
        _ => Const::I(0),
    }
}
