//! `recip`: one over each element.

use super::pointwise::unary;

unary! {
    /// One over each element: `1/x`.
    "recip" => Recip; eval |x| x.recip(); tile |x| x.recip();
    // d 1/x = -y² dx
    vjp |cx, _x, g| {
        let y = cx.out();
        let square = cx.mul(y, y)?;
        let g = cx.scale(g, -1.0)?;
        cx.mul(g, square)
    }
}
