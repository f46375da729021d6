//! `sort_by_expert`: the rows that each expert gets.

use super::check;
use super::rows::try_fold;
use crate::dim::Dim;
use crate::eval::{Array, Sizes};
use crate::kernel::Elem;
use crate::kernel::build::Tile;
use crate::lower::{BufView, Coord, Cx, LowerError, Lowering, Request, View};
use crate::op::{OpDef, TypeError, op};
use crate::types::{DType, TensorType, Type};

op! {
    /// The items of `expert[t, k]`, numbered `t·k + j`, stably sorted by the expert they are for.
    ///
    /// Gives `order[t·k]`, the item at each place; `position[t, k]`, the place of each item; and
    /// `offsets[experts + 1]`, where each expert's items begin, and one past the last. All entries of `expert` should
    /// be in `0 .. experts`; others are at places that no expert's are.
    "sort_by_expert" => SortByExpert(expert) {
        /// The number of experts.
        experts: Dim,
    }
}

impl OpDef for SortByExpert {
    fn infer(&self, args: &[&TensorType]) -> Result<Type, TypeError> {
        check::ints("sort_by_expert", "experts", args[0], 0)?;
        check::axes("experts", "[t, k]", args[0], 0, false)?;
        let order = TensorType::new(DType::I32, [args[0].elements()]);
        let position = TensorType::new(DType::I32, args[0].shape.clone());
        let offsets = TensorType::new(DType::I32, [&self.experts + 1]);
        Ok(Type::Tuple(vec![order, position, offsets]))
    }

    fn eval(&self, sizes: &Sizes, args: &[&Array]) -> Vec<Array> {
        let expert = &args[0].data;
        let mut order: Vec<usize> = (0..expert.len()).collect();
        order.sort_by(|&a, &b| expert[a].total_cmp(&expert[b]));
        let mut position = vec![0.0; expert.len()];
        order.iter().enumerate().for_each(|(place, &item)| position[item] = place as f64);
        let experts = sizes.of(&self.experts);
        let before = |e: usize| expert.iter().filter(|&&x| x < e as f64).count() as f64;
        vec![
            Array::new(&[order.len()], order.iter().map(|&item| item as f64).collect()),
            Array::new(&args[0].shape, position),
            Array::new(&[experts + 1], (0..=experts).map(before).collect()),
        ]
    }

    fn lowering(&self) -> Lowering {
        Lowering::Kernel
    }

    fn in_memory(&self, _: usize) -> bool {
        true
    }

    fn kernel<'k>(&self, _: &Cx<'k>, _: &[View<'k>]) -> Result<(), LowerError> {
        Err(LowerError::new(
            "items are sorted by kernels of their own: few by `compare`, many by `count` and `place`",
        ))
    }
}

/// The kernel for few items, or for experts without end: an item's place is the number of items before it, and all are
/// looked at to find it.
///
/// `items` is flat, as are the results that it writes: `order`, `position` and `offsets`. Where an expert's items begin is
/// the place that an item before all of them would have.
pub fn compare<'k>(cx: &Cx<'k>, items: &BufView, experts: &Dim) -> Result<(), LowerError> {
    let [rows, cols] = cx.schedule.sort.compared;
    let n = cx.extent(&items.shape[0]);
    let ends = experts + 1;
    let first = cx.program_tile(&(&items.shape[0] + &ends), cols);
    let me = cx.k.iota(1, cols) + first;
    let is_item = me.lt(n);
    // Items in the order of these numbers are sorted.
    let number = |expert: Tile<'k>, at: Tile<'k>| expert * n + at;
    // What is no expert is before the first or behind the last, and no product of it overflows.
    let near = |item: Tile<'k>| item.max(cx.k.int(-1)).min(cx.extent(experts));
    let own = near(cx.load(items, &Request::row(&[], first, cols)));
    let own = is_item.select(number(own, me), number(me - n, cx.k.int(0)));
    let none = cx.k.full([rows, cols], 0.0).cast(Elem::I64);
    let [before] = try_fold(n.div_ceil(rows as i64), [none], |i, [before]| {
        let first = i * rows as i64;
        let at = cx.k.iota(0, rows) + first;
        let other = number(near(cx.load(items, &tile([Coord::Rows(first)], [rows, 1]))), at);
        let other = at.lt(n).select(other, cx.k.int(i64::MAX));
        Ok([before + other.lt(own).cast(Elem::I64)])
    })?;
    let place = before.sum_along(0);
    let [order, position, offsets] = [0, 1, 2].map(|part| (cx.write)(part));
    let zero = cx.k.int(0);
    cx.k.scatter(order, &[zero], 0, place, me, is_item);
    cx.k.store(position, &[first], [None, Some(0)], &[], place);
    let is_end = is_item.not().and((me - n).lt(cx.extent(&ends)));
    cx.k.scatter(offsets, &[zero], 0, me - n, place, is_end);
    Ok(())
}

fn tile<'k, const N: usize>(coords: [Coord<'k>; N], [rows, cols]: [usize; 2]) -> Request<'k> {
    Request { coords: coords.to_vec(), rows, cols, limits: Vec::new() }
}

/// The items of a program's part: the first, and one past the last.
fn part<'k>(cx: &Cx<'k>, items: &BufView, part: Tile<'k>) -> [Tile<'k>; 2] {
    let n = cx.extent(&items.shape[0]);
    let each = n.div_ceil(cx.schedule.sort.parts as i64);
    let first = (part * each).min(n);
    [first, (first + each).min(n)]
}

/// The experts of some items, and -1 for what is none's.
fn expert_of<'k>(cx: &Cx<'k>, items: &BufView, coord: Coord<'k>, experts: usize) -> Tile<'k> {
    let n = cx.schedule.sort.items;
    let shape = if matches!(coord, Coord::Rows(_)) { [n, 1] } else { [1, n] };
    let item = cx.load(items, &tile([coord], shape));
    let is_expert = cx.k.int(0).le(item).and(item.lt(cx.k.int(experts as i64)));
    is_expert.select(item, cx.k.int(-1))
}

/// Which items, as rows, are for which expert. (Floats have half as many bits, and are exact.)
fn is_for<'k>(item: Tile<'k>, experts: usize) -> Tile<'k> {
    item.cast(Elem::F32).equals(item.build().iota(1, experts).cast(Elem::F32))
}

/// How many of a tile hold along an axis.
fn many<'k>(holds: Tile<'k>, axis: usize) -> Tile<'k> {
    holds.cast(Elem::F32).sum_along(axis).cast(Elem::I64)
}

/// The first of two kernels for many items: how many of each part of them are for each expert, `i32[parts, experts]`.
pub fn count<'k>(cx: &Cx<'k>, items: &BufView, experts: usize) -> Result<(), LowerError> {
    let schedule = &cx.schedule.sort;
    let me = cx.program(&Dim::from(schedule.parts as i64));
    let [first, end] = part(cx, items, me);
    let none = cx.k.full([1, experts], 0.0).cast(Elem::I64);
    let [counts] = try_fold((end - first).div_ceil(schedule.items as i64), [none], |i, [counts]| {
        let first = first + i * schedule.items as i64;
        let inside = (cx.k.iota(0, schedule.items) + first).lt(end);
        let item = expert_of(cx, items, Coord::Rows(first), experts);
        Ok([counts + many(is_for(inside.select(item, cx.k.int(-1)), experts), 0)])
    })?;
    cx.k.store((cx.write)(0), &[me, cx.k.int(0)], [None, Some(1)], &[], counts);
    Ok(())
}

/// The second of two kernels for many items: with what [`count`] counted, each part puts its items into their places. It
/// writes what [`compare`] writes.
pub fn place<'k>(cx: &Cx<'k>, items: &BufView, counts: &BufView, experts: usize) -> Result<(), LowerError> {
    let schedule = &cx.schedule.sort;
    let (me, zero) = (cx.program(&Dim::from(schedule.parts as i64)), cx.k.int(0));
    let [first, end] = part(cx, items, me);
    let none = cx.k.full([1, experts], 0.0).cast(Elem::I64);
    let blocks = cx.k.int(schedule.parts.div_ceil(schedule.items) as i64);
    let [all, earlier] = try_fold(blocks, [none; 2], |i, [all, earlier]| {
        let first = i * schedule.items as i64;
        let block =
            cx.load(counts, &tile([Coord::Rows(first), Coord::Cols(zero)], [schedule.items, experts]));
        let is_earlier = (cx.k.iota(0, schedule.items) + first).lt(me);
        Ok([all + block.sum_along(0), earlier + is_earlier.select(block, zero).sum_along(0)])
    })?;
    let start = all.cumulative_sum() - all;
    let [order, position, offsets] = [0, 1, 2].map(|part| (cx.write)(part));
    // Of all programs the first one says where experts' items begin.
    let first_only = |end: usize| [(0, me.le(zero).select(cx.k.int(end as i64), zero))];
    cx.k.store(offsets, &[zero], [None, Some(0)], &first_only(experts), start);
    let sorted = all.sum_along(1);
    cx.k.store(offsets, &[cx.k.int(experts as i64)], [None, None], &first_only(experts + 1), sorted);

    let [rows, cols] = [0, 1].map(|axis| cx.k.iota(axis, schedule.items));
    // Behind all experts' items comes what is for none.
    let others = sorted + (first - earlier.sum_along(1));
    let init = [start + earlier, others];
    try_fold((end - first).div_ceil(schedule.items as i64), init, |i, [next, others]| {
        let first = first + i * schedule.items as i64;
        let [item, other] =
            [Coord::Rows(first), Coord::Cols(first)].map(|coord| expert_of(cx, items, coord, experts));
        let (inside, is_none) = ((rows + first).lt(end), item.lt(zero));
        let is_for = is_for(inside.select(item, cx.k.int(-1)), experts);
        let of_tile = many(item.equals(other).and(cols.lt(rows)), 1);
        let before = is_for.select(next, zero).sum_along(1) + is_none.select(others, zero);
        let place = before + of_tile;
        cx.k.scatter(order, &[zero], 0, place, rows + first, inside);
        cx.k.store(position, &[first], [Some(0), None], &[(0, end)], place);
        Ok([next + many(is_for, 0), others + many(inside.and(is_none), 0)])
    })?;
    Ok(())
}
