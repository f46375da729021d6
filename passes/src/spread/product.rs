//! Products, by microkernels.

use super::Result;
use super::cpu::{Cpu, Home};
use super::eval::Pos;
use super::info::{Along, Check};
use super::plan::direct;
use super::region::{Region, Span};
use eva_ir::kernel::*;

/// One side of a product.
struct Side<'k> {
    /// The buffer it is read from, if not from scratch memory.
    place: Option<&'k Place>,
    /// Where it is not zero.
    rows: Span,
    terms: Span,
    /// Whether all rows that are wanted are.
    whole: bool,
    ty: RegType,
    space: Space,
    strides: [Reg; 2],
}

impl<'k> Cpu<'_, 'k> {
    /// `out = acc + x · yᵀ`
    pub fn product(&mut self, out: Reg, acc: Reg, x: Reg, y: Reg) -> Result<()> {
        let ty = self.info.ty(out);
        let live = self.plan.live(out).clone();
        let wanted = self.seen(&live, [ty.rows, ty.cols]);
        let left = self.side(x, wanted.rows, &wanted.facts, Along::Row)?;
        let right = self.side(y, wanted.cols, &wanted.facts, Along::Col)?;
        let k = self.intersect(left.terms, right.terms);

        let home = match self.reusable(out, acc, [x, y]) {
            _ if ty.is_scalar() => self.memory_like(out),
            Some(home) => self.give_home(out, home),
            None => self.new_home(out),
        };
        let zero = match self.info.inst(acc) {
            Some(Inst::Const { value: Const::F(x), .. }) => *x == 0.0 && x.is_sign_positive(),
            _ => false,
        };
        let accumulate = !(zero && left.whole && right.whole);
        let in_place = self.home(acc).is_ok_and(|acc| acc.scratch == home.scratch);
        if accumulate && ty.is_scalar() {
            let (value, first) = (self.scalar(acc)?, self.e.int(0));
            self.e.store(Space::Scratch(home.scratch), first, value);
        } else if accumulate && !in_place {
            // The old value may be read from the very memory that this goes to, element by element.
            self.fill(home, acc, &live)?;
        }

        let (a, a_scales) = self.first(&left, k.lo)?;
        let (b, b_scales) = self.first(&right, k.lo)?;
        let c_stride = self.e.int(ty.cols as i64);
        let row = self.e.mul(left.rows.lo, c_stride);
        let c = Mem { space: Space::Scratch(home.scratch), index: self.e.add(row, right.rows.lo) };
        let mut size = |span: Span| self.e.sub(span.hi, span.lo);
        let (m, n, k) = (size(left.rows), size(right.rows), size(k));
        let (a_strides, b_strides) = (left.strides, right.strides);
        self.e.push(Inst::Micro(Micro {
            m,
            n,
            k,
            a,
            a_strides,
            b,
            b_strides,
            c,
            c_stride,
            accumulate,
            a_scales,
            b_scales,
        }));
        if ty.is_scalar() {
            let first = self.e.int(0);
            let value = self.e.load_now(Space::Scratch(home.scratch), first, Elem::F32, 1);
            self.scalars.insert(out, value);
        }
        Ok(())
    }

    /// The memory of `acc`, if it is an earlier product that nothing else needs.
    fn reusable(&self, out: Reg, acc: Reg, sides: [Reg; 2]) -> Option<Home> {
        let product = matches!(self.info.inst(acc), Some(Inst::Dot { .. }));
        let here = self.info.block(acc) == self.info.block(out);
        let own = product && here && self.plan.is_used_once(acc) && !sides.contains(&acc);
        let home = self.home(acc).ok().filter(|_| own && !self.is_placed(out))?;
        sides
            .iter()
            .all(|side| self.home(*side).is_ok_and(|h| h.scratch != home.scratch) || !self.is_home(*side))
            .then_some(home)
    }

    /// One side; `wanted` are the rows of it that matter, for which `facts` hold along an axis of the result.
    fn side(&mut self, reg: Reg, wanted: Span, facts: &[Check], along: Along) -> Result<Side<'k>> {
        let ty = self.info.ty(reg);
        let terms = self.whole(ty.cols);
        let one = self.e.int(1);
        if let Some(place) = direct(self.info, reg).filter(|_| !self.is_home(reg)) {
            let checks = self.info.checks(place, ty);
            let known = |check: &&Check| {
                check.along != Along::Row || !facts.contains(&Check { along, ..(*check).clone() })
            };
            let unknown: Vec<Check> = checks.iter().filter(known).cloned().collect();
            let whole = unknown.iter().all(|check| check.along == Along::Col);
            let region: Region = self.inside(&unknown, [ty.rows, ty.cols])?;
            let rows = self.intersect(wanted, region.rows);
            let strides = self.info.kernel.bufs[place.buf].strides.clone();
            let stride = |axis: Option<usize>| axis.and_then(|axis| strides.get(axis).cloned());
            let strides = place.axes.map(|axis| stride(axis).map_or(one, |dim| self.e.extent(&dim)));
            let space = Space::Buf(place.buf);
            return Ok(Side { place: Some(place), rows, terms: region.cols, whole, ty, space, strides });
        }
        let home = if ty.is_scalar() {
            let (home, value, first) = (self.memory_like(reg), self.scalar(reg)?, self.e.int(0));
            self.e.store(Space::Scratch(home.scratch), first, value);
            home
        } else {
            self.home(reg)?
        };
        let strides = [self.e.int(ty.cols as i64), one];
        let space = Space::Scratch(home.scratch);
        Ok(Side { place: None, rows: wanted, terms, whole: true, ty, space, strides })
    }

    /// The first element of a side that is multiplied, and the scales from there on.
    fn first(&mut self, side: &Side<'_>, term: Reg) -> Result<(Mem, Option<MicroScales>)> {
        let (index, scales) = match side.place {
            Some(place) => {
                let pos = Pos { r: Some(side.rows.lo), c: Some(term), vector: false };
                (self.address(place, pos, None)?, self.micro_scales(place, side.ty, pos)?)
            }
            None => {
                let (row, term) =
                    (self.e.mul(side.rows.lo, side.strides[0]), self.e.mul(term, side.strides[1]));
                (self.e.add(row, term), None)
            }
        };
        Ok((Mem { space: side.space, index }, scales))
    }
}
