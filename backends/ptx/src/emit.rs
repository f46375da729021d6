//! The program: an arm for every instruction.

use crate::abi::{Entry, polynomial};
use crate::ir::{Done, Effect, F, I, Ir, V, fail};
use crate::team::Team;
use eva_ir::entity::Entity;
use eva_ir::kernel::block::{Block, BlockInst};
use eva_ir::kernel::{Carried, Const, Elem, Inst, Kernel, Reg, RegType};
use eva_ir::types::DType;
use inkwell::IntPredicate;
use inkwell::module::Module;
use std::collections::HashMap;

/// What a register holds for this thread, slot by slot.
#[derive(Clone, Debug)]
pub(crate) enum Slots<'c> {
    Floats(Vec<F<'c>>),
    Ints(Vec<I<'c>>),
    Truths(Vec<I<'c>>),
}

impl<'c> Slots<'c> {
    pub(crate) fn elem(&self) -> Elem {
        match self {
            Slots::Floats(_) => Elem::F32,
            Slots::Ints(_) => Elem::I64,
            Slots::Truths(_) => Elem::Bool,
        }
    }

    pub(crate) fn values(&self) -> Vec<V<'c>> {
        match self {
            Slots::Floats(xs) => xs.iter().map(|&x| x.into()).collect(),
            Slots::Ints(xs) | Slots::Truths(xs) => xs.iter().map(|&x| x.into()).collect(),
        }
    }

    /// The slots of a register of `elem`.
    pub(crate) fn new(elem: Elem, values: &[V<'c>]) -> Done<Self> {
        let ints = || values.iter().map(|&value| crate::ir::int(value)).collect::<Done<Vec<_>>>();
        Ok(match elem {
            Elem::F32 => Slots::Floats(values.iter().map(|&v| crate::ir::float(v)).collect::<Done<_>>()?),
            Elem::I64 => Slots::Ints(ints()?),
            Elem::Bool => Slots::Truths(ints()?),
        })
    }
}

/// Slot `i` of an operand, of which a single slot serves all.
pub(crate) fn slot<T: Copy>(slots: &[T], i: usize) -> T {
    if slots.len() == 1 { slots[0] } else { slots[i] }
}

/// Numbers as memory has them.
pub(crate) struct Words<'c> {
    pub(crate) dtype: DType,
    /// How many numbers one access has.
    pub(crate) n: usize,
    /// The words of each access.
    pub(crate) accesses: Vec<Vec<I<'c>>>,
}

/// Writes a kernel's program.
pub(crate) struct Emitter<'k, 'c> {
    pub(crate) kernel: &'k Kernel,
    pub(crate) block: &'k Block,
    pub(crate) ir: Ir<'c>,
    pub(crate) entry: Entry<'c>,
    pub(crate) team: Team<'c>,
    /// What each register holds, while it can be named.
    values: Vec<Option<Slots<'c>>>,
    /// The words that registers were loaded as: a number that is stored where such are keeps its bits.
    pub(crate) loaded: HashMap<Reg, Words<'c>>,
    /// The registers that can be named, oldest first.
    scope: Vec<Reg>,
}

impl<'k, 'c> Emitter<'k, 'c> {
    pub(crate) fn new(
        kernel: &'k Kernel,
        block: &'k Block,
        ir: Ir<'c>,
        entry: Entry<'c>,
        team: Team<'c>,
    ) -> Self {
        let values = vec![None; kernel.regs.len()];
        Self { kernel, block, ir, entry, team, values, loaded: HashMap::new(), scope: Vec::new() }
    }

    /// The whole kernel.
    pub(crate) fn kernel_body(&mut self) -> Done {
        self.start_pipes()?;
        self.body(&self.kernel.body)?;
        self.ir.b.build_return(None)?;
        Ok(())
    }

    pub(crate) fn finish(self) -> Module<'c> {
        self.ir.module
    }

    /// Instructions whose registers cannot be named behind them.
    pub(crate) fn scoped(&mut self, body: &'k [Inst]) -> Done {
        let known = self.scope.len();
        self.body(body)?;
        self.leave(known);
        Ok(())
    }

    fn body(&mut self, body: &'k [Inst]) -> Done {
        body.iter().try_for_each(|inst| self.inst(inst))
    }

    /// Forgets the registers defined after the first `len`.
    fn leave(&mut self, len: usize) {
        for reg in self.scope.drain(len..) {
            self.values[reg.index()] = None;
            self.loaded.remove(&reg);
        }
    }

    fn inst(&mut self, inst: &'k Inst) -> Done {
        match inst {
            Inst::Extent { out, dim } => {
                let value = polynomial(&self.ir, dim, &self.entry.syms)?;
                self.set(*out, Slots::Ints(vec![value]))
            }
            Inst::Const { out, value } => {
                let n = self.reg(*out)?.cols;
                let slots = match *value {
                    Const::F(x) => Slots::Floats(vec![self.ir.f32(x as f32); n]),
                    Const::I(x) => Slots::Ints(vec![self.ir.i64(x); n]),
                    Const::B(x) => Slots::Truths(vec![self.ir.bool(x); n]),
                };
                self.set(*out, slots)
            }
            Inst::Map { out, f, x } => {
                let value = self.map(*f, self.get(*x)?)?;
                self.set(*out, value)
            }
            Inst::Zip { out, f, x, y } => {
                let value = self.zip(*f, self.get(*x)?, self.get(*y)?)?;
                self.set(*out, value)
            }
            Inst::Select { out, cond, x, y } => {
                let (cond, x, y) = (self.truths(*cond)?, self.get(*x)?, self.get(*y)?);
                let value = self.select(&cond, &x, &y)?;
                self.set(*out, value)
            }
            Inst::Cast { out, x } => {
                let value = self.cast(self.get(*x)?, self.reg(*out)?.elem)?;
                self.set(*out, value)
            }
            Inst::Round { out, x, to } => {
                let value = self.round(&self.floats(*x)?, *to)?;
                self.set(*out, Slots::Floats(value))
            }
            Inst::For { index, trips, carried, body } => self.repeat(*index, *trips, carried, body),
            Inst::If { cond, body } => {
                let cond = self.truth(*cond)?;
                self.branch(cond, |e| e.scoped(body))
            }
            Inst::Block(inst) => self.block_inst(inst),
            Inst::Program { .. }
            | Inst::Iota { .. }
            | Inst::Load { .. }
            | Inst::Gather { .. }
            | Inst::Store { .. }
            | Inst::Scatter { .. }
            | Inst::Reduce { .. }
            | Inst::Scan { .. }
            | Inst::Columns { .. }
            | Inst::Reshape { .. }
            | Inst::Dot { .. }
            | Inst::VLoad { .. }
            | Inst::VStore { .. }
            | Inst::Across { .. }
            | Inst::SwapPairs { .. }
            | Inst::Micro(_) => fail(format!("an instruction of another phase: {inst:?}")),
        }
    }

    fn block_inst(&mut self, inst: &'k BlockInst) -> Done {
        match inst {
            BlockInst::Thread { out } => self.set_index(*out, self.team.thread),
            BlockInst::Number { out } => self.set_index(*out, self.ir.special("ctaid.x")?),
            BlockInst::Launched { out } => self.set_index(*out, self.ir.special("nctaid.x")?),
            BlockInst::Slots { out, values } => {
                let values = values.iter().map(|&value| self.ir.i64(value)).collect();
                self.set(*out, Slots::Ints(values))
            }
            BlockInst::Pick { out, x, slots } => {
                let x = self.get(*x)?;
                let values = x.values();
                let picked = slots.iter().map(|&i| values.get(usize::from(i)).copied());
                match picked.collect::<Option<Vec<_>>>() {
                    Some(picked) => self.set(*out, Slots::new(x.elem(), &picked)?),
                    None => fail(format!("{inst:?} picks beyond the {} slots", values.len())),
                }
            }
            BlockInst::Join { out, parts } => {
                let mut values = Vec::new();
                for &part in parts {
                    values.extend(self.get(part)?.values());
                }
                self.set(*out, Slots::new(self.reg(*out)?.elem, &values)?)
            }
            BlockInst::Fma { out, x, y, acc } => {
                let value = self.fma(&self.floats(*x)?, &self.floats(*y)?, &self.floats(*acc)?)?;
                self.set(*out, Slots::Floats(value))
            }
            BlockInst::Load { out, from, mask } => {
                let (value, words) = self.load(self.reg(*out)?, *from, *mask)?;
                self.loaded.insert(*out, words);
                self.set(*out, value)
            }
            BlockInst::Store { to, value, mask } => self.store(*to, *value, *mask),
            BlockInst::Shuffle { out, x, xor } => {
                let value = self.shuffle(*x, *xor)?;
                self.set(*out, value)
            }
            BlockInst::Barrier { id, warps } => self.barrier(*id, *warps),
            BlockInst::Roles { roles } => self.roles(roles),
            BlockInst::Acquire { pipe, turn } => self.acquire(*pipe, *turn),
            BlockInst::Copy { pipe, turn, tile, map, at } => self.copy(*pipe, *turn, *tile, *map, at),
            BlockInst::Wait { pipe, turn } => self.wait(*pipe, *turn),
            BlockInst::Release { pipe, turn, when } => self.release(*pipe, *turn, *when),
            BlockInst::Mma { .. } => self.mma(inst),
            BlockInst::MmaWait { pending, values } => self.mma_wait(*pending, values),
            BlockInst::FenceAsync => self.fence_async(),
            BlockInst::CopyOut { map, tile, turn, at, when } => self.copy_out(*map, *tile, *turn, at, *when),
            BlockInst::CopyOutWait { pending } => self.copy_out_wait(*pending),
        }
    }

    /// The type of a register that this backend can hold.
    pub(crate) fn reg(&self, reg: Reg) -> Done<RegType> {
        match self.kernel.regs.get(reg) {
            None => fail(format!("{reg} is no register of it")),
            Some(&ty) if ty.rows == 1 && ty.cols >= 1 => Ok(ty),
            Some(ty) => fail(format!("{reg} is {} x {}, which no register holds", ty.rows, ty.cols)),
        }
    }

    /// What `reg` holds.
    pub(crate) fn get(&self, reg: Reg) -> Done<Slots<'c>> {
        match self.values.get(reg.index()) {
            Some(Some(slots)) => Ok(slots.clone()),
            _ => fail(format!("{reg} is used where it has no value")),
        }
    }

    pub(crate) fn floats(&self, reg: Reg) -> Done<Vec<F<'c>>> {
        match self.get(reg)? {
            Slots::Floats(slots) => Ok(slots),
            other => fail(format!("{reg} holds {:?} where floats are wanted", other.elem())),
        }
    }

    pub(crate) fn ints(&self, reg: Reg) -> Done<Vec<I<'c>>> {
        match self.get(reg)? {
            Slots::Ints(slots) => Ok(slots),
            other => fail(format!("{reg} holds {:?} where integers are wanted", other.elem())),
        }
    }

    pub(crate) fn truths(&self, reg: Reg) -> Done<Vec<I<'c>>> {
        match self.get(reg)? {
            Slots::Truths(slots) => Ok(slots),
            other => fail(format!("{reg} holds {:?} where truth values are wanted", other.elem())),
        }
    }

    /// An integer of one slot.
    pub(crate) fn int(&self, reg: Reg) -> Done<I<'c>> {
        match self.ints(reg)?[..] {
            [one] => Ok(one),
            ref many => fail(format!("{reg} has {} slots where one is wanted", many.len())),
        }
    }

    /// A truth value of one slot.
    pub(crate) fn truth(&self, reg: Reg) -> Done<I<'c>> {
        match self.truths(reg)?[..] {
            [one] => Ok(one),
            ref many => fail(format!("{reg} has {} slots where one is wanted", many.len())),
        }
    }

    /// Defines `reg`.
    pub(crate) fn set(&mut self, reg: Reg, slots: Slots<'c>) -> Done {
        let (ty, have) = (self.reg(reg)?, slots.values().len());
        if ty.elem != slots.elem() || ty.cols != have {
            let what = format!("{reg} has {} of {:?}", ty.cols, ty.elem);
            return fail(format!("{what}, but is given {have} of {:?}", slots.elem()));
        }
        self.values[reg.index()] = Some(slots);
        self.scope.push(reg);
        Ok(())
    }

    /// Defines `reg` as an integer that is not negative, of 32 bits.
    fn set_index(&mut self, reg: Reg, value: I<'c>) -> Done {
        let value = self.ir.b.build_int_z_extend(value, self.ir.ctx.i64_type(), "")?;
        self.set(reg, Slots::Ints(vec![value]))
    }

    fn repeat(&mut self, index: Reg, trips: Reg, carried: &'k [Carried], body: &'k [Inst]) -> Done {
        let mut trips = self.int(trips)?;
        let multiplies = body.iter().any(|inst| matches!(inst, Inst::Block(BlockInst::Mma { .. })));
        if multiplies && trips.get_zero_extended_constant() == Some(1) {
            // A loop of one trip stays one: without it, the loop over tiles is an innermost one, which `ptxas` takes so
            // much out of that registers do not suffice.
            let ty = self.ir.ctx.i64_type();
            let constraints = ["=l", "l"].map(String::from);
            let made =
                self.ir.asm(Effect::None, "mov.b64 $0, $1;", &constraints, &[ty.into()], &[trips.into()])?;
            trips = crate::ir::int(made[0])?;
        }
        let mut init = Vec::with_capacity(carried.len());
        for c in carried {
            let ty = self.reg(c.init)?;
            if let Some(reg) =
                [c.arg, c.next, c.out].into_iter().find(|&r| self.kernel.regs.get(r) != Some(&ty))
            {
                return fail(format!("{reg} is carried from trip to trip with another type than {}", c.init));
            }
            init.push(self.get(c.init)?);
        }
        let b = &self.ir.b;
        let [head, work, exit] = ["head", "body", "exit"].map(|name| self.ir.block(name));
        let before = self.ir.here()?;
        b.build_unconditional_branch(head)?;
        b.position_at_end(head);
        let phi = |value: V<'c>| b.build_phi(value.get_type(), "");
        let counter = phi(self.ir.i64(0).into())?;
        let mut phis = Vec::new();
        for slots in &init {
            phis.push(slots.values().into_iter().map(phi).collect::<Result<Vec<_>, _>>()?);
        }
        let count = crate::ir::int(counter.as_basic_value())?;
        let more = self.ir.compare(IntPredicate::SLT, count, trips)?;
        b.build_conditional_branch(more, work, exit)?;
        b.position_at_end(work);
        if multiplies {
            // Products under way from trip to trip: `ptxas` unrolls short loops, and then finds that it must wait for
            // each of them.
            self.ir.asm(Effect::Some, ".pragma \"nounroll\";", &[], &[], &[])?;
        }

        let mut args = Vec::with_capacity(carried.len());
        for (slots, phis) in init.iter().zip(&phis) {
            let values: Vec<V> = phis.iter().map(|phi| phi.as_basic_value()).collect();
            args.push(Slots::new(slots.elem(), &values)?);
        }
        let known = self.scope.len();
        self.set(index, Slots::Ints(vec![count]))?;
        for (c, arg) in carried.iter().zip(&args) {
            self.set(c.arg, arg.clone())?;
        }
        self.body(body)?;
        let next = carried.iter().map(|c| self.get(c.next)).collect::<Done<Vec<_>>>()?;
        self.leave(known);

        let b = &self.ir.b;
        let step = b.build_int_nsw_add(count, self.ir.i64(1), "")?;
        let back = self.ir.here()?;
        b.build_unconditional_branch(head)?;
        counter.add_incoming(&[(&self.ir.i64(0), before), (&step, back)]);
        for ((phis, init), next) in phis.iter().zip(&init).zip(&next) {
            for ((phi, init), next) in phis.iter().zip(init.values()).zip(next.values()) {
                phi.add_incoming(&[(&init, before), (&next, back)]);
            }
        }
        b.position_at_end(exit);
        // The head decides before a trip, so its values are those after the last one too.
        for (c, arg) in carried.iter().zip(args) {
            self.set(c.out, arg)?;
        }
        Ok(())
    }
}
