//! `step`: which elements are positive.

use super::pointwise::unary;

unary! {
    /// 1 for each positive element, 0 for the others, and 1/2 for zeros (Heaviside's function).
    "step" => Step; eval |x| if x > 0.0 { 1.0 } else if x == 0.0 { 0.5 } else { 0.0 };
    tile |x| {
        let (k, zero) = (x.build(), x.build().float(0.0));
        zero.lt(x).select(k.float(1.0), x.equals(zero).select(k.float(0.5), zero))
    };
    vjp |cx, x, _g| {
        let ty = cx.ty(x);
        cx.full(0.0, &ty)
    }
}
