//! Products by the ordinary units: both operands in shared memory, each thread its own elements of the result.

use super::Result;
use super::body::Spread;
use eva_ir::kernel::block::BlockInst;
use eva_ir::kernel::*;

impl Spread<'_, '_> {
    /// `acc + x · yᵀ`
    pub fn dot(&mut self, acc: Reg, x: Reg, y: Reg) -> Result<Reg> {
        let ty = self.info.ty(acc);
        let all = self.info.ty(x).cols;
        let terms = all.min(self.terms);
        let mut sum = self.full(acc)?;
        // A row longer by one keeps the rows of a column in different banks.
        let pitch = terms + 1;
        let axes = self.family.axes([ty.rows, ty.cols]);
        let slots = self.family.slots([&axes[0], &axes[1]]);
        for first in (0..all).step_by(terms.max(1)) {
            let here = terms.min(all - first);
            let mut operands = Vec::new();
            for (i, reg) in [x, y].into_iter().enumerate() {
                let operand = self.info.ty(reg);
                let value = self.full(reg)?;
                let (shared, base) = self.shared(["left", "right"][i], Elem::F32, operand.rows, pitch);
                if terms == all {
                    self.put(value, operand, shared, base, pitch);
                } else {
                    self.put_columns(value, operand, first..first + here, shared, base, pitch);
                }
                operands.push((shared, base));
            }
            let mut firsts = Vec::new();
            for i in 0..2 {
                let index = self.index(i, axes[i].n);
                let index = self.w.times(index, pitch as i64);
                let mask = axes[i].padded.then(|| self.inside(&axes[i], i));
                firsts.push((self.w.add(index, operands[i].1), mask));
            }

            let trips = self.w.int(here as i64);
            let n = self.w.slots(sum);
            let [arg, out] = [0, 1].map(|_| self.w.reg(Elem::F32, n));
            let k = self.w.reg(Elem::I64, 1);
            self.w.open();
            let mut parts = Vec::new();
            for i in 0..2 {
                let (first, mask) = firsts[i];
                let index = self.w.add(first, k);
                let space = Space::Shared(operands[i].0);
                let part = self.w.load(Elem::F32, self.w.slots(index), space, index, mask);
                parts.push(self.w.pick(part, slots.iter().map(|slot| slot[i]).collect()));
            }
            let (x, y) = (parts[0], parts[1]);
            let next = self.w.emit(Elem::F32, n, |out| Inst::Block(BlockInst::Fma { out, x, y, acc: arg }));
            let body = self.w.close();
            let carried = vec![Carried { init: sum, arg, next, out }];
            self.w.push(Inst::For { index: k, trips, carried, body });
            sum = out;
        }
        Ok(sum)
    }
}
