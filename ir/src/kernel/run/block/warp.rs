//! A warp: its registers, and where it is in the kernel.

use super::*;
use crate::kernel::block::Role;

/// A warp. Its registers have 32 words for each slot, one for each thread.
pub(super) struct Warp<'a> {
    /// What it does, once the threads have parted.
    pub(super) role: Option<&'a Role>,
    /// Which of the logs it follows.
    pub(super) log: usize,
    /// The number of the first warp of its role.
    pub(super) first: usize,
    /// The threads that take part in what it does now, as bits.
    pub(super) lanes: u32,
    /// The bodies that it is in, the innermost last.
    pub(super) frames: Vec<Frame<'a>>,
    pub(super) words: Vec<u64>,
    /// For each register the number of the warpgroup's product that it is the result of, 0 if it can be read.
    pub(super) product: Vec<u64>,
    /// Whether it waits for others.
    pub(super) waits: bool,
    /// Where it is with a barrier or product that it shares with others.
    pub(super) meets: Meets,
    /// How many conditions guard what it does.
    guards: usize,
    /// How many entries of its log it has come by.
    logged: u64,

    /// How many accesses to shared memory it has made: each has a number, from 1.
    pub(super) now: u64,
    /// The number of its last access before a fence.
    pub(super) fenced: u64,
    /// For each warp, up to which of its accesses this warp knows of them.
    pub(super) known: Vec<u64>,
    /// The same of accesses that were fenced.
    pub(super) known_fenced: Vec<u64>,

    /// For each pipe, the turn that it will wait for next.
    pub(super) next_turn: Vec<i64>,
    /// For each pipe, the turns that it has waited for and not released.
    pub(super) held: Vec<Vec<i64>>,
    /// The bulk copies to buffers that its threads have under way.
    pub(super) copies: Vec<shared::Reading>,
    /// Tiles of pipes that it has written since its last fence, and their stages.
    pub(super) unfenced: Vec<(usize, usize)>,
}

/// Where a warp is with what it shares with others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Meets {
    #[default]
    Nobody,
    /// It has come, others have not.
    Waits,
    /// All have come.
    All,
}

/// A body that a warp is in.
pub(super) struct Frame<'a> {
    body: &'a [Inst],
    /// The next instruction.
    at: usize,
    kind: Kind<'a>,
}

enum Kind<'a> {
    Body,
    /// A body behind a condition; the threads that go on after it.
    Guard {
        lanes: u32,
    },
    Loop {
        index: Reg,
        carried: &'a [Carried],
        trip: i64,
        trips: i64,
    },
}

/// What all warps of a role must do alike, in the order in which they do it.
#[derive(Default)]
pub(super) struct Log<'a> {
    /// How many entries have been dropped, as every warp has come by them.
    dropped: u64,
    entries: VecDeque<Entry<'a>>,
}

struct Entry<'a> {
    inst: &'a Inst,
    /// How often a loop runs.
    trips: i64,
    /// How many threads start a bulk copy.
    threads: usize,
    /// How many warps have come by.
    warps: usize,
}

/// Where a register's elements are in a warp's words.
#[derive(Clone, Copy)]
pub(super) struct Operand {
    at: usize,
    step: usize,
}

impl Operand {
    /// A register of one slot has the same value in every slot.
    pub(super) fn at(self, slot: usize, lane: usize) -> usize {
        self.at + slot * self.step + lane
    }
}

/// The threads of a warp that are set in `mask`.
pub(super) fn lanes(mask: u32) -> impl Iterator<Item = usize> {
    (0..WARP).filter(move |lane| mask >> lane & 1 == 1)
}

impl<'a> Warp<'a> {
    pub(super) fn new(kernel: &'a Kernel, block: &Block, slots: usize) -> Self {
        let (warps, pipes) = (block.warps, block.pipes.len());
        Self {
            role: None,
            log: 0,
            first: 0,
            lanes: u32::MAX,
            frames: vec![Frame { body: &kernel.body, at: 0, kind: Kind::Body }],
            words: vec![0; slots * WARP],
            product: vec![0; kernel.regs.len()],
            waits: false,
            meets: Meets::Nobody,
            guards: 0,
            logged: 0,
            now: 0,
            fenced: 0,
            known: vec![0; warps],
            known_fenced: vec![0; warps],
            next_turn: vec![0; pipes],
            held: vec![Vec::new(); pipes],
            copies: Vec::new(),
            unfenced: Vec::new(),
        }
    }

    pub(super) fn ended(&self) -> bool {
        self.frames.is_empty()
    }

    /// The instruction that it is at.
    pub(super) fn inst(&self) -> Option<&'a Inst> {
        self.frames.last().and_then(|frame| frame.body.get(frame.at))
    }

    /// Goes on to the next instruction.
    pub(super) fn advance(&mut self) {
        if let Some(frame) = self.frames.last_mut() {
            frame.at += 1;
        }
    }
}

impl<'a> Machine<'a> {
    /// Where a register's elements are, if they may be read.
    pub(super) fn operand(&self, w: usize, reg: Reg) -> Result<Operand, Fault> {
        if self.warps[w].product[reg.index()] != 0 {
            return Err(Fault::Unfinished);
        }
        Ok(self.place(reg))
    }

    /// Where a register's elements are.
    pub(super) fn place(&self, reg: Reg) -> Operand {
        let step = if self.kernel.regs[reg].cols == 1 { 0 } else { WARP };
        Operand { at: self.layout.slots[reg.index()] * WARP, step }
    }

    /// The value of a scalar, on which the threads that take part agree.
    pub(super) fn scalar(&self, w: usize, reg: Reg, what: &'static str) -> Result<u64, Fault> {
        let (operand, warp) = (self.operand(w, reg)?, &self.warps[w]);
        let mut values = lanes(warp.lanes).map(|lane| warp.words[operand.at(0, lane)]);
        let first = values.next().unwrap_or(0);
        if values.all(|value| value == first) { Ok(first) } else { Err(Fault::Differ(what)) }
    }

    /// Computes every element of a register in the threads that take part.
    pub(super) fn fill(
        &mut self,
        w: usize,
        out: Reg,
        item: impl Fn(&[u64], usize, usize) -> Result<u64, Fault>,
    ) -> Result<(), Fault> {
        let (ty, at, mask) = (self.kernel.regs[out], self.place(out), self.warps[w].lanes);
        self.charge(ty.cols * mask.count_ones() as usize)?;
        let (exact, warp) = (!self.options.f32, &mut self.warps[w]);
        for slot in 0..ty.cols {
            for lane in lanes(mask) {
                let word = item(&warp.words, slot, lane)?;
                let rounds = ty.elem == Elem::F32 && !exact;
                warp.words[at.at(slot, lane)] =
                    if rounds { exec::narrow(exec::float(word), false).to_bits() } else { word };
            }
        }
        warp.product[out.index()] = 0;
        Ok(())
    }

    fn range(&self, reg: Reg) -> std::ops::Range<usize> {
        let at = self.layout.slots[reg.index()] * WARP;
        at..at + self.kernel.regs[reg].cols * WARP
    }

    /// Gives a register another's value, under way or not.
    pub(super) fn copy(&mut self, w: usize, from: Reg, to: Reg) {
        let (range, at) = (self.range(from), self.range(to).start);
        let warp = &mut self.warps[w];
        warp.words.copy_within(range, at);
        warp.product[to.index()] = warp.product[from.index()];
    }

    pub(super) fn enter_loop(
        &mut self,
        w: usize,
        inst: &'a Inst,
        (index, trips): (Reg, Reg),
        carried: &'a [Carried],
        body: &'a [Inst],
    ) -> Result<(), Fault> {
        let trips = self.scalar(w, trips, "how often a loop runs")? as i64;
        // Warps that run programs of their own go round as often as those need.
        let together = !matches!(self.block.launch, crate::kernel::block::Launch::Each { per_block: 2.. });
        if self.warps[w].guards == 0 && together {
            self.follow(w, inst, trips, 0)?;
        }
        for c in carried {
            self.copy(w, c.init, c.arg);
        }
        if trips <= 0 {
            carried.iter().for_each(|c| self.copy(w, c.arg, c.out));
            self.warps[w].advance();
            return Ok(());
        }
        self.fill(w, index, |_, _, _| Ok(0))?;
        self.warps[w].frames.push(Frame { body, at: 0, kind: Kind::Loop { index, carried, trip: 0, trips } });
        Ok(())
    }

    pub(super) fn enter_guard(&mut self, w: usize, cond: Reg, body: &'a [Inst]) -> Result<(), Fault> {
        let at = self.operand(w, cond)?;
        let warp = &mut self.warps[w];
        let holds = lanes(warp.lanes).filter(|&lane| warp.words[at.at(0, lane)] != 0);
        let inside = holds.fold(0, |mask, lane| mask | 1 << lane);
        if inside == 0 {
            warp.advance();
            return Ok(());
        }
        let kind = Kind::Guard { lanes: std::mem::replace(&mut warp.lanes, inside) };
        warp.guards += 1;
        warp.frames.push(Frame { body, at: 0, kind });
        Ok(())
    }

    /// The threads part.
    pub(super) fn enter_role(&mut self, w: usize, roles: &'a [Role]) {
        let mut first = 0;
        for (i, role) in roles.iter().enumerate() {
            if (first..first + role.warps).contains(&w) {
                let warp = &mut self.warps[w];
                (warp.role, warp.log, warp.first, warp.logged) = (Some(role), i + 1, first, 0);
                warp.words.resize(self.layout.words[i + 1] * WARP, 0);
                match (role.solo, w == first) {
                    (true, false) => return warp.frames.clear(),
                    (true, true) => warp.lanes = 1,
                    (false, _) => {}
                }
                return warp.frames.push(Frame { body: &role.body, at: 0, kind: Kind::Body });
            }
            first += role.warps;
        }
    }

    /// Ends a body.
    pub(super) fn leave(&mut self, w: usize) -> Result<Step, Fault> {
        let Some(frame) = self.warps[w].frames.last_mut() else { return Ok(Step::Ended) };
        if let Kind::Loop { index, carried, trip, trips } = &mut frame.kind {
            *trip += 1;
            let (index, carried, trip, more) = (*index, *carried, *trip, trip < trips);
            frame.at = 0;
            self.rotate(w, carried)?;
            if more {
                self.fill(w, index, |_, _, _| Ok(trip as u64))?;
                return Ok(Step::Went);
            }
            carried.iter().for_each(|c| self.copy(w, c.arg, c.out));
        }
        let warp = &mut self.warps[w];
        if let Some(Frame { kind: Kind::Guard { lanes }, .. }) = warp.frames.pop() {
            warp.lanes = lanes;
            warp.guards -= 1;
        }
        warp.advance();
        Ok(if warp.frames.is_empty() { Step::Ended } else { Step::Went })
    }

    /// Gives what a loop carries its next values. One register's next value may be another's current one.
    fn rotate(&mut self, w: usize, carried: &[Carried]) -> Result<(), Fault> {
        let (mut words, mut products) = (Vec::new(), Vec::new());
        for c in carried {
            words.extend(&self.warps[w].words[self.range(c.next)]);
            products.push(self.warps[w].product[c.next.index()]);
        }
        self.charge(words.len() + 1)?;
        let mut rest = words.as_slice();
        for (c, product) in carried.iter().zip(products) {
            let range = self.range(c.arg);
            let (value, after) = rest.split_at(range.len());
            let warp = &mut self.warps[w];
            warp.words[range].copy_from_slice(value);
            warp.product[c.arg.index()] = product;
            rest = after;
        }
        Ok(())
    }

    /// Checks that the warp does what the others of its role do, `threads` of it starting a bulk copy.
    pub(super) fn follow(
        &mut self,
        w: usize,
        inst: &'a Inst,
        trips: i64,
        threads: usize,
    ) -> Result<(), Fault> {
        let warp = &mut self.warps[w];
        let (log, warps) = (&mut self.logs[warp.log], warp.role.map_or(self.block.warps, |role| role.warps));
        // A single thread has nobody to agree with.
        if warp.role.is_some_and(|role| role.solo) {
            return Ok(());
        }
        let i = (warp.logged - log.dropped) as usize;
        if i == log.entries.len() {
            log.entries.push_back(Entry { inst, trips, threads: 0, warps: 0 });
        }
        warp.logged += 1;
        let entry = &mut log.entries[i];
        if !std::ptr::eq(entry.inst, inst) {
            return Err(Fault::Differ("which loop or bulk copy they come to"));
        }
        if entry.trips != trips {
            return Err(Fault::Differ("how often a loop runs"));
        }
        entry.threads += threads;
        entry.warps += 1;
        if entry.threads > 1 {
            return Err(Fault::Differ("who starts a bulk copy: several do"));
        }
        if i == 0 && entry.warps == warps {
            log.entries.pop_front();
            log.dropped += 1;
        }
        Ok(())
    }
}
