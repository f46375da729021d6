//! `add`: sums.

use super::pointwise::binary;

binary! {
    /// The sum of two tensors, element by element.
    "add" => Add; infer broadcast; eval |x, y| x + y; tile |x, y| x + y;
    vjp |cx, _a, _b, g| [g, g]
}
