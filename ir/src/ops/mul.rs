//! `mul`: products.

use super::pointwise::binary;

binary! {
    /// The product of two tensors, element by element.
    "mul" => Mul; infer broadcast; eval |x, y| x * y; tile |x, y| x * y;
    vjp |cx, a, b, g| [cx.mul(g, b)?, cx.mul(g, a)?]
}
