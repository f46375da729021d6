//! `route_noaux_tc`: DeepSeek-V3's router.

use super::check;
use super::route::{self, Groups, Token};
use crate::attr::Real;
use crate::dim::Dim;
use crate::eval::{Array, Sizes};
use crate::lower::{Cx, LowerError, Lowering, Request, View};
use crate::op::{OpDef, TypeError, op};
use crate::types::{TensorType, Type};
use crate::vjp::{Shares, Vjp};

op! {
    /// DeepSeek-V3's router: the `k` experts of each token, best first, and their weights.
    ///
    /// With `s = sigmoid(logits[t, e])`, experts are chosen by `s + bias[e]`, among those of the `kept` groups whose
    /// two best experts have the largest sum. Weights are `s` itself, times `scale`. Of equals, the lowest index wins.
    "route_noaux_tc" => RouteNoauxTc(logits, bias) {
        /// The number of experts for a token.
        k: Dim,
        /// The number of groups, of neighbouring experts.
        groups: i64,
        /// The number of groups that a token may choose from.
        kept: i64,
        /// Whether weights are divided by their sum.
        normalize: bool,
        /// On every weight.
        scale: Real,
    }
}

impl RouteNoauxTc {
    fn groups(&self) -> Groups {
        Groups { count: self.groups, kept: self.kept, by: 2 }
    }
}

impl OpDef for RouteNoauxTc {
    fn infer(&self, args: &[&TensorType]) -> Result<Type, TypeError> {
        let [logits, bias] = args else { unreachable!("operands were counted") };
        let ty = route::infer("route_noaux_tc", logits, &self.k, Some(self.groups()))?;
        check::f32s("route_noaux_tc", "bias", bias, 1)?;
        check::axes("bias", "[e]", bias, 1, false)?;
        check::extent(&bias.shape[0], &logits.shape[1], 1, "the number of experts")?;
        Ok(ty)
    }

    fn eval(&self, sizes: &Sizes, args: &[&Array]) -> Vec<Array> {
        let [logits, bias] = args else { unreachable!("operands were counted") };
        route::eval(logits, sizes.of(&self.k), |row| {
            let s: Vec<f64> = row.iter().map(|z| 1.0 / (1.0 + (-z).exp())).collect();
            let biased: Vec<f64> = s.iter().zip(&bias.data).map(|(s, b)| s + b).collect();
            let chosen = route::best(&self.groups().mask(&biased, f64::NEG_INFINITY), sizes.of(&self.k));
            let sum = if self.normalize { chosen.iter().map(|&e| s[e]).sum::<f64>() + 1e-20 } else { 1.0 };
            chosen.iter().map(|&e| (e, s[e] / sum * self.scale.get())).collect()
        })
    }

    /// Through the weights; the choice has no gradient, and so the bias has none.
    fn vjp(&self, cx: &mut Vjp<'_>) -> Shares {
        route::gradient(cx, "sigmoid", self.normalize, self.scale)
    }

    fn lowering(&self) -> Lowering {
        Lowering::Kernel
    }

    /// One program a token.
    fn kernel<'k>(&self, cx: &Cx<'k>, args: &[View<'k>]) -> Result<(), LowerError> {
        let [logits, bias] = args else { unreachable!("operands were counted") };
        let token = Token::new(cx, logits, &self.k, Some(self.groups()))?;
        let s = token.logits.sigmoid();
        let biased = s + bias.at(&Request::row(&[], cx.k.int(0), token.experts))?;
        let [chosen, weights] = token.best(self.groups().mask_tile(biased, f64::NEG_INFINITY), s);
        let weights = if self.normalize { weights / (weights.sum_along(1) + 1e-20) } else { weights };
        token.emit(cx, chosen, weights * self.scale.get())
    }
}
