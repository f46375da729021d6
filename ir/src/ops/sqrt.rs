//! `sqrt`: the square root.

use super::pointwise::unary;

unary! {
    /// The square root of each element.
    "sqrt" => Sqrt; eval |x| x.sqrt(); tile |x| x.sqrt()
}
