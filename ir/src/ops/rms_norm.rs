//! `rms_norm`: root-mean-square normalization.

use crate::attr::Real;
use crate::eval::{Array, Sizes};
use crate::lower::{Cx, LowerError, Lowering, Request, View};
use crate::op::{OpDef, TypeError, op};
use crate::types::{TensorType, Type};

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
            let error = TypeError::new(format!("the gain has {} elements but the input {}", gain.dtype, x.dtype));
            return Err(error.at(1).help(format!("cast one side: `.cast({})`", x.dtype.name().to_uppercase())));
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

    fn lowering(&self) -> Lowering {
        Lowering::Kernel
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
