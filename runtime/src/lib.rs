//! Running compiled models: checkpoints, memory, generation.

pub mod checkpoint;
pub mod sample;
