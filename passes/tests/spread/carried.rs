//! Tiles that a loop carries, and that change places in it.

use crate::support::*;
use eva_ir::kernel::build::{Build, Tile};
use eva_ir::kernel::{ColumnOrder, Elem, Kernel};

const BOTH: [Option<usize>; 2] = [Some(0), Some(1)];

/// A loop that carries three tiles; the results are stored side by side.
fn loop_of<F>(name: &str, cols: usize, step: F) -> Kernel
where
    F: for<'k> FnOnce(&'k Build, Tile<'k>, [Tile<'k>; 3]) -> [Tile<'k>; 3],
{
    let k = Build::new(name);
    let x = k.buf(read("x", &[n(3), sym("r"), n(cols as i64)]));
    let y = k.buf(write("y", &[n(3), sym("r"), n(cols as i64)]));
    let (row, zero) = (k.program(sym("r"), 4) * 4i64, k.int(0));
    let axes = [Some(1), Some(2)];
    let init = [0, 1, 2].map(|i| k.load(x, &[k.int(i), row, zero], axes, [4, cols], &[]));
    let outs = k.fold(k.extent(&sym("trips")), init, |i, args| step(&k, i, args));
    for (i, out) in outs.into_iter().enumerate() {
        k.store(y, &[k.int(i as i64), row, zero], axes, &[], out);
    }
    k.finish()
}

fn check(kernel: &Kernel) {
    for (r, trips) in [(4, 0), (5, 1), (3, 2), (4, 5), (9, 4)] {
        agree(kernel, &[("r", r), ("trips", trips)]);
    }
}

#[test]
fn tiles_that_change_places() {
    check(&loop_of("swap", 6, |_, _, [a, b, c]| [b, a, c + 1.0]));
    check(&loop_of("ring", 7, |_, _, [a, b, c]| [b, c, a]));
    check(&loop_of("ring_of_sums", 5, |_, _, [a, b, c]| [a + b, b - c, c + a]));
    check(&loop_of("chain", 9, |_, _, [_, b, c]| [b * 0.5, c + b, c.max(c * 2.0)]));
    check(&loop_of("copies", 3, |_, _, [a, _, c]| [a, a, c - a]));
}

#[test]
fn tiles_that_look_elsewhere_in_themselves() {
    check(&loop_of("turn", 6, |_, _, [a, b, c]| {
        [
            a.columns(ColumnOrder::SwapPairs) + 1.0,
            b.columns(ColumnOrder::SwapHalves),
            c + a.columns(ColumnOrder::SwapPairs),
        ]
    }));
    check(&loop_of("stretch", 5, |_, _, [a, b, c]| {
        [a - a.max_along(1), b + b.sum_along(0) * 0.25, c - b.min_along(1)]
    }));
    check(&loop_of("reshape", 6, |_, _, [a, b, c]| {
        let turned = a.reshape([6, 4]);
        [(turned + 1.0).reshape([4, 6]), (turned - turned.max_along(0)).reshape([4, 6]), c + b]
    }));
}

/// Sums in place, and products that must not be: the old value is needed afterwards, or is an operand.
#[test]
fn products_of_carried_tiles() {
    check(&loop_of("in_place", 4, |_, _, [a, b, c]| [(a * 0.5).add_dot(b * 0.125, c), b, c]));
    check(&loop_of("needed_later", 4, |_, _, [a, b, c]| {
        let sum = (a * 0.5).add_dot(b * 0.125, c);
        [sum, a, c * 0.5]
    }));
    check(&loop_of("operand", 4, |_, _, [a, b, c]| [(a * 0.5).add_dot(a * 0.125, a), b, c]));
    check(&loop_of("twice", 4, |_, _, [a, b, c]| {
        let sum = a.add_dot(b * 0.125, c * 0.125);
        [sum, sum, c]
    }));
    check(&loop_of("stretched", 4, |k, _, [a, b, c]| {
        [(k.full([4, 4], 0.0) + a.max_along(1)).add_dot(b * 0.125, c * 0.125), b, c]
    }));
    check(&loop_of("read_by_a_fold", 4, |_, _, [a, b, c]| {
        let sum = a.add_dot(b * 0.125, c * 0.125);
        [sum, b - a.max_along(1), c]
    }));
}

/// Loops in loops, whose trip counts and tiles depend on each other; scalars and truth values carried.
#[test]
fn nested_loops() {
    check(&loop_of("nested", 5, |k, i, [a, b, c]| {
        let [d, e] = k.fold(i, [a, b], |j, [d, e]| [e + j.cast(Elem::F32), d * 0.5]);
        let [count, largest] =
            k.fold(i + 1i64, [k.int(1), i], |j, [count, largest]| [largest + j, count.max(largest)]);
        [d + count.cast(Elem::F32), e, c + largest.cast(Elem::F32) * d.max_along(1)]
    }));
    check(&loop_of("truth", 5, |k, i, [a, b, c]| {
        let none = c.lt(k.full([4, 5], -100.0));
        let [mask] = k.fold(i, [none], |_, [mask]| [mask.not().or(a.lt(b))]);
        [mask.select(a, b), b * 0.5, mask.cast(Elem::F32)]
    }));
    check(&loop_of("whole", 6, |k, i, [a, b, c]| {
        let start = k.full([4, 6], 0.0).cast(Elem::I64);
        let [sum] = k.fold(i, [start], |j, [sum]| [sum + a.cast(Elem::I64) + j]);
        [a, b - sum.cast(Elem::F32), c]
    }));
}

/// A store inside a loop, of tiles that clip elsewhere in each trip, from the first on and from the last on.
#[test]
fn stores_in_a_loop() {
    for backwards in [false, true] {
        let k = Build::new("stores");
        let shape = [sym("r"), n(7)];
        let (x, y) = (k.buf(read("x", &shape)), k.buf(write("y", &shape)));
        let zero = k.int(0);
        let start = k.load(x, &[zero, zero], BOTH, [5, 7], &[]);
        let trips = k.extent(&sym("r")).div_ceil(5);
        k.fold(trips, [start], |i, [carried]| {
            let row = if backwards { (trips - 1i64 - i) * 5i64 } else { i * 5i64 };
            let new = carried * 0.5 + k.load(x, &[row, zero], BOTH, [5, 7], &[]).exp();
            k.store(y, &[row, zero], BOTH, &[], new);
            [new]
        });
        let kernel = k.finish();
        for r in [1, 5, 13, 17] {
            agree(&kernel, &[("r", r)]);
        }
    }
}
