//! `positions`: where new tokens are in their sequences.

use super::{check, rows};
use crate::dim::Dim;
use crate::eval::{Array, Sizes};
use crate::kernel::build::Tile;
use crate::lower::{Cx, LowerError, Lowering, Request, View};
use crate::op::{OpDef, TypeError, op};
use crate::poly::Amount;
use crate::types::{DType, TensorType, Type};

op! {
    /// The position of each of `new` tokens in its sequence: `start[i] + j`.
    "positions" => Positions(start) {
        /// How many new tokens there are.
        new: Dim,
    }
}

impl OpDef for Positions {
    fn infer(&self, args: &[&TensorType]) -> Result<Type, TypeError> {
        check::ints("positions", "start", args[0], 0)?;
        check::axes("start", "[b]", args[0], 0, false)?;
        Ok(TensorType::new(DType::I32, [args[0].shape[0].clone(), self.new.clone()]).into())
    }

    fn eval(&self, sizes: &Sizes, args: &[&Array]) -> Vec<Array> {
        let shape = [args[0].shape[0], sizes.of(&self.new)];
        vec![Array::from_fn(&shape, |index| args[0].data[index[0]] + index[1] as f64)]
    }

    fn lowering(&self) -> Lowering {
        Lowering::View
    }

    fn flops<N: Amount>(&self, _: &[&TensorType], _: &Type, _: &dyn Fn(&TensorType) -> N) -> N {
        N::from(0.0)
    }

    fn tile<'k>(&self, cx: &Cx<'k>, args: &[View<'k>], at: &Request<'k>) -> Result<Tile<'k>, LowerError> {
        let start = args[0].at(&at.with_coords(vec![at.coords[0]]))?;
        Ok(start + rows::indices(cx, at.coords[1], at))
    }
}
