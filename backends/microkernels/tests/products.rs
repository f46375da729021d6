//! Products of every element type, layout and level against sums in f64, with guards around the result.

mod support;

use eva_microkernels::{DotArgs, Elem, Features, ScaleElem, Scales, cpu_features, dot, dot_with};
use proptest::prelude::*;
use support::{Blocks, Case, ELEMS, Matrix, Part, Random, Strides, decode, kernels, layouts, some_blocks};

/// Checks one product with every kernel.
fn check(a: Matrix, b: Matrix, (m, n, k): (usize, usize, usize), c_gap: usize, what: &str) {
    let case = Case { a, b, k };
    let part = Part { i: 0, m, j: 0, n };
    for (level, kernel) in kernels(case.a.elem, case.b.elem) {
        for before in [None, Some(0.75)] {
            let got = case.run(kernel, part, c_gap, before);
            let what = format!("{level}, {:?} x {:?}, {what}, {m}x{n}x{k}", case.a.elem, case.b.elem);
            case.check(&what, part, before, &got);
        }
    }
}

/// Sizes around the tiles, vectors and blocks of the kernels.
const SIZES: [(usize, usize, usize); 18] = [
    (0, 3, 5),
    (3, 0, 5),
    (2, 3, 0),
    (1, 1, 1),
    (1, 8, 17),
    (1, 300, 65),
    (2, 5, 31),
    (3, 129, 7),
    (5, 13, 513),
    (6, 64, 130),
    (7, 67, 48),
    (11, 4, 1025),
    (13, 11, 640),
    (14, 260, 19),
    (19, 37, 129),
    (25, 70, 257),
    (97, 9, 33),
    (1, 17, 2100),
];

#[test]
fn every_type_layout_and_level() {
    let mut random = Random(7);
    let mut blocks = some_blocks().into_iter().cycle();
    for a in ELEMS {
        for b in ELEMS {
            for (m, n, k) in SIZES {
                for (what, a_strides, b_strides) in layouts(m, n, k, 3) {
                    let (of_a, of_b) = (blocks.next().flatten(), blocks.next().flatten());
                    blocks.next();
                    let a = if what == "a one row, b along k" {
                        Matrix::random(a, 1, k, a_strides, &mut random).repeated(m)
                    } else {
                        Matrix::random(a, m, k, a_strides, &mut random).scaled(of_a, &mut random)
                    };
                    let b = Matrix::random(b, n, k, b_strides, &mut random).scaled(of_b, &mut random);
                    check(a, b, (m, n, k), 5, what);
                }
            }
        }
    }
}

fn blocks() -> impl Strategy<Value = Option<Blocks>> {
    let run = || prop::sample::select(vec![1usize, 3, 8, 16, 32, 48, 100, 128]);
    let place =
        || (0usize..200, any::<bool>()).prop_map(|(n, aligned)| if aligned { n / 16 * 16 } else { n });
    let blocks = (any::<bool>(), run(), place(), run(), place()).prop_map(|(narrow, row, at, step, from)| {
        let elem = if narrow { ScaleElem::E8M0 } else { ScaleElem::F32 };
        Blocks { elem, rows: (row, at), steps: (step, from) }
    });
    prop::option::weighted(0.8, blocks)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn random_sizes_and_strides(
        types in (0usize..5, 0usize..5),
        (a_blocks, b_blocks) in (blocks(), blocks()),
        (m, n, k) in (0usize..40, 0usize..150, 0usize..700),
        (a_gap, b_gap, c_gap) in (0usize..9, 0usize..9, 0usize..9),
        (a_k, b_k) in (1usize..4, 1usize..4),
        (a_turned, b_turned) in any::<(bool, bool)>(),
        seed in any::<u64>(),
    ) {
        let mut random = Random(seed);
        let strides = |rows: usize, step: usize, gap: usize, turned: bool| {
            if turned {
                Strides::new(step, rows * step + gap)
            } else {
                Strides::new(k * step + gap, step)
            }
        };
        let a = Matrix::random(ELEMS[types.0], m, k, strides(m, a_k, a_gap, a_turned), &mut random)
            .scaled(a_blocks, &mut random);
        let b = Matrix::random(ELEMS[types.1], n, k, strides(n, b_k, b_gap, b_turned), &mut random)
            .scaled(b_blocks, &mut random);
        check(a, b, (m, n, k), c_gap, "random");
    }
}

#[test]
fn every_bf16_and_f16_expands_exactly() {
    // Each value alone in its sum, times one: the product must be the value itself.
    let bits: Vec<u16> = (0..=u16::MAX).collect();
    let one = [1.0f32];
    for (elem, value) in [
        (Elem::Bf16, (|x| half::bf16::from_bits(x).to_f32()) as fn(u16) -> f32),
        (Elem::F16, |x| half::f16::from_bits(x).to_f32()),
    ] {
        for (level, kernel) in kernels(Elem::F32, elem) {
            let mut c = vec![0f32; bits.len()];
            let args = DotArgs {
                m: 1,
                n: bits.len() as i64,
                k: 1,
                a: one.as_ptr().cast(),
                a_row: 1,
                a_k: 1,
                b: bits.as_ptr().cast(),
                b_row: 1,
                b_k: bits.len() as i64,
                c: c.as_mut_ptr(),
                c_row: 0,
                accumulate: 0,
                a_scales: std::ptr::null(),
                b_scales: std::ptr::null(),
            };
            // SAFETY: one value times all of `bits`, which lie along j.
            unsafe { kernel(&args) };
            for (&bits, &got) in bits.iter().zip(&c) {
                let value = value(bits);
                assert!(
                    got == value || got.is_nan() && value.is_nan(),
                    "{level}: {elem:?} {bits:#06x} is {value}, not {got}"
                );
            }
        }
    }
}

#[test]
fn every_code_of_8_bits_expands_exactly() {
    // Along j and along k, in fours of vectors and not, with a scale that is a power of two.
    let codes: Vec<u8> = (0..=u8::MAX).chain(0..=90).collect();
    let (one, quarter) = ([1f32], 0.25f32);
    let len = codes.len();
    let along_j = (1, len as i64);
    for elem in [Elem::F8E4M3, Elem::F8E5M2] {
        for (level, kernel) in kernels(Elem::F32, elem) {
            let mut c = vec![0f32; len];
            let scales = Scales {
                at: (&raw const quarter).cast(),
                elem: ScaleElem::F32,
                row_place: 0,
                row_block: 1,
                row_stride: 0,
                k_place: 0,
                k_block: 1,
                k_stride: 0,
            };
            let args = DotArgs {
                m: 1,
                n: len as i64,
                k: 1,
                a: one.as_ptr().cast(),
                a_row: 1,
                a_k: 1,
                b: codes.as_ptr(),
                b_row: along_j.0,
                b_k: along_j.1,
                c: c.as_mut_ptr(),
                c_row: 0,
                accumulate: 0,
                a_scales: std::ptr::null(),
                b_scales: &raw const scales,
            };
            // SAFETY: one value times all of `codes`, which lie along j.
            unsafe { kernel(&args) };
            for (&code, &got) in codes.iter().zip(&c) {
                let want = 0.25 * decode(elem, code);
                let same = got == want || got.is_nan() && want.is_nan();
                assert!(same, "{level}: {elem:?} {code:#04x} is {want}, not {got}");
            }
            // Along k: each code in a sum of zeros times the others, which must be finite.
            for at in 0..len {
                let mut row = vec![0u8; len];
                row[at] = codes[at];
                let mut ones = vec![1f32; len];
                ones[(at + 1) % len] = 0.0;
                let mut c = [0f32];
                let args = DotArgs {
                    n: 1,
                    k: len as i64,
                    a: ones.as_ptr().cast(),
                    b: row.as_ptr(),
                    b_row: len as i64,
                    b_k: 1,
                    c: c.as_mut_ptr(),
                    ..args
                };
                // SAFETY: one sum over `row`.
                unsafe { kernel(&args) };
                let want = 0.25 * decode(elem, codes[at]);
                let same = c[0] == want || c[0].is_nan() && want.is_nan();
                assert!(same, "{level}: {elem:?} {:#04x} along k is {want}, not {}", codes[at], c[0]);
            }
        }
    }
}

#[test]
fn extents_below_zero_are_empty() {
    let mut c = [3f32];
    let one = 1f32;
    let to = |x: &f32| (x as *const f32).cast();
    for (m, n, k, accumulate, expected) in
        [(-1, 1, 1, 0, 3.0), (1, -2, 1, 0, 3.0), (1, 1, -3, 1, 3.0), (1, 1, i64::MIN, 0, 0.0)]
    {
        let (a, b) = (to(&one), to(&one));
        let (c, no) = (c.as_mut_ptr(), std::ptr::null());
        let args = DotArgs {
            m,
            n,
            k,
            a,
            a_row: 1,
            a_k: 1,
            b,
            b_row: 1,
            b_k: 1,
            c,
            c_row: 1,
            accumulate,
            a_scales: no,
            b_scales: no,
        };
        // SAFETY: nothing of `a` and `b` is named, and at most one element of `c`.
        unsafe { dot(Elem::F32, Elem::F32)(&args) };
        // SAFETY: `c` points to the array above.
        assert_eq!(unsafe { *c }, expected, "{m} {n} {k}");
    }
}

#[test]
fn infinities_and_nans_reach_the_sum() {
    for (level, kernel) in kernels(Elem::F32, Elem::F32) {
        for (special, k) in [(f32::INFINITY, 0), (f32::NAN, 16), (f32::NEG_INFINITY, 18)] {
            let mut a = [1f32; 19];
            let b = [2f32; 19];
            a[k] = special;
            let mut c = [f32::NAN];
            let args = DotArgs {
                m: 1,
                n: 1,
                k: 19,
                a: a.as_ptr().cast(),
                a_row: 19,
                a_k: 1,
                b: b.as_ptr().cast(),
                b_row: 19,
                b_k: 1,
                c: c.as_mut_ptr(),
                c_row: 1,
                accumulate: 0,
                a_scales: std::ptr::null(),
                b_scales: std::ptr::null(),
            };
            // SAFETY: one sum of 19 products.
            unsafe { kernel(&args) };
            let same = c[0] == special || c[0].is_nan() && special.is_nan();
            assert!(same, "{level}: {} for {special}", c[0]);
        }
    }
}

#[test]
fn levels_are_those_of_the_machine() {
    let available = Features::all_available();
    assert_eq!(available[0], Features::Baseline);
    assert_eq!(available.last(), Some(&Features::detect()));
    use Features::{Avx2Fma, Avx512, Avx512Vbmi, Baseline, Neon};
    for level in [Baseline, Avx2Fma, Avx512, Avx512Vbmi, Neon] {
        let kernel = dot_with(level, Elem::F32, Elem::Bf16);
        assert_eq!(kernel.is_some(), available.contains(&level), "{level}");
    }
    if cfg!(target_arch = "x86_64") {
        let has = |name| cpu_features().iter().any(|&(feature, there)| feature == name && there);
        assert_eq!(available.contains(&Features::Avx2Fma), has("avx2") && has("fma") && has("f16c"));
    }
}
