//! `route_group_limited_greedy`: DeepSeek-V2's router.

use super::route::{self, Groups, Token};
use super::softmax;
use crate::attr::Real;
use crate::dim::Dim;
use crate::eval::{Array, Sizes};
use crate::lower::{Cx, LowerError, Lowering, View};
use crate::op::{OpDef, TypeError, op};
use crate::types::{TensorType, Type};
use crate::vjp::{Shares, Vjp};

op! {
    /// DeepSeek-V2's router: the `k` experts of each token, best first, and their weights.
    ///
    /// `s = softmax(logits[t, e])`, with 0 for the experts outside the `kept` groups that have the largest `s`; the
    /// largest are chosen, with the weight `s` times `scale`. Of equals, the lowest index wins.
    "route_group_limited_greedy" => RouteGroupLimitedGreedy(logits) {
        /// The number of experts for a token.
        k: Dim,
        /// The number of groups, of neighbouring experts.
        groups: i64,
        /// The number of groups that a token may choose from.
        kept: i64,
        /// On every weight.
        scale: Real,
    }
}

impl RouteGroupLimitedGreedy {
    fn groups(&self) -> Groups {
        Groups { count: self.groups, kept: self.kept, by: 1 }
    }
}

impl OpDef for RouteGroupLimitedGreedy {
    fn infer(&self, args: &[&TensorType]) -> Result<Type, TypeError> {
        route::infer("route_group_limited_greedy", args[0], &self.k, Some(self.groups()))
    }

    fn eval(&self, sizes: &Sizes, args: &[&Array]) -> Vec<Array> {
        let k = sizes.of(&self.k);
        route::eval(args[0], k, |row| {
            let s = self.groups().mask(&softmax::of_row(row), 0.0);
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
        let token = Token::new(cx, &args[0], &self.k, Some(self.groups()))?;
        let s = self.groups().mask_tile(softmax::of_tile(token.logits, None), 0.0);
        let [chosen, weights] = token.best(s, s);
        token.emit(cx, chosen, weights * self.scale.get())
    }
}
