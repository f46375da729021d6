//! `offset`: each element with a constant.

use super::pointwise;
use crate::attr::Real;
use crate::eval::{Array, Sizes};
use crate::kernel::build::Tile;
use crate::lower::{Cx, LowerError, Lowering, Request, View};
use crate::op::{OpDef, TypeError, op};
use crate::types::{TensorType, Type};
use crate::vjp::{Shares, Vjp};

op! {
    /// Plus a constant: `x + by`.
    "offset" => Offset(x) {
        /// The constant.
        by: Real,
    }
}

impl OpDef for Offset {
    fn infer(&self, args: &[&TensorType]) -> Result<Type, TypeError> {
        pointwise::float("offset", args[0])?;
        Ok(args[0].clone().into())
    }

    fn eval(&self, _: &Sizes, args: &[&Array]) -> Vec<Array> {
        let by = self.by.get();
        vec![args[0].map(|x| x + by)]
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> Shares {
        Ok(vec![Some(cx.grad())])
    }

    fn lowering(&self) -> Lowering {
        Lowering::Pointwise
    }

    fn tile<'k>(&self, _: &Cx<'k>, args: &[View<'k>], at: &Request<'k>) -> Result<Tile<'k>, LowerError> {
        let (x, by) = (args[0].at(at)?, self.by.get());
        Ok(x + by)
    }
}
