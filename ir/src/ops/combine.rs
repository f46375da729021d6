//! `combine`: the weighted sum of what a token's experts gave.

use super::{check, rows};
use super::{dispatch::Dispatch, embedding::Embedding, invert::Invert, sum::Sum};
use crate::dim::Dim;
use crate::eval::{Array, Sizes};
use crate::kernel::build::Tile;
use crate::lower::{Coord, Cx, LowerError, Lowering, Request, View};
use crate::op::{OpDef, TypeError, op};
use crate::poly::Amount;
use crate::types::DType;
use crate::types::{TensorType, Type};
use crate::vjp::{Shares, Vjp};

op! {
    /// Row `t` is `Σ_j weight[t, j] · rows[position[t, j]]`, with the positions of `sort_by_expert`.
    "combine" => Combine(rows, position, weight) {}
}

impl OpDef for Combine {
    fn infer(&self, args: &[&TensorType]) -> Result<Type, TypeError> {
        let [rows, position, weight] = args else { unreachable!("operands were counted") };
        super::pointwise::float("combine", rows)?;
        check::axes("rows", "[t*k, m]", rows, 0, false)?;
        check::ints("combine", "positions", position, 1)?;
        check::axes("positions", "[t, k]", position, 1, false)?;
        check::f32s("combine", "weights", weight, 2)?;
        if weight.shape != position.shape {
            let message = format!("the weights {weight} do not fit the positions {position}");
            return Err(TypeError::new(message).at(2));
        }
        check::extent(&rows.shape[0], &position.elements(), 0, "the number of positions")?;
        Ok(rows.with_shape([position.shape[0].clone(), rows.shape[1].clone()]).into())
    }

    fn eval(&self, _: &Sizes, args: &[&Array]) -> Vec<Array> {
        let [x, position, weight] = args else { unreachable!("operands were counted") };
        let [t, k] = position.shape[..] else { unreachable!("the type rule asks for two axes") };
        vec![Array::from_fn(&[t, x.shape[1]], |index| {
            let term = |j: usize| {
                let row = rows::row_of(x, position.at(&[index[0], j]));
                weight.at(&[index[0], j]) * row.map_or(0.0, |row| row[index[1]])
            };
            (0..k).map(term).sum()
        })]
    }

    /// To a row, its token's gradient times its weight; to a weight, the product of its row and its token's gradient.
    fn vjp(&self, cx: &mut Vjp<'_>) -> Shares {
        let [rows, position, weight] = cx.args();
        let (g, k) = (cx.grad(), cx.ty(position).shape[1].clone());
        let items = cx.ty(position).elements();
        let flat = cx.reshape(position, std::slice::from_ref(&items))?;
        let order = cx.op(Invert {}, &[flat])?;
        let g = cx.op(Dispatch { k }, &[g, order])?;

        let each = cx.reshape(weight, &[items, Dim::from(1)])?;
        let each = cx.op(Embedding {}, &[each, order])?;
        let each = cx.cast(each, cx.ty(rows).dtype)?;
        let of_rows = cx.mul(g, each)?;

        let [wide_rows, wide] = [cx.cast(rows, DType::F32)?, cx.cast(g, DType::F32)?];
        let products = cx.mul(wide_rows, wide)?;
        let products = cx.op(Sum { axis: 1 }, &[products])?;
        let of_weight = cx.op(Embedding {}, &[products, position])?;
        let shape = cx.ty(weight).shape;
        let of_weight = cx.reshape(of_weight, &shape)?;
        Ok(vec![Some(of_rows), None, Some(of_weight)])
    }

    fn lowering(&self) -> Lowering {
        Lowering::View
    }

    fn tile<'k>(&self, cx: &Cx<'k>, args: &[View<'k>], at: &Request<'k>) -> Result<Tile<'k>, LowerError> {
        let [rows, position, weight] = args else { unreachable!("operands were counted") };
        let token = rows::single(at.coords[0], "combine")?;
        let zero = cx.k.full([at.rows, at.cols], 0.0);
        let [sum] = rows::try_fold(cx.extent(&position.ty.shape[1]), [zero], |j, [sum]| {
            let item = Request::element(&[token, j]);
            let row = Coord::At(position.at(&item)?);
            Ok([sum + weight.at(&item)? * rows.at(&at.with_coords(vec![row, at.coords[1]]))?])
        })?;
        Ok(sum)
    }

    fn flops<N: Amount>(&self, args: &[&TensorType], _: &Type, size: &dyn Fn(&TensorType) -> N) -> N {
        N::from(2.0) * size(args[0])
    }
}
