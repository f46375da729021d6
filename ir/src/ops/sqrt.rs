//! `sqrt`: the square root.

use super::pointwise::unary;

unary! {
    /// The square root of each element.
    "sqrt" => Sqrt; eval |x| x.sqrt(); tile |x| x.sqrt();
    // d √x = dx / 2√x
    vjp |cx, _x, g| {
        let y = cx.out();
        let g = cx.scale(g, 0.5)?;
        cx.div(g, y)
    }
}
