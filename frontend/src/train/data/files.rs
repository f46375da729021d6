//! Tokens in mapped files, cut to sequences.

use super::{DataError, Source};
use memmap2::Mmap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes of a token in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Width {
    One = 1,
    Two = 2,
    Four = 4,
}

/// Sequences of files: each is some tokens and the one after them, and begins where the one before it ends. What is left at the
/// end of a file is not used.
pub(super) struct Windows {
    files: Arc<Vec<Tokens>>,
    /// The sequences of the files together that are meant.
    range: std::ops::Range<u64>,
    length: u64,
    vocab: usize,
}

/// A file.
struct Tokens {
    path: PathBuf,
    map: Mmap,
    width: Width,
    /// The number of its first sequence.
    first: u64,
}

impl Tokens {
    fn open(path: &Path, width: Width, first: u64) -> Result<Self, DataError> {
        let io = |what, error| DataError::Io { path: path.into(), what, error };
        let file = File::open(path).map_err(|e| io("cannot open it", e))?;
        let metadata = file.metadata().map_err(|e| io("cannot read it", e))?;
        if !metadata.is_file() {
            return Err(DataError::Bad { path: path.into(), detail: "not a regular file".into() });
        }
        // SAFETY: read only; files of data must not be changed while they are open, as with any memory map.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| io("cannot map it", e))?;
        if map.len() % width as usize != 0 {
            let detail =
                format!("its {} bytes are no whole number of {}-byte tokens", map.len(), width as u8);
            return Err(DataError::Bad { path: path.into(), detail });
        }
        Ok(Self { path: path.into(), map, width, first })
    }

    fn tokens(&self) -> u64 {
        (self.map.len() / self.width as usize) as u64
    }

    /// Token `at`, which there is.
    fn token(&self, at: u64) -> u64 {
        let at = at as usize * self.width as usize;
        let bytes = &self.map[at..at + self.width as usize];
        bytes.iter().rev().fold(0, |token, byte| token << 8 | u64::from(*byte))
    }
}

impl Windows {
    /// All sequences of `length` tokens.
    pub(super) fn open(
        paths: &[PathBuf],
        width: Width,
        length: usize,
        vocab: usize,
    ) -> Result<Self, DataError> {
        let (mut files, mut count, mut tokens) = (Vec::with_capacity(paths.len()), 0, 0);
        for path in paths {
            let file = Tokens::open(path, width, count)?;
            count += file.tokens().saturating_sub(1) / length as u64;
            tokens += file.tokens();
            files.push(file);
        }
        if count == 0 {
            let message = format!("the data have {tokens} tokens: not one sequence of {length} and the next");
            return Err(DataError::Small(message));
        }
        Ok(Self { files: Arc::new(files), range: 0..count, length: length as u64, vocab })
    }

    /// The first sequences, and a share of them at the end: one at least, if any are wanted.
    pub(super) fn split(self, share: f64) -> Result<(Self, Option<Self>), DataError> {
        let all = self.sequences();
        let held = (all as f64 * share).ceil() as u64;
        if held == 0 {
            return Ok((self, None));
        }
        if held >= all {
            let message = format!("the data have {all} sequences, of which {held} are to be held out");
            return Err(DataError::Small(message));
        }
        let at = self.range.end - held;
        let part = |range| Self { files: self.files.clone(), range, ..self };
        Ok((part(self.range.start..at), Some(part(at..self.range.end))))
    }
}

impl Source for Windows {
    fn sequences(&self) -> u64 {
        self.range.end - self.range.start
    }

    fn read(&self, index: u64, ids: &mut [i64], labels: &mut [i64]) -> Result<(), DataError> {
        let number = self.range.start + index;
        let file = self.files.partition_point(|file| file.first <= number).saturating_sub(1);
        let file = &self.files[file];
        let begin = (number - file.first) * self.length;
        let next = |at: u64| match file.token(at) {
            token if token < self.vocab as u64 => Ok(token as i64),
            token => Err(DataError::Token { path: file.path.clone(), token, at, vocab: self.vocab }),
        };
        let mut token = next(begin)?;
        for ((i, id), label) in (begin + 1..).zip(ids).zip(labels) {
            *id = token;
            token = next(i)?;
            *label = token;
        }
        Ok(())
    }
}
