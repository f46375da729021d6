//! Numbers of 8 bits as the bytes that hold them.
//!
//! The formats are those of the OCP's 8-bit floating point specification: `e4m3` without infinities, `e5m2`, and the
//! exponents `e8m0` of its microscaling formats.

use crate::kernel::run::round;
use crate::types::DType;

/// The number that a code of `f8e4m3`, `f8e5m2` or `e8m0` stands for. Panics for other types.
pub fn decode(dtype: DType, code: u8) -> f64 {
    let (mantissa_bits, bias) = match dtype {
        DType::F8E4M3 => (3, 7),
        DType::F8E5M2 => (2, 15),
        DType::E8M0 if code == 0xff => return f64::NAN,
        DType::E8M0 => return 2f64.powi(i32::from(code) - 127),
        _ => panic!("{dtype} is not a type of 8 bits"),
    };
    let sign = if code & 0x80 != 0 { -1.0 } else { 1.0 };
    let (exponent, mantissa) =
        (i32::from(code & 0x7f) >> mantissa_bits, f64::from(code & ((1 << mantissa_bits) - 1)));
    let step = |exponent: i32| 2f64.powi(exponent - bias - mantissa_bits);
    let magnitude = match (dtype, code & 0x7f) {
        (DType::F8E4M3, 0x7f) | (DType::F8E5M2, 0x7d..) => f64::NAN,
        (DType::F8E5M2, 0x7c) => f64::INFINITY,
        _ if exponent == 0 => mantissa * step(1),
        _ => (mantissa + f64::from(1 << mantissa_bits)) * step(exponent),
    };
    sign * magnitude
}

/// The code of the nearest number of `dtype`, as [`round`] finds it. Panics for types that have more than 8 bits.
pub fn encode(dtype: DType, x: f64) -> u8 {
    let x = round(x, dtype);
    let (mantissa_bits, bias, nan) = match dtype {
        DType::F8E4M3 => (3, 7, 0x7f),
        DType::F8E5M2 => (2, 15, 0x7f),
        DType::E8M0 if x.is_nan() => return 0xff,
        DType::E8M0 => return ((x.to_bits() >> 52) as i64 - 1023 + 127) as u8,
        _ => panic!("{dtype} is not a type of 8 bits"),
    };
    let sign = u8::from(x.is_sign_negative()) << 7;
    let magnitude = x.abs();
    let code = if x.is_nan() {
        nan
    } else if x.is_infinite() {
        0x7c
    } else {
        // The number in steps of the smallest one of its exponent; subnormal numbers have the first exponent's.
        let exponent = ((magnitude.to_bits() >> 52) as i32 - 1023 + bias).max(1);
        let steps = (magnitude / 2f64.powi(exponent - bias - mantissa_bits)) as i32;
        // A normal number's leading bit counts one exponent.
        (((exponent - 1) << mantissa_bits) + steps) as u8
    };
    sign | code
}
