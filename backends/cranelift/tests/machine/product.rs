//! Products by microkernels.

use crate::common::numbers::assert_same;
use crate::common::{Lane, isas, run_on};
use eva_cranelift::{Options, compile};
use eva_ir::dim::Dim;
use eva_ir::kernel::run::{self, Storage};
use eva_ir::kernel::{Access, Elem, Inst, Kernel, Mem, Micro, MicroRun, MicroScales, Reg};
use eva_ir::types::DType::{self, Bf16, E8M0, F8E4M3, F8E5M2, F16, F32, F64};

/// Where an operand's elements are: offset, strides along rows and terms.
type Layout = (i64, [i64; 2]);

const M: i64 = 5;
const N: i64 = 7;
const K: i64 = 11;
const C_ROW: i64 = 9;

/// `c = a · bᵀ` in private memory, twice (the second added to the first), then written out.
fn product(a: DType, b: DType, a_at: Layout, b_at: Layout, a_private: bool) -> Kernel {
    let mut k = Lane::new("product");
    let len = 200;
    let (x, y) = (k.buf("a", a, Access::Read, len), k.buf("b", b, Access::Read, len));
    let z = k.buf("c", F32, Access::Write, M * N);
    let rows = k.program(Dim::from(1), 1);
    let copy = k.scratch(Elem::F32, len as usize);
    let c = k.scratch(Elem::F32, (2 + M * C_ROW) as usize);
    let mut source = x;
    if a_private {
        let trips = k.int(len);
        k.repeat(trips, |k, i| {
            let v = k.load(x, i, 1);
            k.store(copy, i, v);
        });
        source = copy;
    }
    let ints = |k: &mut Lane, v: [i64; 2]| -> [Reg; 2] { v.map(|x| k.int(x)) };
    let (m, n, terms, c_stride) = (k.int(M), k.int(N), k.int(K), k.int(C_ROW));
    let (a_strides, b_strides) = (ints(&mut k, a_at.1), ints(&mut k, b_at.1));
    let (a_first, b_first) = (k.int(a_at.0), k.int(b_at.0));
    let a_first = k.add(a_first, rows);
    let two = k.int(2);
    for accumulate in [false, true] {
        k.push(Inst::Micro(Micro {
            m,
            n,
            k: terms,
            a: Mem { space: source, index: a_first },
            a_strides,
            b: Mem { space: y, index: b_first },
            b_strides,
            c: Mem { space: c, index: two },
            c_stride,
            accumulate,
            a_scales: None,
            b_scales: None,
        }));
    }
    k.repeat(m, |k, i| {
        k.repeat(n, |k, j| {
            let row = k.mul(i, c_stride);
            let at = k.add(row, j);
            let at = k.add(at, two);
            let v = k.load(c, at, 1);
            let row = k.mul(i, n);
            let to = k.add(row, j);
            k.store(z, to, v);
        });
    });
    k.finish()
}

#[test]
fn every_type_and_layout() {
    // Rows, columns, and neither contiguous; one runs backwards.
    let a_layouts: [Layout; 3] = [(3, [13, 1]), (1, [1, 6]), (2, [27, 2])];
    let b_layouts: [Layout; 3] = [(4, [12, 1]), (0, [1, 8]), (150, [-14, 3])];
    let types = [(F32, F32), (F32, Bf16), (Bf16, F16), (F16, F32), (Bf16, Bf16), (F16, F16)];
    for (a, b) in types.into_iter().chain([(F8E4M3, F32), (Bf16, F8E5M2), (F8E5M2, F8E4M3)]) {
        // Small integers: every type has them, and sums are exact in any order.
        let xs = Storage::new(a, (0..200).map(|i| f64::from(i * 31 % 9 - 4)));
        let ys = Storage::new(b, (0..200).map(|i| f64::from(i * 13 % 7 - 3)));
        for (ia, a_at) in a_layouts.into_iter().enumerate() {
            for b_at in b_layouts {
                let a_private = ia == 0;
                let kernel = product(a, b, a_at, b_at, a_private);
                let element = |s: &Storage, (first, strides): Layout, i: i64, k: i64| {
                    s.data[(first + i * strides[0] + k * strides[1]) as usize]
                };
                let mut want = Vec::new();
                for i in 0..M {
                    for j in 0..N {
                        let terms = (0..K).map(|k| element(&xs, a_at, i, k) * element(&ys, b_at, j, k));
                        want.push(2.0 * terms.sum::<f64>());
                    }
                }
                for isa in isas() {
                    let mut storages = [xs.clone(), ys.clone(), Storage::unwritten(F32, (M * N) as usize)];
                    run_on(isa, &kernel, &[], &mut storages);
                    assert_same(&format!("{a} {b} {a_at:?} {b_at:?}"), &storages[2].data, &want);
                }
            }
        }
    }
}

/// `c[19, 21] = a · bᵀ` over 150 terms of codes with scales.
fn scaled(a: DType, b: DType, by: [DType; 2], b_turned: bool, blocks: [i64; 4], places: [i64; 4]) -> Kernel {
    let [m, n, terms] = [19, 21, 150];
    let mut k = Lane::new("scaled");
    let (x, y) = (k.buf("a", a, Access::Read, m * terms), k.buf("b", b, Access::Read, n * terms));
    let (of_x, of_y) = (k.buf("sa", by[0], Access::Read, 5000), k.buf("sb", by[1], Access::Read, 5000));
    let z = k.buf("c", F32, Access::Write, m * n);
    let c = k.scratch(Elem::F32, (m * n) as usize);
    let [first, one, seven, width] = [0, 1, 7, 160].map(|n| k.int(n));
    let places = places.map(|n| k.int(n));
    let [m, n, terms] = [m, n, terms].map(|n| k.int(n));
    let run = |i: usize, stride| MicroRun { place: places[i], block: blocks[i], stride };
    k.push(Inst::Micro(Micro {
        m,
        n,
        k: terms,
        a: Mem { space: x, index: first },
        a_strides: [terms, one],
        b: Mem { space: y, index: first },
        b_strides: if b_turned { [one, n] } else { [terms, one] },
        c: Mem { space: c, index: first },
        c_stride: n,
        accumulate: false,
        a_scales: Some(MicroScales {
            first: Mem { space: of_x, index: seven },
            rows: run(0, width),
            terms: run(1, one),
        }),
        b_scales: Some(MicroScales {
            first: Mem { space: of_y, index: one },
            rows: run(2, width),
            terms: run(3, one),
        }),
    }));
    let all = k.mul(m, n);
    k.repeat(all, |k, i| {
        let v = k.load(c, i, 1);
        k.store(z, i, v);
    });
    k.finish()
}

#[test]
fn scales_of_both_operands() {
    for ((a, b), by) in
        [((F8E4M3, F8E4M3), [F32, F32]), ((F8E5M2, F8E4M3), [E8M0, F32]), ((F8E4M3, F8E5M2), [F32, E8M0])]
    {
        for b_turned in [false, true] {
            for (blocks, places) in
                [([1, 128, 128, 128], [0, 0, 128, 0]), ([3, 5, 2, 7], [1, 2, 1, 3]), ([9, 150, 4, 1], [0; 4])]
            {
                let kernel = scaled(a, b, by, b_turned, blocks, places);
                // Small integers and powers of two: sums are exact in any order.
                let codes = |n: i64, by: i64| (0..n * 150).map(move |i| (i * by % 9 - 4) as f64);
                let scales = |by: usize| (0..5000).map(move |i| [0.5, 1.0, 2.0, 0.25][i * by % 7 % 4]);
                let mut want = [
                    Storage::new(a, codes(19, 31)),
                    Storage::new(b, codes(21, 13)),
                    Storage::new(by[0], scales(3)),
                    Storage::new(by[1], scales(5)),
                    Storage::unwritten(F32, 19 * 21),
                ];
                let start = want.clone();
                let binding: Vec<usize> = (0..want.len()).collect();
                run::run(&kernel, &|_| None, &mut want, &binding, run::Options::default()).unwrap();
                for isa in isas() {
                    let mut got = start.clone();
                    run_on(isa, &kernel, &[], &mut got);
                    assert_same(&format!("{a} {b} {blocks:?} {b_turned}"), &got[4].data, &want[4].data);
                }
            }
        }
    }
}

#[test]
fn products_of_wide_floats_are_refused() {
    let kernel = product(F64, F32, (0, [11, 1]), (0, [11, 1]), false);
    let message = compile(&[kernel], &Options::default()).map(|_| ()).unwrap_err().to_string();
    assert_eq!(message, "kernel `product`: a product of elements of f64");
}
