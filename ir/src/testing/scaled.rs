//! Products of codes with scales for blocks of terms, as kernels of the tile phase.

use crate::dim::Dim;
use crate::kernel::build::{Build, Tile};
use crate::kernel::{Access, BufData, Kernel};
use crate::lower::row_major_strides;
use crate::ops::einsum::sums::{Cut, Side, sums};
use crate::types::DType;

const BOTH: [Option<usize>; 2] = [Some(0), Some(1)];

/// How a product is cut, and where its scales differ: those of the left operand in each row.
#[derive(Clone, Copy)]
pub struct Form {
    /// The most rows, columns and terms of a tile.
    pub tile: [usize; 3],
    /// Terms that share a scale.
    pub block: usize,
    /// Rows of weights that share a scale.
    pub weights: usize,
    /// Whether the weights are the rows of tiles.
    pub swapped: bool,
    /// The operands' types.
    pub types: [DType; 2],
}

/// For many rows.
pub const DENSE: Form = Form {
    tile: [128, 256, 128],
    block: 128,
    weights: 128,
    swapped: false,
    types: [DType::F8E4M3, DType::F8E4M3],
};

/// `y[m, n] = x[m, k] · w[n, k]ᵀ`, with scales of `x` by blocks of terms first, as activations have them.
pub fn product(name: &str, form: Form, n_all: i64, k_all: i64) -> Kernel {
    let k = Build::new(name);
    write(&k, form, n_all, k_all);
    k.finish()
}

fn write<'k>(k: &'k Build, form: Form, n_all: i64, k_all: i64) {
    let Form { tile, block, weights, swapped, types } = form;
    let blocks = (k_all + block as i64 - 1) / block as i64;
    let rows = (n_all + weights as i64 - 1) / weights as i64;
    let n = Dim::from;
    let buf = |name: &str, dtype: DType, access: Access, shape: &[Dim]| {
        let strides = row_major_strides(shape);
        let (name, shape, offset) = (name.into(), shape.to_vec(), Dim::from(0));
        k.buf(BufData { name, dtype, access, shape, strides, offset, scaled: None })
    };
    let x = buf("x", types[0], Access::Read, &[Dim::sym("m"), n(k_all)]);
    let w = buf("w", types[1], Access::Read, &[n(n_all), n(k_all)]);
    let x_scales = buf("x_scales", DType::F32, Access::Read, &[n(blocks), Dim::sym("m")]);
    let w_scales = buf("w_scales", DType::F32, Access::Read, &[n(rows), n(blocks)]);
    let y = buf("y", DType::Bf16, Access::Write, &[Dim::sym("m"), n(n_all)]);

    let right = if swapped || weights == 1 { None } else { Some(weights) };
    let cut = Cut::new(tile, (!swapped).then_some(n_all as usize), block, right, false);
    let (m_tile, n_tile) = if swapped { (cut.cols, cut.rows) } else { (cut.rows, cut.cols) };
    let i = k.program(Dim::sym("m"), m_tile as i64) * m_tile as i64;
    let j = k.program(n(n_all), n_tile as i64) * n_tile as i64;
    let x_codes = |first: usize, shape: [usize; 2], term: Tile<'k>| {
        k.load(x, &[i + first as i64, term], BOTH, shape, &[])
    };
    let w_codes = |first: usize, shape: [usize; 2], term: Tile<'k>| {
        k.load(w, &[j + first as i64, term], BOTH, shape, &[])
    };
    let x_scale = |first: usize, rows: usize, number: Tile<'k>| {
        let (axes, shape) = if swapped { ([None, Some(1)], [1, rows]) } else { ([Some(1), None], [rows, 1]) };
        Some(k.load(x_scales, &[number, i + first as i64], axes, shape, &[]))
    };
    let w_scale = |first: usize, rows: usize, number: Tile<'k>| {
        if weights == 1 {
            let (axes, shape) =
                if swapped { ([Some(0), None], [rows, 1]) } else { ([None, Some(0)], [1, rows]) };
            return Some(k.load(w_scales, &[j + first as i64, number], axes, shape, &[]));
        }
        Some(k.load_scalar(w_scales, &[(j + first as i64) / weights as i64, number]))
    };
    let x = Side { codes: &x_codes, scales: &x_scale };
    let w = Side { codes: &w_codes, scales: &w_scale };
    let sides = if swapped { [&w, &x] } else { [&x, &w] };
    let (tops, firsts) = cut.firsts();
    let places = tops.iter().flat_map(|&top| firsts.iter().map(move |&first| [top as i64, first as i64]));
    for ([top, first], &sum) in places.zip(&sums(k, cut, k.int(k_all), sides)) {
        if swapped {
            k.store(y, &[i + first, j + top], [Some(1), Some(0)], &[], sum);
        } else {
            k.store(y, &[i + top, j + first], BOTH, &[], sum);
        }
    }
}
