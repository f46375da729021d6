//! Shared memory, barriers and shuffles.

use crate::build::Build;
use crate::gate::{count, pass};
use eva_ir::dim::Dim;
use eva_ir::kernel::block::BlockInst;
use eva_ir::kernel::{Access, Elem, Fn2, Kernel, Space};
use eva_ir::types::DType;
use eva_ptx::shared_bytes;

/// What shared memory holds.
pub const TYPES: [DType; 6] = [DType::F32, DType::Bf16, DType::F16, DType::F8E4M3, DType::F8E5M2, DType::I64];

/// A buffer's numbers, by way of shared memory: as far as there is a mask, those below `n`.
pub fn through(dtype: DType, v: usize, swizzle: bool, masked: bool) -> Kernel {
    let mut b = Build::new(&format!("through_{dtype}_{v}{}", if masked { "_masked" } else { "" }), 3);
    let buffer = if dtype == DType::I64 { DType::I64 } else { DType::F32 };
    let n = [Dim::sym("n")];
    let x = b.buf("x", buffer, Access::Read, &n);
    let out = b.buf("out", buffer, Access::Write, &n);
    let tile = b.shared(dtype, [3, 24, 256 / dtype.bytes() as usize], swizzle);
    let thread = b.thread();
    let index = b.by(Fn2::Mul, thread, v as i64);
    let end = b.extent(&n[0]);
    let end = b.by(Fn2::Sub, end, 16);
    let mask = masked.then(|| b.zip(Fn2::Lt, index, end));
    let value = b.load(Space::Buf(x), index, v, None);
    // The last elements of the second stage, and the first of the third.
    let first = b.int(2 * 24 * 256 / dtype.bytes() - 32);
    let at = b.zip(Fn2::Add, index, first);
    b.store(Space::Shared(tile), at, value, mask);
    b.barrier(0, 3);
    // Those of the thread's opposite.
    let last = b.int(95 * v as i64);
    let other = b.zip(Fn2::Sub, last, index);
    let mask = masked.then(|| b.zip(Fn2::Lt, other, end));
    let at = b.zip(Fn2::Add, other, first);
    let value = b.load(Space::Shared(tile), at, v, mask);
    b.store(Space::Buf(out), index, value, None);
    b.finish()
}

#[test]
fn numbers_go_through_every_type_of_shared_memory() {
    for dtype in TYPES {
        for (v, swizzle) in [(1usize, false), (2, true)] {
            for masked in [false, true] {
                let kernel = through(dtype, v, swizzle, masked);
                assert_eq!(shared_bytes(&kernel), 3 * 24 * 256);
                let (ptx, _) = pass(&kernel);
                let has = |word| count(&ptx.text, word);
                assert_eq!((has("ld.shared"), has("st.shared")), (1, 1), "{}", ptx.text);
                assert_eq!(has("bar.sync"), 1, "{}", ptx.text);
            }
        }
    }
}

/// The sums of each warp's numbers, which it puts where other threads are.
pub fn warp_sum() -> Kernel {
    let mut b = Build::new("warp_sum", 2);
    let n = [Dim::from(64)];
    let x = b.buf("x", DType::F32, Access::Read, &n);
    let out = b.buf("out", DType::F32, Access::Write, &n);
    let thread = b.thread();
    let mut sum = b.load(Space::Buf(x), thread, 1, None);
    for xor in [16, 8, 4, 2, 1] {
        let other = b.shuffle(sum, xor);
        sum = b.zip(Fn2::Add, sum, other);
    }
    // Integers and truth values too.
    let neighbour = b.shuffle(thread, 3);
    let less = b.zip(Fn2::Lt, thread, neighbour);
    let theirs = b.shuffle(less, 5);
    let index = b.select(theirs, neighbour, thread);
    // Four threads have the sum for the same place; it is the same.
    b.store(Space::Buf(out), index, sum, None);
    b.finish()
}

#[test]
fn all_threads_of_a_warp_sum() {
    let (ptx, _) = pass(&warp_sum());
    assert_eq!(count(&ptx.text, "shfl.sync.bfly.b32"), 5 + 2 + 1, "{}", ptx.text);
}

/// Each thread's number from its neighbour in the warp, by way of shared memory.
pub fn within_warps() -> Kernel {
    let mut b = Build::new("warps", 4);
    let n = [Dim::from(128)];
    let out = b.buf("out", DType::I64, Access::Write, &n);
    let tile = b.shared(DType::I64, [1, 4, 32], false);
    let thread = b.thread();
    b.store(Space::Shared(tile), thread, thread, None);
    b.barrier(0, 1);
    b.inst(BlockInst::FenceAsync);
    let one = b.int(1);
    let row = b.by(Fn2::Div, thread, 32);
    let first = b.by(Fn2::Mul, row, 32);
    let next = b.zip(Fn2::Add, thread, one);
    let lane = b.by(Fn2::Rem, next, 32);
    let other = b.zip(Fn2::Add, first, lane);
    let value = b.load(Space::Shared(tile), other, 1, None);
    b.store(Space::Buf(out), thread, value, None);
    b.finish()
}

#[test]
fn a_barrier_of_one_warp_is_within_each_warp() {
    let (ptx, _) = pass(&within_warps());
    assert_eq!(
        (count(&ptx.text, "bar.warp.sync"), count(&ptx.text, "fence.proxy.async")),
        (1, 1),
        "{}",
        ptx.text
    );
    assert_eq!(count(&ptx.text, "bar.sync"), 0, "{}", ptx.text);
}

/// Eight numbers a thread along rows of a swizzled tile, then eight from elsewhere.
pub fn swizzled() -> Kernel {
    let mut b = Build::new("swizzled", 4);
    let n = [Dim::from(128 * 64)];
    let out = b.buf("out", DType::F32, Access::Write, &n);
    let tile = b.shared(DType::Bf16, [2, 64, 128], true);
    let thread = b.thread();
    let at = b.by(Fn2::Mul, thread, 8);
    let numbers = b.slots(&[3, 1, 4, 1, 5, 9, 2, 6]);
    let numbers = b.zip(Fn2::Add, numbers, thread);
    let eight = b.cast(numbers, Elem::F32);
    b.store(Space::Shared(tile), at, eight, None);
    b.barrier(1, 4);
    let last = b.int(127 * 8);
    let other = b.zip(Fn2::Sub, last, at);
    let value = b.load(Space::Shared(tile), other, 8, None);
    let first = b.pick(value, &[0, 1, 2, 3]);
    b.store(Space::Buf(out), at, first, None);
    b.finish()
}

#[test]
fn addresses_where_sizes_are_powers_of_two_are_shifts_and_masks() {
    let (ptx, _) = pass(&swizzled());
    let has = |word| count(&ptx.text, word);
    assert_eq!((has("div."), has("rem."), has("mul.hi")), (0, 0, 0), "{}", ptx.text);
    assert_eq!((has("st.shared.v4.b32"), has("ld.shared.v4.b32")), (1, 1), "{}", ptx.text);
}
