//! PTX, the assembly language of NVIDIA's GPUs, for kernels, through LLVM.
//!
//! A kernel of the block phase ([`eva_ir::kernel::block`]) becomes one module with one entry point. Every instruction
//! is translated by itself, and nothing is decided here that changes what a kernel computes: which thread has which
//! element, what is copied when, and how many registers a role has are in the kernel.
//!
//! * The chip is Hopper (`sm_90a`): bulk tensor copies, `wgmma`, `setmaxnreg`.
//! * Multiplications and additions are rounded one by one, divisions and square roots correctly; exponentials and
//!   logarithms are within two units in the last place. No operation is reassociated or fused but by
//!   [`Fma`](eva_ir::kernel::block::BlockInst::Fma).
//! * LLVM is needed only with the feature `cuda`. Without it the crate has what a program needs that runs PTX made
//!   before: [`Ptx`], [`shared_bytes`], [`entry_name`].
//!
//! # Calling a kernel
//!
//! The entry point has these parameters, in this order:
//!
//! 1. for each buffer of [`Kernel::bufs`] the 64-bit address of its allocation (offsets are in the kernel's own
//!    indices), a multiple of 16 bytes;
//! 2. for each symbol of [`Kernel::syms`] its value, an `i64` from 0 to 2³¹ - 1;
//! 3. for each tiling of [`Block::maps`](eva_ir::kernel::block::Block::maps) a tensor map (`CUtensorMap`, 128 bytes, by
//!    value, aligned to 64). Its box is 128 bytes wide and as many rows high as the tiling says, with the swizzle of
//!    128 bytes; or, where the tiling is not swizzled, it is the tiling's row. What lies outside is zero.
//!
//! A block has [`Ptx::threads`] threads and [`Ptx::shared_bytes`] bytes of dynamic shared memory; the grid is
//! one-dimensional, and as long as [`Launch`](eva_ir::kernel::block::Launch) says.

#[cfg(feature = "cuda")]
mod abi;
#[cfg(feature = "cuda")]
mod compile;
#[cfg(feature = "cuda")]
mod emit;
#[cfg(feature = "cuda")]
mod ir;
#[cfg(feature = "cuda")]
mod layout;
#[cfg(feature = "cuda")]
mod math;
#[cfg(feature = "cuda")]
mod memory;
#[cfg(feature = "cuda")]
mod mma;
#[cfg(feature = "cuda")]
mod number;
#[cfg(feature = "cuda")]
mod pipe;
#[cfg(feature = "cuda")]
mod team;

#[cfg(feature = "cuda")]
pub use compile::{compile, compile_all};

use eva_ir::kernel::Kernel;
use eva_ir::kernel::block::Block;

/// A kernel as PTX.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ptx {
    /// The kernel's name.
    pub name: String,
    /// The name of the entry point.
    pub entry: String,
    /// The module.
    pub text: String,
    /// Bytes of dynamic shared memory of a block.
    pub shared_bytes: usize,
    /// Threads of a block.
    pub threads: usize,
    /// The LLVM IR that the kernel became, before any of LLVM's passes, if [`Options::keep_llvm`] asked for it.
    pub llvm: Option<String>,
}

/// How PTX is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The chip, as LLVM and `ptxas` spell it.
    pub chip: String,
    /// The PTX version, major and minor. Drivers refuse modules of later versions than their own.
    pub version: (u32, u32),
    /// How hard LLVM tries.
    pub level: OptLevel,
    /// Whether to keep the LLVM IR.
    pub keep_llvm: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { chip: "sm_90a".into(), version: (8, 6), level: OptLevel::default(), keep_llvm: false }
    }
}

/// How hard LLVM tries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OptLevel {
    /// No passes, and quick instruction selection: for looking at what was emitted. Products come out slow.
    None,
    /// Everything that pays.
    #[default]
    Aggressive,
}

/// Why there is no PTX.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel is not one of the block phase, or not well-formed, or needs what the chip has not.
    #[error("kernel `{kernel}`: {what}")]
    Kernel {
        /// The kernel's name.
        kernel: String,
        /// What is wrong with it.
        what: String,
    },
    /// LLVM refused what it was given: a mistake of this crate.
    #[error("kernel `{kernel}`: no PTX: {reason}")]
    Codegen {
        /// The kernel's name.
        kernel: String,
        /// LLVM's own words.
        reason: String,
    },
    /// LLVM does not know the target.
    #[error("no PTX for {0}")]
    Target(String),
}

/// Bytes of dynamic shared memory that a block of the kernel has ([`Block::shared_bytes`]); 0 for a kernel of another
/// phase.
pub fn shared_bytes(kernel: &Kernel) -> usize {
    kernel.block.as_ref().map_or(0, Block::shared_bytes)
}

/// The name of the kernel's entry point: `eva_` and the kernel's name, in which all but ASCII letters and digits has
/// become `_`, and which ends after 200 characters.
///
/// Kernels may share a name: each is a module of its own.
pub fn entry_name(kernel: &Kernel) -> String {
    let valid = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    "eva_".chars().chain(kernel.name.chars().take(200).map(valid)).collect()
}
