//! How large types may be: far beyond any model, and small enough that no module makes the compiler slow.
//!
//! Extents are polynomials, and multiplying long ones takes time and memory that grow with the *product*
//! of their lengths; so their lengths are bounded before anything multiplies them.

use crate::dim::Dim;

/// Axes of one tensor.
pub const RANK: usize = 16;
/// Terms of one extent.
pub const TERMS: usize = 16;
/// Symbols and numbers in one extent.
pub const FACTORS: usize = 64;
/// Terms of the product of one tensor's extents, before like ones are added.
pub const SHAPE_TERMS: usize = 256;
/// Bodies of one function beside its own.
pub const ALTERNATIVES: usize = 16;
/// Terms of the polynomials of one estimate.
pub const ESTIMATE: usize = 1024;
/// Operands of one op.
pub const OPERANDS: usize = 1024;

/// Whether an extent is short enough, and its numbers fit.
pub fn check_dim(dim: &Dim) -> Result<(), String> {
    let (mut terms, mut factors) = (0, 0);
    for (syms, n) in dim.terms() {
        terms += 1;
        factors += syms.len() + 1;
        if matches!(n, i64::MIN | i64::MAX) {
            return Err("the numbers of this extent are out of range".into());
        }
    }
    if terms > TERMS || factors > FACTORS {
        return Err(format!("an extent has at most {TERMS} terms and {FACTORS} factors"));
    }
    Ok(())
}

/// Whether a tensor with these extents is small enough to reason about; nothing is said of its bytes.
pub fn check_shape(shape: &[Dim]) -> Result<(), String> {
    if shape.len() > RANK {
        return Err(format!("{} axes are too many: at most {RANK}", shape.len()));
    }
    shape.iter().try_for_each(check_dim)?;
    let terms = shape.iter().map(|dim| dim.terms().count().max(1));
    if terms.fold(1, usize::saturating_mul) > SHAPE_TERMS {
        return Err(format!("the product of these extents has more than {SHAPE_TERMS} terms"));
    }
    Ok(())
}
