//! `maximum`: the larger of two.

use super::pointwise::binary;

binary! {
    /// The larger of two tensors' elements.
    "maximum" => Maximum; infer broadcast; eval |x, y| x.max(y); tile |x, y| x.max(y)
}
