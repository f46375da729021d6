//! `rsqrt`: one over the square root.

use super::pointwise::unary;

unary! {
    /// One over the square root of each element: `1/√x`.
    "rsqrt" => Rsqrt; eval |x| x.sqrt().recip(); tile |x| x.rsqrt()
}
