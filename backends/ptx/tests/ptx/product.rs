//! Products by the tensor cores, fed by pipes.

use crate::build::Build;
use crate::gate::{count, pass};
use eva_ir::dim::Dim;
use eva_ir::kernel::block::{BlockInst, Keep, Launch, MmaLeft, MmaTile};
use eva_ir::kernel::{Access, Fn2, GridAxis, Kernel, Reg, Space};
use eva_ir::types::DType;

/// Rows and columns of a block's tile, terms of a stage, stages.
const TILE: [usize; 3] = [128, 256, 64];
const STAGES: usize = 4;

/// Two consumers' rows and columns of slots in pairs, from a thread's number among 256.
fn slots_of(b: &mut Build, n: usize) -> (Reg, Reg) {
    let thread = b.thread();
    let warp = b.by(Fn2::Div, thread, 32);
    let lane = b.by(Fn2::Rem, thread, 32);
    let quad = b.by(Fn2::Div, lane, 4);
    let row = b.by(Fn2::Mul, warp, 16);
    let row = b.zip(Fn2::Add, row, quad);
    let col = b.by(Fn2::Rem, lane, 4);
    let col = b.by(Fn2::Mul, col, 2);
    let pairs = n as i64 / 4;
    let rows = b.slots(&(0..pairs).map(|pair| 8 * (pair % 2)).collect::<Vec<_>>());
    let cols = b.slots(&(0..pairs).map(|pair| 8 * (pair / 2)).collect::<Vec<_>>());
    (b.zip(Fn2::Add, row, rows), b.zip(Fn2::Add, col, cols))
}

/// `c = a · bᵀ`, one producer and two consumers, of which each has 64 rows and keeps one product under way.
pub fn gemm(name: &str, dtype: DType, copy_out: bool) -> Kernel {
    let [rows, cols, _] = TILE;
    let terms = TILE[2] * 2 / dtype.bytes() as usize;
    let mut b = Build::new(name, 12);
    b.block().launch = Launch::Persistent { per_multiprocessor: 1 };
    let [m, n, k] = ["m", "n", "k"].map(Dim::sym);
    b.kernel.grid = vec![
        GridAxis { extent: m.clone(), tile: rows as i64 },
        GridAxis { extent: n.clone() * Dim::from(8), tile: cols as i64 },
    ];
    let n = n * Dim::from(8);
    let k = k * Dim::from(16);
    let x = b.buf("a", dtype, Access::Read, &[m.clone(), k.clone()]);
    let y = b.buf("b", dtype, Access::Read, &[n.clone(), k.clone()]);
    let z = b.buf("c", DType::Bf16, Access::Write, &[m.clone(), n.clone()]);
    let a_tile = b.shared(dtype, [STAGES, rows, terms], true);
    let b_tile = b.shared(dtype, [STAGES, cols, terms], true);
    let c_tile = copy_out.then(|| b.shared(DType::Bf16, [2, 64, 64], true));
    let pipe = b.pipe(&[a_tile, b_tile], STAGES, 8);
    let (a_map, b_map) = (b.tiling(x, a_tile), b.tiling(y, b_tile));
    let c_map = c_tile.map(|tile| b.tiling(z, tile));

    // How many programs and how many stages' worth of terms there are, and how many programs are this block's.
    let (m, n, k) = (b.extent(&m), b.extent(&n), b.extent(&k));
    let up = |b: &mut Build, extent: Reg, tile: usize| {
        let up = b.by(Fn2::Add, extent, tile as i64 - 1);
        b.by(Fn2::Div, up, tile as i64)
    };
    let (tiles_m, tiles_n, steps) = (up(&mut b, m, rows), up(&mut b, n, cols), up(&mut b, k, terms));
    let programs = b.zip(Fn2::Mul, tiles_m, tiles_n);
    let number = b.number();
    let launched = b.reg(eva_ir::kernel::Elem::I64, 1);
    b.inst(BlockInst::Launched { out: launched });
    let left = b.zip(Fn2::Sub, programs, number);
    let left = b.zip(Fn2::Add, left, launched);
    let left = b.by(Fn2::Sub, left, 1);
    let trips = b.zip(Fn2::Div, left, launched);
    let origin = |b: &mut Build, trip: Reg| {
        let done = b.zip(Fn2::Mul, trip, launched);
        let program = b.zip(Fn2::Add, number, done);
        let (i, j) = (b.zip(Fn2::Div, program, tiles_n), b.zip(Fn2::Rem, program, tiles_n));
        (b.by(Fn2::Mul, i, rows as i64), b.by(Fn2::Mul, j, cols as i64))
    };

    let producer = b.role("producer", (4, 24, true), |b| {
        b.repeat(trips, &[], |b, trip, _| {
            let (row, col) = origin(b, trip);
            let before = b.zip(Fn2::Mul, trip, steps);
            b.repeat(steps, &[], |b, step, _| {
                let turn = b.zip(Fn2::Add, before, step);
                let term = b.by(Fn2::Mul, step, terms as i64);
                b.inst(BlockInst::Acquire { pipe, turn });
                b.inst(BlockInst::Copy { pipe, turn, tile: a_tile, map: a_map, at: vec![row, term] });
                b.inst(BlockInst::Copy { pipe, turn, tile: b_tile, map: b_map, at: vec![col, term] });
                vec![]
            });
            vec![]
        });
    });
    let consumer = b.role("consumer", (8, 240, false), |b| {
        let thread = b.thread();
        let group = b.by(Fn2::Div, thread, 128);
        let a_row = b.by(Fn2::Mul, group, 64);
        let b_row = b.int(0);
        b.repeat(trips, &[], |b, trip, _| {
            let (row, col) = origin(b, trip);
            let before = b.zip(Fn2::Mul, trip, steps);
            let product = |b: &mut Build, acc: Reg, keep: Keep, turn: Reg| {
                let tile = |tile| MmaTile { tile, turn, transposed: false, first: 0 };
                b.inst(BlockInst::Wait { pipe, turn });
                b.mma(
                    acc,
                    keep,
                    MmaLeft::Shared { tile: tile(a_tile), row: a_row },
                    (tile(b_tile), b_row),
                    terms,
                )
            };
            // The first product starts the sums.
            let zero = b.float(0.0, cols / 2);
            let sum = product(b, zero, Keep::No, before);
            let more = b.by(Fn2::Sub, steps, 1);
            let sums = b.repeat(more, &[sum], |b, step, sums| {
                let last = b.zip(Fn2::Add, before, step);
                let turn = b.by(Fn2::Add, last, 1);
                let sum = product(b, sums[0], Keep::Yes, turn);
                b.mma_wait(1, &[]);
                b.inst(BlockInst::Release { pipe, turn: last, when: None });
                vec![sum]
            });
            let sums = b.mma_wait(0, &sums);
            let last = b.zip(Fn2::Add, before, more);
            b.inst(BlockInst::Release { pipe, turn: last, when: None });

            match (c_tile, c_map) {
                (Some(tile), Some(map)) => {
                    let leader = b.by(Fn2::Eq, thread, 0);
                    for part in 0..cols / 64 {
                        b.inst(BlockInst::CopyOutWait { pending: 0 });
                        b.barrier(1, 8);
                        let picked: Vec<u16> = (32 * part as u16..).take(32).collect();
                        let part_sums = b.pick(sums[0], &picked);
                        let (rows, cols) = slots_of(b, 64);
                        let at = b.by(Fn2::Mul, rows, 64);
                        let at = b.zip(Fn2::Add, at, cols);
                        b.store(Space::Shared(tile), at, part_sums, None);
                        b.inst(BlockInst::FenceAsync);
                        b.barrier(1, 8);
                        let col = b.by(Fn2::Add, col, 64 * part as i64);
                        for half in 0..2 {
                            let (turn, first) = (b.int(half), b.by(Fn2::Add, row, 64 * half));
                            b.inst(BlockInst::CopyOut {
                                map,
                                tile,
                                turn,
                                at: vec![first, col],
                                when: leader,
                            });
                        }
                    }
                }
                _ => {
                    let (rows, cols) = slots_of(b, cols);
                    let rows = b.zip(Fn2::Add, rows, row);
                    let cols = b.zip(Fn2::Add, cols, col);
                    let (below, inside) = (b.zip(Fn2::Lt, rows, m), b.zip(Fn2::Lt, cols, n));
                    let mask = b.zip(Fn2::And, below, inside);
                    let at = b.zip(Fn2::Mul, rows, n);
                    let at = b.zip(Fn2::Add, at, cols);
                    b.store(Space::Buf(z), at, sums[0], Some(mask));
                }
            }
            vec![]
        });
        b.inst(BlockInst::CopyOutWait { pending: 0 });
    });
    b.inst(BlockInst::Roles { roles: vec![producer, consumer] });
    b.finish()
}

#[test]
fn a_product_of_matrices_runs_at_full_speed() {
    let types = [(DType::Bf16, "bf16"), (DType::F16, "f16"), (DType::F8E4M3, "f8"), (DType::Tf32, "tf32")];
    for (dtype, name) in types {
        let name = &format!("gemm_{name}");
        let (ptx, assembled) = pass(&gemm(name, dtype, false));
        let has = |word| count(&ptx.text, word);
        // The first product and the loop's, of four steps each.
        assert_eq!(has("wgmma.mma_async.sync.aligned.m64n256"), 8, "{}", ptx.text);
        assert_eq!(has("setmaxnreg.dec.sync.aligned.u32 \t24"), 1);
        assert_eq!(has("setmaxnreg.inc.sync.aligned.u32 \t240"), 1);
        assert_eq!(has("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier"), 2, "{}", ptx.text);
        assert_eq!(ptx.threads, 384);
        assert_eq!(ptx.shared_bytes, STAGES * (128 + 256) * 128 + 16 * STAGES);
        // No accumulator is copied.
        let loops = ptx.text.split("wgmma.wait_group.sync.aligned 1").next().unwrap();
        assert!(count(loops, "mov.b32") < 40, "{}", ptx.text);
        if let Some(assembled) = assembled {
            assert_eq!(assembled.registers, 168);
        }
    }
}

#[test]
fn results_leave_by_the_copy_engine() {
    let (ptx, _) = pass(&gemm("gemm_copy_out", DType::Bf16, true));
    let has = |word| count(&ptx.text, word);
    assert_eq!(has("cp.async.bulk.tensor.2d.global.shared::cta"), 8, "{}", ptx.text);
    assert_eq!(has("fence.proxy.async.shared::cta"), 4, "{}", ptx.text);
    assert_eq!(has("cp.async.bulk.commit_group"), 8, "{}", ptx.text);
    assert_eq!(has("cp.async.bulk.wait_group.read \t0"), 5, "{}", ptx.text);
}
