//! Goes through a tile kernel and writes the lane kernel.

use super::emit::{Emit, LANES, Written};
use super::eval::Pos;
use super::info::Info;
use super::plan::Plan;
use super::region::Walk;
use super::walk::{is_inline, result};
use super::{Result, SpreadError};
use eva_ir::kernel::*;
use std::cell::RefCell;
use std::collections::{HashMap, HashSet};

/// Where a tile lies: row by row, without gaps. Truth values are the floats 0 and 1.
#[derive(Clone, Copy)]
pub(super) struct Home {
    pub scratch: Scratch,
    elem: Elem,
}

impl Home {
    /// The type of the memory's elements.
    pub fn elem(self) -> Elem {
        self.elem
    }
}

/// What is known while the lane kernel is written.
pub(super) struct Cpu<'a, 'k> {
    pub info: &'a Info<'k>,
    pub plan: &'a Plan,
    pub e: Emit,
    /// From a `1 × 1` register to the register it is in.
    pub scalars: HashMap<Reg, Reg>,
    /// The tiles that are in memory now.
    homes: HashMap<Reg, Home>,
    /// Products that add to a carried tile where it is.
    placed: HashMap<Reg, Home>,
    /// What was computed in each open block.
    pub memo: Vec<HashMap<(Reg, Pos, usize), Reg>>,
    /// Expressions whose parts for a row have been computed.
    pub visited: HashSet<(Reg, Pos, usize)>,
    pub uniform: RefCell<HashMap<Reg, bool>>,
    pub walk: Walk,
    /// How many parts of walks there were so far.
    pub numbers: usize,
    /// Memory for one element, and for four.
    slots: HashMap<Elem, Scratch>,
    quad: Option<Scratch>,
    ramp: Option<Reg>,
}

impl<'a, 'k> Cpu<'a, 'k> {
    pub fn new(info: &'a Info<'k>, plan: &'a Plan) -> Self {
        Self {
            info,
            plan,
            e: Emit::new(),
            scalars: HashMap::new(),
            homes: HashMap::new(),
            placed: HashMap::new(),
            memo: vec![HashMap::new()],
            visited: HashSet::new(),
            uniform: RefCell::default(),
            walk: Walk::default(),
            numbers: 0,
            slots: HashMap::new(),
            quad: None,
            ramp: None,
        }
    }

    /// Writes the whole kernel.
    pub fn run(mut self) -> Result<Written> {
        self.block(&self.info.kernel.body)?;
        Ok(self.e.finish())
    }

    pub fn open(&mut self) {
        self.memo.push(HashMap::new());
        self.e.open();
    }

    pub fn close(&mut self) -> Vec<Inst> {
        self.memo.pop();
        self.e.close()
    }

    /// The register that a `1 × 1` tile is in.
    pub fn scalar(&self, reg: Reg) -> Result<Reg> {
        let lane = self.scalars.get(&reg).copied();
        lane.ok_or_else(|| SpreadError::Internal(format!("the scalar {reg} is not computed yet")))
    }

    /// Whether a tile is in memory now.
    pub fn is_home(&self, reg: Reg) -> bool {
        self.homes.contains_key(&reg)
    }

    /// Where a tile is in memory.
    pub fn home(&self, reg: Reg) -> Result<Home> {
        let home = self.homes.get(&reg).copied();
        home.ok_or_else(|| SpreadError::Internal(format!("the tile {reg} is not in memory")))
    }

    /// Memory for a tile like `reg`.
    pub fn memory_like(&mut self, reg: Reg) -> Home {
        let ty = self.info.ty(reg);
        let elem = if ty.elem == Elem::Bool { Elem::F32 } else { ty.elem };
        Home { scratch: self.e.scratch(elem, ty.rows * ty.cols), elem }
    }

    /// Gives a tile memory.
    pub fn new_home(&mut self, reg: Reg) -> Home {
        let home = self.placed.get(&reg).copied().unwrap_or_else(|| self.memory_like(reg));
        self.homes.insert(reg, home);
        home
    }

    /// Keeps a tile in memory that is there already.
    pub fn give_home(&mut self, reg: Reg, home: Home) -> Home {
        self.homes.insert(reg, home);
        home
    }

    /// Whether a product is to add to a carried tile where it is.
    pub fn is_placed(&self, reg: Reg) -> bool {
        self.placed.contains_key(&reg)
    }

    /// Memory for one element.
    pub fn slot(&mut self, elem: Elem) -> Scratch {
        if let Some(slot) = self.slots.get(&elem) {
            return *slot;
        }
        let slot = self.e.scratch(elem, 1);
        self.slots.insert(elem, slot);
        slot
    }

    /// Memory for four floats.
    pub fn quad(&mut self) -> Scratch {
        *self.quad.get_or_insert_with(|| self.e.scratch(Elem::F32, LANES))
    }

    /// The vector `0 1 2 3`.
    pub fn ramp(&mut self) -> Reg {
        if let Some(ramp) = self.ramp {
            return ramp;
        }
        let space = Space::Scratch(self.e.scratch(Elem::F32, LANES));
        for lane in 0..LANES {
            let (index, value) = (self.e.int(lane as i64), self.e.float(lane as f64));
            self.e.push_outermost(Inst::VStore { to: Mem { space, index }, value });
        }
        let first = self.e.int(0);
        let ramp = self.e.load(space, first, (Elem::F32, LANES), 0, 0);
        self.ramp = Some(ramp);
        ramp
    }

    fn block(&mut self, body: &'k [Inst]) -> Result<()> {
        for inst in body {
            match inst {
                Inst::For { index, trips, carried, body } => self.repeat(*index, *trips, carried, body)?,
                Inst::Store { place, value } => self.store_any(place, *value)?,
                Inst::Scatter { place, axis, index, value, mask } => {
                    self.scatter(place, *axis, [*index, *value, *mask])?;
                }
                Inst::Reduce { out, f, axis, x } => self.reduce_any(*out, *f, *axis, *x)?,
                Inst::Scan { out, x } if self.is_scalar(*out) => self.rename(*out, *x)?,
                Inst::Scan { out, x } => self.scan(*out, *x)?,
                Inst::Reshape { out, x } if self.is_scalar(*out) => self.rename(*out, *x)?,
                Inst::Reshape { out, x } => {
                    let home = self.home(*x)?;
                    self.homes.insert(*out, home);
                }
                Inst::Dot { out, acc, x, y } => self.product(*out, *acc, *x, *y)?,
                inst => {
                    let Some(out) = result(inst).filter(|_| is_inline(inst)) else {
                        return Err(SpreadError::internal("an instruction of the lane phase"));
                    };
                    if self.is_scalar(out) {
                        self.begin_point();
                        let value = self.compute(out, Pos { r: None, c: None, vector: false })?;
                        self.scalars.insert(out, value);
                    } else if self.plan.is_home(out) {
                        let home = self.memory_like(out);
                        self.fill(home, out, &self.plan.live(out).clone())?;
                        self.homes.insert(out, home);
                    }
                }
            }
        }
        Ok(())
    }

    fn is_scalar(&self, reg: Reg) -> bool {
        self.info.ty(reg).is_scalar()
    }

    fn rename(&mut self, out: Reg, x: Reg) -> Result<()> {
        let value = self.scalar(x)?;
        self.scalars.insert(out, value);
        Ok(())
    }

    fn reduce_any(&mut self, out: Reg, f: Fn2, axis: usize, x: Reg) -> Result<()> {
        let ty = self.info.ty(x);
        if [ty.rows, ty.cols][axis] > 1 {
            return self.reduce(out, f, axis, x);
        }
        if ty.is_scalar() {
            return self.rename(out, x);
        }
        // Nothing to fold.
        let home = self.memory_like(out);
        self.fill(home, x, &self.plan.live(out).clone())?;
        self.homes.insert(out, home);
        Ok(())
    }

    fn store_any(&mut self, place: &Place, value: Reg) -> Result<()> {
        if !self.is_scalar(value) {
            return self.store(place, value);
        }
        let point = Pos { r: None, c: None, vector: false };
        let conds = self.guards(place, self.info.ty(value), point, None)?;
        let value = self.scalar(value)?;
        self.only_if(&conds, |cpu| {
            let index = cpu.address(place, point, None)?;
            cpu.e.store(Space::Buf(place.buf), index, value);
            Ok(())
        })
    }

    fn repeat(&mut self, index: Reg, trips: Reg, carried: &'k [Carried], body: &'k [Inst]) -> Result<()> {
        let (scalars, tiles): (Vec<&Carried>, Vec<&Carried>) =
            carried.iter().partition(|c| self.is_scalar(c.arg));
        let mut homes = Vec::new();
        for c in &tiles {
            let home = self.memory_like(c.arg);
            self.fill(home, c.init, &self.plan.live(c.arg).clone())?;
            homes.push(home);
        }
        for (c, home) in tiles.iter().zip(&homes) {
            self.homes.insert(c.arg, *home);
            if self.plan.product_in_place(self.info, carried, c, body) && !self.placed.contains_key(&c.next) {
                self.placed.insert(c.next, *home);
            }
        }
        let trips = self.scalar(trips)?;
        let init = scalars.iter().map(|c| self.scalar(c.init)).collect::<Result<Vec<_>>>()?;
        let outs = self.trips(trips, &init, |cpu, i, args| {
            cpu.scalars.insert(index, i);
            cpu.scalars.extend(scalars.iter().zip(args).map(|(c, arg)| (c.arg, *arg)));
            cpu.block(body)?;
            cpu.carry(&tiles, &homes)?;
            scalars.iter().map(|c| cpu.scalar(c.next)).collect()
        })?;
        self.scalars.extend(scalars.iter().zip(&outs).map(|(c, out)| (c.out, *out)));
        for (c, home) in tiles.iter().zip(homes) {
            self.homes.insert(c.out, home);
        }
        Ok(())
    }

    /// Puts the next values of carried tiles where the current ones are, which they may be made from.
    fn carry(&mut self, tiles: &[&'k Carried], homes: &[Home]) -> Result<()> {
        let mut pending: Vec<usize> = Vec::new();
        for (i, c) in tiles.iter().enumerate() {
            let there = self.homes.get(&c.next).is_some_and(|home| home.scratch == homes[i].scratch);
            if c.next == c.arg || there && self.placed.contains_key(&c.next) {
                continue;
            }
            pending.push(i);
        }
        let reads = |i: usize, j: usize| {
            let reads = self.plan.reads(self.info, tiles[i].next);
            reads.into_iter().filter(|read| read.home == tiles[j].arg).collect::<Vec<_>>()
        };
        // First those that no other one needs; a ring of them goes by way of other memory.
        let mut steps = Vec::new();
        let mut last = Vec::new();
        while !pending.is_empty() {
            let free = |&i: &usize| pending.iter().all(|&j| j == i || reads(j, i).is_empty());
            let i = pending.iter().copied().find(free);
            let aside = i.is_none_or(|i| reads(i, i).iter().any(|read| !read.same_place));
            let i = i.unwrap_or(pending[0]);
            // What waits aside is copied at the end, when nobody needs the old value.
            steps.push((i, aside));
            if aside {
                last.push(i);
            }
            pending.retain(|&j| j != i);
        }
        let mut asides = HashMap::new();
        for (i, aside) in steps {
            let home = if aside { self.memory_like(tiles[i].arg) } else { homes[i] };
            self.fill(home, tiles[i].next, &self.plan.live(tiles[i].arg).clone())?;
            if aside {
                asides.insert(i, home);
            }
        }
        for i in last {
            // As if the tile were in the other memory.
            let home = self.homes.insert(tiles[i].arg, asides[&i]);
            self.fill(homes[i], tiles[i].arg, &self.plan.live(tiles[i].arg).clone())?;
            self.homes.extend(home.map(|home| (tiles[i].arg, home)));
        }
        Ok(())
    }
}
