//! The lane phase of a kernel computes what its tile phase does.

mod attention;
mod carried;
mod elementwise;
mod folds;
mod products;
mod random;
mod scaled;
mod sorting;
mod sums;
mod support;
