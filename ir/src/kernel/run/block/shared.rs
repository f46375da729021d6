//! Shared memory: what is in it, who may see it, barriers.
//!
//! Every access has a number in its warp. A barrier tells those who pass it the numbers that the others have come to.
//! An access has to know of the accesses that it must come after: a read of the last write, a write of the reads and
//! writes before it, be they of another warp or of another thread of the same one. So a missing barrier is found
//! however the warps take turns. (Threads may write the same number where none of them is to be the last.)

use super::warp::Meets;
use super::*;
use crate::kernel::block::{Shared, SharedData};
use crate::kernel::run::access::inside;
use crate::kernel::run::arith::round;
use crate::kernel::run::exec::float;
use smallvec::SmallVec;

/// A tile in shared memory.
pub(super) struct Tile {
    pub(super) cells: Vec<Cell>,
    /// Elements of a stage.
    pub(super) stage: usize,
    /// The pipe that it is of.
    pub(super) pipe: Option<usize>,
    /// What products and bulk copies under way read.
    flying: Vec<Region>,
    /// What products and bulk copies have read, as far as a warp has seen it.
    seen: Vec<(Region, Access)>,
}

/// An element.
#[derive(Clone, Default)]
pub(super) struct Cell {
    /// The bits of a float or an integer.
    pub(super) word: u64,
    writer: Writer,
    /// Ordinary accesses since the last write that a write has to come after.
    others: SmallVec<[Access; 1]>,
}

#[derive(Clone, Copy, Default)]
enum Writer {
    #[default]
    Nobody,
    /// A bulk copy.
    Copy,
    Thread(Access),
}

/// An ordinary access.
#[derive(Clone, Copy)]
pub(super) struct Access {
    pub(super) warp: usize,
    /// The thread in its warp; `None` for several.
    pub(super) lane: Option<usize>,
    pub(super) number: u64,
}

/// Those who have come to a barrier.
#[derive(Default)]
pub(super) struct Meeting {
    arrived: Vec<usize>,
}

/// A part of a stage of a tile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Region {
    pub(super) tile: Shared,
    pub(super) stage: usize,
    pub(super) rows: std::ops::Range<usize>,
    pub(super) cols: std::ops::Range<usize>,
}

/// A part of shared memory that a bulk copy of a thread reads.
pub(super) struct Reading {
    pub(super) lane: usize,
    pub(super) region: Region,
}

impl Region {
    /// Whether it has element `i` of the tile.
    fn has(&self, i: usize, data: &SharedData) -> bool {
        let (row, col) = (i / data.cols, i % data.cols);
        self.stage == row / data.rows && self.rows.contains(&(row % data.rows)) && self.cols.contains(&col)
    }
}

impl Tile {
    pub(super) fn new(data: &SharedData, pipe: Option<usize>) -> Self {
        let stage = data.rows * data.cols;
        let cells = vec![Cell::default(); stage * data.stages];
        Self { cells, stage, pipe, flying: Vec::new(), seen: Vec::new() }
    }
}

impl Machine<'_> {
    /// Whether `access` comes after `before` for sure.
    fn follows(&self, access: Access, before: Access) -> bool {
        let same = access.warp == before.warp && access.lane.is_some() && access.lane == before.lane;
        same || self.warps[access.warp].known[before.warp] >= before.number
    }

    /// Checks that the warp may touch the stage, if it is of a pipe.
    fn holds(&self, w: usize, tile: Shared, stage: usize) -> Result<(), Fault> {
        let Some(pipe) = self.tiles[tile.index()].pipe else { return Ok(()) };
        let stages = self.pipes[pipe].stages.len();
        let held = self.warps[w].held[pipe].iter().any(|&turn| turn as usize % stages == stage);
        if held { Ok(()) } else { Err(Fault::NotHeld { memory: self.name(tile), stage }) }
    }

    fn element(&self, w: usize, tile: Shared, index: i64) -> Result<usize, Fault> {
        let Tile { cells, stage, .. } = &self.tiles[tile.index()];
        let i = inside(index, cells.len(), || self.name(tile))?;
        self.holds(w, tile, i / stage)?;
        Ok(i)
    }

    pub(super) fn read_shared(&mut self, access: Access, tile: Shared, index: i64) -> Result<u64, Fault> {
        let i = self.element(access.warp, tile, index)?;
        let cell = &self.tiles[tile.index()].cells[i];
        match cell.writer {
            Writer::Nobody => return Err(Fault::Unwritten { memory: self.name(tile), index: i }),
            Writer::Thread(write) if !self.follows(access, write) => {
                return Err(Fault::Unordered { memory: self.name(tile), index: i, warp: write.warp });
            }
            _ => {}
        }
        self.note(access, tile, i);
        Ok(self.tiles[tile.index()].cells[i].word)
    }

    pub(super) fn write_shared(
        &mut self,
        access: Access,
        tile: Shared,
        index: i64,
        word: u64,
    ) -> Result<(), Fault> {
        let data = &self.block.shared[tile];
        let dtype = data.dtype;
        let word = if dtype.is_int() { word } else { round(float(word), dtype).to_bits() };
        let i = self.element(access.warp, tile, index)?;
        let Tile { cells, stage, pipe, flying, seen } = &self.tiles[tile.index()];
        let (cell, stage) = (&cells[i], i / stage);
        if flying.iter().any(|region| region.has(i, data)) {
            return Err(Fault::Busy { memory: self.name(tile) });
        }
        if pipe.is_some() && !self.warps[access.warp].unfenced.contains(&(tile.index(), stage)) {
            self.warps[access.warp].unfenced.push((tile.index(), stage));
        }
        let write = match cell.writer {
            Writer::Thread(write) => Some(write),
            _ => None,
        };
        let seen = seen.iter().filter(|(region, _)| region.has(i, data)).map(|&(_, seen)| seen);
        let mut before = cell.others.iter().copied().chain(write).chain(seen);
        let before = before.find(|&before| !self.follows(access, before));
        if let Some(before) = before {
            let (memory, same) = (self.name(tile), write.is_some() && cell.word == word);
            return match same {
                // Whichever comes last, it is the same number.
                true => {
                    let cell = &mut self.tiles[tile.index()].cells[i];
                    cell.others.extend(write);
                    cell.writer = Writer::Thread(access);
                    Ok(())
                }
                false if (before.warp, before.number) == (access.warp, access.number) => {
                    Err(Fault::Conflict { memory, index: i })
                }
                false => Err(Fault::Unordered { memory, index: i, warp: before.warp }),
            };
        }
        let cell = &mut self.tiles[tile.index()].cells[i];
        cell.others.clear();
        (cell.word, cell.writer) = (word, Writer::Thread(access));
        Ok(())
    }

    /// Puts what a bulk copy has brought into a stage.
    pub(super) fn bring(&mut self, tile: Shared, stage: usize, words: &[u64]) {
        let Tile { cells, stage: len, seen, .. } = &mut self.tiles[tile.index()];
        // Who released the stage has read it.
        seen.retain(|(region, _)| region.stage != stage);
        for (cell, &word) in cells[stage * *len..].iter_mut().zip(words) {
            *cell = Cell { word, writer: Writer::Copy, ..Cell::default() };
        }
    }

    /// The elements of a part of a tile, row by row.
    fn elements(&self, region: &Region) -> impl Iterator<Item = usize> + use<> {
        let SharedData { rows: height, cols: width, .. } = self.block.shared[region.tile];
        let (first, cols) = (region.stage * height * width, region.cols.clone());
        region.rows.clone().flat_map(move |row| cols.clone().map(move |col| first + row * width + col))
    }

    /// The elements of a part of a tile, row by row, to be read by a product or bulk copy that `warps` start. They may
    /// not change until [`Machine::has_read`].
    pub(super) fn start_reading(
        &mut self,
        warps: std::ops::Range<usize>,
        region: &Region,
    ) -> Result<Vec<u64>, Fault> {
        let memory = || self.name(region.tile);
        for w in warps.clone() {
            self.holds(w, region.tile, region.stage)?;
        }
        let mut words = Vec::with_capacity(region.rows.len() * region.cols.len());
        for i in self.elements(region) {
            let cell = &self.tiles[region.tile.index()].cells[i];
            words.push(cell.word);
            let write = match cell.writer {
                Writer::Nobody => return Err(Fault::Unwritten { memory: memory(), index: i }),
                Writer::Copy => continue,
                Writer::Thread(write) => write,
            };
            for w in warps.clone() {
                if self.warps[w].known[write.warp] < write.number {
                    return Err(Fault::Unordered { memory: memory(), index: i, warp: write.warp });
                }
                if self.warps[w].known_fenced[write.warp] < write.number {
                    return Err(Fault::Unfenced { memory: memory(), index: i });
                }
            }
        }
        self.tiles[region.tile.index()].flying.push(region.clone());
        Ok(words)
    }

    /// Takes note of an ordinary access that a write has to come after.
    fn note(&mut self, access: Access, tile: Shared, i: usize) {
        let others = &self.tiles[tile.index()].cells[i].others;
        let found = others.iter().position(|other| other.warp == access.warp);
        // One access of a warp stands for those before it: of its own thread, if it comes after them.
        let alone = found.is_none_or(|at| self.follows(access, others[at]));
        let access = Access { lane: access.lane.filter(|_| alone), ..access };
        let others = &mut self.tiles[tile.index()].cells[i].others;
        match found {
            Some(at) => others[at] = access,
            None => others.push(access),
        }
    }

    /// A warp has seen that a part of a tile has been read.
    pub(super) fn sees_read(&mut self, warp: usize, region: &Region) {
        let access = Access { warp, lane: None, number: self.warps[warp].now };
        let seen = &mut self.tiles[region.tile.index()].seen;
        match seen.iter_mut().find(|(other, before)| before.warp == warp && other == region) {
            Some((_, before)) => *before = access,
            None => seen.push((region.clone(), access)),
        }
    }

    /// Everybody has seen that a part of a tile has been read.
    pub(super) fn has_read(&mut self, region: &Region) {
        let flying = &mut self.tiles[region.tile.index()].flying;
        if let Some(i) = flying.iter().position(|other| other == region) {
            flying.swap_remove(i);
        }
    }

    /// A barrier; whether the warp has passed it.
    pub(super) fn barrier(&mut self, w: usize, id: usize, warps: usize) -> bool {
        match self.warps[w].meets {
            Meets::Waits => return false,
            Meets::All => {
                self.warps[w].meets = Meets::Nobody;
                return true;
            }
            Meets::Nobody => {}
        }
        let meeting = &mut self.meetings[id];
        if warps > 1 {
            meeting.arrived.push(w);
            if meeting.arrived.len() < warps {
                self.warps[w].meets = Meets::Waits;
                return false;
            }
        }
        let arrived = if warps > 1 { std::mem::take(&mut meeting.arrived) } else { vec![w] };
        let (mut known, mut fenced) = (vec![0; self.warps.len()], vec![0; self.warps.len()]);
        for &p in &arrived {
            let warp = &mut self.warps[p];
            (warp.known[p], warp.known_fenced[p]) = (warp.now, warp.fenced);
            for (all, one) in [(&mut known, &warp.known), (&mut fenced, &warp.known_fenced)] {
                all.iter_mut().zip(one).for_each(|(all, one)| *all = *one.max(all));
            }
        }
        for &p in &arrived {
            let warp = &mut self.warps[p];
            (warp.known, warp.known_fenced) = (known.clone(), fenced.clone());
            warp.meets = if p == w { Meets::Nobody } else { Meets::All };
        }
        self.wake();
        true
    }
}
