//! Numbers as memory holds them, by the formats' definitions.

use eva_ir::types::DType;
use std::sync::OnceLock;

/// Exponent bits, mantissa bits.
fn format(dtype: DType) -> (u32, u32) {
    match dtype {
        DType::F16 => (5, 10),
        DType::Bf16 => (8, 7),
        DType::F8E4M3 => (4, 3),
        DType::F8E5M2 => (5, 2),
        _ => panic!("{dtype} is no small float"),
    }
}

/// The value of a small float's bits.
pub fn decode_small(dtype: DType, bits: u32) -> f64 {
    let (exponent_bits, mantissa_bits) = format(dtype);
    let bias = (1 << (exponent_bits - 1)) - 1;
    let sign = if bits >> (exponent_bits + mantissa_bits) == 1 { -1.0 } else { 1.0 };
    let exponent = bits >> mantissa_bits & ((1 << exponent_bits) - 1);
    let mantissa = bits & ((1 << mantissa_bits) - 1);
    let fraction = f64::from(mantissa) / f64::from(1 << mantissa_bits);
    let all_ones = exponent == (1 << exponent_bits) - 1;
    let magnitude = match (exponent, mantissa) {
        (_, 7) if all_ones && dtype == DType::F8E4M3 => f64::NAN,
        (_, 0) if all_ones && dtype != DType::F8E4M3 => f64::INFINITY,
        _ if all_ones && dtype != DType::F8E4M3 => f64::NAN,
        (0, _) => fraction * 2f64.powi(1 - bias),
        _ => (1.0 + fraction) * 2f64.powi(exponent as i32 - bias),
    };
    sign * magnitude
}

/// All finite values that are not negative, in order: the bits of each are its position.
fn finite(dtype: DType) -> &'static [f64] {
    static TABLES: [OnceLock<Vec<f64>>; 4] = [const { OnceLock::new() }; 4];
    let i = [DType::F16, DType::Bf16, DType::F8E4M3, DType::F8E5M2].iter().position(|d| *d == dtype).unwrap();
    TABLES[i]
        .get_or_init(|| (0..1 << 15).map(|b| decode_small(dtype, b)).take_while(|x| x.is_finite()).collect())
}

/// The bits of the nearest value, ties to the even mantissa; what is too large becomes infinite (NaN in f8e4m3).
pub fn encode_small(dtype: DType, x: f64) -> u32 {
    let (exponent_bits, mantissa_bits) = format(dtype);
    let sign = u32::from(x.is_sign_negative()) << (exponent_bits + mantissa_bits);
    let table = finite(dtype);
    let beyond = table.len() as u32;
    if x.is_nan() {
        return sign | ((1 << (exponent_bits + mantissa_bits)) - 1);
    }
    // The first value above, which may be one step beyond the largest.
    let magnitude = x.abs();
    let above = table.partition_point(|&v| v < magnitude);
    let last = table.len() - 1;
    let step = table[last] - table[last - 1];
    let value = |i: usize| if i <= last { table[i] } else { table[last] + step };
    let bits = if above > last + 1 || magnitude > value(last + 1) {
        beyond
    } else if above == 0 || value(above) == magnitude {
        above as u32
    } else {
        let (low, high) = (magnitude - value(above - 1), value(above) - magnitude);
        let up = if low == high { above % 2 == 0 } else { high < low };
        (if up { above } else { above - 1 }) as u32
    };
    sign | bits
}

/// The code of the first power of two that is not less.
fn encode_power(x: f64) -> u8 {
    if x.is_nan() {
        return 255;
    }
    (0..254).find(|&code| x <= 2f64.powi(i32::from(code) - 127)).unwrap_or(254)
}

/// One element's bytes.
pub fn encode(dtype: DType, x: f64) -> Vec<u8> {
    match dtype {
        DType::F64 => x.to_le_bytes().into(),
        DType::F32 => (x as f32).to_le_bytes().into(),
        DType::I64 => (x as i64).to_le_bytes().into(),
        DType::I32 => (x as i32).to_le_bytes().into(),
        DType::E8M0 => vec![encode_power(x)],
        _ => encode_small(dtype, x).to_le_bytes()[..dtype.bytes() as usize].into(),
    }
}

/// The elements' bytes.
pub fn encode_all(dtype: DType, data: &[f64]) -> Vec<u8> {
    data.iter().flat_map(|&x| encode(dtype, x)).collect()
}

/// The elements in memory.
pub fn decode_all(dtype: DType, bytes: &[u8]) -> Vec<f64> {
    let decode = |b: &[u8]| match dtype {
        DType::F64 => f64::from_le_bytes(b.try_into().unwrap()),
        DType::F32 => f32::from_le_bytes(b.try_into().unwrap()).into(),
        DType::I64 => i64::from_le_bytes(b.try_into().unwrap()) as f64,
        DType::I32 => i32::from_le_bytes(b.try_into().unwrap()).into(),
        DType::E8M0 if b[0] == 255 => f64::NAN,
        DType::E8M0 => 2f64.powi(i32::from(b[0]) - 127),
        _ => decode_small(dtype, b.iter().rev().fold(0, |bits, &b| bits << 8 | u32::from(b))),
    };
    bytes.chunks_exact(dtype.bytes() as usize).map(decode).collect()
}

/// Fails unless `got` is `want`, bit for bit but for NaNs.
#[track_caller]
pub fn assert_same(what: &str, got: &[f64], want: &[f64]) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let same = g.to_bits() == w.to_bits() || g.is_nan() && w.is_nan();
        assert!(same, "{what}: element {i} is {g:e}, not {w:e}");
    }
}

/// Fails unless every element is within `ulps` units in the last place of `f32` of what it should be.
#[track_caller]
pub fn assert_close(what: &str, got: &[f64], want: &[f64], ulps: f64) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (&g, &w)) in got.iter().zip(want).enumerate() {
        let off = ulps_off(g, w);
        assert!(off <= ulps, "{what}: element {i} is {g:e}, not {w:e}: {off} ulp");
    }
}

/// The distance of an `f32` from a number, in units in the last place of `f32` there.
pub fn ulps_off(got: f64, want: f64) -> f64 {
    if got == want || got.is_nan() && want.is_nan() {
        return 0.0;
    }
    let rounded = want as f32;
    if got == f64::from(rounded) && !rounded.is_finite() {
        return 0.0;
    }
    let exponent = want.abs().log2().floor().max(-126.0);
    let off = (got - want).abs() / (exponent - 23.0).exp2();
    if off.is_nan() { f64::INFINITY } else { off }
}
