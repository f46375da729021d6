//! Buffers of 8-bit floats with scales.

use crate::support::*;
use eva_ir::dim::Dim;
use eva_ir::kernel::build::Build;
use eva_ir::kernel::{Access, Buf, BufData, Kernel};
use eva_ir::types::DType;

const BOTH: [Option<usize>; 2] = [Some(0), Some(1)];

/// `y = 2x` of codes `[t, c]` in blocks of `rows × cols`, four rows at a time.
fn twice(blocks: (i64, i64), by: DType, from: i64) -> Kernel {
    let k = Build::new("twice");
    let s = k.buf(dense("s", by, Access::Read, &[n(30), n(9)]));
    let shape = [sym("t"), sym("c")];
    let along: [(i64, Dim, &[Dim], i64); 2] =
        [(blocks.0, n(0), &[n(1), n(0)], 9), (blocks.1, n(from), &[n(0), n(1)], 1)];
    let x = dense("x", DType::F8E4M3, Access::Read, &shape);
    let x = k.buf(BufData { scaled: scaled(s, 0, &along), ..x });
    let y = k.buf(write("y", &shape));
    let (row, zero) = (k.program(sym("t"), 4) * 4i64, k.int(0));
    k.store(y, &[row, zero], BOTH, &[], k.load(x, &[row, zero], BOTH, [4, 24], &[]) * 2.0);
    k.finish()
}

/// Codes and powers of two.
fn value(kernel: &Kernel) -> impl Fn(Buf, u64) -> f64 {
    |buf, i| match kernel.bufs[buf].name.as_str() {
        "s" => [0.5, 1.0, 4.0, 16.0][noise(3, i) as usize % 4],
        _ => eighths(buf, i),
    }
}

#[test]
fn four_columns_are_read_with_one_scale_where_they_share_it() {
    for (blocks, from, of_four) in
        [((1, 8), 0, 1), ((3, 4), 12, 1), ((128, 128), 8, 1), ((1, 6), 0, 4), ((3, 8), 2, 4), ((7, 1), 0, 4)]
    {
        for by in [DType::F32, DType::E8M0] {
            let kernel = twice(blocks, by, from);
            let value = value(&kernel);
            let ran = agree_on(&kernel, &[("t", 11), ("c", 22)], &value, 0.0);
            // 20 columns four at a time, and 2 by themselves.
            assert_eq!(ran.lane.loaded, [11 * (5 * of_four + 2), 11 * 22, 0], "{blocks:?} from {from}");
        }
    }
}

/// `out[t, h, j] = Σ x[t, h, c] w[h, at + j, c]`: `w` is some rows of each head of a quantized `[h · (n + v), c]`.
pub fn heads(blocks: (i64, i64), at: i64, backwards: bool) -> Kernel {
    let k = Build::new("heads");
    let s = k.buf(dense("s", DType::F32, Access::Read, &[n(60), n(8)]));
    let rows = &sym("n") + &sym("v");
    let (first, last): ([Dim; 3], [Dim; 3]) = ([rows.clone(), n(1), n(0)], [n(0), n(0), n(1)]);
    let along: [(i64, Dim, &[Dim], i64); 2] = [(blocks.0, n(at), &first, 8), (blocks.1, n(0), &last, 1)];
    let w = dense("w", DType::F8E4M3, Access::Read, &[sym("h"), sym("n"), sym("c")]);
    let strides = vec![&rows * &sym("c"), sym("c"), n(1)];
    let offset = &sym("c") * &n(at);
    let w = k.buf(BufData { scaled: scaled(s, 8, &along), strides, offset, ..w });
    // Sums over `c`, or over the rows of the weight.
    let (terms, out, axes) = match backwards {
        false => ("c", "n", [Some(1), Some(2)]),
        true => ("n", "c", [Some(2), Some(1)]),
    };
    let x = k.buf(read("x", &[sym("t"), sym("h"), sym(terms)]));
    let y = k.buf(write("y", &[sym("t"), sym("h"), sym(out)]));
    let (head, row) = (k.program(sym("h"), 1), k.program(sym("t"), 3) * 3i64);
    let col = k.program(sym(out), 6) * 6i64;
    let [sum] = k.fold(k.extent(&sym(terms)).div_ceil(10), [k.full([3, 6], 0.0)], |i, [sum]| {
        let term = i * 10i64;
        let left = k.load(x, &[row, head, term], [Some(0), Some(2)], [3, 10], &[]);
        let start = if backwards { [head, term, col] } else { [head, col, term] };
        [sum.add_dot(left, k.load(w, &start, axes, [6, 10], &[]))]
    });
    k.store(y, &[row, head, col], [Some(0), Some(2)], &[], sum);
    k.finish()
}

#[test]
fn heads_of_a_quantized_weight() {
    for blocks in [(4, 8), (3, 5), (1, 128)] {
        for (at, backwards) in [(0, false), (7, false), (2, true)] {
            let kernel = heads(blocks, at, backwards);
            let value = value(&kernel);
            for (t, h, v) in [(1, 3, 6), (5, 2, 7)] {
                let sizes = [("t", t), ("h", h), ("n", 7), ("v", v.max(at)), ("c", 23)];
                agree_on(&kernel, &sizes, &value, 1e-12);
            }
        }
    }
}

/// An expert's weight of a quantized tensor of three axes.
#[test]
fn gathered_codes() {
    let k = Build::new("gathered");
    let s = k.buf(dense("s", DType::E8M0, Access::Read, &[n(3), n(3), n(2)]));
    let along: [(i64, Dim, &[Dim], i64); 3] = [
        (1, n(0), &[n(1), n(0), n(0)], 6),
        (5, n(0), &[n(0), n(1), n(0)], 2),
        (4, n(0), &[n(0), n(0), n(1)], 1),
    ];
    let x = dense("x", DType::F8E5M2, Access::Read, &[n(3), n(11), n(7)]);
    let x = k.buf(BufData { scaled: scaled(s, 0, &along), ..x });
    let rows = k.buf(ints("rows", &[sym("t")]));
    let y = k.buf(write("y", &[n(3), sym("t"), n(8)]));
    let (expert, at, zero) = (k.program(n(3), 1), k.program(sym("t"), 5) * 5i64, k.int(0));
    let row = k.load(rows, &[at], [Some(0), None], [5, 1], &[]) + k.iota(1, 8) * zero;
    let col = zero + 2i64;
    let got = k.gather(x, &[expert, zero, col], 1, row);
    k.store(y, &[expert, at, zero], [Some(1), Some(2)], &[], got);
    let kernel = k.finish();
    let value = |buf: Buf, i: u64| match kernel.bufs[buf].name.as_str() {
        "rows" => (noise(5, i) % 14) as f64 - 1.0,
        "s" => [0.25, 2.0][noise(3, i) as usize % 2],
        _ => eighths(buf, i),
    };
    agree_on(&kernel, &[("t", 13)], &value, 0.0);
}

#[test]
fn scaled_loads_look_like_this() {
    let kernel = twice((3, 8), DType::F32, 0);
    insta::assert_snapshot!(agree_on(&kernel, &[("t", 2), ("c", 5)], &value(&kernel), 0.0).kernel);
}
