//! Threads of a block: arithmetic, masks, shared memory, barriers, shuffles.

use crate::block_support::*;
use crate::support::*;
use eva_ir::kernel::block::*;
use eva_ir::kernel::run::{Options, Storage};
use eva_ir::kernel::*;
use eva_ir::types::DType;

/// `c[i] = a[i] · 3 + b` where `a[i] > 0`, else `-1`; programs of 2 · 64 · 3 elements, each thread having 3 pairs.
fn elementwise() -> Raw {
    let mut k = Raw::blocks(2);
    let (a, c) = (k.buf(DType::Bf16, &["n"], Access::Read), k.buf(DType::F32, &["n"], Access::Write));
    k.grid("n", 384);
    let number = k.slots(Elem::I64, 1, |out| BlockInst::Number { out });
    let (thread, n) = (k.thread(), k.extent("n"));
    let (first, pair) = (k.with(Fn2::Mul, number, 384), k.with(Fn2::Mul, thread, 2));
    let (first, slots) = (k.zip(Fn2::Add, first, pair), k.table([0, 128, 256]));
    let index = k.zip(Fn2::Add, first, slots);
    let inside = k.zip(Fn2::Lt, index, n);
    let x = k.load(Space::Buf(a), index, 2, Some(inside));
    let (three, half, zero, one) =
        (k.floats(1, 1, 3.0), k.floats(1, 6, 0.5), k.floats(1, 1, 0.0), k.floats(1, 1, -1.0));
    let y = k.slots(Elem::F32, 6, |out| BlockInst::Fma { out, x, y: three, acc: half });
    let positive = k.zip(Fn2::Lt, zero, x);
    let y = k.emit(Elem::F32, 1, 6, |out| Inst::Select { out, cond: positive, x: y, y: one });
    // In another order and back.
    let odd = k.slots(Elem::F32, 3, |out| BlockInst::Pick { out, x: y, slots: vec![1, 3, 5] });
    let even = k.slots(Elem::F32, 3, |out| BlockInst::Pick { out, x: y, slots: vec![0, 2, 4] });
    let y = k.slots(Elem::F32, 6, |out| BlockInst::Join { out, parts: vec![odd, even] });
    let y = k.slots(Elem::F32, 6, |out| BlockInst::Pick { out, x: y, slots: vec![3, 0, 4, 1, 5, 2] });
    k.store(Space::Buf(c), index, y, Some(inside));
    k
}

#[test]
fn element_by_element_with_masks() {
    let k = elementwise();
    for n in [0, 2, 384, 386, 1010] {
        let a = Storage::new(DType::Bf16, numbers(n, 1));
        let storages = [a.clone(), Storage::unwritten(DType::F32, n)];
        let result = always(&k, &[("n", n as i64)], &storages, Options::default());
        let want = a.data.iter().map(|&x| if x > 0.0 { x * 3.0 + 0.5 } else { -1.0 });
        close(&result[1].data, &want.collect::<Vec<_>>(), 0.0);
        let stats = run_on(&k.0, &[("n", n as i64)], &mut storages.to_vec(), Options::default()).unwrap();
        assert_eq!(
            (stats.programs, stats.loaded[0], stats.stored[1]),
            (n.div_ceil(384) as u64, n as u64, n as u64)
        );
    }
    // A pair that crosses the end.
    let storages = [Storage::new(DType::Bf16, numbers(385, 1)), Storage::unwritten(DType::F32, 385)];
    never(&k, &[("n", 385)], &storages, &["element 385 of a, which has 385"]);
}

#[test]
fn elementwise_text() {
    insta::assert_snapshot!(elementwise().0);
}

#[test]
fn several_at_once_are_aligned() {
    let mut k = Raw::blocks(1);
    let a = k.buf(DType::F32, &["37"], Access::Read);
    let index = k.int(6);
    k.load(Space::Buf(a), index, 4, None);
    never(&k, &[], &[Storage::new(DType::F32, numbers(37, 1))], &["6 is not a multiple of 4"]);
}

#[test]
fn loops_and_conditions_of_threads() {
    // c[t] = Σ_{i<5} i · t, of threads whose number is a multiple of 3; nested in a condition on its own.
    let mut k = Raw::blocks(1);
    let c = k.buf(DType::I32, &["32"], Access::Write);
    let (thread, five, zero) = (k.thread(), k.int(5), k.int(0));
    let sum = k.repeat(five, &[zero], |k, i, sum| {
        let product = k.zip(Fn2::Mul, i, thread);
        vec![k.zip(Fn2::Add, sum[0], product)]
    })[0];
    let third = k.with(Fn2::Rem, thread, 3);
    let third = k.zip(Fn2::Eq, third, zero);
    let (body, ()) = k.body(|k| {
        let small = k.with(Fn2::Lt, thread, 20);
        let (inner, ()) = k.body(|k| k.store(Space::Buf(c), thread, sum, None));
        k.push(Inst::If { cond: small, body: inner });
    });
    k.push(Inst::If { cond: third, body });
    let result = always(&k, &[], &[Storage::new(DType::I32, vec![-1.0; 32])], Options::default());
    let want = (0..32).map(|t| if t % 3 == 0 && t < 20 { 10.0 * f64::from(t) } else { -1.0 });
    assert_eq!(result[0].data, want.collect::<Vec<_>>());
}

#[test]
fn loops_run_equally_often_in_all_threads() {
    let mut k = Raw::blocks(2);
    let trips = k.thread();
    k.repeat(trips, &[], |_, _, _| vec![]);
    never(&k, &[], &[], &["threads differ in how often a loop runs"]);
    // In each warp alike, but not in the block.
    let mut k = Raw::blocks(2);
    let thread = k.thread();
    let trips = k.with(Fn2::Div, thread, 32);
    k.repeat(trips, &[], |_, _, _| vec![]);
    never(&k, &[], &[], &["threads differ in how often a loop runs"]);
}

/// Each thread writes `value(thread)` to element `at(thread)`.
fn scattered(
    warps: usize,
    at: impl FnOnce(&mut Raw, Reg) -> Reg,
    value: impl FnOnce(&mut Raw, Reg) -> Reg,
) -> Raw {
    let mut k = Raw::blocks(warps);
    let c = k.buf(DType::I64, &["70"], Access::Write);
    let thread = k.thread();
    let (index, value) = (at(&mut k, thread), value(&mut k, thread));
    k.store(Space::Buf(c), index, value, None);
    k
}

#[test]
fn threads_that_write_the_same_element_agree() {
    let storages = [Storage::unwritten(DType::I64, 70)];
    let third = |k: &mut Raw, thread: Reg| k.with(Fn2::Div, thread, 3);
    let result = always(&scattered(2, third, third), &[], &storages, Options::default());
    assert_eq!(result[0].data[..22], (0..22).map(f64::from).collect::<Vec<_>>());
    for warps in [1, 2] {
        let fault = "is given different values by threads of a block";
        never(&scattered(warps, third, |_, thread| thread), &[], &storages, &[fault]);
    }
    // Blocks do not even write the same number.
    let mut k = scattered(2, third, third);
    k.grid("3", 1);
    never(&k, &[], &storages, &["is also touched by another program"]);
}

/// `c[j][i] = a[i][j]`, 6 × 32, by way of shared memory: warp `i` reads row `i`, and writes a sixth of the columns.
fn transposition(barrier: Option<usize>) -> Raw {
    let mut k = Raw::blocks(6);
    let a = k.buf(DType::F32, &["6", "32"], Access::Read);
    let c = k.buf(DType::F16, &["32", "6"], Access::Write);
    let tile = Space::Shared(k.shared("turned", DType::F16, [32, 7], 1, false));
    let thread = k.thread();
    let x = k.load(Space::Buf(a), thread, 1, None);
    let (row, col) = (k.with(Fn2::Div, thread, 32), k.with(Fn2::Rem, thread, 32));
    let at = k.with(Fn2::Mul, col, 7);
    let at = k.zip(Fn2::Add, at, row);
    k.store(tile, at, x, None);
    if let Some(warps) = barrier {
        k.barrier(3, warps);
    }
    let (row, col) = (k.with(Fn2::Div, thread, 6), k.with(Fn2::Rem, thread, 6));
    let at = k.with(Fn2::Mul, row, 7);
    let at = k.zip(Fn2::Add, at, col);
    let x = k.load(tile, at, 1, None);
    k.store(Space::Buf(c), thread, x, None);
    k
}

#[test]
fn shared_memory_is_seen_behind_a_barrier() {
    let a = numbers(192, 5);
    let storages = [Storage::new(DType::F32, a.clone()), Storage::unwritten(DType::F16, 192)];
    let result = always(&transposition(Some(6)), &[], &storages, Options::default());
    let turned = Storage::new(DType::F16, (0..192).map(|i| a[i % 6 * 32 + i / 6]));
    assert_eq!(result[1], turned);
    let missing = ["is read before it is written", "and no barrier is between"];
    never(&transposition(None), &[], &storages, &missing);
    // A barrier of each warp for itself does not do.
    never(&transposition(Some(1)), &[], &storages, &missing);
    // Nor one that a warp does not come to in time.
    assert_eq!(transposition(Some(5)).errors(), "barrier 3 is of 5 warps, but 6 come to it");
}

/// Threads of a warp exchange numbers through shared memory, twice over.
fn exchange(barriers: [bool; 3]) -> Raw {
    let mut k = Raw::blocks(1);
    let c = k.buf(DType::I64, &["32"], Access::Write);
    let tile = Space::Shared(k.shared("", DType::I64, [1, 32], 1, false));
    let (thread, last) = (k.thread(), k.int(31));
    let other = k.zip(Fn2::Sub, last, thread);
    let mut x = k.with(Fn2::Mul, thread, 10);
    for [before, after] in [[false, barriers[0]], [barriers[1], barriers[2]]] {
        x = k.with(Fn2::Add, x, 1);
        if before {
            k.barrier(0, 1);
        }
        k.store(tile, thread, x, None);
        if after {
            k.barrier(0, 1);
        }
        x = k.load(tile, other, 1, None);
    }
    k.store(Space::Buf(c), thread, x, None);
    k
}

#[test]
fn threads_of_a_warp_need_barriers_too() {
    let storages = [Storage::unwritten(DType::I64, 32)];
    let result = always(&exchange([true; 3]), &[], &storages, Options::default());
    assert_eq!(result[0].data, (0..32).map(|t| f64::from(t * 10 + 2)).collect::<Vec<_>>());
    for missing in 0..3 {
        let k = exchange([0, 1, 2].map(|i| i != missing));
        never(&k, &[], &storages, &["of #0 is touched by warp 0 too, and no barrier is between"]);
    }
}

#[test]
fn who_read_last_does_not_speak_for_others() {
    for barrier in [true, false] {
        let mut k = Raw::blocks(1);
        let tile = Space::Shared(k.shared("s", DType::I64, [1, 32], 1, false));
        let (thread, zero) = (k.thread(), k.int(0));
        k.store(tile, thread, thread, None);
        k.barrier(0, 1);
        k.load(tile, zero, 1, None);
        if barrier {
            k.barrier(0, 1);
        }
        let last = k.with(Fn2::Eq, thread, 31);
        k.store(tile, zero, thread, Some(last));
        if barrier {
            always(&k, &[], &[], Options::default());
        } else {
            never(&k, &[], &[], &["element 0 of s is touched by warp 0 too, and no barrier is between"]);
        }
    }
}

#[test]
fn shared_memory_has_borders() {
    let mut k = Raw::blocks(1);
    let tile = Space::Shared(k.shared("s", DType::F32, [3, 5], 2, false));
    let thread = k.thread();
    let x = k.floats(1, 1, 1.0);
    k.store(tile, thread, x, None);
    never(&k, &[], &[], &["element 30 of s, which has 30"]);
}

/// The largest of 32 numbers of each warp, by halves.
#[test]
fn shuffles_reduce() {
    let mut k = Raw::blocks(3);
    let a = k.buf(DType::F32, &["96", "2"], Access::Read);
    let c = k.buf(DType::F32, &["96", "2"], Access::Write);
    let thread = k.thread();
    let index = k.with(Fn2::Mul, thread, 2);
    let mut x = k.load(Space::Buf(a), index, 2, None);
    for xor in [16, 8, 4, 2, 1] {
        let other = k.slots(Elem::F32, 2, |out| BlockInst::Shuffle { out, x, xor });
        x = k.zip(Fn2::Max, x, other);
    }
    k.store(Space::Buf(c), index, x, None);
    let a = numbers(192, 3);
    let storages = [Storage::new(DType::F32, a.clone()), Storage::unwritten(DType::F32, 192)];
    let result = always(&k, &[], &storages, Options::default());
    let largest = |i: usize| (0..32).map(|t| a[i / 64 * 64 + t * 2 + i % 2]).fold(f64::MIN, f64::max);
    assert_eq!(result[1].data, (0..192).map(largest).collect::<Vec<_>>());
}

#[test]
fn rounding_is_that_of_the_memory() {
    // 1 + 2⁻¹² is not an f16, and 1 + 2⁻³⁰ no f32.
    for (dtype, f32, x, want) in [
        (DType::F16, false, 1.0 + 2f64.powi(-12), 1.0),
        (DType::F32, false, 1.0 + 2f64.powi(-30), 1.0 + 2f64.powi(-30)),
        (DType::F32, true, 1.0 + 2f64.powi(-30), 1.0),
        (DType::F8E4M3, false, 1.0625, 1.0),
    ] {
        let mut k = Raw::blocks(1);
        let c = k.buf(DType::F64, &["32"], Access::Write);
        let tile = Space::Shared(k.shared("s", dtype, [1, 32], 1, false));
        let (thread, x) = (k.thread(), k.floats(1, 1, x));
        k.store(tile, thread, x, None);
        let x = k.load(tile, thread, 1, None);
        k.store(Space::Buf(c), thread, x, None);
        let options = Options { f32, ..Options::default() };
        let result = always(&k, &[], &[Storage::unwritten(DType::F64, 32)], options);
        assert_eq!(result[0].data, [want; 32]);
    }
}

#[test]
fn blocks_share_programs_out() {
    // Element `p` becomes the number of the block that had program `p`.
    let mut k = Raw::blocks(1);
    let c = k.buf(DType::I64, &["n"], Access::Write);
    k.grid("n", 1);
    k.threads().launch = Launch::Persistent { per_multiprocessor: 1 };
    let number = k.slots(Elem::I64, 1, |out| BlockInst::Number { out });
    let launched = k.slots(Elem::I64, 1, |out| BlockInst::Launched { out });
    let n = k.extent("n");
    let rest = k.zip(Fn2::Sub, n, number);
    let rest = k.zip(Fn2::Add, rest, launched);
    let rest = k.with(Fn2::Sub, rest, 1);
    let trips = k.zip(Fn2::Div, rest, launched);
    k.repeat(trips, &[], |k, i, _| {
        let p = k.zip(Fn2::Mul, i, launched);
        let p = k.zip(Fn2::Add, p, number);
        k.store(Space::Buf(c), p, number, None);
        vec![]
    });
    for (n, blocks, want) in [(7, 3, 3), (2, 3, 2), (7, 1, 1), (5, 0, 1), (0, 3, 1)] {
        let storages = [Storage::unwritten(DType::I64, n)];
        let options = Options { blocks, ..Options::default() };
        let result = always(&k, &[("n", n as i64)], &storages, options);
        assert_eq!(result[0].data, (0..n).map(|p| (p % want) as f64).collect::<Vec<_>>());
    }
}
