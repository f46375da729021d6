//! Reshapes, slices, transpositions and concatenations around products.
//!
//! A block can be spelled in many ways: keys of all heads in one matrix or each by itself, heads before tokens or
//! behind them, products of matrices with reshapes around them or one `einsum`. These rules move what only re-indexes
//! out of the way, towards weights and results, so that all spellings have the same products in them.

use super::super::build::Builder;
use super::local_rules;
use super::views::{Group, groups};
use egg::Id;
use eva_ir::attr::{Dims, Range, Real};
use eva_ir::dim::Dim;
use eva_ir::ops::einsum::Einsum;
use eva_ir::ops::reshape::Reshape;
use eva_ir::ops::slice::Slice;
use eva_ir::ops::{Op, OpKind, add::Add};

/// What rules of this table ask for.
const SAME_SUM: &str = "the order of the sum stays";
const SPLITS: &str = "axes are only split";
const MERGES: &str = "axes are only merged";
const LONG: &str = "more than one of the merged axes is longer than 1";
const SUMMED: &str = "the axis that they follow each other along is summed";
const ONES: &str = "the tensor is full of ones";
const ZEROS: &str = "the tensor is full of zeros";
const UNSUMMED: &str = "no axis of the ones is summed";
const ELSEWHERE: &str = "another factor has the repeated axes, too";

local_rules! {
    /// What a product reads and gives, seen otherwise.
    pub fn products;

    /// A transposed factor is the factor with its axes named in another order.
    product_of_transposed: Exact, adds "product", Einsum:
        "einsum x (permute y) => einsum x y, where the order of the sum stays", by |b, op, args| transposed(b, op, args, true), if SAME_SUM;

    /// A transposed factor is the factor with its axes named in another order, which may sum in another order.
    product_of_transposed_reordered: Reassociates, adds "product", Einsum:
        "einsum x (permute y) => einsum x y, where the order of the sum changes", by |b, op, args| transposed(b, op, args, false);

    /// A transposed product is the product with its result's axes in another order.
    transposed_product: Exact, adds "product", Einsum:
        "permute (einsum x y) => einsum x y", by transposed_product;

    /// A slice of a product along an axis that stays is the product of slices.
    slice_of_product: Exact, adds "w_part", Slice:
        "slice (einsum x w) => einsum x (slice w)", by slice_of_product;

    /// Splitting an axis of a product that stays splits it in its factors.
    reshape_of_product: Exact, adds "w_split", Reshape:
        "reshape (einsum x w) => einsum x (reshape w)", by reshape_of_product, if SPLITS;

    /// A product with axes merged before it is the product with the axes apart, merged behind it.
    product_of_reshaped: Exact, adds "product", Einsum:
        "einsum (reshape x) y => reshape (einsum x (reshape y))", by product_of_reshaped, if MERGES, LONG;

    /// A sum over one tensor behind another is the sum over the one, and over the other.
    product_of_concat: Reassociates, adds "product", Einsum:
        "einsum (concat x y) z => einsum x (slice z) + einsum y (slice z), along a summed axis", by product_of_concat, if SUMMED;

    /// A factor that is the same along an axis that another factor has need not have it.
    product_of_repeated: Exact, adds "product", Einsum:
        "einsum x (einsum y ones) => einsum x y", by |b, op, args| product_of_repeated(b, op, args, false), if ONES, UNSUMMED, ELSEWHERE;

    /// A factor stretched by adding zeros need not be; a negative zero becomes positive by it.
    product_of_stretched: Reassociates, adds "product", Einsum:
        "einsum x (add y zeros) => einsum x y", by |b, op, args| product_of_repeated(b, op, args, true), if ZEROS, ELSEWHERE;
}

/// A product with its axes numbered.
pub(super) struct Axes {
    pub factors: Vec<Id>,
    pub inputs: Vec<Vec<u16>>,
    pub out: Vec<u16>,
    pub next: u16,
}

impl Axes {
    pub fn of(op: &Op, args: &[Id]) -> Option<Axes> {
        let Op::Einsum(Einsum { spec }) = op else { return None };
        let wide = |axes: &[u8]| axes.iter().map(|&a| a as u16).collect::<Vec<u16>>();
        Some(Axes {
            factors: args.to_vec(),
            inputs: spec.inputs.iter().map(|axes| wide(axes)).collect(),
            out: wide(&spec.out),
            next: spec.axes() as u16,
        })
    }

    pub fn build(&self, b: &mut Builder<'_>) -> Option<Id> {
        b.product(&self.factors, &self.inputs, &self.out)
    }

    /// The summed axes, in the order that they are summed in.
    fn summed(&self) -> Vec<u16> {
        let mut summed = Vec::new();
        for axis in self.inputs.iter().flatten() {
            if !self.out.contains(axis) && !summed.contains(axis) {
                summed.push(*axis);
            }
        }
        summed
    }

    fn fresh(&mut self) -> u16 {
        self.next += 1;
        self.next - 1
    }
}

/// The permutation that an op of one operand is, if it is one: the operand's axis of each axis of the result.
pub(super) fn permutation(op: &Op) -> Option<Vec<usize>> {
    let Op::Einsum(Einsum { spec }) = op else { return None };
    let [input] = spec.inputs.as_slice() else { return None };
    if input.len() != spec.out.len() {
        return None;
    }
    spec.out.iter().map(|axis| input.iter().position(|a| a == axis)).collect()
}

fn transposed(b: &mut Builder<'_>, op: &Op, args: &[Id], keeps: bool) -> Vec<Id> {
    let mut equal = Vec::new();
    for (i, &arg) in args.iter().enumerate() {
        for (inner, inner_args) in b.nodes(arg, OpKind::Einsum) {
            let (Some(order), Some(mut axes)) = (permutation(&inner), Axes::of(op, args)) else { continue };
            let before = axes.summed();
            let outer = axes.inputs[i].clone();
            order.iter().zip(&outer).for_each(|(&at, &axis)| axes.inputs[i][at] = axis);
            axes.factors[i] = inner_args[0];
            // What keeps the order is the exact rule's.
            let same = axes.summed() == before;
            if if keeps { b.guard(SAME_SUM, same) } else { !same } {
                let identity = axes.factors.len() == 1 && axes.inputs[0] == axes.out;
                equal.extend(if identity { Some(inner_args[0]) } else { axes.build(b) });
            }
        }
    }
    equal
}

fn transposed_product(b: &mut Builder<'_>, op: &Op, args: &[Id]) -> Vec<Id> {
    let Some(order) = permutation(op) else { return Vec::new() };
    let mut equal: Vec<Id> =
        order.iter().enumerate().all(|(i, &at)| i == at).then_some(args[0]).into_iter().collect();
    for (inner, inner_args) in b.nodes(args[0], OpKind::Einsum) {
        let Some(mut axes) = Axes::of(&inner, &inner_args).filter(|axes| axes.factors.len() > 1) else {
            continue;
        };
        axes.out = order.iter().map(|&at| axes.out[at]).collect();
        equal.extend(axes.build(b));
    }
    equal
}

fn slice_of_product(b: &mut Builder<'_>, op: &Op, args: &[Id]) -> Vec<Id> {
    let Op::Slice(slice) = op else { return Vec::new() };
    let mut equal = Vec::new();
    for (inner, inner_args) in b.nodes(args[0], OpKind::Einsum) {
        let Some(mut axes) = Axes::of(&inner, &inner_args) else { continue };
        let axis = axes.out[slice.axis as usize];
        cut(b, &mut axes, axis, &slice.range);
        equal.extend(axes.build(b));
    }
    equal
}

/// Takes a part of every factor along one axis.
fn cut(b: &mut Builder<'_>, axes: &mut Axes, axis: u16, range: &Range) {
    for (factor, input) in axes.factors.iter_mut().zip(&axes.inputs) {
        if let Some(at) = input.iter().position(|&a| a == axis) {
            *factor = b.op(Slice { axis: at as i64, range: range.clone() }, &[*factor]);
        }
    }
}

fn reshape_of_product(b: &mut Builder<'_>, op: &Op, args: &[Id]) -> Vec<Id> {
    let Op::Reshape(reshape) = op else { return Vec::new() };
    let Some(groups) = groups(&b.shape(args[0]), &reshape.shape.0) else { return Vec::new() };
    if !b.guard(SPLITS, groups.iter().all(|group| group.old.len() == 1)) {
        return Vec::new();
    }
    let mut equal = Vec::new();
    for (inner, inner_args) in b.nodes(args[0], OpKind::Einsum) {
        // A transposition would only be copied in another place.
        let Some(mut axes) = Axes::of(&inner, &inner_args).filter(|axes| axes.factors.len() > 1) else {
            continue;
        };
        for group in groups.iter().rev().filter(|group| group.new.len() > 1) {
            let axis = axes.out[group.old.start];
            split(b, &mut axes, axis, &reshape.shape.0[group.new.clone()], None);
        }
        equal.extend(axes.build(b));
    }
    equal
}

/// Splits an axis into axes of these extents, in the result and in every factor but `except`; their numbers.
fn split(
    b: &mut Builder<'_>,
    axes: &mut Axes,
    axis: u16,
    extents: &[Dim],
    except: Option<usize>,
) -> Vec<u16> {
    let parts: Vec<u16> = extents.iter().map(|_| axes.fresh()).collect();
    let put = |list: &mut Vec<u16>| {
        let at = list.iter().position(|&a| a == axis);
        at.inspect(|&at| drop(list.splice(at..=at, parts.iter().copied())))
    };
    for i in 0..axes.factors.len() {
        if let Some(at) = put(&mut axes.inputs[i]).filter(|_| except != Some(i)) {
            let mut shape = b.shape(axes.factors[i]);
            shape.splice(at..=at, extents.iter().cloned());
            axes.factors[i] = b.op(Reshape { shape: Dims(shape) }, &[axes.factors[i]]);
        }
    }
    put(&mut axes.out);
    parts
}

fn product_of_reshaped(b: &mut Builder<'_>, op: &Op, args: &[Id]) -> Vec<Id> {
    let mut equal = Vec::new();
    if args.len() < 2 {
        return equal;
    }
    for (i, &arg) in args.iter().enumerate() {
        for (_, inner) in b.nodes(arg, OpKind::Reshape) {
            let (old, new) = (b.shape(inner[0]), b.shape(arg));
            let Some(groups) = groups(&old, &new) else { continue };
            let long = |group: &&Group| {
                old[group.old.clone()].iter().filter(|d| d.as_const() != Some(1)).count() > 1
            };
            let merges = groups.iter().all(|group| group.new.len() == 1);
            if !b.guard(MERGES, merges) || !b.guard(LONG, groups.iter().any(|group| long(&group))) {
                continue;
            }
            let Some(mut axes) = Axes::of(op, args) else { continue };
            axes.factors[i] = inner[0];
            let mut merged = false;
            for group in groups.iter().rev().filter(|group| group.old.len() > 1) {
                let axis = axes.inputs[i][group.new.start];
                merged |= axes.out.contains(&axis);
                split(b, &mut axes, axis, &old[group.old.clone()], Some(i));
            }
            let Some(product) = axes.build(b) else { continue };
            if merged {
                let Some(whole) = Axes::of(op, args).and_then(|axes| axes.build(b)) else { continue };
                let shape = Dims(b.shape(whole));
                equal.push(b.op(Reshape { shape }, &[product]));
            } else {
                equal.push(product);
            }
        }
    }
    equal
}

fn product_of_concat(b: &mut Builder<'_>, op: &Op, args: &[Id]) -> Vec<Id> {
    let mut equal = Vec::new();
    for (i, &arg) in args.iter().enumerate() {
        for (inner, parts) in b.nodes(arg, OpKind::Concat) {
            let (Op::Concat(concat), Some(axes)) = (&inner, Axes::of(op, args)) else { continue };
            let axis = axes.inputs[i][concat.axis as usize];
            if parts.len() < 2 || !b.guard(SUMMED, !axes.out.contains(&axis)) {
                continue;
            }
            let (mut start, mut sum) = (Dim::from(0), None);
            for &part in &parts {
                let end = &start + &b.shape(part)[concat.axis as usize];
                let Some(mut axes) = Axes::of(op, args) else { continue };
                axes.factors[i] = part;
                let range = Range { start, end: end.clone() };
                for j in (0..axes.factors.len()).filter(|&j| j != i) {
                    if let Some(at) = axes.inputs[j].iter().position(|&a| a == axis) {
                        axes.factors[j] =
                            b.op(Slice { axis: at as i64, range: range.clone() }, &[axes.factors[j]]);
                    }
                }
                start = end;
                let Some(product) = axes.build(b) else { return equal };
                sum = Some(match sum {
                    None => product,
                    Some(sum) => b.op(Add {}, &[sum, product]),
                });
            }
            equal.extend(sum);
        }
    }
    equal
}

/// What `id` repeats: a tensor, and for each of its axes the axis of `id` that it is.
fn repeated(b: &mut Builder<'_>, id: Id, zeros: bool) -> Vec<(Id, Vec<usize>)> {
    let is_full = |b: &mut Builder<'_>, id: Id, value: f64| {
        let full = b.nodes(id, OpKind::Full);
        let of = |(op, _): &(Op, _)| matches!(op, Op::Full(full) if full.value == Real::new(value));
        !full.is_empty() && b.guard(if zeros { ZEROS } else { ONES }, full.iter().any(of))
    };
    let mut found = Vec::new();
    // Times ones, by a product.
    for (spec, args) in if zeros { Vec::new() } else { b.products(id) } {
        for (i, j) in [(0, 1), (1, 0)] {
            if args.len() != 2 || !is_full(b, args[j], 1.0) {
                continue;
            }
            let place = |axis| spec.out.iter().position(|&a| a == axis);
            if let Some(places) = spec.inputs[i].iter().map(|&axis| place(axis)).collect::<Option<Vec<_>>>()
                && b.guard(UNSUMMED, spec.inputs[j].iter().all(|axis| spec.out.contains(axis)))
            {
                found.push((args[i], places));
            }
        }
    }
    // Stretched to other extents by adding zeros, or multiplying by ones.
    let wide = b.shape(id);
    let (kind, value) = if zeros { (OpKind::Add, 0.0) } else { (OpKind::Mul, 1.0) };
    for (_, args) in b.nodes(id, kind) {
        for (i, j) in [(0, 1), (1, 0)] {
            if !is_full(b, args[j], value) {
                continue;
            }
            let narrow = b.shape(args[i]);
            let skip = wide.len() - narrow.len();
            let kept: Vec<usize> = (0..narrow.len()).filter(|&at| narrow[at] == wide[skip + at]).collect();
            let shape: Vec<Dim> = kept.iter().map(|&at| narrow[at].clone()).collect();
            let from = match kept.len() == narrow.len() {
                true => args[i],
                false => b.op(Reshape { shape: Dims(shape) }, &[args[i]]),
            };
            found.push((from, kept.iter().map(|at| skip + at).collect()));
        }
    }
    found
}

fn product_of_repeated(b: &mut Builder<'_>, op: &Op, args: &[Id], zeros: bool) -> Vec<Id> {
    let mut equal = Vec::new();
    if args.len() < 2 {
        return equal;
    }
    for (i, &arg) in args.iter().enumerate() {
        for (from, places) in repeated(b, arg, zeros) {
            let Some(mut axes) = Axes::of(op, args) else { continue };
            let all = std::mem::take(&mut axes.inputs[i]);
            axes.inputs[i] = places.iter().map(|&at| all[at]).collect();
            axes.factors[i] = from;
            let others = all.iter().all(|axis| axes.inputs.iter().flatten().any(|a| a == axis));
            if b.guard(ELSEWHERE, others) {
                equal.extend(axes.build(b));
            }
        }
    }
    equal
}
