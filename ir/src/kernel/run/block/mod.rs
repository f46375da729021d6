//! The block phase: blocks one after the other, the warps of each by turns.
//!
//! A warp is a stack of bodies that it is in ([`warp`]); it runs an instruction at a time for all its threads
//! ([`step`]), until another warp is drawn or it has to wait. What threads tell each other goes through shared memory
//! ([`shared`]), pipes ([`pipe`]) and products ([`product`]); buffers are the business of [`global`].

mod global;
mod pipe;
mod product;
mod shared;
mod step;
mod warp;

use super::memory::MAX_PROGRAMS;
use super::*;
use crate::kernel::block::{Block, BlockInst, Launch as Blocks};
use crate::kernel::print::single_out;
use global::Owners;
use pipe::PipeState;
use product::Warpgroup;
use shared::{Meeting, Tile};
use std::collections::VecDeque;
use warp::{Log, Warp};

/// Threads of a warp.
const WARP: usize = 32;

/// Runs every block of a launch.
pub(super) fn run(
    kernel: &Kernel,
    block: &Block,
    sizes: &dyn Fn(&Sym) -> Option<i64>,
    options: Options,
    views: Vec<BufView>,
    storages: &mut [Storage],
    programs: u64,
) -> Result<Stats, RunError> {
    let launched = match block.launch {
        Blocks::Each { per_block } => programs.div_ceil(per_block as u64),
        Blocks::Persistent { .. } => options.blocks.max(1).min(programs),
    };
    let threads = (block.warps * WARP) as u64;
    if launched.checked_mul(threads).is_none_or(|n| n > MAX_PROGRAMS) {
        return Err(RunError::TooManyPrograms);
    }
    let owners = storages.iter().map(|s| Owners::new(if options.races { s.data.len() } else { 0 })).collect();
    let mut machine = Machine {
        kernel,
        block,
        sizes,
        options,
        views,
        storages,
        owners,
        fuel: options.fuel,
        stats: Stats { programs, loaded: vec![0; kernel.bufs.len()], stored: vec![0; kernel.bufs.len()] },
        launched,
        layout: Layout::of(kernel),
        number: 0,
        random: 0,
        tiles: Vec::new(),
        pipes: Vec::new(),
        meetings: Vec::new(),
        groups: Vec::new(),
        warps: Vec::new(),
        logs: Vec::new(),
    };
    for i in 0..launched {
        machine.number = options.order.nth(i, launched);
        machine.run()?;
    }
    Ok(machine.stats)
}

/// Where registers are in the memory of a warp.
struct Layout {
    /// The first slot of each register. Roles have theirs in the same place.
    slots: Vec<usize>,
    /// How many slots a warp has that runs none of the roles, or this one.
    words: Vec<usize>,
}

impl Layout {
    fn of(kernel: &Kernel) -> Self {
        let mut layout = Self { slots: vec![0; kernel.regs.len()], words: vec![0] };
        layout.words[0] = layout.place(kernel, &kernel.body, 0);
        layout
    }

    /// Gives the registers that `body` assigns places from `next` on; what comes after them.
    fn place(&mut self, kernel: &Kernel, body: &[Inst], mut next: usize) -> usize {
        for inst in body {
            let mut assign = |reg: Reg| {
                self.slots[reg.index()] = next;
                next += kernel.regs[reg].cols;
            };
            match inst {
                Inst::For { index, carried, body, .. } => {
                    assign(*index);
                    carried.iter().flat_map(|c| [c.arg, c.out]).for_each(assign);
                    next = self.place(kernel, body, next);
                }
                Inst::If { body, .. } => next = self.place(kernel, body, next),
                Inst::Block(BlockInst::MmaWait { values, .. }) => {
                    values.iter().map(|(out, _)| *out).for_each(assign);
                }
                Inst::Block(BlockInst::Roles { roles }) => {
                    for role in roles {
                        let words = self.place(kernel, &role.body, next);
                        self.words.push(words);
                    }
                }
                _ => single_out(inst).into_iter().for_each(assign),
            }
        }
        next
    }
}

/// A launch, and the block that runs.
struct Machine<'a> {
    kernel: &'a Kernel,
    block: &'a Block,
    sizes: &'a dyn Fn(&Sym) -> Option<i64>,
    options: Options,
    views: Vec<BufView>,
    storages: &'a mut [Storage],
    /// One for each storage.
    owners: Vec<Owners>,
    fuel: u64,
    stats: Stats,
    /// How many blocks there are.
    launched: u64,
    layout: Layout,
    /// The block's number.
    number: u64,
    /// The state of the generator of turns.
    random: u64,
    tiles: Vec<Tile>,
    pipes: Vec<PipeState>,
    /// One for each barrier.
    meetings: Vec<Meeting>,
    groups: Vec<Warpgroup<'a>>,
    warps: Vec<Warp<'a>>,
    /// What the warps of no role, and of each role, must do alike.
    logs: Vec<Log<'a>>,
}

/// How an instruction went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// It is done.
    Went,
    /// It waits for another warp, and has to be tried again.
    Waits,
    /// There was none left.
    Ended,
}

impl Machine<'_> {
    /// Runs the block with this number.
    fn run(&mut self) -> Result<(), RunError> {
        self.reset();
        let cells: usize = self.tiles.iter().map(|tile| tile.cells.len()).sum();
        self.charge(1 + cells).map_err(|fault| self.at(0, fault))?;
        loop {
            let ready = |warp: &Warp| !warp.ended() && !warp.waits;
            let count = self.warps.iter().filter(|warp| ready(warp)).count() as u64;
            if count == 0 {
                break;
            }
            let nth = (self.draw() % count) as usize;
            let ready = self.warps.iter().enumerate().filter(|(_, warp)| ready(warp));
            let w = ready.map(|(w, _)| w).nth(nth).unwrap_or(0);
            // Sometimes a warp comes far ahead of the others, sometimes they change at every instruction.
            let turns = match self.draw() % 4 {
                0 => 1,
                1 => 1 + self.draw() % 8,
                2 => 1 + self.draw() % 64,
                _ => 4096,
            };
            for _ in 0..turns {
                match self.step(w).map_err(|fault| self.at(w, fault))? {
                    Step::Went => {}
                    Step::Waits => {
                        self.warps[w].waits = true;
                        break;
                    }
                    Step::Ended => {
                        self.leaves(w).map_err(|fault| self.at(w, fault))?;
                        break;
                    }
                }
            }
        }
        let waiting: Vec<usize> = (0..self.warps.len()).filter(|&w| !self.warps[w].ended()).collect();
        if !waiting.is_empty() {
            let waiting = waiting.into_iter().map(|w| format!("warp {} at `{}`", self.warp(w), self.line(w)));
            return Err(RunError::Deadlock { block: self.number, waiting: waiting.collect() });
        }
        if self.pipes.iter().any(PipeState::is_filling) {
            return Err(self.at(0, Fault::Left("a bulk copy into shared memory")));
        }
        Ok(())
    }

    fn reset(&mut self) {
        let (block, kernel) = (self.block, self.kernel);
        self.random = mix(self.options.schedule ^ mix(self.number));
        let pipe_of = |tile| block.pipes.iter().position(|(_, pipe)| pipe.tiles.contains(&tile));
        self.tiles = block.shared.iter().map(|(id, data)| Tile::new(data, pipe_of(id))).collect();
        self.pipes = block.pipes.iter().map(|(_, data)| PipeState::new(data)).collect();
        self.meetings = (0..16).map(|_| Meeting::default()).collect();
        self.groups = (0..block.warps.div_ceil(4)).map(|_| Warpgroup::default()).collect();
        self.logs = (0..self.layout.words.len()).map(|_| Log::default()).collect();
        self.warps = (0..block.warps).map(|_| Warp::new(kernel, block, self.layout.words[0])).collect();
    }

    /// Lets those try again who wait.
    fn wake(&mut self) {
        self.warps.iter_mut().for_each(|warp| warp.waits = false);
    }

    fn draw(&mut self) -> u64 {
        self.random = mix(self.random);
        self.random
    }

    /// Takes note that `elements` are computed.
    fn charge(&mut self, elements: usize) -> Result<(), Fault> {
        self.fuel = self.fuel.checked_sub(elements as u64).ok_or(Fault::Fuel)?;
        Ok(())
    }

    fn at(&self, w: usize, fault: Fault) -> RunError {
        RunError::InBlock { block: self.number, warp: self.warp(w), inst: self.line(w), fault }
    }

    /// The warp's number and role, for people.
    fn warp(&self, w: usize) -> String {
        match self.warps[w].role {
            Some(role) => format!("{w} ({})", role.name),
            None => w.to_string(),
        }
    }

    /// The text of the instruction that a warp is at.
    fn line(&self, w: usize) -> String {
        self.warps[w].inst().map_or("kernel".into(), |inst| Names::new(self.kernel).inst(inst))
    }

    fn name(&self, tile: crate::kernel::block::Shared) -> String {
        let name = &self.block.shared[tile].name;
        if name.is_empty() { tile.to_string() } else { name.clone() }
    }
}
