//! Products that share an input, and gains in front of products.

use super::super::build::Builder;
use super::local_rules;
use super::products::Axes;
use egg::Id;
use eva_ir::attr::{Dims, Range, Real};
use eva_ir::dim::Dim;
use eva_ir::ops::slice::Slice;
use eva_ir::ops::{Op, OpKind, concat::Concat, full::Full};

/// What rules of this table ask for.
const WEIGHTS: &str = "what is joined or folded are weights";
const WHOLE: &str = "no weight is a part of another, or put together of others";
const COLUMNS: &str = "columns come first in the weight, and last in the result";
const ALIKE: &str = "the weights differ in their columns alone";
const UNCACHED: &str = "what is projected does not come from a cache";
const GAIN: &str = "the gain is not 1 already";
const SAME_AXIS: &str = "the weight has the axis that is normed";

local_rules! {
    /// Projections.
    pub fn projections;

    /// x·W and x·U are parts of x·[W U]: one product instead of several, with weights that are put together when they are
    /// loaded. All projections of a tensor at once, since pairs of pairs of pairs would be many.
    fuse_projections: Exact, adds "joined", Einsum:
        "einsum x w, einsum x u => slices of einsum x (concat w u)", by fuse_projections, if WEIGHTS, WHOLE, COLUMNS, ALIKE, UNCACHED;

    /// RMSNorm(x, g)·W = RMSNorm(x, 1)·(g∘W): the gain is part of the weight.
    fold_gain: Reassociates, adds "w_gain", Einsum:
        "einsum (rms_norm x g) w => einsum (rms_norm x ones) (einsum w g)", by fold_gain, if WEIGHTS, GAIN, SAME_AXIS;
}

/// A projection of something: its weight, how many columns it has, and its product.
struct Projection {
    weight: Id,
    columns: Dim,
    axes: Axes,
}

/// `op` as a projection of factor `x`, whose result has the columns of a weight as its last axis.
fn projection(b: &mut Builder<'_>, op: &Op, args: &[Id], x: usize) -> Option<Projection> {
    let axes = Axes::of(op, args).filter(|axes| axes.factors.len() == 2)?;
    let weight = args[1 - x];
    // A part of a weight is projected with the whole.
    let is_part =
        [OpKind::Slice, OpKind::Concat, OpKind::Reshape].iter().any(|&k| !b.nodes(weight, k).is_empty());
    let (&column, kept) = axes.out.split_last()?;
    let [of_x, of_weight] = [&axes.inputs[x], &axes.inputs[1 - x]];
    let columns_first = of_weight.first() == Some(&column)
        && !of_x.contains(&column)
        && of_weight[1..].iter().all(|axis| of_x.contains(axis) && !kept.contains(axis))
        && of_x.iter().filter(|axis| kept.contains(axis)).eq(kept)
        && of_x.iter().filter(|axis| of_weight.contains(axis)).eq(&of_weight[1..]);
    let columns = b.shape(weight).first()?.clone();
    let weights = b.is_weight(weight);
    let fits = b.guard(WEIGHTS, weights) && b.guard(WHOLE, !is_part) && b.guard(COLUMNS, columns_first);
    fits.then_some(Projection { weight, columns, axes })
}

fn fuse_projections(b: &mut Builder<'_>, op: &Op, args: &[Id]) -> Vec<Id> {
    let mut equal = Vec::new();
    for x in 0..args.len().min(2) {
        // What is cached is expanded, and its parts are attended to, each with its own strides.
        let cached = [OpKind::CacheWrite, OpKind::PageWrite, OpKind::PageRead]
            .iter()
            .any(|&kind| !b.nodes(args[x], kind).is_empty());
        if b.is_weight(args[x]) || !b.guard(UNCACHED, !cached) {
            continue;
        }
        let Some(mine) = projection(b, op, args, x) else { continue };
        let mut all: Vec<Projection> = Vec::new();
        for (other, other_args) in b.users(args[x], OpKind::Einsum) {
            let place = other_args.iter().position(|&arg| arg == args[x]);
            let Some(other) = place.and_then(|x| projection(b, &other, &other_args, x)) else { continue };
            let alike = b.shape(other.weight)[1..] == b.shape(mine.weight)[1..]
                && other.axes.inputs[place.unwrap_or(0)].len() == mine.axes.inputs[x].len();
            if b.guard(ALIKE, alike) && all.iter().all(|p| p.weight != other.weight) {
                all.push(other);
            }
        }
        all.sort_by_key(|projection| projection.weight);
        let Some(at) = all.iter().position(|p| p.weight == mine.weight).filter(|_| all.len() > 1) else {
            continue;
        };
        let weights: Vec<Id> = all.iter().map(|projection| projection.weight).collect();
        let joined = b.op(Concat { axis: 0 }, &weights);
        let mut axes = mine.axes;
        axes.factors[1 - x] = joined;
        let Some(product) = axes.build(b) else { continue };
        let start = all[..at].iter().fold(Dim::from(0), |sum, p| &sum + &p.columns);
        let range = Range { end: &start + &mine.columns, start };
        equal.push(b.op(Slice { axis: axes.out.len() as i64 - 1, range }, &[product]));
    }
    equal
}

fn fold_gain(b: &mut Builder<'_>, op: &Op, args: &[Id]) -> Vec<Id> {
    let mut equal = Vec::new();
    for x in 0..args.len().min(2) {
        for (norm, parts) in b.nodes(args[x], OpKind::RmsNorm) {
            let Some(mut axes) = Axes::of(op, args).filter(|axes| axes.factors.len() == 2) else { continue };
            let (w, gain) = (args[1 - x], parts[1]);
            let Some(&column) = axes.inputs[x].last() else { continue };
            let of_weight = axes.inputs[1 - x].clone();
            let is_one = b
                .nodes(gain, OpKind::Full)
                .iter()
                .any(|(op, _)| matches!(op, Op::Full(f) if f.value == Real::new(1.0)));
            let weights = b.is_weight(w) && b.is_weight(gain);
            let Some(ty) = b.ty(gain) else { continue };
            if !b.guard(GAIN, !is_one)
                || !b.guard(WEIGHTS, weights)
                || !b.guard(SAME_AXIS, of_weight.contains(&column))
            {
                continue;
            }
            let Some(folded) = b.product(&[w, gain], &[of_weight.clone(), vec![column]], &of_weight) else {
                continue;
            };
            let ones =
                b.op(Full { value: Real::new(1.0), shape: Dims(ty.shape.to_vec()), dtype: ty.dtype }, &[]);
            axes.factors[x] = b.op(norm, &[parts[0], ones]);
            axes.factors[1 - x] = folded;
            equal.extend(axes.build(b));
        }
    }
    equal
}
