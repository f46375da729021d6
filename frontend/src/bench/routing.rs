//! Random routing: which experts each token goes to, and its rows sorted by them.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// What `sort_by_expert` makes of random choices.
pub struct Routing {
    /// The item, `token · k + j`, at each place.
    pub order: Vec<i32>,
    /// The place of each item.
    pub position: Vec<i32>,
    /// Where each expert's rows begin, and one past the last.
    pub offsets: Vec<i32>,
}

impl Routing {
    /// `tokens` tokens that go to `k` of `experts` experts each, all different.
    pub fn random(tokens: usize, k: usize, experts: usize, seed: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut deck: Vec<usize> = (0..experts).collect();
        let mut rows = vec![Vec::new(); experts];
        for token in 0..tokens {
            for j in 0..k.min(experts) {
                let other = j + random.next_u64() as usize % (experts - j);
                deck.swap(j, other);
                rows[deck[j]].push((token * k + j) as i32);
            }
        }
        let order = rows.concat();
        let mut position = vec![0; order.len()];
        for (place, &item) in order.iter().enumerate() {
            position[item as usize] = place as i32;
        }
        Self { order, position, offsets: offsets(rows.iter().map(Vec::len)) }
    }

    /// `each` rows for each of `experts` experts; nobody says which tokens they are of.
    pub fn even(each: usize, experts: usize) -> Vec<i32> {
        offsets(std::iter::repeat_n(each, experts))
    }
}

fn offsets(rows: impl Iterator<Item = usize>) -> Vec<i32> {
    let mut offsets = vec![0];
    for n in rows {
        offsets.push(offsets[offsets.len() - 1] + n as i32);
    }
    offsets
}

/// How many experts have rows.
pub fn hit(offsets: &[i32]) -> usize {
    offsets.windows(2).filter(|pair| pair[0] < pair[1]).count()
}

/// The expert of a row.
pub fn expert_of(offsets: &[i32], row: usize) -> usize {
    offsets.partition_point(|&first| first as usize <= row) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_goes_to_different_experts() {
        let (tokens, k, experts) = (37, 3, 11);
        let Routing { order, position, offsets } = Routing::random(tokens, k, experts, 5);
        assert_eq!((order.len(), offsets.len(), offsets[experts]), (tokens * k, experts + 1, 111));
        assert!(hit(&offsets) > k);
        for token in 0..tokens {
            let places = position[token * k..][..k].iter().map(|&place| place as usize);
            assert!(places.clone().enumerate().all(|(j, place)| order[place] == (token * k + j) as i32));
            let mut chosen: Vec<usize> = places.map(|place| expert_of(&offsets, place)).collect();
            chosen.sort();
            chosen.dedup();
            assert_eq!(chosen.len(), k);
        }
    }

    #[test]
    fn empty_experts_have_no_rows() {
        let offsets = [0, 0, 3, 3, 5];
        assert_eq!([0, 2, 3, 4].map(|row| expert_of(&offsets, row)), [1, 1, 3, 3]);
        assert_eq!(hit(&offsets), 2);
        assert_eq!(Routing::even(4, 3), [0, 4, 8, 12]);
    }
}
