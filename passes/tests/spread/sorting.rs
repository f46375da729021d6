//! Counts, choices and scatters: the kernels of routers and of sorting.

use crate::support::*;
use eva_ir::kernel::build::Build;
use eva_ir::kernel::{Access, Elem};
use eva_ir::types::DType;

const COLS: [Option<usize>; 2] = [None, Some(1)];

/// The `k` largest of each row, by taking the largest out so many times.
#[test]
fn the_largest_of_each_row() {
    let k = Build::new("top");
    let shape = [sym("t"), n(11)];
    let (x, y) = (k.buf(read("x", &shape)), k.buf(write("y", &[sym("t"), n(3)])));
    let chosen = k.buf(dense("chosen", DType::I32, Access::Write, &[sym("t"), n(3)]));
    let (row, zero) = (k.program(sym("t"), 1), k.int(0));
    let (tile, column) = (k.load(x, &[row, zero], COLS, [1, 11], &[]), k.iota(1, 11));
    k.fold(k.int(3), [tile], |i, [rest]| {
        let top = rest.max_along(1);
        let place = top.le(rest).select(column, k.int(i64::MAX)).min_along(1);
        k.store(y, &[row, i], [None, None], &[], top);
        k.store(chosen, &[row, i], [None, None], &[], place);
        [column.equals(place).select(k.float(-1e30), rest)]
    });
    agree(&k.finish(), &[("t", 6)]);
}

/// Numbers sorted by counting: a scan gives each its place, a scatter puts it there.
#[test]
fn counting_sort() {
    let k = Build::new("sort");
    let key = k.buf(ints("key", &[sym("n")]));
    let order = k.buf(dense("order", DType::I32, Access::Write, &[sym("n")]));
    let offsets = k.buf(dense("offsets", DType::I32, Access::Write, &[n(6)]));
    let (count, zero, block) = (k.extent(&sym("n")), k.int(0), 9);
    let trips = count.div_ceil(block as i64);
    let [end] = k.fold(k.int(5), [zero], |group, [base]| {
        k.store(offsets, &[group], [None, None], &[], base);
        let [end] = k.fold(trips, [base], |i, [base]| {
            let at = i * block as i64;
            let item = k.iota(1, block) + at;
            let mine = k.load(key, &[at], [None, Some(0)], [1, block], &[]).equals(group);
            let mine = mine.and(item.lt(count));
            let places = mine.cast(Elem::I64).cumulative_sum();
            k.scatter(order, &[base - 1i64], 0, places, item, mine);
            [base + places.max_along(1)]
        });
        [end]
    });
    k.store(offsets, &[k.int(5)], [None, None], &[], end);
    let kernel = k.finish();
    for n in [1, 9, 25, 31] {
        let value = |_, i| (noise(3, i) % 5) as f64;
        let ran = agree_on(&kernel, &[("n", n)], &value, 0.0);
        assert_eq!(ran.results[2].data[5], n as f64);
    }
}

/// Scans of rows, of floats, and of what lies outside.
#[test]
fn scans() {
    let k = Build::new("scan");
    let shape = [sym("t"), sym("c")];
    let (x, y) = (k.buf(read("x", &shape)), k.buf(write("y", &[sym("t"), n(10)])));
    let (row, zero, axes) = (k.program(sym("t"), 3) * 3i64, k.int(0), [Some(0), Some(1)]);
    let tile = k.load(x, &[row, zero], axes, [3, 10], &[]);
    k.store(y, &[row, zero], axes, &[], (tile + 0.5).cumulative_sum() - tile);
    let kernel = k.finish();
    agree(&kernel, &[("t", 4), ("c", 10)]);
    agree(&kernel, &[("t", 2), ("c", 7)]);
}

/// Places that are outside of the buffer, and two axes that start at the same index.
#[test]
fn scattered_outside() {
    let k = Build::new("scatter");
    let (x, to) = (k.buf(read("x", &[n(4), n(5)])), k.buf(ints("to", &[n(4), n(5)])));
    let y = k.buf(write("y", &[sym("r"), sym("c")]));
    let (zero, one, axes) = (k.int(0), k.int(1), [Some(0), Some(1)]);
    let value = k.load(x, &[zero, zero], axes, [4, 5], &[]);
    // Places of their own: -7, -5, …, each moved by 0 or 1.
    let odd = k.load(to, &[zero, zero], axes, [4, 5], &[]) % 2i64;
    let to = (k.iota(0, 4) * 5i64 + k.iota(1, 5)) * 2i64 - 7i64 + odd;
    k.scatter(y, &[one, one], 1, to, value, value.lt(k.full([4, 5], 1.0)));
    k.scatter(y, &[zero, one], 0, to + 1i64, value * 2.0, value.le(k.float(-1.0)));
    let kernel = k.finish();
    agree(&kernel, &[("r", 5), ("c", 8)]);
    agree(&kernel, &[("r", 1), ("c", 3)]);
    agree(&kernel, &[("r", 2), ("c", 0)]);
}
