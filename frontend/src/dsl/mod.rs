//! The DSL: Rust expressions that record a graph.
//!
//! A [`Program`] collects functions; inside one, a [`Scope`] declares inputs, weights and state, and a [`Tensor`]
//! has operators and a method for every op. Nothing is computed: each call adds a value to the function.
//!
//! A mistake does not panic and is not a `Result` to be passed on. It is noted with the line it was made on, the tensor
//! it would have given stays silent wherever it is used, and [`Program::finish`] returns every mistake at once.
//!
//! ```
//! use eva::prelude::*;
//!
//! let p = Program::new();
//! let [b, s] = [p.dim("b"), p.dim("s")]; // known when the program runs
//! let [m, i] = [p.dim_fixed("m", 64), p.dim_fixed("i", 160)];
//!
//! // A block is an ordinary Rust function.
//! fn swiglu(w: &Scope, x: &Tensor, m: &Dim, i: &Dim) -> Tensor {
//!     let gate = x.linear(&w.weight("gate_proj.weight", BF16, [i, m]));
//!     let up = x.linear(&w.weight("up_proj.weight", BF16, [i, m]));
//!     (gate.silu() * up).linear(&w.weight("down_proj.weight", BF16, [m, i]))
//! }
//!
//! // A layer is a function of the program: compiled once, called with different weights.
//! let layer = p.function("layer", |f| {
//!     let x = f.input("x", F32, [&b, &s, &m]);
//!     let normed = x.rms_norm(&f.weight("norm.weight", BF16, [&m]), 1e-6);
//!     &x + swiglu(&f.scope("mlp"), &normed, &m, &i)
//! });
//! p.function("main", |f| {
//!     let x = f.input("x", F32, [&b, &s, &m]);
//!     (0..3).fold(x, |x, i| f.call(&layer, &format!("layers.{i}"), &x)).named("y")
//! });
//! let module = p.finish().expect("the program is right");
//! assert_eq!(module.funcs.len(), 2);
//! ```

mod args;
mod call;
mod methods;
mod naming;
mod operators;
mod program;
mod record;
mod rotary;
mod scope;
mod tensor;

pub use args::{Operands, Results, SliceRange};
pub use call::Func;
pub use methods::Groups;
pub use program::Program;
pub use rotary::{Pairs, Rotary, Yarn};
pub use scope::{Scope, State};
pub use tensor::Tensor;
