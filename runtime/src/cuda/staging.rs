//! Copies between host and GPU, through pinned memory: the only memory that a GPU copies at full speed, and while the
//! host does something else.

use super::device::Gpu;
use super::error::{CudaError, driver};
use super::memory::Buffer;
use cudarc::driver::sys::{self, CUresult};
use rayon::prelude::*;
use std::sync::PoisonError;

/// Bytes of a slot.
const SLOT: usize = 16 << 20;

/// While one slot is filled, the others' copies are under way.
const SLOTS: usize = 4;

/// What several threads copy faster than one.
const WORTH_SHARING: usize = 1 << 20;

/// A ring of slots of pinned memory. Copies of one direction follow each other in a slot until it is full.
#[derive(Default)]
pub(super) struct Staging {
    slots: Vec<Slot>,
    /// The slot in use.
    current: usize,
    /// How many of its bytes are taken by copies that may be under way.
    used: usize,
}

struct Slot {
    memory: *mut u8,
    /// When the copies of the slot were done, once it was left.
    event: sys::CUevent,
    left: bool,
}

// SAFETY: plain memory and a handle of the driver, both owned.
unsafe impl Send for Slot {}

impl Slot {
    fn new() -> Result<Self, CudaError> {
        let mut memory = std::ptr::null_mut();
        let mut event = std::ptr::null_mut();
        // SAFETY: both are written; they are given back in `free`, which alone does so.
        unsafe {
            driver!(cuEventCreate(&mut event, sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32))?;
            driver!(cuMemHostAlloc(&mut memory, SLOT, sys::CU_MEMHOSTALLOC_PORTABLE)).inspect_err(|_| {
                let _ = sys::cuEventDestroy_v2(event);
            })?;
        }
        Ok(Self { memory: memory.cast(), event, left: false })
    }

    fn leave(&mut self, stream: sys::CUstream) -> Result<(), CudaError> {
        self.left = true;
        // SAFETY: the event is this slot's; the stream is the GPU's that the slot belongs to.
        unsafe { driver!(cuEventRecord(self.event, stream)) }
    }

    /// Waits until the slot's copies are done.
    fn wait(&mut self) -> Result<(), CudaError> {
        if std::mem::take(&mut self.left) {
            // SAFETY: the event was recorded when the slot was left.
            unsafe { driver!(cuEventSynchronize(self.event)) }?;
        }
        Ok(())
    }
}

impl Staging {
    /// Goes on to the next slot, which is free then.
    fn advance(&mut self, stream: sys::CUstream) -> Result<(), CudaError> {
        if self.slots.is_empty() {
            for _ in 0..SLOTS {
                self.slots.push(Slot::new()?);
            }
        } else if self.used > 0 {
            self.slots[self.current].leave(stream)?;
        }
        self.current = (self.current + 1) % self.slots.len();
        self.used = 0;
        self.slots[self.current].wait()
    }

    fn upload(&mut self, stream: sys::CUstream, to: u64, bytes: &[u8]) -> Result<(), CudaError> {
        let mut done = 0;
        while done < bytes.len() {
            if self.slots.is_empty() || self.used >= SLOT {
                self.advance(stream)?;
            }
            let n = (SLOT - self.used).min(bytes.len() - done);
            // SAFETY: `used + n` is inside the slot, and no copy under way reads from `used` on.
            let slot = unsafe {
                let first = self.slots[self.current].memory.add(self.used);
                std::slice::from_raw_parts_mut(first, n)
            };
            copy(slot, &bytes[done..done + n]);
            // SAFETY: the caller has checked the destination; the slot stays as it is until the copy is done.
            unsafe { driver!(cuMemcpyHtoDAsync_v2(to + done as u64, slot.as_ptr().cast(), n, stream)) }?;
            self.used += n.next_multiple_of(64);
            done += n;
        }
        Ok(())
    }

    /// A slot's bytes go to `out` while the GPU fills the next slot.
    fn download(&mut self, stream: sys::CUstream, from: u64, out: &mut [u8]) -> Result<(), CudaError> {
        let mut under_way: Option<(usize, &mut [u8])> = None;
        for (i, chunk) in out.chunks_mut(SLOT).enumerate() {
            self.advance(stream)?;
            let slot = &mut self.slots[self.current];
            let at = from + (i * SLOT) as u64;
            // SAFETY: the caller has checked the source; the slot has room for a chunk, and nothing else uses it.
            unsafe { driver!(cuMemcpyDtoHAsync_v2(slot.memory.cast(), at, chunk.len(), stream)) }?;
            slot.leave(stream)?;
            if let Some((before, chunk)) = under_way.replace((self.current, chunk)) {
                self.take(before, chunk)?;
            }
        }
        under_way.map_or(Ok(()), |(slot, chunk)| self.take(slot, chunk))
    }

    /// Waits for a slot, and copies its bytes out.
    fn take(&mut self, slot: usize, out: &mut [u8]) -> Result<(), CudaError> {
        self.slots[slot].wait()?;
        // SAFETY: a chunk is no longer than a slot, and the copy into the slot is done.
        copy(out, unsafe { std::slice::from_raw_parts(self.slots[slot].memory, out.len()) });
        Ok(())
    }

    /// Gives the memory back. Nothing may be under way.
    pub(super) fn clear(&mut self) {
        for slot in self.slots.drain(..) {
            // SAFETY: allocated in `Slot::new`, and given back here alone.
            unsafe {
                sys::cuMemFreeHost(slot.memory.cast());
                sys::cuEventDestroy_v2(slot.event);
            }
        }
        self.used = 0;
    }
}

/// Copies, with several threads if there is much: one does not keep up with a GPU.
fn copy(to: &mut [u8], from: &[u8]) {
    if to.len() < WORTH_SHARING {
        return to.copy_from_slice(from);
    }
    let piece = WORTH_SHARING / 4;
    to.par_chunks_mut(piece).zip(from.par_chunks(piece)).for_each(|(to, from)| to.copy_from_slice(from));
}

impl Gpu {
    /// Copies what is at `address` to `out`, once everything that was started before is done.
    ///
    /// # Safety
    /// As many bytes from there on are this GPU's memory, and initialized.
    pub(super) unsafe fn read_at(&self, address: u64, out: &mut [u8]) -> Result<(), CudaError> {
        self.bind()?;
        self.staging.lock().unwrap_or_else(PoisonError::into_inner).download(self.stream, address, out)
    }
}

impl Buffer {
    /// Copies `bytes` to the bytes from `offset` on. They may change again when this returns; the GPU has them, in
    /// the order of the stream.
    pub fn write(&self, offset: usize, bytes: &[u8]) -> Result<(), CudaError> {
        let (gpu, at) = self.part("Buffer::write", offset, bytes.len())?;
        gpu.staging.lock().unwrap_or_else(PoisonError::into_inner).upload(gpu.stream, at, bytes)
    }

    /// Copies the bytes from `offset` on to `out`, once everything that was started before is done.
    pub fn read(&self, offset: usize, out: &mut [u8]) -> Result<(), CudaError> {
        let (gpu, at) = self.part("Buffer::read", offset, out.len())?;
        gpu.staging.lock().unwrap_or_else(PoisonError::into_inner).download(gpu.stream, at, out)
    }

    /// The address of a part of the buffer, its GPU being the thread's from here on.
    fn part(&self, call: &str, offset: usize, bytes: usize) -> Result<(&Gpu, u64), CudaError> {
        if offset.checked_add(bytes).is_none_or(|end| end > self.bytes()) {
            let call = format!("{call} ({bytes} bytes at {offset} of {})", self.bytes());
            return Err(CudaError::driver(call, CUresult::CUDA_ERROR_INVALID_VALUE));
        }
        self.gpu().bind()?;
        Ok((self.gpu(), self.address() + offset as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_by_several_threads_are_whole() {
        for n in [0, 1, WORTH_SHARING - 1, WORTH_SHARING, 3 * WORTH_SHARING + 17] {
            let from: Vec<u8> = (0..n).map(|i| (i * 7 + i / 251) as u8).collect();
            let mut to = vec![0xaa; n];
            copy(&mut to, &from);
            assert!(to == from, "{n} bytes");
        }
    }
}
