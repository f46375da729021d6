//! PTX of kernels written by hand: that LLVM takes the module, that `ptxas` assembles it without a complaint, and, of
//! small ones, how it reads.

mod arithmetic;
mod attention;
mod build;
mod gate;
mod memory;
mod product;
mod scaled;
mod shared;
