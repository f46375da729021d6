//! Scales of a product's operands, in the lane phase.

use super::{Mem, Reg};

/// The scales of an operand of [`Micro`](super::Micro), whose elements are 8-bit floats.
///
/// The scale of element `(i, k)` of the operand is the element of a buffer of `F32` or `E8M0` with the number
/// `first.index + Σ stride · floor((place + x) / block)`: the sum is over `rows`, where `x` is `i`, and `terms`, where it
/// is `k`. Scales of elements that are not multiplied are not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MicroScales {
    /// The scale of places 0.
    pub first: Mem,
    /// How scales follow the operand's rows.
    pub rows: MicroRun,
    /// How scales follow the terms of the sums.
    pub terms: MicroRun,
}

/// Neighbours that share scales; see [`MicroScales`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MicroRun {
    /// The place of element 0 on the axis that is cut into blocks: an `i64` scalar, at least 0.
    pub place: Reg,
    /// How many neighbours share a scale, at least 1.
    pub block: i64,
    /// The distance of neighbouring scales, in elements: an `i64` scalar; 0 where all elements share one.
    pub stride: Reg,
}
