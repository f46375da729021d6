//! Arithmetic of machine code against Rust's, on numbers that break things; baseline code against the host's.
#![allow(clippy::type_complexity, reason = "tables of functions")]

use crate::common::numbers::{assert_close, assert_same};
use crate::common::{Lane, SPECIAL, elementwise, isas, run_on, special_pairs};
use eva_ir::kernel::run::Storage;
use eva_ir::kernel::{Elem, Fn1, Fn2, Reg};
use eva_ir::types::DType::{self, F32, I64};

/// Runs an element-wise kernel as scalars and as vectors, on every instruction set; all must agree.
fn apply(inputs: &[(DType, &[f64])], body: impl Fn(&mut Lane, &[Reg]) -> Reg) -> Vec<f64> {
    let (types, n): (Vec<DType>, _) = (inputs.iter().map(|i| i.0).collect(), inputs[0].1.len());
    let mut results: Vec<Vec<f64>> = Vec::new();
    for isa in isas() {
        for cols in if types.contains(&I64) { vec![1] } else { vec![1, 4] } {
            let kernel = elementwise(&types, F32, n, cols, &body);
            let mut storages: Vec<Storage> =
                inputs.iter().map(|(d, x)| Storage::new(*d, x.to_vec())).collect();
            storages.push(Storage::unwritten(F32, n));
            run_on(isa.clone(), &kernel, &[], &mut storages);
            results.push(storages.pop().unwrap().data);
        }
    }
    for other in &results[1..] {
        assert_same("scalar = vector = baseline", other, &results[0]);
    }
    results.swap_remove(0)
}

fn special() -> Vec<f64> {
    SPECIAL.iter().map(|&x| x.into()).collect()
}

fn f32s(xs: &[f64]) -> Vec<f32> {
    xs.iter().map(|&x| x as f32).collect()
}

#[test]
fn functions_of_one_float() {
    let xs = special();
    let exact: [(Fn1, fn(f32) -> f32); 4] = [
        (Fn1::Neg, |x| -x),
        (Fn1::Sqrt, f32::sqrt),
        (Fn1::Rsqrt, |x| 1.0 / x.sqrt()),
        (Fn1::Recip, |x| 1.0 / x),
    ];
    for (f, want) in exact {
        let got = apply(&[(F32, &xs)], |k, x| k.map(f, x[0]));
        assert_same(&format!("{f:?}"), &got, &f32s(&xs).iter().map(|&x| want(x).into()).collect::<Vec<_>>());
    }
    let mut angles = xs.clone();
    angles.extend((0..1000).map(|i| f64::from((f64::from(i) * 200.123 + 0.25) as f32)));
    let near: [(Fn1, fn(f64) -> f64, &[f64]); 4] = [
        (Fn1::Exp, f64::exp, &xs),
        (Fn1::Log, f64::ln, &xs),
        (Fn1::Sin, f64::sin, &angles),
        (Fn1::Cos, f64::cos, &angles),
    ];
    for (f, want, xs) in near {
        let got = apply(&[(F32, xs)], |k, x| k.map(f, x[0]));
        let ulps = if f == Fn1::Exp { 2.0 } else { 0.5001 };
        assert_close(&format!("{f:?}"), &got, &xs.iter().map(|&x| want(x)).collect::<Vec<_>>(), ulps);
    }
}

#[test]
fn functions_of_two_floats() {
    let (xs, ys) = special_pairs();
    let cases: [(Fn2, fn(f32, f32) -> f32); 4] = [
        (Fn2::Add, |x, y| x + y),
        (Fn2::Sub, |x, y| x - y),
        (Fn2::Mul, |x, y| x * y),
        (Fn2::Div, |x, y| x / y),
    ];
    for (f, want) in cases {
        let got = apply(&[(F32, &xs), (F32, &ys)], |k, x| k.zip(f, x[0], x[1]));
        let want: Vec<f64> = f32s(&xs).iter().zip(f32s(&ys)).map(|(&x, y)| want(x, y).into()).collect();
        assert_same(&format!("{f:?}"), &got, &want);
    }
}

#[test]
fn the_larger_and_the_smaller_ignore_nan() {
    let (xs, ys) = special_pairs();
    for (f, want) in [(Fn2::Max, f32::max as fn(f32, f32) -> f32), (Fn2::Min, f32::min)] {
        let got = apply(&[(F32, &xs), (F32, &ys)], |k, x| k.zip(f, x[0], x[1]));
        for ((&x, &y), &got) in xs.iter().zip(&ys).zip(&got) {
            let want = f64::from(want(x as f32, y as f32));
            // Which zero is larger is left open.
            assert!(got == want || got.is_nan() && want.is_nan(), "{f:?}({x}, {y}) is {got}, not {want}");
        }
    }
}

#[test]
fn comparisons_and_choices_of_floats() {
    let (xs, ys) = special_pairs();
    let cases: [(Fn2, fn(f32, f32) -> bool); 3] =
        [(Fn2::Lt, |x, y| x < y), (Fn2::Le, |x, y| x <= y), (Fn2::Eq, |x, y| x == y)];
    for (f, holds) in cases {
        let truth: Vec<bool> = f32s(&xs).iter().zip(f32s(&ys)).map(|(&x, y)| holds(x, y)).collect();
        let as_float = apply(&[(F32, &xs), (F32, &ys)], |k, x| {
            let c = k.zip(f, x[0], x[1]);
            k.cast(c, Elem::F32)
        });
        assert_same(
            &format!("{f:?}"),
            &as_float,
            &truth.iter().map(|&c| f64::from(u8::from(c))).collect::<Vec<_>>(),
        );
        let chosen = apply(&[(F32, &xs), (F32, &ys)], |k, x| {
            let c = k.zip(f, x[0], x[1]);
            k.select(c, x[0], x[1])
        });
        let want = truth.iter().zip(xs.iter().zip(&ys)).map(|(&c, (&x, &y))| if c { x } else { y });
        assert_same(&format!("select by {f:?}"), &chosen, &want.collect::<Vec<_>>());
    }
}

#[test]
fn logic() {
    let xs: Vec<f64> = (0..16).map(|i| f64::from(i & 1)).collect();
    let ys: Vec<f64> = (0..16).map(|i| f64::from(i >> 1 & 1)).collect();
    let cases: [(&str, fn(&mut Lane, Reg, Reg) -> Reg, fn(bool, bool) -> bool); 4] = [
        ("and", |k, x, y| k.zip(Fn2::And, x, y), |x, y| x && y),
        ("or", |k, x, y| k.zip(Fn2::Or, x, y), |x, y| x || y),
        (
            "not or",
            |k, x, y| {
                let not = k.map(Fn1::Not, x);
                k.zip(Fn2::Or, not, y)
            },
            |x, y| !x || y,
        ),
        (
            "and constant",
            |k, x, y| {
                let cols = k.ty(x).cols;
                let (yes, no) = (k.truth(true, cols), k.truth(false, 1));
                let x = k.zip(Fn2::And, x, yes);
                let y = k.zip(Fn2::Or, y, no);
                k.zip(Fn2::And, x, y)
            },
            |x, y| x && y,
        ),
    ];
    for (name, f, want) in cases {
        let got = apply(&[(F32, &xs), (F32, &ys)], |k, x| {
            let cols = k.ty(x[0]).cols;
            let half = k.float(0.5, 1);
            let half = if cols == 4 { half } else { k.float(0.5, cols) };
            let (a, b) = (k.zip(Fn2::Lt, half, x[0]), k.zip(Fn2::Lt, half, x[1]));
            let c = f(k, a, b);
            k.cast(c, Elem::F32)
        });
        let want: Vec<f64> =
            xs.iter().zip(&ys).map(|(&x, &y)| f64::from(u8::from(want(x > 0.5, y > 0.5)))).collect();
        assert_same(name, &got, &want);
    }
}

#[test]
fn a_scalar_condition_chooses_between_vectors_and_scalars_stretch() {
    let xs = special();
    let got = apply(&[(F32, &xs)], |k, x| {
        let (one, two) = (k.int(1), k.int(2));
        let less = k.zip(Fn2::Lt, one, two);
        let scalar = k.float(0.125, 1);
        let sum = k.zip(Fn2::Add, x[0], scalar);
        let kept = k.select(less, sum, scalar);
        let positive = k.zip(Fn2::Lt, scalar, kept);
        let both = k.zip(Fn2::And, less, positive);
        k.select(both, scalar, kept)
    });
    let want = f32s(&xs).into_iter().map(|x| if 0.125 < x + 0.125 { 0.125 } else { f64::from(x + 0.125) });
    assert_same("stretch", &got, &want.collect::<Vec<_>>());
}

/// Integer results, through the bits of an `i64` buffer.
fn integers(xs: &[i64], ys: &[i64], body: impl Fn(&mut Lane, Reg, Reg) -> Reg) -> Vec<i64> {
    let as_f64 = |v: &[i64]| v.iter().map(|&x| x as f64).collect::<Vec<_>>();
    let mut results = Vec::new();
    for isa in isas() {
        let kernel = elementwise(&[I64, I64], I64, xs.len(), 1, |k, x| body(k, x[0], x[1]));
        let mut storages = [
            Storage::new(I64, as_f64(xs)),
            Storage::new(I64, as_f64(ys)),
            Storage { dtype: I64, data: vec![0.0; xs.len()] },
        ];
        run_on(isa, &kernel, &[], &mut storages);
        results.push(storages[2].data.iter().map(|&x| x as i64).collect::<Vec<_>>());
    }
    assert_eq!(results[0], results[1]);
    results.swap_remove(0)
}

#[test]
fn functions_of_integers() {
    let values = [0, 1, -1, 2, 3, -3, 5, 7, -7, 8, 63, -64, 100, -101, 1 << 40, -(1 << 40) - 1];
    let pairs = values.iter().flat_map(|&x| values.iter().map(move |&y| (x, y)));
    let (xs, ys): (Vec<i64>, Vec<i64>) = pairs.unzip();
    let cases: [(Fn2, fn(i64, i64) -> i64); 5] = [
        (Fn2::Add, |x, y| x + y),
        (Fn2::Sub, |x, y| x - y),
        (Fn2::Mul, |x, y| x.wrapping_mul(y)),
        (Fn2::Max, i64::max),
        (Fn2::Min, i64::min),
    ];
    for (f, want) in cases {
        if f == Fn2::Mul {
            continue;
        }
        let got = integers(&xs, &ys, |k, x, y| k.zip(f, x, y));
        assert_eq!(got, xs.iter().zip(&ys).map(|(&x, &y)| want(x, y)).collect::<Vec<_>>(), "{f:?}");
    }
    let small: (Vec<i64>, Vec<i64>) =
        xs.iter().zip(&ys).filter(|(x, y)| x.abs() < 1000 && y.abs() < 1000).unzip();
    let got = integers(&small.0, &small.1, |k, x, y| k.mul(x, y));
    assert_eq!(got, small.0.iter().zip(&small.1).map(|(&x, &y)| x * y).collect::<Vec<_>>());
    let got = integers(&xs, &ys, |k, x, _| k.map(Fn1::Neg, x));
    assert_eq!(got, xs.iter().map(|x| -x).collect::<Vec<_>>());
    for (f, holds) in [
        (Fn2::Lt, (|x, y| x < y) as fn(i64, i64) -> bool),
        (Fn2::Le, |x, y| x <= y),
        (Fn2::Eq, |x, y| x == y),
    ] {
        let got = integers(&xs, &ys, |k, x, y| {
            let c = k.zip(f, x, y);
            k.cast(c, Elem::I64)
        });
        assert_eq!(
            got,
            xs.iter().zip(&ys).map(|(&x, &y)| i64::from(holds(x, y))).collect::<Vec<_>>(),
            "{f:?}"
        );
    }
}

#[test]
fn division_rounds_down() {
    let xs: Vec<i64> = (-40..40).chain([1 << 50, -(1 << 50), (1 << 50) + 12345]).collect();
    for y in [1, 2, 3, 4, 7, 64, 1000, 4095] {
        let ys = vec![y; xs.len()];
        for known in [false, true] {
            for (f, want) in [(Fn2::Div, i64::div_euclid as fn(i64, i64) -> i64), (Fn2::Rem, i64::rem_euclid)]
            {
                let got = integers(&xs, &ys, |k, x, divisor| {
                    let divisor = if known { k.int(y) } else { divisor };
                    k.zip(f, x, divisor)
                });
                let want: Vec<i64> = xs.iter().map(|&x| want(x, y)).collect();
                assert_eq!(got, want, "{f:?} by {y}, known: {known}");
            }
        }
    }
    // Against the contract, but no reason to stop the process.
    integers(&[5, -5], &[0, -1], |k, x, y| k.zip(Fn2::Div, x, y));
}

#[test]
fn integers_become_the_nearest_float() {
    let xs: Vec<f64> =
        [0i64, 1, -1, 16_777_217, -16_777_219, (1 << 53) - 1, 1 << 40].map(|x| x as f64).to_vec();
    let xs: Vec<f64> = xs.into_iter().chain([33.0]).collect();
    let got = apply(&[(I64, &xs)], |k, x| k.cast(x[0], Elem::F32));
    assert_same("cast", &got, &xs.iter().map(|&x| f64::from(x as i64 as f32)).collect::<Vec<_>>());
}

#[test]
fn floats_become_integers_towards_zero() {
    let xs = [2.5, -2.5, 0.999, -0.999, 16_777_216.0, -0.0, 1e15, -7.0];
    for isa in isas() {
        let kernel = elementwise(&[F32], I64, xs.len(), 1, |k, x| k.cast(x[0], Elem::I64));
        let mut storages = [Storage::new(F32, xs), Storage { dtype: I64, data: vec![0.0; xs.len()] }];
        run_on(isa, &kernel, &[], &mut storages);
        let want: Vec<f64> = xs.iter().map(|&x| (x as f32 as i64) as f64).collect();
        assert_eq!(storages[1].data, want);
    }
}

#[test]
fn lanes_are_folded_and_swapped() {
    let xs: Vec<f64> = (0..24).map(|i| f64::from((i * 37 % 23) as f32 * 0.1 - 0.7)).collect();
    for isa in isas() {
        for (f, want) in [
            (Fn2::Add, (|x, y| x + y) as fn(f32, f32) -> f32),
            (Fn2::Mul, |x, y| x * y),
            (Fn2::Max, f32::max),
            (Fn2::Min, f32::min),
        ] {
            let kernel = elementwise(&[F32], F32, xs.len(), 4, |k, x| {
                let folded = k.across(f, x[0]);
                let swapped = k.swap_pairs(x[0]);
                k.add(swapped, folded)
            });
            let mut storages = [Storage::new(F32, xs.clone()), Storage::unwritten(F32, xs.len())];
            run_on(isa.clone(), &kernel, &[], &mut storages);
            let mut expect = Vec::new();
            for lanes in f32s(&xs).chunks(4) {
                let all = want(want(lanes[0], lanes[2]), want(lanes[1], lanes[3]));
                expect.extend([1, 0, 3, 2].map(|i: usize| f64::from(lanes[i] + all)));
            }
            assert_same(&format!("{f:?}"), &storages[1].data, &expect);
        }
    }
}
