//! Stages of pipes, as threads read and write them by themselves.

use crate::block_support::*;
use crate::support::*;
use eva_ir::entity::Entity;
use eva_ir::kernel::block::*;
use eva_ir::kernel::run::{Options, Storage};
use eva_ir::kernel::*;
use eva_ir::types::DType;

/// What consumers do in each turn: they wait, double what is in the stage, show it to each other, and write the
/// element of another thread to a buffer, its sign changed.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Does {
    AsItShould,
    /// It waits again for what it has.
    WaitsTwice,
    ReadsBehindRelease,
    WritesBehindRelease,
    NoFence,
    NoBarrier,
    /// Releases where its thread's number is even.
    ReleasesInPart,
    /// The producer copies one tile twice, the other one never: as many as there should be.
    CopiesTwice,
    /// The producer reads the stage.
    ProducerReads,
}

const TURNS: usize = 5;

/// A well-formed kernel whose consumers write their stages.
pub fn all_stages() -> Raw {
    stages(Does::AsItShould)
}

/// `c[t, i] = -2 · a[t, 127 - i]`: 8 × 16 of `a` at a time, with a second tile that nobody needs.
fn stages(does: Does) -> Raw {
    let mut k = Raw::blocks(8);
    let a = k.buf(DType::F32, &["40", "32"], Access::Read);
    let c = k.buf(DType::F32, &["5", "256"], Access::Write);
    let tile = k.shared("numbers", DType::F32, [8, 32], 3, true);
    let unused = k.shared("unused", DType::F32, [8, 32], 3, true);
    let pipe = k.pipe("turns", &[tile, unused], 4);
    let map = k.map(a, 8, 32);
    let (turns, zero) = (k.int(TURNS as i64), k.int(0));
    let shared = Space::Shared(tile);
    let producer = k.role("producer", 4, true, |k| {
        k.repeat(turns, &[], |k, turn, _| {
            let row = k.with(Fn2::Mul, turn, 8);
            k.block(BlockInst::Acquire { pipe, turn });
            k.block(BlockInst::Copy { pipe, turn, tile, map, at: vec![row, zero] });
            let other = if does == Does::CopiesTwice { tile } else { unused };
            k.block(BlockInst::Copy { pipe, turn, tile: other, map, at: vec![row, zero] });
            if does == Does::CopiesTwice {
                k.block(BlockInst::Copy { pipe, turn, tile: unused, map, at: vec![row, zero] });
            }
            if does == Does::ProducerReads {
                k.load(shared, zero, 1, None);
            }
            vec![]
        });
    });
    let consumer = k.role("consumer", 4, false, |k| {
        let thread = k.thread();
        let mine = k.with(Fn2::Mul, thread, 2);
        let last = k.int(254);
        let other = k.zip(Fn2::Sub, last, mine);
        k.repeat(turns, &[], |k, turn, _| {
            let stage = k.with(Fn2::Rem, turn, 3);
            let first = k.with(Fn2::Mul, stage, 256);
            let (mine, other) = (k.zip(Fn2::Add, first, mine), k.zip(Fn2::Add, first, other));
            k.block(BlockInst::Wait { pipe, turn });
            let x = k.load(shared, mine, 2, None);
            if does == Does::WaitsTwice {
                k.block(BlockInst::Wait { pipe, turn });
            }
            let x = k.zip(Fn2::Add, x, x);
            k.store(shared, mine, x, None);
            if does != Does::NoFence {
                k.block(BlockInst::FenceAsync);
            }
            if does != Does::NoBarrier {
                k.barrier(1, 4);
            }
            let y = k.load(shared, other, 2, None);
            let two = k.with(Fn2::Rem, thread, 2);
            let when = (does == Does::ReleasesInPart).then(|| k.zip(Fn2::Eq, two, zero));
            k.block(BlockInst::Release { pipe, turn, when });
            if does == Does::ReadsBehindRelease {
                k.load(shared, mine, 2, None);
            }
            if does == Does::WritesBehindRelease {
                k.store(shared, mine, x, None);
            }
            let y = k.emit(Elem::F32, 1, 2, |out| Inst::Map { out, f: Fn1::Neg, x: y });
            let y = k.slots(Elem::F32, 2, |out| BlockInst::Pick { out, x: y, slots: vec![1, 0] });
            let to = k.with(Fn2::Mul, turn, 256);
            let own = k.with(Fn2::Mul, thread, 2);
            let to = k.zip(Fn2::Add, to, own);
            k.store(Space::Buf(c), to, y, None);
            vec![]
        });
    });
    k.block(BlockInst::Roles { roles: vec![producer, consumer] });
    k
}

fn storages() -> Vec<Storage> {
    vec![Storage::new(DType::F32, numbers(TURNS * 256, 9)), Storage::unwritten(DType::F32, TURNS * 256)]
}

#[test]
fn stages_are_read_and_written_between_wait_and_release() {
    let storages = storages();
    let want: Vec<f64> =
        (0..TURNS * 256).map(|i| -2.0 * storages[0].data[i / 256 * 256 + 255 - i % 256]).collect();
    for does in [Does::AsItShould, Does::WaitsTwice] {
        let result = always(&stages(does), &[], &storages, Options::default());
        assert_eq!(result[1].data, want);
    }
}

#[test]
fn stages_are_left_alone_otherwise() {
    let fails = |does, part: &str| never(&stages(does), &[], &storages(), &[part]);
    let held = "of numbers is not between a wait and a release of this warp";
    fails(Does::ReadsBehindRelease, held);
    fails(Does::WritesBehindRelease, held);
    fails(Does::ProducerReads, held);
    fails(Does::NoFence, "element 0 of numbers was written and not fenced before the last barrier");
    fails(Does::NoBarrier, "and no barrier is between");
    fails(Does::ReleasesInPart, "threads differ in whether a turn is released");
    fails(Does::CopiesTwice, "turn 0: the tile is filled already");
}

#[test]
fn boxes_that_start_outside_are_zero_there() {
    // A box from row -3 and column 24 of 10 × 28: zeros above, behind and below.
    let mut k = Raw::blocks(8);
    let a = k.buf(DType::F32, &["10", "28"], Access::Read);
    let c = k.buf(DType::F32, &["512"], Access::Write);
    let tile = k.shared("t", DType::F32, [16, 32], 1, true);
    let pipe = k.pipe("p", &[tile], 4);
    let map = k.map(a, 16, 32);
    let (turn, row, col) = (k.int(0), k.int(-3), k.int(24));
    let producer = k.role("producer", 4, true, |k| {
        k.block(BlockInst::Acquire { pipe, turn });
        k.block(BlockInst::Copy { pipe, turn, tile, map, at: vec![row, col] });
    });
    let consumer = k.role("consumer", 4, false, |k| {
        let thread = k.thread();
        let at = k.with(Fn2::Mul, thread, 4);
        k.block(BlockInst::Wait { pipe, turn });
        let x = k.load(Space::Shared(tile), at, 4, None);
        k.block(BlockInst::Release { pipe, turn, when: None });
        k.store(Space::Buf(c), at, x, None);
    });
    k.block(BlockInst::Roles { roles: vec![producer, consumer] });
    let a = numbers(280, 4);
    let storages = [Storage::new(DType::F32, a.clone()), Storage::unwritten(DType::F32, 512)];
    let result = always(&k, &[], &storages, Options::default());
    let item = |i: usize| match (i / 32, i % 32 + 24) {
        (row, col) if (3..13).contains(&row) && col < 28 => a[(row - 3) * 28 + col],
        _ => 0.0,
    };
    assert_eq!(result[1].data, (0..512).map(item).collect::<Vec<_>>());
}

#[test]
fn columns_may_run_along_any_axis_with_stride_one() {
    // The boxes' rows run along the first axis of three, the index of the middle one is fixed.
    let mut k = Raw::blocks(8);
    let a = k.buf(DType::F32, &["8", "3", "32"], Access::Read);
    let c = k.buf(DType::F32, &["256"], Access::Write);
    let tile = k.shared("t", DType::F32, [8, 32], 1, true);
    let pipe = k.pipe("p", &[tile], 4);
    let map = k.map(a, 8, 32);
    k.threads().maps[Map::new(0)].axes = [0, 2];
    let (turn, middle) = (k.int(0), k.int(2));
    let producer = k.role("producer", 4, true, |k| {
        k.block(BlockInst::Acquire { pipe, turn });
        k.block(BlockInst::Copy { pipe, turn, tile, map, at: vec![turn, middle, turn] });
    });
    let consumer = k.role("consumer", 4, false, |k| {
        let thread = k.thread();
        let at = k.with(Fn2::Mul, thread, 2);
        k.block(BlockInst::Wait { pipe, turn });
        let x = k.load(Space::Shared(tile), at, 2, None);
        k.block(BlockInst::Release { pipe, turn, when: None });
        k.store(Space::Buf(c), at, x, None);
    });
    k.block(BlockInst::Roles { roles: vec![producer, consumer] });
    let a = numbers(768, 4);
    let storages = [Storage::new(DType::F32, a.clone()), Storage::unwritten(DType::F32, 256)];
    let result = always(&k, &[], &storages, Options::default());
    assert_eq!(result[1].data, (0..256).map(|i| a[i / 32 * 96 + 64 + i % 32]).collect::<Vec<_>>());
}
