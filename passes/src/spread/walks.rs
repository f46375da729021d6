//! Walks over the elements of a tile: one for each instruction that does not just compute them where they are used.

use super::Result;
use super::cpu::{Cpu, Home};
use super::emit::LANES;
use super::eval::Pos;
use super::live::Live;
use super::region::{Part, Region, Span};
use eva_ir::kernel::*;
use std::collections::HashSet;

/// Visits a column, or four, with what is carried from visit to visit.
type Columns<'s, 'a, 'k> = dyn FnMut(&mut Cpu<'a, 'k>, Reg, bool, &[Reg]) -> Result<Vec<Reg>> + 's;

impl<'a, 'k> Cpu<'a, 'k> {
    /// A loop over `span` that carries registers.
    pub fn over(
        &mut self,
        span: Span,
        init: &[Reg],
        body: impl FnOnce(&mut Self, Reg, &[Reg]) -> Result<Vec<Reg>>,
    ) -> Result<Vec<Reg>> {
        let trips = self.e.sub(span.hi, span.lo);
        self.trips(trips, init, |cpu, index, args| {
            let i = cpu.e.add(span.lo, index);
            body(cpu, i, args)
        })
    }

    /// A loop of so many trips.
    pub fn trips(
        &mut self,
        trips: Reg,
        init: &[Reg],
        body: impl FnOnce(&mut Self, Reg, &[Reg]) -> Result<Vec<Reg>>,
    ) -> Result<Vec<Reg>> {
        match self.e.known_int(trips) {
            Some(n) if n <= 0 => return Ok(init.to_vec()),
            Some(1) => {
                let first = self.e.int(0);
                return body(self, first, init);
            }
            _ => {}
        }
        let types: Vec<RegType> = init.iter().map(|reg| self.e.ty(*reg)).collect();
        self.open();
        let index = self.e.reg(Elem::I64, 1);
        let args: Vec<Reg> = types.iter().map(|ty| self.e.reg(ty.elem, ty.cols)).collect();
        let next = body(self, index, &args)?;
        let body = self.close();
        if body.is_empty() && next == args {
            return Ok(init.to_vec());
        }
        let outs: Vec<Reg> = types.iter().map(|ty| self.e.reg(ty.elem, ty.cols)).collect();
        let carried = |i: usize| Carried { init: init[i], arg: args[i], next: next[i], out: outs[i] };
        let carried = (0..init.len()).map(carried).collect();
        self.e.push(Inst::For { index, trips, carried, body });
        Ok(outs)
    }

    /// A loop over columns, four at a time and then one by one if `vector`. Carries registers for the first kind
    /// of trip, and others for the second.
    fn over_columns(
        &mut self,
        span: Span,
        vector: bool,
        [wide, narrow]: [Vec<Reg>; 2],
        body: &mut Columns<'_, 'a, 'k>,
    ) -> Result<[Vec<Reg>; 2]> {
        let (mut wide, mut rest) = (wide, span);
        if vector {
            let first = self.e.known_int(span.lo);
            self.walk.even = first.is_some_and(|n| n % 2 == 0);
            self.walk.aligned = first.is_some_and(|n| n % LANES as i64 == 0);
            let lanes = self.e.int(LANES as i64);
            let count = self.e.sub(span.hi, span.lo);
            let trips = self.e.zip(Fn2::Div, count, lanes);
            let groups = Span { lo: self.e.int(0), hi: trips };
            wide = self.over(groups, &wide, |cpu, i, args| {
                cpu.walk.depth[1] = cpu.e.here();
                let by = cpu.e.mul(i, lanes);
                let c = cpu.e.add(span.lo, by);
                body(cpu, c, true, args)
            })?;
            let done = self.e.mul(trips, lanes);
            rest.lo = self.e.add(span.lo, done);
        }
        self.walk.depth[1] = self.e.here();
        let narrow = self.over(rest, &narrow, |cpu, c, args| {
            cpu.walk.depth[1] = cpu.e.here();
            body(cpu, c, false, args)
        })?;
        self.walk.depth[1] = self.e.here();
        Ok([wide, narrow])
    }

    /// Whether to compute `roots` four columns at a time.
    fn is_vector(&self, roots: &[Reg], cols: usize) -> bool {
        let mut seen = HashSet::new();
        cols >= LANES && roots.iter().map(|root| self.gain(*root, &mut seen)).sum::<i64>() >= 0
    }

    /// Visits every row of a part.
    fn over_rows(
        &mut self,
        part: Part,
        root: Reg,
        body: impl FnOnce(&mut Self, Reg) -> Result<()>,
    ) -> Result<()> {
        self.over(part.span, &[], |cpu, r, _| {
            cpu.enter(0, part.inside);
            cpu.eval_row(root, r)?;
            body(cpu, r)?;
            Ok(Vec::new())
        })?;
        Ok(())
    }

    /// Visits every element of a region, row by row.
    fn over_region(
        &mut self,
        region: &Region,
        root: Reg,
        vector: bool,
        body: &mut dyn FnMut(&mut Self, Pos) -> Result<()>,
    ) -> Result<()> {
        let rows = self.parts(region, 0)?;
        for part in rows {
            self.over_rows(part, root, |cpu, r| {
                for part in cpu.parts(region, 1)? {
                    cpu.enter(1, part.inside);
                    let none = [Vec::new(), Vec::new()];
                    cpu.over_columns(part.span, vector, none, &mut |cpu, c, vector, _| {
                        body(cpu, Pos { r: Some(r), c: Some(c), vector })?;
                        Ok(Vec::new())
                    })?;
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Computes what is seen of `value` into `home`.
    pub fn fill(&mut self, home: Home, value: Reg, live: &[Live; 2]) -> Result<()> {
        let ty = self.info.ty(value);
        let region = self.seen(live, [ty.rows, ty.cols]);
        self.begin_walk(&[value], &region);
        let vector = ty.elem != Elem::I64 && self.is_vector(&[value], ty.cols);
        self.over_region(&region, value, vector, &mut |cpu, pos| {
            let item = cpu.eval(value, pos)?;
            cpu.put(home, ty.cols, pos, item);
            Ok(())
        })
    }

    /// Writes an element, or four, to a tile in scratch memory.
    fn put(&mut self, home: Home, cols: usize, pos: Pos, item: Reg) {
        let item = self.as_float(item);
        let item = if pos.vector { self.e.splat(item) } else { item };
        let index = self.home_index(cols, pos.r, pos.c);
        self.e.store(Space::Scratch(home.scratch), index, item);
    }

    pub fn store(&mut self, place: &Place, value: Reg) -> Result<()> {
        let ty = self.info.ty(value);
        let checks = self.info.checks(place, ty);
        let region = self.inside(&checks, [ty.rows, ty.cols])?;
        self.begin_walk(&[value], &region);
        let vector = ty.elem == Elem::F32
            && super::plan::unit_stride(self.info, place)
            && self.is_vector(&[value], ty.cols);
        self.over_region(&region, value, vector, &mut |cpu, pos| {
            let item = cpu.eval(value, pos)?;
            let item = if pos.vector { cpu.e.splat(item) } else { item };
            let index = cpu.address(place, pos, None)?;
            cpu.e.store(Space::Buf(place.buf), index, item);
            Ok(())
        })
    }

    pub fn scatter(&mut self, place: &Place, axis: usize, [index, value, mask]: [Reg; 3]) -> Result<()> {
        let ty = self.info.ty(value);
        let region = Region { rows: self.whole(ty.rows), cols: self.whole(ty.cols), facts: Vec::new() };
        self.begin_walk(&[index, value, mask], &region);
        self.over_region(&region, mask, false, &mut |cpu, pos| {
            let (index, value) = (cpu.eval(index, pos)?, cpu.eval(value, pos)?);
            let mut conds = vec![cpu.eval(mask, pos)?];
            conds.extend(cpu.guards(place, ty, pos, Some((axis, index)))?);
            cpu.only_if(&conds, |cpu| {
                let address = cpu.address(place, pos, Some((axis, index)))?;
                cpu.e.store(Space::Buf(place.buf), address, value);
                Ok(())
            })
        })
    }

    pub fn reduce(&mut self, out: Reg, f: Fn2, axis: usize, x: Reg) -> Result<()> {
        let (ty, from) = (self.info.ty(out), self.info.ty(x));
        let live = self.plan.live(out).clone();
        let mut region = self.seen(&live, [ty.rows, ty.cols]);
        let all = if axis == 0 { &mut region.rows } else { &mut region.cols };
        *all = Span { lo: self.e.int(0), hi: self.e.int([from.rows, from.cols][axis] as i64) };
        let start = identity(f, from.elem);
        if axis == 1 {
            let result = self.reduce_columns(out, f, start, x, &region)?;
            return self.finish_reduce(out, result);
        }
        if from.cols == 1 {
            self.begin_walk(&[x], &region);
            let mut sum = self.e.constant(start, 1);
            for part in self.parts(&region, 0)? {
                let sums = self.over(part.span, &[sum], |cpu, r, sum| {
                    cpu.enter(0, part.inside);
                    let item = cpu.eval(x, Pos { r: Some(r), c: None, vector: false })?;
                    Ok(vec![cpu.e.zip(f, sum[0], item)])
                })?;
                sum = sums[0];
            }
            return self.finish_reduce(out, Some(sum));
        }
        // Row by row into the result, so that memory is read in order.
        let home = self.new_home(out);
        let cols = Region { rows: self.whole(1), cols: region.cols, facts: Vec::new() };
        let start = self.start_of(start);
        self.begin_walk(&[], &cols);
        self.over_region(&cols, out, from.elem != Elem::I64 && from.cols >= LANES, &mut |cpu, pos| {
            cpu.put(home, from.cols, Pos { r: None, ..pos }, start);
            Ok(())
        })?;
        self.begin_walk(&[x], &region);
        let vector = from.elem == Elem::F32 && self.is_vector(&[x], from.cols);
        self.over_region(&region, x, vector, &mut |cpu, pos| {
            let item = cpu.eval(x, pos)?;
            let at = Pos { r: None, ..pos };
            let index = cpu.home_index(from.cols, None, pos.c);
            let lanes = if pos.vector { LANES } else { 1 };
            let old = cpu.e.load_now(Space::Scratch(home.scratch), index, home.elem(), lanes);
            let old = cpu.read_as(old, from.elem);
            let new = cpu.e.zip(f, old, item);
            cpu.put(home, from.cols, at, new);
            Ok(())
        })
    }

    /// Folds each row. The result, if there is one row that is certainly visited; else it goes to `out`'s memory.
    fn reduce_columns(
        &mut self,
        out: Reg,
        f: Fn2,
        start: Const,
        x: Reg,
        region: &Region,
    ) -> Result<Option<Reg>> {
        let from = self.info.ty(x);
        self.begin_walk(&[x], region);
        let vector = from.elem == Elem::F32 && self.is_vector(&[x], from.cols);
        let rows = self.parts(region, 0)?;
        let in_register = from.rows == 1 && rows.len() == 1;
        let home = (!in_register).then(|| self.new_home(out));
        let mut result = None;
        for part in rows {
            self.over_rows(part, x, |cpu, r| {
                let first = cpu.start_of(start);
                let (mut wide, mut narrow) = (Vec::new(), vec![first]);
                if vector {
                    wide.push(cpu.e.constant(start, LANES));
                }
                for part in cpu.parts(region, 1)? {
                    cpu.enter(1, part.inside);
                    [wide, narrow] =
                        cpu.over_columns(part.span, vector, [wide, narrow], &mut |cpu, c, vector, sum| {
                            let item = cpu.eval(x, Pos { r: Some(r), c: Some(c), vector })?;
                            let same = f == Fn2::Add && cpu.e.known_float(item) == Some(0.0);
                            Ok(vec![if same { sum[0] } else { cpu.e.zip(f, sum[0], item) }])
                        })?;
                }
                let mut sum = narrow[0];
                if let Some(lanes) = wide.first() {
                    let across = cpu.e.reg(Elem::F32, 1);
                    cpu.e.push(Inst::Across { out: across, f, x: *lanes });
                    sum = if sum == first { across } else { cpu.e.zip(f, across, sum) };
                }
                match home {
                    Some(home) => cpu.put(home, 1, Pos { r: Some(r), c: None, vector: false }, sum),
                    None => result = Some(sum),
                }
                Ok(())
            })?;
        }
        Ok(result)
    }

    /// A fold that gives a single number leaves it in a register.
    fn finish_reduce(&mut self, out: Reg, result: Option<Reg>) -> Result<()> {
        if !self.info.ty(out).is_scalar() {
            return Ok(());
        }
        let value = match result {
            Some(value) => value,
            None => {
                let (home, zero) = (self.home(out)?, self.e.int(0));
                let value = self.e.load_now(Space::Scratch(home.scratch), zero, home.elem(), 1);
                self.read_as(value, self.info.ty(out).elem)
            }
        };
        self.scalars.insert(out, value);
        Ok(())
    }

    pub fn scan(&mut self, out: Reg, x: Reg) -> Result<()> {
        let ty = self.info.ty(out);
        let live = self.plan.live(out).clone();
        let mut region = self.seen(&live, [ty.rows, ty.cols]);
        // Sums start at the first column, whatever is seen of them; and of loads no fact about columns is used.
        region.cols = self.whole(ty.cols);
        region.facts.retain(|check| check.along != super::info::Along::Col);
        self.begin_walk(&[x], &region);
        let home = self.new_home(out);
        let zero = self.zero(ty.elem);
        for part in self.parts(&region, 0)? {
            self.over_rows(part, x, |cpu, r| {
                let mut sum = vec![zero];
                for part in cpu.parts(&region, 1)? {
                    cpu.enter(1, part.inside);
                    [_, sum] =
                        cpu.over_columns(part.span, false, [Vec::new(), sum], &mut |cpu, c, _, sum| {
                            let pos = Pos { r: Some(r), c: Some(c), vector: false };
                            let item = cpu.eval(x, pos)?;
                            let sum = cpu.e.zip(Fn2::Add, sum[0], item);
                            cpu.put(home, ty.cols, pos, sum);
                            Ok(vec![sum])
                        })?;
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Runs `body` if all of `conds` hold.
    pub fn only_if(&mut self, conds: &[Reg], body: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        let Some(cond) = self.e.all(conds) else { return body(self) };
        self.open();
        let here = self.e.here();
        let floor = std::mem::replace(&mut self.e.floor, here);
        body(self)?;
        self.e.floor = floor;
        let body = self.close();
        self.e.push(Inst::If { cond, body });
        Ok(())
    }

    fn start_of(&mut self, start: Const) -> Reg {
        match start {
            Const::F(x) => self.e.float(x),
            Const::I(n) => self.e.int(n),
            Const::B(b) => self.e.bool(b),
        }
    }
}

/// What a fold starts from. NaN never wins against a number, so that the infinities do for the largest and smallest.
fn identity(f: Fn2, elem: Elem) -> Const {
    match (f, elem) {
        (Fn2::And, _) => Const::B(true),
        (_, Elem::Bool) => Const::B(false),
        (Fn2::Mul, Elem::F32) => Const::F(1.0),
        (Fn2::Max, Elem::F32) => Const::F(f64::NEG_INFINITY),
        (Fn2::Min, Elem::F32) => Const::F(f64::INFINITY),
        (_, Elem::F32) => Const::F(0.0),
        (Fn2::Mul, Elem::I64) => Const::I(1),
        (Fn2::Max, Elem::I64) => Const::I(i64::MIN),
        (Fn2::Min, Elem::I64) => Const::I(i64::MAX),
        (_, Elem::I64) => Const::I(0),
    }
}
