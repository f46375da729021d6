//! What PTX means is what the kernel means.

use crate::agree::{agree, agree_within, random};
use crate::arithmetic::pointwise;
use crate::build::Build;
use crate::{attention, memory, product, scaled, shared};
use eva_ir::kernel::run::Storage;
use eva_ir::kernel::{Elem, Fn1, Fn2, Kernel, Reg};
use eva_ir::types::DType;

/// Half a unit in the last place of an `f32`, for numbers just above a power of two.
const HALF: f64 = 1.0 / (1u64 << 24) as f64;

/// Floats of all sizes, with what is special among them.
fn floats(n: usize) -> Vec<f64> {
    let special = [
        0.0,
        -0.0,
        1.0,
        -1.0,
        0.5,
        f64::NAN,
        f64::INFINITY,
        f64::NEG_INFINITY,
        f64::from(f32::MAX),
        f64::from(f32::MIN),
        f64::from(f32::MIN_POSITIVE),
        1e-45,
        -1e-40,
        88.7,
        88.73,
        -87.4,
        -103.9,
        -104.5,
        3.0e9,
        -9.3e18,
    ];
    let sizes = random(5, n).map(|x| (60.0 * x * x * x).exp2());
    let all = special.into_iter().chain(sizes.zip(random(6, n)).map(|(size, x)| size * x));
    all.take(n).map(|x| f64::from(x as f32)).collect()
}

/// A buffer that nobody has written; integers have no NaN to say so.
fn nothing(dtype: DType, n: usize) -> Storage {
    if dtype.is_int() { Storage { dtype, data: vec![-77.0; n] } } else { Storage::unwritten(dtype, n) }
}

/// Runs `f` of every pair of floats.
fn check(name: &str, tolerance: f64, write: impl FnOnce(&mut Build, Reg, Reg) -> Reg) {
    let n = 1007;
    let x = floats(n);
    let y: Vec<f64> = x.iter().rev().copied().collect();
    check_on(name, DType::F32, x, y, tolerance, write);
}

fn check_on(
    name: &str,
    dtype: DType,
    x: Vec<f64>,
    y: Vec<f64>,
    tolerance: f64,
    write: impl FnOnce(&mut Build, Reg, Reg) -> Reg,
) {
    let kernel = pointwise(&format!("meaning_{name}"), dtype, write);
    let n = x.len();
    let out = kernel.bufs.iter().last().expect("there is a result").1.dtype;
    let storages = vec![Storage::new(dtype, x), Storage::new(dtype, y), nothing(out, n)];
    agree(&kernel, &[("n", n as i64)], storages, tolerance);
}

#[test]
fn functions_of_one_float_are_accurate() {
    for (f, tolerance) in [
        (Fn1::Neg, 0.0),
        (Fn1::Sqrt, 0.0),
        (Fn1::Recip, 2.0 * HALF),
        // Two roundings.
        (Fn1::Rsqrt, 3.0 * HALF),
        // That of a quarter of the chip's own error is not in this.
        (Fn1::Exp, 3.0 * HALF),
        (Fn1::Log, 3.0 * HALF),
        (Fn1::Sin, 2.0 * HALF),
        (Fn1::Cos, 2.0 * HALF),
    ] {
        check(&format!("{f:?}"), tolerance, |b, x, _| b.map(f, x));
    }
    // Near one, where a logarithm is small.
    let near: Vec<f64> = random(8, 700).map(|x| f64::from((1.0 + 0.01 * x) as f32)).collect();
    check_on("log_near_one", DType::F32, near.clone(), near, 3.0 * HALF, |b, x, _| b.map(Fn1::Log, x));
}

#[test]
fn functions_of_two_floats_are_exact() {
    use Fn2::*;
    for f in [Add, Sub, Mul, Div, Max, Min, Lt, Le, Eq] {
        check(&format!("{f:?}_floats"), 0.0, |b, x, y| match b.zip(f, x, y) {
            truth if f.is_predicate() => b.select(truth, x, y),
            value => value,
        });
    }
    check("fma", 0.0, |b, x, y| {
        let c = b.float(-1.25, 1);
        b.fma(x, c, y)
    });
}

#[test]
fn integers_are_divided_downwards() {
    // As many as there are threads: one that has nothing to do would divide by zero.
    let n = 960;
    let x: Vec<f64> = random(3, n).map(|x| (x * 3e5).round()).collect();
    let y: Vec<f64> = random(4, n).map(|x| (x * 40.0).round().abs() + 1.0).collect();
    use Fn2::*;
    for f in [Add, Sub, Mul, Div, Rem, Max, Min, Lt, Le, Eq] {
        for dtype in [DType::I32, DType::I64] {
            check_on(&format!("{f:?}_{dtype}"), dtype, x.clone(), y.clone(), 0.0, |b, x, y| {
                match b.zip(f, x, y) {
                    truth if f.is_predicate() => b.cast(truth, Elem::I64),
                    value => value,
                }
            });
        }
    }
    for divisor in [1, 7, 16, 192] {
        for f in [Div, Rem] {
            let name = format!("{f:?}_{divisor}");
            check_on(&name, DType::I32, x.clone(), y.clone(), 0.0, |b, x, _| b.by(f, x, divisor));
        }
    }
}

#[test]
fn casts_saturate_and_roundings_go_to_even() {
    check("through_integers", 0.0, |b, x, _| {
        let integer = b.cast(x, Elem::I64);
        b.cast(integer, Elem::F32)
    });
    // Ties, and where each type ends.
    let mut edges: Vec<f64> = Vec::new();
    for largest in [448.0, 57344.0, 65504.0, 3.3895313892515355e38] {
        edges.extend(
            [0.97, 0.999, 1.0, 1.01, 1.03, 464.0 / 448.0, 61440.0 / 57344.0, 1.2].map(|x| x * largest),
        );
    }
    for bits in 0..200 {
        edges.extend(
            [1e-3, 2f64.powi(-10), 2f64.powi(-17), 2f64.powi(-25), 1.0].map(|x| x * f64::from(bits) / 8.0),
        );
    }
    edges.extend(floats(200));
    let mut edges: Vec<f64> = edges.into_iter().flat_map(|x| [x, -x]).map(|x| f64::from(x as f32)).collect();
    // Powers of two, and the numbers beside them.
    for exponent in -149..=128 {
        let power = 2f64.powi(exponent);
        edges.extend(
            [power, power * (1.0 + 2f64.powi(-23)), power * (1.0 - 2f64.powi(-24))]
                .map(|x| f64::from(x as f32)),
        );
    }
    for to in [DType::Bf16, DType::F16, DType::F8E4M3, DType::F8E5M2, DType::E8M0] {
        let name = format!("round_{to}");
        check_on(&name, DType::F32, edges.clone(), edges.clone(), 0.0, |b, x, _| b.round(x, to));
    }
}

/// Runs a copy of `n` vectors.
fn copied(kernel: &Kernel, v: usize, data: Vec<f64>) {
    let dtypes: Vec<DType> = kernel.bufs.iter().map(|(_, buf)| buf.dtype).collect();
    let n = data.len();
    assert_eq!(n % v, 0);
    let mut out = Storage::unwritten(dtypes[1], n);
    out.data.fill(7.0);
    agree(kernel, &[("n", n as i64)], vec![Storage::new(dtypes[0], data), out], 0.0);
}

#[test]
fn numbers_are_loaded_and_stored_at_every_width() {
    for from in DType::ALL {
        for to in DType::ALL.into_iter().filter(|to| to.is_int() == from.is_int()) {
            for v in [1usize, 2, 4, 8, 16] {
                if v as i64 * from.bytes().max(to.bytes()) > 16 {
                    continue;
                }
                let name = format!("meaning_copy_{from}_{to}_{v}");
                let data: Vec<f64> = match from.is_int() {
                    true => (0..4608).map(|x| f64::from(x * x % 1009 - 400)).collect(),
                    false => floats(4608),
                };
                copied(&memory::copy(&name, from, to, v, true), v, data[..v * 37].to_vec());
                copied(&memory::copy(&name, from, to, v, false), v, data[..v * 288].to_vec());
            }
        }
    }
}

#[test]
fn every_narrow_number_is_widened_as_it_is() {
    for dtype in [DType::F8E4M3, DType::F8E5M2, DType::E8M0, DType::F16, DType::Bf16] {
        let codes = 1u64 << (8 * dtype.bytes());
        let step = codes as usize / 256;
        let data = (0..codes).step_by(step).map(|bits| crate::emulate::decode(bits * 257 % codes, dtype));
        let kernel = memory::copy(&format!("widen_{dtype}"), dtype, DType::F32, 4, true);
        copied(&kernel, 4, data.collect());
    }
}

#[test]
fn powers_of_two_are_stored_at_every_width() {
    for v in [1usize, 2, 4] {
        let data: Vec<f64> = floats(4 * 37).into_iter().map(|x| f64::from(x as f32)).collect();
        let kernel = memory::copy(&format!("to_e8m0_{v}"), DType::F32, DType::E8M0, v, true);
        copied(&kernel, v, data);
        let data: Vec<f64> = (0..4 * 63).map(|i| 2f64.powi(i - 126)).collect();
        let kernel = memory::copy(&format!("e8m0_{v}"), DType::E8M0, DType::E8M0, v, false);
        copied(&kernel, v, data.repeat(8)[..v * 288].to_vec());
    }
}

#[test]
fn threads_share_and_shuffle() {
    for dtype in shared::TYPES {
        for (v, swizzle) in [(1usize, false), (2, true)] {
            for masked in [false, true] {
                let kernel = shared::through(dtype, v, swizzle, masked);
                let buffer = if dtype == DType::I64 { DType::I64 } else { DType::F32 };
                let data: Vec<f64> = (0..96 * v).map(|i| (i % 61) as f64 - 30.0).collect();
                let storages = vec![Storage::new(buffer, data), nothing(buffer, 96 * v)];
                agree(&kernel, &[("n", 96 * v as i64)], storages, 0.0);
            }
        }
    }
    let data: Vec<f64> = (0..64).map(|i| f64::from(i * i % 23)).collect();
    agree(
        &shared::warp_sum(),
        &[],
        vec![Storage::new(DType::F32, data), Storage::unwritten(DType::F32, 64)],
        0.0,
    );
    agree(&shared::within_warps(), &[], vec![nothing(DType::I64, 128)], 0.0);
    agree(&shared::swizzled(), &[], vec![Storage::unwritten(DType::F32, 128 * 64)], 0.0);
}

#[test]
fn loops_sum() {
    let data: Vec<f64> = random(11, 5 * 36).map(|x| f64::from(x as f32)).collect();
    let storages = vec![Storage::new(DType::F32, data), Storage::unwritten(DType::F32, 5)];
    agree(&memory::row_sums(), &[("rows", 5), ("cols", 36)], storages, 0.0);
}

#[test]
fn products_of_matrices_are_right() {
    // Ragged, with more tiles than blocks, and one step more than stages.
    let (m, n, k) = (200usize, 4 * 72, 5 * 64usize);
    for (dtype, copy_out) in [(DType::Bf16, false), (DType::F16, true), (DType::F8E4M3, false)] {
        let kernel = product::gemm(&format!("meaning_gemm_{dtype}"), dtype, copy_out);
        let sizes = [("m", m as i64), ("n", n as i64 / 8), ("k", k as i64 / 16)];
        let storages = vec![
            Storage::new(dtype, random(1, m * k)),
            Storage::new(dtype, random(2, n * k)),
            Storage::unwritten(DType::Bf16, m * n),
        ];
        // A unit of bf16 where sums of other orders straddle a tie.
        agree(&kernel, &sizes, storages, 0.01);
    }
}

#[test]
fn products_with_scales_are_right() {
    let (m, n, steps) = (150usize, 256usize, 3usize);
    let kernel = scaled::gemm(DType::F8E4M3, DType::F8E5M2);
    let storages = vec![
        Storage::new(DType::F8E4M3, random(1, m * steps * 128)),
        Storage::new(DType::F8E5M2, random(2, n * steps * 128)),
        Storage::unwritten(DType::F32, m * n),
        Storage::new(DType::F32, random(3, steps * m).map(|x| f64::from((x + 2.0) as f32))),
        Storage::new(DType::F32, random(4, 2 * steps).map(|x| f64::from((x + 2.0) as f32))),
    ];
    agree_within(&kernel, &[("m", m as i64), ("n", 1), ("steps", steps as i64)], storages, [0.0, 1e-6]);
}

#[test]
fn attention_is_right() {
    let (s, t) = (128usize, 2usize);
    let kernel = attention::attention("meaning_attention", DType::Bf16);
    let keys = t * attention::KEYS;
    let storages = vec![
        Storage::new(DType::Bf16, random(1, s * attention::WIDTH).map(|x| x / 4.0)),
        Storage::new(DType::Bf16, random(2, keys * attention::WIDTH)),
        Storage::new(DType::Bf16, random(3, keys * attention::VALUES)),
        Storage::unwritten(DType::F32, s * attention::VALUES),
    ];
    agree_within(&kernel, &[("s", s as i64), ("t", t as i64)], storages, [0.0, 1e-3]);
}
