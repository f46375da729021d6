//! Products of rows, sorted by expert, with their experts' weights.

use super::lab::{Fill, Lab, Operand, Program};
use super::reference::{dot, part, places, relative_error};
use super::routing::{Routing, expert_of, hit};
use super::{Bench, BenchError, Case, Measured, Options};
use eva_ir::types::DType;

/// The widths of the residual stream and of an expert, and how many experts a token goes to.
#[derive(Clone, Copy)]
pub(super) struct Widths {
    pub hidden: usize,
    pub inner: usize,
    pub chosen: usize,
}

pub(super) const FULL: Widths = Widths { hidden: 7168, inner: 2048, chosen: 8 };
pub(super) const SMALL: Widths = Widths { hidden: 264, inner: 136, chosen: 3 };

/// What is multiplied.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Projection {
    /// Gate and up as one product.
    GateUp,
    /// Gate and up as two products, and `silu(gate) · up`, as the model has it.
    SwiGlu,
    /// Down.
    Down,
}

impl Projection {
    fn name(self) -> &'static str {
        match self {
            Projection::GateUp => "gate-up",
            Projection::SwiGlu => "swiglu",
            Projection::Down => "down",
        }
    }
}

/// How many rows an expert gets.
#[derive(Clone, Copy)]
enum Rows {
    /// So many tokens are routed at random.
    Tokens(usize),
    /// Every expert gets as many.
    Each(usize),
}

/// How many elements are checked.
const SAMPLE: usize = 256;

/// The exponent of the weights, which keeps sums of some thousand products near 1.
const EXPONENT: i32 = -6;

/// Prompts, and decode steps.
pub fn cases(options: &Options) -> Vec<Case> {
    use Projection::{Down, GateUp, SwiGlu};
    use Rows::{Each, Tokens};
    let full: [(usize, Rows, &[Projection]); 6] = [
        (256, Tokens(4096), &[GateUp, SwiGlu, Down]),
        (64, Tokens(4096), &[GateUp, Down]),
        (32, Each(1024), &[GateUp, Down]),
        (256, Tokens(1), &[GateUp, Down]),
        (256, Tokens(32), &[GateUp, Down]),
        (256, Tokens(128), &[GateUp, Down]),
    ];
    let small: [(usize, Rows, &[Projection]); 3] =
        [(7, Tokens(40), &[GateUp, SwiGlu, Down]), (5, Each(9), &[Down]), (7, Tokens(1), &[GateUp])];
    let (widths, kinds) = if options.full { (FULL, &full[..]) } else { (SMALL, &small[..]) };
    let of = |&(experts, rows, projections): &(usize, Rows, &'static [Projection])| {
        projections.iter().map(move |&projection| Case {
            bench: Bench::Grouped,
            words: vec![
                ("proj", projection.name().into()),
                ("experts", experts.into()),
                match rows {
                    Tokens(n) => ("tokens", n.into()),
                    Each(n) => ("each", n.into()),
                },
            ],
            run: Box::new(move |lab| run(lab, widths, projection, experts, rows)),
        })
    };
    kinds.iter().flat_map(of).collect()
}

fn run(
    lab: &mut Lab,
    widths: Widths,
    projection: Projection,
    experts: usize,
    rows: Rows,
) -> Result<Measured, BenchError> {
    let offsets = match rows {
        Rows::Tokens(tokens) => Routing::random(tokens, widths.chosen, experts, 7).offsets,
        Rows::Each(each) => Routing::even(each, experts),
    };
    let rows = offsets[experts] as usize;
    let Widths { hidden, inner, .. } = widths;
    let (n, k) = match projection {
        Projection::GateUp => (2 * inner, hidden),
        Projection::SwiGlu => (inner, hidden),
        Projection::Down => (hidden, inner),
    };
    let head = format!("dim g dim e = {experts} dim m = {k} dim f = {n}");
    let text = match projection {
        Projection::SwiGlu => format!(
            "{head}
            fn @experts(weight %x: bf16[g, m], weight %gate: bf16[e, f, m], weight %up: bf16[e, f, m],
                        weight %offsets: i32[e + 1]) -> bf16[g, f] {{
              %g = grouped \"gm,efm->gf\" %x, %gate, %offsets : bf16[g, f]
              %u = grouped \"gm,efm->gf\" %x, %up, %offsets : bf16[g, f]
              %a = silu %g : bf16[g, f]
              %y = mul %a, %u : bf16[g, f]
              return %y
            }}"
        ),
        _ => format!(
            "{head}
            fn @experts(weight %x: bf16[g, m], weight %w: bf16[e, f, m], weight %offsets: i32[e + 1])
              -> bf16[g, f] {{
              %y = grouped \"gm,efm->gf\" %x, %w, %offsets : bf16[g, f]
              return %y
            }}"
        ),
    };
    let (x, w, bounds) = ([rows, k], [experts, n, k], [experts + 1]);
    let normal =
        |name, shape, exponent| Operand { name, dtype: DType::Bf16, shape, fill: Fill::Normal(exponent) };
    let weights: &[&str] = if projection == Projection::SwiGlu { &["gate", "up"] } else { &["w"] };
    let mut operands = vec![normal("x", &x, 0)];
    operands.extend(weights.iter().map(|&name| normal(name, &w, EXPONENT)));
    let fill = Fill::Ints(&offsets);
    operands.push(Operand { name: "offsets", dtype: DType::I32, shape: &bounds, fill });
    let read = weights.len() * hit(&offsets) * n * k;
    let program = Program {
        text: &text,
        function: "experts",
        operands: &operands,
        flops: 2.0 * (weights.len() * rows * n * k) as f64,
        bytes: 2.0 * (read + rows * (n + k)) as f64,
        limit: 1e-2,
    };
    let check = |lab: &Lab, results: &[eva_runtime::Tensor]| {
        let x = lab.elements(0, 0, 0);
        relative_error(places(SAMPLE, [rows, n], 4).into_iter().map(|[row, column]| {
            let (x, expert) = (x.row(row * k, k), expert_of(&offsets, row));
            let product = |operand| {
                let w = lab.elements(0, operand, EXPONENT);
                dot(&x, &w.row((expert * n + column) * k, k))
            };
            let want = match projection {
                Projection::SwiGlu => product(1) / (1.0 + (-product(1)).exp()) * product(2),
                _ => product(1),
            };
            (part(&results[0], row * n + column, 1)[0], want)
        }))
    };
    let mut measured = lab.measure(&program, &check)?;
    let more = [("n", n), ("k", k), ("rows", rows), ("experts_hit", hit(&offsets))];
    measured.more.extend(more.map(|(name, n)| (name, n as f64)));
    Ok(measured)
}
