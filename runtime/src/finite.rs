//! Whether what kernels have written are numbers: for finding the op that made the first NaN or infinity.

use crate::error::Error;
use crate::tensor::numbers;
use eva_ir::dim::{Dim, Sym};
use eva_ir::kernel::{Access, BufData, Kernel};
use std::collections::HashMap;

/// A written element that is NaN or infinite.
#[derive(Clone, Debug, PartialEq)]
pub struct NotFinite {
    /// The op, and the function that it is in: `@layer.q`.
    pub op: String,
    /// The calls that led there, the outermost first.
    pub calls: Vec<String>,
    /// Where it is in the op's result, along each axis that the kernel has.
    pub index: Vec<i64>,
    /// What it is.
    pub value: f64,
    /// How many elements of the result are NaN or infinite.
    pub count: usize,
    /// How many there are.
    pub elements: usize,
}

impl std::fmt::Display for NotFinite {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let Self { op, calls, index, value, count, elements } = self;
        write!(f, "`{op}`")?;
        if !calls.is_empty() {
            write!(f, " (in {})", calls.join(", "))?;
        }
        write!(f, " is {value} at {index:?}: {count} of its {elements} elements are no finite numbers")
    }
}

/// Checks what a kernel has written: `read` gives the bytes of a buffer from the first element that it has on, given how
/// many. The kernel's symbols have the values `syms`.
pub(crate) fn check(
    kernel: &Kernel,
    syms: &[i64],
    name: &str,
    read: &mut dyn FnMut(usize, i64, usize) -> Result<Vec<u8>, Error>,
) -> Result<(), Error> {
    let values: HashMap<Sym, i64> = kernel.syms().into_iter().zip(syms.iter().copied()).collect();
    let value = |dim: &Dim| {
        let known = dim.eval(&|sym| values.get(sym).copied());
        known.ok_or_else(|| Error::Internal(format!("the extent `{dim}` has no value")))
    };
    for (number, (_, buf)) in kernel.bufs.iter().enumerate() {
        if buf.access != Access::Write || buf.dtype.is_int() {
            continue;
        }
        if let Some(found) = find(buf, &value, &mut |from, bytes| read(number, from, bytes))? {
            return Err(Error::NotFinite(Box::new(NotFinite { op: format!("@{name}"), ..found })));
        }
    }
    Ok(())
}

/// The first element of a buffer that is no finite number.
fn find(
    buf: &BufData,
    value: &dyn Fn(&Dim) -> Result<i64, Error>,
    read: &mut dyn FnMut(i64, usize) -> Result<Vec<u8>, Error>,
) -> Result<Option<NotFinite>, Error> {
    let shape: Vec<i64> = buf.shape.iter().map(value).collect::<Result<_, _>>()?;
    let strides: Vec<i64> = buf.strides.iter().map(value).collect::<Result<_, _>>()?;
    let size = buf.dtype.bytes();
    let (rows, cols) = match shape.split_last() {
        Some((&cols, rows)) => (rows.to_vec(), cols),
        None => (Vec::new(), 1),
    };
    let step = strides.last().copied().unwrap_or(1);
    let mut found: Option<NotFinite> = None;
    let count: i64 = rows.iter().product();
    if cols <= 0 || step < 0 {
        return Ok(None);
    }
    for row in 0..count.max(0) {
        let (mut at, mut left, mut index) = (value(&buf.offset)?, row, vec![0; rows.len()]);
        for (axis, &extent) in rows.iter().enumerate().rev() {
            index[axis] = left % extent;
            at += index[axis] * strides[axis];
            left /= extent;
        }
        let bytes = read(at * size, (((cols - 1) * step + 1) * size) as usize)?;
        let all = numbers(buf.dtype, &bytes);
        for (col, x) in all.iter().step_by((step as usize).max(1)).enumerate().filter(|(_, x)| !x.is_finite())
        {
            let found = found.get_or_insert_with(|| NotFinite {
                op: String::new(),
                calls: Vec::new(),
                index: index.iter().copied().chain([col as i64]).take(shape.len()).collect(),
                value: *x,
                count: 0,
                elements: shape.iter().product::<i64>() as usize,
            });
            found.count += 1;
        }
    }
    Ok(found)
}
