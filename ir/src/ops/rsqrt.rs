//! `rsqrt`: one over the square root.

use super::pointwise::unary;

unary! {
    /// One over the square root of each element: `1/√x`.
    "rsqrt" => Rsqrt; eval |x| x.sqrt().recip(); tile |x| x.rsqrt();
    // d x^-½ = -½ y³ dx
    vjp |cx, _x, g| {
        let y = cx.out();
        let cube = cx.mul(y, y)?;
        let cube = cx.mul(cube, y)?;
        let g = cx.scale(g, -0.5)?;
        cx.mul(g, cube)
    }
}
