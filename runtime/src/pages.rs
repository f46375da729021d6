//! [`Pages`]: which pages of a pool each sequence has, and which of them sequences share.
//!
//! A function whose states are in pages reads and writes them through a table that its caller gives: entry `(b, i)` is
//! the page of tokens `i·r .. (i+1)·r` of sequence `b`. Here such tables are made. Sequences with a common beginning
//! share its whole pages; a page that is written to belongs to one sequence alone.
//!
//! ```
//! use eva_runtime::Pages;
//! let mut pages = Pages::new(5, 4);
//! let mut one = pages.sequence();
//! pages.reserve(&mut one, 9)?;
//! // Six tokens are the same: one page is shared, and two rows of another are copied.
//! let (two, copy) = pages.fork(&one, 6)?;
//! assert_eq!((copy.unwrap().rows, pages.free()), (2, 1));
//! assert_eq!(pages.table(&[&one, &two]).shape(), [2, 3]);
//! # Ok::<(), eva_runtime::Error>(())
//! ```

use crate::error::Error;
use crate::states::States;
use crate::tensor::Tensor;

/// The pages of a pool.
#[derive(Debug)]
pub struct Pages {
    rows: usize,
    /// How many sequences have each page.
    holders: Vec<u32>,
    /// The pages that none has; the last is the next to be given.
    free: Vec<usize>,
}

/// The pages of one sequence. It must be given back ([`Pages::release`]) for others to have them.
#[derive(Debug, Default, PartialEq, Eq)]
#[must_use = "the pages of a sequence are free again only when it is released"]
pub struct Sequence {
    pages: Vec<usize>,
    tokens: usize,
}

impl Sequence {
    /// How many tokens there is room for, as was asked.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Its pages, in the order of its tokens.
    pub fn pages(&self) -> &[usize] {
        &self.pages
    }
}

/// Rows of one page that another must get; see [`States::copy_page`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a sequence that was forked lacks these rows"]
pub struct PageCopy {
    /// The page that has them.
    pub from: usize,
    /// The page that lacks them.
    pub to: usize,
    /// How many rows, from the first on.
    pub rows: usize,
}

impl PageCopy {
    /// Copies them.
    pub fn apply(self, states: &mut States) -> Result<(), Error> {
        states.copy_page(self)
    }
}

impl Pages {
    /// A pool of `count` pages of `rows` tokens (one at least), all free.
    pub fn new(count: usize, rows: usize) -> Self {
        Self { rows: rows.max(1), holders: vec![0; count], free: (0..count).rev().collect() }
    }

    /// Rows of a page.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// How many pages there are.
    pub fn count(&self) -> usize {
        self.holders.len()
    }

    /// How many pages no sequence has.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// A sequence without tokens.
    pub fn sequence(&self) -> Sequence {
        Sequence::default()
    }

    /// Gives `sequence` room for `tokens` in all. If there are not enough pages nothing is changed.
    pub fn reserve(&mut self, sequence: &mut Sequence, tokens: usize) -> Result<(), Error> {
        let more = tokens.div_ceil(self.rows).saturating_sub(sequence.pages.len());
        self.check(more)?;
        sequence.pages.extend((0..more).map(|_| self.take()));
        sequence.tokens = sequence.tokens.max(tokens);
        Ok(())
    }

    /// Another sequence with the first `tokens` of `sequence`: whole pages are shared, and what begins another page is
    /// to be copied, in every state, before either sequence is used. If there are not enough pages nothing is changed.
    pub fn fork(
        &mut self,
        sequence: &Sequence,
        tokens: usize,
    ) -> Result<(Sequence, Option<PageCopy>), Error> {
        if tokens > sequence.tokens {
            return Err(Error::Capacity { capacity: sequence.tokens, tokens });
        }
        let (whole, rows) = (tokens / self.rows, tokens % self.rows);
        self.check(usize::from(rows > 0))?;
        let mut pages = sequence.pages[..whole].to_vec();
        pages.iter().for_each(|&page| self.holders[page] += 1);
        let copy = (rows > 0).then(|| PageCopy { from: sequence.pages[whole], to: self.take(), rows });
        pages.extend(copy.map(|copy| copy.to));
        Ok((Sequence { pages, tokens }, copy))
    }

    /// Takes a sequence's pages back; those that no other has are free.
    pub fn release(&mut self, sequence: Sequence) {
        for page in sequence.pages.into_iter().rev() {
            self.holders[page] -= 1;
            if self.holders[page] == 0 {
                self.free.push(page);
            }
        }
    }

    /// The table of these sequences, `i32[b, k]`, where `k` is what the longest has (1 at least); -1 where a sequence
    /// has no page.
    pub fn table(&self, sequences: &[&Sequence]) -> Tensor {
        let width = sequences.iter().map(|sequence| sequence.pages.len()).max().unwrap_or(0).max(1);
        let mut entries = Vec::with_capacity(sequences.len() * width);
        for sequence in sequences {
            let pages = sequence.pages.iter().map(|&page| page as i32);
            entries.extend(pages.chain(std::iter::repeat(-1)).take(width));
        }
        Tensor::from_i32(&[sequences.len(), width], &entries)
    }

    fn check(&self, more: usize) -> Result<(), Error> {
        let free = self.free.len();
        if more > free {
            return Err(Error::OutOfPages { wanted: more, free, pages: self.holders.len() });
        }
        Ok(())
    }

    /// A free page, of which the caller knows that there is one.
    fn take(&mut self) -> usize {
        let page = self.free.pop().expect("the caller has counted the free pages");
        self.holders[page] = 1;
        page
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_pages_are_shared_and_the_rest_is_copied() {
        let mut pages = Pages::new(6, 3);
        let mut one = pages.sequence();
        pages.reserve(&mut one, 7).unwrap();
        assert_eq!((one.pages(), pages.free()), (&[0, 1, 2][..], 3));
        let (mut two, copy) = pages.fork(&one, 5).unwrap();
        assert_eq!(copy, Some(PageCopy { from: 1, to: 3, rows: 2 }));
        assert_eq!(two.pages(), [0, 3]);
        // A beginning of whole pages needs none.
        let (three, copy) = pages.fork(&two, 3).unwrap();
        assert_eq!((three.pages(), copy), (&[0][..], None));
        pages.reserve(&mut two, 9).unwrap();
        assert_eq!(two.pages(), [0, 3, 4]);
        let table = pages.table(&[&one, &two, &three]);
        assert_eq!(table.to_f64(), [0., 1., 2., 0., 3., 4., 0., -1., -1.]);
        // A page is free when the last that has it is released.
        pages.release(one);
        assert_eq!(pages.free(), 3);
        pages.release(three);
        assert_eq!(pages.free(), 3);
        pages.release(two);
        assert_eq!(pages.free(), 6);
        let mut again = pages.sequence();
        pages.reserve(&mut again, 1).unwrap();
        assert_eq!(again.tokens(), 1);
        pages.release(again);
    }

    #[test]
    fn too_few_pages_are_an_error_before_anything_is_changed() {
        let mut pages = Pages::new(3, 4);
        let mut one = pages.sequence();
        pages.reserve(&mut one, 4).unwrap();
        let error = pages.reserve(&mut one, 17).unwrap_err();
        assert_eq!(error.to_string(), "4 more pages are needed, but of 3 only 2 are free");
        assert_eq!((one.pages().len(), one.tokens(), pages.free()), (1, 4, 2));
        pages.reserve(&mut one, 12).unwrap();
        let error = pages.fork(&one, 5).unwrap_err();
        assert!(matches!(error, Error::OutOfPages { wanted: 1, free: 0, pages: 3 }));
        assert!(matches!(pages.fork(&one, 13), Err(Error::Capacity { capacity: 12, tokens: 13 })));
        let (two, copy) = pages.fork(&one, 8).unwrap();
        assert_eq!((two.pages(), copy), (&[0, 1][..], None));
        pages.release(one);
        assert_eq!(pages.free(), 1);
        pages.release(two);
        assert_eq!((pages.free(), pages.count(), pages.rows()), (3, 3, 4));
    }
}
