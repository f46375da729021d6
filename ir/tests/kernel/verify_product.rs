//! What the verifier asks of products.

use crate::block_support::operand;
use crate::support::*;
use crate::verify_block::{first, inst, written};
use eva_ir::entity::Entity;
use eva_ir::kernel::block::*;
use eva_ir::kernel::*;
use eva_ir::types::DType;

#[test]
fn products_have_operands_that_suit() {
    let mma = |change: fn(&mut Reg, &mut MmaLeft, &mut MmaTile, &mut usize, &mut usize)| {
        inst(
            |inst| matches!(inst, BlockInst::Mma { .. }),
            |inst| match inst {
                BlockInst::Mma { acc, a, b, n, k, .. } => change(acc, a, b, n, k),
                _ => unreachable!(),
            },
        )
    };
    assert_eq!(mma(|_, _, _, n, _| *n = 28), "28 columns are not a multiple of 8 up to 256");
    assert_eq!(mma(|_, _, _, n, _| *n = 264), "264 columns are not a multiple of 8 up to 256");
    assert_eq!(mma(|_, _, _, n, _| *n = 24), "the product is f32<1x12>, the accumulator f32<1x16>");
    assert_eq!(mma(|_, _, _, n, _| *n = 40), "#1 has 32 rows of 64 terms");
    assert_eq!(mma(|_, _, _, _, k| *k = 24), "24 terms are not a multiple of 16");
    assert_eq!(mma(|_, _, _, _, k| *k = 0), "0 terms are not a multiple of 16");
    assert_eq!(mma(|_, _, b, _, _| b.first = 16), "#1 has 32 rows of 64 terms");
    assert_eq!(mma(|_, _, b, _, _| b.first = 8), "the first term, 8, is not a multiple of 16");
    assert_eq!(mma(|_, _, b, _, _| b.transposed = true), "#1 has 64 rows of 32 terms");
    assert_eq!(mma(|_, _, b, _, _| b.tile = Shared::new(2)), "f32 is not a type of products");
    let left = |_: &mut Reg, a: &mut MmaLeft, b: &mut MmaTile, _: &mut usize, _: &mut usize| {
        *a = MmaLeft::Registers(b.turn);
    };
    assert_eq!(mma(left), "the left operand is i64, not f32<1x32>");
    assert_eq!(mma(|acc, _, b, _, _| *acc = b.turn), "the product is f32<1x16>, the accumulator i64");
}

/// What the verifier says first of a product of two shared tiles.
fn product(types: [DType; 2], transposed: bool, swizzle: bool, warps: usize) -> String {
    written(warps, |k| {
        let tiles = types.map(|dtype| k.shared("", dtype, [64, 128], 1, swizzle));
        let (zero, acc) = (k.int(0), k.floats(1, 4, 0.0));
        let [left, right] = tiles.map(|tile| operand(tile, zero, transposed, 0));
        let a = MmaLeft::Shared { tile: left, row: zero };
        let (keep, b, b_row, n, terms) = (Keep::No, right, zero, 8, 32);
        let out = k.slots(Elem::F32, 4, |out| BlockInst::Mma { out, acc, keep, a, b, b_row, n, k: terms });
        k.mma_wait(0, out);
    })
}

#[test]
fn products_have_types_that_suit() {
    use DType::{Bf16, F8E4M3, F8E5M2, F16, F32, Tf32};
    assert_eq!(product([Tf32, Tf32], false, true, 4), "");
    assert_eq!(product([Tf32, Tf32], true, true, 4), "tf32 is not transposed");
    assert_eq!(product([Tf32, Bf16], false, true, 4), "tf32 times bf16");
    assert_eq!(product([Bf16, Bf16], true, true, 4), "");
    assert_eq!(product([F8E4M3, F8E5M2], false, true, 8), "");
    assert_eq!(product([Bf16, F16], false, true, 4), "bf16 times f16");
    assert_eq!(product([F8E4M3, F16], false, true, 4), "f8e4m3 times f16");
    assert_eq!(product([F8E4M3, F8E4M3], true, true, 4), "f8e4m3 is not transposed");
    assert_eq!(product([F32, F32], false, true, 4), "f32 is not a type of products");
    assert_eq!(product([Bf16, Bf16], false, false, 4), "#1 is not swizzled");
    assert_eq!(product([Bf16, Bf16], false, true, 6), "6 warps are no warpgroups");
}

#[test]
fn what_is_waited_for_is_not_used_again() {
    let mut k = Raw::blocks(4);
    let x = k.floats(1, 4, 0.0);
    k.mma_wait(0, x);
    k.is_fine();
    k.emit(Elem::F32, 1, 4, |out| Inst::Map { out, f: Fn1::Neg, x });
    assert_eq!(first(&k), "%0 is not assigned here");
    k.0.body.pop();
    k.mma_wait(0, x);
    assert_eq!(first(&k), "%0 is not assigned here");
    let looped = |k: &mut Raw| {
        let (x, trips) = (k.floats(1, 4, 0.0), k.int(3));
        k.repeat(trips, &[], |k, _, _| {
            k.mma_wait(0, x);
            vec![]
        });
    };
    assert_eq!(written(4, looped), "%0 is assigned outside of this body, which may run again");
    let carried = |k: &mut Raw| {
        let (x, trips) = (k.floats(1, 4, 0.0), k.int(3));
        k.repeat(trips, &[x], |k, _, x| vec![k.mma_wait(0, x[0])]);
    };
    assert_eq!(written(4, carried), "");
    let twice = |k: &mut Raw| {
        let x = k.floats(1, 4, 0.0);
        let outs = [k.reg(Elem::F32, 1, 4), k.reg(Elem::F32, 1, 4)];
        k.block(BlockInst::MmaWait { pending: 0, values: outs.map(|out| (out, x)).to_vec() });
    };
    assert_eq!(written(4, twice), "%0 is waited for twice");
    let many = |k: &mut Raw| k.block(BlockInst::MmaWait { pending: 8, values: vec![] });
    assert_eq!(written(4, many), "8 products cannot be left unfinished: at most 7");
}
