//! Products: what is read in place, what is gathered, and what is added to.

use crate::support::*;
use eva_ir::kernel::build::Build;
use eva_ir::kernel::{Access, Inst, Kernel};
use eva_ir::types::DType;

const BOTH: [Option<usize>; 2] = [Some(0), Some(1)];
const BACK: [Option<usize>; 2] = [Some(1), Some(0)];

/// `silu(x · wᵀ) + residual` in tiles, a block of the sum at a time.
fn product(dtype: DType, transposed: bool) -> Kernel {
    let k = Build::new("product");
    let x = k.buf(read("x", &[sym("m"), sym("k")]));
    let w = if transposed { [sym("k"), sym("n")] } else { [sym("n"), sym("k")] };
    let w = k.buf(dense("w", dtype, Access::Read, &w));
    let shape = [sym("m"), sym("n")];
    let (residual, y) = (k.buf(read("residual", &shape)), k.buf(write("y", &shape)));
    let (i, j) = (k.program(sym("m"), 8) * 8i64, k.program(sym("n"), 12) * 12i64);
    let trips = k.extent(&sym("k")).div_ceil(10);
    let [sum] = k.fold(trips, [k.full([8, 12], 0.0)], |b, [sum]| {
        let at = b * 10i64;
        let left = k.load(x, &[i, at], BOTH, [8, 10], &[]);
        let right = if transposed {
            k.load(w, &[at, j], BACK, [12, 10], &[])
        } else {
            k.load(w, &[j, at], BOTH, [12, 10], &[])
        };
        [sum.add_dot(left, right)]
    });
    let residual = k.load(residual, &[i, j], BOTH, [8, 12], &[]);
    k.store(y, &[i, j], BOTH, &[], sum * sum.sigmoid() + residual);
    k.finish()
}

#[test]
fn a_product_with_an_epilogue() {
    for dtype in [DType::F32, DType::Bf16, DType::F16, DType::F8E4M3, DType::F64] {
        for transposed in [false, true] {
            let kernel = product(dtype, transposed);
            for (m, n, k) in [(1, 1, 1), (8, 12, 10), (9, 13, 21), (3, 25, 7), (17, 5, 0), (0, 4, 11)] {
                agree(&kernel, &[("m", m), ("n", n), ("k", k)]);
            }
        }
    }
}

#[test]
fn one_row_of_a_tile_costs_one_row() {
    let ran = agree(&product(DType::Bf16, false), &[("m", 1), ("n", 12), ("k", 40)]);
    assert_eq!(ran.lane.loaded, [40, 480, 12, 0]);
    // The sum is the only tile in memory.
    assert_eq!(private_bytes(&ran.kernel), 8 * 12 * 4);
}

/// Operands that are computed, one of them from another product, and a start value.
#[test]
fn operands_that_are_not_in_memory() {
    let k = Build::new("computed");
    let (x, y) = (k.buf(read("x", &[sym("m"), n(9)])), k.buf(read("y", &[n(7), n(9)])));
    let (z, out) = (k.buf(read("z", &[n(5), n(7)])), k.buf(write("out", &[sym("m"), n(5)])));
    let (i, zero) = (k.program(sym("m"), 6) * 6i64, k.int(0));
    let x = k.load(x, &[i, zero], BOTH, [6, 9], &[]);
    let y = k.load(y, &[zero, zero], BOTH, [7, 9], &[]);
    let z = k.load(z, &[zero, zero], BOTH, [5, 7], &[]);
    let inner = k.full([6, 7], 0.5).add_dot(x * 0.5, y.max(k.float(0.0)));
    let outer = (x.sum_along(1) + k.full([6, 5], 0.0)).add_dot(inner, z).add_dot(inner * inner, z);
    k.store(out, &[i, zero], BOTH, &[], outer);
    let kernel = k.finish();
    agree(&kernel, &[("m", 6)]);
    agree(&kernel, &[("m", 8)]);
}

/// Tiles of one row, one column, one term, and one element.
#[test]
fn thin_products() {
    for [m, n_, k_] in [[1, 1, 1], [1, 6, 3], [5, 1, 4], [3, 7, 1], [1, 1, 9]] {
        let k = Build::new("thin");
        let (x, y) = (k.buf(read("x", &[sym("m"), sym("k")])), k.buf(read("y", &[sym("n"), sym("k")])));
        let out = k.buf(write("out", &[n(8), n(8)]));
        let zero = k.int(0);
        let left = k.load(x, &[zero, zero], BOTH, [m, k_], &[]);
        let right = k.load(y, &[zero, zero], BOTH, [n_, k_], &[]);
        let sum = k.full([m, n_], 0.0).add_dot(left, right);
        k.store(out, &[zero, zero], BOTH, &[], sum + k.full([m, n_], 1.0).add_dot(left, right));
        let kernel = k.finish();
        for size in [1, 2, 10] {
            agree(&kernel, &[("m", size), ("n", size + 1), ("k", size)]);
        }
    }
}

/// Rows that belong to groups: tiles that start anywhere and end at the group's end.
#[test]
fn grouped_rows() {
    let k = Build::new("grouped");
    let (x, w) = (k.buf(read("x", &[sym("g"), n(9)])), k.buf(read("w", &[n(3), n(7), n(9)])));
    let (offsets, y) = (k.buf(ints("offsets", &[n(4)])), k.buf(write("y", &[sym("g"), n(7)])));
    let (expert, zero) = (k.program(n(3), 1), k.int(0));
    let base = k.load_scalar(offsets, &[expert]);
    let end = k.load_scalar(offsets, &[expert + 1i64]);
    k.repeat((end - base).div_ceil(4), |i| {
        let row = base + i * 4i64;
        let [sum] = k.fold(k.int(2), [k.full([4, 7], 0.0)], |b, [sum]| {
            let at = b * 5i64;
            let left = k.load(x, &[row, at], BOTH, [4, 5], &[(0, end)]);
            let right = k.load(w, &[expert, zero, at], [Some(1), Some(2)], [7, 5], &[]);
            [sum.add_dot(left, right)]
        });
        k.store(y, &[row, zero], BOTH, &[(0, end)], sum);
    });
    let kernel = k.finish();
    for ends in [[0, 3, 3, 13], [0, 0, 13, 13], [2, 7, 8, 9], [0, 13, 13, 13]] {
        let value = |buf, i| if buf == offsets { ends[i as usize] as f64 } else { eighths(buf, i) };
        agree_on(&kernel, &[("g", 13)], &value, 1e-12);
    }
}

/// Products read plain loads where they lie: no copies.
#[test]
fn loads_are_not_copied() {
    fn stores(body: &[Inst]) -> usize {
        body.iter()
            .map(|inst| match inst {
                Inst::For { body, .. } | Inst::If { body, .. } => stores(body),
                Inst::VStore { .. } => 1,
                _ => 0,
            })
            .sum()
    }
    let k = Build::new("plain");
    let (x, y) = (k.buf(read("x", &[n(6), n(9)])), k.buf(read("y", &[n(7), n(9)])));
    let (out, zero) = (k.buf(write("out", &[n(6), n(8)])), k.int(0));
    let left = k.load(x, &[zero, zero], BOTH, [6, 9], &[]);
    let right = k.load(y, &[zero, zero], BOTH, [8, 9], &[]);
    k.store(out, &[zero, zero], BOTH, &[], k.full([6, 8], 0.0).add_dot(left, right));
    let ran = agree(&k.finish(), &[]);
    // The zeros of the eighth column, and the result: no tails, as both have 8 columns.
    assert_eq!(stores(&ran.kernel.body), 2);
}
