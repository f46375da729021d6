//! `div`: quotients.

use super::pointwise::binary;

binary! {
    /// The quotient of two tensors, element by element; of integers, rounded towards minus infinity.
    "div" => Div; eval |x, y| x / y; tile |x, y| x / y
}
