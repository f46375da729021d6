//! Products of warpgroups.
//!
//! A product is computed when its four warps have come to it. Its result may be read, and what it reads may be
//! written, only after waits: each warp for itself.

use super::shared::Region;
use super::warp::{Meets, lanes};
use super::*;
use crate::kernel::block::{Keep, MmaLeft, MmaTile};
use crate::kernel::run::arith::round;
use crate::kernel::run::exec::{float, narrow};

/// Rows of a product.
const ROWS: usize = 64;

/// The four warps that multiply together.
#[derive(Default)]
pub(super) struct Warpgroup<'a> {
    /// Those that have come to the next product.
    arrived: Vec<usize>,
    next: Option<&'a BlockInst>,
    /// How many products have been started.
    started: u64,
    /// The products that not all warps have seen finished.
    unfinished: VecDeque<Product>,
}

struct Product {
    /// Its number in its warpgroup, from 1.
    number: u64,
    /// Which warps of the warpgroup have seen it finished.
    seen: [bool; 4],
    /// What it reads.
    reads: Vec<Region>,
}

impl Warpgroup<'_> {
    /// What the products read that a warp has not seen finished.
    pub(super) fn reads(&self, w: usize) -> impl Iterator<Item = &Region> {
        self.unfinished.iter().filter(move |product| !product.seen[w % 4]).flat_map(|product| &product.reads)
    }
}

/// The row and column of a slot of a thread of a warpgroup.
fn element(warp: usize, lane: usize, slot: usize) -> (usize, usize) {
    (16 * (warp % 4) + lane / 4 + 8 * (slot / 2 % 2), 2 * (lane % 4) + slot % 2 + 8 * (slot / 4))
}

impl<'a> Machine<'a> {
    /// A product; whether its warpgroup has come together.
    pub(super) fn mma(&mut self, w: usize, inst: &'a BlockInst) -> Result<bool, Fault> {
        match self.warps[w].meets {
            Meets::Waits => return Ok(false),
            Meets::All => {
                self.warps[w].meets = Meets::Nobody;
                return Ok(true);
            }
            Meets::Nobody => {}
        }
        let group = &mut self.groups[w / 4];
        if !std::ptr::eq(*group.next.get_or_insert(inst), inst) {
            return Err(Fault::Apart);
        }
        group.arrived.push(w);
        if group.arrived.len() < 4 {
            self.warps[w].meets = Meets::Waits;
            return Ok(false);
        }
        group.arrived.clear();
        group.next = None;
        self.multiply(w / 4, inst)?;
        for other in w / 4 * 4..w / 4 * 4 + 4 {
            self.warps[other].meets = if other == w { Meets::Nobody } else { Meets::All };
        }
        self.wake();
        Ok(true)
    }

    fn multiply(&mut self, group: usize, inst: &BlockInst) -> Result<(), Fault> {
        let BlockInst::Mma { out, acc, keep, a, b, b_row, n, k } = inst else { return Ok(()) };
        let (n, k, warps) = (*n, *k, group * 4..group * 4 + 4);
        self.charge((ROWS * n).saturating_mul(k + 1))?;
        let keep = match keep {
            Keep::Yes => true,
            Keep::No => false,
            Keep::When(reg) => self.agreed(group, *reg, "whether a product adds")? != 0,
        };
        let (mut reads, dtype) = (Vec::new(), self.block.shared[b.tile].dtype);
        let right = self.shared_operand(group, b, *b_row, n, k, &mut reads)?;
        let left = match a {
            MmaLeft::Shared { tile, row } => self.shared_operand(group, tile, *row, ROWS, k, &mut reads)?,
            MmaLeft::Registers(reg) => {
                let mut left = vec![0.0; ROWS * k];
                for w in warps.clone() {
                    let at = self.operand(w, *reg)?;
                    for (slot, lane) in
                        (0..k / 2).flat_map(|slot| lanes(u32::MAX).map(move |lane| (slot, lane)))
                    {
                        let (row, col) = element(w, lane, slot);
                        left[row * k + col] = round(float(self.warps[w].words[at.at(slot, lane)]), dtype);
                    }
                }
                left
            }
        };
        let exact = !self.options.f32;
        let (from, to) = (self.place(*acc), self.place(*out));
        let number = self.groups[group].started + 1;
        for w in warps {
            let warp = &mut self.warps[w];
            for (slot, lane) in (0..n / 2).flat_map(|slot| lanes(u32::MAX).map(move |lane| (slot, lane))) {
                let (row, col) = element(w, lane, slot);
                let terms = left[row * k..][..k].iter().zip(&right[col * k..][..k]);
                let start = if keep { float(warp.words[from.at(slot, lane)]) } else { 0.0 };
                let sum = terms.fold(start, |sum, (x, y)| narrow(sum + narrow(x * y, exact), exact));
                warp.words[to.at(slot, lane)] = sum.to_bits();
            }
            warp.product[out.index()] = number;
        }
        let group = &mut self.groups[group];
        group.started = number;
        group.unfinished.push_back(Product { number, seen: [false; 4], reads });
        Ok(())
    }

    /// A scalar on which all threads of a warpgroup agree.
    fn agreed(&self, group: usize, reg: Reg, what: &'static str) -> Result<u64, Fault> {
        let first = self.scalar(group * 4, reg, what)?;
        for w in group * 4 + 1..group * 4 + 4 {
            if self.scalar(w, reg, what)? != first {
                return Err(Fault::Differ(what));
            }
        }
        Ok(first)
    }

    /// `rows` rows of an operand, `k` terms each, one after the other.
    fn shared_operand(
        &mut self,
        group: usize,
        tile: &MmaTile,
        row: Reg,
        rows: usize,
        k: usize,
        reads: &mut Vec<Region>,
    ) -> Result<Vec<f64>, Fault> {
        let turn = self.agreed(group, tile.turn, "the turn of a product's operand")? as i64;
        let first = self.agreed(group, row, "the row of a product's operand")? as i64;
        let data = &self.block.shared[tile.tile];
        if turn < 0 {
            return Err(Fault::Turn { turn, why: "is negative".into() });
        }
        if first.rem_euclid(8) != 0 {
            return Err(Fault::Misaligned { index: first, by: 8 });
        }
        // Transposed rows lie side by side in panels: those that need several begin with one.
        let panel = 128 / data.dtype.bytes();
        if tile.transposed && first % panel != 0 && first % panel + rows as i64 > panel {
            return Err(Fault::Misaligned { index: first, by: panel as usize });
        }
        let height = if tile.transposed { data.cols } else { data.rows };
        let start = usize::try_from(first).ok().filter(|start| start.saturating_add(rows) <= height);
        let outside = || Fault::Outside { memory: self.name(tile.tile), index: first, len: height };
        let along = start.map(|start| start..start + rows).ok_or_else(outside)?;
        let (summed, stage) = (tile.first..tile.first + k, turn as usize % data.stages);
        let (rows_of, cols_of) = if tile.transposed { (summed, along) } else { (along, summed) };
        let region = Region { tile: tile.tile, stage, rows: rows_of, cols: cols_of };
        let words = self.start_reading(group * 4..group * 4 + 4, &region)?;
        reads.push(region);
        let at = |i: usize| if tile.transposed { i % k * rows + i / k } else { i };
        Ok((0..rows * k).map(|i| float(words[at(i)])).collect())
    }

    pub(super) fn mma_wait(&mut self, w: usize, pending: usize, values: &[(Reg, Reg)]) {
        let group = &mut self.groups[w / 4];
        let finished = group.started.saturating_sub(pending as u64);
        let mut reads = Vec::new();
        for product in group.unfinished.iter_mut().filter(|product| product.number <= finished) {
            if !std::mem::replace(&mut product.seen[w % 4], true) {
                reads.extend(product.reads.iter().cloned());
            }
        }
        let mut done = Vec::new();
        while group.unfinished.front().is_some_and(|product| product.seen == [true; 4]) {
            done.extend(group.unfinished.pop_front().into_iter().flat_map(|product| product.reads));
        }
        self.warps[w].now += 1;
        reads.iter().for_each(|region| self.sees_read(w, region));
        done.iter().for_each(|region| self.has_read(region));
        for &(out, x) in values {
            self.copy(w, x, out);
            let product = &mut self.warps[w].product[out.index()];
            *product = if *product <= finished { 0 } else { *product };
        }
    }
}
