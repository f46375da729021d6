//! Buffers and private memory while a kernel runs, and who has touched what.

use super::Fault;
use super::arith::round;
use crate::types::DType;

/// An allocation. Several buffers of a kernel may lie in the same one.
#[derive(Clone, Debug, PartialEq)]
pub struct Storage {
    /// The type of its elements; that of every buffer in it.
    pub dtype: DType,
    /// The elements. Integers are exact up to 2⁵³.
    pub data: Vec<f64>,
}

impl Storage {
    /// An allocation with these elements, as far as `dtype` can hold them: floats narrower than `f32` are
    /// rounded to nearest.
    pub fn new(dtype: DType, data: impl IntoIterator<Item = f64>) -> Self {
        Self { dtype, data: data.into_iter().map(|x| round(x, dtype)).collect() }
    }

    /// An allocation of `len` elements that nobody has written: NaN, so that a result is seen to have gaps.
    pub fn unwritten(dtype: DType, len: usize) -> Self {
        Self { dtype, data: vec![f64::NAN; len] }
    }
}

/// No program.
const NOBODY: u32 = 0;
/// More than one program.
const SEVERAL: u32 = u32::MAX;
/// The most programs that can be told apart.
pub(super) const MAX_PROGRAMS: u64 = SEVERAL as u64 - 1;

/// Which programs have read and written each element of an allocation; programs count from 1.
pub(super) struct Marks {
    readers: Vec<u32>,
    writers: Vec<u32>,
}

impl Marks {
    pub(super) fn new(len: usize) -> Self {
        Self { readers: vec![NOBODY; len], writers: vec![NOBODY; len] }
    }

    /// Whether no other program has written the element.
    pub(super) fn read(&mut self, index: usize, program: u32) -> bool {
        let reader = &mut self.readers[index];
        *reader = if *reader == NOBODY || *reader == program { program } else { SEVERAL };
        [NOBODY, program].contains(&self.writers[index])
    }

    /// Whether no other program has read or written the element.
    pub(super) fn write(&mut self, index: usize, program: u32) -> bool {
        let alone = [NOBODY, program].contains(&self.writers[index])
            && [NOBODY, program].contains(&self.readers[index]);
        self.writers[index] = program;
        alone
    }
}

/// One program's private memory.
pub(super) struct Private {
    /// The elements' bits; see [`super::exec`].
    pub(super) words: Vec<u64>,
    /// Whether the program has written them.
    pub(super) written: Vec<bool>,
}

impl Private {
    pub(super) fn new(len: usize) -> Self {
        Self { words: vec![0; len], written: vec![false; len] }
    }
}

/// The element of an integer buffer, which must hold an integer.
pub(super) fn int_from(x: f64, dtype: DType) -> Result<i64, Fault> {
    let exact = x.fract() == 0.0 && x.abs() <= (1u64 << f64::MANTISSA_DIGITS) as f64;
    if exact { Ok(x as i64) } else { Err(Fault::Unrepresentable { value: x.to_string(), dtype }) }
}

/// What an integer buffer holds after `n` is stored.
pub(super) fn int_into(n: i64, dtype: DType) -> Result<f64, Fault> {
    let fits = match dtype {
        DType::I32 => i32::try_from(n).is_ok(),
        _ => n.unsigned_abs() <= 1 << f64::MANTISSA_DIGITS,
    };
    if fits { Ok(n as f64) } else { Err(Fault::Unrepresentable { value: n.to_string(), dtype }) }
}
