//! `grouped_outer`: the gradients of experts' weights.

use super::check;
use super::einsum::codes::{self, From, Operand};
use super::einsum::{Einsum, product_dtype};
use crate::attr::{Axis, Spec};
use crate::eval::{Array, Sizes};
use crate::kernel::build::Tile;
use crate::lower::{BufView, Coord, Cx, LowerError, Lowering, Request, View};
use crate::op::{OpDef, TypeError, op};
use crate::ops::grouped::Grouped;
use crate::poly::Amount;
use crate::types::{TensorType, Type};
use crate::vjp::{Shares, Vjp};

op! {
    /// For each expert, the products of its rows of two operands, summed over the rows: slice `e` of the result is
    /// `Σ x[g, ·] · y[g, ·]` over `g` in `offsets[e] .. offsets[e+1]`, exact zeros where there are none.
    ///
    /// In `"gf,gm->efm"`, `g` is the rows' axis (first in both operands, or last), `e` the experts' (in the result alone).
    /// Nothing is padded: groups may be empty and of any length. Of 8-bit floats (whose product is `f32`) offsets are multiples
    /// of the rows that share a scale, as `align_offsets` gives them; with others, the result is not defined.
    "grouped_outer" => GroupedOuter(x, y, offsets) {
        /// The axes of `x` and of `y` (rows first), and of the result (experts first).
        spec: Spec,
    }
}

impl GroupedOuter {
    /// The place of the rows' axis in both operands.
    fn rows(&self) -> usize {
        match &self.spec.inputs[..] {
            [x, y] if x.first() != y.first() => 1,
            _ => 0,
        }
    }

    /// For the second and the third axis of the result, the operand that brings it.
    fn sides(&self) -> Option<[usize; 2]> {
        let Spec { inputs, out, .. } = &self.spec;
        let ([x, y], [expert, rows, cols]) = (&inputs[..], &out[..]) else { return None };
        let ([x0, x1], [y0, y1]) = (&x[..], &y[..]) else { return None };
        let ([g, a], [h, b]) = if self.rows() == 0 { ([x0, x1], [y0, y1]) } else { ([x1, x0], [y1, y0]) };
        let fits = g == h && ![a, b].contains(&g) && a != b && ![g, a, b].contains(&expert);
        match fits {
            true if [rows, cols] == [a, b] => Some([0, 1]),
            true if [rows, cols] == [b, a] => Some([1, 0]),
            _ => None,
        }
    }

    /// The kernel for 8-bit operands on tensor cores, whose scales are read by themselves; `None` if they cannot do it.
    fn codes<'k>(
        &self,
        cx: &Cx<'k>,
        sides: [&BufView; 2],
        [base, end]: [Tile<'k>; 2],
        expert: Tile<'k>,
    ) -> Option<Result<(), LowerError>> {
        let (tensor, rows) = (cx.schedule.tensor.as_ref()?, self.rows());
        let own = 1 - rows;
        let [left, right] = sides.map(|view| Operand::new(cx, view, own, rows));
        let (left, right) = (left?, right?);
        // An expert's rows are blocks of rows with scales of their own; behind them another's begin.
        let block = usize::try_from(left.terms()?).ok()?;
        // Offsets are multiples of it; this says so to who reads the kernel.
        let base = base / block as i64 * block as i64;
        let [m, n] = sides.map(|view| &view.shape[own]);
        let (mut tile, all) = (tensor.codes, cx.size(n));
        tile[0] = cx.size(m).map_or(tile[0], |m| m.clamp(1, tile[0]));
        tile[2] = tile[2].min(block);
        let cut = codes::cut([&left, &right], tile, all)?;
        let (row, col) = (cx.program_tile(m, cut.rows), cx.program_tile(n, cut.cols));
        let other = |_: usize| expert;
        let places = [row, col].map(|first| From { first, other: &other, end: None });
        let parts = codes::product(cx, cut, (Some(base), end - base), [&left, &right], places);
        let emit = |([top, first], sum): ([usize; 2], Tile<'k>)| {
            let coords =
                vec![Coord::At(expert), Coord::Rows(row + top as i64), Coord::Cols(col + first as i64)];
            cx.emit(&Request { coords, rows: cut.tall, cols: cut.part, limits: Vec::new() }, sum)
        };
        Some(parts.into_iter().try_for_each(emit))
    }
}

impl OpDef for GroupedOuter {
    fn infer(&self, args: &[&TensorType]) -> Result<Type, TypeError> {
        let [x, y, offsets] = args else { unreachable!("operands were counted") };
        let Some(sides) = self.sides() else {
            let message = format!("\"{}\" is not of the form \"gf,gm->efm\"", self.spec);
            let help = "rows first in both operands, or last, and experts first in the result alone";
            return Err(TypeError::new(message).help(help));
        };
        let rows = self.rows();
        for (i, (what, arg)) in ["x", "y"].into_iter().zip([x, y]).enumerate() {
            check::axes(what, "[g, m]", arg, i, false)?;
        }
        let dtype = product_dtype(&self.spec, &[x, y], None)?;
        check::extent(&y.shape[rows], &x.shape[rows], 1, "the number of rows")?;
        check::offsets("offsets", offsets, 2)?;
        let experts = &offsets.shape[0] - 1;
        let own = sides.map(|side| args[side].shape[1 - rows].clone());
        Ok(TensorType::new(dtype, [experts].into_iter().chain(own)).into())
    }

    fn flops<N: Amount>(&self, args: &[&TensorType], _: &Type, size: &dyn Fn(&TensorType) -> N) -> N {
        // Every row is in one sum.
        N::from(2.0) * size(args[0]) * size(&args[1].with_shape([args[1].shape[1 - self.rows()].clone()]))
    }

    fn eval(&self, _: &Sizes, args: &[&Array]) -> Vec<Array> {
        let [x, y, offsets] = args else { unreachable!("operands were counted") };
        let [left, right] = self.sides().expect("the type rule has checked it").map(|side| [x, y][side]);
        let rows = self.rows();
        let own = 1 - rows;
        let at = |row: usize, own: usize| if rows == 0 { [row, own] } else { [own, row] };
        let shape = [offsets.data.len() - 1, left.shape[own], right.shape[own]];
        vec![Array::from_fn(&shape, |index| {
            let end = (offsets.data[index[0] + 1] as usize).min(left.shape[rows]);
            let terms = offsets.data[index[0]] as usize..end;
            terms.map(|g| left.at(&at(g, index[1])) * right.at(&at(g, index[2]))).sum()
        })]
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> Shares {
        let ([x, y, offsets], g) = (cx.args(), cx.grad());
        let dtype = cx.ty(g).dtype;
        let mut shares = vec![None; 3];
        // `grouped` has rows first: what has them last is turned for it.
        let rows_first = |axes: &[Axis]| match self.rows() {
            0 => axes.to_vec(),
            _ => axes.iter().rev().copied().collect(),
        };
        let turned = |cx: &mut Vjp<'_>, value, from: &[Axis], to: &[Axis]| match from == to {
            true => Ok(value),
            false => cx.op(Einsum { spec: Spec::new(&[from], to, |axis| self.spec.letter(axis)) }, &[value]),
        };
        for (i, other) in [y, x].into_iter().enumerate() {
            if !cx.wants(i) {
                continue;
            }
            let [mine, others] = [&self.spec.inputs[i], &self.spec.inputs[1 - i]];
            let [own, from] = [mine, others].map(|axes| rows_first(axes));
            let other = cx.cast(other, dtype)?;
            let other = turned(cx, other, others, &from)?;
            let spec = Spec::new(&[&from, &self.spec.out], &own, |axis| self.spec.letter(axis));
            let share = cx.op(Grouped { spec }, &[other, g, offsets])?;
            shares[i] = Some(turned(cx, share, &own, mine)?);
        }
        Ok(shares)
    }

    fn lowering(&self) -> Lowering {
        Lowering::Kernel
    }

    fn in_memory(&self, i: usize) -> bool {
        i < 2
    }

    /// One program for an expert and a tile of its weights: it goes over the expert's rows, however many there are.
    fn kernel<'k>(&self, cx: &Cx<'k>, args: &[View<'k>]) -> Result<(), LowerError> {
        let [x, y, offsets] = args else { unreachable!("operands were counted") };
        let [left, right] = self
            .sides()
            .ok_or_else(|| LowerError::new("the type rule has not checked it"))?
            .map(|side| [x, y][side].memory());
        let (left, right) = (left?, right?);
        let expert = cx.program(&cx.out[0].shape[0]);
        let base = offsets.at(&Request::element(&[expert]))?;
        let end = offsets.at(&Request::element(&[expert + 1i64]))?;
        if let Some(result) = self.codes(cx, [left, right], [base, end], expert) {
            return result;
        }
        let rows = self.rows();
        let own = 1 - rows;
        // Tensor cores have whole tiles only.
        let tensor = cx.schedule.tensor_of(&[left, right]);
        let [bm, bn, bk] = match tensor {
            Some(_) => cx.schedule.product_of(&[left, right]),
            None => cx.schedule.outer,
        };
        let fit = |view: &BufView, most: usize| cx.size(&view.shape[own]).map_or(most, |n| n.clamp(1, most));
        let (bm, bn) = (if tensor.is_some() { bm } else { fit(left, bm) }, fit(right, bn));

        let (row, col) = (cx.program_tile(&left.shape[own], bm), cx.program_tile(&right.shape[own], bn));
        let side = |view: &BufView, first, lines, term, ends: bool| {
            let mut coords = vec![Coord::Rows(first); 2];
            coords[rows] = Coord::Cols(term);
            let limits = if ends { vec![(rows, end)] } else { Vec::new() };
            cx.load(view, &Request { coords, rows: lines, cols: bk, limits })
        };
        let zero = cx.k.full([bm, bn], 0.0);
        let terms = end - base;
        let [sum] = if tensor.is_some() && rows == 1 {
            // Bulk copies begin at multiples of 16 bytes, and do not end where an expert's rows do: the first step and the
            // last are another loop's, where the rows of one side that are not the expert's are zeros, which is enough.
            let unit = 16 / left.dtype.bytes();
            let from = base / unit * unit;
            let steps = (end - from).div_ceil(bk as i64);
            let sum = cx.k.fold((steps - 2i64).max(cx.k.int(0)), [zero], |i, [sum]| {
                let term = from + (i + 1i64) * bk as i64;
                [sum.add_dot(side(left, row, bm, term, false), side(right, col, bn, term, false))]
            });
            cx.k.fold(steps.min(cx.k.int(2)), sum, |i, [sum]| {
                let term = from + i * (steps - 1i64) * bk as i64;
                let own =
                    base.le(term + cx.k.iota(1, bk)).select(side(left, row, bm, term, true), cx.k.float(0.0));
                [sum.add_dot(own, side(right, col, bn, term, false))]
            })
        } else if tensor.is_some() {
            // Bulk copies do not end where an expert's rows do: the rows behind the last whole step are another loop's, where
            // those of one side that are not the expert's are zeros, which is enough.
            let whole = terms / bk as i64;
            let sum = cx.k.fold(whole, [zero], |i, [sum]| {
                let term = base + i * bk as i64;
                [sum.add_dot(side(left, row, bm, term, false), side(right, col, bn, term, false))]
            });
            cx.k.fold(terms.div_ceil(bk as i64) - whole, sum, |i, [sum]| {
                let term = base + (whole + i) * bk as i64;
                [sum.add_dot(side(left, row, bm, term, true), side(right, col, bn, term, false))]
            })
        } else {
            cx.k.fold(terms.div_ceil(bk as i64), [zero], |i, [sum]| {
                let term = base + i * bk as i64;
                [sum.add_dot(side(left, row, bm, term, true), side(right, col, bn, term, true))]
            })
        };
        let coords = vec![Coord::At(expert), Coord::Rows(row), Coord::Cols(col)];
        cx.emit(&Request { coords, rows: bm, cols: bn, limits: Vec::new() }, sum)
    }
}
