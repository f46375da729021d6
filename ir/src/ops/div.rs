//! `div`: quotients.

use super::pointwise::binary;

binary! {
    /// The quotient of two tensors of floats, element by element.
    "div" => Div; infer broadcast_floats; eval |x, y| x / y; tile |x, y| x / y
}
