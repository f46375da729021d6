//! eva: a compiler for DeepSeek-style transformer blocks.
//!
//! [`prelude`] is what a program imports, [`dsl`] explains it, and [`model`] has the blocks and whole models.

pub mod bench;
pub mod compare;
pub mod dsl;
pub mod engine;
pub mod explain;
pub mod init;
pub mod model;
pub mod prelude;
pub mod report;
pub mod tokenizer;
pub mod viz;
