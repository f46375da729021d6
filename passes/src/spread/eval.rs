//! Computes elements of a register where they are used: one, or four neighbours of a row.

use super::cpu::Cpu;
use super::emit::LANES;
use super::info::{Check, Def, End};
use super::plan::unit_stride;
use super::region::Inside;
use super::scaled::{columns_share, scales};
use super::walk::operands;
use super::{Result, SpreadError};
use eva_ir::dim::Dim;
use eva_ir::kernel::*;
use std::collections::HashSet;

/// Which elements of a tile: row `r` and column `c` (`None` where the extent is 1), or the four columns from `c` on.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Pos {
    pub r: Option<Reg>,
    pub c: Option<Reg>,
    pub vector: bool,
}

impl Cpu<'_, '_> {
    /// The elements of `reg` at `pos`: a vector, or a scalar where all four columns are the same.
    pub fn eval(&mut self, reg: Reg, pos: Pos) -> Result<Reg> {
        let ty = self.info.ty(reg);
        if ty.is_scalar() {
            return self.scalar(reg);
        }
        let mut pos = Pos {
            r: pos.r.filter(|_| ty.rows > 1),
            c: pos.c.filter(|_| ty.cols > 1),
            vector: pos.vector && ty.cols > 1,
        };
        if pos.vector && self.is_uniform(reg) {
            pos.vector = false;
        }
        let key = (reg, pos, self.number_of(ty));
        if let Some(known) = self.memo.iter().find_map(|memo| memo.get(&key)) {
            return Ok(*known);
        }
        let out = if pos.vector && !self.has_vector_form(reg) {
            self.pack(reg, pos)?
        } else if self.is_home(reg) {
            self.read_home(reg, pos)?
        } else {
            self.compute(reg, pos)?
        };
        let depth = self.e.depth(out);
        self.memo[depth].insert(key, out);
        Ok(out)
    }

    /// A number for the part of the walk in which an element keeps its value.
    fn number_of(&self, ty: RegType) -> usize {
        self.walk.number[(ty.cols > 1) as usize]
    }

    /// Computes what an expression needs once a row.
    pub fn eval_row(&mut self, reg: Reg, r: Reg) -> Result<()> {
        let ty = self.info.ty(reg);
        if ty.is_scalar() || (ty.cols > 1 && self.is_home(reg)) {
            return Ok(());
        }
        if ty.cols == 1 {
            return self.eval(reg, Pos { r: Some(r), c: None, vector: false }).map(drop);
        }
        let key = (reg, Pos { r: Some(r), c: None, vector: false }, self.walk.number[0]);
        if self.visited.insert(key)
            && let Some(inst) = self.info.inst(reg)
        {
            for x in operands(inst) {
                self.eval_row(x, r)?;
            }
        }
        Ok(())
    }

    /// Whether all columns of `reg` are known to be the same.
    pub fn is_uniform(&self, reg: Reg) -> bool {
        if self.info.ty(reg).cols == 1 {
            return true;
        }
        if let Some(&known) = self.uniform.borrow().get(&reg) {
            return known;
        }
        let uniform = !self.is_home(reg)
            && match self.info.inst(reg) {
                Some(Inst::Const { .. }) => true,
                Some(Inst::Load { .. } | Inst::Gather { .. } | Inst::Iota { .. }) | None => false,
                Some(inst) => operands(inst).into_iter().all(|x| self.is_uniform(x)),
            };
        self.uniform.borrow_mut().insert(reg, uniform);
        uniform
    }

    /// Whether four neighbouring columns of `reg` can be computed at once from those of its operands.
    pub fn has_vector_form(&self, reg: Reg) -> bool {
        let elem = self.info.ty(reg).elem;
        if elem == Elem::I64 {
            return false;
        }
        if self.is_home(reg) {
            return true;
        }
        let of_floats = |x: Reg| self.info.ty(x).elem == Elem::F32;
        match self.info.inst(reg) {
            Some(Inst::Const { .. } | Inst::Map { .. } | Inst::Select { .. } | Inst::Round { .. }) => true,
            Some(Inst::Zip { f, x, .. }) => of_floats(*x) || matches!(f, Fn2::And | Fn2::Or),
            Some(Inst::Cast { x, .. }) => {
                self.info.ty(*x).elem != Elem::I64 || matches!(self.info.inst(*x), Some(Inst::Iota { .. }))
            }
            Some(Inst::Load { place, .. }) => {
                let shares = || self.walk.aligned && columns_share(self.info, place, self.info.ty(reg));
                unit_stride(self.info, place)
                    && self.is_inside(reg) != Inside::Unknown
                    && (scales(self.info, place).is_none() || shares())
            }
            Some(Inst::Columns { x, order, .. }) => {
                of_floats(*x)
                    && match order {
                        ColumnOrder::SwapPairs => self.walk.even,
                        ColumnOrder::SwapHalves => {
                            self.walk.aligned && (self.info.ty(*x).cols / 2).is_multiple_of(LANES)
                        }
                    }
            }
            _ => false,
        }
    }

    /// A rough count of what computing `reg` four columns at a time saves, less what it costs where columns must be
    /// computed one by one after all.
    pub fn gain(&self, reg: Reg, seen: &mut HashSet<Reg>) -> i64 {
        if self.is_uniform(reg) || !seen.insert(reg) {
            return 0;
        }
        let of_operands = |seen: &mut HashSet<Reg>| match self.info.inst(reg) {
            Some(inst) if !self.is_home(reg) => operands(inst).into_iter().map(|x| self.gain(x, seen)).sum(),
            _ => 0,
        };
        match self.info.inst(reg) {
            _ if self.is_home(reg) => 1,
            Some(Inst::Load { place, .. }) => {
                let at_once =
                    unit_stride(self.info, place) && columns_share(self.info, place, self.info.ty(reg));
                if at_once { 1 } else { -3 }
            }
            _ if !self.has_vector_form(reg) => -3,
            Some(Inst::Map { f, .. }) if *f != Fn1::Neg && *f != Fn1::Not => 8 + of_operands(seen),
            Some(_) => 1 + of_operands(seen),
            None => 0,
        }
    }

    /// Four columns computed one by one, put together in memory.
    fn pack(&mut self, reg: Reg, pos: Pos) -> Result<Reg> {
        let space = Space::Scratch(self.quad());
        let first = pos.c.ok_or_else(|| SpreadError::internal("four columns of a tile of one"))?;
        for lane in 0..LANES as i64 {
            let by = self.e.int(lane);
            let c = self.e.add(first, by);
            let value = self.eval(reg, Pos { c: Some(c), vector: false, ..pos })?;
            let value = self.as_float(value);
            self.e.store(space, by, value);
        }
        let zero = self.e.int(0);
        let vector = self.e.load_now(space, zero, Elem::F32, LANES);
        Ok(self.read_as(vector, self.info.ty(reg).elem))
    }

    /// Truth values as they lie in memory: 0 and 1.
    pub fn as_float(&mut self, value: Reg) -> Reg {
        if self.e.ty(value).elem != Elem::Bool {
            return value;
        }
        let (one, zero) = (self.e.float(1.0), self.e.float(0.0));
        self.e.select(value, one, zero)
    }

    /// The elements of a tile, as they are used; the opposite of [`Self::as_float`].
    pub fn read_as(&mut self, value: Reg, elem: Elem) -> Reg {
        if elem != Elem::Bool {
            return value;
        }
        let zero = self.e.float(0.0);
        self.e.zip(Fn2::Lt, zero, value)
    }

    fn read_home(&mut self, reg: Reg, pos: Pos) -> Result<Reg> {
        let home = self.home(reg)?;
        let ty = self.info.ty(reg);
        let index = self.home_index(ty.cols, pos.r, pos.c);
        let (elem, lanes) = (home.elem(), if pos.vector { LANES } else { 1 });
        let floor = self.walk.depth[(ty.cols > 1) as usize];
        let value =
            self.e.load(Space::Scratch(home.scratch), index, (elem, lanes), floor, self.number_of(ty));
        Ok(self.read_as(value, ty.elem))
    }

    /// Where element `(r, c)` of a tile of `cols` columns is in its scratch memory.
    pub fn home_index(&mut self, cols: usize, r: Option<Reg>, c: Option<Reg>) -> Reg {
        let (zero, cols) = (self.e.int(0), self.e.int(cols as i64));
        let row = r.map_or(zero, |r| self.e.mul(r, cols));
        c.map_or(row, |c| self.e.add(row, c))
    }

    pub fn compute(&mut self, reg: Reg, pos: Pos) -> Result<Reg> {
        let Def::Inst(inst) = self.info.def(reg)? else {
            return Err(SpreadError::internal("a carried tile is not in memory"));
        };
        let ty = self.info.ty(reg);
        match inst {
            Inst::Program { axis, .. } => Ok(self.e.program(*axis)),
            Inst::Extent { dim, .. } => Ok(self.e.extent(dim)),
            Inst::Const { value, .. } => Ok(match *value {
                Const::F(x) => self.e.float(x),
                Const::I(n) => self.e.int(n),
                Const::B(b) => self.e.bool(b),
            }),
            Inst::Iota { axis, .. } => {
                let index = if *axis == 0 { pos.r } else { pos.c };
                Ok(index.unwrap_or_else(|| self.e.int(0)))
            }
            Inst::Map { f, x, .. } => {
                let x = self.eval(*x, pos)?;
                Ok(self.e.map(*f, x))
            }
            Inst::Zip { f, x, y, .. } => {
                let (x, y) = (self.eval(*x, pos)?, self.eval(*y, pos)?);
                Ok(self.e.zip(*f, x, y))
            }
            Inst::Select { cond, x, y, .. } => {
                let (cond, x, y) = (self.eval(*cond, pos)?, self.eval(*x, pos)?, self.eval(*y, pos)?);
                if ty.elem == Elem::Bool {
                    let not = self.e.map(Fn1::Not, cond);
                    let (x, y) = (self.e.zip(Fn2::And, cond, x), self.e.zip(Fn2::And, not, y));
                    return Ok(self.e.zip(Fn2::Or, x, y));
                }
                Ok(self.e.select(cond, x, y))
            }
            Inst::Round { x, to, .. } => {
                let x = self.eval(*x, pos)?;
                Ok(self.e.round(x, *to))
            }
            Inst::Cast { x, .. } if pos.vector && self.info.ty(*x).elem == Elem::I64 => {
                // The only integers with a vector form are the columns' numbers, which are small.
                let first = pos.c.ok_or_else(|| SpreadError::internal("four columns of a tile of one"))?;
                let first = self.e.cast(Elem::F32, first);
                let ramp = self.ramp();
                Ok(self.e.add(ramp, first))
            }
            Inst::Cast { x, .. } => {
                let x = self.eval(*x, pos)?;
                if self.e.is_vector(x) && ty.elem == Elem::F32 {
                    return Ok(self.as_float(x));
                }
                Ok(self.e.cast(ty.elem, x))
            }
            Inst::Columns { x, order, .. } => self.columns(*x, *order, pos),
            Inst::Load { place, .. } => self.load(reg, place, pos),
            Inst::Gather { place, axis, index, .. } => {
                let by = self.eval(*index, pos)?;
                let conds = self.guards(place, ty, pos, Some((*axis, by)))?;
                self.guarded(ty.elem, &conds, place, pos, Some((*axis, by)))
            }
            _ => Err(SpreadError::internal("an instruction with a walk of its own has no memory")),
        }
    }

    fn columns(&mut self, x: Reg, order: ColumnOrder, pos: Pos) -> Result<Reg> {
        let Some(c) = pos.c else { return self.eval(x, pos) };
        if order == ColumnOrder::SwapPairs && pos.vector {
            let x = self.eval(x, pos)?;
            return Ok(self.e.swap_pairs(x));
        }
        let from = match order {
            ColumnOrder::SwapPairs => {
                let (one, two) = (self.e.int(1), self.e.int(2));
                let odd = self.e.zip(Fn2::Rem, c, two);
                let twice = self.e.mul(odd, two);
                let next = self.e.add(c, one);
                self.e.sub(next, twice)
            }
            ColumnOrder::SwapHalves => {
                let half = self.e.int(self.info.ty(x).cols as i64 / 2);
                let first = self.e.zip(Fn2::Lt, c, half);
                let (up, down) = (self.e.add(c, half), self.e.sub(c, half));
                self.e.select(first, up, down)
            }
        };
        self.eval(x, Pos { c: Some(from), ..pos })
    }

    /// The address of an element of `place` that is known to be inside, `by` further along an axis.
    pub fn address(&mut self, place: &Place, pos: Pos, by: Option<(usize, Reg)>) -> Result<Reg> {
        let data = &self.info.kernel.bufs[place.buf];
        self.linear(&data.offset, &data.strides, place, pos, by)
    }

    /// `first + Σ index · step` of that element's index along each axis of the buffer.
    pub fn linear(
        &mut self,
        first: &Dim,
        steps: &[Dim],
        place: &Place,
        pos: Pos,
        by: Option<(usize, Reg)>,
    ) -> Result<Reg> {
        let mut terms = Vec::new();
        for (axis, &at) in place.at.iter().enumerate() {
            let stride = steps.get(axis).ok_or_else(|| SpreadError::internal("an axis without a stride"))?;
            let stride = self.e.extent(stride);
            let shift = by.filter(|(along, _)| *along == axis).map(|(_, by)| by);
            let steps = [
                Some(self.scalar(at)?),
                pos.r.filter(|_| place.axes[0] == Some(axis)),
                pos.c.filter(|_| place.axes[1] == Some(axis)),
                shift,
            ];
            for step in steps.into_iter().flatten() {
                terms.push(self.e.mul(step, stride));
            }
        }
        // What is known outermost is added first, so that it can be added there.
        terms.sort_by_key(|term| self.e.depth(*term));
        let first = self.e.extent(first);
        Ok(terms.into_iter().fold(first, |sum, term| self.e.add(sum, term)))
    }

    fn load(&mut self, reg: Reg, place: &Place, pos: Pos) -> Result<Reg> {
        let ty = self.info.ty(reg);
        match self.is_inside(reg) {
            Inside::No => Ok(self.zero(ty.elem)),
            Inside::Unknown => {
                let conds = self.guards(place, ty, pos, None)?;
                self.guarded(ty.elem, &conds, place, pos, None)
            }
            Inside::Yes => {
                let index = self.address(place, pos, None)?;
                let floor = self.walk.depth[(ty.cols > 1) as usize];
                let lanes = if pos.vector { LANES } else { 1 };
                let loaded = self.e.load(Space::Buf(place.buf), index, (ty.elem, lanes), floor, 0);
                self.scaled(loaded, place, pos, None, floor)
            }
        }
    }

    pub fn zero(&mut self, elem: Elem) -> Reg {
        match elem {
            Elem::F32 => self.e.float(0.0),
            Elem::I64 => self.e.int(0),
            Elem::Bool => self.e.bool(false),
        }
    }

    /// What must hold for the element at `pos` of a tile of type `ty`, `by` further along an axis, to be inside.
    pub fn guards(
        &mut self,
        place: &Place,
        ty: RegType,
        pos: Pos,
        by: Option<(usize, Reg)>,
    ) -> Result<Vec<Reg>> {
        let mut conds = Vec::new();
        let along = by.map(|(axis, _)| axis);
        let fixed: Vec<Check> = self
            .info
            .checks(place, ty)
            .into_iter()
            .filter(|check| along.is_none_or(|axis| place.at[axis] != check.at))
            .collect();
        conds.extend(self.conditions(&fixed, pos.r, pos.c)?);
        let Some((axis, by)) = by else { return Ok(conds) };
        // Other axes that start at the same index were left out above; check them with this one.
        let mut ends: Vec<(usize, End)> = Vec::new();
        for (other, at) in place.at.iter().enumerate() {
            if *at == place.at[axis] {
                ends.extend(self.info.ends(place, other).into_iter().map(|end| (other, end)));
                let dim = self.info.kernel.bufs[place.buf].shape[other].clone();
                ends.extend([(other, End::Dim(dim)), (other, End::Low)]);
            }
        }
        for (other, end) in ends {
            let mut index = self.scalar(place.at[other])?;
            let steps = [
                pos.r.filter(|_| place.axes[0] == Some(other)),
                pos.c.filter(|_| place.axes[1] == Some(other)),
                Some(by).filter(|_| other == axis),
            ];
            for step in steps.into_iter().flatten() {
                index = self.e.add(index, step);
            }
            conds.push(match end {
                End::Low => {
                    let zero = self.e.int(0);
                    self.e.zip(Fn2::Le, zero, index)
                }
                End::Dim(dim) => {
                    let end = self.e.extent(&dim);
                    self.e.zip(Fn2::Lt, index, end)
                }
                End::Reg(reg) => {
                    let end = self.scalar(reg)?;
                    self.e.zip(Fn2::Lt, index, end)
                }
            });
        }
        Ok(conds)
    }

    /// An element of `place` if `conds` hold, else zero.
    pub fn guarded(
        &mut self,
        elem: Elem,
        conds: &[Reg],
        place: &Place,
        pos: Pos,
        by: Option<(usize, Reg)>,
    ) -> Result<Reg> {
        let Some(cond) = self.e.all(conds) else {
            let index = self.address(place, pos, by)?;
            let value = self.e.load_now(Space::Buf(place.buf), index, elem, 1);
            return self.scaled(value, place, pos, by, self.e.here());
        };
        let slot = Space::Scratch(self.slot(elem));
        let zero = self.e.int(0);
        let nothing = self.zero(elem);
        self.e.store(slot, zero, nothing);
        self.open();
        // An address outside need not be a number at all, so it is not computed before the check.
        let here = self.e.here();
        let floor = std::mem::replace(&mut self.e.floor, here);
        let index = self.address(place, pos, by)?;
        let value = self.e.load_now(Space::Buf(place.buf), index, elem, 1);
        let value = self.scaled(value, place, pos, by, here)?;
        self.e.store(slot, zero, value);
        self.e.floor = floor;
        let body = self.close();
        self.e.push(Inst::If { cond, body });
        Ok(self.e.load_now(slot, zero, elem, 1))
    }
}
