//! Products of codes with scales for blocks of terms.

use crate::support::agree;
use eva_ir::kernel::Inst;
use eva_ir::kernel::block::{BlockInst, Keep};
use eva_ir::testing::scaled::{DENSE, Form, product};
use eva_ir::types::DType;
use eva_passes::spread::{spread_block, suits_block};
use eva_passes::target::Hopper;

/// The products of a kernel, and the columns of each.
fn products(body: &[Inst]) -> Vec<(Keep, usize, usize)> {
    body.iter()
        .flat_map(|inst| match inst {
            Inst::For { body, .. } => products(body),
            Inst::Block(BlockInst::Roles { roles }) => {
                roles.iter().flat_map(|role| products(&role.body)).collect()
            }
            Inst::Block(BlockInst::Mma { keep, n, k, .. }) => vec![(*keep, *n, *k)],
            _ => Vec::new(),
        })
        .collect()
}

fn check(form: Form, n_all: i64, k_all: i64, rows: &[i64], want: &[(Keep, usize, usize)]) {
    let kernel = product("scaled", form, n_all, k_all);
    assert!(suits_block(&kernel, &Hopper::H100), "{kernel}");
    let spread = spread_block(&kernel, &Hopper::H100).unwrap();
    assert_eq!(products(&spread.body), want, "{spread}");
    for &m in rows {
        agree(&kernel, &[("m", m)]);
    }
}

#[test]
fn wide_tiles_are_two_products() {
    check(DENSE, 500, 400, &[133, 5], &[(Keep::No, 128, 128); 2]);
    let types = [DType::F8E5M2, DType::F8E4M3];
    check(Form { types, ..DENSE }, 100, 144, &[70], &[(Keep::No, 104, 128)]);
}

#[test]
fn few_rows_swapped_and_not() {
    let few = |tile, swapped| Form { tile, swapped, ..DENSE };
    check(few([64, 16, 256], true), 200, 656, &[3, 16, 21], &[(Keep::No, 16, 128); 2]);
    check(few([64, 64, 256], true), 136, 272, &[50], &[(Keep::No, 64, 128); 2]);
    check(few([128, 64, 256], false), 200, 272, &[100], &[(Keep::No, 64, 128); 2]);
    // Rows of experts, so that weights are read once: two products of 128 rows.
    check(few([256, 128, 128], false), 136, 272, &[250, 3], &[(Keep::No, 128, 128); 2]);
}

/// Scales for 32 terms, of each row on both sides: four products of one tile.
#[test]
fn short_blocks() {
    let form = Form { block: 32, weights: 1, ..DENSE };
    let spread = spread_block(&product("scaled", form, 264, 208), &Hopper::H100).unwrap();
    assert_eq!(spread.block.unwrap().shared.len(), 3, "one tile of `x`, one of `w`, one for results");
    check(form, 264, 208, &[131], &[(Keep::No, 64, 32); 4]);
    check(Form { tile: [64, 16, 128], swapped: true, ..form }, 72, 48, &[9], &[(Keep::No, 16, 32); 4]);
}

/// Rows of codes that do not begin at multiples of 16 bytes are not for bulk copies.
#[test]
fn odd_rows_are_for_the_ordinary_units() {
    assert!(!suits_block(&product("scaled", DENSE, 40, 129), &Hopper::H100));
    let small = Form { tile: [16, 16, 128], ..DENSE };
    agree(&product("scaled", small, 40, 129), &[("m", 7)]);
}
