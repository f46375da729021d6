//! `silu`: the gate of SwiGLU.

use super::pointwise::unary;

unary! {
    /// The sigmoid-weighted unit (Elfwing et al. 2017): `x / (1 + e^-x)`.
    "silu" => Silu; eval |x| x / (1.0 + (-x).exp()); tile |x| x * x.sigmoid()
}
