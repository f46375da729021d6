//! PTX of kernels written by hand: that LLVM takes the module, that `ptxas` assembles it without a complaint, that it does
//! what the kernel means, and, of small ones, how it reads.

mod agree;
mod arithmetic;
mod attention;
mod build;
mod compile;
mod emulate;
mod forms;
mod gate;
mod meaning;
mod memory;
mod modules;
mod norms;
mod product;
mod scaled;
mod shared;
mod tf32;
