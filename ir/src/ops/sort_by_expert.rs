//! `sort_by_expert`: the rows that each expert gets.

use super::check;
use crate::dim::Dim;
use crate::eval::{Array, Sizes};
use crate::lower::Lowering;
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
}
