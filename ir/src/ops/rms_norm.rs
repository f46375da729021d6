//! `rms_norm`: root-mean-square normalization.

use super::{mean::Mean, offset::Offset, rsqrt::Rsqrt};
use crate::attr::Real;
use crate::eval::{Array, Sizes};
use crate::lower::{Cx, LowerError, Lowering, Request, View};
use crate::op::{OpDef, TypeError, op};
use crate::types::{TensorType, Type};
use crate::vjp::{Shares, Vjp};

op! {
    /// Root-mean-square normalization over the last axis (Zhang and Sennrich 2019): `x / √(mean(x²) + eps) · gain`.
    "rms_norm" => RmsNorm(x, gain) {
        /// Added to the mean square, so that a zero row stays finite.
        eps: Real,
    }
}

impl OpDef for RmsNorm {
    fn infer(&self, args: &[&TensorType]) -> Result<Type, TypeError> {
        let [x, gain] = args else { unreachable!("operands were counted") };
        super::pointwise::float("rms_norm", x)?;
        if gain.rank() != 1 || x.shape.last() != gain.shape.first() {
            return Err(TypeError::new(format!("the gain {gain} does not fit the last axis of {x}")).at(1));
        }
        if x.dtype != gain.dtype {
            let error =
                TypeError::new(format!("the gain has {} elements but the input {}", gain.dtype, x.dtype));
            return Err(error
                .at(1)
                .help(format!("cast one side: `.cast({})`", x.dtype.name().to_uppercase())));
        }
        Ok((*x).clone().into())
    }

    fn eval(&self, _: &Sizes, args: &[&Array]) -> Vec<Array> {
        let [x, gain] = args else { unreachable!("operands were counted") };
        let normalize = |row: &[f64]| {
            let mean = row.iter().map(|x| x * x).sum::<f64>() / row.len() as f64;
            let r = (mean + self.eps.get()).sqrt().recip();
            row.iter().zip(&gain.data).map(|(x, g)| x * r * g).collect::<Vec<_>>()
        };
        vec![Array::new(&x.shape, x.rows().flat_map(normalize).collect())]
    }

    /// With `r = 1/√(mean(x²) + eps)` and `u = g ⊙ gain`: `dx = r·(u - r²·x·mean(u·x))`, `dgain = Σ g·r·x` over the rows.
    fn vjp(&self, cx: &mut Vjp<'_>) -> Shares {
        let [x, gain] = cx.args();
        let (g, axis, gain_ty) = (cx.grad(), cx.ty(x).rank() as i64 - 1, cx.ty(gain));
        let square = cx.mul(x, x)?;
        let mean = cx.op(Mean { axis }, &[square])?;
        let mean = cx.op(Offset { by: self.eps }, &[mean])?;
        let r = cx.op(Rsqrt {}, &[mean])?;
        let normed = cx.mul(x, r)?;

        let u = cx.mul(g, gain)?;
        let along = cx.mul(u, normed)?;
        let along = cx.op(Mean { axis }, &[along])?;
        let along = cx.mul(normed, along)?;
        let across = cx.sub(u, along)?;
        let of_x = cx.mul(r, across)?;

        let of_gain = cx.mul(g, normed)?;
        Ok(vec![Some(of_x), Some(cx.sum_to(of_gain, &gain_ty)?)])
    }

    fn lowering(&self) -> Lowering {
        Lowering::Kernel
    }

    fn emits_rows(&self) -> bool {
        true
    }

    /// One program a row, which is held whole.
    fn kernel<'k>(&self, cx: &Cx<'k>, args: &[View<'k>]) -> Result<(), LowerError> {
        let [x, gain] = args else { unreachable!("operands were counted") };
        let (last, leading) = x.ty.shape.split_last().expect("the type rule asks for an axis");
        let n = cx.fixed(last, "the normalized axis")?;
        let index = cx.programs(leading);
        let zero = cx.k.int(0);
        let at = Request::row(&index, zero, n);

        let x = x.at(&at)?;
        let mean = (x * x).sum_along(1) * (1.0 / n as f64);
        let y = x * (mean + self.eps.get()).rsqrt() * gain.at(&Request::row(&[], zero, n))?;
        cx.emit(&at, y)
    }
}
