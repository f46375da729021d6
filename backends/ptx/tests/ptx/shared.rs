//! Shared memory, barriers and shuffles.

use crate::build::Build;
use crate::gate::{count, pass};
use eva_ir::dim::Dim;
use eva_ir::kernel::block::BlockInst;
use eva_ir::kernel::{Access, Elem, Fn2, Space};
use eva_ir::types::DType;
use eva_ptx::shared_bytes;

#[test]
fn numbers_go_through_every_type_of_shared_memory() {
    use DType::*;
    for dtype in [F32, Bf16, F16, F8E4M3, F8E5M2, I64] {
        for (v, swizzle) in [(1usize, false), (2, true)] {
            for masked in [false, true] {
                let name = format!("through_{dtype}_{v}{}", if masked { "_masked" } else { "" });
                let mut b = Build::new(&name, 3);
                let buffer = if dtype == I64 { I64 } else { F32 };
                let n = [Dim::sym("n")];
                let x = b.buf("x", buffer, Access::Read, &n);
                let out = b.buf("out", buffer, Access::Write, &n);
                let cols = 256 / dtype.bytes() as usize;
                let tile = b.shared(dtype, [3, 24, cols], swizzle);
                let thread = b.thread();
                let index = b.by(Fn2::Mul, thread, v as i64);
                let end = b.extent(&n[0]);
                let mask = masked.then(|| b.zip(Fn2::Lt, index, end));
                let value = b.load(Space::Buf(x), index, v, None);
                b.store(Space::Shared(tile), index, value, mask);
                b.barrier(0, 3);
                let other = b.by(Fn2::Rem, index, 96);
                let value = b.load(Space::Shared(tile), other, v, mask);
                b.store(Space::Buf(out), index, value, None);
                let kernel = b.finish();
                assert_eq!(shared_bytes(&kernel), 3 * 24 * 256);
                let (ptx, _) = pass(&kernel);
                let has = |word| count(&ptx.text, word);
                assert_eq!((has("ld.shared"), has("st.shared")), (1, 1), "{}", ptx.text);
                assert_eq!(has("bar.sync") + has("barrier.cta.sync.aligned"), 1, "{}", ptx.text);
            }
        }
    }
}

#[test]
fn all_threads_of_a_warp_sum() {
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
    b.store(Space::Buf(out), index, sum, None);
    let (ptx, _) = pass(&b.finish());
    assert_eq!(count(&ptx.text, "shfl.sync.bfly.b32"), 5 + 2 + 1, "{}", ptx.text);
}

#[test]
fn a_barrier_of_one_warp_is_within_each_warp() {
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
    let (ptx, _) = pass(&b.finish());
    assert_eq!(
        (count(&ptx.text, "bar.warp.sync"), count(&ptx.text, "fence.proxy.async")),
        (1, 1),
        "{}",
        ptx.text
    );
    assert_eq!(count(&ptx.text, "bar.sync"), 0, "{}", ptx.text);
}

/// The address in a swizzled tile is computed in 32 bits, with shifts and masks alone where its sizes are powers of two.
#[test]
fn swizzled_addresses_are_cheap() {
    let mut b = Build::new("swizzled", 4);
    let n = [Dim::from(128 * 64)];
    let out = b.buf("out", DType::F32, Access::Write, &n);
    let tile = b.shared(DType::Bf16, [2, 64, 128], true);
    let thread = b.thread();
    let at = b.by(Fn2::Mul, thread, 8);
    let eight = b.float(1.5, 8);
    b.store(Space::Shared(tile), at, eight, None);
    b.barrier(1, 4);
    let other = b.by(Fn2::Mul, thread, 128);
    let value = b.load(Space::Shared(tile), other, 8, None);
    let first = b.pick(value, &[0, 1, 2, 3]);
    b.store(Space::Buf(out), at, first, None);
    assert_eq!(b.ty(first).elem, Elem::F32);
    let (ptx, _) = pass(&b.finish());
    let has = |word| count(&ptx.text, word);
    assert_eq!((has("div."), has("rem."), has("mul.hi")), (0, 0, 0), "{}", ptx.text);
    assert_eq!((has("st.shared.v4.b32"), has("ld.shared.v4.b32")), (1, 1), "{}", ptx.text);
}
