//! The scales of a tensor of 8-bit floats in memory.

use super::{BufView, reshape_strides, row_major_strides};
use crate::dim::Dim;
use crate::kernel::ScaledAxis;
use crate::scales::Block;
use crate::types::TensorType;

/// Where the scales of a [`BufView`]'s elements are, however it is cut and reshaped: see [`crate::kernel::Scaled`], whose
/// formula this is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ScalesView {
    /// The tensor of all scales.
    pub by: BufView,
    /// Where the first scale is, in elements.
    pub offset: Dim,
    /// One entry for each axis with blocks; before them one, with blocks of 1, for all whose indices have scales of their own.
    pub along: Vec<ScaledAxis>,
}

impl ScalesView {
    /// The scales of a whole tensor of type `ty`, which are in `by`: a tensor of as many axes, in any order in memory.
    pub fn new(ty: &TensorType, by: BufView) -> Self {
        let zeros = || vec![Dim::from(0); ty.rank()];
        let mut each = zeros();
        let mut along = Vec::new();
        for axis in 0..ty.rank() {
            let stride = by.strides[axis].clone();
            match ty.block(axis) {
                Some(Block::Each) => each[axis] = stride,
                Some(Block::Of(n)) => {
                    let mut steps = zeros();
                    steps[axis] = Dim::from(1);
                    along.push(ScaledAxis { block: i64::from(n), from: Dim::from(0), steps, stride });
                }
                Some(Block::Whole) | None => {}
            }
        }
        let from = || Dim::from(0);
        along.insert(0, ScaledAxis { block: 1, from: from(), steps: each, stride: Dim::from(1) });
        Self { by, offset: Dim::from(0), along }
    }

    /// The scales where a slice along `axis` begins at `start`.
    pub fn slice(&mut self, axis: usize, start: &Dim) {
        for along in &mut self.along {
            along.from = &along.from + &(&along.steps[axis] * start);
        }
    }

    /// [`BufView::merge`], of the scales of a tensor of `shape`.
    pub(super) fn merge(&self, shape: &[Dim], groups: &[usize]) -> Option<Self> {
        let steps = |steps: &[Dim]| Some(linear(shape, steps).merge(groups)?.strides);
        self.with_steps(&steps)
    }

    /// [`BufView::reshape`], of the scales of a tensor of extents `old`.
    pub(super) fn reshape(&self, old: &[Dim], new: &[Dim]) -> Option<Self> {
        self.with_steps(&|steps| reshape_strides(old, steps, new))
    }

    fn with_steps(&self, change: &dyn Fn(&[Dim]) -> Option<Vec<Dim>>) -> Option<Self> {
        let along =
            self.along.iter().map(|along| Some(ScaledAxis { steps: change(&along.steps)?, ..along.clone() }));
        Some(Self { along: along.collect::<Option<_>>()?, ..self.clone() })
    }

    /// The scales as a tensor of the shape `shape` that the scales of type `ty` have; `None` where blocks are not whole.
    pub fn tensor(&self, ty: &TensorType, shape: &[Dim]) -> Option<BufView> {
        let (each, blocked) = self.along.split_first()?;
        let mut offset = &self.offset + &each.from;
        let mut strides = each.steps.clone();
        let zero = Dim::from(0);
        for along in blocked {
            // A slice of blocks begins with one.
            let first = along
                .from
                .terms()
                .all(|(_, n)| n % along.block == 0)
                .then(|| along.from.divided(along.block))?;
            offset = offset + first * along.stride.clone();
            for (axis, step) in along.steps.iter().enumerate().filter(|(_, step)| **step != zero) {
                strides[axis] = match ty.block(axis)? {
                    Block::Of(n) if i64::from(n) == along.block && *step == Dim::from(1) => {
                        along.stride.clone()
                    }
                    Block::Each if step.terms().all(|(_, n)| n % along.block == 0) => {
                        step.divided(along.block) * along.stride.clone()
                    }
                    _ => return None,
                };
            }
        }
        Some(BufView { shape: shape.to_vec(), strides, offset, ..self.by.clone() })
    }
}

impl BufView {
    /// The elements of 8 bits without their scales.
    pub fn codes(&self) -> BufView {
        BufView { scales: None, ..self.clone() }
    }

    /// The tensor that a value of type `ty` with scales is, in allocations `codes` and `scales`: its elements row-major, its
    /// scales (`shape` of them along each axis) too, or with `blocked_first` those of blocked axes outermost, so that the
    /// scales of neighbouring rows are neighbours.
    pub fn with_scales(
        mut self,
        ty: &TensorType,
        base: usize,
        shape: &[Dim],
        blocked_first: bool,
    ) -> BufView {
        let Some(scales) = &ty.scales else { return self };
        let name = format!("{}{}", self.name, SCALES);
        let mut by = BufView::row_major(base, &name, scales.encoding.dtype(), shape);
        if blocked_first {
            let is_each = |axis: &usize| scales.blocks[*axis] == Block::Each;
            let mut order: Vec<usize> = (0..shape.len()).collect();
            order.sort_by_key(is_each);
            let ordered: Vec<Dim> = order.iter().map(|&axis| shape[axis].clone()).collect();
            for (&axis, stride) in order.iter().zip(row_major_strides(&ordered)) {
                by.strides[axis] = stride;
            }
        }
        self.scales = Some(Box::new(ScalesView::new(ty, by)));
        self
    }
}

/// What follows the name of a tensor in the name of its scales, as in checkpoints of DeepSeek's (where it is what elements
/// are multiplied with, despite its name).
pub const SCALES: &str = "_scale_inv";

/// A view with these extents and strides, to compute with.
fn linear(shape: &[Dim], strides: &[Dim]) -> BufView {
    let view = BufView::row_major(0, "", crate::types::DType::F32, shape);
    BufView { strides: strides.to_vec(), ..view }
}
