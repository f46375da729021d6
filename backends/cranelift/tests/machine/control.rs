//! Grids, loops, branches, extents, and kernels that are refused.

use crate::common::{Lane, call, compile_one, isas, run_on, sym_values};
use eva_cranelift::{Compiled, Isa, Options, compile};
use eva_ir::dim::Dim;
use eva_ir::kernel::run::Storage;
use eva_ir::kernel::{Access, Elem, Fn1, Fn2, Inst, Kernel, Phase};
use eva_ir::types::DType::{F32, I64};
use std::num::NonZeroUsize;

fn sym(name: &str) -> Dim {
    Dim::sym(name)
}

/// Every program writes its three indices and its extents into its own row of `out`.
fn grid_kernel() -> Kernel {
    let mut k = Lane::new("grid");
    let rows = Dim::from(7) * sym("b") * sym("s") * sym("t");
    let out = k.buf("out", I64, Access::Write, rows * Dim::from(7));
    // 2 · 3 programs along b·2, one along 5, s + 1 cut by 4.
    let p = [k.program(sym("b") * Dim::from(2), 3), k.program(5, 5), k.program(sym("s") + Dim::from(1), 4)];
    let q = k.program(sym("t"), 1);
    let (ns, nt) = (k.extent(sym("s") + Dim::from(1)), k.extent(sym("t")));
    let three = k.int(3);
    let four = k.int(4);
    let up = k.add(ns, three);
    let count = k.zip(Fn2::Div, up, four);
    let id = k.mul(p[0], count);
    let id = k.add(id, p[2]);
    let id = k.mul(id, nt);
    let id = k.add(id, q);
    let polynomial = k.extent(sym("b") * sym("b") * Dim::from(3) - sym("s") * sym("t") + Dim::from(-11));
    let constant = k.extent(Dim::from(0));
    let base = k.scaled(id, 7);
    for (i, value) in [p[0], p[1], p[2], q, ns, polynomial, constant].into_iter().enumerate() {
        let i = k.int(i as i64);
        let at = k.add(base, i);
        k.store(out, at, value);
    }
    k.finish()
}

#[test]
fn programs_of_a_grid_that_tiles_do_not_divide() {
    let kernel = grid_kernel();
    for isa in isas() {
        let compiled = compile_one(&kernel, isa);
        for (b, s, t) in [(2, 6, 3), (1, 1, 1), (5, 13, 2)] {
            let syms = sym_values(&kernel, &[("b", b), ("s", s), ("t", t)]);
            let (nb, ns) = ((b * 2 + 2) / 3, (s + 1 + 3) / 4);
            let n = nb * ns * t;
            assert_eq!(compiled.kernel(0).programs(&syms), Some(n));
            let mut want = Vec::new();
            for i in 0..n {
                let row = [i / (ns * t), 0, i / t % ns, i % t, s + 1, 3 * b * b - s * t - 11, 0];
                want.extend(row.iter().flat_map(|x: &i64| x.to_le_bytes()));
            }
            // All at once, one by one from the end, and in uneven pieces with empty ones.
            let one_by_one = (0..n).rev().map(|i| (i, i + 1)).collect();
            let cuts = [0, n / 3, n / 3, n / 2, n - 1, n];
            let pieces = cuts.windows(2).rev().map(|w| (w[0], w[1])).collect();
            for ranges in [vec![(0, n)], one_by_one, pieces] {
                let mut bufs = [vec![0xffu8; want.len()]];
                call(compiled.kernel(0), &mut bufs, &syms, &ranges);
                assert!(bufs[0] == want, "{ranges:?}");
            }
            let mut bufs = [vec![0xffu8; want.len()]];
            call(compiled.kernel(0), &mut bufs, &syms, &[(0, 0), (n, n), (n, 0)]);
            assert!(bufs[0].iter().all(|&b| b == 0xff), "empty ranges run nothing");
        }
    }
}

#[test]
fn an_empty_axis_has_no_programs() {
    let kernel = grid_kernel();
    let compiled = compile_one(&kernel, Isa::host());
    let syms = sym_values(&kernel, &[("b", 3), ("s", 2), ("t", 0)]);
    assert_eq!(compiled.kernel(0).programs(&syms), Some(0));
    call(compiled.kernel(0), &mut [Vec::new()], &syms, &[(0, 0)]);
    assert_eq!(compiled.kernel(0).programs(&[i64::MAX / 2; 3]), None, "too many to count");
    assert_eq!(compiled.kernel(0).programs(&[]), None, "no values");
}

#[test]
fn a_kernel_without_a_grid_is_one_program() {
    let mut k = Lane::new("one");
    let out = k.buf("out", F32, Access::Write, 1);
    let (zero, value) = (k.int(0), k.float(2.5, 1));
    k.store(out, zero, value);
    let kernel = k.finish();
    assert_eq!(compile_one(&kernel, Isa::host()).kernel(0).programs(&[]), Some(1));
    let mut storages = [Storage::unwritten(F32, 1)];
    run_on(Isa::host(), &kernel, &[], &mut storages);
    assert_eq!(storages[0].data, [2.5]);
}

#[test]
fn loops_carry_numbers_vectors_and_masks() {
    for isa in isas() {
        for n in [0i64, 1, 2, 9] {
            let mut k = Lane::new("fibonacci");
            let ints = k.buf("ints", I64, Access::Write, 2);
            let floats = k.buf("floats", F32, Access::Write, 9);
            let trips = k.extent(sym("n"));
            let (a, b) = (k.int(0), k.int(1));
            let (v, s) = (k.float(1.0, 4), k.float(0.5, 1));
            let (mask, truth) = (k.truth(false, 4), k.truth(true, 1));
            let outs = k.fold(trips, &[a, b, v, s, mask, truth], |k, i, args| {
                let &[a, b, v, s, mask, truth] = args else { panic!() };
                let sum = k.add(a, b);
                let index = k.cast(i, Elem::F32);
                let v = k.add(v, index);
                let s2 = k.mul(s, index);
                let s = k.add(s, s2);
                let mask = k.map(Fn1::Not, mask);
                // Values change places.
                vec![b, sum, v, s, mask, k.map(Fn1::Not, truth)]
            });
            let zero = k.int(0);
            let one = k.int(1);
            k.store(ints, zero, outs[0]);
            k.store(ints, one, outs[1]);
            k.store(floats, zero, outs[2]);
            let four = k.int(4);
            k.store(floats, four, outs[3]);
            let five = k.int(5);
            let mask = k.cast(outs[4], Elem::F32);
            k.store(floats, five, mask);
            let kernel = k.finish();
            let mut storages = [Storage { dtype: I64, data: vec![0.0; 2] }, Storage::unwritten(F32, 9)];
            run_on(isa.clone(), &kernel, &[("n", n)], &mut storages);
            let (mut a, mut b, mut v, mut s) = (0i64, 1i64, 1f32, 0.5f32);
            for i in 0..n {
                (a, b, v, s) = (b, a + b, v + i as f32, s + s * i as f32);
            }
            assert_eq!(storages[0].data, [a as f64, b as f64]);
            let odd = (n % 2) as f64;
            let want = [v, v, v, v, s].map(f64::from).into_iter().chain([odd; 4]).collect::<Vec<_>>();
            assert_eq!(storages[1].data, want);
        }
    }
}

#[test]
fn loops_nest_and_branches_write() {
    // out[i·n + j] = sum of k for k < i, where i + j is odd; else untouched. Trips below zero run nothing.
    for isa in isas() {
        let mut k = Lane::new("nest");
        let out = k.buf("out", F32, Access::Write, sym("n") * sym("n"));
        let n = k.extent(sym("n"));
        let zero = k.int(0);
        let five = k.int(5);
        let negative = k.zip(Fn2::Sub, zero, five);
        k.repeat(negative, |k, i| {
            let x = k.float(-1.0, 1);
            k.store(out, i, x);
        });
        k.repeat(n, |k, i| {
            k.repeat(n, |k, j| {
                let start = k.float(0.0, 1);
                let sum = k.fold(i, &[start], |k, m, args| {
                    let m = k.cast(m, Elem::F32);
                    vec![k.add(args[0], m)]
                });
                let (ij, two, one) = (k.add(i, j), k.int(2), k.int(1));
                let odd = k.zip(Fn2::Rem, ij, two);
                let odd = k.zip(Fn2::Eq, odd, one);
                k.when(odd, |k| {
                    let row = k.mul(i, n);
                    let at = k.add(row, j);
                    k.store(out, at, sum[0]);
                    let five = k.int(5);
                    let at_five = k.zip(Fn2::Eq, i, five);
                    k.when(at_five, |k| {
                        let x = k.float(-5.0, 1);
                        k.store(out, at, x);
                    });
                });
            });
        });
        let kernel = k.finish();
        let n = 7;
        let mut storages = [Storage { dtype: F32, data: vec![0.25; n * n] }];
        run_on(isa, &kernel, &[("n", n as i64)], &mut storages);
        for i in 0..n {
            for j in 0..n {
                let sum = (0..i).sum::<usize>() as f64;
                let want = if (i + j) % 2 == 0 {
                    0.25
                } else if i == 5 {
                    -5.0
                } else {
                    sum
                };
                assert_eq!(storages[0].data[i * n + j], want, "{i} {j}");
            }
        }
    }
}

/// `out[i] = i + seed`, over `n` elements.
fn ramp(seed: i64) -> Kernel {
    let mut k = Lane::new(&format!("ramp {seed}"));
    let out = k.buf("out", I64, Access::Write, sym("n"));
    let i = k.program(sym("n"), 1);
    let seed = k.int(seed);
    let value = k.add(i, seed);
    k.store(out, i, value);
    k.finish()
}

#[test]
fn many_kernels_compile_in_parallel_and_run_in_parallel() {
    let kernels: Vec<Kernel> = (0..23).map(ramp).collect();
    for threads in [1, 2, 64] {
        let threads = NonZeroUsize::new(threads).unwrap();
        let compiled: Compiled = compile(&kernels, &Options { threads, ..Options::default() }).unwrap();
        assert_eq!(compiled.len(), 23);
        std::thread::scope(|scope| {
            for i in 0..compiled.len() {
                let compiled = &compiled;
                scope.spawn(move || {
                    let mut bufs = [vec![0u8; 8 * 11]];
                    call(compiled.kernel(i), &mut bufs, &[11], &[(0, 4), (4, 11)]);
                    let got: Vec<i64> =
                        bufs[0].chunks(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect();
                    assert_eq!(got, (i as i64..i as i64 + 11).collect::<Vec<_>>());
                });
            }
        });
    }
    assert!(compile(&[], &Options::default()).unwrap().is_empty());
}

#[test]
fn a_long_kernel_compiles_in_time_in_proportion() {
    // 2 + 4 · 3000 instructions; sums of them all, so that none can be left out.
    let mut k = Lane::new("long");
    let out = k.buf("out", I64, Access::Write, 1);
    let (mut x, n) = (k.int(1), k.extent(sym("n")));
    for i in 0..3000 {
        let other = k.int(i % 97 + 3);
        let y = k.zip(if i % 2 == 0 { Fn2::Add } else { Fn2::Sub }, x, other);
        let y = k.zip(Fn2::Max, y, n);
        x = k.add(y, n);
    }
    let zero = k.int(0);
    k.store(out, zero, x);
    let kernel = k.finish();
    let started = std::time::Instant::now();
    let mut storages = [Storage { dtype: I64, data: vec![0.0] }];
    run_on(Isa::host(), &kernel, &[("n", 5)], &mut storages);
    assert!(started.elapsed().as_secs() < 20, "{:?}", started.elapsed());
    let step = |x: i64, i: i64| (if i % 2 == 0 { x + i % 97 + 3 } else { x - i % 97 - 3 }).max(5) + 5;
    assert_eq!(storages[0].data, [(0..3000).fold(1, step) as f64]);
}

#[test]
fn code_is_freed_and_made_again() {
    for seed in 0..200 {
        let compiled = compile_one(&ramp(seed), Isa::host());
        let mut bufs = [vec![0u8; 8 * 3]];
        call(compiled.kernel(0), &mut bufs, &[3], &[(0, 3)]);
        assert_eq!(bufs[0][..8], seed.to_le_bytes());
    }
}

#[test]
fn what_cannot_be_compiled_is_an_error_that_names_the_kernel() {
    let message = |kernel: Kernel| match compile(&[ramp(1), kernel], &Options::default()) {
        Ok(_) => panic!("it was compiled"),
        Err(e) => e.to_string(),
    };
    let mut tile = ramp(3);
    tile.phase = Phase::Tile;
    let text = message(tile);
    assert!(text.starts_with("kernel `ramp 3`: "), "{text}");

    let mut k = Lane::new("wide");
    k.float(1.0, 8);
    let text = message(k.finish());
    assert!(text.starts_with("kernel `wide`: ") && text.contains("lanes"), "{text}");

    let mut k = Lane::new("early");
    let (x, out) = (k.reg(Elem::I64, 1), k.reg(Elem::I64, 1));
    k.push(Inst::Zip { out, f: Fn2::Add, x, y: x });
    let text = message(k.finish());
    assert!(text.starts_with("kernel `early`: ") && text.contains("not assigned"), "{text}");

    let mut k = Lane::new("huge");
    for _ in 0..1 << 6 {
        k.scratch(Elem::I64, 1 << 24);
    }
    assert_eq!(message(k.finish()), "kernel `huge`: its scratch memory is over 2 GiB");
}
