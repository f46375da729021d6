//! Forms for all lengths: where they change, what they take, and that a function has what it needs of them.

mod bodies;
mod costs;
mod crossover;
#[path = "../form/support.rs"]
mod support;
