//! Views of views: slices, reshapes and concatenations that meet.

use super::super::build::Builder;
use super::local_rules;
use super::products::permutation;
use egg::Id;
use eva_ir::attr::{Dims, Range};
use eva_ir::dim::Dim;
use eva_ir::ops::reshape::Reshape;
use eva_ir::ops::slice::Slice;
use eva_ir::ops::{Op, OpKind, concat::Concat};

/// What rules of this table ask for.
const ONE_AXIS: &str = "both are along one axis";
const WHOLE: &str = "the part is all of the axis";
const WITHIN: &str = "the part is within one of the tensors";
const AT_ENDS: &str = "the part begins and ends where tensors do";
const ALONE: &str = "the reshape leaves the axis alone";
const SAME_EXTENTS: &str = "the extents are what they were";
const ALONG: &str = "the slices are along the axis that they are put together along";
const ONE_TENSOR: &str = "the slices are of one tensor";
const NEIGHBOURS: &str = "each begins where the one before it ends";

local_rules! {
    /// Views of views.
    pub fn views;

    /// A part of a part is a part.
    slice_of_slice: Exact, adds "part", Slice:
        "slice (slice x) => slice x", by slice_of_slice, if ONE_AXIS;

    /// All of an axis is the tensor.
    slice_of_all: Exact, adds "part", Slice:
        "slice x => x, of the whole axis", by slice_of_all, if WHOLE;

    /// A part of tensors one after another is one of them, or a part of it.
    slice_of_concat: Exact, adds "part", Slice:
        "slice (concat x y) => x | slice y | concat (slice x) (slice y)", by slice_of_concat, if WITHIN, AT_ENDS;

    /// Along an axis that a reshape leaves alone, the slice can come first.
    slice_of_reshape: Exact, adds "part", Slice:
        "slice (reshape x) => reshape (slice x)", by slice_of_reshape, if ALONE;

    /// The last of two reshapes says it all.
    reshape_of_reshape: Exact, adds "reshaped", Reshape:
        "reshape (reshape x) => reshape x", by reshape_of_reshape;

    /// A reshape to the same extents is the tensor.
    reshape_to_same: Exact, adds "reshaped", Reshape:
        "reshape x => x, to the extents it has", by reshape_to_same, if SAME_EXTENTS;

    /// Along an axis that a reshape leaves alone, tensors can be put together behind it.
    reshape_of_concat: Exact, adds "reshaped", Reshape:
        "reshape (concat x y) => concat (reshape x) (reshape y)", by reshape_of_concat, if ALONE;

    /// Tensors can be transposed before they are put together.
    transposed_concat: Exact, adds "permuted", Einsum:
        "permute (concat x y) => concat (permute x) (permute y)", by transposed_concat;

    /// Neighbours put together again are a slice of what they were cut from.
    concat_of_slices: Exact, adds "part", Concat:
        "concat (slice x) (slice x) => slice x, of neighbours", by concat_of_slices, if ALONG, ONE_TENSOR, NEIGHBOURS;
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
        if b.guard(ONE_AXIS, inner.axis == outer.axis) {
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
    if b.guard(WHOLE, whole) { vec![args[0]] } else { Vec::new() }
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
            if b.guard(WITHIN, at_most(&start, from) && at_most(to, &end)) {
                let range = Range { start: from - &start, end: to - &start };
                equal.push(b.op(Slice { axis: slice.axis, range }, &[part]));
            }
            if at_most(from, &start) && at_most(&end, to) {
                within.push((part, start, end.clone()));
            }
            start = end;
        }
        if let (Some((_, first, _)), Some((_, _, last))) = (within.first(), within.last())
            && b.guard(AT_ENDS, (first, last) == (&slice.range.start, &slice.range.end))
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
        let Some(group) = groups.iter().find(|group| group.new.contains(&axis)) else { continue };
        if !b.guard(ALONE, group.new.len() == 1 && group.old.len() == 1) {
            continue;
        }
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
    if b.guard(SAME_EXTENTS, same) { vec![args[0]] } else { Vec::new() }
}

fn reshape_of_concat(b: &mut Builder<'_>, op: &Op, args: &[Id]) -> Vec<Id> {
    let Op::Reshape(reshape) = op else { return Vec::new() };
    let mut equal = Vec::new();
    let Some(groups) = groups(&b.shape(args[0]), &reshape.shape.0) else { return equal };
    for (inner, parts) in b.nodes(args[0], OpKind::Concat) {
        let Op::Concat(concat) = inner else { continue };
        let axis = concat.axis as usize;
        let Some(group) = groups.iter().find(|group| group.old.contains(&axis)) else { continue };
        if !b.guard(ALONE, group.old.len() == 1 && group.new.len() == 1) {
            continue;
        }
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
    let slices = |b: &mut Builder<'_>, id: Id| -> Vec<(Slice, Id)> {
        let mut slices = Vec::new();
        for (op, args) in b.nodes(id, OpKind::Slice) {
            if let Op::Slice(slice) = op
                && b.guard(ALONG, slice.axis == concat.axis)
            {
                slices.push((slice, args[0]));
            }
        }
        slices
    };
    let mut equal = Vec::new();
    for (first, from) in slices(b, args[0]) {
        let mut end = first.range.end.clone();
        let all = args[1..].iter().all(|&arg| {
            let mut candidates = slices(b, arg).into_iter();
            let next = candidates.find(|(slice, x)| {
                b.guard(ONE_TENSOR, *x == from) && b.guard(NEIGHBOURS, slice.range.start == end)
            });
            next.map(|(slice, _)| end = slice.range.end).is_some()
        });
        if all && args.len() > 1 {
            let range = Range { start: first.range.start.clone(), end };
            equal.push(b.op(Slice { axis: concat.axis, range }, &[from]));
        }
    }
    equal
}
