//! `sigmoid`: the logistic function.

use super::pointwise::unary;

unary! {
    /// The logistic function of each element: `1/(1 + e^-x)`.
    "sigmoid" => Sigmoid; eval |x| 1.0 / (1.0 + (-x).exp()); tile |x| x.sigmoid();
    // dσ = σ (1 - σ) dx
    vjp |cx, _x, g| {
        let y = cx.out();
        let square = cx.mul(y, y)?;
        let slope = cx.sub(y, square)?;
        cx.mul(g, slope)
    }
}
