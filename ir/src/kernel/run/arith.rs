//! Arithmetic of single elements.

use super::Fault;
use super::exec::float;
use crate::kernel::{Const, Elem, Fn1, Fn2};
use crate::types::DType;

/// `x` as a buffer of `dtype` holds it, for types less exact than `f32`; other values are left as they are.
///
/// Rounds to nearest, ties to even. What is too large becomes infinite, or NaN in `f8e4m3`, which has no
/// infinities. To `e8m0` it rounds up, to the least power of two in `2^-127 ..= 2^127` that is not less, or to the
/// largest of them; NaN stays NaN.
pub fn round(x: f64, dtype: DType) -> f64 {
    // Explicit mantissa bits, exponent of the smallest normal number, largest finite value.
    let (bits, least, largest) = match dtype {
        DType::Tf32 => (10, -126, (2.0 - 2f64.powi(-10)) * 2f64.powi(127)),
        DType::Bf16 => (7, -126, f64::from(half::bf16::MAX)),
        DType::F16 => (10, -14, f64::from(half::f16::MAX)),
        DType::F8E4M3 => (3, -6, 448.0),
        DType::F8E5M2 => (2, -14, 57344.0),
        DType::E8M0 => return power_of_two(x),
        DType::F64 | DType::F32 | DType::I64 | DType::I32 => return x,
    };
    let infinity = if dtype == DType::F8E4M3 { f64::NAN } else { f64::INFINITY };
    if x.is_infinite() {
        return infinity.copysign(x);
    }
    let exponent = ((x.to_bits() >> 52 & 0x7ff) as i64 - 1023).max(least);
    // A power of two: the distance of neighbouring values where `x` is. Dividing by it is exact.
    let step = f64::from_bits(((exponent - bits + 1023) as u64) << 52);
    let rounded = (x / step).round_ties_even() * step;
    if rounded.abs() > largest { infinity.copysign(x) } else { rounded }
}

/// What [`crate::kernel::Inst::Round`] gives: [`round`], and for `f32` the nearest single-precision number.
pub(super) fn rounded(x: f64, to: DType) -> f64 {
    if to == DType::F32 { f64::from(x as f32) } else { round(x, to) }
}

/// The least power of two that `e8m0` has and that is not less than `x`; the largest one if there is none.
fn power_of_two(x: f64) -> f64 {
    if x.is_nan() {
        return x;
    }
    let x = x.clamp(2f64.powi(-127), 2f64.powi(127));
    // On the bits of an `f64`, where all of these are normal: one exponent more if there is any mantissa.
    let (exponent, mantissa) = (x.to_bits() >> 52, x.to_bits() & ((1 << 52) - 1));
    f64::from_bits((exponent + u64::from(mantissa != 0)) << 52)
}

/// The bits of a constant.
pub(super) fn constant(value: Const) -> u64 {
    match value {
        Const::F(x) => x.to_bits(),
        Const::I(n) => n as u64,
        Const::B(b) => b.into(),
    }
}

/// `f` of an element of type `elem`.
pub(super) fn map_word(f: Fn1, elem: Elem, word: u64) -> Result<u64, Fault> {
    Ok(match elem {
        Elem::F32 => map(f, float(word)).to_bits(),
        Elem::I64 => (word as i64).checked_neg().ok_or(Fault::Overflow)? as u64,
        Elem::Bool => (word == 0).into(),
    })
}

/// `f` of two elements of type `elem`.
pub(super) fn zip_word(f: Fn2, elem: Elem, x: u64, y: u64) -> Result<u64, Fault> {
    Ok(match elem {
        Elem::Bool => zip_bool(f, x != 0, y != 0).into(),
        Elem::F32 if f.is_predicate() => compare(f, float(x), float(y)).into(),
        Elem::I64 if f.is_predicate() => compare(f, x as i64, y as i64).into(),
        Elem::F32 => zip(f, float(x), float(y)).to_bits(),
        Elem::I64 => zip_int(f, x as i64, y as i64)? as u64,
    })
}

/// An element of type `from` as one of type `to`.
pub(super) fn cast_word(from: Elem, to: Elem, word: u64) -> u64 {
    match (from, to) {
        (Elem::F32, Elem::I64) => float(word) as i64 as u64,
        (Elem::I64, Elem::F32) => (word as i64 as f64).to_bits(),
        (Elem::Bool, Elem::F32) => (word as f64).to_bits(),
        // Truth values are 0 and 1 already.
        _ => word,
    }
}

fn map(f: Fn1, x: f64) -> f64 {
    match f {
        Fn1::Neg => -x,
        Fn1::Exp => x.exp(),
        Fn1::Exp2 => x.exp2(),
        Fn1::Log => x.ln(),
        Fn1::Sqrt => x.sqrt(),
        Fn1::Rsqrt => 1.0 / x.sqrt(),
        Fn1::Recip => 1.0 / x,
        Fn1::Sin => x.sin(),
        Fn1::Cos => x.cos(),
        Fn1::Not => unreachable!("the verifier lets `Not` have truth values only"),
    }
}

pub(super) fn zip(f: Fn2, x: f64, y: f64) -> f64 {
    match f {
        Fn2::Add => x + y,
        Fn2::Sub => x - y,
        Fn2::Mul => x * y,
        Fn2::Div | Fn2::Quotient => x / y,
        Fn2::Max => x.max(y),
        Fn2::Min => x.min(y),
        Fn2::Rem | Fn2::Lt | Fn2::Le | Fn2::Eq | Fn2::And | Fn2::Or => {
            unreachable!("the verifier lets {f:?} have no floats and give no float")
        }
    }
}

pub(super) fn zip_int(f: Fn2, x: i64, y: i64) -> Result<i64, Fault> {
    let value = match f {
        Fn2::Add => x.checked_add(y),
        Fn2::Sub => x.checked_sub(y),
        Fn2::Mul => x.checked_mul(y),
        Fn2::Div | Fn2::Rem if y <= 0 => return Err(Fault::Divisor(y)),
        // Euclid's division rounds down for positive divisors.
        Fn2::Div => Some(x.div_euclid(y)),
        Fn2::Rem => Some(x.rem_euclid(y)),
        Fn2::Max => Some(x.max(y)),
        Fn2::Min => Some(x.min(y)),
        Fn2::Quotient | Fn2::Lt | Fn2::Le | Fn2::Eq | Fn2::And | Fn2::Or => {
            unreachable!("the verifier lets {f:?} give no integer")
        }
    };
    value.ok_or(Fault::Overflow)
}

fn compare<T: PartialOrd>(f: Fn2, x: T, y: T) -> bool {
    match f {
        Fn2::Lt => x < y,
        Fn2::Le => x <= y,
        Fn2::Eq => x == y,
        _ => unreachable!("the verifier lets {f:?} give no truth value of numbers"),
    }
}

pub(super) fn zip_bool(f: Fn2, x: bool, y: bool) -> bool {
    match f {
        Fn2::And => x && y,
        Fn2::Or => x || y,
        _ => unreachable!("the verifier lets {f:?} have no truth values"),
    }
}
