//! States in pages.

use super::FnLower;
use eva_ir::graph::{Def, Value};
use eva_ir::lower::{BufView, LowerError, Pages};
use eva_ir::ops::Op;

impl FnLower<'_> {
    /// Whether a parameter is a pool of pages: what writes it says so.
    pub(super) fn is_pool(&self, param: Value) -> bool {
        self.f.values.iter().any(|(_, data)| match &data.def {
            Def::Op(Op::PageWrite(_), args) => args[0] == param,
            Def::Call(func, args) => {
                let params = args.iter().zip(&self.callees[*func].params);
                params.into_iter().any(|(&arg, callee)| arg == param && callee.paged)
            }
            _ => false,
        })
    }

    /// The tokens of a pool's pages, where they are.
    pub(super) fn page_read(&mut self, value: Value) -> Result<(), LowerError> {
        let (Def::Op(_, args), Some(ty)) = (&self.f.values[value].def, self.f.tensor(value)) else {
            unreachable!("a `page_read` is an op with one result")
        };
        let (pool, table) = (self.home(args[0]), self.home(args[1]));
        let rows = self.module.constant(&pool.shape[1]).and_then(|n| usize::try_from(n).ok());
        let message = || format!("a page has `{}` rows, which has no fixed value", pool.shape[1]);
        let rows = rows.ok_or_else(|| LowerError::new(message()))?;
        let pages = Pages { count: pool.shape[0].clone(), rows, step: pool.strides[0].clone(), table };
        let view = BufView { shape: ty.shape.to_vec(), pages: Some(Box::new(pages)), ..pool };
        let view = self.fix_view(view);
        self.homes.insert(value, vec![view]);
        Ok(())
    }
}
