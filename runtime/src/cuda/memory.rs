//! [`Buffer`]: memory of a GPU, from a pool that keeps what is given back.

use super::device::Gpu;
use super::error::{CudaError, Need, driver};
use cudarc::driver::sys::{self, CUmemPool_attribute as Attribute, CUresult};
use std::sync::Arc;

/// Memory of a GPU, at a multiple of 256 bytes. Given back, when dropped, once everything started before is done.
pub struct Buffer {
    gpu: Arc<Gpu>,
    address: u64,
    bytes: usize,
}

impl Buffer {
    /// The GPU that it is of.
    pub fn gpu(&self) -> &Arc<Gpu> {
        &self.gpu
    }

    /// Where it starts.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// How many bytes it has.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Makes all its bytes `byte`, in the order of the stream.
    pub fn fill(&self, byte: u8) -> Result<(), CudaError> {
        self.gpu.bind()?;
        // SAFETY: the memory is this value's, and the stream its GPU's.
        unsafe { driver!(cuMemsetD8Async(self.address, byte, self.bytes, self.gpu.stream)) }
    }

    /// Copies `n` bytes from `from` on to those from `to` on, in the order of the stream; the two do not overlap.
    pub fn copy_within(&self, from: usize, to: usize, n: usize) -> Result<(), CudaError> {
        let inside = |at: usize| at.checked_add(n).is_some_and(|end| end <= self.bytes);
        if !inside(from) || !inside(to) || from.abs_diff(to) < n {
            let call = format!("Buffer::copy_within ({n} bytes from {from} to {to} of {})", self.bytes);
            return Err(CudaError::driver(call, CUresult::CUDA_ERROR_INVALID_VALUE));
        }
        self.gpu.bind()?;
        let (from, to) = (self.address + from as u64, self.address + to as u64);
        // SAFETY: both parts are inside this value's memory, as was checked, and the stream is its GPU's.
        unsafe { driver!(cuMemcpyDtoDAsync_v2(to, from, n, self.gpu.stream)) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.gpu.bind().is_ok() {
            // SAFETY: allocated from the pool, and freed once; what the stream still does with it comes before.
            unsafe { sys::cuMemFreeAsync(self.address, self.gpu.stream) };
        }
    }
}

/// A pool of a GPU's memory that gives nothing back to the driver before it must.
pub(super) fn pool(device: sys::CUdevice) -> Result<sys::CUmemoryPool, CudaError> {
    let location =
        sys::CUmemLocation { type_: sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE, id: device };
    let properties = sys::CUmemPoolProps {
        allocType: sys::CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED,
        handleTypes: sys::CUmemAllocationHandleType::CU_MEM_HANDLE_TYPE_NONE,
        location,
        win32SecurityAttributes: std::ptr::null_mut(),
        maxSize: 0,
        usage: 0,
        reserved: [0; 54],
    };
    let mut pool = std::ptr::null_mut();
    let mut threshold = u64::MAX;
    // SAFETY: the properties are read and the handle written; the attribute is a 64-bit number.
    unsafe {
        driver!(cuMemPoolCreate(&mut pool, &properties))?;
        let value = (&raw mut threshold).cast();
        driver!(cuMemPoolSetAttribute(pool, Attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, value))?;
    }
    Ok(pool)
}

impl Gpu {
    /// Memory of `bytes` bytes, its contents unknown; `what` is for the message if there is no room.
    pub fn allocate(self: &Arc<Self>, bytes: usize, what: &str) -> Result<Buffer, CudaError> {
        self.bind()?;
        // An empty buffer has an address too.
        let size = bytes.max(1);
        let mut address = 0;
        let mut allocate = || {
            // SAFETY: the address is written; the pool and the stream live as long as this value.
            unsafe { sys::cuMemAllocFromPoolAsync(&mut address, size, self.pool, self.stream) }
        };
        let mut result = allocate();
        if result == CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            // What the pool keeps may be in pieces: give it back, and ask again.
            self.synchronize()?;
            // SAFETY: the pool is this GPU's.
            unsafe { driver!(cuMemPoolTrimTo(self.pool, 0)) }?;
            result = allocate();
        }
        match result {
            CUresult::CUDA_SUCCESS => Ok(Buffer { gpu: self.clone(), address, bytes }),
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                let (free, total) = self.free_memory()?;
                let need = Need { what: what.into(), bytes, free, total, ..Need::default() };
                Err(CudaError::OutOfMemory(Box::new(need)))
            }
            result => {
                Err(CudaError::driver(format!("cuMemAllocFromPoolAsync ({bytes} bytes for {what})"), result))
            }
        }
    }

    /// Memory of zeros.
    pub fn zeroed(self: &Arc<Self>, bytes: usize, what: &str) -> Result<Buffer, CudaError> {
        let buffer = self.allocate(bytes, what)?;
        if bytes > 0 {
            buffer.fill(0)?;
        }
        Ok(buffer)
    }

    /// Bytes that can still be allocated, and bytes in all.
    pub fn free_memory(&self) -> Result<(usize, usize), CudaError> {
        self.bind()?;
        let (mut free, mut total) = (0, 0);
        let (mut reserved, mut used) = (0u64, 0u64);
        // SAFETY: each number is written, 64 bits wide.
        unsafe {
            driver!(cuMemGetInfo_v2(&mut free, &mut total))?;
            for (attribute, value) in [
                (Attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT, &raw mut reserved),
                (Attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT, &raw mut used),
            ] {
                driver!(cuMemPoolGetAttribute(self.pool, attribute, value.cast()))?;
            }
        }
        let kept = usize::try_from(reserved.saturating_sub(used)).unwrap_or(0);
        Ok((free.saturating_add(kept), total))
    }
}
