//! `dispatch`: each token's row once for each of its experts.

use super::{check, rows};
use super::{combine::Combine, get::Get, invert::Invert};
use crate::dim::Dim;
use crate::eval::{Array, Sizes};
use crate::graph::{Def, Value};
use crate::kernel::build::Tile;
use crate::lower::{Coord, Cx, LowerError, Lowering, Request, View};
use crate::op::{OpDef, TypeError, op};
use crate::ops::Op;
use crate::poly::Amount;
use crate::scales::Block;
use crate::types::DType;
use crate::types::{TensorType, Type};
use crate::vjp::NoGradient;
use crate::vjp::{Shares, Vjp};

op! {
    /// Row `g` is `x[order[g] / k]`: the rows of `x[t, m]` in the order of `sort_by_expert`. Of 8-bit floats, where each row
    /// has scales of its own, codes and scales are moved as they are.
    "dispatch" => Dispatch(x, order) {
        /// How many experts each token has.
        k: Dim,
    }
}

/// The place `i32[t, k]` of each item that `order[t·k]` sorts: what `sort_by_expert` gave with it, if it is that.
fn positions(cx: &mut Vjp<'_>, order: Value, tokens: &Dim, k: &Dim) -> Result<Value, NoGradient> {
    let of_sort = match cx.def(order) {
        Def::Op(Op::Get(Get { index: 0 }), args) => Some(args[0]),
        _ => None,
    };
    let of_sort = of_sort.filter(|&sorted| matches!(cx.def(sorted), Def::Op(Op::SortByExpert(_), _)));
    let position = match of_sort {
        Some(sorted) => cx.op(Get { index: 1 }, &[sorted])?,
        None => cx.op(Invert {}, &[order])?,
    };
    cx.reshape(position, &[tokens.clone(), k.clone()])
}

impl OpDef for Dispatch {
    fn infer(&self, args: &[&TensorType]) -> Result<Type, TypeError> {
        let [x, order] = args else { unreachable!("operands were counted") };
        if x.block(0) != Some(Block::Each) {
            check::unscaled("dispatch", "input", x, 0)?;
        }
        check::axes("input", "[t, m]", x, 0, false)?;
        check::ints("dispatch", "order", order, 1)?;
        check::axes("order", "[t*k]", order, 1, false)?;
        let why = format!("the number of items, {} for each of {} rows,", self.k, x.shape[0]);
        check::extent(&order.shape[0], &(&x.shape[0] * &self.k), 1, &why)?;
        let shape = [order.shape[0].clone(), x.shape[1].clone()];
        Ok(TensorType { shape: shape.into_iter().collect(), ..(*x).clone() }.into())
    }

    fn eval(&self, sizes: &Sizes, args: &[&Array]) -> Vec<Array> {
        let [x, order] = args else { unreachable!("operands were counted") };
        let k = sizes.of(&self.k) as f64;
        vec![Array::from_fn(&[order.data.len(), x.shape[1]], |index| {
            rows::row_of(x, (order.data[index[0]] / k).floor()).map_or(0.0, |row| row[index[1]])
        })]
    }

    /// Each token's rows, added up.
    fn vjp(&self, cx: &mut Vjp<'_>) -> Shares {
        let [x, order] = cx.args();
        let (g, tokens) = (cx.grad(), cx.ty(x).shape[0].clone());
        let position = positions(cx, order, &tokens, &self.k)?;
        let ones = cx.full(1.0, &TensorType::new(DType::F32, [tokens, self.k.clone()]))?;
        Ok(vec![Some(cx.op(Combine {}, &[g, position, ones])?), None])
    }

    fn lowering(&self) -> Lowering {
        Lowering::View
    }

    fn flops<N: Amount>(&self, _: &[&TensorType], _: &Type, _: &dyn Fn(&TensorType) -> N) -> N {
        N::from(0.0)
    }

    fn repeats_rows(&self) -> bool {
        true
    }

    fn tile<'k>(&self, cx: &Cx<'k>, args: &[View<'k>], at: &Request<'k>) -> Result<Tile<'k>, LowerError> {
        let [x, order] = args else { unreachable!("operands were counted") };
        let k = cx.extent(&self.k);
        if let Coord::At(place) = at.coords[0] {
            let token = order.at(&Request::element(&[place]))? / k;
            return x.at(&at.with_coords(vec![Coord::At(token), at.coords[1]]));
        }
        // Several rows at once: each element has the token of its row, or none where its row is not wanted.
        let token = order.at(&at.with_coords(vec![at.coords[0]]))? / k;
        let place = rows::indices(cx, at.coords[0], at);
        let (ends, limits): (Vec<_>, Vec<_>) = at.limits.iter().partition(|(axis, _)| *axis == 0);
        let all = place.lt(cx.extent(&order.ty.shape[0]));
        let wanted = ends.iter().fold(all, |wanted, (_, end)| wanted.and(place.lt(*end)));
        let token = wanted.select(token, cx.k.int(-1));
        let index = [cx.k.int(0), at.coords[1].start()];
        let [rows, cols] = at.axes().map(|axis| axis.filter(|axis| *axis == 1));
        let x = (cx.read)(x.memory()?);
        Ok(cx.k.gather_tile(x, &index, [rows, cols], [at.rows, at.cols], &limits, (0, token)))
    }
}
