//! Arithmetic: what PTX does with one instruction, and what it does not.

use crate::emit::{Emitter, Slots, slot};
use crate::ir::{Done, Effect, F, I, V, fail, float, int, space};
use eva_ir::kernel::{Elem, Fn1, Fn2};
use inkwell::{AddressSpace, FloatPredicate, IntPredicate};

/// Two thirds, as bits: mantissas are taken from here to its double.
const TWO_THIRDS: u32 = 0x3f2a_aaab;
/// 1.5 · 2²³: what is added to it is rounded to an integer, held in the low bits.
const TO_INTEGER: f32 = 12_582_912.0;

/// Divisors below 2⁻⁶⁰, and what makes them larger: 2⁶⁴.
const SMALL: f64 = 1.0 / (1u64 << 60) as f64;
const LARGE: f64 = (1u128 << 64) as f64;

impl<'c> Emitter<'_, 'c> {
    pub(crate) fn map(&self, f: Fn1, x: Slots<'c>) -> Done<Slots<'c>> {
        let floats = |one: &dyn Fn(F<'c>) -> Done<F<'c>>, xs: Vec<F<'c>>| {
            Ok(Slots::Floats(xs.into_iter().map(one).collect::<Done<_>>()?))
        };
        let b = &self.ir.b;
        match (f, x) {
            (Fn1::Neg, Slots::Floats(x)) => floats(&|x| Ok(b.build_float_neg(x, "")?), x),
            (Fn1::Exp, Slots::Floats(x)) => floats(&|x| self.exp(x), x),
            (Fn1::Exp2, Slots::Floats(x)) => floats(&|x| self.real("llvm.nvvm.ex2.approx.ftz", &[x]), x),
            (Fn1::Log, Slots::Floats(x)) => floats(&|x| self.log(x), x),
            (Fn1::Sqrt, Slots::Floats(x)) => floats(&|x| self.sqrt(x), x),
            (Fn1::Rsqrt, Slots::Floats(x)) => floats(&|x| self.recip(self.sqrt(x)?), x),
            (Fn1::Recip, Slots::Floats(x)) => floats(&|x| self.recip(x), x),
            (Fn1::Sin, Slots::Floats(x)) => floats(&|x| self.sine(x, 0), x),
            (Fn1::Cos, Slots::Floats(x)) => floats(&|x| self.sine(x, 1), x),
            (Fn1::Neg, Slots::Ints(x)) => {
                let values = x.into_iter().map(|x| Ok(b.build_int_nsw_neg(x, "")?));
                Ok(Slots::Ints(values.collect::<Done<_>>()?))
            }
            (Fn1::Not, Slots::Truths(x)) => {
                let values = x.into_iter().map(|x| Ok(b.build_not(x, "")?));
                Ok(Slots::Truths(values.collect::<Done<_>>()?))
            }
            (f, _) => fail(format!("{f:?} of other elements than it is for")),
        }
    }

    pub(crate) fn zip(&self, f: Fn2, x: Slots<'c>, y: Slots<'c>) -> Done<Slots<'c>> {
        let n = slots_of(&[x.values().len(), y.values().len()])?;
        match (x, y) {
            (Slots::Floats(x), Slots::Floats(y)) if f.is_predicate() => {
                let values = (0..n).map(|i| self.compare_floats(f, slot(&x, i), slot(&y, i)));
                Ok(Slots::Truths(values.collect::<Done<_>>()?))
            }
            (Slots::Floats(x), Slots::Floats(y)) => {
                let values = (0..n).map(|i| self.zip_floats(f, slot(&x, i), slot(&y, i)));
                Ok(Slots::Floats(values.collect::<Done<_>>()?))
            }
            (Slots::Ints(x), Slots::Ints(y)) => {
                let values = (0..n).map(|i| self.zip_ints(f, slot(&x, i), slot(&y, i)));
                let values = values.collect::<Done<_>>()?;
                Ok(if f.is_predicate() { Slots::Truths(values) } else { Slots::Ints(values) })
            }
            (Slots::Truths(x), Slots::Truths(y)) => {
                let b = &self.ir.b;
                let one = |x, y| match f {
                    Fn2::And => Ok(b.build_and(x, y, "")?),
                    Fn2::Or => Ok(b.build_or(x, y, "")?),
                    _ => fail(format!("{f:?} of truth values")),
                };
                let values = (0..n).map(|i| one(slot(&x, i), slot(&y, i)));
                Ok(Slots::Truths(values.collect::<Done<_>>()?))
            }
            _ => fail(format!("{f:?} of different kinds of elements")),
        }
    }

    fn zip_floats(&self, f: Fn2, x: F<'c>, y: F<'c>) -> Done<F<'c>> {
        let b = &self.ir.b;
        Ok(match f {
            Fn2::Add => b.build_float_add(x, y, "")?,
            Fn2::Sub => b.build_float_sub(x, y, "")?,
            Fn2::Mul => b.build_float_mul(x, y, "")?,
            Fn2::Div => b.build_float_div(x, y, "")?,
            Fn2::Quotient => self.quotient(x, y)?,
            Fn2::Max => self.real("llvm.maxnum", &[x, y])?,
            Fn2::Min => self.real("llvm.minnum", &[x, y])?,
            _ => return fail(format!("{f:?} of floats")),
        })
    }

    /// `x / y` by the inverse of `y`, which many elements share, and two corrections: Markstein 1990, theorem 8.2. Where `y`
    /// is so small that what a correction is made of would be no normal number, both operands are larger by a power of two.
    fn quotient(&self, x: F<'c>, y: F<'c>) -> Done<F<'c>> {
        let (b, number) = (&self.ir.b, |x: f64| self.ir.ctx.f32_type().const_float(x));
        let is = |how, a: F<'c>, to: f64| b.build_float_compare(how, a, number(to), "");
        let small = is(FloatPredicate::OLT, y, SMALL)?;
        let by = float(b.build_select(small, number(LARGE), number(1.0), "")?)?;
        let (x, y) = (b.build_float_mul(x, by, "")?, b.build_float_mul(y, by, "")?);
        let inverse = b.build_float_div(number(1.0), y, "")?;
        let first = b.build_float_mul(x, inverse, "")?;
        let minus = b.build_float_neg(y, "")?;
        let corrected = |q: F<'c>| -> Done<F<'c>> {
            let rest = self.real("llvm.fma", &[q, minus, x])?;
            self.real("llvm.fma", &[rest, inverse, q])
        };
        let last = corrected(corrected(first)?)?;
        // Of these there is no rest.
        let zero = is(FloatPredicate::OEQ, y, 0.0)?;
        let special = b.build_or(zero, is(FloatPredicate::OEQ, y, f64::INFINITY)?, "")?;
        float(b.build_select(special, first, last, "")?)
    }

    fn compare_floats(&self, f: Fn2, x: F<'c>, y: F<'c>) -> Done<I<'c>> {
        let how = match f {
            Fn2::Lt => FloatPredicate::OLT,
            Fn2::Le => FloatPredicate::OLE,
            Fn2::Eq => FloatPredicate::OEQ,
            _ => return fail(format!("{f:?} of floats")),
        };
        Ok(self.ir.b.build_float_compare(how, x, y, "")?)
    }

    fn zip_ints(&self, f: Fn2, x: I<'c>, y: I<'c>) -> Done<I<'c>> {
        let b = &self.ir.b;
        let extreme = |name| int(self.ir.value(name, &[x.get_type().into()], &[x.into(), y.into()])?);
        Ok(match f {
            // The interpreter has no integers that overflow.
            Fn2::Add => b.build_int_nsw_add(x, y, "")?,
            Fn2::Sub => b.build_int_nsw_sub(x, y, "")?,
            Fn2::Mul => b.build_int_nsw_mul(x, y, "")?,
            Fn2::Div => self.floor_div(x, y)?.0,
            Fn2::Rem => self.floor_div(x, y)?.1,
            Fn2::Max => extreme("llvm.smax")?,
            Fn2::Min => extreme("llvm.smin")?,
            Fn2::Lt => self.ir.compare(IntPredicate::SLT, x, y)?,
            Fn2::Le => self.ir.compare(IntPredicate::SLE, x, y)?,
            Fn2::Eq => self.ir.compare(IntPredicate::EQ, x, y)?,
            Fn2::And | Fn2::Or | Fn2::Quotient => return fail(format!("{f:?} of integers")),
        })
    }

    /// Quotient and remainder of `x / y`, rounded towards minus infinity, for `y > 0`.
    fn floor_div(&self, x: I<'c>, y: I<'c>) -> Done<(I<'c>, I<'c>)> {
        let b = &self.ir.b;
        if let Some(n) = y.get_sign_extended_constant().filter(|n| n.count_ones() == 1 && *n > 0) {
            let bits = self.ir.i64(i64::from(n.trailing_zeros()));
            return Ok((b.build_right_shift(x, bits, true, "")?, b.build_and(x, self.ir.i64(n - 1), "")?));
        }
        let (quotient, rest) = (b.build_int_signed_div(x, y, "")?, b.build_int_signed_rem(x, y, "")?);
        let negative = self.ir.compare(IntPredicate::SLT, rest, self.ir.i64(0))?;
        let down = b.build_int_s_extend(negative, self.ir.ctx.i64_type(), "")?;
        let quotient = b.build_int_add(quotient, down, "")?;
        let rest = b.build_int_add(rest, b.build_and(down, y, "")?, "")?;
        Ok((quotient, rest))
    }

    pub(crate) fn select(&self, cond: &[I<'c>], x: &Slots<'c>, y: &Slots<'c>) -> Done<Slots<'c>> {
        let (elem, x, y) = (x.elem(), x.values(), y.values());
        let n = slots_of(&[cond.len(), x.len(), y.len()])?;
        let b = &self.ir.b;
        let picked = (0..n).map(|i| {
            let (x, y) = (slot(&x, i), slot(&y, i));
            if x.get_type() != y.get_type() {
                return fail("a choice between different kinds of elements");
            }
            Ok(b.build_select(slot(cond, i), x, y, "")?)
        });
        Slots::new(elem, &picked.collect::<Done<Vec<_>>>()?)
    }

    pub(crate) fn cast(&self, x: Slots<'c>, to: Elem) -> Done<Slots<'c>> {
        let b = &self.ir.b;
        let (i64_type, f32_type) = (self.ir.ctx.i64_type(), self.ir.ctx.f32_type());
        Ok(match (x, to) {
            (x, to) if x.elem() == to => x,
            (Slots::Floats(x), Elem::I64) => {
                let types = [i64_type.into(), f32_type.into()];
                let one = |x: F<'c>| int(self.ir.value("llvm.fptosi.sat", &types, &[x.into()])?);
                Slots::Ints(x.into_iter().map(one).collect::<Done<_>>()?)
            }
            (Slots::Ints(x), Elem::F32) => {
                let values = x.into_iter().map(|x| Ok(b.build_signed_int_to_float(x, f32_type, "")?));
                Slots::Floats(values.collect::<Done<_>>()?)
            }
            (Slots::Truths(x), Elem::I64) => {
                let values = x.into_iter().map(|x| Ok(b.build_int_z_extend(x, i64_type, "")?));
                Slots::Ints(values.collect::<Done<_>>()?)
            }
            (Slots::Truths(x), Elem::F32) => {
                let (one, zero) = (self.ir.f32(1.0), self.ir.f32(0.0));
                let values = x.into_iter().map(|x| float(b.build_select(x, one, zero, "")?));
                Slots::Floats(values.collect::<Done<_>>()?)
            }
            (x, to) => return fail(format!("a cast from {:?} to {to:?}", x.elem())),
        })
    }

    pub(crate) fn fma(&self, x: &[F<'c>], y: &[F<'c>], acc: &[F<'c>]) -> Done<Vec<F<'c>>> {
        let n = slots_of(&[x.len(), y.len(), acc.len()])?;
        (0..n).map(|i| self.real("llvm.fma", &[slot(x, i), slot(y, i), slot(acc, i)])).collect()
    }

    /// An intrinsic that is overloaded by the type of its operands, floats all.
    fn real(&self, name: &str, args: &[F<'c>]) -> Done<F<'c>> {
        let args: Vec<V> = args.iter().map(|&arg| arg.into()).collect();
        float(self.ir.value(name, &[args[0].get_type()], &args)?)
    }

    fn sqrt(&self, x: F<'c>) -> Done<F<'c>> {
        self.real("llvm.sqrt", &[x])
    }

    /// `1 / x`, rounded correctly but where the mantissa of `x` is all ones. The instruction that always is branches,
    /// and what follows products has hundreds.
    fn recip(&self, x: F<'c>) -> Done<F<'c>> {
        let b = &self.ir.b;
        let constraints = ["=f", "f"].map(String::from);
        let types = [self.ir.ctx.f32_type().into()];
        let made = self.ir.asm(Effect::None, "rcp.approx.f32 $0, $1;", &constraints, &types, &[x.into()])?;
        let near = float(made[0])?;
        let minus_x = b.build_float_neg(x, "")?;
        let error = self.real("llvm.fma", &[minus_x, near, self.ir.f32(1.0)])?;
        let nearer = self.real("llvm.fma", &[near, error, near])?;
        // Zero and infinity are each other's reciprocals as they are.
        let finite = b.build_float_compare(FloatPredicate::ORD, nearer, nearer, "")?;
        float(b.build_select(finite, nearer, near, "")?)
    }

    /// `e^x = 2^n · 2^f` with `n` an integer and `f` small: within two units in the last place.
    ///
    /// `n` stays where `2^n` is normal; beyond, `f` takes over, so that results become subnormal, zero or infinite,
    /// and NaN stays NaN.
    fn exp(&self, x: F<'c>) -> Done<F<'c>> {
        /// log₂ e, and what rounding it leaves.
        const LOG2_E: f32 = std::f32::consts::LOG2_E;
        const LOG2_E_LOW: f32 = 1.925_963e-8;
        /// The largest `n`; the smallest is its opposite.
        const LARGEST: f32 = 126.0;
        let b = &self.ir.b;
        let c = |x| self.ir.f32(x);
        // From 0 to 1 for `n` from end to end: an instruction that saturates clamps it.
        let args = [x, c(LOG2_E / (2.0 * LARGEST)), c(0.5)].map(V::from);
        let t = float(self.ir.value("llvm.nvvm.fma.rn.sat.f", &[], &args)?)?;
        let shifted = self.real("llvm.fma", &[t, c(2.0 * LARGEST), c(TO_INTEGER - LARGEST)])?;
        let minus_n = b.build_float_sub(c(TO_INTEGER), shifted, "")?;
        let f = self.real("llvm.fma", &[x, c(LOG2_E), minus_n])?;
        let f = self.real("llvm.fma", &[x, c(LOG2_E_LOW), f])?;
        let part = self.real("llvm.nvvm.ex2.approx.ftz", &[f])?;
        let exponent = self.ir.shl(self.ir.as_int(shifted)?, 23)?;
        let power = b.build_int_add(exponent, self.ir.i32(1f32.to_bits()), "")?;
        Ok(b.build_float_mul(part, self.ir.as_float(power)?, "")?)
    }

    /// `ln x = k · ln 2 + ln(1 + f)`, `1 + f` being the mantissa from 2/3 to 4/3: within a unit in the last place.
    fn log(&self, x: F<'c>) -> Done<F<'c>> {
        /// Of `(ln(1 + f) - f) / f²`: the polynomial that equals it at the Chebyshev points of -1/3 … 1/3.
        const POLYNOMIAL: [f32; 9] = [
            -0.124_222,
            0.137_483_09,
            -0.122_887_22,
            0.140_558_12,
            -0.166_733_16,
            0.200_072_33,
            -0.249_999_45,
            0.333_332_72,
            -0.5,
        ];
        let (b, ir) = (&self.ir.b, &self.ir);
        let c = |x| ir.f32(x);
        let two_23 = 8_388_608.0;
        let tiny = b.build_float_compare(FloatPredicate::OLT, x, c(f32::MIN_POSITIVE), "")?;
        let scaled = b.build_float_mul(x, c(two_23), "")?;
        let normal = float(b.build_select(tiny, scaled, x, "")?)?;
        let less = float(b.build_select(tiny, c(-23.0), c(0.0), "")?)?;

        let bits = ir.as_int(normal)?;
        let above = b.build_int_sub(bits, ir.i32(TWO_THIRDS), "")?;
        let exponent = b.build_and(above, ir.i32(0xff80_0000), "")?;
        let mantissa = ir.as_float(b.build_int_sub(bits, exponent, "")?)?;
        let k = b.build_right_shift(exponent, ir.i32(23), true, "")?;
        let k = b.build_signed_int_to_float(k, ir.ctx.f32_type(), "")?;
        let k = b.build_float_add(k, less, "")?;
        let f = b.build_float_sub(mantissa, c(1.0), "")?;
        let mut p = c(POLYNOMIAL[0]);
        for &coefficient in &POLYNOMIAL[1..] {
            p = self.real("llvm.fma", &[p, f, c(coefficient)])?;
        }
        let p = b.build_float_mul(p, f, "")?;
        let part = self.real("llvm.fma", &[p, f, f])?;
        let finite = self.real("llvm.fma", &[k, c(std::f32::consts::LN_2), part])?;

        // Zero, below zero, and what is not finite.
        let positive = b.build_float_compare(FloatPredicate::OGT, x, c(0.0), "")?;
        let zero = b.build_float_compare(FloatPredicate::OEQ, x, c(0.0), "")?;
        let beyond = b.build_float_compare(FloatPredicate::UEQ, x, c(f32::INFINITY), "")?;
        let other = b.build_select(zero, c(f32::NEG_INFINITY), c(f32::NAN), "")?;
        let result = b.build_select(positive, finite, float(other)?, "")?;
        float(b.build_select(beyond, x, float(result)?, "")?)
    }

    /// The sine of `x` and `quarters` right angles: the nearest `f32` but for one in millions.
    ///
    /// An angle is `m · 2^(e - 31)` with a mantissa `m` of 32 bits, so it is `m · w` right angles modulo 4, with 94 bits
    /// behind the point, where `w` is 96 bits of 2/π from a place that `e` tells. The rest is a polynomial in `f64`.
    fn sine(&self, x: F<'c>, quarters: u32) -> Done<F<'c>> {
        let (b, ir) = (&self.ir.b, &self.ir);
        let (i32_type, i64_type, f64_type) = (ir.ctx.i32_type(), ir.ctx.i64_type(), ir.ctx.f64_type());
        let bits = ir.as_int(x)?;
        let magnitude = b.build_and(bits, ir.i32(0x7fff_ffff), "")?;
        let exponent = ir.shr(magnitude, 23)?;
        let mantissa = b.build_or(ir.shl(magnitude, 8)?, ir.i32(0x8000_0000), "")?;
        let m = b.build_int_z_extend(mantissa, i64_type, "")?;

        // Angles below 1/2 are their own rest; the table begins with as many zeros as this one needs.
        let small = ir.compare(IntPredicate::ULT, exponent, ir.i32(126))?;
        let place = b.build_int_sub(exponent, ir.i32(127 - 31), "")?;
        let place = int(b.build_select(small, ir.i32(0), place, "")?)?;
        let (word, shift) = (ir.shr(place, 5)?, b.build_and(place, ir.i32(31), "")?);
        let table = self.two_over_pi();
        let mut words = Vec::with_capacity(4);
        for i in 0..4 {
            let at = ir.shl(b.build_int_add(word, ir.i32(i), "")?, 2)?;
            words.push(int(b.build_load(i32_type, ir.offset(table, at)?, "")?)?);
        }
        let mut window = Vec::with_capacity(3);
        for pair in words.windows(2) {
            let args = [pair[0], pair[1], shift].map(V::from);
            let bits = int(ir.value("llvm.fshl", &[i32_type.into()], &args)?)?;
            window.push(b.build_int_mul(b.build_int_z_extend(bits, i64_type, "")?, m, "")?);
        }
        let turns = b.build_int_add(ir.shl(window[0], 32)?, window[1], "")?;
        let turns = b.build_int_add(turns, ir.shr(window[2], 32)?, "")?;

        // To the nearest right angle.
        let rest = ir.shl(turns, 2)?;
        let up = ir.shr(rest, 63)?;
        let quadrant = ir.low(b.build_int_add(ir.shr(turns, 62)?, up, "")?)?;
        let rest = b.build_signed_int_to_float(rest, f64_type, "")?;
        let step = std::f64::consts::FRAC_PI_2 / 2f64.powi(64);
        let rest = b.build_float_mul(rest, ir.f64(step), "")?;
        let own = b.build_float_ext(ir.as_float(magnitude)?, f64_type, "")?;
        let r = float(b.build_select(small, own, rest, "")?)?;
        let quadrant = int(b.build_select(small, ir.i32(0), quadrant, "")?)?;
        let quadrant = b.build_int_add(quadrant, ir.i32(quarters), "")?;

        // The Taylor series, whose next terms are below 1e-11 of the result.
        let square = b.build_float_mul(r, r, "")?;
        let series = |last: u32| -> Done<F<'c>> {
            let mut terms = Vec::new();
            let mut factorial = 1.0;
            for n in 1..=last {
                factorial *= f64::from(n);
                if n % 2 == last % 2 {
                    terms.push(if n / 2 % 2 == 1 { -1.0 / factorial } else { 1.0 / factorial });
                }
            }
            let mut terms = terms.into_iter().rev().map(|term| ir.f64(term));
            let last = terms.next().unwrap_or(ir.f64(0.0));
            terms.try_fold(last, |sum, term| self.real("llvm.fma", &[sum, square, term]))
        };
        // r - r³/6 + …, of which the list begins with 1; and 1 - r²/2 + …, of which it begins with -1/2.
        let sine = b.build_float_mul(series(11)?, r, "")?;
        let cosine = self.real("llvm.fma", &[series(12)?, square, ir.f64(1.0)])?;
        let odd = ir.compare(IntPredicate::NE, b.build_and(quadrant, ir.i32(1), "")?, ir.i32(0))?;
        let value = float(b.build_select(odd, cosine, sine, "")?)?;
        let value = ir.as_int(b.build_float_trunc(value, ir.ctx.f32_type(), "")?)?;
        // Two quarters turn the sign, and so does a negative angle, of a sine.
        let turned = ir.shl(b.build_and(quadrant, ir.i32(2), "")?, 30)?;
        let mut value = b.build_xor(value, turned, "")?;
        if quarters == 0 {
            let negative = b.build_and(bits, ir.i32(0x8000_0000), "")?;
            value = b.build_xor(value, negative, "")?;
        }
        let finite = ir.compare(IntPredicate::ULT, exponent, ir.i32(255))?;
        float(b.build_select(finite, ir.as_float(value)?, ir.f32(f32::NAN), "")?)
    }

    /// 64 zeros and 192 bits of 2/π behind them, in words, the most significant first.
    fn two_over_pi(&self) -> inkwell::values::PointerValue<'c> {
        const NAME: &str = "two_over_pi";
        const WORDS: [u32; 8] =
            [0, 0, 0xa2f9_836e, 0x4e44_1529, 0xfc27_57d1, 0xf534_ddc0, 0xdb62_9599, 0x3c43_9041];
        let module = &self.ir.module;
        if let Some(table) = module.get_global(NAME) {
            return table.as_pointer_value();
        }
        let ty = self.ir.ctx.i32_type();
        let table = module.add_global(ty.array_type(8), Some(AddressSpace::from(space::CONSTANT)), NAME);
        table.set_initializer(&ty.const_array(&WORDS.map(|word| self.ir.i32(word))));
        table.set_constant(true);
        table.set_linkage(inkwell::module::Linkage::Private);
        table.set_alignment(4);
        table.as_pointer_value()
    }
}

/// How many slots operands with these have together: those with one serve all of the others'.
fn slots_of(have: &[usize]) -> Done<usize> {
    let n = have.iter().copied().max().unwrap_or(1);
    if have.iter().all(|&one| one == 1 || one == n) {
        Ok(n)
    } else {
        fail(format!("operands of {have:?} slots"))
    }
}
