//! `reshape`: the same elements in the same order, with other extents.

use crate::attr::Dims;
use crate::dim::Dim;
use crate::eval::{Array, Sizes};
use crate::lower::{BufView, Lowering};
use crate::op::{OpDef, TypeError, op};
use crate::scales;
use crate::types::{TensorType, Type};
use crate::vjp::{Shares, Vjp};

op! {
    /// The same elements in the same (row-major) order, with other extents.
    "reshape" => Reshape(x) {
        /// The new extents, whose product is that of the old.
        shape: Dims,
    }
}

impl OpDef for Reshape {
    fn infer(&self, args: &[&TensorType]) -> Result<Type, TypeError> {
        let (old, new) = (args[0].elements(), Dim::product(&self.shape.0));
        if old != new {
            let out = args[0].with_shape(self.shape.0.clone());
            return Err(TypeError::new(format!("{} has {old} elements but {out} has {new}", args[0])).at(0));
        }
        if args[0].scales.is_some() {
            return scales::reshape(args[0], &self.shape.0).map(Type::from);
        }
        Ok(args[0].with_shape(self.shape.0.clone()).into())
    }

    fn eval(&self, sizes: &Sizes, args: &[&Array]) -> Vec<Array> {
        let shape: Vec<usize> = self.shape.0.iter().map(|d| sizes.of(d)).collect();
        vec![Array::new(&shape, args[0].data.clone())]
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> Shares {
        let [x] = cx.args();
        let (g, shape) = (cx.grad(), cx.ty(x).shape);
        Ok(vec![Some(cx.reshape(g, &shape)?)])
    }

    fn lowering(&self) -> Lowering {
        Lowering::Alias
    }

    fn alias(&self, arg: &BufView) -> Option<BufView> {
        arg.reshape(&self.shape.0)
    }
}
