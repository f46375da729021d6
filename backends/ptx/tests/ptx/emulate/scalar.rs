//! Instructions of one thread that touch no memory.

use super::number::{decode, encode};
use eva_ir::types::DType;

/// Bits of a type such as `s32`; predicates have one.
pub fn bits_of(ty: &str) -> u32 {
    match ty {
        "pred" => 1,
        "bf16x2" | "f16x2" => 32,
        "e4m3x2" | "e5m2x2" => 16,
        "bf16" => 16,
        _ => ty[1..].parse().unwrap_or_else(|_| panic!("`{ty}` is no type")),
    }
}

pub fn mask(bits: u32) -> u64 {
    if bits >= 64 { u64::MAX } else { (1 << bits) - 1 }
}

fn signed(x: u64, bits: u32) -> i128 {
    let shift = 64 - bits;
    i128::from(((x << shift) as i64) >> shift)
}

/// A signed number of `bits` bits, in 64.
pub fn extend(x: u64, bits: u32) -> u64 {
    signed(x, bits) as u64
}

/// A number of an integer type.
fn int(x: u64, ty: &str) -> i128 {
    let bits = bits_of(ty);
    if ty.starts_with('s') { signed(x, bits) } else { i128::from(x & mask(bits)) }
}

fn f32_of(x: u64) -> f32 {
    f32::from_bits(x as u32)
}

/// What an instruction gives for these operands; `None` if it is none of these.
pub fn evaluate(op: &[&str], x: &[u64]) -> Option<u64> {
    let (&name, &ty) = (op.first()?, op.last()?);
    let has = |word: &str| op.contains(&word);
    if name == "cvt" {
        return Some(convert(op, x));
    }
    if name == "setp" {
        return Some(u64::from(compare(op[1], ty, x[0], x[1])));
    }
    if name == "selp" {
        return Some(if x[2] & 1 == 1 { x[0] } else { x[1] });
    }
    match ty {
        "f32" => {
            let [a, b, c] = [0, 1, 2].map(|i| x.get(i).map_or(0.0, |&bits| f32_of(bits)));
            let y = match name {
                "add" => a + b,
                "sub" => a - b,
                "mul" => a * b,
                "div" => a / b,
                "fma" => a.mul_add(b, c),
                "sqrt" => a.sqrt(),
                // A unit in the last place off, as the chip may be.
                "rcp" if has("approx") && (1.0 / a).is_normal() => (1.0 / a).next_up(),
                "rcp" => 1.0 / a,
                "ex2" => f64::from(flush(a)).exp2() as f32,
                "neg" => -a,
                "abs" => a.abs(),
                "max" if a.is_nan() || b.is_nan() => a.max(b),
                "min" if a.is_nan() || b.is_nan() => a.min(b),
                // Of zeros, the positive one is larger.
                "max" => {
                    if a > b || a == b && a.is_sign_positive() {
                        a
                    } else {
                        b
                    }
                }
                "min" => {
                    if a < b || a == b && a.is_sign_negative() {
                        a
                    } else {
                        b
                    }
                }
                _ => return None,
            };
            let y = if has("sat") { if y > 0.0 { y.min(1.0) } else { 0.0 } } else { y };
            let y = if has("ftz") { flush(y) } else { y };
            assert!(has("rn") || !["add", "sub", "mul", "div", "fma"].contains(&name), "{op:?} may be fused");
            Some(y.to_bits().into())
        }
        "f64" => {
            let [a, b, c] = [0, 1, 2].map(|i| x.get(i).map_or(0.0, |&bits| f64::from_bits(bits)));
            let y = match name {
                "add" => a + b,
                "sub" => a - b,
                "mul" => a * b,
                "fma" => a.mul_add(b, c),
                "neg" => -a,
                "abs" => a.abs(),
                _ => return None,
            };
            Some(y.to_bits())
        }
        _ => integer(op, x),
    }
}

/// Numbers that are subnormal as zeros.
fn flush(x: f32) -> f32 {
    if x.is_subnormal() { 0f32.copysign(x) } else { x }
}

fn integer(op: &[&str], x: &[u64]) -> Option<u64> {
    let (name, ty) = (op[0], op[op.len() - 1]);
    let bits = bits_of(ty);
    let at = |i: usize| int(x[i], ty);
    let y: i128 = match name {
        "add" => at(0) + at(1),
        "sub" => at(0) - at(1),
        "mul" | "mad" => {
            let product = at(0) * at(1);
            match op[1] {
                "hi" => product >> bits,
                "wide" => {
                    let sum = if name == "mad" { product + i128::from(x[2]) } else { product };
                    return Some(sum as u64);
                }
                _ if name == "mad" => product + at(2),
                _ => product,
            }
        }
        "div" => at(0) / at(1),
        "rem" => at(0) % at(1),
        "min" => at(0).min(at(1)),
        "max" => at(0).max(at(1)),
        "neg" => -at(0),
        "abs" => at(0).abs(),
        "not" => !at(0),
        "and" => at(0) & at(1),
        "or" => at(0) | at(1),
        "xor" => at(0) ^ at(1),
        "shl" if x[1] & 0xffff_ffff >= u64::from(bits) => 0,
        "shl" => at(0) << (x[1] & 63),
        // The sign, or zeros, come in for ever.
        "shr" => at(0) >> (x[1] & 0xffff_ffff).min(100),
        "bfe" => {
            let len = (x[2] & 0xff) as u32;
            let field = (at(0) >> (x[1] & 0xff)) as u64 & mask(len);
            if ty.starts_with('s') { signed(field, len) } else { field.into() }
        }
        "shf" => {
            assert_eq!(op[1..3], ["l", "wrap"]);
            let both = (x[1] & mask(32)) << 32 | x[0] & mask(32);
            i128::from(both << (x[2] & 31) >> 32)
        }
        _ => return None,
    };
    Some(y as u64 & mask(bits))
}

fn compare(how: &str, ty: &str, a: u64, b: u64) -> bool {
    use std::cmp::Ordering::*;
    let order = match ty {
        "f32" => f32_of(a).partial_cmp(&f32_of(b)),
        "f64" => f64::from_bits(a).partial_cmp(&f64::from_bits(b)),
        _ => Some(int(a, ty).cmp(&int(b, ty))),
    };
    match (how, order) {
        ("eq" | "equ", Some(order)) => order == Equal,
        ("ne" | "neu", Some(order)) => order != Equal,
        ("lt" | "ltu", Some(order)) => order == Less,
        ("le" | "leu", Some(order)) => order != Greater,
        ("gt" | "gtu", Some(order)) => order == Greater,
        ("ge" | "geu", Some(order)) => order != Less,
        ("nan", order) => order.is_none(),
        ("num", order) => order.is_some(),
        ("equ" | "neu" | "ltu" | "leu" | "gtu" | "geu", None) => true,
        ("eq" | "ne" | "lt" | "le" | "gt" | "ge", None) => false,
        _ => panic!("no comparison `{how}`"),
    }
}

/// The narrow type of a name.
fn narrow(name: &str) -> Option<DType> {
    Some(match name.trim_end_matches("x2") {
        "bf16" => DType::Bf16,
        "f16" => DType::F16,
        "e4m3" => DType::F8E4M3,
        "e5m2" => DType::F8E5M2,
        _ => return None,
    })
}

fn convert(op: &[&str], x: &[u64]) -> u64 {
    let how = &op[1..op.len() - 2];
    let (to, from) = (op[op.len() - 2], op[op.len() - 1]);
    // Two at once; the first operand becomes the upper one.
    if to.ends_with("x2") {
        let dtype = narrow(to).expect("pairs are narrow");
        let bits = 8 * dtype.bytes() as u32;
        if let Some(source) = narrow(from) {
            let source_bits = 8 * source.bytes() as u32;
            let part = |i: u32| encode(decode(x[0] >> (i * source_bits) & mask(source_bits), source), dtype);
            return part(1) << bits | part(0);
        }
        let one = |x: u64| {
            let x = f64::from(f32_of(x));
            if !how.contains(&"satfinite") || x.is_nan() {
                return encode(x, dtype);
            }
            let largest = decode(encode(if dtype == DType::F8E4M3 { 448.0 } else { 57344.0 }, dtype), dtype);
            encode(x.clamp(-largest, largest), dtype)
        };
        return one(x[0]) << bits | one(x[1]);
    }
    let wide = |x: u64| match from {
        "f32" => f64::from(f32_of(x)),
        "f64" => f64::from_bits(x),
        _ => match narrow(from) {
            Some(dtype) => decode(x & mask(16), dtype),
            None => int(x, from) as f64,
        },
    };
    match to {
        "f64" => wide(x[0]).to_bits(),
        "f32" if from.starts_with(['s', 'u']) => (int(x[0], from) as f32).to_bits().into(),
        "f32" => (wide(x[0]) as f32).to_bits().into(),
        _ => match narrow(to) {
            Some(dtype) => encode(wide(x[0]), dtype),
            None if from.starts_with('f') => {
                assert_eq!(how, ["rzi"]);
                let x = wide(x[0]);
                // The chip gives the smallest number for NaN.
                if x.is_nan() { i64::MIN as u64 } else { x as i64 as u64 }
            }
            None => int(x[0], from) as u64 & mask(bits_of(to)),
        },
    }
}
