//! Goes through a tile kernel and writes the block kernel.

use super::folds::Folds;
use super::info::Info;
use super::layout::Family;
use super::parts::{Part, Tail};
use super::tensor::Products;
use super::uses::users;
use super::write::Write;
use super::{Result, SpreadError};
use eva_ir::kernel::block::BlockInst;
use eva_ir::kernel::*;
use std::collections::{HashMap, HashSet};

/// Which threads a body is written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// All threads of the block.
    All,
    /// The role that fills pipes.
    Fill,
    /// The roles that multiply, and do all else.
    Multiply,
}

/// What is known while the block kernel is written.
pub(super) struct Spread<'a, 'k> {
    pub info: &'a Info<'k>,
    /// The layout of the kernel's tiles; that of others while an instruction on such is written.
    pub family: Family,
    /// Tiles that are laid out in another way.
    folds: Folds,
    pub w: Write,
    /// From a register of the tile kernel to that of the block kernel: of one slot where all elements are the same.
    values: HashMap<Reg, Reg>,
    /// How many programs share a block.
    pub per_block: usize,
    /// The barrier that the threads of a program meet at, and their warps.
    pub barrier: (usize, usize),
    programs: Vec<Reg>,
    /// Whether this thread's program is its own, where that is in question.
    pub stores: Option<Reg>,
    /// Products of the tensor cores.
    pub products: Option<&'a Products>,
    pub mode: Mode,
    /// How many turns of each pipe came before.
    pub turns: HashMap<usize, Reg>,
    /// Whether products may stay under way: inside a stream.
    pub streaming: bool,
    /// By their slots, the registers that a product which adds to nothing may have.
    pub partials: HashMap<usize, Reg>,
    /// Who uses each register, where tensor cores multiply.
    pub users: HashMap<Reg, Vec<Reg>>,
    /// The columns that are being written, if not all.
    pub part: Option<Part>,
    /// The most terms of a product that are in shared memory at once, where the ordinary units multiply.
    pub terms: usize,
}

impl<'a, 'k> Spread<'a, 'k> {
    pub fn new(info: &'a Info<'k>, family: Family, per_block: usize, products: Option<&'a Products>) -> Self {
        let barrier = (0, family.warps);
        let folds = if products.is_none() { Folds::find(info, &family) } else { Folds::default() };
        Self {
            info,
            family,
            folds,
            w: Write::new(),
            values: HashMap::new(),
            per_block,
            barrier,
            programs: Vec::new(),
            stores: None,
            products,
            mode: Mode::All,
            turns: HashMap::new(),
            streaming: false,
            partials: HashMap::new(),
            users: products.map(|_| users(&info.kernel.body)).unwrap_or_default(),
            part: None,
            terms: usize::MAX,
        }
    }

    /// Forgets what was computed: another role begins.
    pub fn reset(&mut self) {
        self.values.clear();
        self.partials.clear();
    }

    /// Writes the whole kernel.
    pub fn run(&mut self) -> Result<()> {
        let number = self.w.pure(Elem::I64, 1, |out| Inst::Block(BlockInst::Number { out }));
        let program = if self.per_block == 1 {
            number
        } else {
            let first = self.w.times(number, self.per_block as i64);
            let mine = self.place_in_block();
            let mine = self.w.add(first, mine);
            // Warps without a program of their own do the last one once more, but store nothing.
            let total = self.total();
            let last = self.w.zip_int(Fn2::Sub, total, 1);
            self.stores = Some(self.w.zip(Fn2::Le, mine, last));
            self.w.zip(Fn2::Min, mine, last)
        };
        self.digits_of(program);
        let kernel = self.info.kernel;
        self.block(&kernel.body)
    }

    /// Which of a block's programs this thread works on.
    pub fn place_in_block(&mut self) -> Reg {
        let thread = self.w.thread();
        self.w.zip_int(Fn2::Div, thread, self.family.threads() as i64)
    }

    /// How many programs lie along an axis of the grid.
    pub fn count(&mut self, axis: usize) -> Reg {
        let GridAxis { extent, tile } = &self.info.kernel.grid[axis];
        let extent = self.w.extent(extent);
        let up = self.w.zip_int(Fn2::Add, extent, tile - 1);
        self.w.zip_int(Fn2::Div, up, *tile)
    }

    /// How many programs there are.
    pub fn total(&mut self) -> Reg {
        let one = self.w.int(1);
        (0..self.info.kernel.grid.len()).fold(one, |product, axis| {
            let count = self.count(axis);
            self.w.mul(product, count)
        })
    }

    /// Takes a program's number apart into its index along each axis of the grid.
    pub fn digits_of(&mut self, program: Reg) {
        let axes = self.info.kernel.grid.len();
        let mut rest = program;
        self.programs = vec![program; axes];
        for axis in (1..axes).rev() {
            let count = self.count(axis);
            self.programs[axis] = self.w.zip(Fn2::Rem, rest, count);
            rest = self.w.zip(Fn2::Div, rest, count);
        }
        if axes > 0 {
            self.programs[0] = rest;
        }
    }

    /// The register of a tile, or what it is in all elements.
    pub fn value(&self, reg: Reg) -> Result<Reg> {
        let value = self.values.get(&reg).copied();
        value.ok_or_else(|| SpreadError::Internal(format!("{reg} is not computed yet")))
    }

    /// The register of a tile, with a slot for each element.
    pub fn full(&mut self, reg: Reg) -> Result<Reg> {
        let value = self.value(reg)?;
        let slots = self.slots(self.info.ty(reg));
        Ok(self.w.stretch(value, slots))
    }

    /// How many slots a tile has.
    pub fn slots(&self, ty: RegType) -> usize {
        self.axes([ty.rows, ty.cols]).iter().map(|axis| axis.len()).product()
    }

    /// A tile of type `from` as a part of one of type `to`: its extents of 1 are stretched.
    pub fn stretched(&mut self, value: Reg, from: RegType, to: RegType) -> Reg {
        if self.w.slots(value) == 1 || (from.rows, from.cols) == (to.rows, to.cols) {
            return value;
        }
        let (own, all) = (self.axes([from.rows, from.cols]), self.axes([to.rows, to.cols]));
        let places: HashMap<[usize; 2], usize> = self
            .family
            .slots([&own[0], &own[1]])
            .into_iter()
            .enumerate()
            .map(|(i, slot)| (slot, i))
            .collect();
        let within = |[row, col]: [usize; 2]| {
            places[&[if from.rows == 1 { 0 } else { row }, if from.cols == 1 { 0 } else { col }]]
        };
        let slots = self.family.slots([&all[0], &all[1]]).into_iter().map(within).collect();
        self.w.pick(value, slots)
    }

    /// A number made of some digits of this thread's number among those of its program: each digit and its weight.
    pub fn digits(&mut self, digits: &[(u32, usize)]) -> Reg {
        let thread = self.w.thread();
        let mut sum = self.w.int(0);
        let mut i = 0;
        while i < digits.len() {
            // Digits that follow each other are taken together.
            let mut n = 1;
            while i + n < digits.len()
                && digits[i + n].0 == digits[i].0 + n as u32
                && digits[i + n].1 == digits[i].1 << n
            {
                n += 1;
            }
            let (first, weight) = digits[i];
            let part = self.w.zip_int(Fn2::Div, thread, 1 << first);
            let part = self.w.zip_int(Fn2::Rem, part, 1 << n);
            let part = self.w.times(part, weight as i64);
            sum = self.w.add(sum, part);
            i += n;
        }
        sum
    }

    /// The index along an axis of each slot.
    pub fn index(&mut self, axis: usize, n: usize) -> Reg {
        let layout = self.axis(axis, n);
        let part = self.digits(&layout.threads);
        let table = self.w.table(layout.slots.iter().map(|&slot| slot as i64).collect());
        let index = self.w.add(part, table);
        self.w.stretch(index, layout.len())
    }

    /// Writes a block's instructions.
    pub fn block(&mut self, body: &'k [Inst]) -> Result<()> {
        let spans = self.products.map(|products| products.spans(body)).unwrap_or_default();
        let tails = if self.mode == Mode::Multiply { self.tails(body) } else { HashMap::new() };
        let later: HashSet<*const Inst> =
            tails.values().flat_map(|tail| tail.insts().map(std::ptr::from_ref)).collect();
        for (i, inst) in body.iter().enumerate() {
            self.before(&spans, i);
            match (self.mode, tails.get(&std::ptr::from_ref(inst))) {
                (Mode::Fill, _) => self.inst_of_fill(inst)?,
                (_, Some(tail)) => self.store_tail(inst, tail)?,
                _ if later.contains(&std::ptr::from_ref(inst)) => {}
                _ => self.inst(inst)?,
            }
            self.after(&spans, i)?;
        }
        Ok(())
    }

    /// Writes a store and what only leads to it.
    fn store_tail(&mut self, inst: &'k Inst, tail: &Tail<'k>) -> Result<()> {
        let Inst::Store { place, value } = inst else { unreachable!("only stores have tails") };
        if let Some(out) = self.products.and_then(|products| products.outs.of(inst)) {
            return self.store_bulk(place, *value, out, tail);
        }
        let ty = self.info.ty(*value);
        let all: Vec<usize> = (0..self.family.axis(1, ty.cols).len()).collect();
        let parts = self.parts(ty, &all);
        self.in_parts(tail, *value, parts, &mut |spread, _, _| spread.store(place, *value, None, None))
    }

    /// Says which register a tile is in.
    pub fn set(&mut self, tile: Reg, value: Reg) {
        self.values.insert(tile, value);
    }

    /// Writes an instruction, in the layout of its operands.
    pub fn inst(&mut self, inst: &'k Inst) -> Result<()> {
        let Some(family) = self.folds.layout_of(inst) else { return self.inst_as_laid_out(inst) };
        let kernels = std::mem::replace(&mut self.family, family);
        let written = self.inst_as_laid_out(inst);
        self.family = kernels;
        written
    }

    fn inst_as_laid_out(&mut self, inst: &'k Inst) -> Result<()> {
        if let (Mode::Multiply, Some(products)) = (self.mode, self.products) {
            if let Some(out) = super::super::walk::result(inst).filter(|out| products.fed.contains_key(out)) {
                if let Some(fill) = products.line_of(out) {
                    let line = self.line(out, fill)?;
                    self.set(out, line);
                }
                return Ok(());
            }
            if products.streams(inst) {
                return self.stream(inst);
            }
            if let (Inst::Store { place, value }, Some(out)) = (inst, products.outs.of(inst)) {
                return self.store_bulk(place, *value, out, &Tail::default());
            }
        }
        let (out, value) = match inst {
            Inst::Program { out, axis } => (*out, self.programs[*axis]),
            Inst::Extent { out, dim } => (*out, self.w.extent(dim)),
            Inst::Const { out, value: Const::I(n) } => (*out, self.w.int(*n)),
            Inst::Const { out, value } => (*out, self.w.constant(*value, 1)),
            Inst::Map { out, f, x } => {
                let x = self.value(*x)?;
                (*out, self.w.map(*f, x))
            }
            Inst::Zip { out, f: Fn2::Sub, x, y } if self.is_fused(*x) => {
                let [a, b] = self.factors(*x);
                let c = self.w.map(Fn1::Neg, self.value(*y)?);
                (*out, self.fused(self.info.ty(*out), [a, b], (c, *y))?)
            }
            Inst::Zip { out, f: Fn2::Add, x, y } if self.is_scaled(*x) || self.is_scaled(*y) => {
                let (product, sum) = if self.is_scaled(*y) { (*y, *x) } else { (*x, *y) };
                let [a, b] = self.factors(product);
                (*out, self.fused(self.info.ty(*out), [a, b], (self.value(sum)?, sum))?)
            }
            Inst::Zip { out, f, x, y } => {
                let ty = self.info.ty(*out);
                let [x, y] = [*x, *y].map(|reg| (self.value(reg), self.info.ty(reg)));
                let (x, y) = (self.stretched(x.0?, x.1, ty), self.stretched(y.0?, y.1, ty));
                (*out, self.w.zip(*f, x, y))
            }
            Inst::Select { out, cond, x, y } => {
                let ty = self.info.ty(*out);
                let mut operands = [*cond, *x, *y];
                for reg in &mut operands {
                    *reg = self.stretched(self.value(*reg)?, self.info.ty(*reg), ty);
                }
                let [cond, x, y] = operands;
                (*out, self.w.select(cond, x, y))
            }
            Inst::Cast { out, x } => {
                let x = self.value(*x)?;
                (*out, self.w.cast(self.info.ty(*out).elem, x))
            }
            Inst::Round { out, x, to } => {
                let x = self.value(*x)?;
                (*out, self.w.round(x, *to))
            }
            Inst::Iota { out, axis } => {
                let ty = self.info.ty(*out);
                let n = [ty.rows, ty.cols][*axis];
                let index = self.index(*axis, n);
                // The other axis may be longer than 1.
                let line = if *axis == 0 { RegType { cols: 1, ..ty } } else { RegType { rows: 1, ..ty } };
                (*out, self.stretched(index, line, ty))
            }
            Inst::Load { out, place } => (*out, self.load(*out, place, None)?),
            Inst::Gather { out, place, axis, index } => {
                (*out, self.load(*out, place, Some((*axis, *index)))?)
            }
            Inst::Store { place, value } => return self.store(place, *value, None, None),
            Inst::Scatter { place, axis, index, value, mask } => {
                return self.store(place, *value, Some((*axis, *index)), Some(*mask));
            }
            Inst::Reduce { out, f, axis, x } => (*out, self.reduce(*f, *axis, *x)?),
            Inst::Scan { out, x } => (*out, self.scan(*x)?),
            Inst::Columns { out, x, order } => (*out, self.columns(*x, *order)?),
            Inst::Reshape { out, x } if self.folds.stays(*out) => (*out, self.value(*x)?),
            Inst::Reshape { out, x } => (*out, self.reshape(*x, self.info.ty(*out))?),
            Inst::Dot { out, acc, x, y } => {
                let product = if self.products.is_some() {
                    self.mma(*out, *acc, *x, *y)
                } else {
                    self.dot(*acc, *x, *y)
                };
                (*out, product?)
            }
            Inst::For { index, trips, carried, body } => return self.repeat(*index, *trips, carried, body),
            _ => return Err(SpreadError::Malformed("an instruction is not of the tile phase".into())),
        };
        self.set(out, value);
        Ok(())
    }

    /// Whether a product of floats can be rounded together with what is taken from it: where tensor cores round sums
    /// as they like, nobody can tell.
    fn is_fused(&self, x: Reg) -> bool {
        let product = matches!(self.info.inst(x), Some(Inst::Zip { f: Fn2::Mul, .. }));
        self.products.is_some() && product && self.info.ty(x).elem == Elem::F32
    }

    /// Whether it is what a fresh product of tensor cores gave, times something.
    fn is_scaled(&self, x: Reg) -> bool {
        let fresh = |reg| self.products.is_some_and(|products| products.is_fresh(reg));
        self.is_fused(x) && self.factors(x).into_iter().any(fresh)
    }

    /// What a product of two numbers has as operands.
    fn factors(&self, x: Reg) -> [Reg; 2] {
        let Some(Inst::Zip { x: a, y: b, .. }) = self.info.inst(x) else { unreachable!("it is fused") };
        [*a, *b]
    }

    /// `a · b + c`, rounded once; `c` comes with the tile that it is like.
    fn fused(&mut self, ty: RegType, [a, b]: [Reg; 2], c: (Reg, Reg)) -> Result<Reg> {
        let mut parts = [(self.value(a)?, a), (self.value(b)?, b), c];
        for (part, reg) in &mut parts {
            *part = self.stretched(*part, self.info.ty(*reg), ty);
        }
        let [x, y, acc] = parts.map(|(part, _)| part);
        let slots = [x, y, acc].map(|reg| self.w.slots(reg)).into_iter().max().unwrap_or(1);
        Ok(self.w.pure(Elem::F32, slots, |out| Inst::Block(BlockInst::Fma { out, x, y, acc })))
    }

    fn repeat(&mut self, index: Reg, trips: Reg, carried: &[Carried], body: &'k [Inst]) -> Result<()> {
        let trips = self.value(trips)?;
        let mut regs = Vec::new();
        for c in carried {
            let init = self.full(c.init)?;
            let (elem, slots) = (self.w.elem(init), self.w.slots(init));
            let (arg, out) = (self.w.reg(elem, slots), self.w.reg(elem, slots));
            regs.push(Carried { init, arg, next: arg, out });
            self.set(c.arg, arg);
        }
        let pipes = self.products.map(|products| products.pipes_in(body)).unwrap_or_default();
        let mut counters = self.carry_turns(&pipes);
        let mut partials = self.carry_partials(body);
        let i = self.w.reg(Elem::I64, 1);
        self.set(index, i);
        self.w.open();
        self.block(body)?;
        for (new, c) in regs.iter_mut().zip(carried) {
            new.next = self.full(c.next)?;
        }
        self.close_partials(&mut partials);
        let body = self.close_turns(&mut counters);
        for (new, c) in regs.iter().zip(carried) {
            self.set(c.out, new.out);
        }
        regs.extend(counters.into_iter().chain(partials).map(|(_, c)| c));
        self.w.push(Inst::For { index: i, trips, carried: regs, body });
        Ok(())
    }
}
