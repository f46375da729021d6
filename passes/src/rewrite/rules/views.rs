//! Reshapes, slices, transpositions and concatenations around products.
//!
//! A block can be spelled in many ways: keys of all heads in one matrix or each by itself, heads before tokens or
//! behind them, products of matrices with reshapes around them or one `einsum`. These rules move what only re-indexes
//! out of the way, towards weights and results, so that all spellings have the same products in them.

use super::super::build::Builder;
use super::local_rules;
use egg::Id;
use eva_ir::attr::{Dims, Range, Real};
use eva_ir::dim::Dim;
use eva_ir::ops::einsum::Einsum;
use eva_ir::ops::reshape::Reshape;
use eva_ir::ops::slice::Slice;
use eva_ir::ops::{Op, OpKind, add::Add, concat::Concat};

local_rules! {
    /// What a product reads and gives, seen otherwise.
    pub fn products;

    /// A transposed factor is the factor with its axes named in another order.
    product_of_transposed: Exact, adds "product", Einsum:
        "einsum x (permute y) => einsum x y, where the order of the sum stays", by |b, op, args| transposed(b, op, args, true);

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
        "reshape (einsum x w) => einsum x (reshape w)", by reshape_of_product;

    /// A product with axes merged before it is the product with the axes apart, merged behind it.
    product_of_reshaped: Exact, adds "product", Einsum:
        "einsum (reshape x) y => reshape (einsum x (reshape y))", by product_of_reshaped;

    /// A sum over one tensor behind another is the sum over the one, and over the other.
    product_of_concat: Reassociates, adds "product", Einsum:
        "einsum (concat x y) z => einsum x (slice z) + einsum y (slice z), along a summed axis", by product_of_concat;

    /// A factor that is the same along an axis that another factor has need not have it.
    product_of_repeated: Exact, adds "product", Einsum:
        "einsum x (einsum y ones) => einsum x y", by |b, op, args| product_of_repeated(b, op, args, false);

    /// A factor stretched by adding zeros need not be; a negative zero becomes positive by it.
    product_of_stretched: Reassociates, adds "product", Einsum:
        "einsum x (add y zeros) => einsum x y", by |b, op, args| product_of_repeated(b, op, args, true);
}

local_rules! {
    /// Views of views.
    pub fn views;

    /// A part of a part is a part.
    slice_of_slice: Exact, adds "part", Slice:
        "slice (slice x) => slice x", by slice_of_slice;

    /// All of an axis is the tensor.
    slice_of_all: Exact, adds "part", Slice:
        "slice x => x, of the whole axis", by slice_of_all;

    /// A part of tensors one after another is one of them, or a part of it.
    slice_of_concat: Exact, adds "part", Slice:
        "slice (concat x y) => x | slice y | concat (slice x) (slice y)", by slice_of_concat;

    /// Along an axis that a reshape leaves alone, the slice can come first.
    slice_of_reshape: Exact, adds "part", Slice:
        "slice (reshape x) => reshape (slice x)", by slice_of_reshape;

    /// The last of two reshapes says it all.
    reshape_of_reshape: Exact, adds "reshaped", Reshape:
        "reshape (reshape x) => reshape x", by reshape_of_reshape;

    /// A reshape to the same extents is the tensor.
    reshape_to_same: Exact, adds "reshaped", Reshape:
        "reshape x => x, to the extents it has", by reshape_to_same;

    /// Along an axis that a reshape leaves alone, tensors can be put together behind it.
    reshape_of_concat: Exact, adds "reshaped", Reshape:
        "reshape (concat x y) => concat (reshape x) (reshape y)", by reshape_of_concat;

    /// Tensors can be transposed before they are put together.
    transposed_concat: Exact, adds "permuted", Einsum:
        "permute (concat x y) => concat (permute x) (permute y)", by transposed_concat;

    /// Neighbours put together again are a slice of what they were cut from.
    concat_of_slices: Exact, adds "part", Concat:
        "concat (slice x) (slice x) => slice x, of neighbours", by concat_of_slices;
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
fn permutation(op: &Op) -> Option<Vec<usize>> {
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
            if (axes.summed() == before) == keeps {
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
    if groups.iter().any(|group| group.old.len() != 1) {
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
            if groups.iter().any(|group| group.new.len() != 1) || !groups.iter().any(|group| long(&group)) {
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
            if axes.out.contains(&axis) || parts.len() < 2 {
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
    let is_full = |b: &Builder<'_>, id: Id, value: f64| {
        let full = b.nodes(id, OpKind::Full);
        full.iter().any(|(op, _)| matches!(op, Op::Full(full) if full.value == Real::new(value)))
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
                && spec.inputs[j].iter().all(|axis| spec.out.contains(axis))
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
            if all.iter().all(|axis| axes.inputs.iter().flatten().any(|a| a == axis)) {
                equal.extend(axes.build(b));
            }
        }
    }
    equal
}

/// Neighbouring axes that become neighbouring axes.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Group {
    pub old: std::ops::Range<usize>,
    pub new: std::ops::Range<usize>,
}

/// Which axes of `old` become which of `new` in a reshape: the shortest runs with the same number of elements.
pub(super) fn groups(old: &[Dim], new: &[Dim]) -> Option<Vec<Group>> {
    let mut groups: Vec<Group> = Vec::new();
    let (mut i, mut j) = (0, 0);
    while i < old.len() && j < new.len() {
        let ends = (2..=old.len() - i + new.len() - j).flat_map(|sum| (1..sum).map(move |k| (k, sum - k)));
        let fits = |&(k, l): &(usize, usize)| {
            i + k <= old.len()
                && j + l <= new.len()
                && Dim::product(&old[i..i + k]) == Dim::product(&new[j..j + l])
        };
        let (k, l) = ends.into_iter().find(fits)?;
        groups.push(Group { old: i..i + k, new: j..j + l });
        (i, j) = (i + k, j + l);
    }
    // What is left are axes of extent 1.
    let last = groups.last_mut()?;
    (last.old.end, last.new.end) = (old.len(), new.len());
    Some(groups)
}

/// Whether `a` is at most `b`, whatever the extents.
fn at_most(a: &Dim, b: &Dim) -> bool {
    (b - a).terms().all(|(_, n)| n >= 0)
}

fn slice_of_slice(b: &mut Builder<'_>, op: &Op, args: &[Id]) -> Vec<Id> {
    let Op::Slice(outer) = op else { return Vec::new() };
    let mut equal = Vec::new();
    for (inner, inner_args) in b.nodes(args[0], OpKind::Slice) {
        let Op::Slice(inner) = inner else { continue };
        if inner.axis == outer.axis {
            let by = &inner.range.start;
            let range = Range { start: &outer.range.start + by, end: &outer.range.end + by };
            equal.push(b.op(Slice { axis: outer.axis, range }, &inner_args));
        }
    }
    equal
}

fn slice_of_all(b: &mut Builder<'_>, op: &Op, args: &[Id]) -> Vec<Id> {
    let Op::Slice(slice) = op else { return Vec::new() };
    let whole = b.shape(args[0]).get(slice.axis as usize) == Some(&(&slice.range.end - &slice.range.start));
    if whole { vec![args[0]] } else { Vec::new() }
}

fn slice_of_concat(b: &mut Builder<'_>, op: &Op, args: &[Id]) -> Vec<Id> {
    let Op::Slice(slice) = op else { return Vec::new() };
    let mut equal = Vec::new();
    for (inner, parts) in b.nodes(args[0], OpKind::Concat) {
        let Op::Concat(concat) = inner else { continue };
        if concat.axis != slice.axis {
            let cut: Vec<Id> = parts.iter().map(|&part| b.op(slice.clone(), &[part])).collect();
            equal.push(b.op(concat, &cut));
            continue;
        }
        let (mut start, mut within) = (Dim::from(0), Vec::new());
        for &part in &parts {
            let end = &start + &b.shape(part)[concat.axis as usize];
            let Range { start: from, end: to } = &slice.range;
            if at_most(&start, from) && at_most(to, &end) {
                let range = Range { start: from - &start, end: to - &start };
                equal.push(b.op(Slice { axis: slice.axis, range }, &[part]));
            }
            if at_most(from, &start) && at_most(&end, to) {
                within.push((part, start, end.clone()));
            }
            start = end;
        }
        if let (Some((_, first, _)), Some((_, _, last))) = (within.first(), within.last())
            && (first, last) == (&slice.range.start, &slice.range.end)
        {
            let parts: Vec<Id> = within.iter().map(|(part, ..)| *part).collect();
            equal.push(if parts.len() == 1 { parts[0] } else { b.op(concat, &parts) });
        }
    }
    equal
}

fn slice_of_reshape(b: &mut Builder<'_>, op: &Op, args: &[Id]) -> Vec<Id> {
    let Op::Slice(slice) = op else { return Vec::new() };
    let (axis, mut shape) = (slice.axis as usize, b.shape(args[0]));
    let mut equal = Vec::new();
    for (_, inner) in b.nodes(args[0], OpKind::Reshape) {
        let groups = groups(&b.shape(inner[0]), &shape).unwrap_or_default();
        let Some(group) = groups.iter().find(|group| group.new == (axis..axis + 1) && group.old.len() == 1)
        else {
            continue;
        };
        let part = b.op(Slice { axis: group.old.start as i64, range: slice.range.clone() }, &inner);
        shape[axis] = &slice.range.end - &slice.range.start;
        equal.push(b.op(Reshape { shape: Dims(shape.clone()) }, &[part]));
    }
    equal
}

fn reshape_of_reshape(b: &mut Builder<'_>, op: &Op, args: &[Id]) -> Vec<Id> {
    let inner = b.nodes(args[0], OpKind::Reshape);
    inner.into_iter().map(|(_, args)| b.op(op.clone(), &args)).collect()
}

fn reshape_to_same(b: &mut Builder<'_>, op: &Op, args: &[Id]) -> Vec<Id> {
    let same = matches!(op, Op::Reshape(reshape) if reshape.shape.0 == b.shape(args[0]));
    if same { vec![args[0]] } else { Vec::new() }
}

fn reshape_of_concat(b: &mut Builder<'_>, op: &Op, args: &[Id]) -> Vec<Id> {
    let Op::Reshape(reshape) = op else { return Vec::new() };
    let mut equal = Vec::new();
    let Some(groups) = groups(&b.shape(args[0]), &reshape.shape.0) else { return equal };
    for (inner, parts) in b.nodes(args[0], OpKind::Concat) {
        let Op::Concat(concat) = inner else { continue };
        let axis = concat.axis as usize;
        let Some(group) = groups.iter().find(|g| g.old == (axis..axis + 1) && g.new.len() == 1) else {
            continue;
        };
        let axis = group.new.start;
        let mut put = Vec::new();
        for part in parts {
            let mut shape = reshape.shape.0.clone();
            shape[axis] = b.shape(part)[concat.axis as usize].clone();
            put.push(b.op(Reshape { shape: Dims(shape) }, &[part]));
        }
        equal.push(b.op(Concat { axis: axis as i64 }, &put));
    }
    equal
}

fn transposed_concat(b: &mut Builder<'_>, op: &Op, args: &[Id]) -> Vec<Id> {
    let Some(order) = permutation(op) else { return Vec::new() };
    let mut equal = Vec::new();
    for (inner, parts) in b.nodes(args[0], OpKind::Concat) {
        let Op::Concat(concat) = inner else { continue };
        let Some(axis) = order.iter().position(|&at| at == concat.axis as usize) else { continue };
        let parts: Vec<Id> = parts.iter().map(|&part| b.op(op.clone(), &[part])).collect();
        equal.push(b.op(Concat { axis: axis as i64 }, &parts));
    }
    equal
}

fn concat_of_slices(b: &mut Builder<'_>, op: &Op, args: &[Id]) -> Vec<Id> {
    let Op::Concat(concat) = op else { return Vec::new() };
    let slices = |b: &Builder<'_>, id: Id| -> Vec<(Slice, Id)> {
        let slice = |(op, args): (Op, Vec<Id>)| match op {
            Op::Slice(slice) if slice.axis == concat.axis => Some((slice, args[0])),
            _ => None,
        };
        b.nodes(id, OpKind::Slice).into_iter().filter_map(slice).collect()
    };
    let mut equal = Vec::new();
    for (first, from) in slices(b, args[0]) {
        let mut end = first.range.end.clone();
        let all = args[1..].iter().all(|&arg| {
            let next = slices(b, arg).into_iter().find(|(slice, x)| *x == from && slice.range.start == end);
            next.map(|(slice, _)| end = slice.range.end).is_some()
        });
        if all && args.len() > 1 {
            let range = Range { start: first.range.start.clone(), end };
            equal.push(b.op(Slice { axis: concat.axis, range }, &[from]));
        }
    }
    equal
}
