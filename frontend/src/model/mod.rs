//! DeepSeek-V2- and V3-style models, written in the DSL: their configuration, their blocks, and whole models.
//!
//! A block is a plain value that holds its numbers, with a method that applies it: [`mla::Mla`], [`mha::Mha`],
//! [`moe::Experts`], [`mlp::SwiGlu`], [`layer::Layer`]. Blocks use nothing but [`crate::prelude`], so a block of your own is
//! written, and combined with these, in the same way. Their weights have the names and layouts of the public
//! checkpoints; see [`mod@causal_lm`] for how a module's parameters map to a checkpoint.
//!
//! Extents go by one letter each, here and in the IR text:
//!
//! | | | | |
//! | --- | --- | --- | --- |
//! | `b` | sequences in a batch | `n` | part of a head's query and key without position |
//! | `s` | new tokens | `p` | rotary part of a query, and of the key that all heads share |
//! | `t` | cached tokens, the new ones included | `v` | width of a head's value |
//! | `w` | vocabulary | `q`, `c` | width of the query latent and of the key-value latent |
//! | `m` | width of the residual stream | `i` | width of a dense feed-forward block |
//! | `h` | heads | `e`, `k`, `f` | experts, experts for a token, width of an expert |

pub mod causal_lm;
pub mod config;
pub mod layer;
pub mod mha;
pub mod mla;
pub mod mlp;
pub mod moe;
pub mod mtp;
pub mod norm;
pub mod rope;
pub mod training;
pub mod weights;

pub use causal_lm::{Options, causal_lm};
pub use training::{Balance, Training, training};
