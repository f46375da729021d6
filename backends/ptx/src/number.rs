//! Numbers as memory holds them: words, and the elements in them.
//!
//! A word is 8, 16, 32 or 64 bits as one integer; elements smaller than a word lie in it from its low end on.

use crate::emit::{Emitter, Slots};
use crate::ir::{Done, F, I, V, fail, float, int};
use eva_ir::types::DType;
use inkwell::{FloatPredicate, IntPredicate};

/// The bits of `2^-127` and `2^127`, between which exponents are, and of a number that is none.
const LEAST_POWER: u32 = 0x0040_0000;
const LARGEST_POWER: u32 = 0x7f00_0000;
const NAN: u32 = 0x7fc0_0000;
/// The bits of an `f32` that `tf32` does not have.
const CUT: u64 = 13;

/// The words that hold `n` elements of `dtype`: how many, and of how many bits.
pub(crate) fn words(dtype: DType, n: usize) -> (usize, u32) {
    let (bytes, element) = (n * dtype.bytes() as usize, dtype.bytes() as usize);
    let word = if element == 8 { 8 } else { bytes.min(4) };
    (bytes / word, 8 * word as u32)
}

impl<'c> Emitter<'_, 'c> {
    /// The `n` elements in `words`: floats, or integers.
    pub(crate) fn unpack(&self, words: &[I<'c>], dtype: DType, n: usize) -> Done<Slots<'c>> {
        let (b, ir) = (&self.ir.b, &self.ir);
        let (f32_type, f64_type) = (ir.ctx.f32_type(), ir.ctx.f64_type());
        let mut floats = Vec::with_capacity(n);
        for &word in words {
            match dtype {
                DType::I64 => {}
                DType::I32 => {}
                DType::F32 | DType::Tf32 => floats.push(ir.as_float(word)?),
                DType::F64 => {
                    let wide = float(b.build_bit_cast(word, f64_type, "")?)?;
                    floats.push(b.build_float_trunc(wide, f32_type, "")?);
                }
                DType::Bf16 => {
                    let low = b.build_int_z_extend_or_bit_cast(word, ir.ctx.i32_type(), "")?;
                    floats.push(ir.as_float(ir.shl(low, 16)?)?);
                    if n > 1 {
                        floats.push(ir.as_float(b.build_and(word, ir.i32(0xffff_0000), "")?)?);
                    }
                }
                DType::F16 => floats.extend(self.halves(word)?),
                DType::E8M0 => {
                    let bits = word.get_type().get_bit_width();
                    let wide = b.build_int_z_extend_or_bit_cast(word, ir.ctx.i32_type(), "")?;
                    for shift in (0..bits).step_by(8) {
                        let code = b.build_and(ir.shr(wide, u64::from(shift))?, ir.i32(0xff), "")?;
                        floats.push(self.unpack_exponent(code)?);
                    }
                }
                DType::F8E4M3 | DType::F8E5M2 => {
                    let name = if dtype == DType::F8E4M3 { "e4m3x2" } else { "e5m2x2" };
                    let pair = ir.ctx.i16_type();
                    let pairs = match word.get_type().get_bit_width() {
                        8 => vec![b.build_int_z_extend(word, pair, "")?],
                        16 => vec![word],
                        _ => vec![
                            b.build_int_truncate(word, pair, "")?,
                            b.build_int_truncate(ir.shr(word, 16)?, pair, "")?,
                        ],
                    };
                    for pair in pairs {
                        let name = format!("llvm.nvvm.{name}.to.f16x2.rn");
                        let both = ir.value(&name, &[], &[pair.into()])?;
                        let both = int(b.build_bit_cast(both, ir.ctx.i32_type(), "")?)?;
                        floats.extend(self.halves(both)?);
                    }
                }
            }
        }
        floats.truncate(n);
        Ok(match dtype {
            DType::I64 => Slots::Ints(words.to_vec()),
            DType::I32 => {
                let wide = words.iter().map(|&w| Ok(b.build_int_s_extend(w, ir.ctx.i64_type(), "")?));
                Slots::Ints(wide.collect::<Done<_>>()?)
            }
            _ => Slots::Floats(floats),
        })
    }

    /// The one or two halves in a word of 16 or 32 bits.
    fn halves(&self, word: I<'c>) -> Done<Vec<F<'c>>> {
        let (b, ir) = (&self.ir.b, &self.ir);
        let bits = word.get_type().get_bit_width();
        let mut parts = vec![b.build_int_truncate_or_bit_cast(word, ir.ctx.i16_type(), "")?];
        if bits == 32 {
            parts.push(b.build_int_truncate(ir.shr(word, 16)?, ir.ctx.i16_type(), "")?);
        }
        let widen = |part: I<'c>| {
            let half = float(b.build_bit_cast(part, ir.ctx.f16_type(), "")?)?;
            Ok(b.build_float_ext(half, ir.ctx.f32_type(), "")?)
        };
        parts.into_iter().map(widen).collect()
    }

    /// Words that hold these elements, rounded to nearest, ties to even.
    pub(crate) fn pack(&self, value: &Slots<'c>, dtype: DType) -> Done<Vec<I<'c>>> {
        let (b, ir) = (&self.ir.b, &self.ir);
        match (dtype, value) {
            (DType::I64, Slots::Ints(xs)) => Ok(xs.clone()),
            (DType::I32, Slots::Ints(xs)) => xs.iter().map(|&x| ir.low(x)).collect(),
            (DType::F32, Slots::Floats(xs)) => xs.iter().map(|&x| ir.as_int(x)).collect(),
            (DType::Tf32, Slots::Floats(xs)) => xs.iter().map(|&x| self.pack_upper(x)).collect(),
            (DType::F64, Slots::Floats(xs)) => {
                let wide = |x: &F<'c>| {
                    let wide = b.build_float_ext(*x, ir.ctx.f64_type(), "")?;
                    int(b.build_bit_cast(wide, ir.ctx.i64_type(), "")?)
                };
                xs.iter().map(wide).collect()
            }
            (DType::Bf16 | DType::F16, Slots::Floats(xs)) => {
                xs.chunks(2).map(|pair| self.pack_16(pair, dtype)).collect()
            }
            (DType::F8E4M3 | DType::F8E5M2, Slots::Floats(xs)) => {
                xs.chunks(4).map(|four| self.pack_8(four, dtype)).collect()
            }
            (DType::E8M0, Slots::Floats(xs)) => xs.chunks(4).map(|four| self.pack_exponents(four)).collect(),
            (dtype, value) => fail(format!("{:?} where memory holds {dtype}", value.elem())),
        }
    }

    /// The upper 19 bits of a number, rounded: of a tie to an even one, and of NaN to one.
    fn pack_upper(&self, x: F<'c>) -> Done<I<'c>> {
        let (b, ir) = (&self.ir.b, &self.ir);
        let bits = ir.as_int(x)?;
        let odd = b.build_and(ir.shr(bits, CUT)?, ir.i32(1), "")?;
        let up = b.build_int_add(bits, ir.i32((1 << (CUT - 1)) - 1), "")?;
        let up = b.build_int_add(up, odd, "")?;
        let nan = b.build_float_compare(FloatPredicate::UNO, x, x, "")?;
        let bits = int(b.build_select(nan, ir.i32(NAN), up, "")?)?;
        Ok(b.build_and(bits, ir.i32(u32::MAX << CUT), "")?)
    }

    /// The power of two that a code of `e8m0` stands for.
    fn unpack_exponent(&self, code: I<'c>) -> Done<F<'c>> {
        let (b, ir) = (&self.ir.b, &self.ir);
        let is = |n: u32| b.build_int_compare(IntPredicate::EQ, code, ir.i32(n), "");
        let bits = b.build_select(is(0)?, ir.i32(LEAST_POWER), int(ir.shl(code, 23)?.into())?, "")?;
        let bits = b.build_select(is(0xff)?, ir.i32(NAN), int(bits)?, "")?;
        ir.as_float(int(bits)?)
    }

    /// One code of `e8m0`, or two in 16 bits, or four in a word: of the least powers of two that are not less.
    fn pack_exponents(&self, xs: &[F<'c>]) -> Done<I<'c>> {
        let (b, ir) = (&self.ir.b, &self.ir);
        let ty = match xs.len() {
            1 => ir.ctx.i8_type(),
            2 => ir.ctx.i16_type(),
            _ => ir.ctx.i32_type(),
        };
        let mut word = ir.i32(0);
        for (i, &x) in xs.iter().enumerate() {
            // Floats that are not negative are in the order of their bits; negative ones are less than all of them.
            let bits = ir.as_int(x)?;
            let clamp = |bits: I<'c>, end: u32, beyond: IntPredicate| {
                let beyond = b.build_int_compare(beyond, bits, ir.i32(end), "")?;
                int(b.build_select(beyond, ir.i32(end), bits, "")?)
            };
            let within =
                clamp(clamp(bits, LEAST_POWER, IntPredicate::SLT)?, LARGEST_POWER, IntPredicate::SGT)?;
            // One more where there is any mantissa; the least power has one, and the exponent 0.
            let up = ir.shr(b.build_int_add(within, ir.i32(0x7f_ffff), "")?, 23)?;
            let least = b.build_int_compare(IntPredicate::EQ, within, ir.i32(LEAST_POWER), "")?;
            let code = int(b.build_select(least, ir.i32(0), up, "")?)?;
            let nan = b.build_float_compare(FloatPredicate::UNO, x, x, "")?;
            let code = int(b.build_select(nan, ir.i32(0xff), code, "")?)?;
            word = b.build_or(word, ir.shl(code, 8 * i as u64)?, "")?;
        }
        Ok(b.build_int_truncate_or_bit_cast(word, ty, "")?)
    }

    /// One number of 16 bits, or two in a word.
    pub(crate) fn pack_16(&self, xs: &[F<'c>], dtype: DType) -> Done<I<'c>> {
        let (b, ir) = (&self.ir.b, &self.ir);
        match (xs, dtype) {
            (&[x], DType::F16) => {
                let half = b.build_float_trunc(x, ir.ctx.f16_type(), "")?;
                int(b.build_bit_cast(half, ir.ctx.i16_type(), "")?)
            }
            (&[x], _) => {
                let value = ir.value("llvm.nvvm.f2bf16.rn", &[], &[x.into()])?;
                int(b.build_bit_cast(value, ir.ctx.i16_type(), "")?)
            }
            (&[x, y], dtype) => {
                let name =
                    if dtype == DType::F16 { "llvm.nvvm.ff2f16x2.rn" } else { "llvm.nvvm.ff2bf16x2.rn" };
                let pair = ir.value(name, &[], &[y.into(), x.into()])?;
                int(b.build_bit_cast(pair, ir.ctx.i32_type(), "")?)
            }
            _ => fail("16-bit numbers come in pairs"),
        }
    }

    /// One number of 8 bits, or two in 16 bits, or four in a word.
    fn pack_8(&self, xs: &[F<'c>], dtype: DType) -> Done<I<'c>> {
        let (b, ir) = (&self.ir.b, &self.ir);
        let (name, largest, how) = match dtype {
            // Beyond the tie between the largest number, 448, and what would be the next: the tie goes to 448, whose
            // mantissa is even.
            DType::F8E4M3 => ("e4m3x2", 464.0, FloatPredicate::OGT),
            // From the tie on: it goes to what would be the next.
            _ => ("e5m2x2", 61440.0, FloatPredicate::OGE),
        };
        let (byte, pair_type) = (ir.ctx.i8_type(), ir.ctx.i16_type());
        let mut pairs = Vec::with_capacity(2);
        for pair in xs.chunks(2) {
            let (x, y) = (pair[0], *pair.get(1).unwrap_or(&ir.f32(0.0)));
            let mut code =
                int(ir.value(&format!("llvm.nvvm.ff.to.{name}.rn"), &[], &[y.into(), x.into()])?)?;
            // The conversion stops at the largest number. The next code is what larger ones become: NaN, infinity.
            for (i, &x) in pair.iter().enumerate() {
                let magnitude = float(ir.value("llvm.fabs", &[x.get_type().into()], &[V::from(x)])?)?;
                let beyond = b.build_float_compare(how, magnitude, ir.f32(largest), "")?;
                let (next, same) = (pair_type.const_int(1 << (8 * i), false), pair_type.const_zero());
                let more = int(b.build_select(beyond, next, same, "")?)?;
                code = b.build_int_add(code, more, "")?;
            }
            pairs.push(code);
        }
        match (pairs[..].as_ref(), xs.len()) {
            ([pair], 1) => Ok(b.build_int_truncate(*pair, byte, "")?),
            ([pair], _) => Ok(*pair),
            ([low, high], 4) => {
                let both = pair_type.vec_type(2).get_undef();
                let both = b.build_insert_element(both, *low, ir.i32(0), "")?;
                let both = b.build_insert_element(both, *high, ir.i32(1), "")?;
                int(b.build_bit_cast(both, ir.ctx.i32_type(), "")?)
            }
            _ => fail("8-bit numbers come alone, in pairs or in fours"),
        }
    }

    /// Floats rounded to the values of a type.
    pub(crate) fn round(&self, xs: &[F<'c>], to: DType) -> Done<Vec<F<'c>>> {
        let per_word = match to {
            DType::F64 | DType::F32 => return Ok(xs.to_vec()),
            DType::I64 | DType::I32 => return fail(format!("rounding to {to}")),
            _ => 2,
        };
        let mut rounded = Vec::with_capacity(xs.len());
        for chunk in xs.chunks(per_word) {
            let words = self.pack(&Slots::Floats(chunk.to_vec()), to)?;
            match self.unpack(&words, to, chunk.len())? {
                Slots::Floats(floats) => rounded.extend(floats),
                other => return fail(format!("rounding gave {:?}", other.elem())),
            }
        }
        Ok(rounded)
    }
}
