//! [`Tensor`]: numbers in host memory.

use eva_ir::codes;
use eva_ir::kernel::run::round;
use eva_ir::types::DType;
use half::{bf16, f16};
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;

/// Memory that starts at a multiple of 64 bytes, zero at first.
pub struct Bytes {
    ptr: NonNull<u8>,
    len: usize,
}

/// What every allocation is aligned to: a cache line.
const ALIGN: usize = 64;

impl Bytes {
    /// `len` bytes of zero.
    pub fn zeroed(len: usize) -> Self {
        let Some(layout) = Self::layout(len) else { return Self { ptr: NonNull::dangling(), len: 0 } };
        // SAFETY: the layout's size is not zero.
        let ptr = unsafe { alloc_zeroed(layout) };
        Self { ptr: NonNull::new(ptr).unwrap_or_else(|| handle_alloc_error(layout)), len }
    }

    /// The layout of an allocation of `len` bytes; `None` if there is nothing to allocate.
    fn layout(len: usize) -> Option<Layout> {
        (len > 0).then(|| {
            Layout::from_size_align(len, ALIGN).expect("a tensor's size was checked to fit in memory")
        })
    }

    /// The address.
    pub fn as_ptr(&self) -> *mut u8 {
        self.ptr.as_ptr()
    }
}

impl std::ops::Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: `len` bytes were allocated and initialized, or `len` is zero.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }
}

impl std::ops::DerefMut for Bytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and this is the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }
}

impl Drop for Bytes {
    fn drop(&mut self) {
        if let Some(layout) = Self::layout(self.len) {
            // SAFETY: allocated in `zeroed` with this layout.
            unsafe { dealloc(self.ptr.as_ptr(), layout) };
        }
    }
}

// SAFETY: plain memory that this value owns.
unsafe impl Send for Bytes {}
// SAFETY: shared references only read it; kernels write through `as_ptr` under the executor's exclusive borrow.
unsafe impl Sync for Bytes {}

/// A tensor in host memory, in row-major order.
pub struct Tensor {
    dtype: DType,
    shape: Vec<usize>,
    bytes: Bytes,
}

impl Tensor {
    /// A tensor of zeros.
    pub fn zeros(dtype: DType, shape: &[usize]) -> Self {
        let len = shape.iter().product::<usize>() * dtype.bytes() as usize;
        Self { dtype, shape: shape.to_vec(), bytes: Bytes::zeroed(len) }
    }

    /// From the bytes of its elements, little-endian, in row-major order. `None` if there are too few or too many.
    pub fn from_bytes(dtype: DType, shape: &[usize], bytes: &[u8]) -> Option<Self> {
        let mut tensor = Self::zeros(dtype, shape);
        (tensor.bytes.len() == bytes.len()).then(|| {
            tensor.bytes.copy_from_slice(bytes);
            tensor
        })
    }

    /// From numbers, rounded to `dtype`. Panics if there are not as many as the shape says.
    pub fn from_f64(dtype: DType, shape: &[usize], numbers: &[f64]) -> Self {
        let mut tensor = Self::zeros(dtype, shape);
        let n = shape.iter().product::<usize>();
        assert_eq!(n, numbers.len(), "as many numbers as the shape {shape:?} says");
        let size = dtype.bytes() as usize;
        for (&x, out) in numbers.iter().zip(tensor.bytes.chunks_exact_mut(size)) {
            match dtype {
                DType::F64 => out.copy_from_slice(&x.to_le_bytes()),
                DType::F32 => out.copy_from_slice(&(x as f32).to_le_bytes()),
                DType::Tf32 => out.copy_from_slice(&(round(x, dtype) as f32).to_le_bytes()),
                DType::Bf16 => out.copy_from_slice(&bf16::from_f64(x).to_le_bytes()),
                DType::F16 => out.copy_from_slice(&f16::from_f64(x).to_le_bytes()),
                DType::I64 => out.copy_from_slice(&(x as i64).to_le_bytes()),
                DType::I32 => out.copy_from_slice(&(x as i32).to_le_bytes()),
                DType::F8E4M3 | DType::F8E5M2 | DType::E8M0 => out[0] = codes::encode(dtype, x),
            }
        }
        tensor
    }

    /// A tensor of 64-bit integers.
    pub fn from_i64(shape: &[usize], numbers: &[i64]) -> Self {
        let bytes: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
        Self::from_bytes(DType::I64, shape, &bytes).expect("as many numbers as the shape says")
    }

    /// A tensor of 32-bit integers.
    pub fn from_i32(shape: &[usize], numbers: &[i32]) -> Self {
        let bytes: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
        Self::from_bytes(DType::I32, shape, &bytes).expect("as many numbers as the shape says")
    }

    /// A tensor of single-precision floats.
    pub fn from_f32(shape: &[usize], numbers: &[f32]) -> Self {
        let bytes: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
        Self::from_bytes(DType::F32, shape, &bytes).expect("as many numbers as the shape says")
    }

    /// The elements' type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The extent of each axis.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The elements' bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The elements' bytes, to be written.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    /// The address of the first element.
    pub fn as_ptr(&self) -> *mut u8 {
        self.bytes.as_ptr()
    }

    /// The elements as `f64`, which is exact but for large 64-bit integers.
    pub fn to_f64(&self) -> Vec<f64> {
        numbers(self.dtype, &self.bytes)
    }

    /// The elements as `f32`.
    pub fn to_f32(&self) -> Vec<f32> {
        self.to_f64().into_iter().map(|x| x as f32).collect()
    }

    /// The elements as integers, rounded towards zero.
    pub fn to_i64(&self) -> Vec<i64> {
        self.to_f64().into_iter().map(|x| x as i64).collect()
    }
}

/// Numbers from the bytes of their elements.
pub fn numbers(dtype: DType, bytes: &[u8]) -> Vec<f64> {
    let size = dtype.bytes() as usize;
    let read = |b: &[u8]| match dtype {
        DType::F64 => f64::from_le_bytes(b.try_into().expect("a chunk has the element's size")),
        DType::F32 | DType::Tf32 => {
            f64::from(f32::from_le_bytes(b.try_into().expect("a chunk has the element's size")))
        }
        DType::Bf16 => bf16::from_le_bytes([b[0], b[1]]).to_f64(),
        DType::F16 => f16::from_le_bytes([b[0], b[1]]).to_f64(),
        DType::I64 => i64::from_le_bytes(b.try_into().expect("a chunk has the element's size")) as f64,
        DType::I32 => f64::from(i32::from_le_bytes(b.try_into().expect("a chunk has the element's size"))),
        DType::F8E4M3 | DType::F8E5M2 | DType::E8M0 => codes::decode(dtype, b[0]),
    };
    bytes.chunks_exact(size).map(read).collect()
}
