//! `route_greedy`: DeepSeek-V2-Lite's router.

use super::route::{self, Token};
use super::softmax;
use crate::attr::Real;
use crate::dim::Dim;
use crate::eval::{Array, Sizes};
use crate::lower::{Cx, LowerError, Lowering, View};
use crate::op::{OpDef, TypeError, op};
use crate::types::{TensorType, Type};
use crate::vjp::{Shares, Vjp};

op! {
    /// DeepSeek-V2-Lite's router: the `k` experts with the largest `softmax(logits[t, e])`, best first, and their
    /// weights: that softmax, times `scale`. Of equals, the lowest index wins.
    "route_greedy" => RouteGreedy(logits) {
        /// The number of experts for a token.
        k: Dim,
        /// On every weight.
        scale: Real,
    }
}

impl OpDef for RouteGreedy {
    fn infer(&self, args: &[&TensorType]) -> Result<Type, TypeError> {
        route::infer("route_greedy", args[0], &self.k, None)
    }

    fn eval(&self, sizes: &Sizes, args: &[&Array]) -> Vec<Array> {
        let k = sizes.of(&self.k);
        route::eval(args[0], k, |row| {
            let s = softmax::of_row(row);
            route::best(&s, k).into_iter().map(|e| (e, s[e] * self.scale.get())).collect()
        })
    }

    /// Through the weights; the choice has no gradient.
    fn vjp(&self, cx: &mut Vjp<'_>) -> Shares {
        route::gradient(cx, "softmax", false, self.scale)
    }

    fn lowering(&self) -> Lowering {
        Lowering::Kernel
    }

    /// One program a token.
    fn kernel<'k>(&self, cx: &Cx<'k>, args: &[View<'k>]) -> Result<(), LowerError> {
        let token = Token::new(cx, &args[0], &self.k, None)?;
        let s = softmax::of_tile(token.logits, None);
        let [chosen, weights] = token.best(s, s);
        token.emit(cx, chosen, weights * self.scale.get())
    }
}
