//! `page_read`: the tokens of sequences, from pages of a pool.

use super::page_write::{paged, place};
use crate::dim::Dim;
use crate::eval::{Array, Sizes};
use crate::lower::Lowering;
use crate::op::{OpDef, TypeError, op};
use crate::poly::Amount;
use crate::types::{TensorType, Type};

op! {
    /// `[b, t, …]`: the first `t` tokens of each sequence, where token `p` is row `p % r` of page `table[b, p / r]` of
    /// `pool[g, r, …]`; zeros for a token without a page.
    ///
    /// Nothing is copied where products and attention read it: they go through the table. Rows of a page that no token
    /// of the sequence has are read with those that it has, and must be numbers.
    "page_read" => PageRead(pool, table) {
        /// The number of tokens, `t`.
        tokens: Dim,
    }
}

impl OpDef for PageRead {
    fn infer(&self, args: &[&TensorType]) -> Result<Type, TypeError> {
        let [pool, table] = args else { unreachable!("operands were counted") };
        paged("page_read", pool, table, 1)?;
        let tokens = [table.shape[0].clone(), self.tokens.clone()];
        Ok(pool.with_shape(tokens.into_iter().chain(pool.shape[2..].iter().cloned())).into())
    }

    fn eval(&self, sizes: &Sizes, args: &[&Array]) -> Vec<Array> {
        let [pool, table] = args else { unreachable!("operands were counted") };
        let shape = [&[table.shape[0], sizes.of(&self.tokens)], &pool.shape[2..]].concat();
        vec![Array::from_fn(&shape, |index| {
            let place = place(table, index[0], index[1] as f64, pool.shape[0], pool.shape[1]);
            place.map_or(0.0, |place| pool.at(&[&place, &index[2..]].concat()))
        })]
    }

    fn lowering(&self) -> Lowering {
        Lowering::Alias
    }

    fn flops<N: Amount>(&self, _: &[&TensorType], _: &Type, _: &dyn Fn(&TensorType) -> N) -> N {
        N::from(0.0)
    }
}
