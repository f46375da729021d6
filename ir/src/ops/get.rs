//! `get`: one result of an op or a call that has several.

use crate::eval::{Array, Sizes};
use crate::lower::Lowering;
use crate::op::{OpDef, TypeError, op};
use crate::types::{TensorType, Type};

op! {
    /// Part `index` of a tuple.
    "get" => Get(tuple) {
        /// Which part, from 0.
        index: i64,
    }
}

impl OpDef for Get {
    /// Only reached where the operand is no tuple: [`crate::graph::op_type`] answers for those that are.
    fn infer(&self, args: &[&TensorType]) -> Result<Type, TypeError> {
        Err(TypeError::new(format!("`get` takes a part of a tuple, but this is the tensor {}", args[0]))
            .at(0))
    }

    /// Only reached through [`crate::eval`], which hands over the part itself.
    fn eval(&self, _: &Sizes, args: &[&Array]) -> Vec<Array> {
        vec![args[0].clone()]
    }

    fn lowering(&self) -> Lowering {
        Lowering::Alias
    }

    fn alias(&self, arg: &crate::lower::BufView) -> Option<crate::lower::BufView> {
        Some(arg.clone())
    }
}
