//! `count_by_expert`: how many items each expert gets.

use super::{check, rows};
use crate::dim::Dim;
use crate::eval::{Array, Sizes};
use crate::kernel::Elem;
use crate::lower::{Cx, LowerError, Lowering, Request, View};
use crate::op::{OpDef, TypeError, op};
use crate::types::{DType, TensorType, Type};

op! {
    /// `f32[…, experts]`: how many of the items `expert[…, t, k]` name each expert, for each index of the axes before
    /// the last two. Items that name none are not counted.
    "count_by_expert" => CountByExpert(expert) {
        /// The number of experts.
        experts: Dim,
    }
}

impl OpDef for CountByExpert {
    fn infer(&self, args: &[&TensorType]) -> Result<Type, TypeError> {
        check::ints("count_by_expert", "experts", args[0], 0)?;
        check::axes("experts", "[t, k]", args[0], 0, true)?;
        let leading = args[0].shape[..args[0].rank() - 2].iter().cloned();
        Ok(TensorType::new(DType::F32, leading.chain([self.experts.clone()])).into())
    }

    fn eval(&self, sizes: &Sizes, args: &[&Array]) -> Vec<Array> {
        let (x, experts) = (args[0], sizes.of(&self.experts));
        let (leading, items) = x.shape.split_at(x.rank() - 2);
        let n = items.iter().product::<usize>();
        let lists = leading.iter().product::<usize>();
        let count = |i: usize| {
            let list = &x.data[i / experts * n..][..n];
            list.iter().filter(|&&e| e == (i % experts) as f64).count() as f64
        };
        let shape = [leading, &[experts]].concat();
        vec![Array::new(&shape, (0..lists * experts).map(count).collect())]
    }

    fn lowering(&self) -> Lowering {
        Lowering::Kernel
    }

    /// One program for each list of items and each block of experts.
    fn kernel<'k>(&self, cx: &Cx<'k>, args: &[View<'k>]) -> Result<(), LowerError> {
        let (leading, items) = args[0].ty.shape.split_at(args[0].ty.rank() - 2);
        let cols = cx.size(&self.experts).unwrap_or(usize::MAX).clamp(1, cx.schedule.block);
        let index = cx.programs(leading);
        let first = cx.program_tile(&self.experts, cols);
        let expert = cx.k.iota(1, cols) + first;
        let [t, k] = [0, 1].map(|i| cx.extent(&items[i]));
        let [count] = rows::try_fold(t * k, [cx.k.full([1, cols], 0.0)], |item, [count]| {
            let mut at = index.clone();
            at.extend([item / k, item % k]);
            let here = args[0].at(&Request::element(&at))?;
            Ok([count + expert.equals(here).cast(Elem::I64).cast(Elem::F32)])
        })?;
        cx.emit(&Request::row(&index, first, cols), count)
    }
}
