//! What DSL methods take and give: ranges, lists of tensors.

use super::tensor::Tensor;
use eva_ir::attr::Range;
use eva_ir::dim::Dim;
use std::ops::{RangeFrom, RangeFull, RangeTo};

/// Positions along an axis: `0..64`, `..&n`, `&n..`, `..`.
pub trait SliceRange {
    /// The positions, where the axis is `extent` long.
    fn positions(self, extent: &Dim) -> Range;
}

impl<D: Into<Dim>> SliceRange for std::ops::Range<D> {
    fn positions(self, _: &Dim) -> Range {
        Range { start: self.start.into(), end: self.end.into() }
    }
}

impl<D: Into<Dim>> SliceRange for RangeTo<D> {
    fn positions(self, _: &Dim) -> Range {
        Range { start: Dim::from(0), end: self.end.into() }
    }
}

impl<D: Into<Dim>> SliceRange for RangeFrom<D> {
    fn positions(self, extent: &Dim) -> Range {
        Range { start: self.start.into(), end: extent.clone() }
    }
}

impl SliceRange for RangeFull {
    fn positions(self, extent: &Dim) -> Range {
        Range { start: Dim::from(0), end: extent.clone() }
    }
}

/// One tensor or several: `&x`, `[&x, &y]`, a slice, or `[]`.
pub trait Operands {
    /// Handles of the tensors, in order.
    fn tensors(&self) -> Vec<Tensor>;
}

impl Operands for &Tensor {
    fn tensors(&self) -> Vec<Tensor> {
        vec![(*self).clone()]
    }
}

impl<const N: usize> Operands for [&Tensor; N] {
    fn tensors(&self) -> Vec<Tensor> {
        self.iter().map(|&x| x.clone()).collect()
    }
}

impl<const N: usize> Operands for &[&Tensor; N] {
    fn tensors(&self) -> Vec<Tensor> {
        self.iter().map(|&x| x.clone()).collect()
    }
}

impl Operands for &[&Tensor] {
    fn tensors(&self) -> Vec<Tensor> {
        self.iter().map(|&x| x.clone()).collect()
    }
}

/// What a function of a program may give: a tensor, a tuple, an array or a `Vec` of tensors, or `()` for one that only
/// updates state. A call of the function gives the same.
#[diagnostic::on_unimplemented(
    message = "a function of a program gives tensors, not `{Self}`",
    note = "give a `Tensor`, a tuple or array of them, or a `Vec<Tensor>`"
)]
pub trait Results: Sized {
    /// Handles of the tensors, in order.
    fn tensors(&self) -> Vec<Tensor>;
    /// The same arrangement of other tensors, of which there are as many.
    fn rebuild(tensors: &mut dyn Iterator<Item = Tensor>) -> Self;
}

/// The next of as many tensors as the function gave.
fn next(tensors: &mut dyn Iterator<Item = Tensor>) -> Tensor {
    tensors.next().expect("a call has as many results as the function")
}

impl Results for () {
    fn tensors(&self) -> Vec<Tensor> {
        Vec::new()
    }
    fn rebuild(_: &mut dyn Iterator<Item = Tensor>) -> Self {}
}

impl Results for Tensor {
    fn tensors(&self) -> Vec<Tensor> {
        vec![self.clone()]
    }
    fn rebuild(tensors: &mut dyn Iterator<Item = Tensor>) -> Self {
        next(tensors)
    }
}

impl<const N: usize> Results for [Tensor; N] {
    fn tensors(&self) -> Vec<Tensor> {
        self.to_vec()
    }
    fn rebuild(tensors: &mut dyn Iterator<Item = Tensor>) -> Self {
        std::array::from_fn(|_| next(tensors))
    }
}

impl Results for Vec<Tensor> {
    fn tensors(&self) -> Vec<Tensor> {
        self.clone()
    }
    fn rebuild(tensors: &mut dyn Iterator<Item = Tensor>) -> Self {
        tensors.collect()
    }
}

macro_rules! tuples {
    ($(($($T:ident $x:ident),*)),*) => {$(
        impl<$($T: One),*> Results for ($($T,)*) {
            fn tensors(&self) -> Vec<Tensor> {
                let ($($x,)*) = self;
                vec![$($x.tensor()),*]
            }
            fn rebuild(tensors: &mut dyn Iterator<Item = Tensor>) -> Self {
                ($($T::from_tensor(next(tensors)),)*)
            }
        }
    )*};
}

/// A member of a tuple of results.
pub trait One {
    /// A handle of the tensor.
    fn tensor(&self) -> Tensor;
    /// The member that is this tensor.
    fn from_tensor(tensor: Tensor) -> Self;
}

impl One for Tensor {
    fn tensor(&self) -> Tensor {
        self.clone()
    }
    fn from_tensor(tensor: Tensor) -> Self {
        tensor
    }
}

tuples!((A a, B b), (A a, B b, C c), (A a, B b, C c, D d));
