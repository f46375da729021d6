//! `log`: the logarithm.

use super::pointwise::unary;

unary! {
    /// The natural logarithm of each element.
    "log" => Log; eval |x| x.ln(); tile |x| x.log();
    vjp |cx, x, g| cx.div(g, x)
}
