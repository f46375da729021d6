//! Tasks that are made up: sequence `i` is a function of the seed and `i` alone, and there is no end of them.
//!
//! Only the answers have labels. Token 0 fills up, token 1 separates, and symbols begin at 2; arithmetic is text in bytes.
//!
//! | task | a sequence | what is asked for |
//! | --- | --- | --- |
//! | `copy` | `x1 … xn ; x1 … xn` | the second half |
//! | `induction` | symbols, of which one that was seen before is mostly followed by what followed it the first time | that |
//! | `recall` | `k1 v1 … kn vn ; k5 v5 k2 v2 …` | the values after the separator |
//! | `arithmetic` | `17+5=22`, a line each | the digits after `=` and the end of the line |

use super::{DataError, Fit, IGNORED, Source};
use crate::train::config::{DataConfig, DataKind};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// The token that fills up.
const FILL: i64 = 0;
/// The token between question and answer.
const SEPARATOR: i64 = 1;
/// The first symbol.
const FIRST: i64 = 2;
/// Of a stream of numbers for training, the one for held-out data: no run takes so many sequences.
const HELD: u64 = 1 << 62;

/// A task.
pub(super) struct Task {
    kind: DataKind,
    symbols: u64,
    seed: u64,
    held: bool,
}

/// Random numbers of one sequence.
struct Dice(ChaCha8Rng);

impl Dice {
    /// A number below `n`, which is far below 2^32.
    fn below(&mut self, n: u64) -> u64 {
        (u64::from(self.0.next_u32()) * n) >> 32
    }
}

impl Task {
    /// The task of a configuration, or the part of it that is held out.
    pub(super) fn new(config: &DataConfig, fit: &Fit, held: bool) -> Result<Self, DataError> {
        let needed = match config.kind {
            DataKind::Arithmetic => usize::from(b'=') + 1,
            _ => config.symbols.saturating_add(FIRST as usize),
        };
        if needed > fit.vocab {
            let (kind, vocab) = (config.kind, fit.vocab);
            let message = format!("the task `{kind}` needs {needed} tokens, and the model has {vocab}");
            return Err(DataError::Small(message));
        }
        let least = if config.kind == DataKind::Arithmetic { 8 } else { 4 };
        if config.sequence < least {
            let message = format!("the task `{}` needs sequences of {least} tokens at least", config.kind);
            return Err(DataError::Small(message));
        }
        Ok(Self { kind: config.kind, symbols: config.symbols as u64, seed: fit.seed, held })
    }

    /// `n` tokens, and of each whether it is an answer.
    fn make(&self, n: usize, dice: &mut Dice) -> Vec<(i64, bool)> {
        match self.kind {
            DataKind::Induction => self.induction(n, dice),
            DataKind::Recall => self.recall(n, dice),
            DataKind::Arithmetic => arithmetic(n, dice),
            _ => self.copy(n, dice),
        }
    }

    fn symbol(&self, dice: &mut Dice) -> i64 {
        FIRST + dice.below(self.symbols) as i64
    }

    fn copy(&self, n: usize, dice: &mut Dice) -> Vec<(i64, bool)> {
        let symbols: Vec<i64> = (0..(n - 1) / 2).map(|_| self.symbol(dice)).collect();
        let question = symbols.iter().map(|&symbol| (symbol, false));
        let answer = symbols.iter().map(|&symbol| (symbol, true));
        question.chain([(SEPARATOR, false)]).chain(answer).collect()
    }

    fn induction(&self, n: usize, dice: &mut Dice) -> Vec<(i64, bool)> {
        let mut follows: Vec<Option<i64>> = vec![None; self.symbols as usize];
        let mut made: Vec<(i64, bool)> = vec![(self.symbol(dice), false)];
        while made.len() < n {
            let last = (made[made.len() - 1].0 - FIRST) as usize;
            // Some jumps, or a cycle would go on to the end.
            let jumps = dice.below(4) == 0;
            let next = match follows[last] {
                Some(next) if !jumps => (next, true),
                _ => (self.symbol(dice), false),
            };
            follows[last].get_or_insert(next.0);
            made.push(next);
        }
        made
    }

    fn recall(&self, n: usize, dice: &mut Dice) -> Vec<(i64, bool)> {
        // The first half of the symbols are keys, the others values.
        let keys = self.symbols / 2;
        let pairs = (n as u64 / 4).clamp(1, keys);
        let mut all: Vec<i64> = (0..keys as i64).collect();
        let mut pair = |i: u64| {
            let other = i + dice.below(keys - i);
            all.swap(i as usize, other as usize);
            (FIRST + all[i as usize], FIRST + (keys + dice.below(self.symbols - keys)) as i64)
        };
        let known: Vec<(i64, i64)> = (0..pairs).map(&mut pair).collect();
        let mut made: Vec<_> =
            known.iter().flat_map(|&(key, value)| [(key, false), (value, false)]).collect();
        made.push((SEPARATOR, false));
        while made.len() + 2 <= n {
            let (key, value) = known[dice.below(pairs) as usize];
            made.extend([(key, false), (value, true)]);
        }
        made
    }
}

fn arithmetic(n: usize, dice: &mut Dice) -> Vec<(i64, bool)> {
    let mut made = Vec::with_capacity(n + 12);
    while made.len() < n {
        let [a, b] = [0; 2].map(|_| {
            let digits = 1 + dice.below(3);
            dice.below(10u64.pow(digits as u32))
        });
        made.extend(format!("{a}+{b}=").bytes().map(|byte| (i64::from(byte), false)));
        made.extend(format!("{}\n", a + b).bytes().map(|byte| (i64::from(byte), true)));
    }
    made.truncate(n);
    made
}

impl Source for Task {
    fn sequences(&self) -> u64 {
        HELD
    }

    fn read(&self, index: u64, ids: &mut [i64], labels: &mut [i64]) -> Result<(), DataError> {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(if self.held { HELD | index } else { index });
        let made = self.make(ids.len() + 1, &mut Dice(rng));
        let token = |i: usize| made.get(i).copied().unwrap_or((FILL, false));
        for (i, (id, label)) in ids.iter_mut().zip(labels).enumerate() {
            let (next, asked) = token(i + 1);
            (*id, *label) = (token(i).0, if asked { next } else { IGNORED });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;
    use std::path::Path;

    fn sequence(kind: DataKind, length: usize, index: u64, held: bool) -> (Vec<i64>, Vec<i64>) {
        let config = DataConfig { kind, symbols: 13, sequence: length, ..DataConfig::default() };
        let fit = Fit { vocab: 256, eos: None, cache: Path::new(""), seed: 5 };
        let (mut ids, mut labels) = (vec![0; length], vec![0; length]);
        Task::new(&config, &fit, held).unwrap().read(index, &mut ids, &mut labels).unwrap();
        (ids, labels)
    }

    #[test]
    fn copies_are_asked_for() {
        let (ids, labels) = sequence(DataKind::Copy, 11, 3, false);
        let at = ids.iter().position(|id| *id == SEPARATOR).unwrap();
        assert_eq!(at, 5);
        assert_eq!(labels, [&[IGNORED; 5][..], &ids[..5], &[IGNORED]].concat());
        assert_eq!(ids[6..], ids[..5]);
    }

    #[test]
    fn answers_follow_from_what_came_before() {
        for index in 0..50 {
            let (ids, labels) = sequence(DataKind::Induction, 60, index, false);
            let mut follows = HashMap::new();
            let mut asked = 0;
            for i in 0..59 {
                if labels[i] != IGNORED {
                    assert_eq!((labels[i], follows.get(&ids[i])), (ids[i + 1], Some(&ids[i + 1])));
                    asked += 1;
                }
                follows.entry(ids[i]).or_insert(ids[i + 1]);
            }
            assert!(asked > 15, "{asked}");
            let (ids, labels) = sequence(DataKind::Recall, 41, index, true);
            let at = ids.iter().position(|id| *id == SEPARATOR).unwrap();
            let known: HashMap<i64, i64> = ids[..at].chunks(2).map(|pair| (pair[0], pair[1])).collect();
            assert_eq!(known.len(), 6, "keys differ");
            let asked: Vec<usize> = (0..41).filter(|&i| labels[i] != IGNORED).collect();
            assert_eq!(asked.len(), (41 + 1 - at - 1) / 2);
            assert!(asked.iter().all(|&i| i > at && labels[i] == known[&ids[i]]));
        }
    }

    #[test]
    fn sums_are_right() {
        let (ids, labels) = sequence(DataKind::Arithmetic, 300, 8, false);
        let text = String::from_utf8(ids.iter().map(|&id| id as u8).collect()).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        for line in &lines[..lines.len() - 1] {
            let (sum, result) = line.split_once('=').unwrap();
            let (a, b) = sum.split_once('+').unwrap();
            let [a, b, result] = [a, b, result].map(|n| n.parse::<u64>().unwrap());
            assert_eq!(a + b, result);
        }
        let mut answer = false;
        for (i, (byte, label)) in text.bytes().zip(&labels).enumerate() {
            answer = byte == b'=' || answer && byte != b'\n';
            assert_eq!(*label >= 0, answer, "{i}");
        }
    }

    #[test]
    fn sequences_are_functions_of_their_number() {
        let all: Vec<_> = [(1, false), (2, false), (1, true)]
            .map(|(index, held)| sequence(DataKind::Copy, 21, index, held))
            .into();
        assert!(all[0] != all[1] && all[0] != all[2] && all[1] != all[2]);
        assert_eq!(all[0], sequence(DataKind::Copy, 21, 1, false));
    }
}
