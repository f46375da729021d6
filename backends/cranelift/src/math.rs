//! Arithmetic that no single instruction does, on scalars and on vectors alike.

use crate::emit::{Emitter, LANES};
use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift_codegen::ir::immediates::V128Imm;
use cranelift_codegen::ir::{Endianness, InstBuilder, MemFlagsData, Type, Value, ValueDef, types};

const LITTLE: MemFlagsData = MemFlagsData::new().with_endianness(Endianness::Little);

impl Emitter<'_, '_> {
    /// 32 bits in every lane.
    pub(crate) fn bits(&mut self, bits: u32, lanes: usize) -> Value {
        if lanes == 1 {
            return self.b.ins().iconst(types::I32, i64::from(bits));
        }
        let data = self.b.func.dfg.constants.insert(bits.to_le_bytes().repeat(LANES).into());
        self.b.ins().vconst(types::I32X4, data)
    }

    /// A float in every lane.
    pub(crate) fn float(&mut self, x: f32, lanes: usize) -> Value {
        if lanes == 1 {
            return self.b.ins().f32const(x);
        }
        let data = self.b.func.dfg.constants.insert(x.to_le_bytes().repeat(LANES).into());
        self.b.ins().vconst(types::F32X4, data)
    }

    pub(crate) fn lanes(&self, x: Value) -> usize {
        let ty = self.b.func.dfg.value_type(x);
        if ty.is_vector() { LANES } else { 1 }
    }

    /// The bits of floats as integers.
    pub(crate) fn as_int(&mut self, x: Value) -> Value {
        let ty = if self.lanes(x) == 1 { types::I32 } else { types::I32X4 };
        self.cast_bits(ty, x)
    }

    /// Integers as the floats that have their bits.
    pub(crate) fn as_float(&mut self, x: Value) -> Value {
        let ty = if self.lanes(x) == 1 { types::F32 } else { types::F32X4 };
        self.cast_bits(ty, x)
    }

    /// The same bits as another type.
    pub(crate) fn cast_bits(&mut self, ty: Type, x: Value) -> Value {
        if self.b.func.dfg.value_type(x) == ty { x } else { self.b.ins().bitcast(ty, LITTLE, x) }
    }

    /// `x` where `cond` (a truth value or a mask) holds, else `y`.
    pub(crate) fn pick(&mut self, cond: Value, x: Value, y: Value) -> Value {
        if self.lanes(cond) == 1 {
            return self.b.ins().select(cond, x, y);
        }
        let ty = self.b.func.dfg.value_type(x);
        let cond = self.cast_bits(ty, cond);
        self.b.ins().bitselect(cond, x, y)
    }

    /// Lanes in another order.
    pub(crate) fn shuffle(&mut self, x: Value, order: [u8; LANES]) -> Value {
        let ty = self.b.func.dfg.value_type(x);
        let mut mask = [0; 16];
        for (i, byte) in mask.iter_mut().enumerate() {
            *byte = order[i / 4] * 4 + (i % 4) as u8;
        }
        let x = self.cast_bits(types::I8X16, x);
        let shuffled = self.shuffle_bytes(x, x, mask);
        self.cast_bits(ty, shuffled)
    }

    /// Bytes of `x` (0 to 15) and `y` (16 to 31).
    pub(crate) fn shuffle_bytes(&mut self, x: Value, y: Value, mask: [u8; 16]) -> Value {
        let mask = self.b.func.dfg.immediates.push(V128Imm(mask).0.as_slice().into());
        self.b.ins().shuffle(x, y, mask)
    }

    /// `f` of a scalar, or of every lane of a vector.
    pub(crate) fn each_lane(&mut self, x: Value, mut f: impl FnMut(&mut Self, Value) -> Value) -> Value {
        if self.lanes(x) == 1 {
            return f(self, x);
        }
        let mut out = None;
        for lane in 0..LANES as u8 {
            let item = self.b.ins().extractlane(x, lane);
            let item = f(self, item);
            out = Some(match out {
                None => {
                    let ty = self
                        .b
                        .func
                        .dfg
                        .value_type(item)
                        .by(LANES as u32)
                        .expect("four lanes of 32 bits exist");
                    self.b.ins().scalar_to_vector(ty, item)
                }
                Some(out) => self.b.ins().insertlane(out, item, lane),
            });
        }
        out.expect("a vector has lanes")
    }

    /// The operand that is `cond` (less or greater) than the other; the other one if one is NaN.
    pub(crate) fn extreme(&mut self, x: Value, y: Value, cond: FloatCC) -> Value {
        // One instruction of x86-64 each, which gives `y` if one is NaN: it is matched by this form alone.
        let better = match cond {
            FloatCC::LessThan => self.b.ins().fcmp(cond, x, y),
            _ => self.b.ins().fcmp(FloatCC::LessThan, y, x),
        };
        let best = self.pick(better, x, y);
        let nan = self.b.ins().fcmp(FloatCC::Unordered, y, y);
        self.pick(nan, x, best)
    }

    /// The product of two integers.
    pub(crate) fn product(&mut self, x: Value, y: Value) -> Value {
        for (x, y) in [(x, y), (y, x)] {
            if let Some(n) = self.known_int(y).filter(|n| *n > 0 && n.count_ones() == 1) {
                return self.b.ins().ishl_imm_u(x, i64::from(n.trailing_zeros()));
            }
        }
        self.b.ins().imul(x, y)
    }

    /// The quotient rounded down and its remainder, for `y > 0`.
    pub(crate) fn floor_div(&mut self, x: Value, y: Value) -> (Value, Value) {
        let divisor = self.known_int(y);
        if let Some(n) = divisor.filter(|n| *n > 0 && n.count_ones() == 1) {
            let shift = i64::from(n.trailing_zeros());
            return (self.b.ins().sshr_imm_u(x, shift), self.b.ins().band_imm_u(x, n - 1));
        }
        // A divisor below 1 breaks the contract; it must not stop the process all the same.
        let y = if divisor.is_some_and(|n| n > 0) {
            y
        } else {
            let one = self.b.ins().iconst(types::I64, 1);
            self.b.ins().smax(y, one)
        };
        let quotient = self.b.ins().sdiv(x, y);
        let whole = self.b.ins().imul(quotient, y);
        let rest = self.b.ins().isub(x, whole);
        // All ones where the quotient was rounded up.
        let below = self.b.ins().sshr_imm_u(rest, 63);
        let more = self.b.ins().band(below, y);
        (self.b.ins().iadd(quotient, below), self.b.ins().iadd(rest, more))
    }

    /// The value of an integer that is a constant.
    pub(crate) fn known_int(&self, x: Value) -> Option<i64> {
        let ValueDef::Result(inst, _) = self.b.func.dfg.value_def(x) else { return None };
        match self.b.func.dfg.insts[inst] {
            cranelift_codegen::ir::InstructionData::UnaryImm { imm, .. } => Some(imm.bits()),
            _ => None,
        }
    }

    /// `e^x` within 2 ulp, from 0 to infinity; NaN stays NaN.
    ///
    /// `x = n ln 2 + r` with `|r| <= (ln 2)/2`, so that `e^x = 2^n e^r`. `ln 2` is in two parts, of which the
    /// first has so few bits that its product with `n` is exact. `2^n` is multiplied in two steps: the first is
    /// exact and the second rounds once, so that subnormal results come out right too.
    pub(crate) fn exp(&mut self, x: Value) -> Value {
        /// e^r = 1 + r + r² p(r).
        const POLYNOMIAL: [f32; 6] =
            [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];
        /// 1.5 · 2²³: what is added to it is rounded to an integer, held in the low bits.
        const TO_INTEGER: f32 = 12_582_912.0;
        let lanes = self.lanes(x);
        let (high, low) = (self.float(89.0, lanes), self.float(-104.0, lanes));
        let above = self.b.ins().fcmp(FloatCC::LessThan, high, x);
        let x = self.pick(above, high, x);
        let below = self.b.ins().fcmp(FloatCC::LessThan, x, low);
        let x = self.pick(below, low, x);

        let log2_e = self.float(std::f32::consts::LOG2_E, lanes);
        let to_integer = self.float(TO_INTEGER, lanes);
        let scaled = self.b.ins().fmul(x, log2_e);
        let shifted = self.b.ins().fadd(scaled, to_integer);
        let n = self.b.ins().fsub(shifted, to_integer);
        let (ln_2_high, ln_2_low) = (self.float(0.693_359_4, lanes), self.float(2.121_944_4e-4, lanes));
        let part = self.b.ins().fmul(n, ln_2_high);
        let r = self.b.ins().fsub(x, part);
        let part = self.b.ins().fmul(n, ln_2_low);
        let r = self.b.ins().fadd(r, part);

        let mut p = self.float(POLYNOMIAL[0], lanes);
        for c in &POLYNOMIAL[1..] {
            p = self.b.ins().fmul(p, r);
            let c = self.float(*c, lanes);
            p = self.b.ins().fadd(p, c);
        }
        let square = self.b.ins().fmul(r, r);
        let p = self.b.ins().fmul(p, square);
        let p = self.b.ins().fadd(p, r);
        let one = self.float(1.0, lanes);
        let mut y = self.b.ins().fadd(p, one);

        let n = self.as_int(shifted);
        let bias = self.bits(TO_INTEGER.to_bits(), lanes);
        let n = self.b.ins().isub(n, bias);
        let half = self.b.ins().sshr_imm_u(n, 1);
        let rest = self.b.ins().isub(n, half);
        for exponent in [half, rest] {
            let bias = self.bits(127, lanes);
            let exponent = self.b.ins().iadd(exponent, bias);
            let power = self.b.ins().ishl_imm_u(exponent, 23);
            let power = self.as_float(power);
            y = self.b.ins().fmul(y, power);
        }
        y
    }

    /// Whether each of two integers is larger than the other, as a truth value or a mask.
    pub(crate) fn int_gt(&mut self, x: Value, y: Value) -> Value {
        self.b.ins().icmp(IntCC::SignedGreaterThan, x, y)
    }
}
