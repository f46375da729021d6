//! [`Weights`]: a scope that knows how its weights are stored.

use crate::prelude::*;

/// A [`Scope`] whose weights have the element types of a checkpoint.
#[derive(Clone)]
pub struct Weights<'a> {
    scope: Scope,
    stored: &'a dyn Fn(&str) -> DType,
    to: DType,
    blocks: [usize; 2],
}

impl<'a> Weights<'a> {
    /// The weights of `scope`, where `stored` says how the weight of a name (with the scope's path) is stored.
    pub fn new(scope: &Scope, stored: &'a dyn Fn(&str) -> DType) -> Self {
        Self { scope: scope.clone(), stored, to: F32, blocks: [128, 128] }
    }

    /// The same weights, those of 8 bits counting as numbers of type `to`, and with a scale for so many rows and columns:
    /// `f32` and 128 × 128 if this is not said.
    pub fn scaled(self, to: DType, blocks: [usize; 2]) -> Self {
        Self { to, blocks, ..self }
    }

    /// The weights in the scope `name` within this one.
    #[track_caller]
    pub fn at(&self, name: &str) -> Weights<'a> {
        Weights { scope: self.scope.scope(name), ..self.clone() }
    }

    /// The weight `name`. If it is stored as 8-bit floats, what they stand for: its last two axes have blocks that share a
    /// scale, and each of those before (experts) scales of its own.
    #[track_caller]
    pub fn get<D: Into<Dim>>(&self, name: &str, dims: impl IntoIterator<Item = D>) -> Tensor {
        let stored = (self.stored)(&self.scope.full_name(name));
        if !stored.is_f8() {
            return self.scope.weight(name, stored, dims);
        }
        let dims: Vec<Dim> = dims.into_iter().map(Into::into).collect();
        let block = |n: usize| match u32::try_from(n).unwrap_or(u32::MAX) {
            0 | 1 => Block::Each,
            n => Block::Of(n),
        };
        let first = dims.len().saturating_sub(2);
        let blocks = (0..dims.len()).map(|axis| match axis.checked_sub(first) {
            Some(i) => block(self.blocks[i]),
            None => Block::Each,
        });
        let scales = Scales::new(blocks);
        self.scope.weight_scaled(name, stored, dims, scales).dequantize(self.to)
    }

    /// A projection of `x` to `out` columns with the weights `weight` and, if there is a `bias`, `bias`.
    #[track_caller]
    pub fn linear(&self, x: &Tensor, out: &Dim, bias: bool) -> Tensor {
        let y = x.linear(&self.get("weight", [out, &x.dim(-1)]));
        if bias { y + self.get("bias", [out]).cast(x.dtype()) } else { y }
    }

    /// The scope, for state, inputs and calls.
    pub fn scope(&self) -> &Scope {
        &self.scope
    }
}
