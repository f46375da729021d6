//! `sigmoid`: the logistic function.

use super::pointwise::unary;

unary! {
    /// The logistic function of each element: `1/(1 + e^-x)`.
    "sigmoid" => Sigmoid; eval |x| 1.0 / (1.0 + (-x).exp()); tile |x| x.sigmoid()
}
