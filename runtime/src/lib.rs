//! Running compiled modules, on the CPU or on an NVIDIA GPU: tensors, checkpoints, threads, memory and calls.
//!
//! An [`Executable`] is a module as machine code of a [`Device`]; a [`Session`] is one of its functions with weights,
//! which on the CPU it borrows from a mapped [`checkpoint`]; [`States`] are what a model keeps between calls. The
//! activations of a call lie in one arena whose size is known before it runs.

mod bind;
mod check;
pub mod checkpoint;
mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod device;
pub mod error;
pub mod exec;
pub mod finite;
mod memory;
pub mod pages;
pub mod pool;
mod prepare;
mod refresh;
pub mod sample;
pub mod session;
pub mod shared;
mod states;
pub mod tensor;
pub mod weights;

pub use device::Device;
pub use error::Error;
pub use exec::{CompileOptions, CompileTimes, Executable};
pub use pages::Pages;
pub use session::Session;
pub use shared::{Part, Shared};
pub use states::States;
pub use tensor::Tensor;
pub use weights::{Weight, Weights};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_may_go_to_other_threads() {
        fn moves<T: Send>() {}
        fn shared<T: Send + Sync>() {}
        moves::<Session>();
        moves::<States>();
        shared::<Executable>();
        shared::<Weights>();
        shared::<Error>();
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_gpu_needs_a_feature() {
        let options = CompileOptions { device: Device::Cuda(1), ..CompileOptions::default() };
        let error =
            Executable::compile(&eva_ir::graph::Module::default(), &options).err().expect("there is no GPU");
        assert_eq!(
            error.to_string(),
            "this program was built without support for `cuda:1`; build it with the feature `cuda`"
        );
    }
}
