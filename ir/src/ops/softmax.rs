//! `softmax`: weights that add up to 1.

use crate::eval::{Array, Sizes};
use crate::lower::Lowering;
use crate::op::{OpDef, TypeError, op};
use crate::types::{TensorType, Type};

op! {
    /// `exp(x)` divided by its sum along the last axis, computed so that nothing overflows.
    "softmax" => Softmax(x) {}
}

/// The softmax of a row.
pub(super) fn of_row(row: &[f64]) -> Vec<f64> {
    let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exp: Vec<f64> = row.iter().map(|x| (x - max).exp()).collect();
    let sum: f64 = exp.iter().sum();
    exp.iter().map(|e| e / sum).collect()
}

impl OpDef for Softmax {
    fn infer(&self, args: &[&TensorType]) -> Result<Type, TypeError> {
        super::pointwise::float("softmax", args[0])?;
        if args[0].rank() == 0 {
            return Err(TypeError::new(format!(
                "`softmax` runs along the last axis, but {} has none",
                args[0]
            ))
            .at(0));
        }
        Ok(args[0].clone().into())
    }

    fn eval(&self, _: &Sizes, args: &[&Array]) -> Vec<Array> {
        vec![Array::new(&args[0].shape, args[0].rows().flat_map(of_row).collect())]
    }

    fn lowering(&self) -> Lowering {
        Lowering::Kernel
    }
}
