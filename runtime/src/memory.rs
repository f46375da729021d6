//! [`Memory`]: bytes where the kernels of a device reach them.

#[cfg(feature = "cuda")]
use crate::cuda::{Buffer, address};
use crate::error::Error;
use crate::exec::{Code, Executable};
use crate::shared::Part;
use crate::tensor::Bytes;

/// Bytes where the kernels of a device reach them.
pub(crate) enum Memory {
    /// In the host's memory.
    Host(Bytes),
    /// Part of memory that others have parts of, too.
    Part(Part),
    /// In a GPU's.
    #[cfg(feature = "cuda")]
    Gpu(Buffer),
}

impl Memory {
    /// The address on the device.
    pub(crate) fn address(&self) -> *mut u8 {
        match self {
            Memory::Host(bytes) => bytes.as_ptr(),
            Memory::Part(part) => part.address(),
            #[cfg(feature = "cuda")]
            Memory::Gpu(buffer) => address(buffer),
        }
    }

    /// Whether kernels of `exe` reach it.
    pub(crate) fn is_on(&self, exe: &Executable) -> bool {
        match (&exe.code, self) {
            (_, Memory::Part(part)) => part.memory().is_on(exe),
            (Code::Cpu(_), Memory::Host(_)) => true,
            #[cfg(feature = "cuda")]
            (Code::Cuda(code), Memory::Gpu(buffer)) => std::sync::Arc::ptr_eq(code.gpu(), buffer.gpu()),
            #[cfg(feature = "cuda")]
            _ => false,
        }
    }

    /// How many bytes there are.
    pub(crate) fn len(&self) -> usize {
        match self {
            Memory::Host(bytes) => bytes.len(),
            Memory::Part(part) => part.bytes(),
            #[cfg(feature = "cuda")]
            Memory::Gpu(buffer) => buffer.bytes(),
        }
    }

    /// Copies `bytes` to the bytes from `offset` on.
    pub(crate) fn write(&mut self, offset: usize, bytes: &[u8]) -> Result<(), Error> {
        match self {
            Memory::Host(memory) => {
                let part = memory.get_mut(offset..).and_then(|rest| rest.get_mut(..bytes.len()));
                part.ok_or_else(outside)?.copy_from_slice(bytes);
                Ok(())
            }
            Memory::Part(part) => part.write_at(offset, bytes),
            #[cfg(feature = "cuda")]
            Memory::Gpu(buffer) => Ok(buffer.write(offset, bytes)?),
        }
    }

    /// Copies `n` bytes from `from` on to those from `to` on; the two do not overlap.
    pub(crate) fn copy_within(&mut self, from: usize, to: usize, n: usize) -> Result<(), Error> {
        match self {
            Memory::Host(memory) => {
                let inside = |at: usize| at.checked_add(n).is_some_and(|end| end <= memory.len());
                if !inside(from) || !inside(to) {
                    return Err(outside());
                }
                memory.copy_within(from..from + n, to);
                Ok(())
            }
            Memory::Part(part) => part.copy_within(from, to, n),
            #[cfg(feature = "cuda")]
            Memory::Gpu(buffer) => Ok(buffer.copy_within(from, to, n)?),
        }
    }

    /// Copies the bytes from `offset` on to `out`, after everything that was started on the device.
    pub(crate) fn read(&self, offset: usize, out: &mut [u8]) -> Result<(), Error> {
        match self {
            Memory::Host(memory) => {
                let part = memory.get(offset..).and_then(|rest| rest.get(..out.len()));
                out.copy_from_slice(part.ok_or_else(outside)?);
                Ok(())
            }
            Memory::Part(part) => part.read_at(offset, out),
            #[cfg(feature = "cuda")]
            Memory::Gpu(buffer) => Ok(buffer.read(offset, out)?),
        }
    }
}

/// The error of a copy that is wrong.
pub(crate) fn outside() -> Error {
    Error::Internal("a copy reaches beyond its memory".into())
}
