//! Products of 8-bit operands with DeepSeek-V3's scales (1 × 128 of activations, 128 × 128 of weights), dense and of
//! experts, and the quantization of activations.

use super::grouped::{FULL as WIDE, SMALL as NARROW, Widths};
use super::lab::{Fill, Lab, Operand, Program};
use super::reference::{part, places, relative_error};
use super::routing::{Routing, expert_of, hit};
use super::{Bench, BenchError, Case, Measured, Options, gemm};
use eva_ir::codes;
use eva_ir::ops::quantize::{code, scale};
use eva_ir::scales::Encoding;
use eva_ir::types::DType;
use eva_runtime::Tensor;

/// Terms, and rows of weights, that share a scale.
const BLOCK: usize = 128;
/// How many elements are checked.
const SAMPLE: usize = 256;
/// The exponents of codes and of scales.
const CODES: i32 = 3;
const SCALES: i32 = -6;
/// Rows and columns of what is quantized.
const QUANTIZED: [[usize; 2]; 2] = [[4096, 7168], [4096, 16384]];
const SMALL_QUANTIZED: [[usize; 2]; 2] = [[33, 300], [5, 128]];

const F8: DType = DType::F8E4M3;

/// Dense products, with the quantization of their activations too; products of experts; quantization.
pub fn cases(options: &Options) -> Vec<Case> {
    let (weights, rows) = gemm::shapes(options);
    let mut cases = Vec::new();
    let mut push = |words, run: super::Work| cases.push(Case { bench: Bench::Fp8, words, run });
    for &m in rows {
        for &[n, k] in weights {
            let words = vec![("op", "gemm".into()), ("m", m.into()), ("n", n.into()), ("k", k.into())];
            push(words, Box::new(move |lab| dense(lab, [m, n, k], false)));
        }
    }
    for &[n, k] in weights {
        let words = vec![("op", "linear".into()), ("m", rows[0].into()), ("n", n.into()), ("k", k.into())];
        let m = rows[0];
        push(words, Box::new(move |lab| dense(lab, [m, n, k], true)));
    }
    let (widths, experts, tokens): (Widths, usize, &[usize]) =
        if options.full { (WIDE, 256, &[4096, 128]) } else { (NARROW, 7, &[40]) };
    for &tokens in tokens {
        for gate_up in [true, false] {
            let name = if gate_up { "gate-up" } else { "down" };
            let words = vec![("op", "grouped".into()), ("proj", name.into()), ("tokens", tokens.into())];
            push(words, Box::new(move |lab| grouped(lab, widths, experts, tokens, gate_up)));
        }
    }
    for [m, k] in if options.full { QUANTIZED } else { SMALL_QUANTIZED } {
        let words = vec![("op", "quantize".into()), ("m", m.into()), ("k", k.into())];
        push(words, Box::new(move |lab| quantize(lab, [m, k])));
    }
    cases
}

fn operand<'a>(name: &'a str, dtype: DType, shape: &'a [usize]) -> Operand<'a> {
    let fill = match dtype {
        F8 => Fill::Normal(CODES),
        DType::F32 => Fill::Positive(SCALES),
        _ => Fill::Normal(0),
    };
    Operand { name, dtype, shape, fill }
}

/// The numbers that codes and scales stand for: `n` elements of operand `codes` from number `first` on, whose first scale is
/// number `scale` of operand `scales`.
fn numbers(lab: &Lab, [codes, first, n]: [usize; 3], [scales, scale]: [usize; 2]) -> Vec<f64> {
    let row = lab.elements(0, codes, CODES).row(first, n);
    let scales = lab.elements(0, scales, SCALES).positive();
    let number =
        |(i, x): (usize, f64)| codes::decode(F8, codes::encode(F8, x)) * scales.at(scale + i / BLOCK);
    row.into_iter().enumerate().map(number).collect()
}

/// Rows of bf16 as the quantizer has them.
fn quantized(row: &[f64]) -> Vec<(u8, f32)> {
    let block = |block: &[f64]| {
        let most = block.iter().fold(0f32, |m, x| m.max(x.abs() as f32));
        let scale = scale(most, F8, Encoding::F32, 1e-4);
        block.iter().map(|&x| (code(x as f32, scale, F8), scale)).collect::<Vec<_>>()
    };
    row.chunks(BLOCK).flat_map(block).collect()
}

/// Measures a product; where activations come in bf16, with their quantization.
fn dense(lab: &mut Lab, [m, n, k]: [usize; 3], quantizes: bool) -> Result<Measured, BenchError> {
    let (x, q) = if quantizes {
        let q = "%q = quantize %x {to = f8e4m3, per = [1, 128], scales = single, least = 1e-4} : f8e4m3[m, k/128]\n";
        ("%x: bf16[m, k]", q)
    } else {
        ("%x: f8e4m3[m, k/128]", "")
    };
    let (name, blocks) = (if quantizes { "q" } else { "x" }, k.div_ceil(BLOCK));
    let text = format!(
        "dim m dim n = {n} dim k = {k}
        fn @product(weight {x}, weight %w: f8e4m3[n/128, k/128]) -> bf16[m, n] {{
          {q} %y = einsum \"mk,nk->mn\" %{name}, %w : f32[m, n]
          %z = cast %y {{to = bf16}} : bf16[m, n]
          return %z
        }}"
    );
    let shapes = [[m, k], [n, k], [n.div_ceil(BLOCK), blocks], [m, blocks]];
    let mut operands = vec![
        operand("x", if quantizes { DType::Bf16 } else { F8 }, &shapes[0]),
        operand("w", F8, &shapes[1]),
        operand("w_scale_inv", DType::F32, &shapes[2]),
    ];
    if !quantizes {
        operands.push(operand("x_scale_inv", DType::F32, &shapes[3]));
    }
    let program = Program {
        text: &text,
        function: "product",
        operands: &operands,
        flops: 2.0 * (m * n * k) as f64,
        bytes: (m * k + n * k + 2 * m * n + 4 * (m * blocks + shapes[2][0] * blocks)) as f64,
        limit: 5e-3,
    };
    lab.measure(&program, &|lab, results| {
        relative_error(places(SAMPLE, [m, n], 1).into_iter().map(|[i, j]| {
            let x = if quantizes {
                let row = lab.elements(0, 0, 0).row(i * k, k);
                quantized(&row).into_iter().map(|(x, s)| codes::decode(F8, x) * f64::from(s)).collect()
            } else {
                numbers(lab, [0, i * k, k], [3, i * blocks])
            };
            let w = numbers(lab, [1, j * k, k], [2, j / BLOCK * blocks]);
            (part(&results[0], i * n + j, 1)[0], super::reference::dot(&x, &w))
        }))
    })
}

/// Measures a product of rows with their experts' weights.
fn grouped(
    lab: &mut Lab,
    widths: Widths,
    experts: usize,
    tokens: usize,
    gate_up: bool,
) -> Result<Measured, BenchError> {
    let offsets = Routing::random(tokens, widths.chosen, experts, 7).offsets;
    let rows = offsets[experts] as usize;
    let (n, k) = if gate_up { (2 * widths.inner, widths.hidden) } else { (widths.hidden, widths.inner) };
    let (blocks, tall) = (k.div_ceil(BLOCK), n.div_ceil(BLOCK));
    let text = format!(
        "dim g dim e = {experts} dim m = {k} dim f = {n}
        fn @experts(weight %x: f8e4m3[g, m/128], weight %w: f8e4m3[e, f/128, m/128], weight %offsets: i32[e + 1])
          -> bf16[g, f] {{
          %y = grouped \"gm,efm->gf\" %x, %w, %offsets : f32[g, f]
          %z = cast %y {{to = bf16}} : bf16[g, f]
          return %z
        }}"
    );
    let (x, w, bounds) = ([rows, k], [experts, n, k], [experts + 1]);
    let (x_scales, w_scales) = ([rows, blocks], [experts, tall, blocks]);
    let fill = Fill::Ints(&offsets);
    let operands = [
        operand("x", F8, &x),
        operand("w", F8, &w),
        operand("w_scale_inv", DType::F32, &w_scales),
        operand("x_scale_inv", DType::F32, &x_scales),
        Operand { name: "offsets", dtype: DType::I32, shape: &bounds, fill },
    ];
    let program = Program {
        text: &text,
        function: "experts",
        operands: &operands,
        flops: 2.0 * (rows * n * k) as f64,
        bytes: (hit(&offsets) * (n * k + 4 * tall * blocks) + rows * (2 * n + k + 4 * blocks)) as f64,
        limit: 5e-3,
    };
    let mut measured = lab.measure(&program, &|lab, results| {
        relative_error(places(SAMPLE, [rows, n], 4).into_iter().map(|[row, column]| {
            let expert = expert_of(&offsets, row);
            let x = numbers(lab, [0, row * k, k], [3, row * blocks]);
            let scale = (expert * tall + column / BLOCK) * blocks;
            let w = numbers(lab, [1, (expert * n + column) * k, k], [2, scale]);
            (part(&results[0], row * n + column, 1)[0], super::reference::dot(&x, &w))
        }))
    })?;
    let more = [("n", n), ("k", k), ("rows", rows), ("experts_hit", hit(&offsets))];
    measured.more.extend(more.map(|(name, n)| (name, n as f64)));
    Ok(measured)
}

/// Measures the quantization of rows: codes and scales must be those of the definition.
fn quantize(lab: &mut Lab, [m, k]: [usize; 2]) -> Result<Measured, BenchError> {
    let text = format!(
        "dim s dim m = {k}
        fn @rows(weight %x: bf16[s, m]) -> f8e4m3[s, m/128] {{
          %q = quantize %x {{to = f8e4m3, per = [1, 128], scales = single, least = 1e-4}} : f8e4m3[s, m/128]
          return %q
        }}"
    );
    let (shape, blocks) = ([m, k], k.div_ceil(BLOCK));
    let operands = [operand("x", DType::Bf16, &shape)];
    let bytes = (3 * m * k + 4 * m * blocks) as f64;
    let (operands, function) = (&operands[..], "rows");
    let program = Program { text: &text, function, operands, flops: 0.0, bytes, limit: 0.0 };
    let mut measured = lab.measure(&program, &|lab, results: &[Tensor]| {
        relative_error(places(16, [m], 5).into_iter().flat_map(|[row]| {
            let want = quantized(&lab.elements(0, 0, 0).row(row * k, k));
            let scales = part(&results[1], row * blocks, blocks);
            let scales = scales.into_iter().zip(want.iter().step_by(BLOCK).map(|(_, s)| f64::from(*s)));
            let codes = part(&results[0], row * k, k).into_iter().zip(&want);
            let codes = codes.map(|(have, (want, _))| (have, codes::decode(F8, *want)));
            codes.chain(scales).collect::<Vec<_>>()
        }))
    })?;
    let copied = lab.copy_rate(16 * m * k)?;
    measured.more = vec![("copy_gbps", copied), ("of_copy", measured.gigabytes() / copied)];
    Ok(measured)
}
