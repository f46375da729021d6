//! Training, but for what a model computes: configurations, data, optimizers, checkpoints, the loop.

mod config;
mod data;
