//! `attend_grad_keys`: the gradients of attention's keys and values.

use super::attend::grad::{self, At, Operands};
use super::attend::roles::{self, Roles};
use crate::attr::{Axis, Real, Spec};
use crate::eval::{Array, Sizes};
use crate::kernel::Elem;
use crate::kernel::build::Tile;
use crate::lower::{Coord, Cx, LowerError, Lowering, Request, View};
use crate::op::{OpDef, TypeError, op};
use crate::poly::Amount;
use crate::types::{DType, Shape, TensorType, Type};

op! {
    /// The gradients of the keys and values of an [`attend`](mod@super::attend): of each pair's keys, then of the values.
    ///
    /// Operands are those of [`attend_grad_queries`](mod@super::attend_grad_queries). With `ds` as there, keys get
    /// `dsᵀ · q`, values `pᵀ · do`.
    /// A gradient has its operand's axes and type. But where another key, or the values, have a head that this operand
    /// lacks (the rotary key that heads share), it is given head by head, as `f32[heads…, axes of the operand]`, for
    /// another op to sum: programs of different heads then write different numbers. A head that none of them has (keys in
    /// the latent space) is summed here.
    "attend_grad_keys" => AttendGradKeys(; x...) {
        /// The axes of the forward's operands but `start`, and of its result.
        spec: Spec,
        /// Multiplies the scores before the softmax.
        scale: Real,
    }
}

impl AttendGradKeys {
    /// The places of the keys and the values among the operands, in the order of the results.
    pub fn operands(&self) -> Vec<usize> {
        let n = self.spec.inputs.len();
        (1..n).step_by(2).chain([n - 1]).collect()
    }

    /// For each result, the heads that it has before the axes of its operand.
    pub fn heads(&self) -> Vec<Vec<Axis>> {
        let roles = Roles::of(&self.spec);
        let heads = roles.map(|roles| self.own_heads(&roles)).unwrap_or_default();
        let lacks =
            |i: usize| heads.iter().copied().filter(|head| !self.spec.inputs[i].contains(head)).collect();
        self.operands().into_iter().map(lacks).collect()
    }

    /// The heads that a key or the values have.
    fn own_heads(&self, roles: &Roles) -> Vec<Axis> {
        let has = |head: &Axis| self.operands().into_iter().any(|i| self.spec.inputs[i].contains(head));
        roles.heads.iter().copied().filter(has).collect()
    }
}

impl OpDef for AttendGradKeys {
    fn infer(&self, args: &[&TensorType]) -> Result<Type, TypeError> {
        let (dtype, extents, _) = grad::operands("attend_grad_keys", &self.spec, args, &["lse", "delta"])?;
        let parts = self.operands().into_iter().zip(self.heads()).map(|(i, heads)| {
            let dtype = if heads.is_empty() { dtype } else { DType::F32 };
            let leading = heads.iter().map(|&head| extents[head as usize].clone());
            let shape: Shape = leading.chain(args[i].shape.iter().cloned()).collect();
            TensorType::new(dtype, shape)
        });
        Ok(Type::Tuple(parts.collect()))
    }

    fn flops<N: Amount>(&self, args: &[&TensorType], _: &Type, size: &dyn Fn(&TensorType) -> N) -> N {
        let [scores, sum] = roles::flops(&self.spec, args, size);
        (scores + sum) * N::from(2.0)
    }

    fn eval(&self, sizes: &Sizes, args: &[&Array]) -> Vec<Array> {
        let n = self.spec.inputs.len();
        let [p, ds] =
            grad::weights(&self.spec, self.scale, sizes, args, [args[n + 1], args[n + 2], args[n + 3]]);
        let axes = Roles::of(&self.spec).expect("the type rule has checked it").scores();
        let of = |(i, heads): (usize, Vec<Axis>)| {
            let out = [&heads, &self.spec.inputs[i][..]].concat();
            if i == n - 1 {
                return roles::einsum(&self.spec, sizes, &[&axes, &self.spec.out], &out, &[&p, args[n + 3]]);
            }
            let queries = &self.spec.inputs[i - 1];
            let sum = roles::einsum(&self.spec, sizes, &[&axes, queries], &out, &[&ds, args[i - 1]]);
            sum.map(|x| x * self.scale.get())
        };
        self.operands().into_iter().zip(self.heads()).map(of).collect()
    }

    fn lowering(&self) -> Lowering {
        Lowering::Kernel
    }

    fn in_memory(&self, i: usize) -> bool {
        i < self.spec.inputs.len() || i == self.spec.inputs.len() + 3
    }

    /// One program for a tile of keys of a head: it goes over the new tokens that see them, of all heads that share them.
    fn kernel<'k>(&self, cx: &Cx<'k>, args: &[View<'k>]) -> Result<(), LowerError> {
        let o = Operands::new(cx, &self.spec, self.scale, args)?;
        let (n, roles) = (self.spec.inputs.len(), &o.roles);
        let ([bk, bm], tensor) =
            o.tile([roles.key, roles.query], |tensor| tensor.grad_keys, o.widths.iter().sum());

        let own = self.own_heads(roles);
        let mut at = At(vec![None; o.extents.len()]);
        for &axis in [&roles.batch].into_iter().chain(&own) {
            at.0[axis as usize] = Some(cx.program(o.extent(axis)));
        }
        let first_key = cx.program_tile(o.extent(roles.key), bk);
        let start = o.start(&at)?;
        let these = (roles.key, bk, first_key);
        // What the ordinary units multiply goes through registers, where it would be kept: it is loaded again instead.
        let staying = |at: &At<'k>| -> Vec<Tile<'k>> {
            let keys = (0..o.pairs()).map(|pair| o.load(2 * pair + 1, at, these));
            keys.chain([o.load(o.values(), at, these)]).collect()
        };
        let kept = tensor.then(|| staying(&at));

        // The first new token that sees a key of these. Compared as floats, exact up to 2^24.
        let first_block = (first_key - start).max(cx.k.int(0)) / bm as i64;
        let all = cx.extent(o.extent(roles.query)).div_ceil(bm as i64);
        let blocks = (all - first_block).max(cx.k.int(0));
        let key = (cx.k.iota(0, bk) + first_key).cast(Elem::F32);
        let lane = (cx.k.iota(1, bm) + start).cast(Elem::F32);

        let init: Vec<_> = o.widths.iter().map(|&width| cx.k.full([bk, width], 0.0)).collect();
        let mut result = Ok(());
        let shared: Vec<Axis> = roles.heads.iter().copied().filter(|head| !own.contains(head)).collect();
        let sums = over_heads(&o, &shared, at.clone(), &init, &mut |at, init| {
            cx.k.fold_all(blocks, init, |i, sums| {
                let first = (first_block + i) * bm as i64;
                let rows = (roles.query, bm, first);
                let zero = || cx.k.full([bk, bm], 0.0);
                let own = kept.clone().unwrap_or_else(|| staying(at));
                let (values, keys) = own.split_last().expect("there are values");
                let grad = o.load(o.grad(), at, rows);
                let queries = (0..o.pairs()).map(|pair| o.load(2 * pair, at, rows));
                let mut sum_of = |operand: usize| {
                    let coords = roles.sums().into_iter().map(|axis| match axis {
                        _ if axis == roles.query => Coord::Cols(first),
                        _ => Coord::At(at.here(axis)),
                    });
                    let request = Request { coords: coords.collect(), rows: 1, cols: bm, limits: Vec::new() };
                    args[operand].at(&request).unwrap_or_else(|e| {
                        result = Err(e);
                        first
                    })
                };
                let (lse, delta) = (sum_of(n + 1), sum_of(n + 2));
                let scores = keys.iter().zip(queries).fold(zero(), |sum, (&k, q)| sum.add_dot(k, q));
                let p = o.probabilities(scores, lse, key.le(lane + first.cast(Elem::F32)), tensor);
                let ds = p * (zero().add_dot(*values, grad) - delta);
                let left = |i: usize| if i == o.pairs() { p } else { ds };
                let add = |(i, (sum, right)): (usize, (&Tile<'k>, Tile<'k>))| sum.add_dot(left(i), right);
                let across = (0..o.pairs()).map(|pair| o.load_transposed(2 * pair, at, rows));
                let across = across.chain([o.load_transposed(o.grad(), at, rows)]);
                sums.iter().zip(across).enumerate().map(add).collect()
            })
        });
        result?;
        for (part, ((sum, operand), heads)) in
            sums.into_iter().zip(self.operands()).zip(self.heads()).enumerate()
        {
            let coord = |&axis: &Axis| match axis {
                _ if axis == roles.key => Coord::Rows(first_key),
                _ if axis == *roles.summed.get(part).unwrap_or(&roles.value) => Coord::Cols(cx.k.int(0)),
                _ => Coord::At(at.here(axis)),
            };
            let coords = heads.iter().chain(&self.spec.inputs[operand]).map(coord).collect();
            let request = Request { coords, rows: bk, cols: o.widths[part], limits: Vec::new() };
            let sum = if part == o.pairs() { sum } else { sum * self.scale.get() };
            (cx.emit)(part, &request, sum)?;
        }
        Ok(())
    }
}

/// Adds up what `body` adds, for every index of `heads`.
fn over_heads<'k>(
    o: &Operands<'_, 'k>,
    heads: &[Axis],
    at: At<'k>,
    init: &[Tile<'k>],
    body: &mut dyn FnMut(&At<'k>, &[Tile<'k>]) -> Vec<Tile<'k>>,
) -> Vec<Tile<'k>> {
    let Some((&head, rest)) = heads.split_first() else { return body(&at, init) };
    o.cx.k.fold_all(o.cx.extent(o.extent(head)), init, |i, sums| {
        let mut at = at.clone();
        at.0[head as usize] = Some(i);
        over_heads(o, rest, at, sums, body)
    })
}
