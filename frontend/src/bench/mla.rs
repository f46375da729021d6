//! Latent attention: absorbed, of one new token a sequence (decode), and expanded, of a whole sequence (prefill).

use super::lab::{Fill, Lab, Operand, Program};
use super::reference::{attend, dot, part, places, relative_error};
use super::{Bench, BenchError, Case, Measured, Options};
use eva_ir::types::DType;

/// Columns of a head's key without position, rotary columns, a value's columns, and those of a latent.
#[derive(Clone, Copy)]
struct Widths {
    heads: usize,
    nope: usize,
    rope: usize,
    value: usize,
    latent: usize,
}

const FULL: Widths = Widths { heads: 128, nope: 128, rope: 64, value: 128, latent: 512 };
const SMALL: Widths = Widths { heads: 5, nope: 24, rope: 16, value: 40, latent: 72 };

/// How many rows are checked.
const ROWS: usize = 16;

/// Probabilities and results are rounded to bf16.
const LIMIT: f64 = 1e-2;

const DTYPE: DType = DType::Bf16;

impl Widths {
    fn of(options: &Options) -> Self {
        if options.full { FULL } else { SMALL }
    }

    /// On the scores.
    fn scale(self) -> f64 {
        ((self.nope + self.rope) as f64).sqrt().recip()
    }
}

/// Decode steps: sequences, and tokens in the cache, the new one counted.
pub fn decode_cases(options: &Options) -> Vec<Case> {
    let widths = Widths::of(options);
    let (batches, lengths): (&[usize], &[usize]) =
        if options.full { (&[1, 16, 64, 128], &[1024, 4096, 8192]) } else { (&[1, 3], &[130]) };
    let of = |batch: usize| {
        lengths.iter().map(move |&kv| Case {
            bench: Bench::MlaDecode,
            words: vec![("batch", batch.into()), ("kv", kv.into())],
            run: Box::new(move |lab| decode(lab, widths, batch, kv)),
        })
    };
    batches.iter().flat_map(|&batch| of(batch)).collect()
}

/// Prompts: tokens.
pub fn prefill_cases(options: &Options) -> Vec<Case> {
    let widths = Widths::of(options);
    let lengths: &[usize] = if options.full { &[2048, 4096, 8192] } else { &[70, 131] };
    let of = |&seq: &usize| Case {
        bench: Bench::MlaPrefill,
        words: vec![("seq", seq.into())],
        run: Box::new(move |lab| prefill(lab, widths, seq)),
    };
    lengths.iter().map(of).collect()
}

fn normal<'a>(name: &'a str, shape: &'a [usize]) -> Operand<'a> {
    Operand { name, dtype: DTYPE, shape, fill: Fill::Normal(0) }
}

fn decode(lab: &mut Lab, widths: Widths, batch: usize, kv: usize) -> Result<Measured, BenchError> {
    let Widths { heads, rope, latent, .. } = widths;
    let scale = widths.scale();
    let text = format!(
        "dim b dim s dim t dim h = {heads} dim c = {latent} dim p = {rope}
        fn @decode(weight %q: bf16[b, s, h, c], weight %ckv: bf16[b, t, c], weight %qpe: bf16[b, s, h, p],
                   weight %kpe: bf16[b, t, p], weight %start: i32[b]) -> bf16[b, s, h, c] {{
          %y = attend \"bshc,btc,bshp,btp,btd->bshd\" %q, %ckv, %qpe, %kpe, %ckv, %start {{scale = {scale}}}
            : bf16[b, s, h, c]
          return %y
        }}"
    );
    let (q, ckv, qpe, kpe) =
        ([batch, 1, heads, latent], [batch, kv, latent], [batch, 1, heads, rope], [batch, kv, rope]);
    let start = vec![kv as i32 - 1; batch];
    let operands = [
        normal("q", &q),
        normal("ckv", &ckv),
        normal("qpe", &qpe),
        normal("kpe", &kpe),
        Operand { name: "start", dtype: DType::I32, shape: &[batch], fill: Fill::Ints(&start) },
    ];
    let key = latent + rope;
    let program = Program {
        text: &text,
        function: "decode",
        operands: &operands,
        flops: 2.0 * (batch * heads * kv * (key + latent)) as f64,
        bytes: 2.0 * (batch * kv * key + batch * heads * (key + latent)) as f64,
        limit: LIMIT,
    };
    lab.measure(&program, &|lab, results| {
        let [q, ckv, qpe, kpe] = [0, 1, 2, 3].map(|operand| lab.elements(0, operand, 0));
        relative_error(places(ROWS, [batch, heads], 2).into_iter().flat_map(|[b, h]| {
            let row = b * heads + h;
            let (query, query_rope) = (q.row(row * latent, latent), qpe.row(row * rope, rope));
            let value = |j: usize| ckv.row((b * kv + j) * latent, latent);
            let score =
                |j: usize| dot(&query, &value(j)) + dot(&query_rope, &kpe.row((b * kv + j) * rope, rope));
            let scores: Vec<f64> = (0..kv).map(|j| score(j) * scale).collect();
            let want = attend(&scores, latent, value);
            part(&results[0], row * latent, latent).into_iter().zip(want)
        }))
    })
}

fn prefill(lab: &mut Lab, widths: Widths, seq: usize) -> Result<Measured, BenchError> {
    let Widths { heads, nope, rope, value, .. } = widths;
    let scale = widths.scale();
    let text = format!(
        "dim b dim s dim t dim h = {heads} dim n = {nope} dim p = {rope} dim v = {value}
        fn @prefill(weight %q: bf16[b, s, h, n], weight %k: bf16[b, t, h, n], weight %qpe: bf16[b, s, h, p],
                    weight %kpe: bf16[b, t, p], weight %v: bf16[b, t, h, v], weight %start: i32[b])
          -> bf16[b, s, h, v] {{
          %y = attend \"bshn,bthn,bshp,btp,bthv->bshv\" %q, %k, %qpe, %kpe, %v, %start {{scale = {scale}}}
            : bf16[b, s, h, v]
          return %y
        }}"
    );
    let (q, qpe, kpe, v) =
        ([1, seq, heads, nope], [1, seq, heads, rope], [1, seq, rope], [1, seq, heads, value]);
    let operands = [
        normal("q", &q),
        normal("k", &q),
        normal("qpe", &qpe),
        normal("kpe", &kpe),
        normal("v", &v),
        Operand { name: "start", dtype: DType::I32, shape: &[1], fill: Fill::Ints(&[0]) },
    ];
    let program = Program {
        text: &text,
        function: "prefill",
        operands: &operands,
        // Half of the scores are of tokens that come later.
        flops: (heads * seq * seq * (nope + rope + value)) as f64,
        bytes: 2.0 * (seq * (heads * (2 * nope + rope + 2 * value) + rope)) as f64,
        limit: LIMIT,
    };
    lab.measure(&program, &|lab, results| {
        let [q, k, qpe, kpe, v] = [0, 1, 2, 3, 4].map(|operand| lab.elements(0, operand, 0));
        relative_error(places(ROWS, [seq, heads], 3).into_iter().flat_map(|[i, h]| {
            let at = |token: usize, width: usize| (token * heads + h) * width;
            let (query, query_rope) = (q.row(at(i, nope), nope), qpe.row(at(i, rope), rope));
            let score = |j: usize| {
                dot(&query, &k.row(at(j, nope), nope)) + dot(&query_rope, &kpe.row(j * rope, rope))
            };
            let scores: Vec<f64> = (0..=i).map(|j| score(j) * scale).collect();
            let want = attend(&scores, value, |j| v.row(at(j, value), value));
            part(&results[0], at(i, value), value).into_iter().zip(want)
        }))
    })
}
