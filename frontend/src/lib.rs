//! eva: a compiler for DeepSeek-style transformer blocks.
//!
//! [`prelude`] is what a program imports, [`dsl`] explains it, and [`model`] has the blocks and whole models. The crates
//! below are here too, for those who compile ([`runtime`]) and who write passes and rules ([`passes`], [`ir`],
//! [`testing`]).

pub mod bench;
pub mod chart;
pub mod compare;
pub mod convert;
pub mod dsl;
pub mod engine;
pub mod explain;
pub mod init;
pub mod memory;
pub mod model;
pub mod precision;
pub mod prelude;
pub mod quantized;
pub mod report;
pub mod testing;
pub mod tokenizer;
pub mod train;
pub mod viz;

pub use eva_ir as ir;
pub use eva_passes as passes;
pub use eva_runtime as runtime;
