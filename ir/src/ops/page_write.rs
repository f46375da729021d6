//! `page_write`: new tokens into pages of a pool.

use super::check;
use crate::eval::{Array, Sizes};
use crate::lower::{Coord, Cx, LowerError, Lowering, Request, View};
use crate::op::{OpDef, TypeError, op};
use crate::poly::Amount;
use crate::types::{TensorType, Type};

op! {
    /// `pool[g, r, …]` with token `start[b] + i` of sequence `b` replaced by `new[b, i, …]`, for each `i`.
    ///
    /// Token `p` of a sequence is row `p % r` of page `table[b, p / r]`. A token without a page (beyond the table, or
    /// whose page is not in `0 .. g`) is dropped. No two tokens that are written have the same place. A pool has one
    /// successor, so nothing is copied: the rows are written in place.
    "page_write" => PageWrite(pool, new, table, start) {}
}

/// Checks a pool and the table of its pages; `i` is the table's number among the operands.
pub(super) fn paged(op: &str, pool: &TensorType, table: &TensorType, i: usize) -> Result<(), TypeError> {
    check::unscaled(op, "pool", pool, 0)?;
    check::axes("pool", "[g, r, ...]", pool, 0, true)?;
    check::ints(op, "table", table, i)?;
    check::axes("table", "[b, k]", table, i, false)
}

/// Where token `token` of sequence `seq` is in a pool of `count` pages: its page and its row, if it has a page.
pub(super) fn place(table: &Array, seq: usize, token: f64, count: usize, rows: usize) -> Option<[usize; 2]> {
    let token = (token >= 0.0).then_some(token as usize)?;
    let entry = token / rows;
    let page = if entry < table.shape[1] { table.at(&[seq, entry]) } else { -1.0 };
    (page >= 0.0 && page < count as f64).then_some([page as usize, token % rows])
}

impl OpDef for PageWrite {
    fn infer(&self, args: &[&TensorType]) -> Result<Type, TypeError> {
        let [pool, new, table, start] = args else { unreachable!("operands were counted") };
        paged("page_write", pool, table, 2)?;
        check::same_dtype(["pool", "new rows"], pool, new, 1)?;
        if pool.rank() != new.rank() || pool.shape[2..] != new.shape[2..] {
            return Err(
                TypeError::new(format!("the new rows {new} do not fit {pool} but for axes 0 and 1")).at(1)
            );
        }
        check::extent(&table.shape[0], &new.shape[0], 2, "the batch of the new rows")?;
        check::ints("page_write", "start", start, 3)?;
        check::axes("start", "[b]", start, 3, false)?;
        check::extent(&start.shape[0], &new.shape[0], 3, "the batch of the new rows")?;
        Ok((*pool).clone().into())
    }

    fn eval(&self, _: &Sizes, args: &[&Array]) -> Vec<Array> {
        let [pool, new, table, start] = args else { unreachable!("operands were counted") };
        let mut pool = (*pool).clone();
        let width: usize = pool.shape[2..].iter().product();
        for seq in 0..new.shape[0] {
            for i in 0..new.shape[1] {
                let token = start.data[seq] + i as f64;
                let Some([page, row]) = place(table, seq, token, pool.shape[0], pool.shape[1]) else {
                    continue;
                };
                let (to, from) = ((page * pool.shape[1] + row) * width, (seq * new.shape[1] + i) * width);
                pool.data[to..to + width].copy_from_slice(&new.data[from..from + width]);
            }
        }
        vec![pool]
    }

    fn lowering(&self) -> Lowering {
        Lowering::Kernel
    }

    fn flops<N: Amount>(&self, _: &[&TensorType], _: &Type, _: &dyn Fn(&TensorType) -> N) -> N {
        N::from(0.0)
    }

    /// One program for each block of a new row.
    fn kernel<'k>(&self, cx: &Cx<'k>, args: &[View<'k>]) -> Result<(), LowerError> {
        let [pool, new, table, start] = args else { unreachable!("operands were counted") };
        let page = cx.fixed(&pool.ty.shape[1], "the rows of a page")? as i64;
        let (last, leading) = new.ty.shape.split_last().expect("the type rule asks for two axes");
        // Where the rows themselves are the last axis, they go one by one: neighbours may be in different pages.
        let single = leading.len() == 1;
        let cols = if single { 1 } else { cx.size(last).unwrap_or(usize::MAX).clamp(1, cx.schedule.block) };
        let mut index = cx.programs(leading);
        let whole = cx.size(last) == Some(cols);
        let first = if whole { cx.k.int(0) } else { cx.program_tile(last, cols) };
        let at =
            if single { Request::element(&[index[0], first]) } else { Request::row(&index, first, cols) };
        let rows = new.at(&at)?;

        let start = start.at(&Request::element(&index[..1]))?;
        index.push(first);
        let token = index[1] + start;
        let entry = token / page;
        let number = table
            .at(&Request { coords: vec![Coord::At(index[0]), Coord::At(entry)], ..Request::element(&[]) })?;
        let none = cx.k.int(-1);
        let number = entry.lt(cx.extent(&table.ty.shape[1])).select(number, none);
        let number = cx.k.int(0).le(token).select(number, none);
        index[0] = number;
        index[1] = token % page;
        let axes = [None, (!single).then_some(leading.len())];
        cx.k.store((cx.write)(0), &index, axes, &[], rows);
        Ok(())
    }
}
