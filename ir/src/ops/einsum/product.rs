//! The kernels of a contraction of one operand, and of two.

use super::codes::{self, From, Operand};
use crate::attr::{Axis, Spec};
use crate::dim::Dim;
use crate::kernel::build::Tile;
use crate::lower::{BufView, Coord, Cx, FewRows, LowerError, Request, View};
use crate::ops::rows::try_fold;

/// What is added to the tile that it is given, where loops are.
type Add<'a, 'k> = dyn FnMut(&mut Vec<(Axis, Tile<'k>)>, Tile<'k>) -> Result<Tile<'k>, LowerError> + 'a;

/// Where a loop over each of some axes is.
type Index<'k> = [(Axis, Tile<'k>)];

/// The axes of a contraction of two operands, after neighbours that always go together have been made one.
struct Plan {
    /// The operands, one axis each for an entry of `specs`.
    views: [BufView; 2],
    /// The axes of left, right and result.
    specs: [Vec<Axis>; 3],
    /// The extent of each axis.
    extents: Vec<Dim>,
}

/// Sums and transpositions: one program for each index of the result but the last, whose columns it holds. Of the last axis
/// that is summed it reads several indices at once, where the schedule says so, and it transposes several rows.
pub fn one<'k>(cx: &Cx<'k>, spec: &Spec, x: &View<'k>) -> Result<(), LowerError> {
    let axes = &spec.inputs[0];
    let extent =
        |axis: Axis| &x.ty.shape[axes.iter().position(|&a| a == axis).expect("an axis is in its operand")];
    let mut summed: Vec<Axis> = axes.iter().copied().filter(|a| !spec.out.contains(a)).collect();
    let mut coords: Vec<Option<Coord<'k>>> = vec![None; spec.axes()];
    let mut out = Vec::new();
    // What are neighbours before may be rows of tiles: then both sides of memory see neighbours.
    let across = axes.last().and_then(|last| spec.out.iter().position(|axis| axis == last));
    let in_pages = x.buffer.as_ref().is_some_and(|view| view.pages.is_some());
    let across = across.filter(|&place| summed.is_empty() && !in_pages && place + 1 < spec.out.len());
    let (across, [rows, block]) = match cx.schedule.turned_columns.filter(|_| across.is_some()) {
        Some(cols) => (across, [1, cols]),
        None if summed.is_empty() => (None, [1, cx.schedule.block]),
        None => (None, cx.schedule.sums),
    };
    let lines = across.map_or(1, |place| {
        cx.size(extent(spec.out[place])).unwrap_or(usize::MAX).clamp(1, cx.schedule.turned)
    });
    let cols = spec.out.last().map_or(1, |&axis| cx.size(extent(axis)).map_or(block, |n| n.min(block)));
    for (i, &axis) in spec.out.iter().enumerate() {
        let coord = if i + 1 == spec.out.len() {
            Coord::Cols(cx.program_tile(extent(axis), cols))
        } else if Some(i) == across {
            Coord::Rows(cx.program_tile(extent(axis), lines))
        } else {
            Coord::At(cx.program(extent(axis)))
        };
        coords[axis as usize] = Some(coord);
        out.push(coord);
    }
    let at = Request { coords: out, rows: lines, cols, limits: Vec::new() };
    let request = |summed_at: &Index<'k>| {
        let coord = |&axis: &Axis| {
            let inner = summed_at.iter().find(|(a, _)| *a == axis).map(|(_, i)| Coord::At(*i));
            inner.or(coords[axis as usize]).expect("an axis stays or is summed")
        };
        at.with_coords(axes.iter().map(coord).collect())
    };
    let of = |axis: Axis| extent(axis).clone();
    let inner = if rows > 1 { summed.pop() } else { None };
    let zero = cx.k.full([if inner.is_some() { rows } else { 1 }, cols], 0.0);
    let sum = match inner {
        None => sum_over(cx, &summed, &of, zero, &mut Vec::new(), &mut |index, acc| {
            Ok(acc + x.at(&request(index))?)
        })?,
        Some(inner) => {
            let place = axes.iter().position(|&a| a == inner).expect("a summed axis is in its operand");
            let end = cx.extent(extent(inner));
            let sum = sum_over(cx, &summed, &of, zero, &mut Vec::new(), &mut |index, acc| {
                index.push((inner, end));
                let around = request(index);
                index.pop();
                let trips = end.div_ceil(rows as i64);
                let [sum] = try_fold(trips, [acc], |i, [acc]| {
                    let first = i * rows as i64;
                    let mut coords = around.coords.clone();
                    coords[place] = Coord::Rows(first);
                    let tile = x.at(&Request { coords, rows, ..around.clone() })?;
                    let counted = (cx.k.iota(0, rows) + first).lt(end);
                    Ok([acc + counted.select(tile, cx.k.float(0.0))])
                })?;
                Ok(sum)
            })?;
            sum.sum_along(0)
        }
    };
    cx.emit(&at, sum)
}

/// What is added to `acc` for every index of `axes`: a loop each.
fn sum_over<'k>(
    cx: &Cx<'k>,
    axes: &[Axis],
    extent: &dyn Fn(Axis) -> Dim,
    acc: Tile<'k>,
    index: &mut Vec<(Axis, Tile<'k>)>,
    add: &mut Add<'_, 'k>,
) -> Result<Tile<'k>, LowerError> {
    let Some((&axis, rest)) = axes.split_first() else { return add(index, acc) };
    let mut error = None;
    let [sum] = cx.k.fold(cx.extent(&extent(axis)), [acc], |i, [acc]| {
        index.push((axis, i));
        let sum = sum_over(cx, rest, extent, acc, index, add);
        index.pop();
        [sum.unwrap_or_else(|e| {
            error = Some(e);
            acc
        })]
    });
    error.map_or(Ok(sum), Err)
}

/// A product: rows of the left side against rows of the right, in tiles, a block of the sum at a time.
pub fn two<'k>(cx: &Cx<'k>, spec: &Spec, x: &View<'k>, y: &View<'k>) -> Result<(), LowerError> {
    // Only one operand brings the result's last axis, or both do; let the right one bring it where there is a choice.
    let swap =
        spec.out.last().is_some_and(|last| spec.inputs[0].contains(last) && !spec.inputs[1].contains(last));
    // With few rows it is the other way round.
    let codes_alone = x.memory()?.scales.is_some() && y.memory()?.scales.is_some();
    let swapped =
        |few: &FewRows| few.codes.filter(|_| codes_alone).map_or(few.swapped, |(_, swapped)| swapped);
    let swap = swap != cx.few.is_some_and(swapped);
    let (l, r, x, y) = if swap { (1, 0, y, x) } else { (0, 1, x, y) };
    let plan = Plan::new(cx, [&spec.inputs[l], &spec.inputs[r], &spec.out], [x.memory()?, y.memory()?]);
    let [left, right, out] = &plan.specs;
    let is = |axis: Axis, l: bool, r: bool, o: bool| {
        (left.contains(&axis), right.contains(&axis), out.contains(&axis)) == (l, r, o)
    };
    let all = || (0..plan.extents.len() as Axis).filter(|axis| left.contains(axis) || right.contains(axis));
    let summed: Vec<Axis> = all().filter(|&a| !out.contains(&a)).collect();
    if summed.is_empty() {
        return outer(cx, &plan);
    }
    let shared: Vec<Axis> = summed.iter().copied().filter(|&a| is(a, true, true, false)).collect();

    // Rows along the left side's longest own axis (one without a fixed length, if there is one), columns along
    // the right side's, the last of the result where that is one.
    let length = |&axis: &Axis| cx.size(&plan.extents[axis as usize]).unwrap_or(usize::MAX);
    // (Of sequences in pages, a tile has one.)
    let tiled = |&axis: &Axis| plan.tile_along(axis, 2) > 1;
    let rows = all().filter(|&a| is(a, true, false, true)).filter(tiled).max_by_key(length);
    let own = |&a: &Axis| is(a, false, true, true) && tiled(&a);
    let cols = out.last().copied().filter(own).or_else(|| all().filter(own).max_by_key(length));
    // The blocks of the sum run along an axis of neighbours in both sides, if there is one.
    let one = Dim::from(1);
    let step = |side: usize, axis: Axis| {
        let place = plan.specs[side].iter().position(|&a| a == axis).expect("a shared axis is in both sides");
        plan.views[side].strides[place] == one
    };
    let inner = shared
        .iter()
        .copied()
        .filter(tiled)
        .max_by_key(|&a| (step(0, a) as u8 + step(1, a) as u8, length(&a)));

    let operands = [&plan.views[0], &plan.views[1]];
    if let (Some(row), Some(col), Some(term), [_]) = (rows, cols, inner, &summed[..])
        && let Some(result) = codes(cx, &plan, [row, col, term])
    {
        return result;
    }
    if let Some(rows) = rows.map(|axis| &plan.extents[axis as usize]).filter(|rows| cx.size(rows).is_none())
        && cx.schedule.tensor_of(&operands).is_some()
        && cols.is_some()
    {
        (cx.by_rows)(rows, 1, false);
    }
    // Where terms are far apart on both sides, as in the gradient of a weight, what lies beside them is worth more.
    let far = inner.is_some_and(|axis| !step(0, axis) && !step(1, axis));
    let [bm, bn, bk] = match cx.few {
        None if far && cx.schedule.tensor_of(&operands).is_none() => cx.schedule.outer,
        _ => cx.product_of(&operands),
    };
    let fit = |axis: Option<Axis>, most: usize| axis.map_or(1, |axis| length(&axis).clamp(1, most));
    let (bm, bn, bk) = (fit(rows, bm), fit(cols, bn), fit(inner, bk));
    let bn = match cols.and_then(|axis| cx.size(&plan.extents[axis as usize])) {
        Some(all) if cx.few.is_none() && cx.schedule.tensor_of(&operands).is_some() => even(all, bn),
        _ => bn,
    };

    let in_page = |axis: Option<Axis>, most: usize| axis.map_or(most, |axis| plan.tile_along(axis, most));
    let (bm, bn, bk) = (in_page(rows, bm), in_page(cols, bn), in_page(inner, bk));

    if let Some(terms) = inner.map(|axis| &plan.extents[axis as usize])
        && cx.schedule.tensor_of(&operands).is_none()
        && !out.is_empty()
    {
        (cx.by_terms)(terms, &Dim::product(out.iter().map(|&axis| &plan.extents[axis as usize])));
    }

    let mut coords: Vec<Option<Coord<'k>>> = vec![None; plan.extents.len()];
    let part = cx.parts.map(|parts| (cx.program(&Dim::from(parts as i64)), parts as i64));
    let mut at: Vec<Coord<'k>> = part.iter().map(|&(part, _)| Coord::At(part)).collect();
    for &axis in out {
        let extent = &plan.extents[axis as usize];
        let coord = if Some(axis) == rows {
            Coord::Rows(cx.program_tile(extent, bm))
        } else if Some(axis) == cols {
            Coord::Cols(cx.program_tile(extent, bn))
        } else {
            Coord::At(cx.program(extent))
        };
        coords[axis as usize] = Some(coord);
        at.push(coord);
    }
    let at = Request { coords: at, rows: bm, cols: bn, limits: Vec::new() };

    let loops: Vec<Axis> = summed.iter().copied().filter(|&a| Some(a) != inner).collect();
    let operand = |side: usize, index: &Index<'k>| {
        let coord = |&axis: &Axis| {
            if let Some((_, i)) = index.iter().find(|(a, _)| *a == axis) {
                return if Some(axis) == inner { Coord::Cols(*i) } else { Coord::At(*i) };
            }
            match coords[axis as usize].expect("an axis stays or is summed") {
                // Either operand's own axis makes the rows of its tile.
                Coord::Cols(i) | Coord::Rows(i) => Coord::Rows(i),
                at => at,
            }
        };
        let request = Request {
            coords: plan.specs[side].iter().map(coord).collect(),
            rows: if side == 0 { bm } else { bn },
            cols: bk,
            limits: Vec::new(),
        };
        cx.load_in_page(&plan.views[side], &request)
    };
    let zero = cx.k.full([bm, bn], 0.0);
    let blocks = |acc: Tile<'k>, index: &Index<'k>| match inner {
        None => acc.add_dot(operand(0, index), operand(1, index)),
        Some(axis) => {
            let trips = cx.extent(&plan.extents[axis as usize]).div_ceil(bk as i64);
            let (before, trips) = match part {
                None => (cx.k.int(0), trips),
                Some((part, parts)) => {
                    let each = trips.div_ceil(parts);
                    let before = part * each;
                    (before, (trips - before).min(each).max(cx.k.int(0)))
                }
            };
            let [sum] = cx.k.fold(trips, [acc], |i, [acc]| {
                let index = [index, &[(axis, (before + i) * bk as i64)]].concat();
                [acc.add_dot(operand(0, &index), operand(1, &index))]
            });
            sum
        }
    };
    let sum = nest(cx, &loops, &plan.extents, zero, &mut Vec::new(), &blocks);
    cx.emit(&at, sum)
}

/// Adds up the parts of a product: `parts[parts, …]`.
pub fn join_parts<'k>(cx: &Cx<'k>, parts: &BufView) -> Result<(), LowerError> {
    let n = cx.fixed(&parts.shape[0], "the number of parts")?;
    let Some((last, leading)) = parts.shape[1..].split_last() else {
        return Err(LowerError::new("a product in parts has an axis"));
    };
    let cols = cx.size(last).unwrap_or(usize::MAX).clamp(1, cx.schedule.block);
    let at = Request::row(&cx.programs(leading), cx.program_tile(last, cols), cols);
    let sum = (0..n as i64).fold(cx.k.full([1, cols], 0.0), |sum, part| {
        let coords = [Coord::At(cx.k.int(part))].into_iter().chain(at.coords.iter().copied()).collect();
        sum + cx.load(parts, &at.with_coords(coords))
    });
    cx.emit(&at, sum)
}

/// A product of 8-bit operands by tensor cores, whose scales are read by themselves; `None` if they cannot do it.
fn codes<'k>(cx: &Cx<'k>, plan: &Plan, [row, col, term]: [Axis; 3]) -> Option<Result<(), LowerError>> {
    let tensor = cx.schedule.tensor.as_ref()?;
    let place = |side: usize, axis: Axis| plan.specs[side].iter().position(|&a| a == axis);
    let operand =
        |side: usize, own: Axis| Operand::new(cx, &plan.views[side], place(side, own)?, place(side, term)?);
    let (left, right) = (operand(0, row)?, operand(1, col)?);
    let extent = |axis: Axis| &plan.extents[axis as usize];
    let (all, terms) = (cx.size(extent(col)), cx.size(extent(term))?);
    let mut tile = cx.few.and_then(|few| few.codes).map_or(tensor.codes, |(tile, _)| tile);
    if cx.few.is_some()
        && tile[1] == 64
        && all.is_some_and(|all| all.div_ceil(tile[1] / 2) <= tensor.programs)
    {
        // Half as wide there are still no more programs than run at once.
        tile[1] /= 2;
    }
    // The last columns by themselves are less than a tile more.
    let rest = all.map_or(0, |all| if all >= 4 * tile[1] { all % tile[1] } else { 0 });
    let rows = cx.size(extent(row)).map_or(tile[0], |n| n.clamp(1, tile[0]));
    let cut = |terms: usize, all| codes::cut([&left, &right], [rows, tile[1], terms], all);
    let parts = all.filter(|_| cx.few.is_none() && (1..=tile[1] / 2).contains(&rest));
    let parts =
        parts.and_then(|all| Some((all, cut(tile[2], Some(all - rest))?, cut(2 * tile[2], Some(rest))?)));
    let (first, all, cut) = match parts.filter(|_| (cx.by_columns)()) {
        Some((all, _, last)) if cx.rest => (all - rest, Some(rest), last),
        Some((all, most, _)) => (0, Some(all - rest), most),
        None => (0, all, cut(tile[2], all)?),
    };
    let columns = all.map_or_else(|| extent(col).clone(), |all| Dim::from(all as i64));
    if cx.size(extent(row)).is_none() {
        (cx.by_rows)(extent(row), 1, false);
    }

    let coord = |&axis: &Axis| match axis {
        _ if axis == row => Coord::Rows(cx.program_tile(extent(axis), cut.rows)),
        _ if axis == col => Coord::Cols(cx.program_tile(&columns, cut.cols) + first as i64),
        _ => Coord::At(cx.program(extent(axis))),
    };
    let at: Vec<Coord<'k>> = plan.specs[2].iter().map(coord).collect();
    let start = |axis: Axis| {
        let place = plan.specs[2].iter().position(|&a| a == axis);
        at[place.expect("an axis that is not summed stays")].start()
    };
    let others = [0, 1].map(|side| move |i: usize| start(plan.specs[side][i]));
    let from = |side: usize, axis: Axis| From { first: start(axis), other: &others[side], end: None };
    let sides = [from(0, row), from(1, col)];
    let parts = codes::product(cx, cut, (None, cx.k.int(terms as i64)), [&left, &right], sides);
    let emit = |([top, first], sum): ([usize; 2], Tile<'k>)| {
        let shift = |coord: &Coord<'k>| match coord {
            Coord::Rows(i) => Coord::Rows(*i + top as i64),
            Coord::Cols(i) => Coord::Cols(*i + first as i64),
            other => *other,
        };
        let coords = at.iter().map(shift).collect();
        cx.emit(&Request { coords, rows: cut.tall, cols: cut.part, limits: Vec::new() }, sum)
    };
    Some(parts.into_iter().try_for_each(emit))
}

/// The columns of a tile that cut `all` with the least left over: `most`, or down to two thirds of it in steps of 64.
fn even(all: usize, most: usize) -> usize {
    let fewer = ((most * 2 / 3).max(1)..=most).rev().filter(|n| *n == most || n.is_multiple_of(64));
    fewer.min_by_key(|n| all.next_multiple_of(*n)).unwrap_or(most)
}

/// A product without a sum: element by element, a row at a time.
fn outer<'k>(cx: &Cx<'k>, plan: &Plan) -> Result<(), LowerError> {
    let [left, right, out] = &plan.specs;
    let extent = |axis: Axis| &plan.extents[axis as usize];
    let last = out.last().copied();
    let cols = last.map_or(1, |axis| cx.size(extent(axis)).unwrap_or(usize::MAX).clamp(1, cx.schedule.block));
    let coord = |&axis: &Axis| {
        let dim = extent(axis);
        if Some(axis) == last { Coord::Cols(cx.program_tile(dim, cols)) } else { Coord::At(cx.program(dim)) }
    };
    let at = Request { coords: out.iter().map(coord).collect(), rows: 1, cols, limits: Vec::new() };
    let operand = |side: usize, axes: &[Axis]| {
        let place = |axis: &Axis| out.iter().position(|a| a == axis).expect("no axis is summed");
        cx.load(&plan.views[side], &at.with_coords(axes.iter().map(|axis| at.coords[place(axis)]).collect()))
    };
    let product = operand(0, left) * operand(1, right);
    cx.emit(&at, product)
}

/// A loop over each of `axes`, with `body` inside.
fn nest<'k>(
    cx: &Cx<'k>,
    axes: &[Axis],
    extents: &[Dim],
    acc: Tile<'k>,
    index: &mut Vec<(Axis, Tile<'k>)>,
    body: &dyn Fn(Tile<'k>, &Index<'k>) -> Tile<'k>,
) -> Tile<'k> {
    let Some((&axis, rest)) = axes.split_first() else { return body(acc, index) };
    let [sum] = cx.k.fold(cx.extent(&extents[axis as usize]), [acc], |i, [acc]| {
        index.push((axis, i));
        let sum = nest(cx, rest, extents, acc, index, body);
        index.pop();
        [sum]
    });
    sum
}

impl Plan {
    /// Makes one axis of neighbours that follow each other wherever they appear, so that `b` and `s` of
    /// `"bsm,rm->bsr"` become one axis of `b·s` rows.
    fn new(cx: &Cx<'_>, specs: [&Vec<Axis>; 3], views: [&BufView; 2]) -> Self {
        let mut plan =
            Plan { views: views.map(Clone::clone), specs: specs.map(Clone::clone), extents: Vec::new() };
        let n = plan.specs.iter().flatten().max().map_or(0, |&a| a as usize + 1);
        plan.extents = vec![Dim::from(1); n];
        for (view, spec) in plan.views.iter().zip(&plan.specs) {
            spec.iter().zip(&view.shape).for_each(|(&axis, dim)| plan.extents[axis as usize] = dim.clone());
        }
        // How many axes of the result each of the present ones stands for.
        let mut groups = vec![1; plan.specs[2].len()];
        while let Some((a, b)) = plan.mergeable(cx, &groups) {
            plan.merge(a, b, &mut groups);
        }
        plan
    }

    /// How many neighbours along an axis a tile may have; see [`BufView::tile_along`].
    fn tile_along(&self, axis: Axis, most: usize) -> usize {
        let sides = self.specs[..2].iter().zip(&self.views);
        let along = sides
            .filter_map(|(spec, view)| Some(view.tile_along(spec.iter().position(|&a| a == axis)?, most)));
        along.min().unwrap_or(most)
    }

    /// Two axes that follow each other wherever one of them is, and can be made one in every operand.
    fn mergeable(&self, cx: &Cx<'_>, groups: &[usize]) -> Option<(Axis, Axis)> {
        let pairs = self.specs.iter().flat_map(|spec| spec.windows(2).map(|w| (w[0], w[1])));
        pairs.into_iter().find(|&(a, b)| {
            let together = self.specs.iter().all(|spec| {
                let place = |axis| spec.iter().position(|&x| x == axis);
                match (place(a), place(b)) {
                    (None, None) => true,
                    (Some(i), Some(j)) => i + 1 == j,
                    _ => false,
                }
            });
            let in_views = || {
                (0..2).all(|side| match self.specs[side].iter().position(|&x| x == a) {
                    Some(i) => self.views[side].merge(&pair_at(self.specs[side].len(), i)).is_some(),
                    None => true,
                })
            };
            let in_out = || match self.specs[2].iter().position(|&x| x == a) {
                Some(i) => {
                    let mut groups = groups.to_vec();
                    groups[i] += groups.remove(i + 1);
                    (cx.merge_out)(&groups)
                }
                None => true,
            };
            together && in_views() && in_out()
        })
    }

    fn merge(&mut self, a: Axis, b: Axis, groups: &mut Vec<usize>) {
        self.extents[a as usize] = &self.extents[a as usize] * &self.extents[b as usize];
        for side in 0..3 {
            let Some(i) = self.specs[side].iter().position(|&x| x == a) else { continue };
            if side < 2 {
                let merged = self.views[side].merge(&pair_at(self.specs[side].len(), i));
                self.views[side] = merged.expect("`mergeable` has checked it");
            } else {
                groups[i] += groups.remove(i + 1);
            }
            self.specs[side].remove(i + 1);
        }
    }
}

/// Groups of one, but for a pair at `i`.
fn pair_at(rank: usize, i: usize) -> Vec<usize> {
    let mut groups = vec![1; rank - 1];
    groups[i] = 2;
    groups
}
