//! `invert`: where each item went.

use super::check;
use crate::eval::{Array, Sizes};
use crate::lower::{Cx, LowerError, Lowering, Request, View};
use crate::op::{OpDef, TypeError, op};
use crate::poly::Amount;
use crate::types::{TensorType, Type};

op! {
    /// The inverse of a permutation: `out[order[i]] = i`. `order[n]` has each of `0 .. n` once.
    "invert" => Invert(order) {}
}

impl OpDef for Invert {
    fn infer(&self, args: &[&TensorType]) -> Result<Type, TypeError> {
        check::ints("invert", "order", args[0], 0)?;
        check::axes("order", "[n]", args[0], 0, false)?;
        Ok(args[0].clone().into())
    }

    fn eval(&self, _: &Sizes, args: &[&Array]) -> Vec<Array> {
        let mut out = vec![0.0; args[0].data.len()];
        for (i, &place) in args[0].data.iter().enumerate() {
            if place >= 0.0
                && let Some(out) = out.get_mut(place as usize)
            {
                *out = i as f64;
            }
        }
        vec![Array::new(&args[0].shape, out)]
    }

    fn lowering(&self) -> Lowering {
        Lowering::Kernel
    }

    /// One program for each block of items.
    fn kernel<'k>(&self, cx: &Cx<'k>, args: &[View<'k>]) -> Result<(), LowerError> {
        let (extent, zero) = (&args[0].ty.shape[0], cx.k.int(0));
        let cols = cx.size(extent).unwrap_or(usize::MAX).clamp(1, cx.schedule.block);
        let first = cx.program_tile(extent, cols);
        let item = cx.k.iota(1, cols) + first;
        let places = args[0].at(&Request::row(&[], first, cols))?;
        let n = cx.extent(extent);
        let inside = item.lt(n).and(zero.le(places)).and(places.lt(n));
        cx.k.scatter((cx.write)(0), &[zero], 0, places, item, inside);
        Ok(())
    }

    fn flops<N: Amount>(&self, _: &[&TensorType], _: &Type, _: &dyn Fn(&TensorType) -> N) -> N {
        N::from(0.0)
    }
}
