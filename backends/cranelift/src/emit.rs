//! One program: an arm for every instruction.

use crate::Error;
use crate::abi::{Entry, Extern};
use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift_codegen::ir::{BlockArg, FuncRef, InstBuilder, StackSlot, Type, Value, types};
use cranelift_frontend::FunctionBuilder;
use eva_ir::entity::Entity;
use eva_ir::kernel::{Carried, Const, Elem, Fn1, Fn2, Inst, Kernel, Phase, Reg, RegType};
use eva_ir::types::DType;
use std::collections::HashMap;

/// The number of lanes of a vector.
pub(crate) const LANES: usize = 4;

/// Writes a kernel's program into the function that `b` builds.
pub(crate) struct Emitter<'k, 'b> {
    pub(crate) kernel: &'k Kernel,
    pub(crate) b: FunctionBuilder<'b>,
    pub(crate) entry: Entry,
    /// What each register holds, while it can be named.
    values: Vec<Option<Value>>,
    /// The codes of 8 bits that numbers were loaded as: one that is stored where such are is not rounded again.
    pub(crate) codes: HashMap<Value, (DType, Value)>,
    /// The registers that can be named, oldest first.
    scope: Vec<Reg>,
    pub(crate) externs: HashMap<Extern, FuncRef>,
    /// Where microkernels find their arguments.
    pub(crate) dot_args: Option<StackSlot>,
}

type Done<T = ()> = Result<T, Error>;

impl<'k, 'b> Emitter<'k, 'b> {
    pub(crate) fn new(kernel: &'k Kernel, b: FunctionBuilder<'b>, entry: Entry) -> Self {
        let values = vec![None; kernel.regs.len()];
        let (codes, scope, externs) = Default::default();
        Self { kernel, b, entry, values, codes, scope, externs, dot_args: None }
    }

    pub(crate) fn into_builder(self) -> FunctionBuilder<'b> {
        self.b
    }

    pub(crate) fn fail<T>(&self, what: impl Into<String>) -> Done<T> {
        Err(Error::Kernel { kernel: self.kernel.name.clone(), what: what.into() })
    }

    /// One program, given its index along each axis of the grid.
    pub(crate) fn program(&mut self, programs: &[Value]) -> Done {
        match self.kernel.phase {
            Phase::Lane => self.block(&self.kernel.body, programs),
            Phase::Tile | Phase::Block => self.fail("it is still in the tile phase"),
        }
    }

    fn block(&mut self, body: &'k [Inst], programs: &[Value]) -> Done {
        body.iter().try_for_each(|inst| self.inst(inst, programs))
    }

    /// Forgets the registers defined after the first `len`.
    fn leave(&mut self, len: usize) {
        for reg in self.scope.drain(len..) {
            self.values[reg.index()] = None;
        }
    }

    fn inst(&mut self, inst: &'k Inst, programs: &[Value]) -> Done {
        match inst {
            Inst::Program { out, axis } => match programs.get(*axis) {
                Some(&index) => self.set(*out, index),
                None => self.fail(format!("the grid has no axis {axis}")),
            },
            Inst::Extent { out, dim } => {
                let value = self.entry.dims[dim];
                self.set(*out, value)
            }
            Inst::Const { out, value } => self.constant(*out, *value),
            Inst::Map { out, f, x } => self.map(*out, *f, *x),
            Inst::Zip { out, f, x, y } => self.zip(*out, *f, *x, *y),
            Inst::Select { out, cond, x, y } => {
                let [c, a, b] = [self.reg(*cond)?, self.reg(*x)?, self.reg(*y)?];
                let lanes = c.cols.max(a.cols).max(b.cols);
                // A scalar condition chooses between whole vectors.
                let cond = self.get(*cond, Elem::Bool, c.cols)?;
                let (x, y) = (self.get(*x, a.elem, lanes)?, self.get(*y, a.elem, lanes)?);
                let value = self.pick(cond, x, y);
                self.set(*out, value)
            }
            Inst::Cast { out, x } => {
                let (from, to) = (self.reg(*x)?, self.reg(*out)?.elem);
                let x = self.get(*x, from.elem, from.cols)?;
                let value = self.cast(x, from, to)?;
                self.set(*out, value)
            }
            Inst::Round { out, x, to } => {
                let ty = self.reg(*x)?;
                let x = self.get(*x, Elem::F32, ty.cols)?;
                let value = self.round(x, *to)?;
                self.set(*out, value)
            }
            Inst::For { index, trips, carried, body } => self.repeat(*index, *trips, carried, body, programs),
            Inst::VLoad { out, from } => {
                let ty = self.reg(*out)?;
                let (address, memory) = self.address(*from)?;
                let value = self.load(address, memory, ty)?;
                self.set(*out, value)
            }
            Inst::VStore { to, value } => {
                let ty = self.reg(*value)?;
                let value = self.get(*value, ty.elem, ty.cols)?;
                let (address, memory) = self.address(*to)?;
                self.store(address, memory, value, ty)
            }
            Inst::If { cond, body } => {
                let cond = self.get(*cond, Elem::Bool, 1)?;
                let (then, after) = (self.b.create_block(), self.b.create_block());
                self.b.ins().brif(cond, then, &[], after, &[]);
                self.b.switch_to_block(then);
                let known = self.scope.len();
                self.block(body, programs)?;
                self.leave(known);
                self.b.ins().jump(after, &[]);
                self.b.switch_to_block(after);
                Ok(())
            }
            Inst::Across { out, f, x } => {
                let mut value = self.get(*x, Elem::F32, LANES)?;
                for order in [[2, 3, 0, 1], [1, 0, 3, 2]] {
                    let other = self.shuffle(value, order);
                    value = self.apply(*f, Elem::F32, value, other)?;
                }
                let first = self.b.ins().extractlane(value, 0);
                self.set(*out, first)
            }
            Inst::SwapPairs { out, x } => {
                let x = self.get(*x, Elem::F32, LANES)?;
                let value = self.shuffle(x, [1, 0, 3, 2]);
                self.set(*out, value)
            }
            Inst::Micro(micro) => self.micro(micro),
            Inst::Block(_) => self.fail("an instruction is not of the lane phase"),
            Inst::Iota { .. }
            | Inst::Load { .. }
            | Inst::Gather { .. }
            | Inst::Store { .. }
            | Inst::Scatter { .. }
            | Inst::Reduce { .. }
            | Inst::Scan { .. }
            | Inst::Columns { .. }
            | Inst::Reshape { .. }
            | Inst::Dot { .. } => self.fail(format!("an instruction of the tile phase: {inst:?}")),
        }
    }

    /// The type of a register that this backend can hold.
    pub(crate) fn reg(&self, reg: Reg) -> Done<RegType> {
        match self.kernel.regs.get(reg) {
            None => self.fail(format!("{reg} is no register of it")),
            Some(&ty) if ty.rows == 1 && (ty.cols == 1 || ty.cols == LANES && ty.elem != Elem::I64) => Ok(ty),
            Some(ty) => self.fail(format!(
                "{reg} is {} x {} of {:?}, which no register holds",
                ty.rows, ty.cols, ty.elem
            )),
        }
    }

    fn type_of(&self, reg: Reg) -> Done<Type> {
        let ty = self.reg(reg)?;
        Ok(match (ty.elem, ty.cols) {
            (Elem::F32, 1) => types::F32,
            (Elem::F32, _) => types::F32X4,
            (Elem::Bool, 1) => types::I8,
            (Elem::Bool, _) => types::I32X4,
            (Elem::I64, _) => types::I64,
        })
    }

    /// What `reg` holds, stretched to `lanes` lanes.
    pub(crate) fn get(&mut self, reg: Reg, elem: Elem, lanes: usize) -> Done<Value> {
        let ty = self.reg(reg)?;
        if ty.elem != elem {
            return self.fail(format!("{reg} holds {:?} where {elem:?} is wanted", ty.elem));
        }
        let Some(value) = self.values[reg.index()] else {
            return self.fail(format!("{reg} is used where it has no value"));
        };
        match (ty.cols, lanes) {
            (have, want) if have == want => Ok(value),
            (1, LANES) if elem != Elem::I64 => Ok(self.stretch(value, elem)),
            (have, want) => self.fail(format!("{reg} has {have} lanes where {want} are wanted")),
        }
    }

    /// Defines `reg`.
    fn set(&mut self, reg: Reg, value: Value) -> Done {
        let (want, have) = (self.type_of(reg)?, self.b.func.dfg.value_type(value));
        if have != want {
            return self.fail(format!("{reg} holds {want}, but is given {have}"));
        }
        self.define(reg, value);
        Ok(())
    }

    fn define(&mut self, reg: Reg, value: Value) {
        self.values[reg.index()] = Some(value);
        self.scope.push(reg);
    }

    fn stretch(&mut self, value: Value, elem: Elem) -> Value {
        if elem == Elem::Bool {
            let mask = self.b.ins().uextend(types::I32, value);
            let mask = self.b.ins().ineg(mask);
            return self.b.ins().splat(types::I32X4, mask);
        }
        self.b.ins().splat(types::F32X4, value)
    }

    fn constant(&mut self, out: Reg, value: Const) -> Done {
        let lanes = self.reg(out)?.cols;
        match value {
            Const::F(x) => {
                let value = self.float(x as f32, lanes);
                self.set(out, value)
            }
            Const::I(x) => {
                let value = self.b.ins().iconst(types::I64, x);
                self.set(out, value)
            }
            Const::B(x) => {
                let value = match lanes {
                    1 => self.b.ins().iconst(types::I8, i64::from(x)),
                    _ => self.bits(if x { u32::MAX } else { 0 }, lanes),
                };
                self.set(out, value)
            }
        }
    }

    fn map(&mut self, out: Reg, f: Fn1, x: Reg) -> Done {
        let ty = self.reg(x)?;
        let x = self.get(x, ty.elem, ty.cols)?;
        let value = match (f, ty.elem) {
            (Fn1::Neg, Elem::F32) => self.b.ins().fneg(x),
            (Fn1::Neg, Elem::I64) => self.b.ins().ineg(x),
            (Fn1::Exp, Elem::F32) => self.exp(x),
            (Fn1::Exp2, Elem::F32) => {
                let ln_2 = self.float(std::f32::consts::LN_2, ty.cols);
                let x = self.b.ins().fmul(x, ln_2);
                self.exp(x)
            }
            (Fn1::Log, Elem::F32) => self.call(Extern::LOG, x),
            (Fn1::Sin, Elem::F32) => self.call(Extern::SIN, x),
            (Fn1::Cos, Elem::F32) => self.call(Extern::COS, x),
            (Fn1::Sqrt, Elem::F32) => self.b.ins().sqrt(x),
            (Fn1::Rsqrt, Elem::F32) => {
                let root = self.b.ins().sqrt(x);
                let one = self.float(1.0, ty.cols);
                self.b.ins().fdiv(one, root)
            }
            (Fn1::Recip, Elem::F32) => {
                let one = self.float(1.0, ty.cols);
                self.b.ins().fdiv(one, x)
            }
            (Fn1::Not, Elem::Bool) if ty.cols == 1 => self.b.ins().bxor_imm_s(x, 1),
            (Fn1::Not, Elem::Bool) => self.b.ins().bnot(x),
            (f, elem) => return self.fail(format!("{f:?} of {elem:?}")),
        };
        self.set(out, value)
    }

    fn zip(&mut self, out: Reg, f: Fn2, x: Reg, y: Reg) -> Done {
        let (a, b) = (self.reg(x)?, self.reg(y)?);
        let lanes = a.cols.max(b.cols);
        let (x, y) = (self.get(x, a.elem, lanes)?, self.get(y, a.elem, lanes)?);
        let value = self.apply(f, a.elem, x, y)?;
        self.set(out, value)
    }

    /// `f` of two values of one type, with elements `elem`.
    fn apply(&mut self, f: Fn2, elem: Elem, x: Value, y: Value) -> Done<Value> {
        Ok(match (f, elem) {
            (Fn2::Add, Elem::F32) => self.b.ins().fadd(x, y),
            (Fn2::Sub, Elem::F32) => self.b.ins().fsub(x, y),
            (Fn2::Mul, Elem::F32) => self.b.ins().fmul(x, y),
            (Fn2::Div | Fn2::Quotient, Elem::F32) => self.b.ins().fdiv(x, y),
            (Fn2::Max, Elem::F32) => self.extreme(x, y, FloatCC::GreaterThan),
            (Fn2::Min, Elem::F32) => self.extreme(x, y, FloatCC::LessThan),
            (Fn2::Lt, Elem::F32) => self.b.ins().fcmp(FloatCC::LessThan, x, y),
            (Fn2::Le, Elem::F32) => self.b.ins().fcmp(FloatCC::LessThanOrEqual, x, y),
            (Fn2::Eq, Elem::F32) => self.b.ins().fcmp(FloatCC::Equal, x, y),
            (Fn2::Add, Elem::I64) => self.b.ins().iadd(x, y),
            (Fn2::Sub, Elem::I64) => self.b.ins().isub(x, y),
            (Fn2::Mul, Elem::I64) => self.product(x, y),
            (Fn2::Div, Elem::I64) => self.floor_div(x, y).0,
            (Fn2::Rem, Elem::I64) => self.floor_div(x, y).1,
            (Fn2::Max, Elem::I64) => self.b.ins().smax(x, y),
            (Fn2::Min, Elem::I64) => self.b.ins().smin(x, y),
            (Fn2::Lt, Elem::I64) => self.b.ins().icmp(IntCC::SignedLessThan, x, y),
            (Fn2::Le, Elem::I64) => self.b.ins().icmp(IntCC::SignedLessThanOrEqual, x, y),
            (Fn2::Eq, Elem::I64) => self.b.ins().icmp(IntCC::Equal, x, y),
            (Fn2::And, Elem::Bool) => self.b.ins().band(x, y),
            (Fn2::Or, Elem::Bool) => self.b.ins().bor(x, y),
            (f, elem) => return self.fail(format!("{f:?} of {elem:?}")),
        })
    }

    fn cast(&mut self, x: Value, from: RegType, to: Elem) -> Done<Value> {
        Ok(match (from.elem, to) {
            (a, b) if a == b => x,
            (Elem::F32, Elem::I64) if from.cols == 1 => self.b.ins().fcvt_to_sint_sat(types::I64, x),
            (Elem::I64, Elem::F32) => self.b.ins().fcvt_from_sint(types::F32, x),
            (Elem::Bool, Elem::I64) if from.cols == 1 => self.b.ins().uextend(types::I64, x),
            (Elem::Bool, Elem::F32) => {
                let (one, zero) = (self.float(1.0, from.cols), self.float(0.0, from.cols));
                self.pick(x, one, zero)
            }
            (a, b) => return self.fail(format!("a cast from {a:?} to {b:?}")),
        })
    }

    /// A loop with its test at the end, so that a trip has one branch.
    fn repeat(
        &mut self,
        index: Reg,
        trips: Reg,
        carried: &'k [Carried],
        body: &'k [Inst],
        programs: &[Value],
    ) -> Done {
        let trips = self.get(trips, Elem::I64, 1)?;
        let mut init = Vec::with_capacity(carried.len());
        for c in carried {
            let (ty, other) = (self.reg(c.init)?, [c.arg, c.next, c.out]);
            if let Some(reg) = other.into_iter().find(|&reg| self.kernel.regs.get(reg) != Some(&ty)) {
                return self
                    .fail(format!("{reg} is carried from trip to trip with another type than {}", c.init));
            }
            init.push(self.get(c.init, ty.elem, ty.cols)?);
        }
        let (trip, after) = (self.b.create_block(), self.b.create_block());
        let zero = self.b.ins().iconst(types::I64, 0);
        let outside: Vec<BlockArg> = init.iter().map(|&v| v.into()).collect();
        let inside: Vec<BlockArg> = [zero.into()].into_iter().chain(outside.iter().copied()).collect();
        if self.known_int(trips).is_some_and(|n| n > 0) {
            self.b.ins().jump(trip, &inside);
        } else {
            let any = self.b.ins().icmp_imm_s(IntCC::SignedGreaterThan, trips, 0);
            self.b.ins().brif(any, trip, &inside, after, &outside);
        }

        self.b.switch_to_block(trip);
        let known = self.scope.len();
        let i = self.b.append_block_param(trip, types::I64);
        self.set(index, i)?;
        for c in carried {
            let ty = self.type_of(c.arg)?;
            let arg = self.b.append_block_param(trip, ty);
            self.define(c.arg, arg);
        }
        self.block(body, programs)?;
        let mut outside = Vec::with_capacity(carried.len());
        for c in carried {
            let ty = self.reg(c.next)?;
            outside.push(BlockArg::from(self.get(c.next, ty.elem, ty.cols)?));
        }
        self.leave(known);
        let next = self.b.ins().iadd_imm_s(i, 1);
        let more = self.b.ins().icmp(IntCC::SignedLessThan, next, trips);
        let inside: Vec<BlockArg> = [next.into()].into_iter().chain(outside.iter().copied()).collect();
        self.b.ins().brif(more, trip, &inside, after, &outside);

        self.b.switch_to_block(after);
        for c in carried {
            let ty = self.type_of(c.out)?;
            let out = self.b.append_block_param(after, ty);
            self.define(c.out, out);
        }
        Ok(())
    }

    /// `f` of every lane, by a call outside.
    fn call(&mut self, f: Extern, x: Value) -> Value {
        let f = f.import(self.b.func, &mut self.externs);
        self.each_lane(x, |e, x| {
            let call = e.b.ins().call(f, &[x]);
            e.b.inst_results(call)[0]
        })
    }
}
