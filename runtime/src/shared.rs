//! [`Shared`]: memory of a device that several sessions read and write, call after call: parameters of a model while it is
//! trained, their gradients, an optimizer's moments. A [`Part`] of it is a tensor, which can be a session's weight
//! ([`Weight::of_part`]) or a state ([`States::of_parts`]), or take a result ([`Session::start_into`]).
//!
//! [`Weight::of_part`]: crate::Weight::of_part
//! [`States::of_parts`]: crate::States::of_parts
//! [`Session::start_into`]: crate::Session::start_into

use crate::error::Error;
use crate::exec::Executable;
use crate::memory::{Memory, outside};
use crate::tensor::Tensor;
use eva_ir::types::DType;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Memory of a device. Calls that use it, and copies to it and from it, come one after another.
pub struct Shared {
    /// Held while a call or a copy is under way.
    memory: Mutex<Memory>,
    address: AtomicPtr<u8>,
    bytes: usize,
    #[cfg(feature = "cuda")]
    gpu: Option<Arc<crate::cuda::Gpu>>,
}

/// A tensor in [`Shared`] memory.
#[derive(Clone)]
pub struct Part {
    of: Arc<Shared>,
    offset: usize,
    dtype: DType,
    shape: Vec<usize>,
}

impl Shared {
    /// `bytes` bytes of zero on the device of `exe`; `what` is for the message if there is no room.
    pub fn zeroed(exe: &Executable, bytes: usize, what: &str) -> Result<Arc<Self>, Error> {
        let memory = exe.zeroed(bytes, what)?;
        let address = AtomicPtr::new(memory.address());
        Ok(Arc::new(Self {
            memory: Mutex::new(memory),
            address,
            bytes,
            #[cfg(feature = "cuda")]
            gpu: exe.gpu().cloned(),
        }))
    }

    /// How many bytes there are.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Copies `bytes` to the bytes from `offset` on, after every call that was started.
    pub fn write(&self, offset: usize, bytes: &[u8]) -> Result<(), Error> {
        self.lock().write(offset, bytes)
    }

    /// Copies the bytes from `offset` on to `out`, after every call that was started.
    pub fn read(&self, offset: usize, out: &mut [u8]) -> Result<(), Error> {
        self.lock().read(offset, out)
    }

    /// The tensor at byte `offset`; an error if it reaches beyond the memory, or is not aligned to its elements.
    pub fn part(self: &Arc<Self>, offset: usize, dtype: DType, shape: &[usize]) -> Result<Part, Error> {
        let part = Part { of: self.clone(), offset, dtype, shape: shape.to_vec() };
        let elements = shape.iter().try_fold(1usize, |n, &extent| n.checked_mul(extent));
        let bytes = elements.and_then(|n| n.checked_mul(dtype.bytes() as usize));
        let inside = bytes.and_then(|n| n.checked_add(offset)).is_some_and(|end| end <= self.bytes);
        if !inside || !offset.is_multiple_of(dtype.bytes() as usize) {
            let bytes = self.bytes;
            return Err(Error::Internal(format!("{dtype}{shape:?} at byte {offset} is no part of {bytes}")));
        }
        Ok(part)
    }

    /// Whether kernels of `exe` reach it.
    pub(crate) fn is_on(&self, exe: &Executable) -> bool {
        #[cfg(feature = "cuda")]
        match (exe.gpu(), &self.gpu) {
            (Some(one), Some(other)) => return Arc::ptr_eq(one, other),
            (None, None) => {}
            _ => return false,
        }
        let _ = exe;
        true
    }

    /// Keeps others from it for as long as the guard lives.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Part {
    /// The elements' type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The extent of each axis.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The memory that it is of.
    pub fn memory(&self) -> &Arc<Shared> {
        &self.of
    }

    /// How many bytes its elements have.
    pub fn bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.bytes() as usize
    }

    /// A copy of its elements, after every call that was started.
    pub fn read(&self) -> Result<Tensor, Error> {
        let mut tensor = Tensor::zeros(self.dtype, &self.shape);
        self.of.read(self.offset, tensor.bytes_mut())?;
        Ok(tensor)
    }

    /// Gives its elements these bytes, after every call that was started. They must be as many.
    pub fn write(&self, bytes: &[u8]) -> Result<(), Error> {
        if bytes.len() != self.bytes() {
            return Err(Error::Internal(format!("{} bytes for a part of {}", bytes.len(), self.bytes())));
        }
        self.write_at(0, bytes)
    }

    /// Copies `bytes` to its bytes from `offset` on.
    pub(crate) fn write_at(&self, offset: usize, bytes: &[u8]) -> Result<(), Error> {
        self.inside(offset, bytes.len())?;
        self.of.write(self.offset + offset, bytes)
    }

    /// Copies its bytes from `offset` on to `out`.
    pub(crate) fn read_at(&self, offset: usize, out: &mut [u8]) -> Result<(), Error> {
        self.inside(offset, out.len())?;
        self.of.read(self.offset + offset, out)
    }

    /// Copies `n` of its bytes from `from` on to those from `to` on; the two do not overlap.
    pub(crate) fn copy_within(&self, from: usize, to: usize, n: usize) -> Result<(), Error> {
        self.inside(from, n)?;
        self.inside(to, n)?;
        self.of.lock().copy_within(self.offset + from, self.offset + to, n)
    }

    fn inside(&self, offset: usize, n: usize) -> Result<(), Error> {
        let end = offset.checked_add(n);
        end.is_some_and(|end| end <= self.bytes()).then_some(()).ok_or_else(outside)
    }

    /// Where it is on the device.
    pub(crate) fn address(&self) -> *mut u8 {
        self.of.address.load(Ordering::Relaxed).wrapping_add(self.offset)
    }

    /// Its memory, as a number that tells memories apart, and its bytes there.
    pub(crate) fn range(&self) -> (usize, std::ops::Range<usize>) {
        (Arc::as_ptr(&self.of).addr(), self.offset..self.offset + self.bytes())
    }
}

/// The memories of these parts, each once, in an order that is the same for everyone, so that two who lock them in turn
/// never wait for each other.
pub(crate) fn memories<'a>(parts: impl Iterator<Item = &'a Part>) -> Vec<Arc<Shared>> {
    let mut all: Vec<Arc<Shared>> = Vec::new();
    for part in parts {
        if !all.iter().any(|have| Arc::ptr_eq(have, &part.of)) {
            all.push(part.of.clone());
        }
    }
    all.sort_by_key(|shared| Arc::as_ptr(shared).addr());
    all
}

/// Checks that no part that is written is written twice or read: `written` and `read` with their names.
pub(crate) fn apart<'a>(
    written: &[(&'a str, &'a Part)],
    read: impl Iterator<Item = (&'a str, &'a Part)>,
) -> Result<(), Error> {
    let mut all: Vec<_> = written.iter().map(|(name, part)| (part.range(), true, *name)).collect();
    all.extend(read.map(|(name, part)| (part.range(), false, name)));
    all.retain(|((_, range), ..)| !range.is_empty());
    all.sort_by_key(|((memory, range), ..)| (*memory, range.start));
    // The part that reaches furthest so far, and the written one that does.
    let mut furthest: Option<(usize, usize, &str)> = None;
    let mut written: Option<(usize, usize, &str)> = None;
    for ((memory, range), writes, name) in all {
        let before = if writes { furthest } else { written };
        if let Some((_, _, other)) = before.filter(|(m, end, _)| *m == memory && *end > range.start) {
            return Err(Error::Internal(format!("`{name}` and `{other}` are in the same memory")));
        }
        let reaches =
            |have: Option<(usize, usize, _)>| have.is_none_or(|(m, end, _)| m != memory || end < range.end);
        if reaches(furthest) {
            furthest = Some((memory, range.end, name));
        }
        if writes && reaches(written) {
            written = Some((memory, range.end, name));
        }
    }
    Ok(())
}
