//! `grouped_outer`: the gradients of experts' weights.

use super::check;
use super::einsum::same_dtype;
use crate::attr::{Axis, Spec};
use crate::eval::{Array, Sizes};
use crate::lower::{BufView, Coord, Cx, LowerError, Lowering, Request, View};
use crate::op::{OpDef, TypeError, op};
use crate::ops::grouped::Grouped;
use crate::poly::Amount;
use crate::types::{DType, TensorType, Type};
use crate::vjp::{Shares, Vjp};

op! {
    /// For each expert, the products of its rows of two operands, summed over the rows: slice `e` of the result is
    /// `Σ x[g, ·] · y[g, ·]` over `g` in `offsets[e] .. offsets[e+1]`, exact zeros where there are none.
    ///
    /// In `"gf,gm->efm"`, `g` is the rows' axis, `e` the experts' (in the result alone). Nothing is padded: groups may
    /// be empty and of any length.
    "grouped_outer" => GroupedOuter(x, y, offsets) {
        /// The axes of `x` and of `y` (rows first), and of the result (experts first).
        spec: Spec,
    }
}

impl GroupedOuter {
    /// For the second and the third axis of the result, the operand that brings it.
    fn sides(&self) -> Option<[usize; 2]> {
        let Spec { inputs, out, .. } = &self.spec;
        let ([x, y], [expert, rows, cols]) = (&inputs[..], &out[..]) else { return None };
        let ([g, a], [h, b]) = (&x[..], &y[..]) else { return None };
        let fits = g == h && ![a, b].contains(&g) && a != b && ![g, a, b].contains(&expert);
        match fits {
            true if [rows, cols] == [a, b] => Some([0, 1]),
            true if [rows, cols] == [b, a] => Some([1, 0]),
            _ => None,
        }
    }
}

impl OpDef for GroupedOuter {
    fn infer(&self, args: &[&TensorType]) -> Result<Type, TypeError> {
        let [x, y, offsets] = args else { unreachable!("operands were counted") };
        let Some(sides) = self.sides() else {
            let message = format!("\"{}\" is not of the form \"gf,gm->efm\"", self.spec);
            return Err(TypeError::new(message).help("rows first in both operands, experts first in the result alone"));
        };
        for (i, (what, arg)) in ["x", "y"].into_iter().zip([x, y]).enumerate() {
            check::unscaled("grouped_outer", what, arg, i)?;
            check::axes(what, "[g, m]", arg, i, false)?;
        }
        let dtype = same_dtype(&[x, y])?;
        check::extent(&y.shape[0], &x.shape[0], 1, "the number of rows")?;
        check::axes("offsets", "[e + 1]", offsets, 2, false)?;
        if offsets.dtype != DType::I32 {
            return Err(TypeError::new(format!("the offsets must be i32, not {offsets}")).at(2));
        }
        let experts = &offsets.shape[0] - 1;
        let own = sides.map(|side| args[side].shape[1].clone());
        Ok(TensorType::new(dtype, [experts].into_iter().chain(own)).into())
    }

    fn flops<N: Amount>(&self, args: &[&TensorType], _: &Type, size: &dyn Fn(&TensorType) -> N) -> N {
        // Every row is in one sum.
        N::from(2.0) * size(args[0]) * size(&args[1].with_shape([args[1].shape[1].clone()]))
    }

    fn eval(&self, _: &Sizes, args: &[&Array]) -> Vec<Array> {
        let [x, y, offsets] = args else { unreachable!("operands were counted") };
        let [left, right] = self.sides().expect("the type rule has checked it").map(|side| [x, y][side]);
        let shape = [offsets.data.len() - 1, left.shape[1], right.shape[1]];
        vec![Array::from_fn(&shape, |at| {
            let rows = offsets.data[at[0]] as usize..(offsets.data[at[0] + 1] as usize).min(left.shape[0]);
            rows.map(|g| left.at(&[g, at[1]]) * right.at(&[g, at[2]])).sum()
        })]
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> Shares {
        let ([x, y, offsets], g) = (cx.args(), cx.grad());
        let mut shares = vec![None; 3];
        for (i, other) in [y, x].into_iter().enumerate() {
            if !cx.wants(i) {
                continue;
            }
            let inputs: [&[Axis]; 2] = [&self.spec.inputs[1 - i], &self.spec.out];
            let spec = Spec::new(&inputs, &self.spec.inputs[i], |axis| self.spec.letter(axis));
            shares[i] = Some(cx.op(Grouped { spec }, &[other, g, offsets])?);
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
        // Tensor cores have whole tiles only.
        let tensor = cx.schedule.tensor_of(&[left, right]);
        let [bm, bn, bk] = tensor.map_or(cx.schedule.outer, |tensor| tensor.product);
        let fit = |view: &BufView, most: usize| cx.size(&view.shape[1]).map_or(most, |n| n.clamp(1, most));
        let (bm, bn) = (if tensor.is_some() { bm } else { fit(left, bm) }, fit(right, bn));

        let expert = cx.program(&cx.out[0].shape[0]);
        let (row, col) = (cx.program_tile(&left.shape[1], bm), cx.program_tile(&right.shape[1], bn));
        let base = offsets.at(&Request::element(&[expert]))?;
        let end = offsets.at(&Request::element(&[expert + 1i64]))?;
        let side = |view: &BufView, first, rows, term, ends: bool| {
            let coords = vec![Coord::Cols(term), Coord::Rows(first)];
            let limits = if ends { vec![(0, end)] } else { Vec::new() };
            cx.load(view, &Request { coords, rows, cols: bk, limits })
        };
        let zero = cx.k.full([bm, bn], 0.0);
        let rows = end - base;
        let [sum] = if tensor.is_some() {
            // Bulk copies do not end where an expert's rows do: the rows behind the last whole step are another loop's, where
            // those of one side that are not the expert's are zeros, which is enough.
            let whole = rows / bk as i64;
            let sum = cx.k.fold(whole, [zero], |i, [sum]| {
                let term = base + i * bk as i64;
                [sum.add_dot(side(left, row, bm, term, false), side(right, col, bn, term, false))]
            });
            cx.k.fold(rows.div_ceil(bk as i64) - whole, sum, |i, [sum]| {
                let term = base + (whole + i) * bk as i64;
                [sum.add_dot(side(left, row, bm, term, true), side(right, col, bn, term, false))]
            })
        } else {
            cx.k.fold(rows.div_ceil(bk as i64), [zero], |i, [sum]| {
                let term = base + i * bk as i64;
                [sum.add_dot(side(left, row, bm, term, true), side(right, col, bn, term, true))]
            })
        };
        let coords = vec![Coord::At(expert), Coord::Rows(row), Coord::Cols(col)];
        cx.emit(&Request { coords, rows: bm, cols: bn, limits: Vec::new() }, sum)
    }
}
