//! `label_count`: how many tokens a loss is the mean over.

use super::check;
use super::rows::{Walk, keep};
use crate::dim::Dim;
use crate::eval::{Array, Sizes};
use crate::kernel::Elem;
use crate::lower::{Cx, LowerError, Lowering, Request, View};
use crate::op::{OpDef, TypeError, op};
use crate::types::{DType, TensorType, Type};

op! {
    /// `f32[]`: how many of `labels[n]` are in `0 .. classes`, at least 1.
    "label_count" => LabelCount(labels) {
        /// The number of classes.
        classes: Dim,
    }
}

impl OpDef for LabelCount {
    fn infer(&self, args: &[&TensorType]) -> Result<Type, TypeError> {
        check::ints("label_count", "labels", args[0], 0)?;
        check::axes("labels", "[n]", args[0], 0, false)?;
        Ok(TensorType::new(DType::F32, []).into())
    }

    fn eval(&self, sizes: &Sizes, args: &[&Array]) -> Vec<Array> {
        let classes = sizes.of(&self.classes) as f64;
        let count = args[0].data.iter().filter(|&&label| label >= 0.0 && label < classes).count();
        vec![Array::new(&[], vec![count.max(1) as f64])]
    }

    fn lowering(&self) -> Lowering {
        Lowering::Kernel
    }

    /// One program.
    fn kernel<'k>(&self, cx: &Cx<'k>, args: &[View<'k>]) -> Result<(), LowerError> {
        let (walk, zero) = (Walk::over(cx, &args[0].ty.shape[0]), cx.k.int(0));
        let classes = cx.extent(&self.classes);
        let [count] = walk.fold([cx.k.float(0.0)], |first, counted, [count]| {
            let labels = args[0].at(&Request::row(&[], first, walk.cols))?;
            let valid = zero.le(labels).and(labels.lt(classes)).cast(Elem::I64).cast(Elem::F32);
            Ok([count + keep(counted, valid, 0.0).sum_along(1)])
        })?;
        cx.emit(&Request::element(&[]), count.max(cx.k.float(1.0)))
    }
}
