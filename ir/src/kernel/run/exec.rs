//! The instructions.
//!
//! An element of a register or of private memory is 64 bits: those of an `f64` or an `i64`, or 0 and 1 for
//! truth values. The verifier has seen to it that each is read as what it was written.

use super::arith::{cast_word, constant, map_word, rounded, zip, zip_bool, zip_int, zip_word};
use super::*;

/// Where a register's elements are; along an axis of extent 1 all elements are the same one.
#[derive(Clone, Copy)]
pub(super) struct Operand {
    slot: usize,
    row_step: usize,
    col_step: usize,
}

impl Operand {
    pub(super) fn at(self, row: usize, col: usize) -> usize {
        self.slot + row * self.row_step + col * self.col_step
    }
}

impl<'a> Launch<'a> {
    /// Runs some instructions; on a fault, the innermost instruction that did it.
    pub(super) fn block(&mut self, body: &'a [Inst]) -> Result<(), (Fault, &'a Inst)> {
        for inst in body {
            match inst {
                Inst::For { index, trips, carried, body } => {
                    for c in carried {
                        self.copy(c.init, c.arg);
                    }
                    let cost: usize = carried.iter().map(|c| self.elements(c.arg)).sum::<usize>() + 1;
                    let mut next: Vec<u64> = Vec::new();
                    for trip in 0..self.int(*trips) {
                        self.charge(cost).map_err(|fault| (fault, inst))?;
                        self.words[self.slots[index.index()]] = trip as u64;
                        self.block(body)?;
                        // One register's next value may be another's current one.
                        next.clear();
                        carried.iter().for_each(|c| next.extend(&self.words[self.range(c.next)]));
                        let mut rest = next.as_slice();
                        for c in carried {
                            let (value, after) = rest.split_at(self.elements(c.arg));
                            let range = self.range(c.arg);
                            self.words[range].copy_from_slice(value);
                            rest = after;
                        }
                    }
                    for c in carried {
                        self.copy(c.arg, c.out);
                    }
                }
                Inst::If { cond, body } => {
                    if self.word(*cond) != 0 {
                        self.block(body)?;
                    }
                }
                _ => self.step(inst).map_err(|fault| (fault, inst))?,
            }
        }
        Ok(())
    }

    /// Runs an instruction without a body.
    fn step(&mut self, inst: &Inst) -> Result<(), Fault> {
        self.charge(1)?;
        match inst {
            Inst::Program { out, axis } => {
                let coord = self.coords[*axis];
                self.fill(*out, |_, _, _| Ok(coord as u64))
            }
            Inst::Extent { out, dim } => {
                let value = dim.eval(self.sizes).ok_or_else(|| Fault::Extent(dim.clone()))?;
                self.fill(*out, |_, _, _| Ok(value as u64))
            }
            Inst::Const { out, value } => {
                let word = constant(*value);
                self.fill(*out, |_, _, _| Ok(word))
            }
            Inst::Map { out, f, x } => {
                let (f, elem, x) = (*f, self.elem(*x), self.operand(*x));
                self.fill(*out, |words, r, c| map_word(f, elem, words[x.at(r, c)]))
            }
            Inst::Zip { out, f, x, y } => self.zip(*out, *f, *x, *y),
            Inst::Select { out, cond, x, y } => {
                let [cond, x, y] = [*cond, *x, *y].map(|reg| self.operand(reg));
                self.fill(*out, |words, r, c| {
                    Ok(if words[cond.at(r, c)] != 0 { words[x.at(r, c)] } else { words[y.at(r, c)] })
                })
            }
            Inst::Cast { out, x } => {
                let (to, from, x) = (self.elem(*out), self.elem(*x), self.operand(*x));
                self.fill(*out, |words, r, c| Ok(cast_word(from, to, words[x.at(r, c)])))
            }
            Inst::Round { out, x, to } => {
                let (to, x) = (*to, self.operand(*x));
                self.fill(*out, |words, r, c| Ok(rounded(float(words[x.at(r, c)]), to).to_bits()))
            }

            Inst::Iota { out, axis } => {
                let axis = *axis;
                self.fill(*out, |_, r, c| Ok([r, c][axis] as u64))
            }
            Inst::Load { out, place } => self.load(*out, place, None),
            Inst::Gather { out, place, axis, index } => self.load(*out, place, Some((*axis, *index))),
            Inst::Store { place, value } => self.store(*value, place, None, None),
            Inst::Scatter { place, axis, index, value, mask } => {
                self.store(*value, place, Some((*axis, *index)), Some(*mask))
            }
            Inst::Reduce { out, f, axis, x } => self.reduce(*out, *f, *axis, *x),
            Inst::Scan { out, x } => {
                let (ty, x) = (self.kernel.regs[*out], self.operand(*x));
                for r in 0..ty.rows {
                    let mut sum = 0;
                    for c in 0..ty.cols {
                        let word = self.words[x.at(r, c)];
                        sum = if c == 0 { word } else { self.fold(Fn2::Add, ty.elem, sum, word)? };
                        self.set(*out, r, c, sum);
                    }
                }
                self.charge(ty.rows * ty.cols)
            }
            Inst::Columns { out, x, order } => {
                let (order, cols, x) = (*order, self.kernel.regs[*x].cols, self.operand(*x));
                self.fill(*out, |words, r, c| {
                    let from = match order {
                        ColumnOrder::SwapPairs => c ^ 1,
                        ColumnOrder::SwapHalves => (c + cols / 2) % cols,
                    };
                    Ok(words[x.at(r, from)])
                })
            }
            Inst::Reshape { out, x } => {
                self.charge(self.elements(*x))?;
                self.copy(*x, *out);
                Ok(())
            }
            Inst::Dot { out, acc, x, y } => {
                let terms = self.kernel.regs[*x].cols;
                self.charge(self.elements(*out).saturating_mul(terms))?;
                let (exact, [acc, x, y]) = (!self.options.f32, [*acc, *x, *y].map(|reg| self.operand(reg)));
                self.fill(*out, |words, r, c| {
                    let product = |k| narrow(float(words[x.at(r, k)]) * float(words[y.at(c, k)]), exact);
                    let start = float(words[acc.at(r, c)]);
                    Ok((0..terms).fold(start, |sum, k| narrow(sum + product(k), exact)).to_bits())
                })
            }

            Inst::VLoad { out, from } => {
                let first = self.int(from.index);
                for c in 0..self.elements(*out) {
                    let word = self.read_mem(from.space, offset(first, c as i64, 1)?)?;
                    self.set(*out, 0, c, word);
                }
                self.charge(self.elements(*out))
            }
            Inst::VStore { to, value } => {
                let (first, value_at) = (self.int(to.index), self.operand(*value));
                for c in 0..self.elements(*value) {
                    self.write_mem(to.space, offset(first, c as i64, 1)?, self.words[value_at.at(0, c)])?;
                }
                self.charge(self.elements(*value))
            }
            Inst::Across { out, f, x } => {
                let (elem, x) = (self.elem(*x), self.operand(*x));
                let [a, b, c, d] = [0, 1, 2, 3].map(|lane| self.words[x.at(0, lane)]);
                let (even, odd) = (self.fold(*f, elem, a, c)?, self.fold(*f, elem, b, d)?);
                let word = self.fold(*f, elem, even, odd)?;
                self.set(*out, 0, 0, word);
                Ok(())
            }
            Inst::SwapPairs { out, x } => {
                let x = self.operand(*x);
                self.fill(*out, |words, r, c| Ok(words[x.at(r, c ^ 1)]))
            }
            Inst::Micro(micro) => self.micro(micro),
            Inst::Block(_) => unreachable!("the block phase has an interpreter of its own"),
            Inst::For { .. } | Inst::If { .. } => unreachable!("`block` runs instructions with bodies"),
        }
    }

    fn zip(&mut self, out: Reg, f: Fn2, x: Reg, y: Reg) -> Result<(), Fault> {
        let (elem, [x, y]) = (self.elem(x), [x, y].map(|reg| self.operand(reg)));
        self.fill(out, |words, r, c| zip_word(f, elem, words[x.at(r, c)], words[y.at(r, c)]))
    }

    fn reduce(&mut self, out: Reg, f: Fn2, axis: usize, x: Reg) -> Result<(), Fault> {
        self.charge(self.elements(x))?;
        let (from, ty, at) = (self.kernel.regs[x], self.kernel.regs[out], self.operand(x));
        for r in 0..ty.rows {
            for c in 0..ty.cols {
                let item = |k| if axis == 0 { at.at(k, c) } else { at.at(r, k) };
                let mut sum = self.words[item(0)];
                for k in 1..[from.rows, from.cols][axis] {
                    sum = self.fold(f, from.elem, sum, self.words[item(k)])?;
                }
                self.set(out, r, c, sum);
            }
        }
        Ok(())
    }

    /// One step of a fold.
    fn fold(&self, f: Fn2, elem: Elem, x: u64, y: u64) -> Result<u64, Fault> {
        Ok(match elem {
            Elem::F32 => narrow(zip(f, float(x), float(y)), !self.options.f32).to_bits(),
            Elem::I64 => zip_int(f, x as i64, y as i64)? as u64,
            Elem::Bool => zip_bool(f, x != 0, y != 0).into(),
        })
    }

    /// Computes every element of a register from those of others.
    fn fill(
        &mut self,
        out: Reg,
        item: impl Fn(&[u64], usize, usize) -> Result<u64, Fault>,
    ) -> Result<(), Fault> {
        self.charge(self.elements(out))?;
        let ty = self.kernel.regs[out];
        for r in 0..ty.rows {
            for c in 0..ty.cols {
                let word = item(&self.words, r, c)?;
                self.set(out, r, c, word);
            }
        }
        Ok(())
    }

    pub(super) fn set(&mut self, out: Reg, row: usize, col: usize, word: u64) {
        let ty = self.kernel.regs[out];
        let at = self.slots[out.index()] + row * ty.cols + col;
        self.words[at] =
            if ty.elem == Elem::F32 { narrow(float(word), !self.options.f32).to_bits() } else { word };
    }

    fn copy(&mut self, from: Reg, to: Reg) {
        let (from, to) = (self.range(from), self.slots[to.index()]);
        self.words.copy_within(from, to);
    }

    fn range(&self, reg: Reg) -> std::ops::Range<usize> {
        let slot = self.slots[reg.index()];
        slot..slot + self.elements(reg)
    }

    pub(super) fn elements(&self, reg: Reg) -> usize {
        let ty = self.kernel.regs[reg];
        ty.rows * ty.cols
    }

    fn elem(&self, reg: Reg) -> Elem {
        self.kernel.regs[reg].elem
    }

    pub(super) fn operand(&self, reg: Reg) -> Operand {
        let (ty, slot) = (self.kernel.regs[reg], self.slots[reg.index()]);
        let row_step = if ty.rows == 1 { 0 } else { ty.cols };
        Operand { slot, row_step, col_step: usize::from(ty.cols != 1) }
    }

    /// The first element.
    fn word(&self, reg: Reg) -> u64 {
        self.words[self.slots[reg.index()]]
    }

    pub(super) fn int(&self, reg: Reg) -> i64 {
        self.word(reg) as i64
    }
}

pub(super) fn float(word: u64) -> f64 {
    f64::from_bits(word)
}

/// A float as a register holds it.
pub(super) fn narrow(x: f64, exact: bool) -> f64 {
    if exact { x } else { f64::from(x as f32) }
}

/// `first + i · stride`
pub(super) fn offset(first: i64, i: i64, stride: i64) -> Result<i64, Fault> {
    i.checked_mul(stride).and_then(|by| first.checked_add(by)).ok_or(Fault::Overflow)
}
