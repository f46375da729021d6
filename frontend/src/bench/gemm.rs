//! Products `y[m, n] = x[m, k] · w[n, k]ᵀ` of dense layers, with many rows and few.

use super::lab::{Fill, Lab, Operand, Program};
use super::reference::{dot, part, places, relative_error};
use super::{Bench, BenchError, Case, Measured, Options};
use eva_ir::types::DType;

/// Columns and terms of DeepSeek-V3's dense products.
const FULL: [[usize; 2]; 5] = [[2112, 7168], [24576, 1536], [7168, 16384], [4096, 7168], [7168, 2048]];
/// Rows: a prompt's, and those of decode steps.
const ROWS: [usize; 5] = [4096, 1, 16, 64, 128];

const SMALL: [[usize; 2]; 2] = [[264, 896], [520, 200]];
const FEW_ROWS: [usize; 2] = [130, 1];

/// How many elements are checked.
const SAMPLE: usize = 256;

/// Columns and terms of weights, and numbers of rows.
pub(super) fn shapes(options: &Options) -> (&'static [[usize; 2]], &'static [usize]) {
    if options.full { (&FULL, &ROWS) } else { (&SMALL, &FEW_ROWS) }
}

/// Every shape of weights with every number of rows.
pub fn cases(options: &Options) -> Vec<Case> {
    let (weights, rows) = shapes(options);
    let (dtype, tf32) = (options.dtype, options.tf32 && options.dtype == DType::F32);
    let name = if tf32 { DType::Tf32.name() } else { dtype.name() };
    let of = |m: usize| {
        weights.iter().map(move |&[n, k]| Case {
            bench: Bench::Gemm,
            words: vec![("m", m.into()), ("n", n.into()), ("k", k.into()), ("dtype", name.into())],
            run: Box::new(move |lab| run(lab, dtype, [m, n, k])),
        })
    };
    rows.iter().flat_map(|&m| of(m)).collect()
}

/// Measures one product of these rows, columns and terms.
pub(super) fn run(lab: &mut Lab, dtype: DType, [m, n, k]: [usize; 3]) -> Result<Measured, BenchError> {
    let text = format!(
        "dim m dim n = {n} dim k = {k}
        fn @product(weight %x: {dtype}[m, k], weight %w: {dtype}[n, k]) -> {dtype}[m, n] {{
          %y = einsum \"mk,nk->mn\" %x, %w : {dtype}[m, n]
          return %y
        }}"
    );
    let (x, w, fill) = ([m, k], [n, k], Fill::Normal(0));
    let operands =
        [Operand { name: "x", dtype, shape: &x, fill }, Operand { name: "w", dtype, shape: &w, fill }];
    let program = Program {
        text: &text,
        function: "product",
        operands: &operands,
        flops: 2.0 * (m * n * k) as f64,
        bytes: ((m * k + n * k + m * n) * dtype.bytes() as usize) as f64,
        // Results are rounded to bf16, which alone makes 0.0017.
        limit: if dtype == DType::F32 && !lab.rounds() { 1e-5 } else { 5e-3 },
    };
    lab.measure(&program, &|lab, results| {
        let (x, w) = (lab.elements(0, 0, 0), lab.elements(0, 1, 0));
        relative_error(
            places(SAMPLE, [m, n], 1)
                .into_iter()
                .map(|[i, j]| (part(&results[0], i * n + j, 1)[0], dot(&x.row(i * k, k), &w.row(j * k, k)))),
        )
    })
}
