//! Softmax and attention: what loops carry from block to block.

use crate::support::*;
use eva_ir::kernel::build::Build;
use eva_ir::kernel::{Elem, Kernel};

const BOTH: [Option<usize>; 2] = [Some(0), Some(1)];

/// Softmax of rows longer than a block, in two passes.
#[test]
fn softmax_in_blocks() {
    let k = Build::new("softmax");
    let shape = [sym("t"), sym("c")];
    let (x, y) = (k.buf(read("x", &shape)), k.buf(write("y", &shape)));
    let row = k.program(sym("t"), 3) * 3i64;
    let (cols, block) = (k.extent(&sym("c")), 10i64);
    let trips = cols.div_ceil(block);
    let masked = |at| {
        let tile = k.load(x, &[row, at], BOTH, [3, block as usize], &[]);
        (k.iota(1, block as usize) + at).lt(cols).select(tile, k.float(-1e30))
    };
    let start = [k.full([3, 1], -1e30), k.full([3, 1], 0.0)];
    let [top, sum] = k.fold(trips, start, |i, [top, sum]| {
        let tile = masked(i * block);
        let new = top.max(tile.max_along(1));
        [new, sum * (top - new).exp() + (tile - new).exp().sum_along(1)]
    });
    k.repeat(trips, |i| {
        let tile = masked(i * block);
        k.store(y, &[row, i * block], BOTH, &[], (tile - top).exp() / sum);
    });
    let kernel = k.finish();
    for (t, c) in [(1, 1), (4, 10), (5, 23), (3, 7), (2, 41)] {
        agree(&kernel, &[("t", t), ("c", c)]);
    }
}

/// One pass over the keys, for two pairs of queries and keys.
fn attention() -> Kernel {
    let k = Build::new("attention");
    let (q, key) =
        (k.buf(read("q", &[sym("b"), sym("s"), n(7)])), k.buf(read("k", &[sym("b"), sym("t"), n(7)])));
    let (p, rope) = (k.buf(read("p", &[sym("b"), sym("s"), n(4)])), k.buf(read("r", &[sym("t"), n(4)])));
    let (values, start) = (k.buf(read("v", &[sym("b"), sym("t"), n(9)])), k.buf(ints("start", &[sym("b")])));
    let y = k.buf(write("y", &[sym("b"), sym("s"), n(9)]));
    let (b, first) = (k.program(sym("b"), 1), k.program(sym("s"), 6) * 6i64);
    let (zero, axes) = (k.int(0), [Some(1), Some(2)]);
    let start = k.load_scalar(start, &[b]);
    let row = k.iota(0, 6) + first;
    let last_seen = (row + start).cast(Elem::F32);
    let q = k.load(q, &[b, first, zero], axes, [6, 7], &[]);
    let p = k.load(p, &[b, first, zero], axes, [6, 4], &[]);
    let keys = ((first + 5i64).min(k.extent(&sym("s")) - 1i64) + start + 1i64).min(k.extent(&sym("t")));
    let init = [k.full([6, 1], -1e30), k.full([6, 1], 0.0), k.full([6, 9], 0.0)];
    let [_, total, sum] = k.fold(keys.div_ceil(10), init, |i, [top, total, sum]| {
        let at = i * 10i64;
        let keys = k.load(key, &[b, at, zero], axes, [10, 7], &[]);
        let rope = k.load(rope, &[at, zero], BOTH, [10, 4], &[]);
        let scores = k.full([6, 10], 0.0).add_dot(q, keys).add_dot(p, rope);
        let seen = (k.iota(1, 10).cast(Elem::F32) + at.cast(Elem::F32)).le(last_seen);
        let scores = seen.select(scores * 0.125, k.float(-1e30));
        let new = top.max(scores.max_along(1));
        let weights = (scores - new).exp();
        let decay = (top - new).exp();
        let v = k.load(values, &[b, at, zero], [Some(2), Some(1)], [9, 10], &[]);
        [new, total * decay + weights.sum_along(1), (sum * decay).add_dot(weights, v)]
    });
    k.store(y, &[b, first, zero], axes, &[], sum * total.recip());
    k.finish()
}

#[test]
fn attention_in_one_pass() {
    let kernel = attention();
    for (b, s, t, start) in
        [(1, 1, 1, 0), (2, 5, 11, 6), (1, 6, 21, 15), (3, 7, 9, 2), (1, 1, 33, 32), (2, 13, 20, 4)]
    {
        let is_start = |buf| kernel.bufs[buf].name == "start";
        // The rotary keys are shared by all sequences.
        let value = |buf, i| if is_start(buf) { f64::from(start - (i > 0) as i32) } else { eighths(buf, i) };
        agree_on(&kernel, &[("b", b), ("s", s), ("t", t)], &value, 1e-12);
    }
}

/// One query of a tile of six has one row's work done, and the sum is updated in place.
#[test]
fn a_decode_step() {
    let kernel = attention();
    let value = |buf, i| if kernel.bufs[buf].name == "start" { 29.0 } else { eighths(buf, i) };
    let ran = agree_on(&kernel, &[("b", 1), ("s", 1), ("t", 30)], &value, 1e-12);
    let loaded = |name: &str| {
        let i = kernel.bufs.iter().position(|(_, data)| data.name == name).unwrap();
        ran.lane.loaded[i]
    };
    assert_eq!(["q", "k", "p", "r", "v"].map(loaded), [3 * 7, 30 * 7, 3 * 4, 30 * 4, 30 * 9]);
    let floats = ran.kernel.scratch.iter().map(|(_, data)| data.len).max();
    assert_eq!(floats, Some(60));
    let copies_of_sum = ran.kernel.scratch.iter().filter(|(_, data)| data.len == 54).count();
    assert_eq!(copies_of_sum, 1);
}
