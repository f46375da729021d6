//! `sub`: differences.

use super::pointwise::binary;

binary! {
    /// The difference of two tensors, element by element.
    "sub" => Sub; infer broadcast; eval |x, y| x - y; tile |x, y| x - y;
    vjp |cx, _a, _b, g| [g, cx.scale(g, -1.0)?]
}
