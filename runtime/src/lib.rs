//! Running compiled modules on the CPU: tensors, checkpoints, threads, memory and calls.
//!
//! An [`Executable`] is a module as machine code; a [`Session`] is one of its functions with weights, which
//! it borrows from a mapped [`checkpoint`]; [`States`] are what a model keeps between calls. The activations of
//! a call lie in one arena whose size is known before it runs.

pub mod checkpoint;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod error;
pub mod exec;
pub mod pool;
pub mod sample;
pub mod session;
pub mod tensor;
pub mod weights;

pub use error::Error;
pub use exec::{CompileOptions, CompileTimes, Executable};
pub use session::{Session, States, Weight, Weights};
pub use tensor::Tensor;
