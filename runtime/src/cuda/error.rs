//! What can go wrong with a GPU, and what a user can do about it.

use cudarc::driver::sys::CUresult;

/// The oldest driver that will do, as CUDA counts its versions: the kernels are PTX 8.6.
pub const OLDEST_DRIVER: (i32, i32) = (12, 8);

/// Why a GPU cannot be used, or something on it failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CudaError {
    /// The driver's library is not there.
    #[error(
        "no NVIDIA driver was found: the library `libcuda.so.1` cannot be loaded; install the driver (570 or later), \
         or give the container access to the GPU (`docker run --gpus all`)"
    )]
    NoDriver,
    /// The driver sees no GPU, or not this one.
    #[error("there is no GPU {ordinal}: the driver shows {}", shown(*.count))]
    NoDevice {
        /// The number asked for.
        ordinal: usize,
        /// How many GPUs there are.
        count: usize,
    },
    /// The driver is too old for the kernels.
    #[error(
        "the NVIDIA driver is for CUDA {}.{}, and eva needs one for CUDA {}.{} or later (driver 570), since its \
         kernels are PTX 8.6: update the driver",
        have.0, have.1, OLDEST_DRIVER.0, OLDEST_DRIVER.1
    )]
    OldDriver {
        /// The CUDA version that the driver is for.
        have: (i32, i32),
    },
    /// The GPU is of another generation.
    #[error(
        "{name} has compute capability {}.{}, and eva's kernels are for 9.0 (Hopper: H100, H200, H800, H20, GH200)",
        capability.0, capability.1
    )]
    NotHopper {
        /// The GPU's name.
        name: String,
        /// Its compute capability.
        capability: (i32, i32),
    },
    /// Memory of the GPU is short.
    #[error("{}", does_not_fit(.0))]
    OutOfMemory(Box<Need>),
    /// A kernel that the driver does not take.
    #[error("the driver refuses the kernel `{kernel}`: {name}\n{log}")]
    Kernel {
        /// The kernel.
        kernel: String,
        /// The driver's name of the error.
        name: String,
        /// What its assembler says.
        log: String,
    },
    /// A call of the driver failed.
    #[error("{call} failed: {name} ({code}): {}", advice(*.code))]
    Driver {
        /// The driver's function, and what it was called for.
        call: String,
        /// The driver's name of the error.
        name: String,
        /// Its number.
        code: u32,
    },
}

/// What was to be in the memory of a GPU, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Need {
    /// What there was no room for.
    pub what: String,
    /// How much that is.
    pub bytes: usize,
    /// Weights that are there.
    pub weights: usize,
    /// Caches that are there.
    pub caches: usize,
    /// Activations that a call needs.
    pub arena: usize,
    /// Memory that is free.
    pub free: usize,
    /// Memory that the GPU has.
    pub total: usize,
}

fn shown(count: usize) -> String {
    match count {
        0 => "none (`nvidia-smi` should list one; CUDA_VISIBLE_DEVICES may hide it)".into(),
        1 => "one, number 0".into(),
        n => format!("{n}, numbers 0 to {}", n - 1),
    }
}

/// Bytes for people.
fn size(bytes: usize) -> String {
    let units = [("GiB", 30), ("MiB", 20), ("KiB", 10)];
    let unit = units.into_iter().find(|&(_, shift)| bytes >= 1 << shift);
    unit.map_or(format!("{bytes} bytes"), |(unit, shift)| {
        format!("{:.1} {unit}", bytes as f64 / (1u64 << shift) as f64)
    })
}

fn does_not_fit(need: &Need) -> String {
    let parts = [("weights", need.weights), ("caches", need.caches), ("activations", need.arena)];
    let parts: Vec<String> = parts
        .into_iter()
        .filter(|&(_, bytes)| bytes > 0)
        .map(|(what, bytes)| format!("{what} {}", size(bytes)))
        .collect();
    let all = if parts.is_empty() { String::new() } else { format!(" ({})", parts.join(", ")) };
    format!(
        "the GPU's memory is too small: {} needs {}, and {} of {} are free{all}; give it fewer or shorter sequences, \
         or a GPU with more memory",
        need.what,
        size(need.bytes),
        size(need.free),
        size(need.total)
    )
}

/// What an error of the driver means for a user.
fn advice(code: u32) -> &'static str {
    match code {
        2 => "the GPU's memory is full; other programs that use it may be stopped",
        3 | 4 => "the driver is shutting down or was not started",
        34 => "a stub of libcuda was loaded instead of the driver's: take its folder out of LD_LIBRARY_PATH",
        36 | 803 => {
            "parts of the driver have different versions: restart the machine after an update of the driver"
        }
        46 => "another program has the GPU for itself (exclusive mode)",
        100 => "the driver sees no GPU: `nvidia-smi` should list one; CUDA_VISIBLE_DEVICES may hide it",
        101 => "there is no GPU of this number",
        200 | 209 | 218 | 222 => "the driver does not take eva's code: update the driver",
        201 | 709 => "the GPU was reset, or its context is gone: start the program again",
        214 => "the GPU's memory has an error that could not be corrected: `nvidia-smi` tells more",
        221 | 223 => "the driver's compiler is missing: install the whole driver (libnvidia-ptxjitcompiler)",
        304 => "the operating system refused: the program may not have the rights to use the GPU",
        700 | 714..=718 => {
            "a kernel went wrong: this is a mistake of eva's; please report it (EVA_CUDA_SYNC=1 names the kernel)"
        }
        701 => "a kernel needs more registers or shared memory than a block can have; please report it",
        702 => "a kernel took longer than this GPU allows: it may be driving a display",
        719 => {
            "a kernel stopped: this is a mistake of eva's; please report it (EVA_CUDA_SYNC=1 names the kernel)"
        }
        801 => "the driver or the GPU cannot do this",
        802 => "the machine's GPUs are not ready: its fabric manager may not be running",
        804 => "this GPU does not work with the driver's compatibility package: install the driver itself",
        805..=809 => "the multi-process service (MPS) is not working",
        _ => "`nvidia-smi` and the kernel's log (`dmesg`) may tell more",
    }
}

impl CudaError {
    /// The error of a call.
    pub(super) fn driver(call: impl Into<String>, result: CUresult) -> Self {
        CudaError::Driver { call: call.into(), name: format!("{result:?}"), code: result as u32 }
    }
}

/// An error unless the call went well.
pub(super) fn check(call: &str, result: CUresult) -> Result<(), CudaError> {
    match result {
        CUresult::CUDA_SUCCESS => Ok(()),
        result => Err(CudaError::driver(call, result)),
    }
}

/// Calls a function of the driver, and makes its failure an error with the function's name.
macro_rules! driver {
    ($function:ident($($arg:expr),* $(,)?)) => {
        $crate::cuda::error::check(stringify!($function), cudarc::driver::sys::$function($($arg),*))
    };
}
pub(super) use driver;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_of_the_driver_has_its_name_and_what_to_do() {
        let error = check("cuInit", CUresult::CUDA_ERROR_STUB_LIBRARY).unwrap_err();
        assert_eq!(
            error.to_string(),
            "cuInit failed: CUDA_ERROR_STUB_LIBRARY (34): a stub of libcuda was loaded instead of the driver's: take \
             its folder out of LD_LIBRARY_PATH"
        );
        let error = check("cuLaunchKernel", CUresult::CUDA_ERROR_TIMEOUT).unwrap_err().to_string();
        assert!(error.contains("CUDA_ERROR_TIMEOUT (909)") && error.contains("dmesg"), "{error}");
        assert_eq!(check("cuInit", CUresult::CUDA_SUCCESS), Ok(()));
    }

    #[test]
    fn what_does_not_fit_is_said_in_numbers() {
        let need = Need {
            what: "the arena of a call of @main".into(),
            bytes: 3 << 30,
            weights: 61 << 30,
            caches: 17 << 20,
            arena: 3 << 30,
            free: 5 << 29,
            total: 80 << 30,
        };
        assert_eq!(
            CudaError::OutOfMemory(Box::new(need)).to_string(),
            "the GPU's memory is too small: the arena of a call of @main needs 3.0 GiB, and 2.5 GiB of 80.0 GiB are \
             free (weights 61.0 GiB, caches 17.0 MiB, activations 3.0 GiB); give it fewer or shorter sequences, or a \
             GPU with more memory"
        );
        let need = Need { what: "`w`".into(), bytes: 1023, ..Need::default() };
        let text = CudaError::OutOfMemory(Box::new(need)).to_string();
        assert!(text.contains("`w` needs 1023 bytes, and 0 bytes of 0 bytes are free; give"), "{text}");
    }

    #[test]
    fn machines_that_will_not_do_are_told_apart() {
        let text = |count| CudaError::NoDevice { ordinal: 3, count }.to_string();
        assert!(text(0).starts_with("there is no GPU 3: the driver shows none (`nvidia-smi`"), "{}", text(0));
        assert_eq!(text(1), "there is no GPU 3: the driver shows one, number 0");
        assert_eq!(text(2), "there is no GPU 3: the driver shows 2, numbers 0 to 1");
        let text = CudaError::OldDriver { have: (12, 4) }.to_string();
        assert!(text.contains("is for CUDA 12.4") && text.contains("CUDA 12.8 or later"), "{text}");
        let name = "NVIDIA A100-SXM4-80GB".to_string();
        let text = CudaError::NotHopper { name, capability: (8, 0) }.to_string();
        assert!(text.starts_with("NVIDIA A100-SXM4-80GB has compute capability 8.0, and"), "{text}");
    }
}
