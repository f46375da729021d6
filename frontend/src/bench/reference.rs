//! What results should be, in `f64`; and how far they are from it.

use eva_runtime::Tensor;
use eva_runtime::tensor::numbers;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// The norm of the difference over the norm of the reference. NaN if any number is.
pub fn relative_error(pairs: impl IntoIterator<Item = (f64, f64)>) -> f64 {
    let sums = pairs.into_iter().fold((0.0, 0.0), |(off, all), (have, want)| {
        (off + (have - want) * (have - want), all + want * want)
    });
    (sums.0 / sums.1).sqrt()
}

/// The sum of products.
pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

/// The elements `range` of a tensor.
pub fn part(tensor: &Tensor, first: usize, n: usize) -> Vec<f64> {
    let size = tensor.dtype().bytes() as usize;
    numbers(tensor.dtype(), &tensor.bytes()[first * size..][..n * size])
}

/// `n` random places below the extents.
pub fn places<const D: usize>(n: usize, extents: [usize; D], seed: u64) -> Vec<[usize; D]> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut place = || extents.map(|extent| (random.next_u64() % extent.max(1) as u64) as usize);
    (0..n).map(|_| place()).collect()
}

/// One row of attention: the average of `value(j)`, each of `width` numbers, by the softmax of `scores`.
pub fn attend(scores: &[f64], width: usize, value: impl Fn(usize) -> Vec<f64>) -> Vec<f64> {
    let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|score| (score - top).exp()).collect();
    let total: f64 = weights.iter().sum();
    let mut sum = vec![0.0; width];
    for (j, weight) in weights.iter().enumerate() {
        sum.iter_mut().zip(value(j)).for_each(|(sum, x)| *sum += weight / total * x);
    }
    sum
}
