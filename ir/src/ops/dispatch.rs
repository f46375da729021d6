//! `dispatch`: each token's row once for each of its experts.

use super::{check, rows};
use crate::dim::Dim;
use crate::eval::{Array, Sizes};
use crate::kernel::build::Tile;
use crate::lower::{Coord, Cx, LowerError, Lowering, Request, View};
use crate::op::{OpDef, TypeError, op};
use crate::poly::Amount;
use crate::types::{TensorType, Type};

op! {
    /// Row `g` is `x[order[g] / k]`: the rows of `x[t, m]` in the order of `sort_by_expert`.
    "dispatch" => Dispatch(x, order) {
        /// How many experts each token has.
        k: Dim,
    }
}

impl OpDef for Dispatch {
    fn infer(&self, args: &[&TensorType]) -> Result<Type, TypeError> {
        let [x, order] = args else { unreachable!("operands were counted") };
        check::unscaled("dispatch", "input", x, 0)?;
        check::axes("input", "[t, m]", x, 0, false)?;
        check::ints("dispatch", "order", order, 1)?;
        check::axes("order", "[t*k]", order, 1, false)?;
        let why = format!("the number of items, {} for each of {} rows,", self.k, x.shape[0]);
        check::extent(&order.shape[0], &(&x.shape[0] * &self.k), 1, &why)?;
        Ok(x.with_shape([order.shape[0].clone(), x.shape[1].clone()]).into())
    }

    fn eval(&self, sizes: &Sizes, args: &[&Array]) -> Vec<Array> {
        let [x, order] = args else { unreachable!("operands were counted") };
        let k = sizes.of(&self.k) as f64;
        vec![Array::from_fn(&[order.data.len(), x.shape[1]], |index| {
            rows::row_of(x, (order.data[index[0]] / k).floor()).map_or(0.0, |row| row[index[1]])
        })]
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
        let place = rows::single(at.coords[0], "dispatch")?;
        let token = order.at(&Request::element(&[place]))? / cx.extent(&self.k);
        x.at(&at.with_coords(vec![Coord::At(token), at.coords[1]]))
    }
}
