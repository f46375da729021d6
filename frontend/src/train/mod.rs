//! Training a model: `eva train`.
//!
//! A run ([`mod@run`]) is what a [`RunConfig`] says. Its parameters lie one after another in a flat buffer of `f32` on the device
//! ([`params`]), of which the sessions of the model ([`model`]) have their weights as slices, and which an optimizer, a graph
//! too, changes ([`optimizer`]). Everything that a step depends on (parameters, moments, the position in the data, the step's
//! number) is in a [`checkpoint`], so that a run goes on as if it had not been interrupted, bit for bit.

pub mod checkpoint;
pub mod config;
pub mod data;
pub mod metrics;
pub mod model;
pub mod optimizer;
pub mod params;
pub mod plot;
pub mod run;
pub mod scaling;
pub mod schedule;
pub mod start;
pub mod trainer;
pub mod watch;

pub use config::RunConfig;
pub use run::RunError;
