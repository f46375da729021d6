//! Two products in a row, the result of one being the left operand of the other, as attention has them.

use crate::build::Build;
use crate::gate::{count, pass};
use eva_ir::dim::Dim;
use eva_ir::kernel::block::{BlockInst, Keep, MmaLeft, MmaTile};
use eva_ir::kernel::{Access, Fn1, Fn2, GridAxis, Kernel, Reg, Space};
use eva_ir::types::DType;

/// Queries of a block.
const QUERIES: usize = 128;
/// Columns of queries and keys.
pub const WIDTH: usize = 192;
/// Columns of values.
pub const VALUES: usize = 128;
/// Keys of a step.
pub const KEYS: usize = 96;

/// The fold of each row's slots, over the quad of threads that has the row: two slots, for rows 8 apart.
fn rows(b: &mut Build, f: Fn2, x: Reg) -> Reg {
    let slots = b.ty(x).cols as u16;
    let mut folded = None;
    for first in (0..slots).step_by(4) {
        for side in [0, 1] {
            let part = b.pick(x, &[first + side, first + side + 2]);
            folded = Some(folded.map_or(part, |sum| b.zip(f, sum, part)));
        }
    }
    let mut folded = folded.unwrap();
    for xor in [1, 2] {
        let other = b.shuffle(folded, xor);
        folded = b.zip(f, folded, other);
    }
    folded
}

/// Each of two slots where its row's are.
fn spread(b: &mut Build, x: Reg, slots: usize) -> Reg {
    b.pick(x, &(0..slots as u16).map(|slot| slot / 2 % 2).collect::<Vec<_>>())
}

pub fn attention(name: &str, dtype: DType) -> Kernel {
    const STAGES: usize = 2;
    let mut b = Build::new(name, 12);
    let t = Dim::sym("t") * Dim::from(KEYS as i64);
    let (s, [w, v]) = (Dim::sym("s"), [WIDTH, VALUES].map(|n| Dim::from(n as i64)));
    let q = b.buf("q", dtype, Access::Read, &[s.clone(), w.clone()]);
    let k = b.buf("k", dtype, Access::Read, &[t.clone(), w]);
    let values = b.buf("v", dtype, Access::Read, &[t, v.clone()]);
    let out = b.buf("out", DType::F32, Access::Write, &[s, v]);
    let q_tile = b.shared(dtype, [1, QUERIES, WIDTH], true);
    let k_tile = b.shared(dtype, [STAGES, KEYS, WIDTH], true);
    let v_tile = b.shared(dtype, [STAGES, KEYS, VALUES], true);
    let q_pipe = b.pipe(&[q_tile], 1, 8);
    let (k_pipe, v_pipe) = (b.pipe(&[k_tile], STAGES, 8), b.pipe(&[v_tile], STAGES, 8));
    let maps = [(q, q_tile), (k, k_tile), (values, v_tile)].map(|(buf, tile)| b.tiling(buf, tile));
    b.kernel.grid = vec![GridAxis { extent: Dim::sym("s"), tile: QUERIES as i64 }];
    let (trips, number) = (b.extent(&Dim::sym("t")), b.number());
    let first = b.by(Fn2::Mul, number, QUERIES as i64);
    let zero = b.int(0);

    let producer = b.role("producer", (4, 24, true), |b| {
        b.inst(BlockInst::Acquire { pipe: q_pipe, turn: zero });
        let at = vec![first, zero];
        b.inst(BlockInst::Copy { pipe: q_pipe, turn: zero, tile: q_tile, map: maps[0], at });
        b.repeat(trips, &[], |b, turn, _| {
            let key = b.by(Fn2::Mul, turn, KEYS as i64);
            for (pipe, tile, map) in [(k_pipe, k_tile, maps[1]), (v_pipe, v_tile, maps[2])] {
                b.inst(BlockInst::Acquire { pipe, turn });
                b.inst(BlockInst::Copy { pipe, turn, tile, map, at: vec![key, zero] });
            }
            vec![]
        });
    });
    let consumer = b.role("consumer", (8, 240, false), |b| {
        let thread = b.thread();
        let group = b.by(Fn2::Div, thread, 128);
        let q_row = b.by(Fn2::Mul, group, 64);
        b.inst(BlockInst::Wait { pipe: q_pipe, turn: zero });
        let init = [b.float(f64::from(f32::MIN), 2), b.float(0.0, 2), b.float(0.0, VALUES / 2)];
        let carried = b.repeat(trips, &init, |b, turn, carried| {
            let &[top, total, sums] = carried else { panic!("three are carried") };
            let tile = |tile, turn, transposed| MmaTile { tile, turn, transposed, first: 0 };
            b.inst(BlockInst::Wait { pipe: k_pipe, turn });
            let none = b.float(0.0, KEYS / 2);
            let left = MmaLeft::Shared { tile: tile(q_tile, zero, false), row: q_row };
            let scores = b.mma(none, Keep::No, left, (tile(k_tile, turn, false), zero), WIDTH);
            let scores = b.mma_wait(0, &[scores])[0];
            b.inst(BlockInst::Release { pipe: k_pipe, turn, when: None });
            let largest = rows(b, Fn2::Max, scores);
            let new_top = b.zip(Fn2::Max, top, largest);
            let decay = b.zip(Fn2::Sub, top, new_top);
            let decay = b.map(Fn1::Exp, decay);
            let spread_top = spread(b, new_top, KEYS / 2);
            let weights = b.zip(Fn2::Sub, scores, spread_top);
            let weights = b.map(Fn1::Exp, weights);
            let sum = rows(b, Fn2::Add, weights);
            let total = b.fma(total, decay, sum);
            let decay = spread(b, decay, VALUES / 2);
            let sums = b.zip(Fn2::Mul, sums, decay);
            b.inst(BlockInst::Wait { pipe: v_pipe, turn });
            let right = (tile(v_tile, turn, true), zero);
            let sums = b.mma(sums, Keep::Yes, MmaLeft::Registers(weights), right, KEYS);
            let sums = b.mma_wait(0, &[sums])[0];
            b.inst(BlockInst::Release { pipe: v_pipe, turn, when: None });
            vec![new_top, total, sums]
        });
        b.inst(BlockInst::Release { pipe: q_pipe, turn: zero, when: None });
        let scale = b.map(Fn1::Recip, carried[1]);
        let scale = spread(b, scale, VALUES / 2);
        let result = b.zip(Fn2::Mul, carried[2], scale);
        let (warp, lane) = (b.by(Fn2::Div, thread, 32), b.by(Fn2::Rem, thread, 32));
        let (quad, pair) = (b.by(Fn2::Div, lane, 4), b.by(Fn2::Rem, lane, 4));
        let row = b.by(Fn2::Mul, warp, 16);
        let row = b.zip(Fn2::Add, row, quad);
        let row = b.zip(Fn2::Add, row, first);
        let at = b.by(Fn2::Mul, row, VALUES as i64);
        let col = b.by(Fn2::Mul, pair, 2);
        let at = b.zip(Fn2::Add, at, col);
        let pairs = VALUES as i64 / 4;
        let steps =
            b.slots(&(0..pairs).map(|i| 8 * VALUES as i64 * (i % 2) + 8 * (i / 2)).collect::<Vec<_>>());
        let at = b.zip(Fn2::Add, at, steps);
        b.store(Space::Buf(out), at, result, None);
    });
    b.inst(BlockInst::Roles { roles: vec![producer, consumer] });
    b.finish()
}

#[test]
fn the_result_of_a_product_is_the_left_operand_of_the_next() {
    for (dtype, name) in [(DType::Bf16, "bf16"), (DType::F16, "f16")] {
        let (ptx, _) = pass(&attention(&format!("attention_{name}"), dtype));
        let has = |word: &str| count(&ptx.text, word);
        let scores = format!("wgmma.mma_async.sync.aligned.m64n96k16.f32.{name}.{name}");
        assert_eq!(has(&scores), WIDTH / 16, "{}", ptx.text);
        // Words of weights, rather than a descriptor; and values that are transposed.
        let sums = format!("wgmma.mma_async.sync.aligned.m64n128k16.f32.{name}.{name}");
        assert_eq!(has(&sums), KEYS / 16, "{}", ptx.text);
        assert_eq!(has("right, 1, 1, 1, 1;"), KEYS / 16, "{}", ptx.text);
        assert_eq!(has(&format!("cvt.rn.{name}x2.f32")), KEYS / 4, "{}", ptx.text);
        assert_eq!(has("ex2.approx.ftz.f32"), KEYS / 2 + 2, "{}", ptx.text);
    }
}
