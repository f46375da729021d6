//! Training: configurations, data, optimizers, checkpoints, the loop.

mod config;
mod data;
mod optimizer;
mod trainer;
