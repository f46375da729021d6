//! Numbers of 16 and 8 bits.

use eva_ir::kernel::run::round;
use eva_ir::types::DType;

/// Bits of the exponent and of the mantissa.
fn layout(dtype: DType) -> (u32, u32) {
    match dtype {
        // 13 more bits, which are zero.
        DType::Tf32 => (8, 23),
        DType::Bf16 => (8, 7),
        DType::F16 => (5, 10),
        DType::F8E4M3 => (4, 3),
        DType::F8E5M2 => (5, 2),
        _ => panic!("{dtype} has no narrow numbers"),
    }
}

/// What these bits mean.
pub fn decode(bits: u64, dtype: DType) -> f64 {
    if dtype == DType::E8M0 {
        return eva_ir::codes::decode(dtype, bits as u8);
    }
    let (exponent_bits, mantissa_bits) = layout(dtype);
    let mantissa = bits & ((1 << mantissa_bits) - 1);
    let exponent = bits >> mantissa_bits & ((1 << exponent_bits) - 1);
    let (bias, top) = ((1i32 << (exponent_bits - 1)) - 1, (1 << exponent_bits) - 1);
    let sign = if bits >> (exponent_bits + mantissa_bits) & 1 == 1 { -1.0 } else { 1.0 };
    let magnitude = match (dtype, exponent) {
        // No infinities, and one NaN.
        (DType::F8E4M3, 15) if mantissa == 7 => f64::NAN,
        (DType::Tf32 | DType::Bf16 | DType::F16 | DType::F8E5M2, e) if e == top => {
            if mantissa == 0 {
                f64::INFINITY
            } else {
                f64::NAN
            }
        }
        (_, 0) => mantissa as f64 * 2f64.powi(1 - bias - mantissa_bits as i32),
        (_, e) => {
            (mantissa + (1 << mantissa_bits)) as f64 * 2f64.powi(e as i32 - bias - mantissa_bits as i32)
        }
    };
    sign * magnitude
}

/// The bits of `x`, rounded to nearest, ties to even.
pub fn encode(x: f64, dtype: DType) -> u64 {
    if dtype == DType::E8M0 {
        return eva_ir::codes::encode(dtype, x).into();
    }
    let (exponent_bits, mantissa_bits) = layout(dtype);
    let x = round(x, dtype);
    let sign = u64::from(x.is_sign_negative()) << (exponent_bits + mantissa_bits);
    let all = (1 << (exponent_bits + mantissa_bits)) - 1;
    let bias = (1i32 << (exponent_bits - 1)) - 1;
    if x.is_nan() {
        return sign | all;
    }
    if x.is_infinite() {
        return sign | (all >> mantissa_bits << mantissa_bits);
    }
    let least = 1 - bias;
    let exponent = ((x.to_bits() >> 52 & 0x7ff) as i32 - 1023).max(least);
    // Exact, since `x` has been rounded.
    let steps = (x.abs() / 2f64.powi(exponent - mantissa_bits as i32)) as u64;
    // The leading bit, where there is one, adds one to the exponent.
    sign | ((((exponent - least) as u64) << mantissa_bits) + steps)
}

#[test]
fn every_narrow_number_is_its_own() {
    for dtype in [DType::Bf16, DType::F16, DType::F8E4M3, DType::F8E5M2] {
        for bits in 0..1u64 << (8 * dtype.bytes()) {
            let x = decode(bits, dtype);
            if !x.is_nan() {
                assert_eq!(encode(x, dtype), bits, "{dtype} {bits:#x} {x}");
            }
        }
    }
    assert_eq!(decode(0x7e, DType::F8E4M3), 448.0);
    assert_eq!(decode(0x01, DType::F8E5M2), 2f64.powi(-16));
    assert_eq!(decode(0x3f80, DType::Bf16), 1.0);
    assert_eq!(decode(0xc100, DType::F16), -2.5);
}
