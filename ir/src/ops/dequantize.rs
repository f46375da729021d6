//! `dequantize`: 8-bit floats with scales as ordinary floats.

use crate::eval::{Array, Sizes};
use crate::lower::{BufView, Lowering};
use crate::op::{OpDef, TypeError, op};
use crate::poly::Amount;
use crate::types::{DType, TensorType, Type};
use crate::vjp::{Shares, Vjp};

op! {
    /// The numbers that 8-bit floats and their scales stand for: `code · scale`.
    ///
    /// `to` is what the numbers count as. Where they are read from memory they are `f32` products, and are not rounded to
    /// `to`: nothing is stored, so that what follows sees each element's scale applied as it is read.
    "dequantize" => Dequantize(x) {
        /// The element type of the result: `f32`, `bf16` or `f16`.
        to: DType,
    }
}

impl OpDef for Dequantize {
    fn infer(&self, args: &[&TensorType]) -> Result<Type, TypeError> {
        if args[0].scales.is_none() {
            return Err(TypeError::new(format!("`dequantize` takes 8-bit floats, not {}", args[0])).at(0));
        }
        if !matches!(self.to, DType::F32 | DType::Bf16 | DType::F16) {
            return Err(TypeError::new(format!("`dequantize` makes f32, bf16 or f16, not {}", self.to)));
        }
        Ok(TensorType::new(self.to, args[0].shape.iter().cloned()).into())
    }

    fn eval(&self, _: &Sizes, args: &[&Array]) -> Vec<Array> {
        vec![args[0].clone()]
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> Shares {
        let g = cx.grad();
        Ok(vec![Some(cx.cast(g, DType::F32)?)])
    }

    fn lowering(&self) -> Lowering {
        Lowering::Alias
    }

    fn flops<N: Amount>(&self, _: &[&TensorType], _: &Type, _: &dyn Fn(&TensorType) -> N) -> N {
        N::from(0.0)
    }

    fn alias(&self, arg: &BufView) -> Option<BufView> {
        Some(arg.clone())
    }
}
