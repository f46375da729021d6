//! What the routers share.

use super::check;
use super::route_grad::RouteGrad;
use crate::attr::Real;
use crate::dim::Dim;
use crate::eval::Array;
use crate::kernel::Elem;
use crate::kernel::build::Tile;
use crate::lower::{Cx, LowerError, Request, View};
use crate::op::TypeError;
use crate::types::{DType, TensorType, Type};
use crate::vjp::{Shares, Vjp};

/// Experts in groups of neighbours, of which a token may choose from a few.
#[derive(Clone, Copy)]
pub struct Groups {
    /// How many there are.
    pub count: i64,
    /// How many a token may choose from.
    pub kept: i64,
    /// How many of its best experts make a group's score: their sum.
    pub by: usize,
}

impl Groups {
    /// What does not fit `experts`, of which `k` are chosen, as far as they are known.
    pub fn check(&self, experts: Option<i64>, k: Option<i64>) -> Result<(), String> {
        let Groups { count, kept, by } = *self;
        if count < 1 || kept < 1 || kept > count {
            return Err(format!("{kept} of {count} groups cannot be kept"));
        }
        let Some(experts) = experts else { return Ok(()) };
        let size = experts / count;
        if size * count != experts {
            return Err(format!("{experts} experts do not make {count} equal groups"));
        }
        if count > 1 && size < by as i64 {
            return Err(format!(
                "a group is scored by its {by} best experts, but {count} groups of {experts} have {size}"
            ));
        }
        match k {
            Some(k) if k > kept * size => {
                Err(format!("{k} experts cannot be chosen from {kept} groups of {size}"))
            }
            _ => Ok(()),
        }
    }

    /// The scores, with `low` for experts outside the best groups.
    pub fn mask(&self, scores: &[f64], low: f64) -> Vec<f64> {
        let size = scores.len().div_ceil(self.count as usize).max(1);
        let score = |group: &[f64]| best(group, self.by.min(size)).iter().map(|&e| group[e]).sum::<f64>();
        let kept = best(&scores.chunks(size).map(score).collect::<Vec<_>>(), self.kept as usize);
        scores.iter().enumerate().map(|(e, &s)| if kept.contains(&(e / size)) { s } else { low }).collect()
    }

    /// [`Groups::mask`] of a tile of one row.
    pub fn mask_tile<'k>(&self, scores: Tile<'k>, low: f64) -> Tile<'k> {
        let (k, experts, count) = (scores.build(), scores.ty().cols, self.count as usize);
        if self.kept == self.count {
            return scores;
        }
        let size = experts / count;
        let members = scores.reshape([count, size]);
        let (mut rest, mut score) = (members, k.full([count, 1], 0.0));
        for _ in 0..self.by {
            let (max, hit) = largest(rest);
            score = score + max;
            rest = hit.select(k.float(f64::NEG_INFINITY), rest);
        }
        let init = [score.reshape([1, count]), k.full([1, count], 0.0)];
        let [_, kept] = k.fold(k.int(self.kept), init, |_, [score, kept]| {
            let (_, hit) = largest(score);
            [hit.select(k.float(f64::NEG_INFINITY), score), hit.select(k.float(1.0), kept)]
        });
        let kept = k.float(0.0).lt(kept.reshape([count, 1]));
        kept.select(members, k.float(low)).reshape([1, experts])
    }
}

/// The type rule of a router, which may group experts.
pub fn infer(op: &str, logits: &TensorType, k: &Dim, groups: Option<Groups>) -> Result<Type, TypeError> {
    check::f32s(op, "logits", logits, 0)?;
    check::axes("logits", "[t, e]", logits, 0, false)?;
    let experts = &logits.shape[1];
    sizes(experts.as_const(), k.as_const(), groups).map_err(TypeError::new)?;
    let shape = [logits.shape[0].clone(), k.clone()];
    Ok(Type::Tuple(vec![TensorType::new(DType::I32, shape.clone()), TensorType::new(DType::F32, shape)]))
}

/// What does not fit, as far as the extents are known.
fn sizes(experts: Option<i64>, k: Option<i64>, groups: Option<Groups>) -> Result<(), String> {
    match (experts, k) {
        (_, Some(k)) if k < 1 => return Err(format!("{k} experts cannot be chosen")),
        (Some(e), Some(k)) if k > e => return Err(format!("{k} experts cannot be chosen from {e}")),
        _ => {}
    }
    groups.map_or(Ok(()), |groups| groups.check(experts, k))
}

/// The indices of the `k` largest scores (all, if there are fewer), largest first; of equals, the lowest first.
pub fn best(scores: &[f64], k: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    // Adding 0 makes -0 equal to 0.
    order.sort_by(|&a, &b| (scores[b] + 0.0).total_cmp(&(scores[a] + 0.0)));
    order.truncate(k);
    order
}

/// The experts and weights that `row` gives for each row of logits, at most `k`.
pub fn eval(logits: &Array, k: usize, row: impl Fn(&[f64]) -> Vec<(usize, f64)>) -> Vec<Array> {
    let (mut experts, mut weights) = (Vec::new(), Vec::new());
    for logits in logits.rows() {
        let mut chosen = row(logits);
        // More than there are cannot be chosen: that is refused before anything runs.
        chosen.resize(k, (0, 0.0));
        experts.extend(chosen.iter().map(|&(e, _)| e as f64));
        weights.extend(chosen.iter().map(|&(_, w)| w));
    }
    let shape = [logits.shape[0], k];
    vec![Array::new(&shape, experts), Array::new(&shape, weights)]
}

/// The largest of each row, and a mask of where it first is.
fn largest<'k>(x: Tile<'k>) -> (Tile<'k>, Tile<'k>) {
    let (k, n) = (x.build(), x.ty().cols);
    let max = x.max_along(1);
    // Indices as floats, which are exact and can be compared many at a time.
    let index = k.iota(1, n).cast(Elem::F32);
    // A row of NaN has no largest: its last element must do.
    let first = x.equals(max).select(index, k.float((n - 1) as f64)).min_along(1);
    (max, index.equals(first))
}

/// The gradient rule of a router: that of the logits, by the gradient of the weights; none for a bias.
pub fn gradient(cx: &mut Vjp<'_>, score: &str, normalize: bool, scale: Real) -> Shares {
    let logits = cx.all_args()[0];
    let (chosen, g) = (cx.part(0)?, cx.part_grad(1)?);
    let op = RouteGrad { score: score.into(), normalize, scale };
    let of_logits = cx.op(op, &[logits, chosen, g])?;
    let others = cx.all_args().len() - 1;
    Ok([Some(of_logits)].into_iter().chain(std::iter::repeat_n(None, others)).collect())
}

/// A token whose experts are being chosen.
pub struct Token<'k> {
    /// Its logits, one row.
    pub logits: Tile<'k>,
    /// The number of experts.
    pub experts: usize,
    chosen: usize,
    at: Request<'k>,
}

impl<'k> Token<'k> {
    /// The token of this program, of a grid with one program a token.
    pub fn new(cx: &Cx<'k>, logits: &View<'k>, k: &Dim, groups: Option<Groups>) -> Result<Self, LowerError> {
        let experts = cx.fixed(&logits.ty.shape[1], "the number of experts")?;
        let chosen = cx.fixed(k, "the number of experts for a token")?;
        sizes(Some(experts as i64), Some(chosen as i64), groups).map_err(LowerError::new)?;
        let (token, zero) = (cx.program(&logits.ty.shape[0]), cx.k.int(0));
        let logits = logits.at(&Request::row(&[token], zero, experts))?;
        Ok(Self { logits, experts, chosen, at: Request::row(&[token], zero, chosen) })
    }

    /// The experts with the largest scores, best first (as floats), and their weights.
    pub fn best(&self, scores: Tile<'k>, weights: Tile<'k>) -> [Tile<'k>; 2] {
        let k = scores.build();
        let none = k.full([1, self.chosen], 0.0);
        let init = [scores, none, none];
        let [_, experts, weights] =
            k.fold(k.int(self.chosen as i64), init, |i, [scores, experts, chosen]| {
                let (_, hit) = largest(scores);
                let place = k.iota(1, self.chosen).equals(i);
                let pick = |x: Tile<'k>| hit.select(x, k.float(0.0)).sum_along(1);
                let expert = pick(k.iota(1, self.experts).cast(Elem::F32));
                let scores = hit.select(k.float(f64::NEG_INFINITY), scores);
                [scores, place.select(expert, experts), place.select(pick(weights), chosen)]
            });
        [experts, weights]
    }

    /// Hands over the two results.
    pub fn emit(&self, cx: &Cx<'k>, experts: Tile<'k>, weights: Tile<'k>) -> Result<(), LowerError> {
        (cx.emit)(0, &self.at, experts.cast(Elem::I64))?;
        (cx.emit)(1, &self.at, weights)
    }
}
