//! Pipes and bulk copies.
//!
//! A copy's elements are read when it starts and arrive when the first warp waits for the turn: until then the stage
//! holds nothing that anyone may touch, and nobody may touch it who has not waited, or has released.

use super::shared::{Reading, Region};
use super::warp::lanes;
use super::*;
use crate::kernel::block::{Map, Pipe, PipeData, Shared};

/// A pipe while a block runs.
pub(super) struct PipeState {
    pub(super) stages: Vec<Stage>,
    /// The turn that is acquired next.
    next: i64,
}

/// A stage of a pipe.
#[derive(Default)]
pub(super) struct Stage {
    /// The turn that has it.
    turn: Option<i64>,
    /// What copies have brought, for those tiles that are being filled.
    filled: Vec<(Shared, Vec<u64>)>,
    /// Whether it is in the tiles.
    arrived: bool,
    /// How many warps have released it.
    released: usize,
}

impl PipeState {
    pub(super) fn new(data: &PipeData) -> Self {
        Self { stages: (0..data.stages).map(|_| Stage::default()).collect(), next: 0 }
    }

    /// Whether there is a copy that nobody has waited for.
    pub(super) fn is_filling(&self) -> bool {
        self.stages.iter().any(|stage| !stage.filled.is_empty())
    }

    fn stage(&mut self, turn: i64) -> &mut Stage {
        let stages = self.stages.len();
        &mut self.stages[turn as usize % stages]
    }
}

fn wrong<T>(turn: i64, why: impl Into<String>) -> Result<T, Fault> {
    Err(Fault::Turn { turn, why: why.into() })
}

impl<'a> Machine<'a> {
    pub(super) fn acquire(&mut self, w: usize, pipe: Pipe, turn: Reg) -> Result<bool, Fault> {
        let turn = self.scalar(w, turn, "the turn of a pipe")? as i64;
        let (data, state) = (&self.block.pipes[pipe], &mut self.pipes[pipe.index()]);
        if turn != state.next {
            return wrong(turn, format!("{} is to be acquired next", state.next));
        }
        let stage = state.stage(turn);
        if stage.turn.is_some() && stage.released < data.consumers {
            return Ok(false);
        }
        *stage = Stage { turn: Some(turn), ..Stage::default() };
        state.next += 1;
        Ok(true)
    }

    /// Checks where a bulk copy begins.
    fn begins(&self, map: Map, tile: Shared, at: &[i64]) -> Result<(), Fault> {
        let first = at[self.block.maps[map].axes[1]];
        if first.saturating_mul(self.block.shared[tile].dtype.bytes()) % 16 != 0 {
            return Err(Fault::Begins(first));
        }
        Ok(())
    }

    pub(super) fn start_copy(
        &mut self,
        w: usize,
        (pipe, turn): (Pipe, Reg),
        tile: Shared,
        map: Map,
        at: &[Reg],
    ) -> Result<(), Fault> {
        let turn = self.scalar(w, turn, "the turn of a pipe")? as i64;
        if turn < 0 || self.pipes[pipe.index()].stage(turn).turn != Some(turn) {
            return wrong(turn, "its stage has not been acquired");
        }
        if self.pipes[pipe.index()].stage(turn).filled.iter().any(|(other, _)| *other == tile) {
            return wrong(turn, "the tile is filled already");
        }
        let at = at.iter().map(|&reg| self.scalar(w, reg, "the place of a bulk copy"));
        let at: Vec<i64> = at.map(|n| n.map(|n| n as i64)).collect::<Result<_, _>>()?;
        let (data, buf) = (&self.block.maps[map], self.block.maps[map].buf);
        self.begins(map, tile, &at)?;
        self.charge(data.rows * data.cols)?;
        let mut words = Vec::with_capacity(data.rows * data.cols);
        for row in 0..data.rows {
            for col in 0..data.cols {
                words.push(match self.locate(map, &at, row, col) {
                    Some(index) => self.read_buf(w, 0, buf, index)?,
                    None => 0,
                });
            }
        }
        self.pipes[pipe.index()].stage(turn).filled.push((tile, words));
        self.wake();
        Ok(())
    }

    pub(super) fn wait(&mut self, w: usize, pipe: Pipe, turn: Reg) -> Result<bool, Fault> {
        let turn = self.scalar(w, turn, "the turn of a pipe")? as i64;
        let next = self.warps[w].next_turn[pipe.index()];
        if self.warps[w].held[pipe.index()].contains(&turn) {
            return Ok(true);
        }
        if turn != next {
            return wrong(turn, format!("{next} is to be waited for next"));
        }
        let tiles = self.block.pipes[pipe].tiles.len();
        let state = &mut self.pipes[pipe.index()];
        let number = turn as usize % state.stages.len();
        let stage = state.stage(turn);
        if stage.turn != Some(turn) || (!stage.arrived && stage.filled.len() < tiles) {
            return Ok(false);
        }
        stage.arrived = true;
        for (tile, words) in std::mem::take(&mut stage.filled) {
            self.bring(tile, number, &words);
        }
        self.warps[w].next_turn[pipe.index()] += 1;
        self.warps[w].held[pipe.index()].push(turn);
        Ok(true)
    }

    pub(super) fn release(
        &mut self,
        w: usize,
        pipe: Pipe,
        turn: Reg,
        when: Option<Reg>,
    ) -> Result<(), Fault> {
        let holds = match when {
            Some(when) => self.scalar(w, when, "whether a turn is released")? != 0,
            None => true,
        };
        if !holds {
            return Ok(());
        }
        let turn = self.scalar(w, turn, "the turn of a pipe")? as i64;
        let held = &mut self.warps[w].held[pipe.index()];
        let Some(i) = held.iter().position(|&other| other == turn) else {
            return wrong(turn, "this warp has not waited for it, or has released it");
        };
        held.swap_remove(i);
        let number = turn as usize % self.pipes[pipe.index()].stages.len();
        let of_stage = |region: &Region| {
            region.stage == number && self.tiles[region.tile.index()].pipe == Some(pipe.index())
        };
        if let Some(region) = self.reads(w).find(|region| of_stage(region)) {
            return Err(Fault::Busy { memory: self.name(region.tile) });
        }
        let written = |tile: &Shared| self.warps[w].unfenced.contains(&(tile.index(), number));
        if let Some(&tile) = self.block.pipes[pipe].tiles.iter().find(|tile| written(tile)) {
            return Err(Fault::Unfenced {
                memory: self.name(tile),
                index: number * self.tiles[tile.index()].stage,
            });
        }
        self.pipes[pipe.index()].stage(turn).released += 1;
        self.wake();
        Ok(())
    }

    /// The parts of shared memory that products and bulk copies of this warp may be reading.
    fn reads(&self, w: usize) -> impl Iterator<Item = &Region> {
        self.warps[w].copies.iter().map(|copy| &copy.region).chain(self.groups[w / 4].reads(w))
    }

    pub(super) fn copy_out(
        &mut self,
        w: usize,
        inst: &'a Inst,
        map: Map,
        (tile, turn): (Shared, Reg),
        at: &[Reg],
        when: Reg,
    ) -> Result<(), Fault> {
        let (when, turn) = (self.operand(w, when)?, self.operand(w, turn)?);
        let at = at.iter().map(|&reg| self.operand(w, reg)).collect::<Result<Vec<_>, _>>()?;
        let words = &self.warps[w].words;
        let starting: Vec<usize> =
            lanes(self.warps[w].lanes).filter(|&lane| words[when.at(0, lane)] != 0).collect();
        self.follow(w, inst, 0, starting.len())?;
        let Some(&lane) = starting.first() else { return Ok(()) };
        let words = &self.warps[w].words;
        let turn = words[turn.at(0, lane)] as i64;
        let at: Vec<i64> = at.iter().map(|at| words[at.at(0, lane)] as i64).collect();
        let data = &self.block.shared[tile];
        if turn < 0 {
            return wrong(turn, "is negative");
        }
        self.begins(map, tile, &at)?;
        self.charge(data.rows * data.cols)?;
        let region =
            Region { tile, stage: turn as usize % data.stages, rows: 0..data.rows, cols: 0..data.cols };
        let words = self.start_reading(w..w + 1, &region)?;
        let (cols, buf) = (data.cols, self.block.maps[map].buf);
        for (i, word) in words.into_iter().enumerate() {
            if let Some(index) = self.locate(map, &at, i / cols, i % cols) {
                self.write_buf(w, lane, buf, index, word)?;
            }
        }
        self.warps[w].copies.push(Reading { lane, region });
        Ok(())
    }

    pub(super) fn copy_out_wait(&mut self, w: usize, pending: usize) {
        self.warps[w].now += 1;
        for lane in lanes(self.warps[w].lanes) {
            let mine = self.warps[w].copies.iter().filter(|copy| copy.lane == lane).count();
            for _ in pending..mine {
                // The oldest comes first.
                let Some(i) = self.warps[w].copies.iter().position(|copy| copy.lane == lane) else { break };
                let Reading { region, .. } = self.warps[w].copies.remove(i);
                self.sees_read(w, &region);
                self.has_read(&region);
            }
        }
    }

    /// Checks that a warp at its end has nothing under way.
    pub(super) fn leaves(&mut self, w: usize) -> Result<(), Fault> {
        if !self.warps[w].copies.is_empty() {
            return Err(Fault::Left("a bulk copy out of shared memory"));
        }
        if self.groups[w / 4].reads(w).next().is_some() {
            return Err(Fault::Left("a product"));
        }
        Ok(())
    }
}
