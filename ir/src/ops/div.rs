//! `div`: quotients.

use super::pointwise::binary;

binary! {
    /// The quotient of two tensors of floats, element by element.
    "div" => Div; infer broadcast_floats; eval |x, y| x / y; tile |x, y| x / y;
    vjp |cx, _a, b, g| {
        // d a/b = (da - y db) / b
        let da = cx.div(g, b)?;
        let y = cx.out();
        let db = cx.mul(da, y)?;
        [da, cx.scale(db, -1.0)?]
    }
}
