//! Machine code for kernels, through Cranelift.
//!
//! A kernel in the lane phase becomes one function that runs a range of the grid's programs; every instruction
//! is translated by itself, and nothing is decided here that changes what a kernel computes. The calling
//! convention is [`RawKernel`]'s.
//!
//! * Vectors have four lanes: 128 bits, all that Cranelift has on every target.
//! * Results do not depend on the processor's features: no multiply is fused with an add, and functions that
//!   processors round differently are not used. (Microkernels, which a kernel calls for its products, sum in an
//!   order of their own.)
//! * Only instructions of the [`Isa`] are emitted, and code is given out to run only where this machine has them.

mod abi;
mod code;
mod emit;
mod isa;
mod math;
mod memory;
mod micro;

pub use abi::{RawKernel, SCRATCH_ALIGN};
pub use code::{Compiled, KernelFn, compile};
pub use isa::{Isa, OptLevel, Options, Registers};

use eva_ir::kernel::Kernel;

/// Why there is no machine code.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The target is not one that code can be made for, or not one that this machine can run.
    #[error("{0}")]
    Target(String),
    /// The kernel has something that this backend does not translate.
    #[error("kernel `{kernel}`: {what}")]
    Kernel {
        /// The kernel's name.
        kernel: String,
        /// What is wrong with it.
        what: String,
    },
    /// Cranelift refused.
    #[error("kernel `{kernel}`: no machine code: {reason}")]
    Codegen {
        /// The kernel's name.
        kernel: String,
        /// Cranelift's own words.
        reason: String,
    },
    /// There is no memory for the code, or it cannot be made executable.
    #[error("no memory for machine code: {0}")]
    Memory(String),
}

/// The Cranelift IR that a kernel becomes on `isa`, as text.
pub fn clif(kernel: &Kernel, isa: &Isa) -> Result<String, Error> {
    let target = isa.build(&Options::default())?;
    Ok(abi::function(kernel, &*target)?.display().to_string())
}

/// The machine code that a kernel becomes on `isa`, which need not be this machine's, and its listing.
///
/// Addresses of microkernels and of functions of this crate are left zero in it.
pub fn emit(kernel: &Kernel, isa: &Isa) -> Result<(Vec<u8>, String), Error> {
    let targets = isa.targets(&Options::default())?;
    let object = code::Object::new(kernel, &targets, true)?;
    Ok((object.bytes, object.listing.unwrap_or_default()))
}
