//! The order of sequences: a permutation that is computed place by place, so that an order takes no memory and a run can go on
//! anywhere in it.
//!
//! It is a Feistel network over the smallest even number of bits that counts to `n`, whose rounds are splitmix64's finalizer
//! (Steele, Lea and Flood, 2014); a place that falls outside goes through again, until it is inside.

/// Rounds of the network. Four make a permutation that cannot be told from a random one (Luby and Rackoff, 1988).
const ROUNDS: u64 = 4;

/// A permutation of the numbers below `n`.
#[derive(Clone, Copy, Debug)]
pub struct Order {
    n: u64,
    /// Bits of a half.
    half: u32,
    key: u64,
}

/// The finalizer of splitmix64.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

impl Order {
    /// The order of `n` sequences in one epoch.
    pub fn new(n: u64, seed: u64, epoch: u64) -> Self {
        let bits = u64::BITS - n.saturating_sub(1).leading_zeros();
        Self { n, half: bits.div_ceil(2).max(1), key: mix(mix(seed) ^ epoch) }
    }

    /// The sequence at a place, both below `n`.
    pub fn at(&self, place: u64) -> u64 {
        let mask = (1u64 << self.half) - 1;
        let mut x = place;
        loop {
            let (mut left, mut right) = (x >> self.half, x & mask);
            for round in 0..ROUNDS {
                let f = mix(self.key ^ (round << 56) ^ right) & mask;
                (left, right) = (right, left ^ f);
            }
            x = (left << self.half) | right;
            if x < self.n {
                return x;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sequence_comes_once() {
        for n in [1, 2, 3, 5, 16, 17, 255, 1000, 4097] {
            let order = Order::new(n, 3, 1);
            let mut seen: Vec<u64> = (0..n).map(|i| order.at(i)).collect();
            seen.sort_unstable();
            assert!(seen.into_iter().eq(0..n), "{n}");
        }
    }

    #[test]
    fn seeds_and_epochs_have_their_own_order() {
        let first = |seed, epoch| -> Vec<u64> {
            let order = Order::new(1000, seed, epoch);
            (0..8).map(|i| order.at(i)).collect()
        };
        let all = [first(1, 0), first(2, 0), first(1, 1), first(0, 1)];
        for i in 0..all.len() {
            assert!(all[..i].iter().all(|other| *other != all[i]));
        }
        // Written down, so that a change of the order is noticed: it is part of what a seed means.
        assert_eq!(first(42, 0), [458, 175, 584, 683, 29, 369, 370, 817]);
    }

    #[test]
    fn neighbours_come_apart() {
        let n = 1 << 14;
        let order = Order::new(n, 9, 0);
        let near = (1..n).filter(|&i| order.at(i).abs_diff(order.at(i - 1)) < n / 64).count() as f64;
        // Two random places are that near with a probability of about 1/32.
        let expected = n as f64 / 32.0;
        assert!((near - expected).abs() < 6.0 * expected.sqrt(), "{near} of {expected}");
    }
}
