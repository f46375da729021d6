//! Training: configurations, data, optimizers, checkpoints, the loop.

mod compare;
mod config;
mod data;
mod forms;
mod optimizer;
mod trainer;
