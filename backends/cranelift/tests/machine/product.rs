//! Products by microkernels.

use crate::common::numbers::assert_same;
use crate::common::{Lane, isas, run_on};
use eva_cranelift::{Options, compile};
use eva_ir::dim::Dim;
use eva_ir::kernel::run::Storage;
use eva_ir::kernel::{Access, Elem, Inst, Kernel, Mem, Micro, Reg};
use eva_ir::types::DType::{self, Bf16, F16, F32, F64};

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
    for (a, b) in [(F32, F32), (F32, Bf16), (Bf16, F16), (F16, F32), (Bf16, Bf16), (F16, F16)] {
        // Small integers: every type has them, and sums are exact in any order.
        let xs = Storage::new(a, (0..200).map(|i| f64::from(i * 31 % 17 - 8)));
        let ys = Storage::new(b, (0..200).map(|i| f64::from(i * 13 % 19 - 9)));
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

#[test]
fn products_of_wide_floats_are_refused() {
    let kernel = product(F64, F32, (0, [11, 1]), (0, [11, 1]), false);
    let message = compile(&[kernel], &Options::default()).map(|_| ()).unwrap_err().to_string();
    assert_eq!(message, "kernel `product`: a product of elements of f64");
}
