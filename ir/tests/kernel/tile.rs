//! What instructions of the tile phase do.

use crate::support::*;
use eva_ir::dim::Dim;
use eva_ir::kernel::build::{Build, Tile};
use eva_ir::kernel::run::{Fault, Options, Order, RunError, Storage, round, run};
use eva_ir::kernel::*;
use eva_ir::types::DType;

/// The tile that `value` makes of `x`, a `rows × cols` tile.
fn apply(
    x: &[f64],
    [rows, cols]: [usize; 2],
    out: [usize; 2],
    dtype: DType,
    value: impl for<'k> FnOnce(&'k Build, Tile<'k>) -> Tile<'k>,
) -> Result<Vec<f64>, RunError> {
    let k = Build::new("apply");
    let shape = |[r, c]: [usize; 2]| [r.to_string(), c.to_string()];
    let [r, c] = shape([rows, cols]);
    let from = k.buf(buf("from", dtype, &[&r, &c], Access::Read));
    let zero = k.int(0);
    let tile = k.load(from, &[zero, zero], [Some(0), Some(1)], [rows, cols], &[]);
    let value = value(&k, tile);
    let to_type = if value.ty().elem == Elem::I64 { DType::I64 } else { DType::F64 };
    let [r, c] = shape(out);
    let to = k.buf(buf("to", to_type, &[&r, &c], Access::Write));
    k.store(to, &[zero, zero], [Some(0), Some(1)], &[], value);
    let mut storages = [Storage { dtype, data: x.to_vec() }, Storage::unwritten(to_type, out[0] * out[1])];
    run_on(&k.finish(), &[], &mut storages, Options::default())?;
    Ok(storages[1].data.clone())
}

fn fault(result: Result<impl std::fmt::Debug, RunError>) -> Fault {
    match result {
        Err(RunError::At { fault, .. }) => fault,
        other => panic!("not a fault: {other:?}"),
    }
}

#[test]
fn maps_are_the_functions() {
    let x = [0.25, 3.5, 1.75];
    type Case = (for<'k> fn(Tile<'k>) -> Tile<'k>, fn(f64) -> f64);
    let cases: [Case; 8] = [
        (|x| -x, |x| -x),
        (|x| x.exp(), f64::exp),
        (|x| x.log(), f64::ln),
        (|x| x.sqrt(), f64::sqrt),
        (|x| x.rsqrt(), |x| 1.0 / x.sqrt()),
        (|x| x.recip(), |x| 1.0 / x),
        (|x| x.sin(), f64::sin),
        (|x| x.cos(), f64::cos),
    ];
    for (f, want) in cases {
        let have = apply(&x, [1, 3], [1, 3], DType::F32, |_, x| f(x)).unwrap();
        close(&have, &x.map(want), 1e-15);
    }
}

#[test]
fn integers_divide_downwards() {
    let x = [-7.0, -6.0, -1.0, 0.0, 5.0];
    let divide = apply(&x, [1, 5], [1, 5], DType::I32, |_, x| x / 3i64).unwrap();
    assert_eq!(divide, [-3.0, -2.0, -1.0, 0.0, 1.0]);
    let rest = apply(&x, [1, 5], [1, 5], DType::I32, |_, x| x % 3i64).unwrap();
    assert_eq!(rest, [2.0, 0.0, 2.0, 0.0, 2.0]);
    let negative = apply(&x, [1, 5], [1, 5], DType::I32, |_, x| -x).unwrap();
    assert_eq!(negative, [7.0, 6.0, 1.0, 0.0, -5.0]);
}

#[test]
fn integers_do_not_overflow_or_divide_by_zero() {
    let by_zero = apply(&[4.0], [1, 1], [1, 1], DType::I64, |k, x| k.int(9) / (x - 4i64));
    assert_eq!(fault(by_zero), Fault::Divisor(0));
    let too_large = apply(&[4.0], [1, 1], [1, 1], DType::I64, |_, x| x + i64::MAX);
    assert_eq!(fault(too_large), Fault::Overflow);
    let too_small = apply(&[4.0], [1, 1], [1, 1], DType::I64, |k, _| -k.int(i64::MIN));
    assert_eq!(fault(too_small), Fault::Overflow);
}

#[test]
fn max_and_min_prefer_numbers_to_nan() {
    let x = [f64::NAN, 2.0, f64::NAN];
    assert_eq!(apply(&x, [1, 3], [1, 1], DType::F32, |_, x| x.max_along(1)).unwrap(), [2.0]);
    assert_eq!(apply(&x, [1, 3], [1, 1], DType::F32, |_, x| x.min_along(1)).unwrap(), [2.0]);
}

#[test]
fn folds_scans_and_orders_of_columns() {
    let x: Vec<f64> = [1, 2, 3, 4, 10, 20, 30, 40].map(f64::from).to_vec();
    let of = |out, f: for<'k> fn(Tile<'k>) -> Tile<'k>| {
        let floats = apply(&x, [2, 4], out, DType::F32, |_, x| f(x)).unwrap();
        let ints = apply(&x, [2, 4], out, DType::I64, |_, x| f(x)).unwrap();
        assert_eq!(floats, ints);
        floats
    };
    assert_eq!(of([1, 4], |x| x.sum_along(0)), [11.0, 22.0, 33.0, 44.0]);
    assert_eq!(of([2, 1], |x| x.sum_along(1)), [10.0, 100.0]);
    assert_eq!(of([2, 1], |x| x.max_along(1)), [4.0, 40.0]);
    assert_eq!(of([1, 4], |x| x.min_along(0)), [1.0, 2.0, 3.0, 4.0]);
    assert_eq!(of([2, 4], |x| x.cumulative_sum()), [1.0, 3.0, 6.0, 10.0, 10.0, 30.0, 60.0, 100.0]);
    assert_eq!(
        of([2, 4], |x| x.columns(ColumnOrder::SwapPairs)),
        [2.0, 1.0, 4.0, 3.0, 20.0, 10.0, 40.0, 30.0]
    );
    assert_eq!(
        of([2, 4], |x| x.columns(ColumnOrder::SwapHalves)),
        [3.0, 4.0, 1.0, 2.0, 30.0, 40.0, 10.0, 20.0]
    );
    assert_eq!(of([4, 2], |x| x.reshape([4, 2])), x);
}

#[test]
fn casts_go_towards_zero_and_saturate() {
    let x = [-1.75, 1.75, 1e30, f64::NAN];
    let have = apply(&x, [1, 4], [1, 4], DType::F64, |k, x| {
        // i64::MAX has no f64, so compare inside the kernel.
        let cast = x.cast(Elem::I64);
        cast.equals(k.int(i64::MAX)).select(k.int(77), cast)
    });
    assert_eq!(have.unwrap(), [-1.0, 1.0, 77.0, 0.0]);
    let truth = apply(&[3.0, 4.0], [1, 2], [1, 2], DType::F32, |k, x| x.lt(k.float(3.5)).cast(Elem::F32));
    assert_eq!(truth.unwrap(), [1.0, 0.0]);
    let not = apply(&[3.0, 4.0], [1, 2], [1, 2], DType::F32, |k, x| x.lt(k.float(3.5)).not().cast(Elem::I64));
    assert_eq!(not.unwrap(), [0.0, 1.0]);
    let float = apply(&[3.0, -4.0], [1, 2], [1, 2], DType::I32, |_, x| x.cast(Elem::F32) * 0.5);
    assert_eq!(float.unwrap(), [1.5, -2.0]);
}

#[test]
fn outside_reads_zero_and_is_not_written() {
    // A 3 × 4 window that starts one row up and two columns to the left, with a limit on the columns.
    let k = Build::new("window");
    let x = k.buf(buf("x", DType::F32, &["2", "5"], Access::Read));
    let y = k.buf(buf("y", DType::F32, &["3", "4"], Access::Write));
    let (zero, up, left, limit) = (k.int(0), k.int(-1), k.int(-2), k.int(1));
    let axes = [Some(0), Some(1)];
    let tile = k.load(x, &[up, left], axes, [3, 4], &[(1, limit)]);
    k.store(y, &[zero, zero], axes, &[], tile + 1.0);
    // And back, shifted so that part of it is lost.
    let z = k.buf(buf("z", DType::F32, &["2", "3"], Access::Write));
    k.store(z, &[up, left], axes, &[(0, limit)], tile + 1.0);
    let mut storages = [
        Storage::new(DType::F32, (1..=10).map(f64::from)),
        Storage::unwritten(DType::F32, 12),
        Storage::new(DType::F32, [0.0; 6]),
    ];
    let stats = run_on(&k.finish(), &[], &mut storages, Options::default()).unwrap();
    assert_eq!(storages[1].data, [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 2.0, 1.0, 1.0, 1.0, 7.0, 1.0]);
    assert_eq!(storages[2].data, [2.0, 1.0, 0.0, 0.0, 0.0, 0.0]);
    assert_eq!((stats.loaded, stats.stored), (vec![2, 0, 0], vec![0, 12, 2]));
}

#[test]
fn gather_and_scatter_shift_each_element() {
    let k = Build::new("shift");
    let table = k.buf(buf("table", DType::F32, &["5", "2"], Access::Read));
    let ids = k.buf(buf("ids", DType::I32, &["6"], Access::Read));
    let y = k.buf(buf("y", DType::F32, &["6"], Access::Write));
    let z = k.buf(buf("z", DType::F32, &["2", "5"], Access::Write));
    let (zero, one) = (k.int(0), k.int(1));
    let index = k.load(ids, &[zero], [None, Some(0)], [1, 6], &[]);
    // Row `index` + 1 of column 1.
    let tile = k.gather(table, &[one, one], 0, index);
    k.store(y, &[zero], [None, Some(0)], &[], tile);
    k.scatter(z, &[one, zero], 1, index, tile, index.equals(k.int(2)).not());
    let mut storages = [
        Storage::new(DType::F32, (0..10).map(f64::from)),
        Storage::new(DType::I32, [3.0, -1.0, 2.0, 4.0, 0.0, -2.0]),
        Storage::unwritten(DType::F32, 6),
        Storage::new(DType::F32, [-1.0; 10]),
    ];
    run_on(&k.finish(), &[], &mut storages, Options::default()).unwrap();
    assert_eq!(storages[2].data, [9.0, 1.0, 7.0, 0.0, 3.0, 0.0]);
    // Nothing before the row, and nothing where the mask does not hold.
    assert_eq!(storages[3].data, [-1.0, -1.0, -1.0, -1.0, -1.0, 3.0, -1.0, -1.0, 9.0, 0.0]);
}

/// Columns of a tile that are rows of a buffer by number, and rows of it that are neighbours there.
#[test]
fn an_index_of_a_gather_stretches() {
    let k = Build::new("turn");
    let table = k.buf(buf("table", DType::F32, &["4", "5"], Access::Read));
    let ids = k.buf(buf("ids", DType::I32, &["3"], Access::Read));
    let y = k.buf(buf("y", DType::F32, &["2", "3"], Access::Write));
    let (zero, two) = (k.int(0), k.int(2));
    let index = k.load(ids, &[zero], [None, Some(0)], [1, 3], &[]);
    let tile = k.gather_tile(table, &[zero, two], [Some(1), None], [2, 3], &[], (0, index));
    k.store(y, &[zero, zero], [Some(0), Some(1)], &[], tile);
    let mut storages = [
        Storage::new(DType::F32, (0..20).map(f64::from)),
        Storage::new(DType::I32, [3.0, -1.0, 1.0]),
        Storage::unwritten(DType::F32, 6),
    ];
    run_on(&k.finish(), &[], &mut storages, Options::default()).unwrap();
    assert_eq!(storages[2].data, [17.0, 0.0, 7.0, 18.0, 0.0, 8.0]);
}

#[test]
fn a_shape_larger_than_its_storage_is_a_mistake() {
    let k = Build::new("copy");
    let x = k.buf(buf("x", DType::F32, &["7"], Access::Read));
    let zero = k.int(0);
    k.load(x, &[zero], [None, Some(0)], [1, 7], &[]);
    let result = run_on(&k.finish(), &[], &mut [Storage::new(DType::F32, [1.0; 6])], Options::default());
    let error = result.unwrap_err();
    assert_eq!(error.to_string(), "program []: `%1 = load $x[%0+col]`: element 6 of x, which has 6");
}

#[test]
fn stores_round_to_the_buffers_type() {
    let store = |dtype, x: f64| {
        let k = Build::new("store");
        let out = k.buf(buf("out", dtype, &[], Access::Write));
        k.store(out, &[], [None, None], &[], k.float(x));
        let mut storages = [Storage::unwritten(dtype, 1)];
        run_on(&k.finish(), &[], &mut storages, Options::default()).unwrap();
        storages[0].data[0]
    };
    let step = 2f64.powi(-8);
    assert_eq!(store(DType::Bf16, 1.0 + step), 1.0);
    assert_eq!(store(DType::Bf16, 1.0 + 3.0 * step), 1.0 + 4.0 * step);
    assert_eq!(store(DType::Bf16, 1.0 + step + 2f64.powi(-50)), 1.0 + 2.0 * step);
    assert_eq!(store(DType::F16, 65519.0), 65504.0);
    assert_eq!(store(DType::F16, 65520.0), f64::INFINITY);
    assert_eq!(store(DType::F32, 0.1), 0.1);
}

#[test]
fn rounding_agrees_with_the_half_crate() {
    // From f32 values, where that crate rounds correctly; all exponents, both signs.
    for i in 0..200_000u32 {
        let x = f32::from_bits(i.wrapping_mul(21_473));
        if x.is_nan() {
            assert!(round(x.into(), DType::F16).is_nan());
            continue;
        }
        assert_eq!(round(x.into(), DType::Bf16), half::bf16::from_f32(x).to_f64(), "{x:e}");
        assert_eq!(round(x.into(), DType::F16), half::f16::from_f32(x).to_f64(), "{x:e}");
    }
    let f8 = |x| round(x, DType::F8E4M3);
    assert_eq!(
        [f8(464.0), f8(-0.3), f8(2f64.powi(-10)), f8(1.5 * 2f64.powi(-9))],
        [448.0, -0.3125, 0.0, 2f64.powi(-8)]
    );
    assert!(f8(464.1).is_nan() && f8(f64::INFINITY).is_nan());
    assert_eq!(round(61439.0, DType::F8E5M2), 57344.0);
    assert_eq!(round(-61440.0, DType::F8E5M2), f64::NEG_INFINITY);
}

#[test]
fn integers_must_fit_their_buffer() {
    let k = Build::new("store");
    let out = k.buf(buf("out", DType::I32, &[], Access::Write));
    k.store(out, &[], [None, None], &[], k.int(1 << 31));
    let result = run_on(&k.finish(), &[], &mut [Storage::unwritten(DType::I32, 1)], Options::default());
    assert_eq!(fault(result), Fault::Unrepresentable { value: "2147483648".into(), dtype: DType::I32 });
    let result = apply(&[0.5], [1, 1], [1, 1], DType::I32, |_, x| x);
    assert_eq!(fault(result), Fault::Unrepresentable { value: "0.5".into(), dtype: DType::I32 });
}

#[test]
fn loops_carry_their_values_at_once() {
    // Fibonacci: each trip's second value is the sum of both, its first the second.
    let k = Build::new("fibonacci");
    let trips = k.buf(buf("trips", DType::I64, &[], Access::Read));
    let out = k.buf(buf("out", DType::I64, &["2"], Access::Write));
    let n = k.load_scalar(trips, &[]);
    let [a, b] = k.fold(n, [k.int(0), k.int(1)], |_, [a, b]| [b, a + b]);
    k.store(out, &[k.int(0)], [None, None], &[], a);
    k.store(out, &[k.int(1)], [None, None], &[], b);
    let kernel = k.finish();
    for (n, want) in [(-3.0, [0.0, 1.0]), (0.0, [0.0, 1.0]), (1.0, [1.0, 1.0]), (9.0, [34.0, 55.0])] {
        let mut storages = [Storage::new(DType::I64, [n]), Storage::unwritten(DType::I64, 2)];
        run_on(&kernel, &[], &mut storages, Options::default()).unwrap();
        assert_eq!(storages[1].data, want);
    }
    // A loop of 2^52 trips is given up.
    let mut storages = [Storage::new(DType::I64, [2f64.powi(52)]), Storage::unwritten(DType::I64, 2)];
    let options = Options { fuel: 100, ..Options::default() };
    assert_eq!(fault(run_on(&kernel, &[], &mut storages, options)), Fault::Fuel);
}

#[test]
fn huge_grids_and_loops_run_out_of_fuel() {
    let k = Build::new("empty_loop");
    k.program(Dim::sym("n"), 2);
    k.repeat(k.extent(&Dim::sym("t")), |_| ());
    let kernel = k.finish();
    let options = Options { fuel: 1000, ..Options::default() };
    let long_loop = run_on(&kernel, &[("n", 1), ("t", i64::MAX)], &mut [], options);
    assert_eq!(fault(long_loop), Fault::Fuel);
    let large_grid = run_on(&kernel, &[("n", 1 << 32), ("t", 0)], &mut [], options);
    assert_eq!(fault(large_grid), Fault::Fuel);
    let larger = run_on(&kernel, &[("n", i64::MAX), ("t", 0)], &mut [], options);
    assert_eq!(larger, Err(RunError::TooManyPrograms));
    assert_eq!(run_on(&kernel, &[("n", 7), ("t", 3)], &mut [], options).unwrap().programs, 4);
    assert_eq!(run_on(&kernel, &[("n", 0), ("t", 3)], &mut [], options).unwrap().programs, 0);
}

#[test]
fn programs_have_their_index_in_any_order() {
    let k = Build::new("index");
    let out = k.buf(buf("out", DType::I32, &["r", "c"], Access::Write));
    let (i, j) = (k.program(Dim::sym("r"), 1), k.program(Dim::sym("c"), 1));
    k.store(out, &[i, j], [None, None], &[], i * 100i64 + j);
    let kernel = k.finish();
    for order in [Order::Forward, Order::Backward, Order::Shuffled(1), Order::Shuffled(2)] {
        for (r, c) in [(3, 5), (1, 1), (2, 6)] {
            let mut storages = [Storage::unwritten(DType::I32, (r * c) as usize)];
            let options = Options { order, ..Options::default() };
            run_on(&kernel, &[("r", r), ("c", c)], &mut storages, options).unwrap();
            let want: Vec<f64> = (0..r * c).map(|n| (n / c * 100 + n % c) as f64).collect();
            assert_eq!(storages[0].data, want);
        }
    }
}

/// Each of `n` programs reads element `i + read` of its input and writes element `i + write` of its output.
fn shifted_copy(read: i64, write: i64) -> Kernel {
    let k = Build::new("shifted_copy");
    let x = k.buf(buf("x", DType::F32, &["9"], Access::Read));
    let y = k.buf(buf("y", DType::F32, &["9"], Access::Write));
    let i = k.program(Dim::sym("n"), 1);
    let value = k.load_scalar(x, &[i + read]);
    k.store(y, &[i * write], [None, None], &[], value);
    k.finish()
}

#[test]
fn races_between_programs_are_found_in_any_order() {
    for order in [Order::Forward, Order::Backward, Order::Shuffled(3)] {
        let options = Options { order, ..Options::default() };
        let in_place = |kernel: &Kernel, options| {
            let mut storages = [Storage::new(DType::F32, (0..9).map(f64::from))];
            run(kernel, &sizes(&[("n", 4)]), &mut storages, &[0, 0], options)
        };
        // Each program's own element, in place: no race.
        assert_eq!(in_place(&shifted_copy(0, 1), options).unwrap().programs, 4);
        // The neighbour's element, which the neighbour overwrites.
        assert!(matches!(fault(in_place(&shifted_copy(1, 1), options)), Fault::Race { .. }));
        // All programs write the same element.
        assert_eq!(
            fault(in_place(&shifted_copy(5, 0), options)),
            Fault::Race { memory: "y".into(), index: 0 }
        );
        assert!(in_place(&shifted_copy(5, 0), Options { races: false, ..options }).is_ok());
    }
}

#[test]
fn bindings_are_checked() {
    let kernel = shifted_copy(0, 1);
    let f32s = || Storage::unwritten(DType::F32, 9);
    let go = |storages: &mut [Storage], binding: &[usize], of: &'static [(&'static str, i64)]| {
        run(&kernel, &sizes(of), storages, binding, Options::default()).unwrap_err().to_string()
    };
    assert_eq!(go(&mut [f32s()], &[0], &[("n", 2)]), "the buffer `y`: it has no storage");
    assert_eq!(go(&mut [f32s()], &[0, 4], &[("n", 2)]), "the buffer `y`: there is no storage 4");
    assert_eq!(
        go(&mut [f32s(), Storage::unwritten(DType::F16, 9)], &[0, 1], &[("n", 2)]),
        "the buffer `y`: its elements are f32, those of its storage f16"
    );
    assert_eq!(go(&mut [f32s(), f32s()], &[0, 1], &[]), "the extent n has no value");
    assert_eq!(go(&mut [f32s(), f32s()], &[0, 1], &[("n", -1)]), "the extent n has no value");
}
