//! [`Batch`]: several sequences at once, their caches in pages of one pool.

use super::{EngineError, Model, check_prompt};
use eva_runtime::sample::{Sampler, Sampling};
use eva_runtime::{Error, Pages, Session, States, Tensor, pages::Sequence};

/// Makes the tokens of several sequences, one of each in a call. What their prompts have in common at the beginning is
/// computed once, and its whole pages are shared.
pub struct Batch {
    session: Session,
    states: States,
    pages: Pages,
    rows: Vec<Row>,
    eos: Vec<u32>,
    /// Tokens of the prompts that were run.
    prefilled: usize,
}

/// One sequence.
struct Row {
    sequence: Sequence,
    sampler: Sampler,
    /// Tokens that are not in the cache yet.
    pending: Vec<u32>,
    cached: usize,
    left: usize,
    logits: Vec<f32>,
}

/// How many pages of `rows` tokens sequences after these prompts need, when what all begin with is shared.
pub fn pages_needed(prompts: &[Vec<u32>], max_new: usize, rows: usize) -> usize {
    let shared = common(prompts) / rows;
    let own = |prompt: &Vec<u32>| (prompt.len() + max_new).div_ceil(rows) - shared;
    shared + prompts.iter().map(own).sum::<usize>()
}

/// How many tokens all prompts begin with, but for the last token of each.
fn common(prompts: &[Vec<u32>]) -> usize {
    let Some((first, rest)) = prompts.split_first() else { return 0 };
    let same = |other: &Vec<u32>| first.iter().zip(other).take_while(|(a, b)| a == b).count();
    let most = prompts.iter().map(|prompt| prompt.len().saturating_sub(1)).min().unwrap_or(0);
    rest.iter().map(same).fold(most, usize::min)
}

impl Model {
    /// Makes up to `max_new` tokens after each of several prompts, in a pool of `pages` pages, or of as many as are
    /// needed. The model must have been loaded with [`page`](eva_passes::CacheOptions::page). Sequence `i` samples with
    /// the seed plus `i`.
    pub fn batch(
        &self,
        prompts: &[Vec<u32>],
        max_new: usize,
        sampling: Sampling,
        pages: Option<usize>,
    ) -> Result<Batch, EngineError> {
        for prompt in prompts {
            check_prompt(&self.config, prompt, max_new)?;
        }
        let session = self.session("main")?;
        let rows = session.page_rows().ok_or_else(|| {
            EngineError::Unsupported(
                "several sequences at once need caches in pages: give a page size".into(),
            )
        })?;
        let pages = Pages::new(pages.unwrap_or_else(|| pages_needed(prompts, max_new, rows)), rows);
        let states = session.new_pages(pages.count())?;
        let mut batch =
            Batch { session, states, pages, rows: Vec::new(), eos: self.config.eos.clone(), prefilled: 0 };
        batch.prefill(prompts, max_new, sampling)?;
        Ok(batch)
    }
}

impl Batch {
    /// Runs what all prompts begin with, and gives each sequence its share of it.
    fn prefill(
        &mut self,
        prompts: &[Vec<u32>],
        max_new: usize,
        sampling: Sampling,
    ) -> Result<(), EngineError> {
        let shared = common(prompts);
        for (i, prompt) in prompts.iter().enumerate() {
            let (sequence, cached) = match self.rows.first() {
                None => (self.pages.sequence(), 0),
                Some(first) => {
                    let (sequence, copy) = self.pages.fork(&first.sequence, shared)?;
                    copy.map_or(Ok(()), |copy| copy.apply(&mut self.states))?;
                    (sequence, shared)
                }
            };
            let sampler = Sampler::new(Sampling { seed: sampling.seed.wrapping_add(i as u64), ..sampling })?;
            let (pending, logits) = (prompt[cached..].to_vec(), Vec::new());
            self.rows.push(Row { sequence, sampler, pending, cached, left: max_new, logits });
            if i == 0 && prompts.len() > 1 && shared > 0 {
                let rest = self.rows[0].pending.split_off(shared);
                self.feed(&[0])?;
                self.rows[0].pending = rest;
            }
        }
        Ok(())
    }

    /// The next token of each sequence; `None` for one that has ended.
    pub fn step(&mut self) -> Result<Vec<Option<u32>>, EngineError> {
        let going: Vec<usize> = (0..self.rows.len()).filter(|&i| self.rows[i].left > 0).collect();
        // All or none: after an error the step can be made again, with more pages.
        for &i in &going {
            let row = &mut self.rows[i];
            self.pages.reserve(&mut row.sequence, row.cached + row.pending.len())?;
        }
        // Sequences with as many new tokens go together: all, after the prompts.
        let mut groups: Vec<Vec<usize>> = Vec::new();
        for &i in &going {
            let n = self.rows[i].pending.len();
            match groups.iter_mut().find(|group| n == 1 && self.rows[group[0]].pending.len() == n) {
                Some(group) => group.push(i),
                None => groups.push(vec![i]),
            }
        }
        for group in groups {
            self.feed(&group)?;
        }
        let mut tokens = vec![None; self.rows.len()];
        for i in going {
            let row = &mut self.rows[i];
            let token = row.sampler.sample(&row.logits)?;
            row.left = if self.eos.contains(&token) { 0 } else { row.left - 1 };
            row.pending = vec![token];
            tokens[i] = Some(token);
            if row.left == 0 {
                self.pages.release(std::mem::take(&mut row.sequence));
            }
        }
        Ok(tokens)
    }

    /// Goes on after tokens that end the text.
    pub fn ignore_eos(&mut self) {
        self.eos.clear();
    }

    /// The logits that the last token of a sequence was chosen from.
    pub fn logits(&self, sequence: usize) -> &[f32] {
        self.rows.get(sequence).map_or(&[], |row| &row.logits)
    }

    /// The pages.
    pub fn pages(&self) -> &Pages {
        &self.pages
    }

    /// How many tokens of prompts were run: those that sequences share are run once.
    pub fn prefilled(&self) -> usize {
        self.prefilled
    }

    /// Bytes of the pool.
    pub fn cache_bytes(&self) -> usize {
        self.states.bytes()
    }

    /// Runs the pending tokens of some sequences, which have as many each. Without pages for all of them nothing is run.
    fn feed(&mut self, group: &[usize]) -> Result<(), EngineError> {
        let n = self.rows[group[0]].pending.len();
        for &i in group {
            let row = &mut self.rows[i];
            self.pages.reserve(&mut row.sequence, row.cached + n)?;
        }
        let rows = || group.iter().map(|&i| &self.rows[i]);
        let ids: Vec<i64> = rows().flat_map(|row| row.pending.iter().map(|&id| i64::from(id))).collect();
        let start: Vec<i32> = rows().map(|row| row.cached as i32).collect();
        let most = rows().map(|row| row.cached).max().unwrap_or(0);
        let sequences: Vec<&Sequence> = rows().map(|row| &row.sequence).collect();
        let table = self.pages.table(&sequences);
        let ids = Tensor::from_i64(&[group.len(), n], &ids);
        let start = Tensor::from_i32(&[group.len()], &start);
        let last = Tensor::from_i32(&[group.len()], &vec![n as i32 - 1; group.len()]);
        let inputs = [("ids", &ids), ("start", &start), ("last", &last), ("page_table", &table)];
        let results = self.session.run(&inputs, Some(&mut self.states), &[("t", most + n)])?;
        let logits = results.into_iter().find(|(name, _)| name == "logits");
        let internal = || Error::Internal("`main` has no result `logits`".into());
        let logits = logits.ok_or_else(internal)?.1.to_f32();
        let each = logits.len() / group.len();
        for (&i, logits) in group.iter().zip(logits.chunks(each)) {
            let row = &mut self.rows[i];
            row.cached += n;
            row.logits = logits.to_vec();
            self.prefilled += if row.pending.len() > 1 { n } else { 0 };
        }
        Ok(())
    }
}
