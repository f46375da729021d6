//! What sessions check, and say about memory.

#[cfg(feature = "cuda")]
use crate::cuda;
use crate::error::Error;
use crate::exec::Executable;
use crate::weights::Weight;
use eva_ir::dim::{Dim, Sym};
use eva_ir::types::{DType, TensorType};
use std::collections::HashMap;
use std::sync::Arc;

/// Bytes of weights.
pub(crate) fn bytes(weights: &[Option<Arc<Weight>>]) -> usize {
    weights.iter().flatten().map(|weight| weight.bytes()).sum()
}

/// An error; one about memory with what else is there: weights, and bytes of caches.
pub(crate) fn with_numbers(error: Error, weights: &[Option<Arc<Weight>>], caches: usize) -> Error {
    match error {
        #[cfg(feature = "cuda")]
        Error::Cuda(e) => {
            let have = cuda::Need { weights: bytes(weights), caches, ..cuda::Need::default() };
            Error::Cuda(cuda::with_numbers(e, have))
        }
        error => {
            let _ = (weights, caches);
            error
        }
    }
}

/// The extents whose values the module fixes.
pub(crate) fn fixed(exe: &Executable) -> HashMap<Sym, i64> {
    exe.plan().dims.iter().filter_map(|(sym, n)| Some((sym.clone(), (*n)?))).collect()
}

/// Checks a tensor against a parameter's type.
pub(crate) fn check(
    name: &str,
    ty: &TensorType,
    dtype: DType,
    shape: &[usize],
    env: &HashMap<Sym, i64>,
) -> Result<(), Error> {
    let value = |dim: &Dim| dim.eval(&|sym| env.get(sym).copied());
    let fits = ty.dtype == dtype
        && ty.rank() == shape.len()
        && ty.shape.iter().zip(shape).all(|(dim, &n)| value(dim) == Some(n as i64));
    if fits {
        return Ok(());
    }
    let extents = |dim: &Dim| value(dim).map_or(dim.to_string(), |n| n.to_string());
    let want: Vec<String> = ty.shape.iter().map(extents).collect();
    let have: Vec<String> = shape.iter().map(usize::to_string).collect();
    Err(Error::Shape {
        name: name.into(),
        want: format!("{}[{}]", ty.dtype, want.join(", ")),
        have: format!("{dtype}[{}]", have.join(", ")),
    })
}
