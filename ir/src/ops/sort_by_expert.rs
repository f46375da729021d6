//! `sort_by_expert`: the rows that each expert gets.

use super::{check, rows};
use crate::dim::Dim;
use crate::eval::{Array, Sizes};
use crate::kernel::Elem;
use crate::lower::{Coord, Cx, LowerError, Lowering, Request, View};
use crate::op::{OpDef, TypeError, op};
use crate::types::{DType, TensorType, Type};

op! {
    /// The items of `expert[t, k]`, numbered `t·k + j`, stably sorted by the expert they are for.
    ///
    /// Gives `order[t·k]`, the item at each place; `position[t, k]`, the place of each item; and
    /// `offsets[experts + 1]`, where each expert's items begin, and one past the last. All entries of `expert` must
    /// be in `0 .. experts`.
    "sort_by_expert" => SortByExpert(expert) {
        /// The number of experts.
        experts: Dim,
    }
}

impl OpDef for SortByExpert {
    fn infer(&self, args: &[&TensorType]) -> Result<Type, TypeError> {
        check::ints("sort_by_expert", "experts", args[0], 0)?;
        check::axes("experts", "[t, k]", args[0], 0, false)?;
        let order = TensorType::new(DType::I32, [args[0].elements()]);
        let position = TensorType::new(DType::I32, args[0].shape.clone());
        let offsets = TensorType::new(DType::I32, [&self.experts + 1]);
        Ok(Type::Tuple(vec![order, position, offsets]))
    }

    fn eval(&self, sizes: &Sizes, args: &[&Array]) -> Vec<Array> {
        let expert = &args[0].data;
        let mut order: Vec<usize> = (0..expert.len()).collect();
        order.sort_by(|&a, &b| expert[a].total_cmp(&expert[b]));
        let mut position = vec![0.0; expert.len()];
        order.iter().enumerate().for_each(|(place, &item)| position[item] = place as f64);
        let experts = sizes.of(&self.experts);
        let before = |e: usize| expert.iter().filter(|&&x| x < e as f64).count() as f64;
        vec![
            Array::new(&[order.len()], order.iter().map(|&item| item as f64).collect()),
            Array::new(&args[0].shape, position),
            Array::new(&[experts + 1], (0..=experts).map(before).collect()),
        ]
    }

    fn lowering(&self) -> Lowering {
        Lowering::Kernel
    }

    fn in_memory(&self, _: usize) -> bool {
        true
    }

    /// One program an expert, and one more for the end: it counts the items of the experts before, then places its own.
    /// Where there are more programs, each places those of some tokens, and counts those of tokens before, too.
    fn kernel<'k>(&self, cx: &Cx<'k>, args: &[View<'k>]) -> Result<(), LowerError> {
        let [t, k] = &args[0].ty.shape[..] else { unreachable!("the type rule asks for two axes") };
        let width = cx.fixed(k, "the number of experts for a token")?;
        let tokens = cx.extent(t);
        let expert = cx.program(&(&self.experts + 1));
        let zero = cx.k.int(0);

        // One more block than tokens fill, so that there is one where there are no tokens.
        let own = cx.schedule.places.map(|n| (cx.program_tile(&(t + 1), n), n as i64));

        let height = (cx.schedule.sort / width).max(1);
        let trips = tokens.div_ceil(height as i64);
        let [base] = rows::try_fold(trips, [zero], |i, [count]| {
            let first = i * height as i64;
            let coords = vec![Coord::Rows(first), Coord::Cols(zero)];
            let items = args[0].at(&Request { coords, rows: height, cols: width, limits: Vec::new() })?;
            let inside = (cx.k.iota(0, height) + first).lt(tokens);
            let mut before = items.lt(expert);
            if let Some((first_own, _)) = own {
                let earlier = (cx.k.iota(0, height) + first).lt(first_own);
                before = before.or(items.equals(expert).and(earlier));
            }
            let before = before.and(inside).cast(Elem::I64);
            Ok([count + before.sum_along(0).sum_along(1)])
        })?;
        let [order, position, offsets] = [0, 1, 2].map(|part| (cx.write)(part));
        // Of an expert's programs the first one says where its items begin.
        let first_only =
            own.map(|(first, _)| (0, first.le(zero).select(cx.extent(&(&self.experts + 1)), zero)));
        cx.k.store(offsets, &[expert], [None, None], &first_only.into_iter().collect::<Vec<_>>(), base);

        let choice = cx.k.iota(1, width);
        let (first, trips) = match own {
            Some((first, n)) => (first, (tokens - first).min(cx.k.int(n)).max(zero)),
            None => (zero, tokens),
        };
        rows::try_fold(trips, [base], |i, [place]| {
            let token = first + i;
            let mine = args[0].at(&Request::row(&[token], zero, width))?.equals(expert);
            let count = mine.cast(Elem::I64);
            let places = count.cumulative_sum() + (place - 1);
            cx.k.scatter(order, &[zero], 0, places, choice + token * width as i64, mine);
            cx.k.scatter(position, &[token, zero], 1, choice, places, mine);
            Ok([place + count.sum_along(1)])
        })?;
        Ok(())
    }
}
