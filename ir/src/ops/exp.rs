//! `exp`: the exponential.

use super::pointwise::unary;

unary! {
    /// The exponential of each element: `e^x`.
    "exp" => Exp; eval |x| x.exp(); tile |x| x.exp();
    // d eˣ = eˣ dx
    vjp |cx, _x, g| {
        let y = cx.out();
        cx.mul(g, y)
    }
}
