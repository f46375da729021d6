//! Questions that several type rules ask.

use crate::attr::Word;
use crate::dim::Dim;
use crate::op::TypeError;
use crate::types::{DType, TensorType};

/// Operand `i`, called `what`, must have integers.
pub fn ints(op: &str, what: &str, ty: &TensorType, i: usize) -> Result<(), TypeError> {
    if ty.dtype.is_int() {
        return Ok(());
    }
    Err(TypeError::new(format!("`{op}` takes integers for the {what}, not {ty}")).at(i))
}

/// Operand `i`, called `what`, must have `f32` elements.
pub fn f32s(op: &str, what: &str, ty: &TensorType, i: usize) -> Result<(), TypeError> {
    if ty.dtype == DType::F32 {
        return Ok(());
    }
    let error = TypeError::new(format!("`{op}` takes f32 for the {what}, not {ty}")).at(i);
    Err(if ty.dtype.is_f8() {
        error.help("dequantize it first")
    } else {
        error.help("cast it first: `.cast(F32)`")
    })
}

/// Operand `i`, called `what`, must have elements that are whole without scales.
pub fn unscaled(op: &str, what: &str, ty: &TensorType, i: usize) -> Result<(), TypeError> {
    if ty.dtype.is_f8() || ty.scales.is_some() {
        let error = TypeError::new(format!("`{op}` takes no scales, but the {what} is {ty}")).at(i);
        return Err(error.help("dequantize it first"));
    }
    Ok(())
}

/// Operand `i`, called `what`, must have axes like `pattern` (such as `[t, m]`): as many, or with `more`, as many at least.
pub fn axes(what: &str, pattern: &str, ty: &TensorType, i: usize, more: bool) -> Result<(), TypeError> {
    let want = pattern.matches(',').count() + 1 - pattern.contains("...") as usize;
    if ty.rank() == want || (more && ty.rank() > want) {
        return Ok(());
    }
    Err(TypeError::new(format!("the {what} {ty} should have the axes {pattern}")).at(i))
}

/// Operand `i`, called `what`, must be where the rows of each expert begin, and the last one's end: `i32[e + 1]`.
pub fn offsets(what: &str, ty: &TensorType, i: usize) -> Result<(), TypeError> {
    axes(what, "[e + 1]", ty, i, false)?;
    if ty.dtype == DType::I32 {
        return Ok(());
    }
    Err(TypeError::new(format!("the offsets must be i32, not {ty}")).at(i))
}

/// An extent of operand `i` must be `want`, which is what `why` is about.
pub fn extent(have: &Dim, want: &Dim, i: usize, why: &str) -> Result<(), TypeError> {
    if have == want {
        return Ok(());
    }
    Err(TypeError::new(format!("{why} is {want}, but here it is {have}")).at(i))
}

/// Two operands must have the same elements.
pub fn same_dtype(what: [&str; 2], a: &TensorType, b: &TensorType, i: usize) -> Result<(), TypeError> {
    if a.dtype == b.dtype {
        return Ok(());
    }
    let message = format!("the {} has {} elements but the {} {}", what[0], a.dtype, what[1], b.dtype);
    Err(TypeError::new(message)
        .at(i)
        .help(format!("cast one of them: `.cast({})`", a.dtype.name().to_uppercase())))
}

/// How the columns of a rotary embedding are paired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pairs {
    /// Column `2i` with `2i + 1`.
    Interleaved,
    /// Column `i` with `i + p/2`.
    Halves,
}

impl Pairs {
    /// The pairing with this name.
    pub fn named(word: &Word) -> Result<Self, TypeError> {
        match word.as_str() {
            "interleaved" => Ok(Self::Interleaved),
            "halves" => Ok(Self::Halves),
            other => Err(TypeError::new(format!("`pairs` is `interleaved` or `halves`, not `{other}`"))),
        }
    }

    /// The partner of `column` among `width`.
    pub fn partner(self, column: usize, width: usize) -> usize {
        match self {
            Self::Interleaved => column ^ 1,
            Self::Halves => (column + width / 2) % width,
        }
    }

    /// Which pair `column` is in, and whether it is the pair's first.
    pub fn pair(self, column: usize, width: usize) -> (usize, bool) {
        match self {
            Self::Interleaved => (column / 2, column.is_multiple_of(2)),
            Self::Halves => (column % (width / 2), column < width / 2),
        }
    }
}

/// The number of rotary columns must be even, where it is known.
pub fn even(width: &Dim) -> Result<(), TypeError> {
    match width.as_const() {
        Some(n) if n < 2 || n % 2 != 0 => {
            Err(TypeError::new(format!("rotary columns come in pairs, but there are {width}")))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_counted() {
        let ty = |n: i64| TensorType::new(DType::F32, (0..n).map(Dim::from));
        assert!(axes("x", "[b]", &ty(1), 0, false).is_ok());
        assert!(axes("x", "[b, s, ...]", &ty(2), 0, true).is_ok());
        assert!(axes("x", "[b, s, ...]", &ty(1), 0, true).is_err());
        assert!(axes("x", "[b, s]", &ty(3), 0, false).is_err());
    }
}
