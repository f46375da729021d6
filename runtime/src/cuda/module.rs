//! [`Loaded`]: a kernel on a GPU, made of PTX by the driver's assembler.

use super::cache::{Cache, Key};
use super::device::Gpu;
use super::error::{CudaError, driver};
use cudarc::driver::sys::{self, CUfunction_attribute as Attribute, CUjit_option as Jit, CUresult};
use eva_ptx::Ptx;
use std::ffi::{CStr, CString, c_void};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A kernel that can be launched.
pub struct Loaded {
    /// The name, for people.
    pub name: String,
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of shared memory of a block.
    pub shared: u32,
    /// How many blocks one multiprocessor has room for at once, at least 1.
    pub resident: usize,
    /// Registers of a thread.
    pub registers: usize,
    /// Bytes of memory that a thread has for what does not fit registers.
    pub spilled: usize,
    /// Bytes of the machine code's file.
    pub code_bytes: usize,
    pub(super) function: sys::CUfunction,
    library: sys::CUlibrary,
    gpu: Arc<Gpu>,
}

// SAFETY: the driver's handles may be used from any thread whose current context is the GPU's.
unsafe impl Send for Loaded {}
// SAFETY: likewise.
unsafe impl Sync for Loaded {}

/// How long it took to make a kernel ready.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LoadTimes {
    /// From PTX to machine code; zero if that was in the cache.
    pub assemble: Duration,
    /// From machine code to a kernel that can be launched, the cache included.
    pub load: Duration,
    /// Whether the machine code was in the cache.
    pub cached: bool,
    /// Whether machine code was given that the driver does not take.
    pub refused: bool,
}

/// Options of the assembler that decide what it makes, for keys of the cache.
const OPTIONS: &str = "O4";

impl Loaded {
    /// Makes a kernel ready: loads `given`, its machine code. Where there is none, or the driver does not take it,
    /// assembles the PTX, unless `cache` has that, and loads it.
    pub fn new(
        gpu: &Arc<Gpu>,
        ptx: &Ptx,
        given: Option<&[u8]>,
        cache: &Cache,
    ) -> Result<(Self, LoadTimes), CudaError> {
        gpu.bind()?;
        let mut refused = false;
        if let Some(code) = given {
            let started = Instant::now();
            match Self::load(gpu, ptx, code) {
                Ok(kernel) => {
                    return Ok((kernel, LoadTimes { load: started.elapsed(), ..LoadTimes::default() }));
                }
                Err(error) => tracing::debug!(kernel = ptx.name, "machine code is not taken: {error}"),
            }
            refused = true;
        }
        let (driver, chip) = (gpu.properties.driver, gpu.properties.capability);
        let machine = format!("driver {}.{} chip {}.{}", driver.0, driver.1, chip.0, chip.1);
        let key = Key::of(&[ptx.text.as_bytes(), machine.as_bytes(), OPTIONS.as_bytes()]);
        let started = Instant::now();
        let mut assembled = Duration::ZERO;
        let mut assemble_timed = || {
            let started = Instant::now();
            let code = if is_whole(ptx) { whole(ptx) } else { assemble(ptx) };
            assembled += started.elapsed();
            code
        };
        let (code, cached) = cache.get_or_make(key, &mut assemble_timed)?;
        let kernel = match Self::load(gpu, ptx, &code) {
            // Whole, and yet of no use to this driver: it is made anew.
            Err(_) if cached => {
                cache.forget(key);
                Self::load(gpu, ptx, &cache.get_or_make(key, &mut assemble_timed)?.0)?
            }
            kernel => kernel?,
        };
        let load = started.elapsed().saturating_sub(assembled);
        Ok((kernel, LoadTimes { assemble: assembled, load, cached, refused }))
    }

    /// Loads machine code.
    fn load(gpu: &Arc<Gpu>, ptx: &Ptx, code: &[u8]) -> Result<Self, CudaError> {
        let refused =
            |name: &str, log: String| CudaError::Kernel { kernel: ptx.name.clone(), name: name.into(), log };
        let too_much = |what: &str, n: usize| refused("it is too large", format!("a block has {n} {what}"));
        let threads = u32::try_from(ptx.threads).map_err(|_| too_much("threads", ptx.threads))?;
        if ptx.shared_bytes > gpu.properties.shared {
            return Err(too_much("bytes of shared memory", ptx.shared_bytes));
        }
        let entry = CString::new(ptx.entry.as_str()).map_err(|e| refused("its name", e.to_string()))?;
        let mut kernel = Self {
            name: ptx.name.clone(),
            threads,
            shared: ptx.shared_bytes as u32,
            resident: 0,
            registers: 0,
            spilled: 0,
            code_bytes: code.len(),
            function: std::ptr::null_mut(),
            library: std::ptr::null_mut(),
            gpu: gpu.clone(),
        };
        let attribute = |kernel: &Self, which: Attribute| -> Result<usize, CudaError> {
            let mut n = 0;
            // SAFETY: the number is written; the function is the library's.
            unsafe { driver!(cuFuncGetAttribute(&mut n, which, kernel.function)) }?;
            Ok(usize::try_from(n).unwrap_or(0))
        };
        // As a library, not as a module: the driver assembles PTX of modules one after the other, however many threads
        // ask, and of libraries at the same time.
        let (mut handle, none, nothing) = (std::ptr::null_mut(), std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: the image is machine code that an assembler made (its hash was checked), which names its own length,
        // or text that ends with a zero byte; the driver copies it. The handles are written, and the library is
        // unloaded in `drop`.
        unsafe {
            let (image, options) = (code.as_ptr().cast(), std::ptr::null_mut());
            driver!(cuLibraryLoadData(&mut kernel.library, image, none, nothing, 0, options, nothing, 0))?;
            driver!(cuLibraryGetKernel(&mut handle, kernel.library, entry.as_ptr()))?;
            driver!(cuKernelGetFunction(&mut kernel.function, handle))?;
            driver!(cuFuncSetAttribute(
                kernel.function,
                Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                kernel.shared as i32
            ))?;
        }
        kernel.registers = attribute(&kernel, Attribute::CU_FUNC_ATTRIBUTE_NUM_REGS)?;
        kernel.spilled = attribute(&kernel, Attribute::CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES)?;
        let mut resident = 0;
        // SAFETY: the number is written.
        unsafe {
            driver!(cuOccupancyMaxActiveBlocksPerMultiprocessor(
                &mut resident,
                kernel.function,
                ptx.threads as i32,
                ptx.shared_bytes
            ))?;
        }
        kernel.resident = usize::try_from(resident).unwrap_or(0);
        if kernel.resident == 0 {
            let Self { registers, threads, shared, .. } = &kernel;
            let log =
                format!("{threads} threads with {registers} registers each, {shared} bytes of shared memory");
            return Err(refused("a multiprocessor has no room for a block of it", log));
        }
        Ok(kernel)
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        if !self.library.is_null() && self.gpu.synchronize().is_ok() {
            // SAFETY: nothing that was launched is running any more, and the library is this value's own.
            unsafe { sys::cuLibraryUnload(self.library) };
        }
    }
}

/// Whether a kernel must be assembled as a whole program. The driver's linker, the only interface of the driver's that
/// gives machine code away, assembles as if other modules could follow: it ignores `setmaxnreg` (C7504), and makes
/// products wait for each other (C7509).
fn is_whole(ptx: &Ptx) -> bool {
    ptx.text.contains("setmaxnreg")
}

/// What is loaded for a kernel that must be assembled as a whole: the PTX, which the driver assembles as it loads it,
/// and keeps in a cache of its own.
fn whole(ptx: &Ptx) -> Result<Vec<u8>, CudaError> {
    Ok(ptx.text.bytes().chain([0]).collect())
}

/// Bytes for what the assembler has to say.
const LOG: usize = 16 << 10;

/// From PTX to machine code, by the driver. The GPU is the calling thread's.
fn assemble(ptx: &Ptx) -> Result<Vec<u8>, CudaError> {
    let (mut info, mut error) = (vec![0u8; LOG], vec![0u8; LOG]);
    // Numbers are passed as pointers of that value.
    let number = |n: usize| n as *mut c_void;
    let mut options = [
        (Jit::CU_JIT_OPTIMIZATION_LEVEL, number(4)),
        (Jit::CU_JIT_LOG_VERBOSE, number(1)),
        (Jit::CU_JIT_INFO_LOG_BUFFER, info.as_mut_ptr().cast()),
        (Jit::CU_JIT_INFO_LOG_BUFFER_SIZE_BYTES, number(LOG)),
        (Jit::CU_JIT_ERROR_LOG_BUFFER, error.as_mut_ptr().cast()),
        (Jit::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES, number(LOG)),
    ];
    let (mut names, mut values): (Vec<Jit>, Vec<*mut c_void>) =
        options.iter_mut().map(|&mut pair| pair).unzip();
    let text = |log: &[u8]| {
        let text = CStr::from_bytes_until_nul(log)
            .map_or_else(|_| String::from_utf8_lossy(log), CStr::to_string_lossy);
        text.trim().to_string()
    };
    let refused = |result: CUresult, error: &[u8]| CudaError::Kernel {
        kernel: ptx.name.clone(),
        name: format!("{result:?}"),
        log: text(error),
    };
    let text_of = CString::new(ptx.text.as_str())
        .map_err(|_| refused(CUresult::CUDA_ERROR_INVALID_PTX, b"a zero byte"))?;
    let mut link = std::ptr::null_mut();
    // SAFETY: both lists have as many entries, and live, as the logs do, until the linker is destroyed below.
    unsafe {
        driver!(cuLinkCreate_v2(names.len() as u32, names.as_mut_ptr(), values.as_mut_ptr(), &mut link))
    }?;
    let (mut image, mut size) = (std::ptr::null_mut(), 0);
    // SAFETY: the PTX ends with a zero byte, which its size counts; the image belongs to the linker and is copied
    // before that is destroyed.
    let code = unsafe {
        let kind = sys::CUjitInputType::CU_JIT_INPUT_PTX;
        let (data, bytes) = (text_of.as_ptr().cast_mut().cast(), text_of.as_bytes_with_nul().len());
        let (none, nothing) = (std::ptr::null_mut(), std::ptr::null_mut());
        let mut result = sys::cuLinkAddData_v2(link, kind, data, bytes, c"kernel".as_ptr(), 0, none, nothing);
        if result == CUresult::CUDA_SUCCESS {
            result = sys::cuLinkComplete(link, &mut image, &mut size);
        }
        let code = match result {
            CUresult::CUDA_SUCCESS => Ok(std::slice::from_raw_parts(image.cast::<u8>(), size).to_vec()),
            result => Err(result),
        };
        sys::cuLinkDestroy(link);
        code
    };
    let code = code.map_err(|result| refused(result, &error))?;
    report(&ptx.name, &text(&info));
    Ok(code)
}

/// Shows what an assembler says of a kernel, loudly if it has done what makes the kernel slow.
pub(super) fn report(kernel: &str, log: &str) {
    // C75xx: products that wait for each other, or a register cap that is ignored.
    let slow = log.lines().any(|line| line.contains("C75") || line.contains("wgmma"));
    match slow {
        true => tracing::warn!(kernel, "the assembler: {log}"),
        false => tracing::debug!(kernel, "the assembler: {log}"),
    }
}
