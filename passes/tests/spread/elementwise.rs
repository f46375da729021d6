//! Element-wise kernels and those of rows: shapes, types, and what lies outside.

use crate::support::*;
use eva_ir::kernel::build::Build;
use eva_ir::kernel::{Access, BufData, ColumnOrder, Elem, Kernel};
use eva_ir::types::DType;

const COLS: [Option<usize>; 2] = [None, Some(1)];
const BOTH: [Option<usize>; 2] = [Some(0), Some(1)];

/// Every row divided by its root mean square, with a gain.
fn row_norm(cols: usize) -> Kernel {
    let k = Build::new("row_norm");
    let shape = [sym("t"), n(cols as i64)];
    let (x, gain, y) =
        (k.buf(read("x", &shape)), k.buf(read("gain", &shape[1..])), k.buf(write("y", &shape)));
    let (row, zero) = (k.program(sym("t"), 1), k.int(0));
    let tile = k.load(x, &[row, zero], COLS, [1, cols], &[]);
    let mean = (tile * tile).sum_along(1) * (1.0 / cols as f64);
    let gain = k.load(gain, &[zero], [None, Some(0)], [1, cols], &[]);
    k.store(y, &[row, zero], COLS, &[], tile * (mean + 1e-5).rsqrt() * gain);
    k.finish()
}

#[test]
fn a_row_norm() {
    for cols in [1, 3, 4, 18, 37] {
        agree(&row_norm(cols), &[("t", 5)]);
    }
}

#[test]
fn a_row_norm_reads_each_element_twice_and_keeps_nothing() {
    let ran = agree(&row_norm(22), &[("t", 3)]);
    assert_eq!(ran.lane.loaded, [2 * 66, 66, 0]);
    assert_eq!(ran.lane.stored, [0, 0, 66]);
    assert_eq!(private_bytes(&ran.kernel), 0);
}

#[test]
fn a_small_lane_kernel() {
    insta::assert_snapshot!(spread_text(&row_norm(6)));
}

fn spread_text(kernel: &Kernel) -> String {
    eva_passes::spread::spread_cpu(kernel).unwrap().to_string()
}

/// Two-dimensional tiles that reach past both ends.
#[test]
fn ragged_tiles() {
    let k = Build::new("ragged");
    let shape = [sym("r"), sym("c")];
    let (x, bias, y) =
        (k.buf(read("x", &shape)), k.buf(read("bias", &shape[1..])), k.buf(write("y", &shape)));
    let (r, c) = (k.program(sym("r"), 5) * 5i64, k.program(sym("c"), 14) * 14i64);
    let tile = k.load(x, &[r, c], BOTH, [5, 14], &[]);
    let bias = k.load(bias, &[c], [None, Some(0)], [1, 14], &[]);
    k.store(y, &[r, c], BOTH, &[], (tile + bias).exp() * tile);
    let kernel = k.finish();
    for (r, c) in [(1, 1), (5, 14), (6, 15), (13, 40), (4, 3), (0, 9), (3, 0)] {
        agree(&kernel, &[("r", r), ("c", c)]);
    }
}

/// The smallest and largest over a row that is longer than its buffer: elements outside are zero.
#[test]
fn folds_count_what_is_outside() {
    for axis in [0, 1] {
        let k = Build::new("folds");
        let shape = [sym("r"), sym("c")];
        let x = k.buf(read("x", &shape));
        let y = k.buf(write("y", &[n(3), n(40)]));
        let zero = k.int(0);
        let tile = k.load(x, &[zero, zero], BOTH, [9, 22], &[]).exp() + 0.5;
        let (lo, hi, sum) = (tile.min_along(axis), tile.max_along(axis), tile.sum_along(axis));
        for (i, tile) in [lo, hi, sum].into_iter().enumerate() {
            let axes = if axis == 0 { COLS } else { [Some(1), None] };
            k.store(y, &[k.int(i as i64), zero], axes, &[], tile);
        }
        let kernel = k.finish();
        for (r, c) in [(9, 22), (2, 6), (10, 3), (1, 23), (0, 0)] {
            agree(&kernel, &[("r", r), ("c", c)]);
        }
    }
}

/// Loads with different ends in one expression, and starts before zero.
#[test]
fn loads_with_ends_of_their_own() {
    let k = Build::new("ends");
    let (x, z) = (k.buf(read("x", &[sym("r"), sym("c")])), k.buf(read("z", &[sym("c"), sym("r")])));
    let (at, y) = (k.buf(ints("at", &[n(3)])), k.buf(write("y", &[n(11), n(13)])));
    let [r, c, end] = [0, 1, 2].map(|i| k.load_scalar(at, &[k.int(i)]));
    let a = k.load(x, &[r, c], BOTH, [11, 13], &[(0, end)]);
    let b = k.load(z, &[c, r], [Some(1), Some(0)], [11, 13], &[(1, end), (0, k.int(7))]);
    let zero = k.int(0);
    k.store(y, &[zero, zero], BOTH, &[], (a + 0.25) * (b - 0.5) + a.max(b));
    let kernel = k.finish();
    for (r, c, end) in [(0, 0, 5), (-3, 2, 8), (2, -4, 4), (-20, 0, 9), (0, -20, 9), (30, 1, 40), (1, 30, -2)]
    {
        let value = |buf, i| if buf == at { [r, c, end][i as usize] as f64 } else { eighths(buf, i) };
        agree_on(&kernel, &[("r", 6), ("c", 9)], &value, 1e-12);
    }
}

/// Stores that start before zero and end at a limit.
#[test]
fn stores_are_clipped_at_both_ends() {
    let k = Build::new("clip");
    let (x, at) = (k.buf(read("x", &[n(6), n(10)])), k.buf(ints("at", &[n(3)])));
    let y = k.buf(write("y", &[sym("r"), sym("c")]));
    let [r, c, end] = [0, 1, 2].map(|i| k.load_scalar(at, &[k.int(i)]));
    let tile = k.load(x, &[k.int(0), k.int(0)], BOTH, [6, 10], &[]);
    let soft = tile - tile.max_along(1);
    k.store(y, &[r, c], BOTH, &[(1, end)], soft.exp() / soft.exp().sum_along(1));
    let kernel = k.finish();
    for (r, c, end) in [(0, 0, 9), (-2, -3, 6), (4, 5, 7), (-6, 0, 9), (1, 9, 9), (-5, -9, 1)] {
        let value = |buf, i| if buf == at { [r, c, end][i as usize] as f64 } else { eighths(buf, i) };
        agree_on(&kernel, &[("r", 7), ("c", 9)], &value, 1e-12);
    }
}

/// A single element outside its buffer is zero, and is not stored.
#[test]
fn scalars_outside() {
    let k = Build::new("scalars");
    let (x, at) = (k.buf(read("x", &[sym("n")])), k.buf(ints("at", &[sym("n")])));
    let y = k.buf(write("y", &[n(5)]));
    let i = k.program(n(6), 1);
    let from = k.load_scalar(at, &[i]);
    let value = k.load_scalar(x, &[from]) + from.cast(Elem::F32);
    k.store(y, &[i], [None, None], &[], value);
    let kernel = k.finish();
    for n in [0, 1, 4, 9] {
        agree(&kernel, &[("n", n)]);
    }
}

#[test]
fn transposition() {
    let k = Build::new("transpose");
    let (x, y) = (k.buf(read("x", &[sym("c"), sym("r")])), k.buf(write("y", &[sym("r"), sym("c")])));
    let (r, c) = (k.program(sym("r"), 6) * 6i64, k.program(sym("c"), 9) * 9i64);
    let tile = k.load(x, &[c, r], [Some(1), Some(0)], [6, 9], &[]);
    k.store(y, &[r, c], BOTH, &[], tile.exp() + tile * 2.0);
    let kernel = k.finish();
    agree(&kernel, &[("r", 7), ("c", 22)]);
    agree(&kernel, &[("r", 3), ("c", 2)]);
}

/// Rotations of pairs of columns, of halves, of odd lengths, and of what is clipped.
#[test]
fn columns_in_another_order() {
    for (cols, order) in [
        (12, ColumnOrder::SwapPairs),
        (6, ColumnOrder::SwapPairs),
        (16, ColumnOrder::SwapHalves),
        (10, ColumnOrder::SwapHalves),
        (2, ColumnOrder::SwapHalves),
    ] {
        let k = Build::new("rotate");
        let (x, y) =
            (k.buf(read("x", &[sym("t"), sym("c")])), k.buf(write("y", &[sym("t"), n(cols as i64)])));
        let (row, zero) = (k.program(sym("t"), 3) * 3i64, k.int(0));
        let tile = k.load(x, &[row, zero], BOTH, [3, cols], &[]);
        let table = (k.iota(1, cols).cast(Elem::F32) * 0.25).cos();
        let turned = tile * table + tile.columns(order) * 0.5 + (tile * tile).sqrt().columns(order);
        k.store(y, &[row, zero], BOTH, &[], turned);
        let kernel = k.finish();
        agree(&kernel, &[("t", 4), ("c", cols as i64)]);
        agree(&kernel, &[("t", 2), ("c", cols as i64 - 1)]);
    }
}

#[test]
fn other_shapes() {
    let k = Build::new("reshape");
    let (x, y) = (k.buf(read("x", &[sym("t"), n(24)])), k.buf(write("y", &[sym("t"), n(24)])));
    let z = k.buf(write("z", &[sym("t"), n(4)]));
    let (row, zero) = (k.program(sym("t"), 1), k.int(0));
    let tile = k.load(x, &[row, zero], COLS, [1, 24], &[]);
    let groups = (tile + 1.0).reshape([4, 6]);
    let largest = groups.max_along(1);
    k.store(z, &[row, zero], COLS, &[], largest.reshape([1, 4]));
    k.store(y, &[row, zero], COLS, &[], (groups - largest).reshape([1, 24]) * tile);
    agree(&k.finish(), &[("t", 3)]);
}

/// Element types of all kinds, rounding, and integers next to floats.
#[test]
fn element_types() {
    for dtype in [DType::Bf16, DType::F16, DType::F64, DType::F8E4M3, DType::F8E5M2] {
        let k = Build::new("types");
        let shape = [sym("t"), n(11)];
        let x = k.buf(dense("x", dtype, Access::Read, &shape));
        let i = k.buf(dense("i", DType::I64, Access::Read, &shape));
        let y = k.buf(dense("y", dtype, Access::Write, &shape));
        let j = k.buf(dense("j", DType::I32, Access::Write, &shape));
        let (row, zero) = (k.program(sym("t"), 2) * 2i64, k.int(0));
        let x = k.load(x, &[row, zero], BOTH, [2, 11], &[]);
        let i = k.load(i, &[row, zero], BOTH, [2, 11], &[]);
        let odd = (i % 2i64).equals(k.int(1));
        let column = k.iota(1, 11);
        let mixed = odd.select(x * i.cast(Elem::F32), odd.not().cast(Elem::F32) - x).round(DType::Bf16);
        k.store(y, &[row, zero], BOTH, &[], mixed);
        let count = odd.and(x.le(k.float(0.5))).or(column.lt(k.int(2))).cast(Elem::I64);
        k.store(j, &[row, zero], BOTH, &[], (x * 3.0).cast(Elem::I64) + count * column - i / 3i64);
        agree(&k.finish(), &[("t", 3)]);
    }
}

/// A buffer with gaps between rows and columns, from an offset.
#[test]
fn strides_and_offsets() {
    let k = Build::new("strides");
    let shape = vec![sym("r"), n(9)];
    let gappy = |name: &str, access, strides: [i64; 2]| BufData {
        name: name.into(),
        dtype: DType::F32,
        access,
        shape: shape.clone(),
        strides: strides.map(n).to_vec(),
        offset: sym("o"),
        scaled: None,
    };
    let x = k.buf(gappy("x", Access::Read, [31, 3]));
    let y = k.buf(gappy("y", Access::Write, [2, 17]));
    let z = k.buf(gappy("z", Access::Write, [23, 2]));
    let (row, zero) = (k.program(sym("r"), 2) * 2i64, k.int(0));
    let tile = k.load(x, &[row, zero], BOTH, [2, 9], &[]);
    k.store(y, &[row, zero], BOTH, &[], tile.exp());
    k.store(z, &[row, zero], BOTH, &[], tile.exp().recip());
    agree(&k.finish(), &[("r", 5), ("o", 3)]);
}

/// Elements picked by number, some of them outside.
#[test]
fn gathered() {
    let k = Build::new("gather");
    let (x, rows) = (k.buf(read("x", &[sym("v"), n(7)])), k.buf(ints("rows", &[sym("t")])));
    let y = k.buf(write("y", &[sym("t"), n(7)]));
    let (t, zero) = (k.program(sym("t"), 4) * 4i64, k.int(0));
    let picked = k.load(rows, &[t], [Some(0), None], [4, 1], &[]);
    let index = picked.max(k.iota(1, 7) - 9i64);
    let tile = k.gather(x, &[zero, zero], 0, index);
    let column = k.gather(x, &[k.int(1), zero], 1, k.iota(1, 7) + picked);
    k.store(y, &[t, zero], BOTH, &[], tile * 0.5 + column.exp());
    let kernel = k.finish();
    agree(&kernel, &[("t", 9), ("v", 3)]);
    agree(&kernel, &[("t", 6), ("v", 0)]);
}

/// Rows of a tensor by number: several neighbours at once, along the tile's columns or along its rows.
#[test]
fn gathered_neighbours() {
    for (m, dtype) in [(48, DType::Bf16), (53, DType::F32), (40, DType::F8E4M3)] {
        let k = Build::new("gather_rows");
        let x = k.buf(BufData { dtype, ..read("x", &[sym("v"), n(m)]) });
        let rows = k.buf(ints("rows", &[sym("t")]));
        let y = k.buf(BufData { dtype, ..write("y", &[sym("t"), n(m)]) });
        let z = k.buf(write("z", &[n(m), sym("t")]));
        let (t, col, zero) = (k.program(sym("t"), 32) * 32i64, k.program(n(m), 32) * 32i64, k.int(0));
        let down = k.load(rows, &[t], [Some(0), None], [32, 1], &[]);
        k.store(
            y,
            &[t, col],
            BOTH,
            &[],
            k.gather_tile(x, &[zero, col], [None, Some(1)], [32, 32], &[], (0, down)),
        );
        let limit = col + 27i64;
        let across = k.load(rows, &[t], [None, Some(0)], [1, 32], &[]);
        let turned = k.gather_tile(x, &[zero, col], [Some(1), None], [32, 32], &[(1, limit)], (0, across));
        k.store(z, &[col, t], BOTH, &[], turned * 0.5);
        agree(&k.finish(), &[("t", 37), ("v", 3)]);
    }
}

/// What no store sees is not computed: of 16 rows, two.
#[test]
fn rows_that_no_store_writes_cost_nothing() {
    let k = Build::new("few_rows");
    let shape = [sym("t"), n(20)];
    let (x, y) = (k.buf(read("x", &shape)), k.buf(write("y", &shape)));
    let (row, zero) = (k.program(sym("t"), 16) * 16i64, k.int(0));
    let tile = k.load(x, &[row, zero], BOTH, [16, 20], &[]).exp().sin();
    let sum = tile.sum_along(1);
    k.store(y, &[row, zero], BOTH, &[], tile / sum);
    let ran = agree(&k.finish(), &[("t", 2)]);
    assert_eq!(ran.lane.loaded, [40, 0]);
}

/// Chains of thousands of instructions: no recursion goes through all of them.
#[test]
fn long_chains() {
    let k = Build::new("long");
    let (x, y) = (k.buf(read("x", &[sym("t"), n(6)])), k.buf(write("y", &[sym("t"), n(6)])));
    let row = k.program(sym("t"), 1);
    let zero = (0..4000).fold(row - row, |sum, i| sum + (i % 3 - 1) as i64);
    let zero = zero - zero;
    let tile = k.load(x, &[row, zero], COLS, [1, 6], &[]);
    let sum = (0..4000).fold(tile, |sum, i| if i % 2 == 0 { sum.max(tile - sum) } else { tile + sum * 0.5 });
    k.store(y, &[row, zero], COLS, &[], sum);
    agree(&k.finish(), &[("t", 3)]);
}
