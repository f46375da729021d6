//! Choosing the next token from logits.

use std::cmp::Ordering;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use thiserror::Error;

/// How tokens are chosen. The default is greedy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 chooses the largest logit and ignores the other fields.
    pub temperature: f64,
    /// Considers only this many largest logits.
    pub top_k: Option<usize>,
    /// Considers only the most probable tokens, as few as reach this probability together (after `top_k`).
    pub top_p: Option<f64>,
    /// Where the random numbers start.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Sampling {
        Sampling { temperature: 0.0, top_k: None, top_p: None, seed: 0 }
    }
}

/// Why no token could be chosen. Every message is complete.
#[derive(Clone, Debug, Error, PartialEq)]
#[allow(missing_docs)]
pub enum SampleError {
    #[error("temperature is {found}; it must be a finite number, 0 (greedy) or above")]
    Temperature { found: f64 },
    #[error("top-k is 0; it must be at least 1: leave it out to consider every token")]
    TopK,
    #[error("top-p is {found}; it must be above 0 and at most 1: leave it out to consider every token")]
    TopP { found: f64 },
    #[error(
        "step {step}: the logit of token {token} is {found}; \
         the weights are damaged, or the computation overflowed"
    )]
    NotANumber { step: u64, token: usize, found: f32 },
    #[error("step {step}: there is no token to choose: {}", if *.tokens == 0 { "no logits" } else { "every logit is -inf" })]
    NothingToChoose { step: u64, tokens: usize },
}

/// Chooses tokens one after the other, for one sequence.
///
/// Draws exactly one random number per step and uses no function of the system's mathematics library, so a seed
/// means the same tokens on every machine that computes the same logits.
#[derive(Clone, Debug)]
pub struct Sampler {
    sampling: Sampling,
    rng: ChaCha8Rng,
    step: u64,
}

impl Sampler {
    /// A sampler at step 0.
    pub fn new(sampling: Sampling) -> Result<Sampler, SampleError> {
        Self::for_sequence(sampling, 0)
    }

    /// The sampler of sequence number `sequence` of a batch: same seed, other random numbers.
    pub fn for_sequence(sampling: Sampling, sequence: u64) -> Result<Sampler, SampleError> {
        if !sampling.temperature.is_finite() || sampling.temperature < 0.0 {
            return Err(SampleError::Temperature { found: sampling.temperature });
        }
        if sampling.top_k == Some(0) {
            return Err(SampleError::TopK);
        }
        if let Some(found) = sampling.top_p
            && !(found > 0.0 && found <= 1.0)
        {
            return Err(SampleError::TopP { found });
        }
        let mut rng = ChaCha8Rng::seed_from_u64(sampling.seed);
        rng.set_stream(sequence);
        Ok(Sampler { sampling, rng, step: 0 })
    }

    /// Chooses a token id, the index of a logit; of equal logits the lowest id comes first.
    ///
    /// A logit of -inf excludes its token; NaN and +inf are errors that name the step (counted from 0).
    pub fn sample(&mut self, logits: &[f32]) -> Result<u32, SampleError> {
        let step = self.step;
        if let Some((token, &found)) =
            logits.iter().enumerate().find(|(_, l)| l.is_nan() || **l == f32::INFINITY)
        {
            return Err(SampleError::NotANumber { step, token, found });
        }
        let mut best = None;
        for (id, &logit) in logits.iter().enumerate() {
            if logit > best.map_or(f32::NEG_INFINITY, |(_, l)| l) {
                best = Some((id, logit));
            }
        }
        let Some((best, max)) = best else {
            return Err(SampleError::NothingToChoose { step, tokens: logits.len() });
        };
        self.step += 1;
        let draw = (self.rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        if self.sampling.temperature == 0.0 {
            return Ok(best as u32);
        }
        let candidates = self.candidates(logits, max);
        let total: f64 = candidates.iter().map(|c| c.weight).sum();
        let mut left = draw * total;
        for candidate in &candidates {
            left -= candidate.weight;
            if left < 0.0 {
                return Ok(candidate.id);
            }
        }
        // Rounding can leave a crumb after the last one.
        Ok(candidates.iter().rev().find(|c| c.weight > 0.0).map_or(best as u32, |c| c.id))
    }

    /// The tokens that may be chosen, with weights proportional to their probabilities.
    fn candidates(&self, logits: &[f32], max: f32) -> Vec<Candidate> {
        let weigh = |(id, &logit): (usize, &f32)| {
            let weight = exp((f64::from(logit) - f64::from(max)) / self.sampling.temperature);
            Candidate { id: id as u32, logit, weight }
        };
        let mut all: Vec<Candidate> = logits.iter().enumerate().map(weigh).collect();
        if let Some(k) = self.sampling.top_k
            && k < all.len()
        {
            all.select_nth_unstable_by(k - 1, Candidate::order);
            all.truncate(k);
            all.sort_unstable_by(Candidate::order);
        }
        let Some(top_p) = self.sampling.top_p.filter(|&p| p < 1.0) else { return all };
        let total: f64 = all.iter().map(|c| c.weight).sum();
        // All tokens below this weight together have less than (1 - top_p) / 2 of the total, so the ones above
        // reach top_p; it spares sorting a whole vocabulary.
        let floor = total * (1.0 - top_p) / (2 * all.len()) as f64;
        all.retain(|c| c.weight >= floor);
        all.sort_unstable_by(Candidate::order);
        let mut sum = 0.0;
        let enough = all.iter().position(|c| {
            sum += c.weight;
            sum >= top_p * total
        });
        all.truncate(enough.map_or(all.len(), |i| i + 1));
        all
    }
}

#[derive(Clone, Copy, Debug)]
struct Candidate {
    id: u32,
    logit: f32,
    weight: f64,
}

impl Candidate {
    fn order(a: &Candidate, b: &Candidate) -> Ordering {
        b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id))
    }
}

/// `e^x` for `x <= 0` from additions and multiplications alone, which round alike on every machine; a few units in
/// the last place from the true value, 0 below -708.
fn exp(x: f64) -> f64 {
    const LN2_HIGH: f64 = 6.931_471_803_691_238e-1;
    const LN2_LOW: f64 = 1.908_214_929_270_587_7e-10;
    if x < -708.0 {
        return 0.0;
    }
    let k = (x * std::f64::consts::LOG2_E - 0.5) as i64;
    let r = (x - k as f64 * LN2_HIGH) - k as f64 * LN2_LOW;
    let mut sum = 1.0;
    for n in (1..=14).rev() {
        sum = 1.0 + sum * r / f64::from(n);
    }
    sum * f64::from_bits(((1023 + k) as u64) << 52)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(temperature: f64, top_k: Option<usize>, top_p: Option<f64>, seed: u64) -> Sampler {
        Sampler::new(Sampling { temperature, top_k, top_p, seed }).unwrap()
    }

    fn counts(sampler: &mut Sampler, logits: &[f32], draws: usize) -> Vec<usize> {
        let mut counts = vec![0; logits.len()];
        for _ in 0..draws {
            counts[sampler.sample(logits).unwrap() as usize] += 1;
        }
        counts
    }

    #[test]
    fn exp_is_the_exponential() {
        for i in 0..20_000 {
            let x = -f64::from(i) * 0.0353;
            let (found, expected) = (exp(x), x.exp());
            assert!((found - expected).abs() <= 1e-15 * expected, "exp({x}) = {found}, not {expected}");
        }
        assert_eq!((exp(0.0), exp(-709.0), exp(f64::NEG_INFINITY)), (1.0, 0.0, 0.0));
    }

    #[test]
    fn greedy_takes_the_largest_and_of_equals_the_lowest_id() {
        let mut greedy = sampler(0.0, None, None, 7);
        assert_eq!(greedy.sample(&[-1.0, 3.5, 2.0, 3.5, -0.0]), Ok(1));
        assert_eq!(greedy.sample(&[f32::NEG_INFINITY, -7.0, f32::NEG_INFINITY]), Ok(1));
        assert_eq!(greedy.sample(&[-0.0, 0.0]), Ok(0));
    }

    #[test]
    fn draws_follow_the_probabilities() {
        let logits = [0.3f32, -1.1, 2.0, 0.9, f32::NEG_INFINITY, -0.4];
        for temperature in [0.7, 1.0, 2.3] {
            let draws = 40_000;
            let found = counts(&mut sampler(temperature, None, None, 11), &logits, draws);
            let weights: Vec<f64> = logits.iter().map(|&l| (f64::from(l) / temperature).exp()).collect();
            let total: f64 = weights.iter().sum();
            for (id, (&n, w)) in found.iter().zip(&weights).enumerate() {
                let p = w / total;
                let deviation = (draws as f64 * p * (1.0 - p)).sqrt();
                let off = (n as f64 - draws as f64 * p).abs();
                assert!(off <= 4.5 * deviation, "T={temperature} token {id}: {n} of {draws}, p {p}");
            }
        }
    }

    #[test]
    fn top_k_keeps_the_k_largest_with_ties_by_id() {
        // 1.5 three times: with k = 3 the lowest two ids of it stay, beside 2.0.
        let logits = [1.5f32, 0.0, 1.5, 2.0, 1.5, -3.0, 1.0];
        let found = counts(&mut sampler(5.0, Some(3), None, 3), &logits, 3000);
        let chosen: Vec<usize> = (0..7).filter(|&i| found[i] > 0).collect();
        assert_eq!(chosen, [0, 2, 3]);
        let found = counts(&mut sampler(5.0, Some(1), None, 3), &logits, 100);
        assert_eq!(found[3], 100);
        let found = counts(&mut sampler(5.0, Some(99), None, 3), &logits, 3000);
        assert!(found.iter().all(|&n| n > 0));
    }

    #[test]
    fn top_p_keeps_the_smallest_set_that_reaches_p() {
        // Probabilities 0.5, 0.25, 0.125, 0.0625, 0.0625 in another order.
        let logits: Vec<f32> = [0.125f32, 0.5, 0.0625, 0.25, 0.0625].iter().map(|p: &f32| p.ln()).collect();
        let kept = |top_p: f64, top_k| {
            let found = counts(&mut sampler(1.0, top_k, Some(top_p), 5), &logits, 4000);
            (0..5).filter(|&i| found[i] > 0).collect::<Vec<_>>()
        };
        assert_eq!(kept(0.3, None), [1]);
        assert_eq!(kept(0.49, None), [1]);
        assert_eq!(kept(0.51, None), [1, 3]);
        assert_eq!(kept(0.8, None), [0, 1, 3]);
        assert_eq!(kept(0.9, None), [0, 1, 2, 3]);
        assert_eq!(kept(1.0, None), [0, 1, 2, 3, 4]);
        // After top-k the rest is renormalised: 0.5 of 0.75 is 0.667.
        assert_eq!(kept(0.6, Some(2)), [1]);
        assert_eq!(kept(0.7, Some(2)), [1, 3]);
    }

    #[test]
    fn a_seed_fixes_the_tokens() {
        let logits: Vec<f32> = (0..97).map(|i| (i * 37 % 97) as f32 / 31.0).collect();
        let run = |seed, sequence| {
            let sampling = Sampling { temperature: 0.9, top_k: Some(50), top_p: Some(0.95), seed };
            let mut sampler = Sampler::for_sequence(sampling, sequence).unwrap();
            (0..12).map(|_| sampler.sample(&logits).unwrap()).collect::<Vec<_>>()
        };
        // Written down, so that another machine that draws otherwise is noticed.
        assert_eq!(run(42, 0), [23, 33, 39, 65, 26, 13, 26, 70, 15, 68, 73, 20]);
        assert_eq!(run(42, 0), run(42, 0));
        assert_ne!(run(42, 0), run(43, 0));
        assert_ne!(run(42, 0), run(42, 1));
    }

    #[test]
    fn wrong_parameters_are_named() {
        let message = |temperature, top_k, top_p| {
            Sampler::new(Sampling { temperature, top_k, top_p, seed: 0 }).unwrap_err().to_string()
        };
        let temperature =
            |found| format!("temperature is {found}; it must be a finite number, 0 (greedy) or above");
        assert_eq!(message(-0.5, None, None), temperature("-0.5"));
        assert_eq!(message(f64::NAN, None, None), temperature("NaN"));
        assert_eq!(message(f64::INFINITY, None, None), temperature("inf"));
        assert_eq!(
            message(1.0, Some(0), None),
            "top-k is 0; it must be at least 1: leave it out to consider every token"
        );
        for found in [0.0, -0.1, 1.5, f64::NAN] {
            assert_eq!(
                message(1.0, None, Some(found)),
                format!(
                    "top-p is {found}; it must be above 0 and at most 1: leave it out to consider every token"
                )
            );
        }
    }

    #[test]
    fn logits_that_are_no_numbers_name_the_step() {
        let mut sampler = sampler(1.0, None, None, 0);
        sampler.sample(&[0.5, 1.0]).unwrap();
        sampler.sample(&[0.5, 1.0]).unwrap();
        assert_eq!(
            sampler.sample(&[0.5, 1.0, f32::NAN]).unwrap_err().to_string(),
            "step 2: the logit of token 2 is NaN; the weights are damaged, or the computation overflowed"
        );
        assert_eq!(
            sampler.sample(&[f32::INFINITY, 1.0]).unwrap_err().to_string(),
            "step 2: the logit of token 0 is inf; the weights are damaged, or the computation overflowed"
        );
        assert_eq!(
            sampler.sample(&[]).unwrap_err().to_string(),
            "step 2: there is no token to choose: no logits"
        );
        assert_eq!(
            sampler.sample(&[f32::NEG_INFINITY; 3]).unwrap_err().to_string(),
            "step 2: there is no token to choose: every logit is -inf"
        );
    }
}
