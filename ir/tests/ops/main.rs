//! The ops of attention, rotary positions, experts and losses: their type rules, their meaning against
//! values from PyTorch and transformers, and their kernels against their meaning.

mod attention;
mod fixtures;
mod fp8;
mod harness;
mod lowered;
mod types;
