//! `quantize_by`: floats as 8-bit floats with a scale that is given.

use super::{check, quantize};
use crate::attr::Real;
use crate::codes;
use crate::eval::{Array, Sizes};
use crate::lower::{Cx, LowerError, Lowering, Request, View};
use crate::op::{OpDef, TypeError, op};
use crate::poly::Amount;
use crate::scales::{Block, Scales};
use crate::types::{DType, TensorType, Type};
use crate::vjp::{Shares, Vjp};

op! {
    /// `x` as 8-bit floats of type `to` with one scale, `max(amax, least) / largest`, as [`mod@quantize`] would make of a
    /// tensor whose largest magnitude is `amax`. What is larger becomes the largest number of `to`.
    ///
    /// So the scale can be known before `x` is: delayed scaling makes it of the magnitudes of earlier steps.
    "quantize_by" => QuantizeBy(x, amax) {
        /// `f8e4m3` or `f8e5m2`.
        to: DType,
        /// The least `amax` that a scale is made of; positive.
        least: Real,
    }
}

impl OpDef for QuantizeBy {
    fn infer(&self, args: &[&TensorType]) -> Result<Type, TypeError> {
        let [x, amax] = args else { unreachable!("operands were counted") };
        super::pointwise::float("quantize_by", x)?;
        quantize::check_numbers("quantize_by", self.to, self.least)?;
        check::f32s("quantize_by", "largest magnitude", amax, 1)?;
        if amax.rank() != 0 {
            return Err(TypeError::new(format!("the largest magnitude is {amax}, not one number")).at(1));
        }
        Ok(x.scaled(self.to, Scales::new(x.shape.iter().map(|_| Block::Whole))).into())
    }

    fn eval(&self, _: &Sizes, args: &[&Array]) -> Vec<Array> {
        let encoding = crate::scales::Encoding::F32;
        let scale = quantize::scale(args[1].data[0] as f32, self.to, encoding, self.least.get() as f32);
        vec![
            args[0]
                .map(|x| codes::decode(self.to, quantize::code(x as f32, scale, self.to)) * f64::from(scale)),
        ]
    }

    /// Straight through: as if nothing had been rounded.
    fn vjp(&self, cx: &mut Vjp<'_>) -> Shares {
        let [x, _] = cx.args();
        let (g, dtype) = (cx.grad(), cx.ty(x).dtype);
        Ok(vec![Some(cx.cast(g, dtype)?), None])
    }

    fn lowering(&self) -> Lowering {
        Lowering::Kernel
    }

    fn flops<N: Amount>(&self, _: &[&TensorType], _: &Type, _: &dyn Fn(&TensorType) -> N) -> N {
        N::from(0.0)
    }

    /// A program for each block of a row; the first writes the scale.
    fn kernel<'k>(&self, cx: &Cx<'k>, args: &[View<'k>]) -> Result<(), LowerError> {
        let [x, amax] = args else { unreachable!("operands were counted") };
        let (at, programs) = match x.ty.shape.split_last() {
            None => (Request::element(&[]), Vec::new()),
            Some((last, leading)) => {
                let mut programs = cx.programs(leading);
                let cols = cx.size(last).unwrap_or(usize::MAX).clamp(1, cx.schedule.block);
                let block = if cx.size(last) == Some(cols) {
                    cx.k.int(0)
                } else {
                    cx.k.program(last.clone(), cols as i64)
                };
                let at = Request::row(&programs, block * cols as i64, cols);
                programs.push(block);
                (at, programs)
            }
        };
        let largest = f64::from(quantize::largest(self.to));
        let amax = amax.at(&Request::element(&[]))?.max(cx.k.float(f64::from(self.least.get() as f32)));
        let scale = (amax / cx.k.float(largest)).single();
        let y = quantize::divided(x.at(&at)?, scale, largest);
        let index: Vec<_> = at.coords.iter().map(|c| c.start()).collect();
        cx.k.store((cx.write)(0), &index, at.axes(), &at.limits, y);
        // Along each axis there is one scale: what other programs write lies outside.
        cx.k.store((cx.write)(1), &programs, [None, None], &[], scale);
        Ok(())
    }
}
