//! `attend_grad_queries`: the gradients of attention's queries.

use super::attend::grad::{self, At, Operands};
use super::attend::roles;
use crate::attr::{Real, Spec};
use crate::eval::{Array, Sizes};
use crate::kernel::Elem;
use crate::kernel::build::Tile;
use crate::lower::{Coord, Cx, LowerError, Lowering, Request, View};
use crate::op::{OpDef, TypeError, op};
use crate::poly::Amount;
use crate::types::{TensorType, Type};

op! {
    /// The gradients of the queries of an [`attend`](mod@super::attend), and of nothing else of it.
    ///
    /// Operands are those of the forward, then `lse` (of [`attend_lse`](mod@super::attend_lse)), `delta = Σ do · o` over the
    /// values' axis (both `f32[batch, heads…, new tokens]`), and `do`, the gradient of the result. Probabilities are
    /// computed again from `lse`: `ds = scale · p · (do · vᵀ - delta)`, and each query's gradient is `ds · k`.
    /// The keys' gradients need the sums the other way round, hence an op of their own
    /// ([`attend_grad_keys`](mod@super::attend_grad_keys)): with one program for both, either sum would be of numbers that
    /// several programs have, in whatever order they come.
    "attend_grad_queries" => AttendGradQueries(; x...) {
        /// The axes of the forward's operands but `start`, and of its result.
        spec: Spec,
        /// Multiplies the scores before the softmax.
        scale: Real,
    }
}

impl OpDef for AttendGradQueries {
    fn infer(&self, args: &[&TensorType]) -> Result<Type, TypeError> {
        grad::operands("attend_grad_queries", &self.spec, args, &["lse", "delta"])?;
        let queries = args[..self.spec.inputs.len() - 1].iter().step_by(2);
        Ok(Type::Tuple(queries.map(|&q| TensorType::new(q.dtype, q.shape.iter().cloned())).collect()))
    }

    fn flops<N: Amount>(&self, args: &[&TensorType], _: &Type, size: &dyn Fn(&TensorType) -> N) -> N {
        let [scores, sum] = roles::flops(&self.spec, args, size);
        scores * N::from(2.0) + sum
    }

    fn eval(&self, sizes: &Sizes, args: &[&Array]) -> Vec<Array> {
        let n = self.spec.inputs.len();
        let [_, ds] =
            grad::weights(&self.spec, self.scale, sizes, args, [args[n + 1], args[n + 2], args[n + 3]]);
        let axes = roles::Roles::of(&self.spec).expect("the type rule has checked it").scores();
        let pairs = self.spec.inputs.chunks_exact(2).zip(args.chunks_exact(2));
        let of = |(pair, args): (&[Vec<_>], &[&Array])| {
            let sum = roles::einsum(&self.spec, sizes, &[&axes, &pair[1]], &pair[0], &[&ds, args[1]]);
            sum.map(|x| x * self.scale.get())
        };
        pairs.map(of).collect()
    }

    fn lowering(&self) -> Lowering {
        Lowering::Kernel
    }

    fn in_memory(&self, i: usize) -> bool {
        i < self.spec.inputs.len() || i == self.spec.inputs.len() + 3
    }

    /// One program for a tile of new tokens of a head: it goes over the keys that they see.
    fn kernel<'k>(&self, cx: &Cx<'k>, args: &[View<'k>]) -> Result<(), LowerError> {
        let o = Operands::new(cx, &self.spec, self.scale, args)?;
        let (n, roles) = (self.spec.inputs.len(), &o.roles);
        let columns = o.widths[..o.pairs()].iter().sum();
        let ([bm, bk], tensor) = o.tile([roles.query, roles.key], |tensor| tensor.grad_queries, columns);

        let mut at = At(vec![None; o.extents.len()]);
        for &axis in [&roles.batch].into_iter().chain(&roles.heads) {
            at.0[axis as usize] = Some(cx.program(o.extent(axis)));
        }
        let (new, keys) = (cx.extent(o.extent(roles.query)), cx.extent(o.extent(roles.key)));
        let tile = cx.k.program(o.extent(roles.query).clone(), bm as i64);
        // On a machine that runs many programs at once the longest, which see the most keys, begin.
        let tile = if tensor { new.div_ceil(bm as i64) - 1i64 - tile } else { tile };
        let first = tile * bm as i64;
        let start = o.start(&at)?;
        // Compared as floats, exact up to 2^24.
        let last_seen = (cx.k.iota(0, bm) + first + start).cast(Elem::F32);
        let lane = cx.k.iota(1, bk).cast(Elem::F32);
        let blocks = ((first + (bm as i64 - 1)).min(new - 1i64) + start + 1i64).min(keys).div_ceil(bk as i64);

        let rows = (roles.query, bm, first);
        let sum_of = |operand: usize| {
            let coords = roles.sums().into_iter().map(|axis| match axis {
                _ if axis == roles.query => Coord::Rows(first),
                _ => Coord::At(at.here(axis)),
            });
            args[operand].at(&Request { coords: coords.collect(), rows: bm, cols: 1, limits: Vec::new() })
        };
        let (lse, delta) = (sum_of(n + 1)?, sum_of(n + 2)?);
        // What the ordinary units multiply goes through registers, where it would be kept: it is loaded again instead.
        let staying = || -> Vec<Tile<'k>> {
            let queries = (0..o.pairs()).map(|pair| o.load(2 * pair, &at, rows));
            queries.chain([o.load(o.grad(), &at, rows)]).collect()
        };
        let kept = tensor.then(staying);

        let init: Vec<_> = o.widths[..o.pairs()].iter().map(|&width| cx.k.full([bm, width], 0.0)).collect();
        let sums = cx.k.fold_all(blocks, &init, |i, sums| {
            let these = (roles.key, bk, i * bk as i64);
            let zero = || cx.k.full([bm, bk], 0.0);
            let own = kept.clone().unwrap_or_else(staying);
            let (grad, queries) = own.split_last().expect("there is a gradient");
            let keys = (0..o.pairs()).map(|pair| o.load(2 * pair + 1, &at, these));
            let values = o.load(o.values(), &at, these);
            let scores = queries.iter().zip(keys).fold(zero(), |sum, (&q, k)| sum.add_dot(q, k));
            let seen = (lane + these.2.cast(Elem::F32)).le(last_seen);
            let p = o.probabilities(scores, lse, seen, tensor);
            let ds = p * (zero().add_dot(*grad, values) - delta);
            let across = (0..o.pairs()).map(|pair| o.load_transposed(2 * pair + 1, &at, these));
            sums.iter().zip(across).map(|(sum, keys)| sum.add_dot(ds, keys)).collect()
        });
        for (pair, sum) in sums.into_iter().enumerate() {
            let coord = |&axis: &crate::attr::Axis| match axis {
                _ if axis == roles.query => Coord::Rows(first),
                _ if axis == roles.summed[pair] => Coord::Cols(cx.k.int(0)),
                _ => Coord::At(at.here(axis)),
            };
            let coords = self.spec.inputs[2 * pair].iter().map(coord).collect();
            let request = Request { coords, rows: bm, cols: o.widths[pair], limits: Vec::new() };
            (cx.emit)(pair, &request, sum * self.scale.get())?;
        }
        Ok(())
    }
}
