//! `attend`: attention in one pass over the keys.

use crate::attr::{Axis, Real, Spec};
use crate::dim::Dim;
use crate::eval::{Array, Sizes};
use crate::kernel::Elem;
use crate::kernel::build::Tile;
use crate::lower::{BufView, Coord, Cx, LowerError, Lowering, Request, View};
use crate::op::{OpDef, TypeError, op};
use crate::ops::attend_lse::AttendLse;
use crate::ops::causal_softmax::CausalSoftmax;
use crate::ops::einsum::extents;
use crate::ops::get::Get;
use crate::poly::Amount;
use crate::types::{Shape, TensorType, Type};
use crate::vjp::{Shares, Vjp};
use roles::Roles;

pub(super) mod grad;
pub(super) mod roles;

op! {
    /// Causal attention over cached keys: `softmax(scale · Σ q·k) · v`, without the matrix of scores in memory.
    ///
    /// Operands are pairs of queries and keys, then the values, then `start` (`i32[b]`: how many tokens of each
    /// sequence came before). `"bshn,bthn,bshp,btp,bthv->bshv"` adds the scores of two pairs. The result's first
    /// axis is the batch and its second the new tokens; token `i` sees keys `0 ..= start + i`.
    /// One pass with a running maximum and sum (Milakov and Gimelshein 2018; Dao et al. 2022).
    "attend" => Attend(; x...) {
        /// The axes of every operand but `start`, and of the result.
        spec: Spec,
        /// Multiplies the scores before the softmax.
        scale: Real,
    }
}

impl Attend {
    /// The number of pairs of queries and keys.
    pub fn pairs(&self) -> usize {
        self.spec.inputs.len() / 2
    }
}

impl OpDef for Attend {
    fn infer(&self, args: &[&TensorType]) -> Result<Type, TypeError> {
        let (dtype, extents, _) = roles::operands(&self.spec, args)?;
        let shape: Shape = self.spec.out.iter().map(|&axis| extents[axis as usize].clone()).collect();
        Ok(TensorType::new(dtype, shape).into())
    }

    fn flops<N: Amount>(&self, args: &[&TensorType], _: &Type, size: &dyn Fn(&TensorType) -> N) -> N {
        let [scores, sum] = roles::flops(&self.spec, args, size);
        scores + sum
    }

    /// By its definition: scores, softmax, average.
    fn eval(&self, sizes: &Sizes, args: &[&Array]) -> Vec<Array> {
        let roles = Roles::of(&self.spec).expect("the type rule has checked it");
        let scores = roles::scores(&self.spec, self.scale, &roles, sizes, args);
        vec![average(&self.spec, &roles, sizes, &scores, args)]
    }

    /// With the sums of a second forward; a forward that is [`attend_lse`](mod@super::attend_lse) has them already.
    fn vjp(&self, cx: &mut Vjp<'_>) -> Shares {
        let args = cx.all_args();
        let both = cx.op(AttendLse { spec: self.spec.clone(), scale: self.scale }, &args)?;
        let lse = cx.op(Get { index: 1 }, &[both])?;
        let (o, of_o) = (cx.out(), cx.grad());
        grad::shares(cx, &self.spec, self.scale, [o, lse], [Some(of_o), None])
    }

    fn lowering(&self) -> Lowering {
        Lowering::Kernel
    }

    fn in_memory(&self, i: usize) -> bool {
        i < self.spec.inputs.len()
    }

    fn kernel<'k>(&self, cx: &Cx<'k>, args: &[View<'k>]) -> Result<(), LowerError> {
        kernel(cx, &self.spec, self.scale, false, args)
    }
}

/// The average of the values by the softmax of the scores, by its definition.
pub(super) fn average(spec: &Spec, roles: &Roles, sizes: &Sizes, scores: &Array, args: &[&Array]) -> Array {
    let n = spec.inputs.len();
    let probs = CausalSoftmax {}.eval(sizes, &[scores, args[n]]).remove(0);
    roles::einsum(spec, sizes, &[&roles.scores(), &spec.inputs[n - 1]], &spec.out, &[&probs, args[n - 1]])
}

/// One program for a sequence and a tile of query rows. Heads that share their keys and values are rows too, so
/// that a decode step reads each key once for all of them.
///
/// With `sums`, part 1 of the result is the logarithms of what the weights add up to.
pub(super) fn kernel<'k>(
    cx: &Cx<'k>,
    spec: &Spec,
    scale: Real,
    sums: bool,
    args: &[View<'k>],
) -> Result<(), LowerError> {
    let roles = Roles::of(spec).map_err(LowerError::new)?;
    let (start, tensors) = args.split_last().expect("there are operands");
    let mut views: Vec<BufView> = tensors.iter().map(|x| x.memory().cloned()).collect::<Result<_, _>>()?;
    let mut specs: Vec<Vec<Axis>> = spec.inputs.clone();
    let mut out = spec.out.clone();
    let types: Vec<&TensorType> = tensors.iter().map(|x| &x.ty).collect();
    let extents = extents(spec, &types).map_err(|e| LowerError::new(e.message))?;
    let extent = |axis: Axis| &extents[axis as usize];

    // Heads that no key and no value has become rows, if they follow the tokens everywhere.
    let (mut rows, mut per_token) = (extent(roles.query).clone(), Dim::from(1));
    if let [head] = roles.heads[..]
        && let Some(merged) = merge_heads(cx, &roles, head, &specs, &views, &out)
    {
        views = merged;
        specs.iter_mut().for_each(|axes| axes.retain(|&a| a != head));
        out.retain(|&a| a != head);
        (rows, per_token) = (&rows * extent(head), extent(head).clone());
    }

    let width = cx.fixed(extent(roles.value), "the width of a value")?;
    let tensor = cx.schedule.tensor_of(&views.iter().collect::<Vec<_>>());
    let tiles = tensor.and_then(|tensor| tensor.attention_of(width));
    let tensor = tensor.filter(|_| tiles.is_some());
    let [most_rows, most_keys] = tiles.unwrap_or(cx.schedule.attention);
    // Tensor cores have whole tiles only.
    let fit = |dim: &Dim, most: usize| {
        if tensor.is_some() { most } else { cx.size(dim).map_or(most, |n| n.clamp(1, most)) }
    };
    // A block of keys is in one page.
    let in_page = |most: usize| {
        let keys = specs.iter().zip(&views).filter_map(|(axes, view)| {
            Some(view.tile_along(axes.iter().position(|&axis| axis == roles.key)?, most))
        });
        keys.min().unwrap_or(most)
    };
    let (bm, bk) = (fit(&rows, most_rows), in_page(fit(extent(roles.key), most_keys)));

    // With narrow values each head has programs of its own, which are enough.
    if !sums && tensor.is_some_and(|tensor| width > tensor.narrow) && out.last() == Some(&roles.value) {
        (cx.by_parts)(&Dim::product(spec.out.iter().filter(|&&a| a != roles.value).map(|&a| extent(a))));
    }

    let mut at = vec![None; extents.len()];
    let part = cx.parts.map(|parts| cx.program(&Dim::from(parts as i64)));
    // Queries last: programs that follow each other then share their keys.
    for &axis in out.iter().filter(|&&axis| axis != roles.query && axis != roles.value) {
        at[axis as usize] = Some(Coord::At(cx.program(extent(axis))));
    }
    let tile = cx.k.program(rows.clone(), bm as i64);
    // On a machine that runs many programs at once the longest, which see the most keys, begin.
    let tile = if tensor.is_some() { cx.extent(&rows).div_ceil(bm as i64) - 1i64 - tile } else { tile };
    at[roles.query as usize] = Some(Coord::Rows(tile * bm as i64));
    at[roles.value as usize] = Some(Coord::Cols(cx.k.int(0)));
    let leading = part.into_iter().map(Coord::At);
    let coords: Vec<Coord<'k>> =
        leading.chain(out.iter().map(|&axis| at[axis as usize].expect("an axis of the result"))).collect();
    let here = |axis: Axis| at[axis as usize].expect("an axis of the result");
    let first_row = here(roles.query).start();
    let start = start.at(&Request::element(&[here(roles.batch).start()]))?;

    // Row r is token r / per_token; the last key it sees is start + that. Compared as floats, exact up to 2^24.
    let per_token = cx.extent(&per_token);
    let row = cx.k.iota(0, bm) + first_row;
    let last_seen = (row / per_token + start).cast(Elem::F32);
    let lane = cx.k.iota(1, bk).cast(Elem::F32);
    let last_row = (first_row + (bm as i64 - 1)).min(cx.extent(&rows) - 1i64);
    let keys = (last_row / per_token + start + 1i64).min(cx.extent(extent(roles.key)));

    // The blocks of keys, or those of this program's part of them.
    let blocks = keys.div_ceil(bk as i64);
    let (first_block, blocks) = match (part, cx.parts) {
        (Some(part), Some(parts)) => {
            let each = blocks.div_ceil(parts as i64);
            (part * each, (blocks - part * each).min(each).max(cx.k.int(0)))
        }
        _ => (cx.k.int(0), blocks),
    };

    // Of each operand, the part that a tile of rows or a block of keys needs.
    let part = |operand: usize, rows: (Axis, usize), first: Tile<'k>, whole: Option<(Axis, usize)>| {
        let coord = |&axis: &Axis| match whole {
            _ if axis == rows.0 => Coord::Rows(first),
            Some((whole, _)) if axis == whole => Coord::Cols(cx.k.int(0)),
            _ => Coord::At(here(axis).start()),
        };
        let coords = specs[operand].iter().map(coord).collect();
        let cols = whole.map_or(1, |(_, n)| n);
        cx.load_in_page(&views[operand], &Request { coords, rows: rows.1, cols, limits: Vec::new() })
    };
    let mut queries = Vec::new();
    for (i, &inner) in roles.summed.iter().enumerate() {
        let n = cx.fixed(extent(inner), "the width of a query")?;
        queries.push((inner, n, part(2 * i, (roles.query, bm), first_row, Some((inner, n)))));
    }
    let values = specs.len() - 1;

    // Where values are narrow, powers of two do, with the scale and the logarithm's base in one factor.
    let quick = tensor.is_some() && scale.get() > 0.0;
    let to_base_2 = scale.get() * std::f64::consts::LOG2_E;
    let init = [cx.k.full([bm, 1], -1e30), cx.k.full([bm, 1], 0.0), cx.k.full([bm, width], 0.0)];
    let [top, total, sum] = cx.k.fold(blocks, init, |i, [top, total, sum]| {
        let first = (first_block + i) * bk as i64;
        let zero = cx.k.full([bm, bk], 0.0);
        let scores = queries.iter().enumerate().fold(zero, |scores, (i, &(inner, n, q))| {
            scores.add_dot(q, part(2 * i + 1, (roles.key, bk), first, Some((inner, n))))
        });
        let seen = (lane + first.cast(Elem::F32)).le(last_seen);
        let scores = if quick { scores } else { scores * scale.get() };
        let scores = seen.select(scores, cx.k.float(-1e30));

        let new_top = top.max(scores.max_along(1));
        let (weights, decay) = if quick {
            ((scores * to_base_2 - new_top * to_base_2).exp2(), ((top - new_top) * to_base_2).exp2())
        } else {
            ((scores - new_top).exp(), (top - new_top).exp())
        };
        let coord = |&axis: &Axis| match axis {
            _ if axis == roles.key => Coord::Cols(first),
            _ if axis == roles.value => Coord::Rows(cx.k.int(0)),
            _ => Coord::At(here(axis).start()),
        };
        let coords = specs[values].iter().map(coord).collect();
        let v =
            cx.load_in_page(&views[values], &Request { coords, rows: width, cols: bk, limits: Vec::new() });
        [new_top, total * decay + weights.sum_along(1), (sum * decay).add_dot(weights, v)]
    });
    let at = Request { coords, rows: bm, cols: width, limits: Vec::new() };
    if cx.parts.is_none() {
        cx.emit(&at, sum * total.recip())?;
        if !sums {
            return Ok(());
        }
    } else {
        // A part without keys has nothing to say.
        cx.emit(&at, sum * total.max(cx.k.float(1e-30)).recip())?;
    }
    let sums = if quick { top * scale.get() } else { top } + total.log();
    let coords = match cx.parts {
        Some(_) => at.coords[..at.coords.len() - 1].to_vec(),
        None => roles.sums().into_iter().map(here).collect(),
    };
    (cx.emit)(1, &Request { coords, rows: bm, cols: 1, limits: Vec::new() }, sums)
}

/// Joins the parts of an attention: `values[parts, …, v]`, each an average over its keys, and `sums[parts, …]`, the
/// logarithms of what their weights add up to.
pub fn join_parts<'k>(cx: &Cx<'k>, values: &BufView, sums: &BufView) -> Result<(), LowerError> {
    let (rank, zero) = (values.shape.len(), cx.k.int(0));
    let parts = cx.fixed(&values.shape[0], "the number of parts")?;
    let width = cx.fixed(&values.shape[rank - 1], "the width of a value")?;
    let index = cx.programs(&values.shape[1..rank - 1]);
    let here = |first: Coord<'k>, last: Option<Coord<'k>>| {
        let coords = [first].into_iter().chain(index.iter().map(|&i| Coord::At(i))).chain(last).collect();
        let (rows, cols) = match (first, last) {
            (Coord::Cols(_), _) => (1, parts),
            (_, Some(_)) => (parts, width),
            _ => (parts, 1),
        };
        Request { coords, rows, cols, limits: Vec::new() }
    };
    let row = cx.load(sums, &here(Coord::Cols(zero), None));
    let most = row.max_along(1);
    let scale = (row - most).exp().sum_along(1).recip();
    let weights = (cx.load(sums, &here(Coord::Rows(zero), None)) - most).exp() * scale;
    let values = cx.load(values, &here(Coord::Rows(zero), Some(Coord::Cols(zero))));
    cx.emit(&Request::row(&index, zero, width), (values * weights).sum_along(0))
}

/// The operands with `head` made part of the queries' axis; `None` if a key has it or it does not follow the tokens.
fn merge_heads(
    cx: &Cx<'_>,
    roles: &Roles,
    head: Axis,
    specs: &[Vec<Axis>],
    views: &[BufView],
    out: &[Axis],
) -> Option<Vec<BufView>> {
    let groups = |axes: &[Axis]| {
        let mut groups = Vec::new();
        let mut i = 0;
        while i < axes.len() {
            let pair = axes[i] == roles.query && axes.get(i + 1) == Some(&head);
            groups.push(if pair { 2 } else { 1 });
            i += groups[groups.len() - 1];
        }
        groups
    };
    let mut merged = Vec::new();
    for (i, (axes, view)) in specs.iter().zip(views).enumerate() {
        let is_query = i % 2 == 0 && i + 1 < specs.len();
        if !is_query {
            merged.push(if axes.contains(&head) { return None } else { view.clone() });
            continue;
        }
        let groups = groups(axes);
        if groups.len() == axes.len() {
            return None;
        }
        merged.push(view.merge(&groups)?);
    }
    let groups = groups(out);
    (groups.len() < out.len() && (cx.merge_out)(&groups)).then_some(merged)
}
