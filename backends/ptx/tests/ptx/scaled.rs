//! Products of 8-bit numbers with scales for blocks of 128 terms: partial sums in a second set of registers.

use crate::agree::{agree_within, random};
use crate::build::Build;
use crate::gate::{count, pass};
use eva_ir::dim::Dim;
use eva_ir::kernel::block::{BlockInst, Keep, Launch, MmaLeft, MmaTile};
use eva_ir::kernel::run::Storage;
use eva_ir::kernel::{Access, Fn2, GridAxis, Kernel, Space};
use eva_ir::testing::scaled::{DENSE, Form, product};
use eva_ir::types::DType;
use eva_passes::target::Hopper;

/// `c = Σ over blocks of (scale of the row of a) · (scale of the rows of b) · (a · bᵀ)`, in tiles of 128 × 256, where
/// `b` comes in two halves of 128 rows, each with a scale of its own.
pub fn gemm(left: DType, right: DType) -> Kernel {
    const STAGES: usize = 4;
    let mut b = Build::new(&format!("scaled_{left}_{right}"), 12);
    b.block().launch = Launch::Each { per_block: 1 };
    let [m, n, steps] = ["m", "n", "steps"].map(Dim::sym);
    let (n, k) = (n * Dim::from(256), steps.clone() * Dim::from(128));
    b.kernel.grid =
        vec![GridAxis { extent: m.clone(), tile: 128 }, GridAxis { extent: n.clone(), tile: 256 }];
    let x = b.buf("a", left, Access::Read, &[m.clone(), k.clone()]);
    let y = b.buf("b", right, Access::Read, &[n.clone(), k.clone()]);
    let z = b.buf("c", DType::F32, Access::Write, &[m.clone(), n.clone()]);
    let x_scale = b.buf("a_scale", DType::F32, Access::Read, &[steps.clone(), m.clone()]);
    let y_scale = b.buf("b_scale", DType::F32, Access::Read, &[Dim::sym("n") * Dim::from(2), steps.clone()]);
    let a_tile = b.shared(left, [STAGES, 128, 128], true);
    let b_tile = b.shared(right, [STAGES, 256, 128], true);
    let pipe = b.pipe(&[a_tile, b_tile], STAGES, 8);
    let (a_map, b_map) = (b.tiling(x, a_tile), b.tiling(y, b_tile));

    let (m, n, steps) = (b.extent(&m), b.extent(&n), b.extent(&steps));
    let (number, tiles_n) = (b.number(), b.by(Fn2::Div, n, 256));
    let (i, j) = (b.zip(Fn2::Div, number, tiles_n), b.zip(Fn2::Rem, number, tiles_n));
    let (row, col) = (b.by(Fn2::Mul, i, 128), b.by(Fn2::Mul, j, 256));

    let producer = b.role("producer", (4, 24, true), |b| {
        b.repeat(steps, &[], |b, turn, _| {
            let term = b.by(Fn2::Mul, turn, 128);
            b.inst(BlockInst::Acquire { pipe, turn });
            b.inst(BlockInst::Copy { pipe, turn, tile: a_tile, map: a_map, at: vec![row, term] });
            b.inst(BlockInst::Copy { pipe, turn, tile: b_tile, map: b_map, at: vec![col, term] });
            vec![]
        });
    });
    let consumer = b.role("consumer", (8, 240, false), |b| {
        let thread = b.thread();
        let group = b.by(Fn2::Div, thread, 128);
        let a_row = b.by(Fn2::Mul, group, 64);
        let warp = b.by(Fn2::Div, thread, 32);
        let lane = b.by(Fn2::Rem, thread, 32);
        let quad = b.by(Fn2::Div, lane, 4);
        let mine = b.by(Fn2::Mul, warp, 16);
        let mine = b.zip(Fn2::Add, mine, quad);
        let mine = b.zip(Fn2::Add, mine, row);
        let both = b.slots(&[0, 8]);
        let rows = b.zip(Fn2::Add, mine, both);
        let below = b.zip(Fn2::Lt, rows, m);
        let half = b.by(Fn2::Mul, j, 2);
        let zero = b.float(0.0, 64);
        let sums = b.repeat(steps, &[zero, zero, zero], |b, turn, carried| {
            let at = b.zip(Fn2::Mul, turn, m);
            let at = b.zip(Fn2::Add, at, rows);
            let a_scale = b.load(Space::Buf(x_scale), at, 1, Some(below));
            let (mut part, mut next) = (carried[2], Vec::new());
            for h in 0..2 {
                let at = b.by(Fn2::Add, half, h);
                let at = b.zip(Fn2::Mul, at, steps);
                let at = b.zip(Fn2::Add, at, turn);
                let b_scale = b.load(Space::Buf(y_scale), at, 1, None);
                let scale = b.zip(Fn2::Mul, a_scale, b_scale);
                let scale = b.pick(scale, &(0..64).map(|slot| slot / 2 % 2).collect::<Vec<_>>());
                if h == 0 {
                    b.inst(BlockInst::Wait { pipe, turn });
                }
                let tile = |tile| MmaTile { tile, turn, transposed: false, first: 0 };
                let b_row = b.int(128 * h);
                let left = MmaLeft::Shared { tile: tile(a_tile), row: a_row };
                let product = b.mma(part, Keep::No, left, (tile(b_tile), b_row), 128);
                part = b.mma_wait(0, &[product])[0];
                if h == 1 {
                    b.inst(BlockInst::Release { pipe, turn, when: None });
                }
                next.push(b.fma(scale, part, carried[h as usize]));
            }
            next.push(part);
            next
        });
        for (half, &sums) in sums[..2].iter().enumerate() {
            let first = b.by(Fn2::Rem, lane, 4);
            let first = b.by(Fn2::Mul, first, 2);
            let first = b.zip(Fn2::Add, first, col);
            let cols = b.slots(&(0..32).map(|pair| 128 * half as i64 + 8 * (pair / 2)).collect::<Vec<_>>());
            let cols = b.zip(Fn2::Add, first, cols);
            let turn = (0..32).map(|pair| pair % 2).collect::<Vec<_>>();
            let (rows, below) = (b.pick(rows, &turn), b.pick(below, &turn));
            let at = b.zip(Fn2::Mul, rows, n);
            let at = b.zip(Fn2::Add, at, cols);
            b.store(Space::Buf(z), at, sums, Some(below));
        }
    });
    b.inst(BlockInst::Roles { roles: vec![producer, consumer] });
    b.finish()
}

#[test]
fn partial_sums_stay_in_their_registers() {
    for (left, right, types) in [
        (DType::F8E4M3, DType::F8E4M3, "e4m3.e4m3"),
        (DType::F8E5M2, DType::F8E4M3, "e5m2.e4m3"),
        (DType::F8E4M3, DType::F8E5M2, "e4m3.e5m2"),
    ] {
        let (ptx, _) = pass(&gemm(left, right));
        let products = format!("wgmma.mma_async.sync.aligned.m64n128k32.f32.{types}");
        assert_eq!(count(&ptx.text, &products), 8, "{}", ptx.text);
        assert_eq!(count(&ptx.text, "fma.rn.f32"), 128, "{}", ptx.text);
        assert_eq!(count(&ptx.text, "wgmma.wait_group.sync.aligned 0"), 2, "{}", ptx.text);
    }
}

/// What the passes make of such products: one of some columns at a time, whose sums take turns in the same registers.
#[test]
fn kernels_of_the_tile_phase_become_such_products() {
    let few = |tile, swapped| Form { tile, swapped, ..DENSE };
    for (name, form, n, k, m, shape, products) in [
        ("scaled_wide", DENSE, 500, 400, 133, "m64n128k32", 8),
        ("scaled_swapped_16", few([64, 16, 256], true), 200, 656, 21, "m64n16k32", 8),
        ("scaled_swapped_64", few([64, 64, 256], true), 136, 272, 50, "m64n64k32", 8),
        ("scaled_128", few([128, 64, 256], false), 200, 272, 100, "m64n64k32", 8),
        ("scaled_256", few([256, 128, 128], false), 200, 272, 210, "m64n128k32", 8),
        ("scaled_32", Form { block: 32, weights: 1, ..DENSE }, 264, 208, 70, "m64n64k32", 4),
    ] {
        let tiles = product(name, form, n, k);
        let kernel = eva_passes::spread::spread_block(&tiles, &Hopper::H100).unwrap();
        let (ptx, _) = pass(&kernel);
        let mma = format!("wgmma.mma_async.sync.aligned.{shape}.f32.e4m3.e4m3");
        assert_eq!(count(&ptx.text, &mma), products, "{}", ptx.text);
        let size = |dim: &Dim| dim.eval(&|_| Some(m)).unwrap() as usize;
        let storages = kernel.bufs.iter().enumerate().map(|(i, (_, buf))| {
            let elements = buf.shape.iter().map(size).product();
            match buf.access {
                Access::Read => Storage::new(buf.dtype, random(i as u64 + 1, elements)),
                Access::Write => Storage::unwritten(buf.dtype, elements),
            }
        });
        agree_within(&kernel, &[("m", m)], storages.collect(), [1.0 / 128.0, 2e-3]);
    }
}
