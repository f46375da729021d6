//! `cache_write`: new tokens into a cache.

use super::check;
use super::take_rows::{TakeRows, put_rows};
use crate::eval::{Array, Sizes};
use crate::lower::{Cx, LowerError, Lowering, Request, View};
use crate::op::{OpDef, TypeError, op};
use crate::poly::Amount;
use crate::scales::Block;
use crate::types::{TensorType, Type};
use crate::vjp::{Shares, Vjp};

op! {
    /// `cache[b, t, …]` with rows `start[b] .. start[b] + s` of its axis 1 replaced by `new[b, s, …]`; rows that would
    /// lie outside the cache are dropped.
    ///
    /// A cache has one successor, so nothing is copied: the rows are written in place.
    "cache_write" => CacheWrite(cache, new, start) {}
}

impl OpDef for CacheWrite {
    fn infer(&self, args: &[&TensorType]) -> Result<Type, TypeError> {
        let [cache, new, start] = args else { unreachable!("operands were counted") };
        check::axes("cache", "[b, t, ...]", cache, 0, true)?;
        check::same_dtype(["cache", "new rows"], cache, new, 1)?;
        let fits =
            cache.rank() == new.rank() && (0..cache.rank()).all(|i| i == 1 || cache.shape[i] == new.shape[i]);
        if !fits {
            return Err(TypeError::new(format!("the new rows {new} do not fit {cache} but for axis 1")).at(1));
        }
        if cache.scales != new.scales || matches!(cache.block(1), Some(Block::Of(2..) | Block::Whole)) {
            let message = format!("the new rows {new} have other scales than {cache}");
            let help = "each token's rows need scales of their own, alike in both";
            return Err(TypeError::new(message).at(1).help(help));
        }
        check::ints("cache_write", "start", start, 2)?;
        check::axes("start", "[b]", start, 2, false)?;
        check::extent(&start.shape[0], &cache.shape[0], 2, "the batch of the cache")?;
        Ok((*cache).clone().into())
    }

    fn eval(&self, _: &Sizes, args: &[&Array]) -> Vec<Array> {
        let [cache, new, start] = args else { unreachable!("operands were counted") };
        vec![Array::from_fn(&cache.shape, |index| {
            let row = index[1] as f64 - start.data[index[0]];
            if row < 0.0 || row >= new.shape[1] as f64 {
                return cache.at(index);
            }
            let mut index = index.to_vec();
            index[1] = row as usize;
            new.at(&index)
        })]
    }

    /// To the new rows, the gradient of the rows that they became; to the cache, that of the others.
    fn vjp(&self, cx: &mut Vjp<'_>) -> Shares {
        let [cache, new, start] = cx.args();
        let g = cx.grad();
        let rows = cx.op(TakeRows { new: cx.ty(new).shape[1].clone() }, &[g, start])?;
        let of_cache = if cx.wants(0) {
            let written = put_rows(cx, rows, start, cx.ty(cache).shape[1].clone())?;
            Some(cx.sub(g, written)?)
        } else {
            None
        };
        Ok(vec![of_cache, Some(rows), None])
    }

    fn lowering(&self) -> Lowering {
        Lowering::Kernel
    }

    fn flops<N: Amount>(&self, _: &[&TensorType], _: &Type, _: &dyn Fn(&TensorType) -> N) -> N {
        N::from(0.0)
    }

    /// One program for each block of a new row.
    fn kernel<'k>(&self, cx: &Cx<'k>, args: &[View<'k>]) -> Result<(), LowerError> {
        let [_, new, start] = args else { unreachable!("operands were counted") };
        let (last, leading) = new.ty.shape.split_last().expect("the type rule asks for two axes");
        let cols = cx.size(last).unwrap_or(usize::MAX).clamp(1, cx.schedule.block);
        let mut index = cx.programs(leading);
        let whole = cx.size(last) == Some(cols);
        let first = if whole { cx.k.int(0) } else { cx.program_tile(last, cols) };
        let row = Request::row(&index, first, cols);
        // Of 8-bit floats, codes and scales are written as they are.
        let (rows, scales) = match (new.buffer.as_ref(), new.ty.scales_shape(cx.constant)) {
            (Some(view), Some(shape)) => {
                let scales = view.scales.as_ref().and_then(|scales| scales.tensor(&new.ty, &shape));
                let scales = scales.ok_or_else(|| LowerError::new("blocks of the new rows are not whole"))?;
                (cx.load(&view.codes(), &row), Some(cx.load(&scales, &row)))
            }
            _ => (new.at(&row)?, None),
        };

        let start = start.at(&Request::element(&index[..1]))?;
        index.push(first);
        index[1] = index[1] + start;
        // Where the rows themselves are the columns of the tile, it must not reach beyond the last new one.
        let limits = if leading.len() == 1 { vec![(1, start + cx.extent(last))] } else { Vec::new() };
        let axes = [None, Some(leading.len())];
        cx.k.store((cx.write)(0), &index, axes, &limits, rows);
        if let Some(scales) = scales {
            cx.k.store((cx.write)(1), &index, axes, &limits, scales);
        }
        Ok(())
    }
}
