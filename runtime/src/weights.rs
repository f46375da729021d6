//! [`Weight`]: a tensor that a session is made with; and from a checkpoint to those: mapped where they lie, gathered
//! into one tensor, or copied to a GPU.

use crate::checkpoint::{Checkpoint, CheckpointDType};
#[cfg(feature = "cuda")]
use crate::cuda;
use crate::error::Error;
use crate::exec::{Code, Executable};
use crate::memory::Memory;
use crate::shared::Part;
use crate::tensor::Tensor;
use eva_ir::types::DType;
use std::collections::HashMap;
use std::ops::Deref;
use std::sync::Arc;

/// Bytes in the host's memory that live as long as this does.
pub type HostBytes = Arc<dyn Deref<Target = [u8]> + Send + Sync>;

/// A weight: a tensor of its own or a part of a mapped file, or in the memory of a GPU.
pub struct Weight {
    /// The elements' type.
    pub dtype: DType,
    /// The extent of each axis.
    pub shape: Vec<usize>,
    data: Data,
}

/// The elements of a weight, little-endian, in row-major order.
enum Data {
    Host(HostBytes),
    Mapped(Mapped),
    Part(Part),
    #[cfg(feature = "cuda")]
    Gpu(cuda::Buffer),
}

/// Tensors by the names of a function's weight parameters.
pub type Weights = HashMap<String, Arc<Weight>>;

impl From<Tensor> for Weight {
    fn from(tensor: Tensor) -> Self {
        struct Owned(Tensor);
        impl Deref for Owned {
            type Target = [u8];
            fn deref(&self) -> &[u8] {
                self.0.bytes()
            }
        }
        let (dtype, shape) = (tensor.dtype(), tensor.shape().to_vec());
        Self::new(dtype, shape, Arc::new(Owned(tensor)))
    }
}

impl Weight {
    /// A weight with these elements, little-endian, in row-major order. A session checks how many there are.
    pub fn new(dtype: DType, shape: Vec<usize>, bytes: HostBytes) -> Self {
        Self { dtype, shape, data: Data::Host(bytes) }
    }

    /// A weight that may change between calls: part of memory that others write. What a session computes of it when it is
    /// made is computed again by [`crate::Session::refresh`], and by nothing else.
    pub fn of_part(part: &Part) -> Self {
        Self { dtype: part.dtype(), shape: part.shape().to_vec(), data: Data::Part(part.clone()) }
    }

    /// The part of shared memory that it is, if it is one.
    pub(crate) fn part(&self) -> Option<&Part> {
        match &self.data {
            Data::Part(part) => Some(part),
            _ => None,
        }
    }

    /// A weight in a GPU's memory.
    #[cfg(feature = "cuda")]
    pub(crate) fn on_gpu(dtype: DType, shape: Vec<usize>, buffer: cuda::Buffer) -> Self {
        Self { dtype, shape, data: Data::Gpu(buffer) }
    }

    /// Gives the pages of a mapped file that hold the elements back to the system, and returns how many bytes that is;
    /// 0 for weights that are not mapped. They come back when they are read.
    pub fn release(&self) -> usize {
        match &self.data {
            Data::Mapped(mapped) => mapped.checkpoint.release(&mapped.name),
            _ => 0,
        }
    }

    /// How many bytes its elements have.
    pub fn bytes(&self) -> usize {
        match &self.data {
            Data::Host(bytes) => bytes.len(),
            Data::Mapped(mapped) => mapped.len(),
            Data::Part(part) => part.bytes(),
            #[cfg(feature = "cuda")]
            Data::Gpu(buffer) => buffer.bytes(),
        }
    }

    /// Its elements, if they are in the host's memory and stay as they are.
    pub fn host(&self) -> Option<&[u8]> {
        match &self.data {
            Data::Host(bytes) => Some(bytes),
            Data::Mapped(mapped) => Some(mapped),
            Data::Part(_) => None,
            #[cfg(feature = "cuda")]
            Data::Gpu(_) => None,
        }
    }

    /// Where the elements are, on the device that the weight is on.
    pub(crate) fn address(&self) -> *mut u8 {
        match &self.data {
            Data::Host(bytes) => bytes.as_ptr().cast_mut(),
            Data::Mapped(mapped) => mapped.as_ptr().cast_mut(),
            Data::Part(part) => part.address(),
            #[cfg(feature = "cuda")]
            Data::Gpu(buffer) => cuda::address(buffer),
        }
    }

    /// Whether kernels of `exe` can read it.
    pub fn is_on(&self, exe: &Executable) -> bool {
        match (&exe.code, &self.data) {
            (_, Data::Part(part)) => part.memory().is_on(exe),
            (Code::Cpu(_), Data::Host(_) | Data::Mapped(_)) => true,
            #[cfg(feature = "cuda")]
            (Code::Cuda(code), Data::Gpu(buffer)) => Arc::ptr_eq(code.gpu(), buffer.gpu()),
            #[cfg(feature = "cuda")]
            _ => false,
        }
    }

    /// A copy in the memory of the device that `exe` runs on; `name` is for the message if there is no room.
    pub fn copy_to(&self, exe: &Executable, name: &str) -> Result<Self, Error> {
        let (dtype, shape) = (self.dtype, self.shape.clone());
        let data = match (&exe.code, &self.data) {
            (Code::Cpu(_), Data::Host(bytes)) => {
                let _ = name;
                Data::Host(bytes.clone())
            }
            (Code::Cpu(_), Data::Mapped(mapped)) => Data::Mapped(mapped.clone()),
            (_, Data::Part(part)) => return Weight::from(part.read()?).copy_to(exe, name),
            #[cfg(feature = "cuda")]
            (Code::Cuda(code), Data::Host(_) | Data::Mapped(_)) => {
                let bytes = self.host().unwrap_or_default();
                let buffer = code.gpu().allocate(bytes.len(), &format!("the weight `{name}`"))?;
                buffer.write(0, bytes)?;
                Data::Gpu(buffer)
            }
            #[cfg(feature = "cuda")]
            (_, Data::Gpu(from)) => {
                let mut bytes = vec![0; from.bytes()];
                from.read(0, &mut bytes)?;
                return Weight::new(dtype, shape, Arc::new(bytes)).copy_to(exe, name);
            }
        };
        Ok(Self { dtype, shape, data })
    }
}

impl Weight {
    /// A weight where `exe` runs, whose elements are those of `period` over and over: for measurements with weights of
    /// many gigabytes, which then need not go from the host to a GPU. `period` is the elements' bytes, a whole number
    /// of them; `name` is for the message if there is no room.
    pub fn repeating(
        exe: &Executable,
        dtype: DType,
        shape: &[usize],
        period: &[u8],
        name: &str,
    ) -> Result<Self, Error> {
        let elements = shape.iter().try_fold(1usize, |n, &extent| n.checked_mul(extent));
        let bytes = elements.and_then(|n| n.checked_mul(dtype.bytes() as usize));
        let bytes = bytes.ok_or_else(|| Error::TooLarge(format!("`{name}` of {shape:?}")))?;
        if period.is_empty() || !period.len().is_multiple_of(dtype.bytes() as usize) {
            return Err(Error::Internal(format!("`{name}` cannot repeat {} bytes", period.len())));
        }
        let mut memory = exe.zeroed(bytes, &format!("the weight `{name}`"))?;
        let mut done = bytes.min(period.len());
        memory.write(0, &period[..done])?;
        // Each time, a whole number of periods is there already.
        while done < bytes {
            let n = done.min(bytes - done);
            memory.copy_within(0, done, n)?;
            done += n;
        }
        let data = match memory {
            Memory::Host(bytes) => Data::Host(Arc::new(bytes)),
            Memory::Part(part) => Data::Part(part),
            #[cfg(feature = "cuda")]
            Memory::Gpu(buffer) => Data::Gpu(buffer),
        };
        Ok(Self { dtype, shape: shape.to_vec(), data })
    }
}

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
#[derive(Clone)]
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
    let data = Data::Mapped(Mapped { checkpoint: checkpoint.clone(), name: name.into() });
    Some(Weight { dtype, shape, data })
}

/// A tensor of a checkpoint where `exe` runs: mapped for the CPU, copied for a GPU, the mapped pages being given back.
pub fn load(exe: &Executable, checkpoint: &Arc<Checkpoint>, name: &str) -> Result<Option<Weight>, Error> {
    let Some(weight) = mapped(checkpoint, name) else { return Ok(None) };
    if weight.is_on(exe) {
        return Ok(Some(weight));
    }
    let copy = weight.copy_to(exe, name)?;
    checkpoint.release(name);
    Ok(Some(copy))
}

/// Tensors of a checkpoint stacked, where `exe` runs; see [`stacked`]. For a GPU each is copied to its place.
pub fn load_stacked(
    exe: &Executable,
    checkpoint: &Checkpoint,
    names: &[String],
) -> Result<Option<Weight>, Error> {
    match &exe.code {
        Code::Cpu(_) => Ok(stacked(checkpoint, names)),
        #[cfg(feature = "cuda")]
        Code::Cuda(code) => {
            let Some((dtype, shape, size)) = alike(checkpoint, names) else { return Ok(None) };
            let what = format!("the weights `{}` and {} more", names[0], names.len() - 1);
            let buffer = code.gpu().allocate(names.len() * size, &what)?;
            for (i, name) in names.iter().enumerate() {
                if let Some(tensor) = checkpoint.get(name) {
                    buffer.write(i * size, tensor.bytes)?;
                }
                checkpoint.release(name);
            }
            Ok(Some(Weight { dtype, shape, data: Data::Gpu(buffer) }))
        }
    }
}

/// The type and shape of tensors stacked along a new first axis, and the bytes of one; `None` if one is missing or
/// differs from the first.
fn alike(checkpoint: &Checkpoint, names: &[String]) -> Option<(DType, Vec<usize>, usize)> {
    let first = checkpoint.get(names.first()?)?;
    let alike = names.iter().all(|name| {
        checkpoint.get(name).is_some_and(|tensor| tensor.dtype == first.dtype && tensor.shape == first.shape)
    });
    let shape = [&[names.len()], first.shape].concat();
    alike.then_some((dtype(first.dtype)?, shape, first.bytes.len()))
}

/// Tensors of one shape and type, one after the other along a new first axis. The mapped pages are given back as they
/// are copied, so memory holds them once. `None` if a tensor is missing or differs from the first.
pub fn stacked(checkpoint: &Checkpoint, names: &[String]) -> Option<Weight> {
    let (dtype, shape, size) = alike(checkpoint, names)?;
    let mut all = Tensor::zeros(dtype, &shape);
    for (i, name) in names.iter().enumerate() {
        all.bytes_mut()[i * size..][..size].copy_from_slice(checkpoint.get(name)?.bytes);
        checkpoint.release(name);
    }
    Some(all.into())
}
