//! `attend_lse`: attention, and what its backward needs of it.

use super::attend::{self, roles, roles::Roles};
use crate::attr::{Real, Spec};
use crate::eval::{Array, Sizes};
use crate::lower::{Cx, LowerError, Lowering, View};
use crate::op::{OpDef, TypeError, op};
use crate::poly::Amount;
use crate::types::{DType, Shape, TensorType, Type};
use crate::vjp::{Shares, Vjp};

op! {
    /// [`attend`](mod@super::attend), and for each row of the scores the logarithm of what its weights add up to:
    /// `(o, lse)` with `lse = log Σ exp(scale · Σ q·k)` over the keys that the token sees, as
    /// `f32[batch, heads…, new tokens]`.
    "attend_lse" => AttendLse(; x...) {
        /// The axes of every operand but `start`, and of the result.
        spec: Spec,
        /// Multiplies the scores before the softmax.
        scale: Real,
    }
}

impl OpDef for AttendLse {
    fn infer(&self, args: &[&TensorType]) -> Result<Type, TypeError> {
        let (dtype, extents, roles) = roles::operands(&self.spec, args)?;
        let shape = |axes: &[crate::attr::Axis]| -> Shape {
            axes.iter().map(|&axis| extents[axis as usize].clone()).collect()
        };
        let o = TensorType::new(dtype, shape(&self.spec.out));
        Ok(Type::Tuple(vec![o, TensorType::new(DType::F32, shape(&roles.sums()))]))
    }

    fn flops<N: Amount>(&self, args: &[&TensorType], _: &Type, size: &dyn Fn(&TensorType) -> N) -> N {
        let [scores, sum] = roles::flops(&self.spec, args, size);
        scores + sum
    }

    fn eval(&self, sizes: &Sizes, args: &[&Array]) -> Vec<Array> {
        let roles = Roles::of(&self.spec).expect("the type rule has checked it");
        let scores = roles::scores(&self.spec, self.scale, &roles, sizes, args);
        let start = args[self.spec.inputs.len()];
        let sums = scores.rows().zip(roles::seen(&scores, start)).map(|(row, seen)| {
            let most = row[..seen].iter().copied().fold(f64::NEG_INFINITY, f64::max);
            most + row[..seen].iter().map(|x| (x - most).exp()).sum::<f64>().ln()
        });
        let sums = Array::new(&scores.shape[..scores.rank() - 1], sums.collect());
        vec![attend::average(&self.spec, &roles, sizes, &scores, args), sums]
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> Shares {
        let (o, lse) = (cx.part(0)?, cx.part(1)?);
        let grads = [cx.known_part_grad(0), cx.known_part_grad(1)];
        attend::grad::shares(cx, &self.spec, self.scale, [o, lse], grads)
    }

    fn lowering(&self) -> Lowering {
        Lowering::Kernel
    }

    fn in_memory(&self, i: usize) -> bool {
        i < self.spec.inputs.len()
    }

    fn kernel<'k>(&self, cx: &Cx<'k>, args: &[View<'k>]) -> Result<(), LowerError> {
        attend::kernel(cx, &self.spec, self.scale, true, args)
    }
}
