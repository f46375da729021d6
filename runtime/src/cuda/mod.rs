//! Running on NVIDIA GPUs (feature `cuda`), which needs the driver and nothing else.
//!
//! A [`Gpu`] has one stream, in which copies and launches happen one after the other. Kernels come as PTX, which the
//! driver compiles; what it made is kept on disk ([`cache`]). Or they were compiled ahead of time ([`artifact`]).
//!
//! Nothing here is loaded before a GPU is asked for, and a machine without one gives an error.

pub mod artifact;
pub mod bench;
pub mod cache;
mod calls;
mod code;
mod device;
mod error;
mod graph;
mod launch;
mod memory;
mod module;
mod staging;
mod tensor_map;

pub(crate) use calls::{Call, Calls, ResultAt, address, with_numbers};
pub use code::{CacheFolder, CudaOptions};
pub(crate) use code::{Code, CudaTimes};
pub use device::{Event, Gpu, Properties, list};
pub use error::{CudaError, Need, OLDEST_DRIVER};
pub use memory::Buffer;
pub use module::Loaded;
