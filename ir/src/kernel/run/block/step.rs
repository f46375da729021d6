//! The instructions of a warp.

use super::shared::Access;
use super::warp::lanes;
use super::*;
use crate::kernel::run::arith::{cast_word, constant, map_word, rounded, zip_word};
use crate::kernel::run::exec::{float, offset};

impl<'a> Machine<'a> {
    /// Runs the next instruction of a warp.
    pub(super) fn step(&mut self, w: usize) -> Result<Step, Fault> {
        self.charge(1)?;
        let Some(inst) = self.warps[w].inst() else { return self.leave(w) };
        match inst {
            // These go on by themselves.
            Inst::For { index, trips, carried, body } => {
                self.enter_loop(w, inst, (*index, *trips), carried, body)?;
                return Ok(Step::Went);
            }
            Inst::If { cond, body } => {
                self.enter_guard(w, *cond, body)?;
                return Ok(Step::Went);
            }
            Inst::Block(BlockInst::Roles { roles }) => {
                self.enter_role(w, roles);
                return Ok(if self.warps[w].ended() { Step::Ended } else { Step::Went });
            }
            Inst::Block(block) => {
                if !self.block_inst(w, inst, block)? {
                    return Ok(Step::Waits);
                }
            }
            _ => self.compute(w, inst)?,
        }
        self.warps[w].advance();
        Ok(Step::Went)
    }

    /// The instructions that all phases have.
    fn compute(&mut self, w: usize, inst: &Inst) -> Result<(), Fault> {
        let elem = |reg: Reg| self.kernel.regs[reg].elem;
        match inst {
            Inst::Extent { out, dim } => {
                let value = dim.eval(self.sizes).ok_or_else(|| Fault::Extent(dim.clone()))?;
                self.fill(w, *out, |_, _, _| Ok(value as u64))
            }
            Inst::Const { out, value } => {
                let word = constant(*value);
                self.fill(w, *out, |_, _, _| Ok(word))
            }
            Inst::Map { out, f, x } => {
                let (f, elem, x) = (*f, elem(*x), self.operand(w, *x)?);
                self.fill(w, *out, |words, slot, lane| map_word(f, elem, words[x.at(slot, lane)]))
            }
            Inst::Zip { out, f, x, y } => {
                let (f, elem, x, y) = (*f, elem(*x), self.operand(w, *x)?, self.operand(w, *y)?);
                self.fill(w, *out, |words, slot, lane| {
                    zip_word(f, elem, words[x.at(slot, lane)], words[y.at(slot, lane)])
                })
            }
            Inst::Select { out, cond, x, y } => {
                let (cond, x, y) = (self.operand(w, *cond)?, self.operand(w, *x)?, self.operand(w, *y)?);
                self.fill(w, *out, |words, slot, lane| {
                    Ok(words[if words[cond.at(slot, lane)] != 0 { x } else { y }.at(slot, lane)])
                })
            }
            Inst::Cast { out, x } => {
                let (to, from, x) = (elem(*out), elem(*x), self.operand(w, *x)?);
                self.fill(w, *out, |words, slot, lane| Ok(cast_word(from, to, words[x.at(slot, lane)])))
            }
            Inst::Round { out, x, to } => {
                let (to, x) = (*to, self.operand(w, *x)?);
                self.fill(w, *out, |words, slot, lane| {
                    Ok(rounded(float(words[x.at(slot, lane)]), to).to_bits())
                })
            }
            _ => unreachable!("the verifier knows no such instruction in the block phase"),
        }
    }

    /// The instructions that only the block phase has; whether it is done.
    fn block_inst(&mut self, w: usize, inst: &'a Inst, block: &'a BlockInst) -> Result<bool, Fault> {
        match block {
            BlockInst::Thread { out } => {
                let first = (w - self.warps[w].first) * WARP;
                self.fill(w, *out, |_, _, lane| Ok((first + lane) as u64))?;
            }
            BlockInst::Number { out } => {
                let number = self.number;
                self.fill(w, *out, |_, _, _| Ok(number))?;
            }
            BlockInst::Launched { out } => {
                let launched = self.launched;
                self.fill(w, *out, |_, _, _| Ok(launched))?;
            }
            BlockInst::Slots { out, values } => {
                self.fill(w, *out, |_, slot, _| Ok(values[slot] as u64))?;
            }
            BlockInst::Pick { out, x, slots } => {
                let x = self.operand(w, *x)?;
                self.fill(w, *out, |words, slot, lane| Ok(words[x.at(slots[slot].into(), lane)]))?;
            }
            BlockInst::Join { out, parts } => {
                let mut from = Vec::new();
                for &part in parts {
                    let at = self.operand(w, part)?;
                    from.extend((0..self.kernel.regs[part].cols).map(|slot| (at, slot)));
                }
                self.fill(w, *out, |words, slot, lane| Ok(words[from[slot].0.at(from[slot].1, lane)]))?;
            }
            BlockInst::Fma { out, x, y, acc } => {
                let (x, y, acc) = (self.operand(w, *x)?, self.operand(w, *y)?, self.operand(w, *acc)?);
                let exact = !self.options.f32;
                self.fill(w, *out, |words, slot, lane| {
                    let [x, y, acc] = [x, y, acc].map(|reg| float(words[reg.at(slot, lane)]));
                    let sum = match exact {
                        true => x.mul_add(y, acc),
                        false => (x as f32).mul_add(y as f32, acc as f32).into(),
                    };
                    Ok(sum.to_bits())
                })?;
            }
            BlockInst::Load { out, from, mask } => self.load(w, *out, *from, *mask)?,
            BlockInst::Store { to, value, mask } => self.store(w, *to, *value, *mask)?,
            BlockInst::Shuffle { out, x, xor } => {
                let x = self.operand(w, *x)?;
                self.fill(w, *out, |words, slot, lane| Ok(words[x.at(slot, lane ^ xor)]))?;
            }
            BlockInst::Barrier { id, warps } => return Ok(self.barrier(w, *id, *warps)),
            BlockInst::FenceAsync => {
                let warp = &mut self.warps[w];
                warp.fenced = warp.now;
                warp.unfenced.clear();
            }
            BlockInst::Acquire { pipe, turn } => return self.acquire(w, *pipe, *turn),
            BlockInst::Copy { pipe, turn, tile, map, at } => {
                self.start_copy(w, (*pipe, *turn), *tile, *map, at)?;
            }
            BlockInst::Wait { pipe, turn } => return self.wait(w, *pipe, *turn),
            BlockInst::Release { pipe, turn, when } => self.release(w, *pipe, *turn, *when)?,
            BlockInst::Mma { .. } => return self.mma(w, block),
            BlockInst::MmaWait { pending, values } => self.mma_wait(w, *pending, values),
            BlockInst::CopyOut { map, tile, turn, at, when } => {
                self.copy_out(w, inst, *map, (*tile, *turn), at, *when)?;
            }
            BlockInst::CopyOutWait { pending } => self.copy_out_wait(w, *pending),
            BlockInst::Roles { .. } => unreachable!("`step` runs instructions with bodies"),
        }
        Ok(true)
    }

    fn load(&mut self, w: usize, out: Reg, from: Mem, mask: Option<Reg>) -> Result<(), Fault> {
        let (cols, at, index) = (self.kernel.regs[out].cols, self.place(out), self.operand(w, from.index)?);
        let mask = mask.map(|mask| self.operand(w, mask)).transpose()?;
        self.charge(cols * WARP)?;
        let indices = self.kernel.regs[from.index].cols;
        let v = cols / indices;
        self.warps[w].now += 1;
        for i in 0..indices {
            for lane in lanes(self.warps[w].lanes) {
                let words = &self.warps[w].words;
                let holds = mask.is_none_or(|mask| words[mask.at(i, lane)] != 0);
                let first = if holds { aligned(words[index.at(i, lane)] as i64, v)? } else { 0 };
                for j in 0..v {
                    let word = match (holds, from.space) {
                        // Zero, of whatever type.
                        (false, _) => 0,
                        (true, Space::Buf(buf)) => {
                            self.read_buf(w, lane, buf, offset(first, j as i64, 1)?)?
                        }
                        (true, Space::Shared(tile)) => {
                            self.read_shared(self.access(w, lane), tile, offset(first, j as i64, 1)?)?
                        }
                        (true, Space::Scratch(_)) => unreachable!("the verifier lets there be none"),
                    };
                    self.warps[w].words[at.at(i * v + j, lane)] = word;
                }
            }
        }
        self.warps[w].product[out.index()] = 0;
        Ok(())
    }

    fn store(&mut self, w: usize, to: Mem, value: Reg, mask: Option<Reg>) -> Result<(), Fault> {
        let (cols, at, index) =
            (self.kernel.regs[value].cols, self.operand(w, value)?, self.operand(w, to.index)?);
        let mask = mask.map(|mask| self.operand(w, mask)).transpose()?;
        self.charge(cols * WARP)?;
        let indices = self.kernel.regs[to.index].cols;
        let v = cols / indices;
        self.warps[w].now += 1;
        for i in 0..indices {
            for lane in lanes(self.warps[w].lanes) {
                let words = &self.warps[w].words;
                if mask.is_some_and(|mask| words[mask.at(i, lane)] == 0) {
                    continue;
                }
                let first = aligned(words[index.at(i, lane)] as i64, v)?;
                for j in 0..v {
                    let word = self.warps[w].words[at.at(i * v + j, lane)];
                    let element = offset(first, j as i64, 1)?;
                    match to.space {
                        Space::Buf(buf) => self.write_buf(w, lane, buf, element, word)?,
                        Space::Shared(tile) => {
                            self.write_shared(self.access(w, lane), tile, element, word)?
                        }
                        Space::Scratch(_) => unreachable!("the verifier lets there be none"),
                    }
                }
            }
        }
        Ok(())
    }

    /// The access that a thread makes now.
    fn access(&self, warp: usize, lane: usize) -> Access {
        Access { warp, lane: Some(lane), number: self.warps[warp].now }
    }
}

/// The first element of several at once.
fn aligned(index: i64, v: usize) -> Result<i64, Fault> {
    if index.rem_euclid(v as i64) == 0 { Ok(index) } else { Err(Fault::Misaligned { index, by: v }) }
}
