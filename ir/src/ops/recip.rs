//! `recip`: one over each element.

use super::pointwise::unary;

unary! {
    /// One over each element: `1/x`.
    "recip" => Recip; eval |x| x.recip(); tile |x| x.recip()
}
