//! `mul`: products.

use super::pointwise::binary;

binary! {
    /// The product of two tensors, element by element.
    "mul" => Mul; infer broadcast; eval |x, y| x * y; tile |x, y| x * y
}
