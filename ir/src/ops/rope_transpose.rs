//! `rope_transpose`: a rotation undone.

use super::rope::{Rope, turn, turned};
use crate::attr::Word;
use crate::eval::{Array, Sizes};
use crate::kernel::build::Tile;
use crate::lower::{Cx, LowerError, Lowering, Request, View};
use crate::op::{OpDef, TypeError, op};
use crate::types::{TensorType, Type};
use crate::vjp::{Shares, Vjp};

op! {
    /// The transposition of `rope`: `x[b, s, …, p]` times the cosine row of `table[b, s, 2, p]`, plus partners exchanged
    /// of `x` times the sine row. Of a table of angles it is the rotation by as much the other way.
    "rope_transpose" => RopeTranspose(x, table) {
        /// How columns are paired: `interleaved` or `halves`.
        pairs: Word,
    }
}

impl OpDef for RopeTranspose {
    fn infer(&self, args: &[&TensorType]) -> Result<Type, TypeError> {
        Rope { pairs: self.pairs.clone() }.infer(args)
    }

    fn eval(&self, _: &Sizes, args: &[&Array]) -> Vec<Array> {
        vec![turned(&self.pairs, true, args)]
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> Shares {
        let [_, table] = cx.args();
        let (g, pairs) = (cx.grad(), self.pairs.clone());
        let of_table = cx.without(1, "rope_transpose", "table")?;
        Ok(vec![Some(cx.op(Rope { pairs }, &[g, table])?), of_table])
    }

    fn lowering(&self) -> Lowering {
        Lowering::View
    }

    fn whole_rows(&self) -> bool {
        true
    }

    fn tile<'k>(&self, cx: &Cx<'k>, args: &[View<'k>], at: &Request<'k>) -> Result<Tile<'k>, LowerError> {
        turn(&self.pairs, true, cx, args, at)
    }
}
