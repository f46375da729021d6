//! [`Launch`]: a kernel with its arguments, ready to be started, now or in a graph.
//!
//! A kernel's parameters are, in this order: the base address of each buffer, the value of each symbol, and each
//! tensor map, 128 bytes by value.

use super::device::Gpu;
use super::error::{CudaError, driver};
use super::module::Loaded;
use super::tensor_map::Encoded;
use cudarc::driver::sys;
use eva_ir::kernel::block;
use std::ffi::c_void;

/// The most blocks of a launch.
const MOST_BLOCKS: i64 = i32::MAX as i64;

/// How many blocks are launched for a grid of `programs`; `None` if those are more than a launch can have. Zero where
/// there is nothing to do.
pub fn blocks(launch: block::Launch, programs: i64, multiprocessors: usize, resident: usize) -> Option<u32> {
    let programs = programs.max(0);
    let blocks = match launch {
        block::Launch::Each { per_block } => {
            let per_block = i64::try_from(per_block.max(1)).ok()?;
            programs / per_block + i64::from(programs % per_block > 0)
        }
        block::Launch::Persistent { per_multiprocessor } => {
            let at_once = multiprocessors.saturating_mul(per_multiprocessor.min(resident).max(1));
            programs.min(i64::try_from(at_once).unwrap_or(i64::MAX))
        }
    };
    u32::try_from(blocks).ok().filter(|_| blocks <= MOST_BLOCKS)
}

/// A kernel's launch, but for the stream.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Launch {
    /// Which kernel of the executable.
    pub kernel: usize,
    /// How many blocks, at least 1.
    pub blocks: u32,
    /// Addresses, then symbols.
    pub words: Vec<u64>,
    /// Tensor maps.
    pub maps: Vec<Encoded>,
}

impl Launch {
    /// A pointer to each parameter, as the driver takes them. It only reads what they point to.
    pub(super) fn parameters(&self) -> Vec<*mut c_void> {
        let words = self.words.iter().map(|word| std::ptr::from_ref(word).cast_mut().cast());
        words.chain(self.maps.iter().map(|map| std::ptr::from_ref(map).cast_mut().cast())).collect()
    }

    /// Starts the kernel.
    ///
    /// # Safety
    /// The kernel is the one that the arguments were made for, and its buffers are as large as it needs until it is
    /// done.
    pub(super) unsafe fn start(&self, gpu: &Gpu, kernel: &Loaded) -> Result<(), CudaError> {
        let mut parameters = self.parameters();
        // SAFETY: one pointer a parameter, of the parameter's size; the rest is the caller's.
        let result = unsafe {
            driver!(cuLaunchKernel(
                kernel.function,
                self.blocks,
                1,
                1,
                kernel.threads,
                1,
                1,
                kernel.shared,
                gpu.stream,
                parameters.as_mut_ptr(),
                std::ptr::null_mut()
            ))
        };
        result.map_err(|e| of_kernel(e, &kernel.name))
    }

    /// The launch as a node of a graph. `parameters` are this launch's.
    pub(super) fn node(
        &self,
        kernel: &Loaded,
        parameters: &mut [*mut c_void],
    ) -> sys::CUDA_KERNEL_NODE_PARAMS {
        sys::CUDA_KERNEL_NODE_PARAMS {
            func: kernel.function,
            gridDimX: self.blocks,
            gridDimY: 1,
            gridDimZ: 1,
            blockDimX: kernel.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: kernel.shared,
            kernelParams: parameters.as_mut_ptr(),
            extra: std::ptr::null_mut(),
            kern: std::ptr::null_mut(),
            ctx: std::ptr::null_mut(),
        }
    }
}

/// The error, with the kernel's name.
pub(super) fn of_kernel(error: CudaError, kernel: &str) -> CudaError {
    match error {
        CudaError::Driver { call, name, code } => {
            CudaError::Driver { call: format!("{call} (kernel `{kernel}`)"), name, code }
        }
        error => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use eva_ir::kernel::block::Launch::{Each, Persistent};

    #[test]
    fn each_block_has_its_programs() {
        let blocks = |per_block, programs| blocks(Each { per_block }, programs, 132, 3);
        assert_eq!([0, 1, 2, 3, 4, 7].map(|programs| blocks(3, programs)), [0, 1, 1, 1, 2, 3].map(Some));
        assert_eq!(blocks(1, i64::from(i32::MAX)), Some(i32::MAX as u32));
        assert_eq!(blocks(1, i64::from(i32::MAX) + 1), None);
        assert_eq!(blocks(2, i64::from(i32::MAX) + 1), Some(1 << 30));
        assert_eq!(blocks(1, i64::MAX), None);
        assert_eq!(blocks(7, -5), Some(0));
    }

    #[test]
    fn persistent_blocks_fill_the_gpu_and_no_more() {
        let blocks = |per_multiprocessor, programs, resident| {
            blocks(Persistent { per_multiprocessor }, programs, 132, resident)
        };
        assert_eq!(blocks(1, 1_000_000, 4), Some(132));
        assert_eq!(blocks(2, 1_000_000, 4), Some(264));
        assert_eq!(blocks(2, i64::MAX, 1), Some(132), "no more than there is room for");
        assert_eq!(blocks(2, 131, 2), Some(131), "no more than there are programs");
        assert_eq!(blocks(2, 0, 2), Some(0));
    }

    #[test]
    fn parameters_are_addresses_symbols_and_maps() {
        let launch = Launch { kernel: 0, blocks: 3, words: vec![0x1000, 0x2000, -7i64 as u64], maps: vec![] };
        let parameters = launch.parameters();
        assert_eq!(parameters.len(), 3);
        // SAFETY: each points to a word of the launch.
        let read = |i: usize| unsafe { parameters[i].cast::<i64>().read() };
        assert_eq!([read(0), read(1), read(2)], [0x1000, 0x2000, -7]);
    }
}
