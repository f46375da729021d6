//! Kernels that go over rows and do little with them, which memory bounds: beside the device's own copy.

use super::lab::{Fill, Lab, Operand, Program};
use super::reference::{part, places, relative_error};
use super::routing::Routing;
use super::{Bench, BenchError, Case, Measured, Options};
use eva_ir::types::DType;
use eva_runtime::Tensor;

/// Tokens, columns of the residual stream and of an expert, and experts: in all, and for a token.
#[derive(Clone, Copy)]
struct Sizes {
    tokens: usize,
    hidden: usize,
    inner: usize,
    experts: usize,
    chosen: usize,
}

const FULL: Sizes = Sizes { tokens: 4096, hidden: 7168, inner: 2048, experts: 256, chosen: 8 };
const SMALL: Sizes = Sizes { tokens: 67, hidden: 328, inner: 136, experts: 7, chosen: 3 };

/// How many rows are checked.
const ROWS: usize = 16;

/// On the mean square of a norm.
const EPS: f64 = 1e-6;

/// Each op, and a copy.
pub fn cases(options: &Options) -> Vec<Case> {
    let sizes = if options.full { FULL } else { SMALL };
    let case = |op: &'static str, run: fn(&mut Lab, Sizes) -> Result<Measured, BenchError>| Case {
        bench: Bench::Rows,
        words: vec![("op", op.into()), ("tokens", sizes.tokens.into())],
        run: Box::new(move |lab| run(lab, sizes)),
    };
    vec![
        case("copy", copy),
        case("rms_norm", rms_norm),
        case("add", add),
        case("silu_mul", silu_mul),
        case("dispatch", dispatch),
        case("combine", combine),
    ]
}

fn normal<'a>(name: &'a str, shape: &'a [usize]) -> Operand<'a> {
    Operand { name, dtype: DType::Bf16, shape, fill: Fill::Normal(0) }
}

fn ints<'a>(name: &'a str, shape: &'a [usize], numbers: &'a [i32]) -> Operand<'a> {
    Operand { name, dtype: DType::I32, shape, fill: Fill::Ints(numbers) }
}

/// The device's own copy of what `rms_norm` goes over.
fn copy(lab: &mut Lab, sizes: Sizes) -> Result<Measured, BenchError> {
    lab.copy(sizes.copied())
}

impl Sizes {
    /// Bytes that are copied: more than fit a cache.
    fn copied(self) -> usize {
        16 * 2 * self.tokens * self.hidden
    }
}

/// Measures a program whose result has rows of `width`, each given by `want`.
fn run(
    lab: &mut Lab,
    sizes: Sizes,
    program: Program<'_>,
    [rows, width]: [usize; 2],
    want: &dyn Fn(&Lab, usize) -> Vec<f64>,
) -> Result<Measured, BenchError> {
    let mut measured = lab.measure(&program, &|lab: &Lab, results: &[Tensor]| {
        relative_error(
            places(ROWS, [rows], 5)
                .into_iter()
                .flat_map(|[row]| part(&results[0], row * width, width).into_iter().zip(want(lab, row))),
        )
    })?;
    let copied = lab.copy_rate(sizes.copied())?;
    measured.more = vec![("copy_gbps", copied), ("of_copy", measured.gigabytes() / copied)];
    Ok(measured)
}

fn program<'a>(text: &'a str, operands: &'a [Operand<'a>], bytes: usize) -> Program<'a> {
    Program { text, function: "rows", operands, flops: 0.0, bytes: bytes as f64, limit: 5e-3 }
}

fn rms_norm(lab: &mut Lab, sizes: Sizes) -> Result<Measured, BenchError> {
    let Sizes { tokens, hidden, .. } = sizes;
    let text = format!(
        "dim s dim m = {hidden}
        fn @rows(weight %x: bf16[s, m], weight %gain: bf16[m]) -> bf16[s, m] {{
          %y = rms_norm %x, %gain {{eps = {EPS}}} : bf16[s, m]
          return %y
        }}"
    );
    let shape = [tokens, hidden];
    let operands = [normal("x", &shape), normal("gain", &shape[1..])];
    let program = program(&text, &operands, 2 * (2 * tokens + 1) * hidden);
    run(lab, sizes, program, shape, &|lab, row| {
        let (x, gain) = (lab.elements(0, 0, 0).row(row * hidden, hidden), lab.elements(0, 1, 0));
        let mean = x.iter().map(|x| x * x).sum::<f64>() / hidden as f64;
        x.iter().zip(gain.row(0, hidden)).map(|(x, gain)| x / (mean + EPS).sqrt() * gain).collect()
    })
}

fn add(lab: &mut Lab, sizes: Sizes) -> Result<Measured, BenchError> {
    let Sizes { tokens, hidden, .. } = sizes;
    let text = format!(
        "dim s dim m = {hidden}
        fn @rows(weight %x: bf16[s, m], weight %z: bf16[s, m]) -> bf16[s, m] {{
          %y = add %x, %z : bf16[s, m]
          return %y
        }}"
    );
    let shape = [tokens, hidden];
    let operands = [normal("x", &shape), normal("z", &shape)];
    let program = program(&text, &operands, 2 * 3 * tokens * hidden);
    run(lab, sizes, program, shape, &|lab, row| {
        let [x, z] = [0, 1].map(|operand| lab.elements(0, operand, 0).row(row * hidden, hidden));
        x.iter().zip(z).map(|(x, z)| x + z).collect()
    })
}

fn silu_mul(lab: &mut Lab, sizes: Sizes) -> Result<Measured, BenchError> {
    let Sizes { tokens, inner, chosen, .. } = sizes;
    let text = format!(
        "dim s dim f = {inner}
        fn @rows(weight %gate: bf16[s, f], weight %up: bf16[s, f]) -> bf16[s, f] {{
          %a = silu %gate : bf16[s, f]
          %y = mul %a, %up : bf16[s, f]
          return %y
        }}"
    );
    let shape = [tokens * chosen, inner];
    let operands = [normal("gate", &shape), normal("up", &shape)];
    let program = program(&text, &operands, 2 * 3 * tokens * chosen * inner);
    run(lab, sizes, program, shape, &|lab, row| {
        let [gate, up] = [0, 1].map(|operand| lab.elements(0, operand, 0).row(row * inner, inner));
        gate.iter().zip(up).map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up).collect()
    })
}

fn dispatch(lab: &mut Lab, sizes: Sizes) -> Result<Measured, BenchError> {
    let Sizes { tokens, hidden, experts, chosen, .. } = sizes;
    let text = format!(
        "dim s dim k = {chosen} dim m = {hidden}
        fn @rows(weight %x: bf16[s, m], weight %order: i32[s * k]) -> bf16[s * k, m] {{
          %y = dispatch %x, %order {{k = [k]}} : bf16[s * k, m]
          return %y
        }}"
    );
    let Routing { order, .. } = Routing::random(tokens, chosen, experts, 7);
    let (x, items) = ([tokens, hidden], [tokens * chosen]);
    let operands = [normal("x", &x), ints("order", &items, &order)];
    let bytes = 2 * tokens * (chosen + 1) * hidden + 4 * tokens * chosen;
    run(lab, sizes, program(&text, &operands, bytes), [tokens * chosen, hidden], &|lab, row| {
        lab.elements(0, 0, 0).row(order[row] as usize / chosen * hidden, hidden)
    })
}

fn combine(lab: &mut Lab, sizes: Sizes) -> Result<Measured, BenchError> {
    let Sizes { tokens, hidden, experts, chosen, .. } = sizes;
    let text = format!(
        "dim s dim k = {chosen} dim m = {hidden}
        fn @rows(weight %position: i32[s, k], weight %weight: f32[s, k], weight %rows: bf16[s * k, m])
          -> bf16[s, m] {{
          %y = combine %rows, %position, %weight : bf16[s, m]
          return %y
        }}"
    );
    let Routing { position, .. } = Routing::random(tokens, chosen, experts, 7);
    let (rows, items) = ([tokens * chosen, hidden], [tokens, chosen]);
    let weight = Operand { name: "weight", dtype: DType::F32, shape: &items, fill: Fill::Normal(0) };
    let operands = [ints("position", &items, &position), weight, normal("rows", &rows)];
    let bytes = 2 * tokens * (chosen + 1) * hidden + 8 * tokens * chosen;
    run(lab, sizes, program(&text, &operands, bytes), [tokens, hidden], &|lab, token| {
        let (weight, rows) = (lab.elements(0, 1, 0), lab.elements(0, 2, 0));
        let mut sum = vec![0.0; hidden];
        let weights = weight.row(token * chosen, chosen);
        for (&place, weight) in position[token * chosen..].iter().zip(weights) {
            let row = rows.row(place as usize * hidden, hidden);
            sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += weight * x);
        }
        sum
    })
}
