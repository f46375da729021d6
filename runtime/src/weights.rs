//! From a checkpoint to the weights of a session: mapped where they lie, or gathered into one tensor.

use crate::checkpoint::{Checkpoint, CheckpointDType};
use crate::session::Weight;
use crate::tensor::Tensor;
use eva_ir::types::DType;
use std::ops::Deref;
use std::sync::Arc;

/// The compiler's name for an element type of a checkpoint; `None` for those that it has no name for.
pub fn dtype(of: CheckpointDType) -> Option<DType> {
    Some(match of {
        CheckpointDType::F64 => DType::F64,
        CheckpointDType::F32 => DType::F32,
        CheckpointDType::Bf16 => DType::Bf16,
        CheckpointDType::F16 => DType::F16,
        CheckpointDType::I64 => DType::I64,
        CheckpointDType::I32 => DType::I32,
        CheckpointDType::F8E4M3 => DType::F8E4M3,
        CheckpointDType::F8E5M2 => DType::F8E5M2,
        _ => return None,
    })
}

/// A part of a mapped file, which stays mapped as long as this lives.
struct Mapped {
    checkpoint: Arc<Checkpoint>,
    name: String,
}

impl Deref for Mapped {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.checkpoint.get(&self.name).map_or(&[], |tensor| tensor.bytes)
    }
}

/// A tensor of a checkpoint, where it lies; `None` if there is none of this name, or of no usable element type.
pub fn mapped(checkpoint: &Arc<Checkpoint>, name: &str) -> Option<Weight> {
    let tensor = checkpoint.get(name)?;
    let (dtype, shape) = (dtype(tensor.dtype)?, tensor.shape.to_vec());
    let bytes = Mapped { checkpoint: checkpoint.clone(), name: name.into() };
    Some(Weight { dtype, shape, bytes: Arc::new(bytes) })
}

/// Tensors of one shape and type, one after the other along a new first axis. The mapped pages are given back as they
/// are copied, so memory holds them once. `None` if a tensor is missing or differs from the first.
pub fn stacked(checkpoint: &Checkpoint, names: &[String]) -> Option<Weight> {
    let first = checkpoint.get(names.first()?)?;
    let (dtype, shape) = (dtype(first.dtype)?, [&[names.len()], first.shape].concat());
    let mut all = Tensor::zeros(dtype, &shape);
    let size = first.bytes.len();
    for (i, name) in names.iter().enumerate() {
        let tensor = checkpoint.get(name)?;
        if tensor.dtype != first.dtype || tensor.shape != first.shape {
            return None;
        }
        all.bytes_mut()[i * size..][..size].copy_from_slice(tensor.bytes);
        checkpoint.release(name);
    }
    Some(all.into())
}
