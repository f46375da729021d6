//! `route_grad`: what the weights of chosen experts ask of a router's logits.

use super::{check, softmax};
use crate::attr::{Real, Word};
use crate::eval::{Array, Sizes};
use crate::kernel::Elem;
use crate::lower::{Cx, LowerError, Lowering, Request, View};
use crate::op::{OpDef, TypeError, op};
use crate::types::{TensorType, Type};

op! {
    /// The gradient of a router's `logits[t, e]`, of the gradient `g[t, k]` of the weights of the `chosen[t, k]` experts.
    ///
    /// With `s` the scores, a weight is `scale · s`, or with `normalize` `scale · s / (Σ_chosen s + 1e-20)`; the choice
    /// itself has no gradient. Experts of a token are distinct.
    "route_grad" => RouteGrad(logits, chosen, g) {
        /// What the scores are of the logits: `sigmoid` or `softmax`.
        score: Word,
        /// Whether weights were divided by their sum.
        normalize: bool,
        /// On every weight.
        scale: Real,
    }
}

/// Added to the sum of the scores that are chosen.
const LEAST: f64 = 1e-20;

impl OpDef for RouteGrad {
    fn infer(&self, args: &[&TensorType]) -> Result<Type, TypeError> {
        let [logits, chosen, g] = args else { unreachable!("operands were counted") };
        if !matches!(self.score.as_str(), "sigmoid" | "softmax") {
            let message = format!("`score` is `sigmoid` or `softmax`, not `{}`", self.score.as_str());
            return Err(TypeError::new(message));
        }
        check::f32s("route_grad", "logits", logits, 0)?;
        check::axes("logits", "[t, e]", logits, 0, false)?;
        check::ints("route_grad", "experts", chosen, 1)?;
        check::axes("experts", "[t, k]", chosen, 1, false)?;
        check::extent(&chosen.shape[0], &logits.shape[0], 1, "the number of tokens")?;
        check::f32s("route_grad", "gradient", g, 2)?;
        if g.shape != chosen.shape {
            return Err(TypeError::new(format!("the gradient {g} does not fit the experts {chosen}")).at(2));
        }
        Ok((*logits).clone().into())
    }

    fn eval(&self, _: &Sizes, args: &[&Array]) -> Vec<Array> {
        let [logits, chosen, g] = args else { unreachable!("operands were counted") };
        let (experts, k) = (logits.shape[1], chosen.shape[1]);
        let sigmoid = self.score.as_str() == "sigmoid";
        let row = |(t, z): (usize, &[f64])| {
            let s = if sigmoid {
                z.iter().map(|z| 1.0 / (1.0 + (-z).exp())).collect()
            } else {
                softmax::of_row(z)
            };
            let (mut u, mut mask) = (vec![0.0; experts], vec![0.0; experts]);
            for j in 0..k {
                let e = chosen.at(&[t, j]);
                if e >= 0.0 && e < experts as f64 {
                    u[e as usize] += g.at(&[t, j]);
                    mask[e as usize] = 1.0;
                }
            }
            let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
            let (mean, by) = if self.normalize {
                let total = dot(&s, &mask) + LEAST;
                (dot(&s, &u) / total, self.scale.get() / total)
            } else {
                (0.0, self.scale.get())
            };
            let ds: Vec<f64> = (0..experts).map(|e| by * (u[e] - mean) * mask[e]).collect();
            let across = if sigmoid { 0.0 } else { dot(&ds, &s) };
            let slope = |e: usize| if sigmoid { s[e] * (1.0 - s[e]) } else { s[e] };
            (0..experts).map(|e| (ds[e] - across) * slope(e)).collect::<Vec<_>>()
        };
        vec![Array::new(&logits.shape, logits.rows().enumerate().flat_map(row).collect())]
    }

    fn lowering(&self) -> Lowering {
        Lowering::Kernel
    }

    /// One program a token.
    fn kernel<'k>(&self, cx: &Cx<'k>, args: &[View<'k>]) -> Result<(), LowerError> {
        let [logits, chosen, g] = args else { unreachable!("operands were counted") };
        let experts = cx.fixed(&logits.ty.shape[1], "the number of experts")?;
        let (token, zero) = (cx.program(&logits.ty.shape[0]), cx.k.int(0));
        let at = Request::row(&[token], zero, experts);
        let z = logits.at(&at)?;
        let sigmoid = self.score.as_str() == "sigmoid";
        let s = if sigmoid { z.sigmoid() } else { softmax::of_tile(z, None) };

        let none = cx.k.full([1, experts], 0.0);
        let index = cx.k.iota(1, experts);
        let trips = cx.extent(&chosen.ty.shape[1]);
        let [u, mask] = super::rows::try_fold(trips, [none, none], |j, [u, mask]| {
            let item = Request::element(&[token, j]);
            let hit = index.equals(chosen.at(&item)?).cast(Elem::I64).cast(Elem::F32);
            Ok([u + hit * g.at(&item)?, mask.max(hit)])
        })?;
        let ds = if self.normalize {
            let total = (s * mask).sum_along(1) + LEAST;
            (u - (s * u).sum_along(1) / total) * mask * (cx.k.float(self.scale.get()) / total)
        } else {
            u * self.scale.get()
        };
        let dz = if sigmoid { ds * (s - s * s) } else { (ds - (ds * s).sum_along(1)) * s };
        cx.emit(&at, dz)
    }
}
