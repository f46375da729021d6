//! What the verifier asks of kernels in the block phase.

use crate::block_pipe::two_roles;
use crate::support::*;
use eva_ir::dim::Dim;
use eva_ir::entity::{Arena, Entity};
use eva_ir::kernel::block::*;
use eva_ir::kernel::*;
use eva_ir::types::DType;

/// What the verifier says of a kernel with two roles after `change`.
fn changed<T>(change: impl FnOnce(&mut Raw) -> T) -> String {
    let mut k = two_roles();
    change(&mut k);
    k.errors()
}

/// What it says first, without the instruction.
pub fn first(k: &Raw) -> String {
    match verify::verify(&k.0) {
        Ok(()) => String::new(),
        Err(errors) => errors[0].split_once("`: ").map_or(errors[0].clone(), |(_, why)| why.into()),
    }
}

/// A kernel of a block of `warps` warps that `write` has written.
pub fn written<T>(warps: usize, write: impl FnOnce(&mut Raw) -> T) -> String {
    let mut k = Raw::blocks(warps);
    write(&mut k);
    first(&k)
}

fn roles(k: &mut Raw) -> &mut Vec<Role> {
    match k.0.body.last_mut() {
        Some(Inst::Block(BlockInst::Roles { roles })) => roles,
        other => panic!("{other:?}"),
    }
}

/// The first instruction of a body, and of the bodies in it, that `is` is true of.
fn find<'k>(body: &'k mut [Inst], is: &dyn Fn(&BlockInst) -> bool) -> Option<&'k mut BlockInst> {
    body.iter_mut().find_map(|inst| match inst {
        Inst::For { body, .. } => find(body, is),
        Inst::Block(BlockInst::Roles { roles }) => roles.iter_mut().find_map(|role| find(&mut role.body, is)),
        Inst::Block(inst) if is(inst) => Some(inst),
        _ => None,
    })
}

/// The kernel with two roles, with one of its instructions changed.
pub fn inst(is: impl Fn(&BlockInst) -> bool, change: impl FnOnce(&mut BlockInst)) -> String {
    let mut k = two_roles();
    change(find(&mut k.0.body, &is).expect("there is such an instruction"));
    first(&k)
}

/// An item changed.
fn set<K: Entity, V: Clone>(arena: &mut Arena<K, V>, i: usize, change: impl FnOnce(&mut V)) {
    change(&mut arena[K::new(i)]);
}

#[test]
fn blocks_belong_to_the_block_phase() {
    two_roles().is_fine();
    assert_eq!(
        changed(|k| k.0.block = None).split("; ").next(),
        Some("the kernel says nothing of its threads")
    );
    assert!(changed(|k| k.0.phase = Phase::Lane).starts_with("threads are there before the block phase; "));
    let scratch = |k: &mut Raw| k.scratch(Elem::F32, 3);
    assert_eq!(changed(scratch), "the private memory &0 is there in the block phase");
}

#[test]
fn there_is_nothing_of_other_phases() {
    let not = "is not an instruction of the block phase";
    let program = |k: &mut Raw| {
        k.grid("3", 1);
        k.emit(Elem::I64, 1, 1, |out| Inst::Program { out, axis: 0 })
    };
    assert_eq!(written(1, program), not);
    assert_eq!(written(1, |k| k.emit(Elem::I64, 1, 3, |out| Inst::Iota { out, axis: 1 })), not);
    let vload = |k: &mut Raw| {
        let (a, index) = (k.buf(DType::F32, &["7"], Access::Read), k.int(0));
        let from = Mem { space: Space::Buf(a), index };
        k.emit(Elem::F32, 1, 1, |out| Inst::VLoad { out, from })
    };
    assert_eq!(written(1, vload), not);
    let across = |k: &mut Raw| {
        let x = k.floats(1, 4, 1.0);
        k.emit(Elem::F32, 1, 1, |out| Inst::Across { out, f: Fn2::Add, x })
    };
    assert_eq!(written(1, across), not);
    let mut k = Raw::new(Phase::Lane);
    k.thread();
    assert_eq!(k.errors(), "`%0 = thread`: is not an instruction of the lane phase");
}

#[test]
fn registers_are_one_row_of_slots() {
    for (rows, cols, fine) in [(1, 1, true), (1, 512, true), (1, 513, false), (2, 3, false)] {
        for elem in [Elem::F32, Elem::Bool] {
            let mut k = Raw::blocks(1);
            let value = if elem == Elem::F32 { Const::F(0.5) } else { Const::B(true) };
            k.emit(elem, rows, cols, |out| Inst::Const { out, value });
            assert_eq!(verify::verify(&k.0).is_ok(), fine, "{rows} x {cols}");
        }
    }
    let error = written(1, |k| k.floats(1, 513, 0.5));
    assert_eq!(error, "%0 is f32<1x513>, not one row of at most 512 slots");
}

#[test]
fn slots_are_there_and_stretch() {
    let pick = |k: &mut Raw| {
        let x = k.floats(1, 3, 0.5);
        k.slots(Elem::F32, 2, |out| BlockInst::Pick { out, x, slots: vec![2, 3] })
    };
    assert_eq!(written(1, pick), "f32<1x3> has no slot 3");
    let join = |k: &mut Raw| {
        let (x, y) = (k.floats(1, 3, 0.5), k.int(1));
        k.slots(Elem::F32, 4, |out| BlockInst::Join { out, parts: vec![x, y] })
    };
    assert_eq!(written(1, join), "is for f32, not i64");
    let join = |k: &mut Raw| {
        let x = k.floats(1, 3, 0.5);
        k.slots(Elem::F32, 5, |out| BlockInst::Join { out, parts: vec![x, x] })
    };
    assert_eq!(written(1, join), "%1 is f32<1x5>, but the value is f32<1x6>");
    let table = |k: &mut Raw| k.slots(Elem::I64, 2, |out| BlockInst::Slots { out, values: vec![7] });
    assert_eq!(written(1, table), "%0 is i64<1x2>, but the value is i64");
    let fma = |k: &mut Raw| {
        let (x, y, acc) = (k.floats(1, 1, 0.5), k.floats(1, 3, 0.5), k.floats(1, 2, 0.5));
        k.slots(Elem::F32, 3, |out| BlockInst::Fma { out, x, y, acc })
    };
    assert_eq!(written(1, fma), "shapes do not stretch to each other: f32, f32<1x3>, f32<1x2>");
    let far = |k: &mut Raw| {
        let x = k.floats(1, 3, 0.5);
        k.slots(Elem::F32, 3, |out| BlockInst::Shuffle { out, x, xor: 32 })
    };
    assert_eq!(written(1, far), "a warp has no threads 32 apart");
}

#[test]
fn accesses_are_of_sixteen_bytes_at_most() {
    let load = |dtype, indices: usize, cols: usize, mask: Option<usize>| {
        written(1, |k| {
            let a = k.buf(dtype, &["97"], Access::Read);
            let index = k.table(0..indices);
            let mask = mask.map(|cols| k.bools(1, cols, true));
            let from = Mem { space: Space::Buf(a), index };
            k.slots(Elem::F32, cols, |out| BlockInst::Load { out, from, mask });
        })
    };
    assert_eq!(load(DType::F32, 3, 12, Some(3)), "");
    assert_eq!(load(DType::F32, 3, 12, Some(1)), "");
    assert_eq!(load(DType::F8E4M3, 2, 32, None), "");
    assert_eq!(load(DType::F32, 3, 12, Some(12)), "the mask bool<1x12> is not for 3 indices");
    assert_eq!(load(DType::F32, 3, 24, None), "8 elements at once are more than 16 bytes");
    let odd = "9 elements are not 1, 2, 4, 8 or 16 for each of 3 indices";
    assert_eq!(load(DType::Bf16, 3, 9, None), odd);
    assert_eq!(load(DType::Bf16, 2, 5, None), "5 elements are not 1, 2, 4, 8 or 16 for each of 2 indices");
    let missing = |k: &mut Raw| {
        let (index, value) = (k.int(0), k.floats(1, 1, 0.5));
        k.store(Space::Shared(Shared::new(4)), index, value, None);
    };
    assert_eq!(written(1, missing), "there is no shared memory #4");
    let scratch = |k: &mut Raw| {
        let (index, value) = (k.int(0), k.floats(1, 1, 0.5));
        k.store(Space::Scratch(Scratch::new(4)), index, value, None);
    };
    assert_eq!(written(1, scratch), "&4 is not memory of the block phase");
    let ints = |k: &mut Raw| {
        let tile = k.shared("s", DType::I64, [3, 5], 1, false);
        let (index, value) = (k.int(0), k.floats(1, 1, 0.5));
        k.store(Space::Shared(tile), index, value, None);
    };
    assert_eq!(written(1, ints), "is for i64, not f32");
}

#[test]
fn what_is_there_is_not_empty() {
    assert_eq!(written(0, |_| ()), "a block has 0 warps, not 1 to 32");
    assert_eq!(written(33, |_| ()), "a block has 33 warps, not 1 to 32");
    let each = |k: &mut Raw| k.threads().launch = Launch::Each { per_block: 0 };
    assert_eq!(changed(each), "a block has no programs");
    let persistent = |k: &mut Raw| k.threads().launch = Launch::Persistent { per_multiprocessor: 0 };
    assert_eq!(changed(persistent), "a multiprocessor has no blocks");
    let empty = |k: &mut Raw| set(&mut k.threads().pipes, 0, |pipe| pipe.tiles.clear());
    assert!(changed(empty).starts_with("the pipe |0 (`terms`) has no tiles, no stages or no consumers; "));
}

#[test]
fn shared_memory_fits() {
    let tile = |dtype, shape, stages, swizzle| written(1, |k| k.shared("s", dtype, shape, stages, swizzle));
    assert_eq!(tile(DType::F32, [3, 5], 7, false), "");
    assert_eq!(tile(DType::I64, [3, 0], 7, false), "the shared memory #0 (`s`) has no elements");
    assert_eq!(tile(DType::I32, [3, 5], 7, false), "the shared memory #0 (`s`) holds i32");
    let lines =
        "the shared memory #0 (`s`) is swizzled, but not of a multiple of 8 rows and of 128 bytes a row: ";
    assert_eq!(tile(DType::Bf16, [8, 96], 1, true), lines.to_string() + "bf16[8x96]");
    assert_eq!(tile(DType::Bf16, [12, 128], 1, true), lines.to_string() + "bf16[12x128]");
    assert_eq!(tile(DType::F8E5M2, [227, 1024], 1, false), "");
    assert_eq!(tile(DType::F8E5M2, [227, 1025], 1, false), "shared memory of 232688 bytes, more than 232448");
    let much = tile(DType::F32, [usize::MAX / 3, 5], 7, false);
    assert_eq!(much, format!("shared memory of {} bytes, more than 232448", usize::MAX));
}

#[test]
fn shared_memory_is_laid_out() {
    let mut k = Raw::blocks(1);
    k.shared("", DType::F8E4M3, [3, 7], 1, false);
    let tile = k.shared("", DType::Bf16, [8, 64], 3, true);
    k.shared("", DType::F32, [1, 5], 1, false);
    k.shared("", DType::F8E4M3, [24, 128], 1, true);
    k.pipe("", &[tile], 1);
    // 3 · 1024 and 3072; 21 and 20 from multiples of 128 on; three times two barriers.
    assert_eq!(k.threads().shared_bytes(), 6144 + 128 + 32 + 3 * 16);
}

#[test]
fn pipes_have_tiles_of_their_own() {
    let stages = |k: &mut Raw| set(&mut k.threads().shared, 1, |tile| tile.stages = 3);
    assert_eq!(changed(stages), "the pipe |0 (`terms`) has 2 stages, its tile #1 3");
    let twice = |k: &mut Raw| set(&mut k.threads().pipes, 0, |pipe| pipe.tiles.push(Shared::new(1)));
    assert!(changed(twice).starts_with("the pipe |0 (`terms`) has #1, which is in a pipe already"));
    let missing = |k: &mut Raw| set(&mut k.threads().pipes, 0, |pipe| pipe.tiles.push(Shared::new(9)));
    assert!(changed(missing).starts_with("the pipe |0 (`terms`) has #9, which is not there"));
}

#[test]
fn tilings_suit_bulk_copies() {
    let map = |change: fn(&mut MapData)| changed(|k| set(&mut k.threads().maps, 0, change));
    assert!(map(|map| map.axes = [1, 1]).contains("the tiling ~0 runs along the axes 1 and 1 of 2"));
    assert!(map(|map| map.axes = [0, 2]).contains("the tiling ~0 runs along the axes 0 and 2 of 2"));
    assert!(
        map(|map| map.axes = [1, 0])
            .contains("the tiling ~0 has columns along an axis of `a` with stride 8*k")
    );
    assert!(map(|map| map.rows = 257).contains("the tiling ~0 has boxes of 257 rows, not 1 to 256"));
    let plain = map(|map| map.swizzle = false);
    assert!(
        plain.contains("the tiling ~0 has boxes that are not swizzled, of 64 x 64 bf16 elements"),
        "{plain}"
    );
    assert!(map(|map| map.buf = Buf::new(7)).contains("the tiling ~0 is of $7, which is not there"));
    let buf = |change: fn(&mut BufData)| changed(|k| set(&mut k.0.bufs, 0, change));
    let odd = "the tiling ~0 is of `a`, of which 4*k elements are not a multiple of 16 bytes";
    assert_eq!(buf(|buf| buf.strides[0] = "4*k".parse().unwrap()), odd);
    let odd = "the tiling ~0 is of `a`, of which 12 elements are not a multiple of 16 bytes";
    assert_eq!(buf(|buf| buf.offset = Dim::from(12)), odd);
    let rank = buf(|buf| {
        buf.shape = vec![Dim::from(3); 6];
        buf.strides = vec![Dim::from(8); 6];
    });
    assert!(rank.contains("the tiling ~0 is of `a` with 6 axes, not 2 to 5"), "{rank}");
}

#[test]
fn bulk_copies_fit() {
    let is_copy = |inst: &BlockInst| matches!(inst, BlockInst::Copy { .. });
    let copy = |change: fn(&mut Shared, &mut Map, &mut Vec<Reg>)| {
        inst(is_copy, |inst| match inst {
            BlockInst::Copy { tile, map, at, .. } => change(tile, map, at),
            _ => unreachable!(),
        })
    };
    assert_eq!(copy(|_, _, at| at.truncate(1)), "1 indices into a buffer of 2 axes");
    assert_eq!(copy(|_, map, _| *map = Map::new(1)), "a box of bf16[32x64] and a tile of bf16[64x64]");
    assert_eq!(copy(|_, map, _| *map = Map::new(2)), "`c` is only written");
    assert_eq!(copy(|_, map, _| *map = Map::new(5)), "there is no tiling ~5");
    assert_eq!(copy(|tile, _, _| *tile = Shared::new(2)), "#2 is not a tile of the pipe");
    let is_out = |inst: &BlockInst| matches!(inst, BlockInst::CopyOut { .. });
    let out = |change: fn(&mut Shared, &mut Map, &mut Reg)| {
        inst(is_out, |inst| match inst {
            BlockInst::CopyOut { tile, map, when, .. } => change(tile, map, when),
            _ => unreachable!(),
        })
    };
    assert_eq!(out(|_, map, _| *map = Map::new(1)), "`b` is only read");
    assert_eq!(out(|tile, _, _| *tile = Shared::new(0)), "a box of f32[64x32] and a tile of bf16[64x64]");
    assert_eq!(out(|_, _, when| *when = Reg::new(0)), "%0 is i64, not one truth value");
}

#[test]
fn roles_are_the_end_and_make_up_the_block() {
    let last = |k: &mut Raw| k.barrier(0, 8);
    assert!(changed(last).contains("`roles {`: is not at the end of the kernel"));
    let nested = |k: &mut Raw| {
        let inner = Inst::Block(BlockInst::Roles { roles: vec![] });
        roles(k)[1].body.push(inner);
    };
    assert!(changed(nested).contains("`roles {`: is not at the end of the kernel"));
    let role = |change: fn(&mut Role)| first_role(change);
    assert_eq!(role(|role| role.warps = 3), "`consumer` has 3 warps, not a multiple of 4");
    assert_eq!(role(|role| role.warps = 8), "the roles have 12 warps, the block 8");
    let registers = "`consumer` has 244 registers a thread, not a multiple of 8 from 24 to 240";
    assert_eq!(role(|role| role.registers = 244), registers);
    let many = changed(|k| {
        k.threads().warps = 24;
        for role in roles(k) {
            (role.warps, role.registers) = (12, 232);
        }
    });
    assert!(many.contains("the roles have 178176 registers, more than 65536"), "{many}");
}

/// What the verifier says first of a changed consumer.
fn first_role(change: fn(&mut Role)) -> String {
    let mut k = two_roles();
    change(&mut roles(&mut k)[1]);
    first(&k)
}

#[test]
fn roles_have_registers_of_their_own() {
    let error = changed(|k| {
        let out = k.reg(Elem::I64, 1, 1);
        roles(k)[0].body.insert(0, Inst::Block(BlockInst::Thread { out }));
        let x = k.reg(Elem::I64, 1, 1);
        roles(k)[1].body.push(Inst::Map { out: x, f: Fn1::Neg, x: out });
    });
    assert!(error.ends_with("is not assigned here"), "{error}");
}

#[test]
fn pipes_have_one_producer_and_all_consumers() {
    let consumers = |k: &mut Raw| set(&mut k.threads().pipes, 0, |pipe| pipe.consumers = 8);
    assert_eq!(changed(consumers), "the pipe |0 (`terms`) is released by 4 warps, not by 8");
    let fence = |inst: &mut BlockInst| *inst = BlockInst::FenceAsync;
    let without = |is: fn(&BlockInst) -> bool| inst(is, fence);
    let no_wait = without(|inst| matches!(inst, BlockInst::Wait { .. }));
    assert_eq!(no_wait, "the pipe |0 (`terms`) is not both waited for and released by `consumer`");
    let no_release = without(|inst| matches!(inst, BlockInst::Release { .. }));
    assert_eq!(no_release, "the pipe |0 (`terms`) is not both waited for and released by `consumer`");
    // The producer has nothing else that may stand there.
    let nothing = |inst: &mut BlockInst| *inst = BlockInst::Roles { roles: vec![] };
    let mut k = two_roles();
    nothing(find(&mut k.0.body, &|inst| matches!(inst, BlockInst::Copy { .. })).unwrap());
    let error = "the pipe |0 (`terms`) is not acquired and filled as a whole by `producer`";
    assert!(k.errors().contains(error), "{}", k.errors());
    let mut k = two_roles();
    nothing(find(&mut k.0.body, &|inst| matches!(inst, BlockInst::Acquire { .. })).unwrap());
    assert!(k.errors().contains(error), "{}", k.errors());
    // A second producer.
    let error = changed(|k| {
        let mut other = roles(k)[0].clone();
        other.body.clear();
        let turn = Reg::new(0);
        for tile in [0, 1].map(Shared::new) {
            let (pipe, map) = (Pipe::new(0), Map::new(tile.index()));
            other.body.push(Inst::Block(BlockInst::Acquire { pipe, turn }));
            other.body.push(Inst::Block(BlockInst::Copy { pipe, turn, tile, map, at: vec![turn; 2] }));
        }
        roles(k).push(other);
        k.threads().warps = 12;
    });
    assert_eq!(error, "the pipe |0 (`terms`) is filled by 2 roles, not by one");
}

#[test]
fn single_threads_wait_for_nobody() {
    let solo = |inst: BlockInst| {
        let mut k = two_roles();
        roles(&mut k)[0].body.push(Inst::Block(inst));
        first(&k)
    };
    for inst in [
        BlockInst::Barrier { id: 0, warps: 4 },
        BlockInst::FenceAsync,
        BlockInst::CopyOutWait { pending: 0 },
        BlockInst::MmaWait { pending: 0, values: vec![] },
        BlockInst::Wait { pipe: Pipe::new(0), turn: Reg::new(0) },
    ] {
        assert_eq!(solo(inst), "is not for a single thread");
    }
    let acquire = |k: &mut Raw| {
        let acquire = BlockInst::Acquire { pipe: Pipe::new(0), turn: Reg::new(0) };
        roles(k)[1].body.push(Inst::Block(acquire));
    };
    assert!(changed(acquire).contains("is for a role of one thread"));
    let wait = |k: &mut Raw| {
        let wait = BlockInst::Wait { pipe: Pipe::new(0), turn: Reg::new(0) };
        k.0.body.insert(1, Inst::Block(wait));
    };
    assert_eq!(changed(wait), "`wait |terms{%0}`: is for a role");
}

#[test]
fn conditions_guard_no_company() {
    for inst in [
        BlockInst::Barrier { id: 0, warps: 8 },
        BlockInst::Barrier { id: 0, warps: 1 },
        BlockInst::FenceAsync,
        BlockInst::CopyOutWait { pending: 0 },
        BlockInst::MmaWait { pending: 0, values: vec![] },
        BlockInst::Shuffle { out: Reg::new(0), x: Reg::new(0), xor: 1 },
        BlockInst::Roles { roles: vec![] },
    ] {
        let guarded = |k: &mut Raw| {
            let (cond, trips) = (k.bools(1, 1, true), k.int(3));
            let (body, ()) = k.body(|k| {
                k.repeat(trips, &[], |k, _, _| {
                    k.block(inst);
                    vec![]
                });
            });
            k.push(Inst::If { cond, body });
        };
        assert_eq!(written(8, guarded), "is guarded by a condition");
    }
}

#[test]
fn barriers_are_of_whole_roles() {
    let barrier = |warps: usize, id: usize, of: usize| written(warps, |k| k.barrier(id, of));
    assert_eq!(barrier(5, 15, 5), "");
    assert_eq!(barrier(5, 15, 1), "");
    assert_eq!(barrier(5, 16, 5), "there are 16 barriers");
    assert_eq!(barrier(5, 2, 4), "barrier 2 is of 4 warps, but 5 come to it");
    let is_barrier = |inst: &BlockInst| matches!(inst, BlockInst::Barrier { .. });
    let other = inst(is_barrier, |inst| *inst = BlockInst::Barrier { id: 1, warps: 8 });
    assert_eq!(other, "barrier 1 is of 8 warps, but 4 come to it");
}
