//! Kernels whose products the tensor cores do: one role fills pipes, the others multiply and do all the rest.

use super::body::{Mode, Spread};
use super::layout::{Bit, Family, Order};
use super::tensor::{GROUP_ROWS, Products, STEP, Span};
use super::uses::is_plain;
use super::{Result, SpreadError};
use crate::target::Hopper;
use eva_ir::entity::{Arena, Entity};
use eva_ir::kernel::block::*;
use eva_ir::kernel::*;
use std::collections::{BTreeSet, HashMap};

/// Warps of a warpgroup.
const GROUP: usize = 4;
/// The barrier of the multiplying roles.
const BARRIER: usize = 1;

/// The layout of the tiles of a kernel whose products the tensor cores do.
pub(super) fn family(products: &Products) -> Family {
    let [rows, cols] = products.groups;
    let mut row =
        vec![Bit::Thread(2), Bit::Thread(3), Bit::Thread(4), Bit::Slot, Bit::Thread(5), Bit::Thread(6)];
    row.extend((7..7 + rows.trailing_zeros()).map(Bit::Thread));
    let col = vec![Bit::Slot, Bit::Thread(0), Bit::Thread(1)];
    let top = [None, (cols == 2).then_some(7)];
    Family { warps: rows * cols * GROUP, bits: [row, col], top, order: Order::Product }
}

impl<'k> Spread<'_, 'k> {
    /// Writes the whole kernel as two roles, and what the block has besides.
    pub fn run_roles(&mut self, target: &Hopper) -> Result<Block> {
        let products = self.products.expect("there are products");
        let (mut shared, mut pipes, mut maps) = (Arena::default(), Arena::default(), Arena::default());
        let consumers = self.family.warps;
        for (i, plan) in products.pipes.iter().enumerate() {
            let mut tiles = Vec::new();
            for &fill in &plan.fills {
                let fill = &products.fills[fill];
                let name = self.info.kernel.bufs[fill.place.buf].name.clone();
                let (rows, cols, dtype, stages) = (fill.rows, fill.cols, fill.dtype, plan.stages);
                let swizzle = fill.swizzle;
                tiles.push(shared.push(SharedData { name, dtype, rows, cols, stages, swizzle }));
            }
            let name = format!("pipe{i}");
            pipes.push(PipeData { name, tiles, stages: plan.stages, consumers });
        }
        for fill in &products.fills {
            let (buf, axes, rows, cols) = (fill.place.buf, fill.axes, fill.rows, fill.cols);
            maps.push(MapData { buf, axes, rows, cols, swizzle: fill.swizzle });
        }
        for map in products.outs.maps() {
            maps.push(map.clone());
        }
        self.w.shared = shared;
        self.barrier = (BARRIER, consumers);

        let [fill, multiply] = if products.groups[0] == 4 { target.many_registers } else { target.registers };
        let mut roles = Vec::new();
        for (mode, name, warps, registers) in
            [(Mode::Fill, "fill", GROUP, fill), (Mode::Multiply, "multiply", consumers, multiply)]
        {
            self.mode = mode;
            self.reset();
            self.w.open();
            self.persist(target)?;
            let body = self.w.close();
            let body = super::simplify::sweep(body, &mut Default::default());
            roles.push(Role { name: name.into(), warps, registers, solo: mode == Mode::Fill, body });
        }
        self.w.push(Inst::Block(BlockInst::Roles { roles }));
        let launch = Launch::Persistent { per_multiprocessor: 1 };
        Ok(Block {
            warps: GROUP + consumers,
            launch,
            shared: std::mem::take(&mut self.w.shared),
            pipes,
            maps,
        })
    }

    /// One program after another, until all are done.
    fn persist(&mut self, target: &Hopper) -> Result<()> {
        let number = self.w.pure(Elem::I64, 1, |out| Inst::Block(BlockInst::Number { out }));
        let launched = self.w.pure(Elem::I64, 1, |out| Inst::Block(BlockInst::Launched { out }));
        let total = self.total();
        let left = self.w.zip(Fn2::Sub, total, number);
        let up = self.w.zip(Fn2::Add, left, launched);
        let up = self.w.zip_int(Fn2::Sub, up, 1);
        let trips = self.w.zip(Fn2::Div, up, launched);
        let products = self.products.expect("there are products");
        let zero = self.w.int(0);
        self.turns = (0..products.pipes.len()).map(|pipe| (pipe, zero)).collect();
        let kernel = self.info.kernel;
        let index = self.w.reg(Elem::I64, 1);
        let mut counters = self.carry_turns(&(0..products.pipes.len()).collect::<Vec<_>>());
        self.w.open();
        let ahead = self.w.mul(index, launched);
        let program = self.w.add(number, ahead);
        let program = if kernel.body.iter().any(|inst| products.sums(inst)) && kernel.grid.len() >= 2 {
            self.raster(program, target.raster)
        } else {
            program
        };
        self.digits_of(program);
        self.block(&kernel.body)?;
        let body = self.close_turns(&mut counters);
        let carried = counters.into_iter().map(|(_, c)| c).collect();
        self.w.push(Inst::For { index, trips, carried, body });
        if self.mode == Mode::Multiply && !products.outs.is_empty() {
            self.w.push(Inst::Block(BlockInst::CopyOutWait { pending: 0 }));
        }
        Ok(())
    }

    /// The number of the program that is done as number `program`, where those of `height` rows of the last two axes
    /// of the grid are done column by column.
    fn raster(&mut self, program: Reg, height: i64) -> Reg {
        let axes = self.info.kernel.grid.len();
        let (rows, cols) = (self.count(axes - 2), self.count(axes - 1));
        let all = self.w.mul(rows, cols);
        let (outer, inner) = (self.w.zip(Fn2::Div, program, all), self.w.zip(Fn2::Rem, program, all));
        let band = self.w.times(cols, height);
        let number = self.w.zip(Fn2::Div, inner, band);
        let within = self.w.zip(Fn2::Rem, inner, band);
        let first = self.w.times(number, height);
        // The last band may have fewer rows.
        let left = self.w.zip(Fn2::Sub, rows, first);
        let most = self.w.int(height);
        let here = self.w.zip(Fn2::Min, left, most);
        let down = self.w.zip(Fn2::Rem, within, here);
        let (row, col) = (self.w.add(first, down), self.w.zip(Fn2::Div, within, here));
        let flat = self.w.mul(row, cols);
        let flat = self.w.add(flat, col);
        let outer = self.w.mul(outer, all);
        self.w.add(outer, flat)
    }

    /// The counters of some pipes as what a loop carries; inside they are the loop's.
    pub fn carry_turns(&mut self, pipes: &[usize]) -> Vec<(usize, Carried)> {
        let mut counters = Vec::new();
        for &pipe in pipes {
            let [arg, out] = [0, 1].map(|_| self.w.reg(Elem::I64, 1));
            counters.push((pipe, Carried { init: self.turns[&pipe], arg, next: arg, out }));
            self.turns.insert(pipe, arg);
        }
        counters
    }

    /// Closes the loop's body; afterwards the counters are what the loop left.
    pub fn close_turns(&mut self, counters: &mut [(usize, Carried)]) -> Vec<Inst> {
        for (pipe, c) in counters.iter_mut() {
            c.next = self.turns[pipe];
            self.turns.insert(*pipe, c.out);
        }
        self.w.close()
    }

    /// What comes before and after an instruction for the pipes of its block.
    pub fn before(&mut self, spans: &[Span], i: usize) {
        if self.mode == Mode::Multiply {
            for span in spans.iter().filter(|span| span.first == i) {
                let (pipe, turn) = (Pipe::new(span.pipe), self.turns[&span.pipe]);
                self.w.push(Inst::Block(BlockInst::Wait { pipe, turn }));
            }
        }
    }

    /// See [`Self::before`].
    pub fn after(&mut self, spans: &[Span], i: usize) -> Result<()> {
        match self.mode {
            Mode::Fill => {
                for span in spans.iter().filter(|span| span.filled == i) {
                    self.fill(span.pipe)?;
                }
            }
            Mode::Multiply if !self.streaming => {
                for span in spans.iter().filter(|span| span.last == i) {
                    let turn = self.turns[&span.pipe];
                    self.release(span.pipe, turn, None);
                    self.next_turn(span.pipe);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn next_turn(&mut self, pipe: usize) {
        let next = self.w.zip_int(Fn2::Add, self.turns[&pipe], 1);
        self.turns.insert(pipe, next);
    }

    fn release(&mut self, pipe: usize, turn: Reg, when: Option<Reg>) {
        self.w.push(Inst::Block(BlockInst::Release { pipe: Pipe::new(pipe), turn, when }));
    }

    /// Starts the copies of a turn.
    fn fill(&mut self, number: usize) -> Result<()> {
        let products = self.products.expect("there are products");
        let (pipe, turn) = (Pipe::new(number), self.turns[&number]);
        self.w.push(Inst::Block(BlockInst::Acquire { pipe, turn }));
        for &fill in &products.pipes[number].fills {
            let at = products.fills[fill].place.at.iter().map(|&at| self.value(at)).collect::<Result<_>>()?;
            let (tile, map) = (Shared::new(self.tile_of(fill)), Map::new(fill));
            self.w.push(Inst::Block(BlockInst::Copy { pipe, turn, tile, map, at }));
        }
        self.next_turn(number);
        Ok(())
    }

    /// The number of a fill's tile among the shared ones: pipe by pipe.
    pub fn tile_of(&self, fill: usize) -> usize {
        let products = self.products.expect("there are products");
        let order: Vec<usize> = products.pipes.iter().flat_map(|pipe| pipe.fills.iter().copied()).collect();
        order.iter().position(|&f| f == fill).expect("every fill is in a pipe")
    }

    /// A stage of a fed load as an operand.
    fn operand(&self, load: Reg) -> Option<MmaTile> {
        let products = self.products?;
        let fed = products.fed.get(&load)?;
        let turn = self.turns[&products.fills[fed.fill].pipe];
        Some(MmaTile {
            tile: Shared::new(self.tile_of(fed.fill)),
            turn,
            transposed: fed.transposed,
            first: fed.first,
        })
    }

    /// `acc + x · yᵀ` by the tensor cores.
    pub fn mma(&mut self, result: Reg, acc: Reg, x: Reg, y: Reg) -> Result<Reg> {
        let products = self.products.expect("there are products");
        let (ty, terms) = (self.info.ty(acc), self.info.ty(x).cols);
        let internal = |what: &str| SpreadError::Internal(what.into());
        let [_, col_groups] = products.groups;
        let n = (ty.cols / col_groups).next_multiple_of(8);
        let k = terms.next_multiple_of(STEP / products.dtype.bytes() as usize);
        let thread = self.w.thread();
        let group = self.w.zip_int(Fn2::Div, thread, (GROUP * 32) as i64);
        let zero = self.w.int(0);
        let (row, b_row) = if col_groups == 1 {
            (self.w.times(group, GROUP_ROWS as i64), zero)
        } else {
            (zero, self.w.times(group, n as i64))
        };
        let a = match self.operand(x) {
            Some(tile) => MmaLeft::Shared { tile, row },
            None if products.left_in_registers() => MmaLeft::Registers(self.full(x)?),
            None => {
                let tile = self.stage_left(x)?;
                MmaLeft::Shared { tile, row }
            }
        };
        let b = self.operand(y).ok_or_else(|| internal("a right operand is not fed"))?;

        // A thread's elements of the result, as a product has them: of two rows of eight, of which a short tile has one.
        let axes = self.family.axes([ty.rows, ty.cols]);
        let slots = self.family.slots([&axes[0], &axes[1]]);
        let of = |[r, c]: [usize; 2]| c / 2 * 4 + r % 2 * 2 + c % 2;
        let narrow = axes[0].len() == 1;
        let fresh = products.is_fresh(result);
        let mut start = if fresh { self.partial(n / 2) } else { self.full(acc)? };
        if narrow && !fresh {
            let wide: HashMap<usize, usize> =
                slots.iter().enumerate().map(|(i, &slot)| (of(slot), i)).collect();
            start = self.w.pick(start, (0..n / 2).map(|s| wide[&(s & !2)]).collect());
        }
        let keep = if fresh { Keep::No } else { Keep::Yes };
        let out = self.w.emit(Elem::F32, n / 2, |out| {
            Inst::Block(BlockInst::Mma { out, acc: start, keep, a, b, b_row, n, k })
        });
        let out = if self.streaming || products.is_chained(result) { out } else { self.finished(out, 0) };
        if fresh {
            self.partials.insert(n / 2, out);
        }
        Ok(if narrow { self.w.pick(out, slots.into_iter().map(of).collect()) } else { out })
    }

    /// The registers that a product which adds to nothing may have: those of the last one like it.
    fn partial(&mut self, slots: usize) -> Reg {
        match self.partials.get(&slots) {
            Some(&last) => last,
            None => self.w.constant(Const::F(0.0), slots),
        }
    }

    /// For each number of slots that fresh products of a loop's body have, registers that it carries: all of them have
    /// one set. (With new registers each, an assembler keeps several alive, and spills.)
    pub fn carry_partials(&mut self, body: &[Inst]) -> Vec<(usize, Carried)> {
        let Some(products) = self.products.filter(|_| self.mode == Mode::Multiply) else { return Vec::new() };
        let cols = body.iter().filter_map(|inst| match inst {
            Inst::Dot { out, .. } if products.is_fresh(*out) => Some(self.info.ty(*out).cols),
            _ => None,
        });
        let [_, col_groups] = products.groups;
        let slots: BTreeSet<usize> = cols.map(|n| (n / col_groups).next_multiple_of(8) / 2).collect();
        let mut carried = Vec::new();
        for slots in slots {
            let init = self.w.constant(Const::F(0.0), slots);
            let [arg, out] = [0, 1].map(|_| self.w.reg(Elem::F32, slots));
            carried.push((slots, Carried { init, arg, next: arg, out }));
            self.partials.insert(slots, arg);
        }
        carried
    }

    /// Closes the loop's body, likewise: what comes after it has nothing to go on with.
    pub fn close_partials(&mut self, carried: &mut [(usize, Carried)]) {
        for (slots, c) in carried {
            c.next = self.partials.remove(slots).unwrap_or(c.arg);
        }
    }

    /// A product's result once at most `pending` products are under way.
    pub fn finished(&mut self, x: Reg, pending: usize) -> Reg {
        let slots = self.w.slots(x);
        let out = self.w.reg(Elem::F32, slots);
        self.w.push(Inst::Block(BlockInst::MmaWait { pending, values: vec![(out, x)] }));
        out
    }

    /// A left operand in registers as a tile in shared memory, for the other warpgroup to see, or for products of types that
    /// come from there alone.
    fn stage_left(&mut self, x: Reg) -> Result<MmaTile> {
        let products = self.products.expect("there are products");
        let ty = self.info.ty(x);
        let value = self.full(x)?;
        let cols = ty.cols.next_multiple_of(128 / products.dtype.bytes() as usize);
        let data = SharedData {
            name: "left".into(),
            dtype: products.dtype,
            rows: ty.rows,
            cols,
            stages: 1,
            swizzle: true,
        };
        let tile = self.w.tile(data);
        let zero = self.w.int(0);
        self.sync();
        self.put_now(value, ty, tile, zero, cols);
        self.w.push(Inst::Block(BlockInst::FenceAsync));
        self.sync();
        Ok(MmaTile { tile, turn: zero, transposed: false, first: 0 })
    }

    /// A loop of nothing but products: those of a trip are under way while the next one's start.
    pub fn stream(&mut self, inst: &'k Inst) -> Result<()> {
        let Inst::For { index, trips, carried, body } = inst else { unreachable!("only loops stream") };
        let products = self.products.expect("there are products");
        let [c] = &carried[..] else { unreachable!("a stream carries one tile") };
        let pipe = products.spans(body)[0].pipe;
        let dots = body.iter().filter(|inst| matches!(inst, Inst::Dot { .. })).count();
        let trips = self.value(*trips)?;
        let init = self.full(c.init)?;
        let slots = self.w.slots(init);
        let [arg, out] = [0, 1].map(|_| self.w.reg(Elem::F32, slots));
        let mut counters = self.carry_turns(&[pipe]);
        let i = self.w.reg(Elem::I64, 1);
        self.set(*index, i);
        self.set(c.arg, arg);
        let zero = self.w.int(0);
        self.w.open();
        self.streaming = true;
        self.block(body)?;
        self.streaming = false;
        let next = self.full(c.next)?;
        let next = self.finished(next, dots);
        // The trip before is done with its stage.
        let before = self.w.zip_int(Fn2::Sub, self.turns[&pipe], 1);
        let started = self.w.zip(Fn2::Lt, zero, i);
        self.release(pipe, before, Some(started));
        self.next_turn(pipe);
        let body = self.close_turns(&mut counters);
        let mut all = vec![Carried { init, arg, next, out }];
        all.extend(counters.into_iter().map(|(_, c)| c));
        self.w.push(Inst::For { index: i, trips, carried: all, body });
        let out = self.finished(out, 0);
        let before = self.w.zip_int(Fn2::Sub, self.turns[&pipe], 1);
        let any = self.w.zip(Fn2::Lt, zero, trips);
        self.release(pipe, before, Some(any));
        self.set(c.out, out);
        Ok(())
    }

    /// Instructions of the role that fills: scalars, and loops of those or that have pipes.
    pub fn inst_of_fill(&mut self, inst: &'k Inst) -> Result<()> {
        let products = self.products.expect("there are products");
        if let Inst::For { index, trips, carried, body } = inst {
            if !products.has_pipes(body) {
                let plain = !carried.is_empty() && carried.iter().all(|c| is_plain(self.info, c.out));
                return if plain { self.inst(inst) } else { Ok(()) };
            }
            let trips = self.value(*trips)?;
            let mut counters = self.carry_turns(&products.pipes_in(body));
            let i = self.w.reg(Elem::I64, 1);
            self.set(*index, i);
            self.w.open();
            self.block(body)?;
            let body = self.close_turns(&mut counters);
            let carried = counters.into_iter().map(|(_, c)| c).collect();
            self.w.push(Inst::For { index: i, trips, carried, body });
            return Ok(());
        }
        let known = super::super::walk::operands(inst).into_iter().all(|reg| self.value(reg).is_ok());
        let scalar = super::super::walk::result(inst).is_some_and(|out| self.info.ty(out).is_scalar());
        let plain = !matches!(
            inst,
            Inst::Reduce { .. } | Inst::Scan { .. } | Inst::Reshape { .. } | Inst::Dot { .. }
        );
        if known && scalar && plain { self.inst(inst) } else { Ok(()) }
    }
}
