//! Where the cheaper form changes: how many new tokens make it pay to expand keys and values.

use super::pieces::Search;
use crate::cost::Lengths;
use crate::rewrite::{Side, Sides};
use eva_ir::diag::Diag;
use std::collections::BTreeMap;

/// The smallest numbers of new tokens with which keys and values are expanded; `None` where they never are (or there are
/// no latents).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Crossover {
    /// For the keys.
    pub key: Option<i64>,
    /// For the values.
    pub value: Option<i64>,
}

/// Finds the crossover by bisection, for so many sequences, each attending to `cached` tokens (the new ones included).
pub fn crossover(search: &Search, lengths: &Lengths, batch: i64, cached: i64) -> Result<Crossover, Diag> {
    let mut seen: BTreeMap<i64, Sides> = BTreeMap::new();
    let mut side = |pick: fn(&Sides) -> Option<Side>| -> Result<Option<i64>, Diag> {
        let mut expanded = |new: i64| -> Result<bool, Diag> {
            let sides = match seen.get(&new) {
                Some(sides) => *sides,
                None => {
                    let selection = search.cheapest(&lengths.sizes(batch, new, cached))?;
                    *seen.entry(new).or_insert(search.s.sides(&selection))
                }
            };
            Ok(pick(&sides) == Some(Side::Expanded))
        };
        // Not expanded with `low`, expanded with `high`.
        let (mut low, mut high) = (0, cached);
        if cached < 1 || !expanded(high)? {
            return Ok(None);
        }
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            *(if expanded(middle)? { &mut high } else { &mut low }) = middle;
        }
        Ok(Some(high))
    };
    Ok(Crossover { key: side(|sides| sides.key)?, value: side(|sides| sides.value)? })
}
