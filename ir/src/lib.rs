//! eva's two intermediate representations, their text, and what they mean.
//!
//! **The graph IR** ([`graph`]) is a module of functions on tensors. A function is a list of values in
//! an order they can be computed in; a value is a parameter, an op applied to older values, or a call of
//! another function. Nothing in it has a layout, a thread or an address. Extents are *names*
//! ([`dim::Dim`]): `h`, `n` and `v` stay apart even where all three are 128, and extents that change from
//! call to call (batch, new tokens, cached tokens) have no number at all. What an op means is its
//! `eval` on `f64` arrays ([`eval`]); every backend is tested against that.
//!
//! **The kernel IR** ([`kernel`]) is one program that runs once per point of a grid, over buffers. It has
//! two phases of one type: *tile* (small rectangles of numbers, no threads) and *lane* (vectors, scratch
//! memory, microkernels). Its meaning, in either phase, is its interpreter ([`kernel::run`]).
//!
//! This crate knows no backend and does no input or output.

pub mod attr;
pub mod codes;
pub mod diag;
pub mod dim;
pub mod entity;
pub mod estimate;
pub mod eval;
pub mod graph;
pub mod kernel;
pub mod lower;
pub mod op;
pub mod ops;
pub mod poly;
pub mod scales;
#[doc(hidden)]
pub mod testing;
pub mod text;
pub mod types;
pub mod verify;
pub mod vjp;
