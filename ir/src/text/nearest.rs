//! "Did you mean": the known name that a misspelt one is closest to.

/// Longer names get no suggestions, which keeps the search short on any input.
const MAX_LEN: usize = 64;
/// Nor are more names than this looked at.
const MAX_NAMES: usize = 2000;

/// The name of `known` that needs the fewest edits to become `name`, if those are few.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if name.len() > MAX_LEN {
        return None;
    }
    let limit = if name.len() < 2 { 0 } else { (name.len() / 3).max(1) };
    let close = |other: &&str| other.len() <= MAX_LEN && other.len().abs_diff(name.len()) <= limit;
    known
        .into_iter()
        .take(MAX_NAMES)
        .filter(close)
        .map(|other| (distance(name.as_bytes(), other.as_bytes()), other))
        .filter(|&(edits, other)| edits <= limit && other != name)
        .min()
        .map(|(_, other)| other)
}

/// How many bytes to insert, remove, change or swap with their neighbour (Damerau-Levenshtein, restricted).
fn distance(a: &[u8], b: &[u8]) -> usize {
    let mut before: Vec<usize> = Vec::new();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut next = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let change = row[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            next[j] = change.min(row[j] + 1).min(next[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                next[j] = next[j].min(before[j - 2] + 1);
            }
        }
        before = std::mem::replace(&mut row, next);
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn suggests_what_is_close_and_nothing_else() {
        let known = ["einsum", "rms_norm", "softmax", "causal_softmax", "add", "sum"];
        assert_eq!(nearest("einsm", known), Some("einsum"));
        assert_eq!(nearest("esinum", known), Some("einsum"));
        assert_eq!(nearest("rmsnorm", known), Some("rms_norm"));
        assert_eq!(nearest("ad", known), Some("add"));
        assert_eq!(nearest("convolution", known), None);
        assert_eq!(nearest("q", ["b"]), None);
        assert_eq!(nearest(&"a".repeat(1000), ["aaa"]), None);
    }
}
