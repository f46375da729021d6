//! `concat`: tensors one after another along an axis.

use super::check;
use crate::dim::Dim;
use crate::eval::{Array, Sizes};
use crate::lower::Lowering;
use crate::op::{OpDef, TypeError, op};
use crate::types::{TensorType, Type};

op! {
    /// The operands one after another along `axis`.
    "concat" => Concat(; x...) {
        /// Which axis, from 0.
        axis: i64,
    }
}

impl OpDef for Concat {
    fn infer(&self, args: &[&TensorType]) -> Result<Type, TypeError> {
        let mut ty = args[0].clone();
        let axis = super::slice::axis_index(self.axis, args[0])?;
        for (i, x) in args.iter().enumerate() {
            check::unscaled("concat", "operand", x, i)?;
            check::same_dtype(["first operand", "other"], args[0], x, i)?;
            let fits = x.rank() == ty.rank() && (0..x.rank()).all(|a| a == axis || x.shape[a] == ty.shape[a]);
            if !fits {
                let message = format!("{x} does not fit {} but for axis {axis}", args[0]);
                return Err(TypeError::new(message).at(i));
            }
        }
        ty.shape[axis] = args.iter().fold(Dim::from(0), |sum, x| &sum + &x.shape[axis]);
        Ok(ty.into())
    }

    fn eval(&self, _: &Sizes, args: &[&Array]) -> Vec<Array> {
        let axis = self.axis as usize;
        let mut shape = args[0].shape.clone();
        shape[axis] = args.iter().map(|x| x.shape[axis]).sum();
        vec![Array::from_fn(&shape, |index| {
            let (mut index, mut part) = (index.to_vec(), 0);
            while index[axis] >= args[part].shape[axis] {
                index[axis] -= args[part].shape[axis];
                part += 1;
            }
            args[part].at(&index)
        })]
    }

    fn lowering(&self) -> Lowering {
        Lowering::View
    }
}
