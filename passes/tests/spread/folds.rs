//! Rows whose blocks are folded one by one: on a GPU they lie where the row does, unless something needs them elsewhere.

use crate::support::*;
use eva_ir::kernel::Kernel;
use eva_ir::kernel::build::{Build, Tile};
use eva_passes::spread::spread_block;
use eva_passes::target::Hopper;

const COLS: [Option<usize>; 2] = [None, Some(1)];

/// A kernel that loads a row of `x`, in `blocks` of `cols`, and stores what `body` makes of it as a row of `y` and, for
/// each block, of `z`; `body` has the row as blocks, and a number and a row of numbers for each block.
fn kernel(
    blocks: usize,
    cols: usize,
    body: impl for<'k> Fn(&'k Build, Tile<'k>, Tile<'k>, Tile<'k>) -> [Tile<'k>; 2],
) -> Kernel {
    let k = Build::new("blocks");
    let all = blocks * cols;
    let [row_of_x, row_of_z] = [all, blocks].map(|len| [sym("t"), n(len as i64)]);
    let (x, y) = (k.buf(read("x", &row_of_x)), k.buf(write("y", &row_of_x)));
    let (z, own) = (k.buf(write("z", &row_of_z)), k.buf(read("own", &row_of_z[1..])));
    let each = k.buf(read("each", &[n(cols as i64)]));
    let (row, zero) = (k.program(sym("t"), 1), k.int(0));
    let tile = k.load(x, &[row, zero], COLS, [1, all], &[]);
    let own = k.load(own, &[zero], [Some(0), None], [blocks, 1], &[]);
    let each = k.load(each, &[zero], [None, Some(0)], [1, cols], &[]);
    let [whole, of_blocks] = body(&k, tile.reshape([blocks, cols]), own, each);
    k.store(y, &[row, zero], COLS, &[], whole.reshape([1, all]) + tile.sum_along(1));
    k.store(z, &[row, zero], COLS, &[], of_blocks.reshape([1, blocks]));
    k.finish()
}

/// Whether a row's elements change places through shared memory.
fn is_moved(kernel: &Kernel, elements: usize) -> bool {
    let spread = spread_block(kernel, &Hopper::H100).unwrap();
    let shared = &spread.block.as_ref().unwrap().shared;
    shared.iter().any(|(_, data)| data.rows * data.cols >= elements)
}

const SHAPES: [(usize, usize); 8] =
    [(5, 128), (56, 128), (12, 128), (13, 32), (45, 16), (3, 8), (2, 64), (17, 256)];

#[test]
fn blocks_lie_where_their_row_does() {
    for (blocks, cols) in SHAPES {
        let kernel = kernel(blocks, cols, |k, x, _, each| {
            let most = x.max(-x).max_along(1).max(k.full([blocks, 1], 0.5));
            let y = x * most.recip() * each;
            [most.lt(x + most).select(y, x), most + y.sum_along(1)]
        });
        agree_on(&kernel, &[("t", 3)], &eighths, 1e-9);
        assert!(!is_moved(&kernel, blocks * cols), "{blocks} blocks of {cols}");
    }
}

/// Numbers of blocks that are loaded, folds over blocks, loops, and blocks whose length is no power of two.
#[test]
fn what_needs_other_places_gets_them() {
    // What changes places has blocks as rows, of which a thread has few.
    let short = SHAPES.into_iter().filter(|(blocks, cols)| blocks * cols < 2000);
    for (blocks, cols) in short.chain([(7, 48), (9, 5), (31, 3)]) {
        agree(
            &kernel(blocks, cols, |_, x, own, _| {
                let most = x.max_along(1);
                [x + own, most - own]
            }),
            &[("t", 3)],
        );
        agree(
            &kernel(blocks, cols, |_, x, own, each| [(x - x.max_along(0)) * each, x.min_along(1) + own]),
            &[("t", 2)],
        );
        agree(
            &kernel(blocks, cols, |k, x, _, each| {
                let [sum] = k.fold(k.int(3), [x], |_, [sum]| [sum + x.max_along(1)]);
                [sum + each, sum.max_along(1) - x.max_along(1)]
            }),
            &[("t", 2)],
        );
        agree(
            &kernel(blocks, cols, |_, x, _, _| {
                let turned = (x * 2.0).reshape([cols, blocks]);
                [turned + x.reshape([cols, blocks]).max_along(0), x.max_along(1)]
            }),
            &[("t", 2)],
        );
    }
}
