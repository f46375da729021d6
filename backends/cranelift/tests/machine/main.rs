//! Machine code against Rust's arithmetic, against the kernels' interpreter, and on other targets.

mod arithmetic;
mod common;
mod control;
mod exp;
mod memory;
mod product;
mod random;
mod targets;
mod tiles;
