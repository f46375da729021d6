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
    /// `offsets[experts + 1]`, where each expert's items begin, and one past the last. All entries of `expert` must
    /// be in `0 .. experts`.
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
        Err(LowerError::new("items are sorted by kernels of their own: few by `compare`, many by `count` and `place`"))
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
    let expert = is_item.select(cx.load(items, &Request::row(&[], first, cols)), me - n);
    let number = is_item.select(me, cx.k.int(-1));
    let none = cx.k.full([rows, cols], 0.0).cast(Elem::I64);
    let [before] = try_fold(n.div_ceil(rows as i64), [none], |i, [before]| {
        let first = i * rows as i64;
        let other = cx.load(items, &Request { coords: vec![Coord::Rows(first)], rows, cols: 1, limits: Vec::new() });
        let at = cx.k.iota(0, rows) + first;
        let comes_before = other.lt(expert).or(other.equals(expert).and(at.lt(number)));
        Ok([before + comes_before.and(at.lt(n)).cast(Elem::I64)])
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

/// The items of a program's part: the first, and one past the last.
fn part<'k>(cx: &Cx<'k>, items: &BufView, part: Tile<'k>) -> [Tile<'k>; 2] {
    let n = cx.extent(&items.shape[0]);
    let each = n.div_ceil(cx.schedule.sort.parts as i64);
    let first = (part * each).min(n);
    [first, (first + each).min(n)]
}

/// Some items of a part as a row: from `first` on, and what is for no expert from `end` on.
fn some<'k>(cx: &Cx<'k>, items: &BufView, first: Tile<'k>, end: Tile<'k>, experts: usize) -> Tile<'k> {
    let cols = cx.schedule.sort.items;
    let inside = (cx.k.iota(1, cols) + first).lt(end);
    inside.select(cx.load(items, &Request::row(&[], first, cols)), cx.k.int(experts as i64))
}

/// How many of a tile hold along an axis; floats are added up, whose bits are half as many, and exact.
fn many<'k>(holds: Tile<'k>, axis: usize) -> Tile<'k> {
    holds.cast(Elem::F32).sum_along(axis).cast(Elem::I64)
}

/// The first of two kernels for many items: of each part of them, how many are for an expert, and how many for those before
/// it. It writes `i32[experts, parts]` twice: the items of the experts before, and those of the expert.
pub fn count<'k>(cx: &Cx<'k>, items: &BufView, experts: usize) -> Result<(), LowerError> {
    let schedule = &cx.schedule.sort;
    let me = cx.program(&Dim::from(schedule.parts as i64));
    let [first, end] = part(cx, items, me);
    let (expert, zero) = (cx.k.iota(0, experts), cx.k.int(0));
    let none = cx.k.full([experts, 1], 0.0).cast(Elem::I64);
    let sums = try_fold((end - first).div_ceil(schedule.items as i64), [none; 2], |i, [before, own]| {
        let first = first + i * schedule.items as i64;
        let item = some(cx, items, first, end, experts);
        Ok([before + many(item.lt(expert), 1), own + many(item.equals(expert), 1)])
    })?;
    for (part, sum) in sums.into_iter().enumerate() {
        cx.k.store((cx.write)(part), &[zero, me], [Some(0), None], &[], sum);
    }
    Ok(())
}

/// The second of two kernels for many items: with what [`count`] counted, each part puts its items into their places. It
/// writes what [`compare`] writes.
pub fn place<'k>(
    cx: &Cx<'k>,
    items: &BufView,
    [before, own]: [&BufView; 2],
    experts: usize,
) -> Result<(), LowerError> {
    let schedule = &cx.schedule.sort;
    let me = cx.program(&Dim::from(schedule.parts as i64));
    let [first, end] = part(cx, items, me);
    let (expert, zero) = (cx.k.iota(0, experts), cx.k.int(0));
    let none = cx.k.full([experts, 1], 0.0).cast(Elem::I64);
    let [start, mine] = try_fold(cx.k.int(schedule.parts.div_ceil(schedule.items) as i64), [none; 2], |i, [start, mine]| {
        let first = i * schedule.items as i64;
        let coords = vec![Coord::Rows(zero), Coord::Cols(first)];
        let at = Request { coords, rows: experts, cols: schedule.items, limits: Vec::new() };
        let earlier = (cx.k.iota(1, schedule.items) + first).lt(me);
        let own = earlier.select(cx.load(own, &at), zero);
        Ok([start + cx.load(before, &at).sum_along(1), mine + own.sum_along(1)])
    })?;
    let [order, position, offsets] = [0, 1, 2].map(|part| (cx.write)(part));
    // Of all programs the first one says where experts' items begin.
    let first_only = |end: usize| [(0, me.le(zero).select(cx.k.int(end as i64), zero))];
    cx.k.store(offsets, &[zero], [Some(0), None], &first_only(experts), start);
    let n = cx.extent(&items.shape[0]);
    cx.k.store(offsets, &[cx.k.int(experts as i64)], [None, None], &first_only(experts + 1), n);

    let [rows, cols] = [cx.k.iota(0, schedule.items), cx.k.iota(1, schedule.items)];
    try_fold((end - first).div_ceil(schedule.items as i64), [start + mine], |i, [next]| {
        let first = first + i * schedule.items as i64;
        let item = some(cx, items, first, end, experts);
        let coords = vec![Coord::Rows(first)];
        let other = cx.load(items, &Request { coords, rows: schedule.items, cols: 1, limits: Vec::new() });
        let is_for = item.equals(expert);
        let earlier = other.equals(item).and(rows.lt(cols));
        let place = is_for.select(next, zero).sum_along(0) + many(earlier, 0);
        cx.k.scatter(order, &[zero], 0, place, cols + first, (cols + first).lt(end));
        cx.k.store(position, &[first], [None, Some(0)], &[(0, end)], place);
        Ok([next + many(is_for, 1)])
    })?;
    Ok(())
}
