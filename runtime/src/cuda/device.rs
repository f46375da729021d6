//! [`Gpu`]: a GPU that is ready to run kernels, with one stream on which everything happens in order.

use super::error::{CudaError, OLDEST_DRIVER, driver};
use super::staging::Staging;
use cudarc::driver::sys::{self, CUdevice_attribute as Attribute, CUresult};
use std::collections::HashMap;
use std::ffi::{CStr, c_int};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

/// What a GPU is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Properties {
    /// The name that its maker gave it.
    pub name: String,
    /// How many multiprocessors it has.
    pub multiprocessors: usize,
    /// Bytes of memory.
    pub memory: usize,
    /// Bytes of its second-level cache.
    pub l2: usize,
    /// Bytes of shared memory that a block can have.
    pub shared: usize,
    /// The compute capability, major and minor.
    pub capability: (i32, i32),
    /// The CUDA version that the driver is for, major and minor.
    pub driver: (i32, i32),
}

/// A GPU: its primary context, one stream, and a pool of memory.
///
/// All copies and launches go to the one stream, so that each sees what those before it did, whichever session or
/// thread they are from. A process has one of these for a GPU ([`Gpu::open`]).
pub struct Gpu {
    /// Its number, as the driver counts.
    pub ordinal: usize,
    /// What it is.
    pub properties: Properties,
    device: sys::CUdevice,
    context: sys::CUcontext,
    pub(super) stream: sys::CUstream,
    pub(super) pool: sys::CUmemoryPool,
    pub(super) staging: Mutex<Staging>,
}

// SAFETY: the driver's handles may be used from any thread whose current context is this one, which `bind` sees to.
unsafe impl Send for Gpu {}
// SAFETY: likewise; the driver's functions lock what they need to.
unsafe impl Sync for Gpu {}

impl std::fmt::Debug for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Gpu {} ({})", self.ordinal, self.properties.name)
    }
}

/// Loads the driver and starts it; the CUDA version that it is for. An error, never a panic, where there is none.
fn start() -> Result<(i32, i32), CudaError> {
    // SAFETY: loading the driver's library runs its initializers, which is what it is loaded for.
    let there = unsafe { sys::is_culib_present() }
        && ["cuInit", "cuDriverGetVersion"].iter().all(|name| {
            // SAFETY: the symbol is looked up and not called.
            unsafe { sys::culib().get::<unsafe extern "C" fn()>(name.as_bytes()) }.is_ok()
        });
    if !there {
        return Err(CudaError::NoDriver);
    }
    let mut version: c_int = 0;
    // SAFETY: `version` is written; the function needs no initialization.
    unsafe { driver!(cuDriverGetVersion(&mut version)) }?;
    let have = (version / 1000, version % 1000 / 10);
    // Functions that an old driver lacks would be missing from here on.
    if have < OLDEST_DRIVER {
        return Err(CudaError::OldDriver { have });
    }
    // SAFETY: no arguments but a reserved number.
    match unsafe { sys::cuInit(0) } {
        CUresult::CUDA_SUCCESS => Ok(have),
        CUresult::CUDA_ERROR_NO_DEVICE => Err(CudaError::NoDevice { ordinal: 0, count: 0 }),
        result => Err(CudaError::driver("cuInit", result)),
    }
}

/// What each of the machine's GPUs is, in the driver's order; those that cannot run eva's kernels too.
pub fn list() -> Result<Vec<Properties>, CudaError> {
    let driver = start()?;
    (0..count()?).map(|ordinal| properties(device(ordinal)?, driver)).collect()
}

fn count() -> Result<usize, CudaError> {
    let mut count: c_int = 0;
    // SAFETY: `count` is written.
    unsafe { driver!(cuDeviceGetCount(&mut count)) }?;
    Ok(usize::try_from(count).unwrap_or(0))
}

fn device(ordinal: usize) -> Result<sys::CUdevice, CudaError> {
    let mut device = 0;
    // SAFETY: `device` is written; a number out of range is an error.
    unsafe { driver!(cuDeviceGet(&mut device, c_int::try_from(ordinal).unwrap_or(-1))) }?;
    Ok(device)
}

fn properties(device: sys::CUdevice, driver: (i32, i32)) -> Result<Properties, CudaError> {
    let attribute = |which: Attribute| {
        let mut value: c_int = 0;
        // SAFETY: `value` is written, and the device is the driver's.
        unsafe { driver!(cuDeviceGetAttribute(&mut value, which, device)) }.map(|()| value)
    };
    let number = |which: Attribute| attribute(which).map(|n| usize::try_from(n).unwrap_or(0));
    let mut name = [0; 256];
    // SAFETY: `name` has as much room as is said, and ends with a zero whatever was written.
    unsafe { driver!(cuDeviceGetName(name.as_mut_ptr(), 255, device)) }?;
    // SAFETY: it is a C string: its last byte was not written.
    let name = unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned();
    let mut memory = 0;
    // SAFETY: `memory` is written.
    unsafe { driver!(cuDeviceTotalMem_v2(&mut memory, device)) }?;
    Ok(Properties {
        name,
        multiprocessors: number(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        memory,
        l2: number(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?,
        shared: number(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        capability: (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        driver,
    })
}

impl Gpu {
    /// The GPU of this number, started if it is not running yet.
    pub fn open(ordinal: usize) -> Result<Arc<Self>, CudaError> {
        static OPEN: OnceLock<Mutex<HashMap<usize, Weak<Gpu>>>> = OnceLock::new();
        let mut open = OPEN.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(gpu) = open.get(&ordinal).and_then(Weak::upgrade) {
            return Ok(gpu);
        }
        let gpu = Arc::new(Self::start(ordinal)?);
        open.insert(ordinal, Arc::downgrade(&gpu));
        Ok(gpu)
    }

    fn start(ordinal: usize) -> Result<Self, CudaError> {
        let driver = start().map_err(|e| match e {
            CudaError::NoDevice { count, .. } => CudaError::NoDevice { ordinal, count },
            e => e,
        })?;
        let count = count()?;
        if ordinal >= count {
            return Err(CudaError::NoDevice { ordinal, count });
        }
        let device = device(ordinal)?;
        let properties = properties(device, driver)?;
        if properties.capability != (9, 0) {
            let Properties { name, capability, .. } = properties;
            return Err(CudaError::NotHopper { name, capability });
        }
        let mut context = std::ptr::null_mut();
        // SAFETY: `context` is written; it is released in `drop`.
        unsafe { driver!(cuDevicePrimaryCtxRetain(&mut context, device)) }?;
        let mut gpu = Self {
            ordinal,
            properties,
            device,
            context,
            stream: std::ptr::null_mut(),
            pool: std::ptr::null_mut(),
            staging: Mutex::default(),
        };
        gpu.bind()?;
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: the handle is written, and destroyed in `drop`.
        unsafe { driver!(cuStreamCreate(&mut gpu.stream, flags)) }?;
        gpu.pool = super::memory::pool(device)?;
        tracing::info!(
            gpu = %gpu.properties.name,
            multiprocessors = gpu.properties.multiprocessors,
            memory = gpu.properties.memory,
            driver = ?gpu.properties.driver,
            "GPU {ordinal}"
        );
        Ok(gpu)
    }

    /// Makes this GPU the calling thread's. Everything that calls the driver does this first.
    pub(super) fn bind(&self) -> Result<(), CudaError> {
        // SAFETY: the context lives as long as this value.
        unsafe { driver!(cuCtxSetCurrent(self.context)) }
    }

    /// Waits until everything that was started is done; the error of what went wrong.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        self.bind()?;
        // SAFETY: the stream lives as long as this value.
        unsafe { driver!(cuStreamSynchronize(self.stream)) }
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        // At the end of a process the driver may be gone already: its errors are of no use here.
        let _ = self.synchronize();
        self.staging.get_mut().unwrap_or_else(PoisonError::into_inner).clear();
        // SAFETY: buffers and modules hold this value, so nothing uses the handles any more; null ones are not ours.
        unsafe {
            if !self.pool.is_null() {
                sys::cuMemPoolDestroy(self.pool);
            }
            if !self.stream.is_null() {
                sys::cuStreamDestroy_v2(self.stream);
            }
            sys::cuDevicePrimaryCtxRelease_v2(self.device);
        }
    }
}

/// A moment in the stream.
pub struct Event {
    gpu: Arc<Gpu>,
    event: sys::CUevent,
}

// SAFETY: as for `Gpu`.
unsafe impl Send for Event {}

impl Event {
    /// Marks the moment when everything started so far is done.
    pub fn record(gpu: &Arc<Gpu>) -> Result<Self, CudaError> {
        gpu.bind()?;
        let mut event = Self { gpu: gpu.clone(), event: std::ptr::null_mut() };
        // SAFETY: the handle is written, and destroyed in `drop`; the stream lives as long as the GPU's value.
        unsafe {
            driver!(cuEventCreate(&mut event.event, sys::CUevent_flags::CU_EVENT_DEFAULT as u32))?;
            driver!(cuEventRecord(event.event, gpu.stream))?;
        }
        Ok(event)
    }

    /// The time from an earlier moment to this one; waits for both.
    pub fn since(&self, earlier: &Event) -> Result<Duration, CudaError> {
        self.gpu.bind()?;
        let mut milliseconds = 0f32;
        // SAFETY: both events were recorded; the number is written.
        unsafe {
            driver!(cuEventSynchronize(earlier.event))?;
            driver!(cuEventSynchronize(self.event))?;
            driver!(cuEventElapsedTime_v2(&mut milliseconds, earlier.event, self.event))?;
        }
        Ok(Duration::from_secs_f64(f64::from(milliseconds.max(0.0)) / 1e3))
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if !self.event.is_null() && self.gpu.bind().is_ok() {
            // SAFETY: the event is this value's own.
            unsafe { sys::cuEventDestroy_v2(self.event) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On machines with a GPU this opens it; on others it must be an error that says why.
    #[test]
    fn a_machine_without_a_gpu_is_an_error() {
        match Gpu::open(0) {
            Ok(gpu) => assert!(gpu.properties.multiprocessors > 0),
            Err(e) => {
                let known = matches!(
                    e,
                    CudaError::NoDriver
                        | CudaError::NoDevice { .. }
                        | CudaError::OldDriver { .. }
                        | CudaError::NotHopper { .. }
                        | CudaError::Driver { .. }
                );
                assert!(known, "{e}");
                // Asked again it answers the same: nothing was left half done.
                assert_eq!(Gpu::open(0).unwrap_err(), e);
                assert!(!e.to_string().is_empty());
            }
        }
    }
}
