//! `maximum`: the larger of two.

use super::pointwise::binary;
use super::step::Step;

binary! {
    /// The larger of two tensors' elements.
    "maximum" => Maximum; infer broadcast; eval |x, y| x.max(y); tile |x, y| x.max(y);
    vjp |cx, a, b, g| {
        // All of it to the larger, half to each of equals.
        let difference = cx.sub(a, b)?;
        let first = cx.op(Step {}, &[difference])?;
        let da = cx.mul(g, first)?;
        [da, cx.sub(g, da)?]
    }
}
