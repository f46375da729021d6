//! `assign`: a new value for a state.

use super::check;
use crate::eval::{Array, Sizes};
use crate::lower::{Cx, LowerError, Lowering, Request, View};
use crate::op::{OpDef, TypeError, op};
use crate::poly::Amount;
use crate::types::{TensorType, Type};

op! {
    /// `new`, in the place of `state`, which has its type.
    ///
    /// The buffer is the same: what reads the old value must be done before. Element-wise ops on the old value and others of
    /// its shape, `new` being what comes of them, read and write element by element, and nothing in between is stored.
    "assign" => Assign(state, new) {}
}

impl OpDef for Assign {
    fn infer(&self, args: &[&TensorType]) -> Result<Type, TypeError> {
        let [state, new] = args else { unreachable!("operands were counted") };
        check::unscaled("assign", "state", state, 0)?;
        if state != new {
            let error = TypeError::new(format!("the state is {state}, but its new value {new}")).at(1);
            return Err(if state.shape == new.shape && state.dtype.is_float() && new.dtype.is_float() {
                error.help(format!("cast it: `.cast({})`", state.dtype.name().to_uppercase()))
            } else {
                error
            });
        }
        Ok((*state).clone().into())
    }

    fn eval(&self, _: &Sizes, args: &[&Array]) -> Vec<Array> {
        vec![args[1].clone()]
    }

    fn lowering(&self) -> Lowering {
        Lowering::Kernel
    }

    /// The new value is in memory: in the state's own, where that is possible, and then there is nothing left to do.
    fn in_memory(&self, i: usize) -> bool {
        i == 1
    }

    fn flops<N: Amount>(&self, _: &[&TensorType], _: &Type, _: &dyn Fn(&TensorType) -> N) -> N {
        N::from(0.0)
    }

    /// One program for each block of a row.
    fn kernel<'k>(&self, cx: &Cx<'k>, args: &[View<'k>]) -> Result<(), LowerError> {
        let new = &args[1];
        let at = match new.ty.shape.split_last() {
            None => Request::element(&[]),
            Some((last, leading)) => {
                let cols = cx.size(last).unwrap_or(usize::MAX).clamp(1, cx.schedule.block);
                let index = cx.programs(leading);
                let whole = cx.size(last) == Some(cols);
                let first = if whole { cx.k.int(0) } else { cx.program_tile(last, cols) };
                Request::row(&index, first, cols)
            }
        };
        let tile = new.at(&at)?;
        let index: Vec<_> = at.coords.iter().map(|c| c.start()).collect();
        cx.k.store((cx.write)(0), &index, at.axes(), &at.limits, tile);
        Ok(())
    }
}
