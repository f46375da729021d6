//! Loads, stores and rounding of every type that memory holds.

use crate::common::numbers::{assert_same, decode_all, decode_small, encode_all};
use crate::common::{Lane, call, compile_one, elementwise, isas, run_on};
use eva_ir::kernel::run::Storage;
use eva_ir::kernel::{Access, Elem, Fn1, Fn2};
use eva_ir::types::DType::{self, Bf16, E8M0, F8E4M3, F8E5M2, F16, F32, F64, I32, I64};

const SMALL: [DType; 4] = [F16, Bf16, F8E4M3, F8E5M2];

/// Floats at and around every value and every midpoint of a small type, of both signs, and some others.
fn around(dtype: DType) -> Vec<f64> {
    let codes = if dtype.bytes() == 1 { 1 << 7 } else { 1 << 15 };
    let step = if dtype.bytes() == 1 { 1 } else { 13 };
    let mut xs = Vec::new();
    for bits in (0..codes).step_by(step).chain(codes - 2000.min(codes)..codes) {
        let (x, next) = (decode_small(dtype, bits), decode_small(dtype, (bits + 1) % codes));
        for x in [x, (x + next) / 2.0] {
            let middle = x as f32;
            if middle.is_nan() || middle == 0.0 {
                xs.push(f64::from(middle));
            } else {
                xs.extend(
                    [-1, 0, 1].map(|d| f64::from(f32::from_bits(middle.to_bits().wrapping_add_signed(d)))),
                );
            }
        }
    }
    xs.extend([f64::INFINITY, f64::NAN, f64::from(f32::MAX), 1e-45, 1e-40, f64::from(f32::MIN_POSITIVE)]);
    let negative: Vec<f64> = xs.iter().map(|x| -x).collect();
    xs.extend(negative);
    xs.resize(xs.len().next_multiple_of(4), 0.0);
    xs
}

#[test]
fn every_number_of_16_and_8_bits_is_read_exactly() {
    for dtype in SMALL {
        let n = 1usize << (8 * dtype.bytes());
        let bytes: Vec<u8> =
            (0..n as u32).flat_map(|b| b.to_le_bytes()[..dtype.bytes() as usize].to_vec()).collect();
        let want = decode_all(dtype, &bytes);
        for isa in isas() {
            for cols in [1, 4] {
                let kernel = elementwise(&[dtype], F32, n, cols, |_, x| x[0]);
                let compiled = compile_one(&kernel, isa.clone());
                let mut bufs = [bytes.clone(), vec![0; 4 * n]];
                call(compiled.kernel(0), &mut bufs, &[], &[(0, 1)]);
                assert_same(dtype.name(), &decode_all(F32, &bufs[1]), &want);
            }
        }
    }
}

#[test]
fn stores_and_rounding_are_to_the_nearest_with_ties_to_even() {
    for dtype in SMALL {
        let xs = around(dtype);
        // By the formats' definition, and by the interpreter's.
        let want = decode_all(dtype, &encode_all(dtype, &xs));
        assert_same("interpreter", &Storage::new(dtype, xs.clone()).data, &want);
        for isa in isas() {
            for cols in [1, 4] {
                for round in [false, true] {
                    let to = if round { F32 } else { dtype };
                    let kernel = elementwise(&[F32], to, xs.len(), cols, |k, x| {
                        if round { k.round(x[0], dtype) } else { x[0] }
                    });
                    let mut storages =
                        [Storage::new(F32, xs.clone()), Storage { dtype: to, data: xs.clone() }];
                    run_on(isa.clone(), &kernel, &[], &mut storages);
                    assert_same(&format!("{dtype} {cols} {round}"), &storages[1].data, &want);
                }
            }
        }
    }
}

#[test]
fn exponents_are_powers_of_two_rounded_up() {
    let codes: Vec<u8> = (0..=255).collect();
    let powers = decode_all(E8M0, &codes);
    let mut xs: Vec<f64> = Vec::new();
    for power in powers.iter().map(|&x| x as f32) {
        xs.extend([-1, 0, 1].map(|d| f64::from(f32::from_bits(power.to_bits().wrapping_add_signed(d)))));
    }
    xs.extend([0.0, -0.0, 1e-45, -1e-45, -3.0, 448.0, 0.1, f64::from(f32::MAX), f64::from(f32::MIN)]);
    xs.extend([f64::INFINITY, f64::NEG_INFINITY, f64::NAN, -f64::NAN]);
    xs.resize(xs.len().next_multiple_of(4), 1.0);
    let want = decode_all(E8M0, &encode_all(E8M0, &xs));
    assert_same("interpreter", &Storage::new(E8M0, xs.clone()).data, &want);
    for isa in isas() {
        for cols in [1, 4] {
            let kernel = elementwise(&[E8M0], F32, 256, cols, |_, x| x[0]);
            let mut bufs = [codes.clone(), vec![0; 4 * 256]];
            call(compile_one(&kernel, isa.clone()).kernel(0), &mut bufs, &[], &[(0, 1)]);
            assert_same("read", &decode_all(F32, &bufs[1]), &powers);
            for to in [F32, E8M0] {
                let kernel = elementwise(&[F32], to, xs.len(), cols, |k, x| {
                    if to == F32 { k.round(x[0], E8M0) } else { x[0] }
                });
                let mut storages = [
                    Storage { dtype: F32, data: xs.clone() },
                    Storage { dtype: to, data: vec![1.0; xs.len()] },
                ];
                run_on(isa.clone(), &kernel, &[], &mut storages);
                assert_same(&format!("{to} {cols}"), &storages[1].data, &want);
            }
        }
    }
}

#[test]
fn doubles_are_rounded_and_widened() {
    let xs = [0.1, -1e300, 1.0 + 1e-9, 3.5, f64::NAN, 1e-50, 16_777_217.0, f64::INFINITY];
    let rounded: Vec<f64> = xs.iter().map(|&x| f64::from(x as f32)).collect();
    for isa in isas() {
        for cols in [1, 4] {
            for to in [F32, F64] {
                let kernel = elementwise(&[F64], to, xs.len(), cols, |_, x| x[0]);
                let mut storages = [Storage::new(F64, xs), Storage::unwritten(to, xs.len())];
                run_on(isa.clone(), &kernel, &[], &mut storages);
                assert_same(to.name(), &storages[1].data, &rounded);
            }
        }
    }
}

#[test]
fn rounding_to_wide_types_changes_nothing() {
    let xs = [0.1f32, f32::MAX, 1e-45, -2.0].map(f64::from);
    for to in [F32, F64] {
        let kernel = elementwise(&[F32], F32, 4, 4, |k, x| k.round(x[0], to));
        let mut storages = [Storage::new(F32, xs), Storage::unwritten(F32, 4)];
        run_on(eva_cranelift::Isa::host(), &kernel, &[], &mut storages);
        assert_same(to.name(), &storages[1].data, &xs);
    }
}

#[test]
fn integers_of_32_and_64_bits() {
    let xs = [0.0, 5.0, -7.0, 2147483647.0, -2147483648.0, 1.0, -1.0, 65536.0];
    for isa in isas() {
        for from in [I32, I64] {
            for to in [I32, I64] {
                let kernel = elementwise(&[from], to, xs.len(), 1, |_, x| x[0]);
                let mut storages = [Storage::new(from, xs), Storage { dtype: to, data: vec![9.0; xs.len()] }];
                run_on(isa.clone(), &kernel, &[], &mut storages);
                assert_eq!(storages[1].data, xs, "{from} {to}");
            }
        }
    }
}

#[test]
fn elements_of_any_address_are_read() {
    // One byte off every alignment.
    for dtype in [F64, F32, Bf16, F16, F8E4M3] {
        let xs: Vec<f64> = (0..13).map(|i| f64::from(i) - 6.0).collect();
        let kernel = elementwise(&[dtype], F32, 12, 4, |_, x| x[0]);
        let compiled = compile_one(&kernel, eva_cranelift::Isa::host());
        let mut shifted = vec![0u8];
        shifted.extend(encode_all(dtype, &xs));
        let mut out = [0u8; 12 * 4 + 1];
        let pointers = [shifted[1..].as_mut_ptr(), out[1..].as_mut_ptr()];
        // SAFETY: both buffers hold 12 elements from there on; the kernel has no symbols and no private memory.
        unsafe { compiled.kernel(0).call(pointers.as_ptr(), std::ptr::null(), 0, 1, std::ptr::null_mut()) };
        assert_same(dtype.name(), &decode_all(F32, &out[1..]), &xs[..12]);
    }
}

#[test]
fn operands_of_every_function_may_lie_at_any_address() {
    // Each is loaded for one use, so that an instruction may take it from memory.
    let functions = [Fn2::Add, Fn2::Sub, Fn2::Mul, Fn2::Div, Fn2::Max, Fn2::Min, Fn2::Lt, Fn2::Le, Fn2::Eq];
    for isa in isas() {
        for f in functions {
            let mut k = Lane::new("unaligned");
            let (x, y) = (k.buf("x", F32, Access::Read, 8), k.buf("y", F32, Access::Write, 4));
            let (zero, four) = (k.int(0), k.int(4));
            let (a, b) = (k.load(x, zero, 4), k.load(x, four, 4));
            let c = k.zip(f, a, b);
            let c = if f.is_predicate() { k.cast(c, Elem::F32) } else { c };
            let (d, e) = (k.load(x, zero, 4), k.load(x, four, 4));
            let root = k.map(Fn1::Sqrt, d);
            let less = k.zip(Fn2::Le, root, e);
            let f = k.load(x, zero, 4);
            let f = k.select(less, f, root);
            let sum = k.add(c, f);
            k.store(y, zero, sum);
            let kernel = k.finish();
            let compiled = compile_one(&kernel, isa.clone());
            let xs = [4.0, 9.0, 1.0, 0.25, 2.0, 3.0, 7.0, -1.0];
            let mut results = Vec::new();
            for shift in 0..16 {
                let mut bytes = vec![0u8; shift];
                bytes.extend(encode_all(F32, &xs));
                let mut out = vec![0u8; 16 + shift];
                let pointers = [bytes[shift..].as_mut_ptr(), out[shift..].as_mut_ptr()];
                // SAFETY: the buffers hold 8 and 4 floats from there on, all that the kernel has.
                unsafe {
                    compiled.kernel(0).call(pointers.as_ptr(), std::ptr::null(), 0, 1, std::ptr::null_mut())
                };
                results.push(decode_all(F32, &out[shift..]));
            }
            assert!(results.iter().all(|r| *r == results[0]));
        }
    }
}

#[test]
fn private_memory_keeps_floats_integers_and_truth_values() {
    for isa in isas() {
        let mut k = Lane::new("private");
        let x = k.buf("x", F32, Access::Read, 12);
        let y = k.buf("y", F32, Access::Write, 12);
        let z = k.buf("z", I64, Access::Write, 12);
        // Lengths that are no multiples of the alignment.
        let (truths, floats, ints, more) = (
            k.scratch(Elem::Bool, 13),
            k.scratch(Elem::F32, 12),
            k.scratch(Elem::I64, 5),
            k.scratch(Elem::Bool, 12),
        );
        let (three, twelve) = (k.int(3), k.int(12));
        k.repeat(three, |k, i| {
            let at = k.scaled(i, 4);
            let v = k.load(x, at, 4);
            let zero = k.float(0.0, 1);
            let negative = k.zip(Fn2::Lt, v, zero);
            let one = k.int(1);
            let shifted = k.add(at, one);
            k.store(truths, shifted, negative);
            k.store(floats, at, v);
            k.store(ints, i, at);
        });
        k.repeat(twelve, |k, i| {
            let one = k.int(1);
            let shifted = k.add(i, one);
            let c = k.load(truths, shifted, 1);
            let not = k.map(Fn1::Not, c);
            k.store(more, i, not);
            let four = k.int(4);
            let third = k.zip(Fn2::Div, i, four);
            let n = k.load(ints, third, 1);
            let as_int = k.cast(c, Elem::I64);
            let sum = k.add(n, as_int);
            k.store(z, i, sum);
        });
        k.repeat(three, |k, i| {
            let at = k.scaled(i, 4);
            let (v, c) = (k.load(floats, at, 4), k.load(more, at, 4));
            let nine = k.float(9.0, 1);
            let chosen = k.select(c, v, nine);
            k.store(y, at, chosen);
        });
        let kernel = k.finish();
        let compiled = compile_one(&kernel, isa.clone());
        assert_eq!(compiled.kernel(0).scratch_bytes(), 4 * 64);
        let xs: Vec<f64> =
            (0..12).map(|i| if i % 5 < 2 { f64::from(-i) - 1.0 } else { f64::from(i) }).collect();
        let mut storages = [
            Storage::new(F32, xs.clone()),
            Storage::unwritten(F32, 12),
            Storage { dtype: I64, data: vec![0.0; 12] },
        ];
        run_on(isa, &kernel, &[], &mut storages);
        assert_eq!(storages[1].data, xs.iter().map(|&x| if x < 0.0 { 9.0 } else { x }).collect::<Vec<_>>());
        let want = xs.iter().enumerate().map(|(i, &x)| (i / 4 * 4 + usize::from(x < 0.0)) as f64);
        assert_eq!(storages[2].data, want.collect::<Vec<_>>());
    }
}
