//! `full`: one number everywhere.

use super::cast::round;
use crate::attr::{Dims, Real};
use crate::eval::{Array, Sizes};
use crate::kernel::Elem;
use crate::kernel::build::Tile;
use crate::lower::{Cx, LowerError, Lowering, Request, View};
use crate::op::{OpDef, TypeError, op};
use crate::types::{DType, TensorType, Type};

op! {
    /// A tensor with the same number everywhere.
    "full" => Full() {
        /// The number, rounded to `dtype`.
        value: Real,
        /// The extents.
        shape: Dims,
        /// The type of the elements.
        dtype: DType,
    }
}

impl OpDef for Full {
    fn infer(&self, _: &[&TensorType]) -> Result<Type, TypeError> {
        if self.dtype.is_f8() {
            return Err(TypeError::new(format!("`full` makes no {}: 8-bit floats have scales", self.dtype)));
        }
        let value = self.value.get();
        if self.dtype.is_int() && round(value, self.dtype) != value {
            return Err(TypeError::new(format!("{value:?} is not an {}", self.dtype)));
        }
        Ok(TensorType::new(self.dtype, self.shape.0.clone()).into())
    }

    fn eval(&self, sizes: &Sizes, _: &[&Array]) -> Vec<Array> {
        let shape: Vec<usize> = self.shape.0.iter().map(|dim| sizes.of(dim)).collect();
        vec![Array::from_fn(&shape, |_| round(self.value.get(), self.dtype))]
    }

    /// Wherever it is used; where it must be in memory, and its extents are fixed, it is there from the beginning.
    fn lowering(&self) -> Lowering {
        Lowering::Pointwise
    }

    fn tile<'k>(&self, cx: &Cx<'k>, _: &[View<'k>], at: &Request<'k>) -> Result<Tile<'k>, LowerError> {
        let tile = cx.k.full([at.rows, at.cols], round(self.value.get(), self.dtype));
        Ok(if self.dtype.is_int() { tile.cast(Elem::I64) } else { tile })
    }
}
