//! Losses that are no numbers, or far above those before.

use super::checkpoint::RunState;

/// How much of the mean stays with each loss: about the last fifty count.
const STAYS: f64 = 0.98;

/// Losses before a spike is looked for.
const LEAST: u64 = 20;

/// What a loss is, seen beside those before.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict {
    /// Nothing to be said.
    Usual,
    /// Above the mean of those before by so many of their standard deviations.
    Spike(f64),
}

/// Looks at a loss, and remembers it in `state`. A spike is one above the mean by `limit` standard deviations; 0 for none.
pub fn look(state: &mut RunState, loss: f64, limit: f64) -> Verdict {
    let [mean, square] = state.recent;
    // Losses that hardly differ would make a spike of nothing.
    let deviation = (square - mean * mean).max(0.0).sqrt().max(1e-3 * mean.abs());
    let above = (loss - mean) / deviation.max(f64::MIN_POSITIVE);
    let spike = limit > 0.0 && state.losses >= LEAST && above > limit;
    // The first losses count alike.
    let stays = STAYS.min(state.losses as f64 / (state.losses + 1) as f64);
    state.losses += 1;
    // A spike counts as if it were just within the limit, or it would hide the next.
    let counted = if spike { mean + limit * deviation } else { loss };
    let join = |old: f64, new: f64| old * stays + new * (1.0 - stays);
    state.recent = [join(mean, counted), join(square, counted * counted)];
    if spike { Verdict::Spike(above) } else { Verdict::Usual }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spikes_stand_out() {
        let mut state = RunState::default();
        // Falling, with noise.
        let loss = |i: u64| 5.0 - 0.01 * i as f64 + 0.1 * ((i * 7919 % 13) as f64 - 6.0) / 6.0;
        for i in 0..100 {
            assert_eq!(look(&mut state, loss(i), 8.0), Verdict::Usual, "{i}");
        }
        let Verdict::Spike(above) = look(&mut state, 12.0, 8.0) else { panic!("it is one") };
        assert!(above > 8.0);
        assert_eq!(look(&mut state, loss(101), 8.0), Verdict::Usual);
        assert!(matches!(look(&mut state, 12.0, 8.0), Verdict::Spike(_)), "the first hides no second");
        assert_eq!(look(&mut state, 70.0, 0.0), Verdict::Usual, "none are looked for");
        let mut early = RunState::default();
        look(&mut early, 1.0, 8.0);
        assert_eq!(look(&mut early, 9.0, 8.0), Verdict::Usual, "too few to tell");
    }
}
