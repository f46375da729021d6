//! What tensor cores make of a sum of products of 8-bit floats.
//!
//! Hopper's keep few bits while they add: the products of one instruction and the sum so far are aligned to the largest of
//! them and cut off some bits below its leading one (DeepSeek-V3, arXiv 2412.19437, section 3.3.2: 14 bits, and an error
//! of nearly 2 % for sums of 4096 terms). Adding such partial sums to an `f32` every 128 terms, as eva's kernels do, keeps
//! the error of one partial sum.

/// How a sum is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accumulator {
    /// How many bits of the largest addend are kept, the leading one included.
    pub bits: i32,
    /// Terms that are added at once: 32 for 8-bit floats on Hopper.
    pub at_once: usize,
    /// After how many terms the partial sum is added to an `f32`; never, if none.
    pub promoted: Option<usize>,
}

impl Accumulator {
    /// Hopper's for 8-bit floats.
    pub const HOPPER: Accumulator = Accumulator { bits: 14, at_once: 32, promoted: None };

    /// The sum of `terms`, which are products of two 8-bit floats.
    pub fn sum(&self, terms: &[f64]) -> f64 {
        let mut total = 0f32;
        for part in terms.chunks(self.promoted.unwrap_or(terms.len()).max(1)) {
            let partial = part.chunks(self.at_once.max(1)).fold(0.0, |sum, terms| self.add(sum, terms));
            total += partial as f32;
        }
        f64::from(total)
    }

    /// `sum` and `terms`, each cut off at the same place.
    fn add(&self, sum: f64, terms: &[f64]) -> f64 {
        let all = || terms.iter().copied().chain([sum]);
        let largest = all().fold(0.0, |m: f64, x| m.max(x.abs()));
        if largest == 0.0 || !largest.is_finite() {
            return all().sum();
        }
        let step = 2f64.powi(largest.log2().floor() as i32 + 1 - self.bits);
        all().map(|x| (x / step).trunc() * step).sum()
    }
}
