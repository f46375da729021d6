//! What the two kernels of attention's backward share: their operands, and probabilities computed again.

use super::roles::{self, Roles};
use crate::attr::{Axis, Real, Spec};
use crate::dim::Dim;
use crate::eval::{Array, Sizes};
use crate::graph::Value;
use crate::kernel::build::Tile;
use crate::lower::{BufView, Coord, Cx, LowerError, Request, View};
use crate::op::TypeError;
use crate::ops::attend_grad_keys::AttendGradKeys;
use crate::ops::attend_grad_queries::AttendGradQueries;
use crate::ops::get::Get;
use crate::ops::sum::Sum;
use crate::ops::{check, einsum};
use crate::types::{DType, Shape, TensorType};
use crate::vjp::{Shares, Vjp};

/// The type rule: the operands of the forward, then `rest`: some with the axes of the scores' sums, in `f32`, and last
/// the gradient of the result.
pub fn operands(
    op: &str,
    spec: &Spec,
    args: &[&TensorType],
    sums: &[&str],
) -> Result<(DType, Vec<Dim>, Roles), TypeError> {
    let (dtype, extents, roles) = roles::operands(spec, args)?;
    let first = spec.inputs.len() + 1;
    let shape =
        |axes: &[Axis]| -> Shape { axes.iter().map(|&axis| extents[axis as usize].clone()).collect() };
    if args.len() != first + sums.len() + 1 {
        let (n, m) = (first + sums.len() + 1, args.len());
        return Err(TypeError::new(format!("`{op}` with \"{spec}\" takes {n} operands, not {m}")));
    }
    let wanted = sums.iter().map(|name| (*name, TensorType::new(DType::F32, shape(&roles.sums()))));
    let wanted = wanted.chain([("do", TensorType::new(dtype, shape(&spec.out)))]);
    for (i, (name, want)) in wanted.enumerate() {
        check::unscaled(op, name, args[first + i], first + i)?;
        if *args[first + i] != want {
            let message = format!("`{name}` is {want}, but here it is {}", args[first + i]);
            return Err(TypeError::new(message).at(first + i));
        }
    }
    Ok((dtype, extents, roles))
}

/// The gradient rule of a forward whose result is `o` and whose rows' sums are `lse`, given the gradients of either.
pub fn shares(
    cx: &mut Vjp<'_>,
    spec: &Spec,
    scale: Real,
    [o, lse]: [Value; 2],
    [of_o, of_lse]: [Option<Value>; 2],
) -> Shares {
    let (args, n) = (cx.all_args(), spec.inputs.len());
    let roles = Roles::of(spec).map_err(TypeError::new)?;
    let ty = cx.ty(o);
    let of_o = match of_o {
        Some(of_o) => of_o,
        None => cx.full(0.0, &ty)?,
    };
    let [wide, wide_grad] = [cx.cast(o, DType::F32)?, cx.cast(of_o, DType::F32)?];
    let terms = cx.mul(wide, wide_grad)?;
    let delta = cx.op(Sum { axis: ty.rank() as i64 - 1 }, &[terms])?;
    let delta = cx.reshape(delta, &ty.shape[..ty.rank() - 1])?;
    let (own, wanted) = (&spec.out[..spec.out.len() - 1], roles.sums());
    let mut delta = if own == wanted {
        delta
    } else {
        let spec = Spec::new(&[own], &wanted, |axis| spec.letter(axis));
        cx.op(einsum::Einsum { spec }, &[delta])?
    };
    // What the sums' own gradient adds to that of the scores is each probability's share of it.
    if let Some(of_lse) = of_lse {
        delta = cx.sub(delta, of_lse)?;
    }

    let operands = [&args[..], &[lse, delta, of_o]].concat();
    let mut shares = vec![None; args.len()];
    let queries: Vec<usize> = (0..n - 1).step_by(2).collect();
    let grad_keys = AttendGradKeys { spec: spec.clone(), scale };
    let (keys, heads) = (grad_keys.operands(), grad_keys.heads());
    if queries.iter().any(|&i| cx.wants(i)) {
        let all = cx.op(AttendGradQueries { spec: spec.clone(), scale }, &operands)?;
        for (part, &i) in queries.iter().enumerate() {
            shares[i] = Some(cx.op(Get { index: part as i64 }, &[all])?);
        }
    }
    if keys.iter().any(|&i| cx.wants(i)) {
        let all = cx.op(grad_keys, &operands)?;
        for (part, (&i, heads)) in keys.iter().zip(&heads).enumerate() {
            let mut share = cx.op(Get { index: part as i64 }, &[all])?;
            if !heads.is_empty() {
                let by_head = [heads, &spec.inputs[i][..]].concat();
                let spec = Spec::new(&[&by_head], &spec.inputs[i], |axis| spec.letter(axis));
                share = cx.op(einsum::Einsum { spec }, &[share])?;
                share = cx.cast(share, ty.dtype)?;
            }
            shares[i] = Some(share);
        }
    }
    Ok(shares)
}

/// The probabilities, and the gradient of the scores before they are scaled over `scale`: `p · (do · vᵀ - delta)`. By
/// definition, as arrays with the axes of the scores.
pub fn weights(
    spec: &Spec,
    scale: Real,
    sizes: &Sizes,
    args: &[&Array],
    [lse, delta, grad]: [&Array; 3],
) -> [Array; 2] {
    let roles = Roles::of(spec).expect("the type rule has checked it");
    let n = spec.inputs.len();
    let mut p = roles::scores(spec, scale, &roles, sizes, args);
    let seen: Vec<usize> = roles::seen(&p, args[n]).collect();
    let keys = p.shape[p.rank() - 1];
    for (r, (row, seen)) in p.data.chunks_mut(keys.max(1)).zip(seen).enumerate() {
        row[..seen].iter_mut().for_each(|x| *x = (*x - lse.data[r]).exp());
        row[seen..].fill(0.0);
    }
    let mut ds =
        roles::einsum(spec, sizes, &[&spec.out, &spec.inputs[n - 1]], &roles.scores(), &[grad, args[n - 1]]);
    for (r, row) in ds.data.chunks_mut(keys.max(1)).enumerate() {
        let p = &p.data[r * keys..];
        row.iter_mut().zip(p).for_each(|(x, p)| *x = p * (*x - delta.data[r]));
    }
    [p, ds]
}

/// The operands of a backward kernel, in memory.
pub struct Operands<'a, 'k> {
    pub cx: &'a Cx<'k>,
    pub roles: Roles,
    pub extents: Vec<Dim>,
    /// Queries, keys, …, values, and the gradient of the result, with the axes of each.
    views: Vec<(Vec<Axis>, BufView)>,
    /// The width of what each pair multiplies, and of a value.
    pub widths: Vec<usize>,
    start: &'a View<'k>,
    pub scale: f64,
}

impl<'a, 'k> Operands<'a, 'k> {
    /// Of these operands, of which the last is the gradient of the result.
    pub fn new(
        cx: &'a Cx<'k>,
        spec: &'a Spec,
        scale: Real,
        args: &'a [View<'k>],
    ) -> Result<Self, LowerError> {
        let roles = Roles::of(spec).map_err(LowerError::new)?;
        let n = spec.inputs.len();
        let types: Vec<&TensorType> = args[..n].iter().map(|x| &x.ty).collect();
        let extents = einsum::extents(spec, &types).map_err(|e| LowerError::new(e.message))?;
        let grad = args.last().expect("there are operands");
        let tensors = args[..n].iter().chain([grad]).zip(spec.inputs.iter().chain([&spec.out]));
        let views = tensors.map(|(x, axes)| Ok((axes.clone(), x.memory()?.clone())));
        let views = views.collect::<Result<Vec<_>, LowerError>>()?;
        let width = |&axis: &Axis| cx.fixed(&extents[axis as usize], "the width of a query");
        let mut widths = roles.summed.iter().map(width).collect::<Result<Vec<_>, _>>()?;
        widths.push(cx.fixed(&extents[roles.value as usize], "the width of a value")?);
        Ok(Self { cx, roles, extents, views, widths, start: &args[n], scale: scale.get() })
    }

    /// How many pairs of queries and keys there are.
    pub fn pairs(&self) -> usize {
        self.roles.summed.len()
    }

    /// The extent of an axis.
    pub fn extent(&self, axis: Axis) -> &Dim {
        &self.extents[axis as usize]
    }

    /// The tile of a backward kernel, rows that stay and rows that pass: `ordinary`'s, or for tensor cores what `tensor`
    /// says, if they can do it. And whether it is theirs.
    pub fn tile(
        &self,
        [stay, pass]: [Axis; 2],
        tensor: impl Fn(&crate::lower::TensorSchedule) -> [usize; 2],
        columns: usize,
    ) -> ([usize; 2], bool) {
        let cx = self.cx;
        let views: Vec<&BufView> = self.views.iter().map(|(_, view)| view).collect();
        // All sums are in registers at the same time.
        let tensor =
            cx.schedule.tensor_of(&views).filter(|schedule| columns <= schedule.grad_columns).map(tensor);
        let fit = |axis: Axis, most: usize| match tensor {
            Some(_) => most,
            None => cx.size(self.extent(axis)).map_or(most, |n| n.clamp(1, most)),
        };
        let [a, b] = tensor.unwrap_or(cx.schedule.attention_grad);
        ([fit(stay, a), fit(pass, b)], tensor.is_some())
    }

    /// How many tokens came before the new ones.
    pub fn start(&self, at: &At<'k>) -> Result<Tile<'k>, LowerError> {
        self.start.at(&Request::element(&[at.here(self.roles.batch)]))
    }

    /// A tile of query (`2 · pair`), key (`2 · pair + 1`), value or the result's gradient (the last two), with rows
    /// along `rows`.
    pub fn load(&self, operand: usize, at: &At<'k>, rows: (Axis, usize, Tile<'k>)) -> Tile<'k> {
        let cols = self.width_of(operand);
        let coord = |&axis: &Axis| match axis {
            _ if axis == rows.0 => Coord::Rows(rows.2),
            _ if axis == self.own(operand) => Coord::Cols(self.cx.k.int(0)),
            _ => Coord::At(at.here(axis)),
        };
        let (axes, view) = &self.views[operand];
        let coords = axes.iter().map(coord).collect();
        self.cx.load_in_page(view, &Request { coords, rows: rows.1, cols, limits: Vec::new() })
    }

    /// The same, transposed: `cols` run along the axis that [`Self::load`] has rows along.
    pub fn load_transposed(&self, operand: usize, at: &At<'k>, cols: (Axis, usize, Tile<'k>)) -> Tile<'k> {
        let rows = self.width_of(operand);
        let coord = |&axis: &Axis| match axis {
            _ if axis == cols.0 => Coord::Cols(cols.2),
            _ if axis == self.own(operand) => Coord::Rows(self.cx.k.int(0)),
            _ => Coord::At(at.here(axis)),
        };
        let (axes, view) = &self.views[operand];
        let coords = axes.iter().map(coord).collect();
        self.cx.load_in_page(view, &Request { coords, rows, cols: cols.1, limits: Vec::new() })
    }

    /// The place of the values among the operands.
    pub fn values(&self) -> usize {
        2 * self.pairs()
    }

    /// The place of the result's gradient.
    pub fn grad(&self) -> usize {
        2 * self.pairs() + 1
    }

    /// The probabilities, from scores, the logarithms of their sums and what is seen. For tensor cores, as powers of two.
    pub fn probabilities(&self, scores: Tile<'k>, lse: Tile<'k>, seen: Tile<'k>, quick: bool) -> Tile<'k> {
        let log = std::f64::consts::LOG2_E;
        let x = if quick { scores * (self.scale * log) - lse * log } else { scores * self.scale - lse };
        let x = seen.select(x, self.cx.k.float(-1e30));
        if quick { x.exp2() } else { x.exp() }
    }

    /// The axis of an operand's columns.
    fn own(&self, operand: usize) -> Axis {
        *self.roles.summed.get(operand / 2).unwrap_or(&self.roles.value)
    }

    fn width_of(&self, operand: usize) -> usize {
        self.widths[(operand / 2).min(self.pairs())]
    }
}

/// Where a program is along the axes that it has one index of.
#[derive(Clone)]
pub struct At<'k>(pub Vec<Option<Tile<'k>>>);

impl<'k> At<'k> {
    /// The index along an axis of which the program has one.
    pub fn here(&self, axis: Axis) -> Tile<'k> {
        self.0[axis as usize].expect("an axis of the result that is neither the tokens' nor the values'")
    }
}
