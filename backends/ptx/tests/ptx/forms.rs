//! Every form of a product: types, operands as they lie and transposed, from registers, parts of tiles.

use crate::agree::{agree_within, random};
use crate::build::Build;
use crate::gate::{count, pass};
use eva_ir::dim::Dim;
use eva_ir::kernel::block::{BlockInst, Keep, MmaLeft, MmaTile, Shared};
use eva_ir::kernel::run::Storage;
use eva_ir::kernel::{Access, Buf, Elem, Fn2, Kernel, Reg, Space};
use eva_ir::types::DType;

/// Where the left operand is.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Left {
    Rows,
    Columns,
    Registers,
}

/// A product of one warpgroup, of two that share the right operand's tile.
#[derive(Clone, Copy, Debug)]
struct Form {
    types: [DType; 2],
    left: Left,
    /// Whether the right operand's tile has terms along its rows.
    transposed: bool,
    n: usize,
    k: usize,
    /// The first term in each tile, and the first row of the right operand.
    first: [usize; 2],
    b_row: usize,
}

impl Form {
    /// Rows and columns of the tiles, whole panels of them.
    fn tiles(&self) -> [[usize; 2]; 2] {
        let whole = |n: usize, dtype: DType| n.next_multiple_of(128 / dtype.bytes() as usize);
        let lie = |rows: usize, terms: usize, turned: bool, dtype: DType| match turned {
            false => [rows.next_multiple_of(8), whole(terms, dtype)],
            true => [terms.next_multiple_of(8), whole(rows, dtype)],
        };
        [
            lie(128, self.first[0] + self.k, self.left == Left::Columns, self.types[0]),
            lie(self.b_row + self.n, self.first[1] + self.k, self.transposed, self.types[1]),
        ]
    }

    fn name(&self) -> String {
        let [a, b] = self.types;
        let turned = if self.transposed { "_transposed" } else { "" };
        format!("form_{a}_{b}_{:?}{turned}_{}_{}", self.left, self.n, self.k).to_lowercase()
    }
}

/// Brings a buffer of as many elements to a tile, eight at once.
fn fill(b: &mut Build, buf: Buf, tile: Shared, elements: usize) {
    let (thread, threads) = (b.thread(), 256);
    let trips = b.int((elements / 8).div_ceil(threads) as i64);
    b.repeat(trips, &[], |b, trip, _| {
        let at = b.by(Fn2::Mul, trip, threads as i64);
        let at = b.zip(Fn2::Add, at, thread);
        let at = b.by(Fn2::Mul, at, 8);
        let inside = b.by(Fn2::Lt, at, elements as i64);
        let numbers = b.load(Space::Buf(buf), at, 8, Some(inside));
        b.store(Space::Shared(tile), at, numbers, Some(inside));
        vec![]
    });
}

/// The row and columns of each slot, in the whole of 128 rows.
fn places(b: &mut Build, n: usize) -> Reg {
    let thread = b.thread();
    let (warp, lane) = (b.by(Fn2::Div, thread, 32), b.by(Fn2::Rem, thread, 32));
    let (quad, pair) = (b.by(Fn2::Div, lane, 4), b.by(Fn2::Rem, lane, 4));
    let row = b.by(Fn2::Mul, warp, 16);
    let row = b.zip(Fn2::Add, row, quad);
    let row = b.by(Fn2::Mul, row, n as i64);
    let col = b.by(Fn2::Mul, pair, 2);
    let at = b.zip(Fn2::Add, row, col);
    let steps = (0..n as i64 / 4).map(|i| 8 * n as i64 * (i % 2) + 8 * (i / 2));
    let steps = b.slots(&steps.collect::<Vec<_>>());
    b.zip(Fn2::Add, at, steps)
}

/// Three products one after the other: a first one, one that is added to it, and one that is added where the number of
/// columns is even, so always.
fn kernel(form: &Form) -> Kernel {
    let mut b = Build::new(&form.name(), 8);
    let [a_size, b_size] = form.tiles();
    let flat = |[rows, cols]: [usize; 2]| [Dim::from((rows * cols) as i64)];
    let a_buf = b.buf("a", form.types[0], Access::Read, &flat(a_size));
    let b_buf = b.buf("b", form.types[1], Access::Read, &flat(b_size));
    let c_buf = b.buf("c", DType::F32, Access::Write, &flat([128, form.n]));
    let extra = b.buf("left", DType::F32, Access::Read, &flat([128, form.k]));
    let a_tile = b.shared(form.types[0], [1, a_size[0], a_size[1]], true);
    let b_tile = b.shared(form.types[1], [2, b_size[0], b_size[1]], true);
    fill(&mut b, a_buf, a_tile, a_size[0] * a_size[1]);
    fill(&mut b, b_buf, b_tile, b_size[0] * b_size[1]);
    b.inst(BlockInst::FenceAsync);
    b.barrier(0, 8);

    let thread = b.thread();
    let group = b.by(Fn2::Div, thread, 128);
    let row = b.by(Fn2::Mul, group, 64);
    let left = match form.left {
        Left::Registers => {
            let at = places(&mut b, form.k);
            MmaLeft::Registers(b.load(Space::Buf(extra), at, 2, None))
        }
        left => {
            let turn = b.int(5);
            let transposed = left == Left::Columns;
            MmaLeft::Shared { tile: MmaTile { tile: a_tile, turn, transposed, first: form.first[0] }, row }
        }
    };
    // An even turn of two stages is the first one, which was filled.
    let (turn, b_row) = (b.int(6), b.int(form.b_row as i64));
    let right = MmaTile { tile: b_tile, turn, transposed: form.transposed, first: form.first[1] };
    let zero = b.float(0.0, form.n / 2);
    let sums = b.mma(zero, Keep::No, left, (right, b_row), form.k);
    let sums = b.mma(sums, Keep::Yes, left, (right, b_row), form.k);
    let rest = b.by(Fn2::Rem, b_row, 2);
    let even = b.by(Fn2::Eq, rest, 0);
    assert_eq!(b.ty(even).elem, Elem::Bool);
    let sums = b.mma(sums, Keep::When(even), left, (right, b_row), form.k);
    let sums = b.mma_wait(0, &[sums])[0];
    let at = places(&mut b, form.n);
    b.store(Space::Buf(c_buf), at, sums, None);
    b.finish()
}

/// A product of 64 by 8 by 16, as small as they come, and two more.
pub fn small() -> Kernel {
    kernel(&Form { n: 8, k: 16, ..SIMPLE })
}

fn check(form: Form) {
    let kernel = kernel(&form);
    let [a_size, b_size] = form.tiles();
    let storages = vec![
        Storage::new(form.types[0], random(1, a_size[0] * a_size[1])),
        Storage::new(form.types[1], random(2, b_size[0] * b_size[1])),
        Storage::unwritten(DType::F32, 128 * form.n),
        Storage::new(DType::F32, random(3, 128 * form.k).map(|x| f64::from(x as f32))),
    ];
    agree_within(&kernel, &[], storages, [0.0, 1e-6]);
    let (ptx, _) = pass(&kernel);
    let steps = form.k * form.types[0].bytes() as usize / 32;
    assert_eq!(count(&ptx.text, "wgmma.mma_async"), 3 * steps, "{}", ptx.text);
    assert_eq!(count(&ptx.text, "wgmma.commit_group"), 3, "{}", ptx.text);
}

const SIMPLE: Form = Form {
    types: [DType::Bf16; 2],
    left: Left::Rows,
    transposed: false,
    n: 40,
    k: 48,
    first: [0; 2],
    b_row: 0,
};

#[test]
fn operands_of_16_bits_lie_either_way() {
    for types in [[DType::Bf16; 2], [DType::F16; 2]] {
        for left in [Left::Rows, Left::Columns, Left::Registers] {
            for transposed in [false, true] {
                check(Form { types, left, transposed, ..SIMPLE });
            }
        }
    }
}

#[test]
fn operands_of_8_bits_are_mixed() {
    use DType::{F8E4M3, F8E5M2};
    for types in [[F8E4M3, F8E4M3], [F8E4M3, F8E5M2], [F8E5M2, F8E4M3], [F8E5M2, F8E5M2]] {
        check(Form { types, k: 96, n: 24, ..SIMPLE });
    }
    check(Form { types: [F8E4M3; 2], k: 160, n: 16, first: [64, 32], b_row: 8, ..SIMPLE });
}

#[test]
fn terms_and_rows_begin_anywhere() {
    // Beyond a panel of 64 terms, on both sides.
    check(Form { k: 80, first: [32, 48], b_row: 16, ..SIMPLE });
    check(Form { left: Left::Columns, k: 32, first: [16, 80], b_row: 8, n: 72, ..SIMPLE });
    // Columns of one panel, and of several.
    check(Form { transposed: true, first: [64, 16], b_row: 8, n: 56, ..SIMPLE });
    check(Form { transposed: true, k: 64, first: [0, 32], b_row: 64, n: 136, ..SIMPLE });
}

#[test]
fn products_are_narrow_and_wide() {
    check(Form { n: 8, k: 16, ..SIMPLE });
    check(Form { n: 256, k: 32, ..SIMPLE });
    check(Form { n: 256, k: 16, transposed: true, ..SIMPLE });
}
