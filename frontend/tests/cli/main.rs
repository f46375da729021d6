//! The command `eva`, run as a user runs it.

mod bad_config;
mod bad_prompt;
mod bad_text;
mod bad_weights;
mod bench;
#[cfg(feature = "cuda")]
mod compile;
mod convert;
mod doctor;
mod explain;
mod generate;
mod init;
mod print;
mod support;
mod target;
mod text;
mod train;
mod viz;
