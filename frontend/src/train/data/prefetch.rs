//! [`Batches`]: the batches of steps, read ahead on a thread.

use super::{Batch, DataError, Source, batch, numbers};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};

/// Steps that are read ahead.
const AHEAD: usize = 4;

/// What decides which sequences come when.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Tokens of a sequence.
    pub length: usize,
    /// Sequences of a batch.
    pub batch: usize,
    /// Batches of a step.
    pub accumulate: usize,
    /// Whether each epoch has an order of its own.
    pub shuffle: bool,
    /// Where that order starts.
    pub seed: u64,
}

/// The batches of one step after another.
pub struct Batches {
    steps: Receiver<Result<Vec<Batch>, DataError>>,
}

impl Batches {
    /// Those after `position` sequences, counted over all epochs. The thread ends with this value.
    pub fn from(source: Arc<dyn Source>, plan: Plan, mut position: u64) -> Self {
        let (send, steps) = sync_channel(AHEAD);
        std::thread::spawn(move || {
            loop {
                let step: Result<Vec<Batch>, DataError> = (0..plan.accumulate)
                    .map(|_| {
                        let Plan { length, batch: count, shuffle, seed, .. } = plan;
                        let numbers = numbers(source.sequences(), seed, shuffle, position, count);
                        position += count as u64;
                        batch(&*source, &numbers, length)
                    })
                    .collect();
                let over = step.is_err();
                if send.send(step).is_err() || over {
                    break;
                }
            }
        });
        Self { steps }
    }

    /// The batches of the next step.
    pub fn step(&mut self) -> Result<Vec<Batch>, DataError> {
        self.steps.recv().unwrap_or(Err(DataError::Gone))
    }
}
