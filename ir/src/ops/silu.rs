//! `silu`: the gate of SwiGLU.

use super::pointwise::unary;
use super::sigmoid::Sigmoid;

unary! {
    /// The sigmoid-weighted unit (Elfwing et al. 2017): `x / (1 + e^-x)`.
    "silu" => Silu; eval |x| x / (1.0 + (-x).exp()); tile |x| x * x.sigmoid();
    // d x·σ(x) = (σ + y - y·σ) dx, where y = x·σ
    vjp |cx, x, g| {
        let y = cx.op(Silu {}, &[x])?;
        let s = cx.op(Sigmoid {}, &[x])?;
        let rest = cx.mul(y, s)?;
        let rest = cx.sub(y, rest)?;
        let slope = cx.add(s, rest)?;
        cx.mul(g, slope)
    }
}
