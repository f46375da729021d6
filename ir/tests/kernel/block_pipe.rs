//! Roles, pipes and bulk copies: a product of matrices as GPUs like it, right and wrong.

use crate::block_support::*;
use crate::support::*;
use eva_ir::kernel::block::*;
use eva_ir::kernel::run::{Options, Storage};
use eva_ir::kernel::*;
use eva_ir::types::DType;

/// What is wrong with a kernel.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Wrong {
    Nothing,
    /// The consumer waits only after it has multiplied.
    WaitsLate,
    ReleasesNever,
    ReleasesTwice,
    /// The turn before, in the stage that is multiplied next.
    ReleasesOther,
    /// Before its product is finished.
    ReleasesEarly,
    AcquiresLate,
    AcquiresTwice,
    /// Copies go to the next turn's stage.
    CopiesAhead,
    /// Copies begin inside of 16 bytes.
    BeginsInside,
    /// The producer counts from one.
    CountsFromOne,
    /// The consumer skips turns.
    SkipsTurns,
    ConsumesOneMore,
    ConsumesOneLess,
    ReadsOtherStage,
    NoMmaWait,
    NoFence,
    NoBarrierBeforeStores,
    NoBarrierBehindStores,
    NoCopyOutWait,
    NoLastCopyOutWait,
    AllCopyOut,
    /// The copy of a result begins inside of 16 bytes.
    EndsInside,
}

/// A well-formed kernel with two roles and two stages.
pub fn two_roles() -> Raw {
    matmul(2, false, Wrong::Nothing)
}

/// `c = a · bᵀ` by blocks of 64 × 32, in steps of 64 terms: one role copies, the other multiplies and copies out.
fn matmul(stages: usize, persistent: bool, wrong: Wrong) -> Raw {
    let mut k = Raw::blocks(8);
    let a = k.buf(DType::Bf16, &["m", "8*k"], Access::Read);
    let b = k.buf(DType::Bf16, &["n", "8*k"], Access::Read);
    let c = k.buf(DType::F32, &["m", "4*w"], Access::Write);
    k.grid("m", 64);
    k.grid("4*w", 32);
    if persistent {
        k.threads().launch = Launch::Persistent { per_multiprocessor: 1 };
    }
    let left = k.shared("left", DType::Bf16, [64, 64], stages, true);
    let right = k.shared("right", DType::Bf16, [32, 64], stages, true);
    let result = k.shared("result", DType::F32, [64, 32], 1, true);
    let pipe = k.pipe("terms", &[left, right], 4);
    let maps = [k.map(a, 64, 64), k.map(b, 32, 64), k.map(c, 64, 32)];

    // How many steps and programs there are, and which ones this block has.
    let ceil = |k: &mut Raw, dim: &str, by: i64| {
        let n = k.extent(dim);
        let n = k.with(Fn2::Add, n, by - 1);
        k.with(Fn2::Div, n, by)
    };
    let (steps, rows, cols) = (ceil(&mut k, "8*k", 64), ceil(&mut k, "m", 64), ceil(&mut k, "4*w", 32));
    let number = k.slots(Elem::I64, 1, |out| BlockInst::Number { out });
    let launched = k.slots(Elem::I64, 1, |out| BlockInst::Launched { out });
    let programs = k.zip(Fn2::Mul, rows, cols);
    let rest = k.zip(Fn2::Sub, programs, number);
    let rest = k.zip(Fn2::Add, rest, launched);
    let rest = k.with(Fn2::Sub, rest, 1);
    let programs = k.zip(Fn2::Div, rest, launched);
    // Where program `i` of this block starts, and its first turn.
    let start = |k: &mut Raw, i: Reg| {
        let p = k.zip(Fn2::Mul, i, launched);
        let p = k.zip(Fn2::Add, p, number);
        let (row, col) = (k.zip(Fn2::Div, p, cols), k.zip(Fn2::Rem, p, cols));
        (k.with(Fn2::Mul, row, 64), k.with(Fn2::Mul, col, 32), k.zip(Fn2::Mul, i, steps))
    };

    let producer = k.role("producer", 4, true, |k| {
        k.repeat(programs, &[], |k, i, _| {
            let (row, col, first) = start(k, i);
            k.repeat(steps, &[], |k, j, _| {
                let mut turn = k.zip(Fn2::Add, first, j);
                if wrong == Wrong::CountsFromOne {
                    turn = k.with(Fn2::Add, turn, 1);
                }
                let ahead = k.with(Fn2::Add, turn, 1);
                let term = k.with(Fn2::Mul, j, if wrong == Wrong::BeginsInside { 63 } else { 64 });
                let copies = |k: &mut Raw| {
                    let turn = if wrong == Wrong::CopiesAhead { ahead } else { turn };
                    let copies = [(left, maps[0], row), (right, maps[1], col)];
                    for (tile, map, row) in copies {
                        k.block(BlockInst::Copy { pipe, turn, tile, map, at: vec![row, term] });
                    }
                };
                if wrong == Wrong::AcquiresLate {
                    copies(k);
                }
                k.block(BlockInst::Acquire { pipe, turn });
                if wrong == Wrong::AcquiresTwice {
                    k.block(BlockInst::Acquire { pipe, turn });
                }
                if wrong != Wrong::AcquiresLate {
                    copies(k);
                }
                vec![]
            });
            vec![]
        });
    });

    let consumer = k.role("consumer", 4, false, |k| {
        let (thread, zero, no) = (k.thread(), k.int(0), k.bools(1, 1, false));
        let leads =
            if wrong == Wrong::AllCopyOut { k.bools(1, 1, true) } else { k.zip(Fn2::Eq, thread, zero) };
        let consumed = match wrong {
            Wrong::ConsumesOneMore => k.with(Fn2::Add, steps, 1),
            Wrong::ConsumesOneLess => k.with(Fn2::Sub, steps, 1),
            _ => steps,
        };
        k.repeat(programs, &[], |k, i, _| {
            let (row, col, first) = start(k, i);
            let acc = k.floats(1, 16, f64::NAN);
            let mut sum = k.repeat(consumed, &[acc], |k, j, acc| {
                let mut turn = k.zip(Fn2::Add, first, j);
                if wrong == Wrong::SkipsTurns {
                    turn = k.zip(Fn2::Add, turn, j);
                }
                let next = k.with(Fn2::Add, turn, 1);
                if wrong != Wrong::WaitsLate {
                    k.block(BlockInst::Wait { pipe, turn });
                }
                let begun = k.zip(Fn2::Lt, zero, j);
                let read = if wrong == Wrong::ReadsOtherStage { next } else { turn };
                let a = MmaLeft::Shared { tile: operand(left, read, false, 0), row: zero };
                let (b, acc, keep) = (operand(right, read, false, 0), acc[0], Keep::When(begun));
                let mma = |out| BlockInst::Mma { out, acc, keep, a, b, b_row: zero, n: 32, k: 64 };
                let mut sum = k.slots(Elem::F32, 16, mma);
                if wrong == Wrong::WaitsLate {
                    k.block(BlockInst::Wait { pipe, turn });
                }
                let release = |k: &mut Raw| {
                    let turn = if wrong == Wrong::ReleasesOther { next } else { turn };
                    let when = (wrong == Wrong::ReleasesNever).then_some(no);
                    k.block(BlockInst::Release { pipe, turn, when });
                };
                if wrong == Wrong::ReleasesEarly {
                    release(k);
                }
                let pending = usize::from(wrong == Wrong::NoMmaWait);
                sum = k.mma_wait(pending, sum);
                if wrong != Wrong::ReleasesEarly {
                    release(k);
                }
                if wrong == Wrong::ReleasesTwice {
                    release(k);
                }
                vec![sum]
            })[0];
            if wrong == Wrong::NoMmaWait {
                sum = k.zip(Fn2::Add, sum, sum);
            }
            // The last program's result must have left before this one's comes.
            if wrong != Wrong::NoCopyOutWait {
                k.block(BlockInst::CopyOutWait { pending: 0 });
            }
            if wrong != Wrong::NoBarrierBeforeStores {
                k.barrier(1, 4);
            }
            let base = base(k, thread, 32);
            let slots = k.table(product_slots(32, 32).step_by(2));
            let at = k.zip(Fn2::Add, base, slots);
            k.store(Space::Shared(result), at, sum, None);
            if wrong != Wrong::NoFence {
                k.block(BlockInst::FenceAsync);
            }
            if wrong != Wrong::NoBarrierBehindStores {
                k.barrier(1, 4);
            }
            let col = if wrong == Wrong::EndsInside { k.with(Fn2::Add, col, 1) } else { col };
            k.block(BlockInst::CopyOut {
                map: maps[2],
                tile: result,
                turn: i,
                at: vec![row, col],
                when: leads,
            });
            vec![]
        });
        if wrong != Wrong::NoLastCopyOutWait {
            k.block(BlockInst::CopyOutWait { pending: 0 });
        }
    });
    k.block(BlockInst::Roles { roles: vec![producer, consumer] });
    k
}

/// Extents, and matrices for them.
type Case = ([(&'static str, i64); 4], Vec<Storage>);

fn case(m: usize, n: usize, terms: usize) -> Case {
    let sizes = [("m", m as i64), ("n", n as i64), ("k", terms as i64 / 8), ("w", n as i64 / 4)];
    let storages = vec![
        Storage::new(DType::Bf16, numbers(m * terms, 1)),
        Storage::new(DType::Bf16, numbers(n * terms, 2)),
        Storage::unwritten(DType::F32, m * n),
    ];
    (sizes, storages)
}

/// Three and a part of a step, and `2 · 3` programs with ragged ends.
fn ragged() -> Case {
    case(100, 76, 208)
}

#[test]
fn roles_work_hand_in_hand() {
    for (m, n, terms) in [(100, 76, 208), (64, 32, 64), (7, 4, 8), (65, 100, 320)] {
        let (sizes, storages) = case(m, n, terms);
        let (a, b) = (&storages[0].data, &storages[1].data);
        let item = |i: usize| (0..terms).map(|t| a[i / n * terms + t] * b[i % n * terms + t]).sum::<f64>();
        let want: Vec<f64> = (0..m * n).map(item).collect();
        for (stages, persistent, blocks) in [(1, true, 1), (2, true, 3), (3, true, 2), (4, false, 3)] {
            let options = Options { blocks, ..Options::default() };
            let k = matmul(stages, persistent, Wrong::Nothing);
            let result = always(&k, &sizes, &storages, options);
            close(&result[2].data, &want, 1e-12);
        }
    }
    let (sizes, storages) = case(0, 32, 64);
    always(&matmul(2, true, Wrong::Nothing), &sizes, &storages, Options::default());
}

#[test]
fn roles_text() {
    insta::assert_snapshot!(matmul(3, true, Wrong::Nothing).0);
}

#[test]
fn copies_are_counted() {
    let (sizes, mut storages) = ragged();
    let stats =
        run_on(&matmul(2, true, Wrong::Nothing).0, &sizes, &mut storages, Options::default()).unwrap();
    // Each element of `a` for three programs, of `b` for two.
    assert_eq!((stats.programs, stats.loaded[0], stats.loaded[1]), (6, 3 * 100 * 208, 2 * 76 * 208));
    assert_eq!(stats.stored, [0, 0, 100 * 76]);
}

/// What each mistake is found by, with two stages. Blocks have one program, or two one after the other.
fn finds(wrong: Wrong, persistent: bool, parts: &[&str]) {
    let (sizes, storages) = ragged();
    never(&matmul(2, persistent, wrong), &sizes, &storages, parts);
}

const HELD: &str = "is not between a wait and a release of this warp";
const STUCK: &str = "nobody can go on: ";

#[test]
fn what_was_not_waited_for_is_not_read() {
    finds(Wrong::WaitsLate, false, &[HELD]);
    finds(Wrong::ReadsOtherStage, false, &[HELD]);
}

#[test]
fn turns_are_released_once() {
    finds(Wrong::ReleasesNever, false, &[STUCK]);
    let mine = "this warp has not waited for it, or has released it";
    finds(Wrong::ReleasesTwice, false, &[mine]);
    finds(Wrong::ReleasesOther, false, &[mine]);
    finds(Wrong::ReleasesEarly, false, &["is still being read by a product or a bulk copy"]);
}

#[test]
fn turns_are_acquired_once_and_in_order() {
    finds(Wrong::AcquiresLate, false, &["turn 0: its stage has not been acquired"]);
    finds(Wrong::AcquiresTwice, false, &["turn 0: 1 is to be acquired next"]);
    finds(Wrong::CopiesAhead, false, &["turn 1: its stage has not been acquired"]);
    finds(Wrong::CountsFromOne, false, &["turn 1: 0 is to be acquired next"]);
}

#[test]
fn every_turn_is_waited_for() {
    finds(Wrong::SkipsTurns, false, &["turn 2: 1 is to be waited for next"]);
    finds(Wrong::ConsumesOneMore, false, &[STUCK]);
    finds(Wrong::ConsumesOneLess, false, &["a bulk copy into shared memory may be under way at the end"]);
    // The next program starts where the last one should have ended.
    finds(Wrong::ConsumesOneLess, true, &["turn 4: 3 is to be waited for next"]);
}

#[test]
fn deadlocks_say_where_everybody_waits() {
    let (sizes, mut storages) = ragged();
    let k = matmul(2, false, Wrong::ReleasesNever);
    let error = run_on(&k.0, &sizes, &mut storages, Options::default()).unwrap_err().to_string();
    insta::assert_snapshot!(error);
}

#[test]
fn bulk_copies_begin_at_multiples_of_16_bytes() {
    finds(Wrong::BeginsInside, false, &["a bulk copy begins at column 63, inside of 16 bytes"]);
    let columns = [1, 33, 65].map(|col| format!("a bulk copy begins at column {col}, inside of 16 bytes"));
    finds(Wrong::EndsInside, false, &columns.each_ref().map(|said| &said[..]));
}

#[test]
fn products_are_waited_for() {
    finds(
        Wrong::NoMmaWait,
        false,
        &["is still being read by a product", "a product is read that may be under way"],
    );
}

#[test]
fn results_leave_after_they_have_come() {
    finds(Wrong::NoFence, false, &["was written and not fenced before the last barrier"]);
    finds(
        Wrong::NoBarrierBehindStores,
        false,
        &["is read before it is written", "and no barrier is between"],
    );
    let early = ["result is still being read by a product or a bulk copy", "and no barrier is between"];
    finds(Wrong::NoBarrierBeforeStores, true, &early);
    finds(Wrong::NoCopyOutWait, true, &early);
    finds(Wrong::NoLastCopyOutWait, false, &["a bulk copy out of shared memory may be under way at the end"]);
    finds(Wrong::AllCopyOut, false, &["threads differ in who starts a bulk copy: several do"]);
    // What nothing follows needs no barrier before it.
    let (sizes, storages) = ragged();
    always(&matmul(2, false, Wrong::NoBarrierBeforeStores), &sizes, &storages, Options::default());
}
