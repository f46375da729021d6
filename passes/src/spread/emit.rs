//! Writes instructions of the lane phase.
//!
//! Arithmetic goes into the outermost open block where its operands are known, and is written once
//! for all that ask for it there: loop-invariant parts leave the loops, and addresses are shared, by construction.

use eva_ir::dim::Dim;
use eva_ir::entity::{Arena, Entity};
use eva_ir::kernel::*;
use std::collections::HashMap;

/// The vector width of the target.
pub(super) const LANES: usize = 4;

/// A computation, to find it again.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Key {
    Program(usize),
    Extent(Dim),
    Const(Elem, usize, u64),
    Map(Fn1, Reg),
    Zip(Fn2, Reg, Reg),
    Select(Reg, Reg, Reg),
    Cast(Elem, Reg),
    Round(Reg, eva_ir::types::DType),
    SwapPairs(Reg),
    /// The number tells one use of a scratch memory from the next, which may find other values there.
    Load(Space, Reg, usize, usize),
}

/// The registers, the private memory and the program of a kernel.
pub(super) type Written = (Arena<Reg, RegType>, Arena<Scratch, ScratchData>, Vec<Inst>);

/// An open block.
#[derive(Default)]
struct Block {
    body: Vec<Inst>,
    known: HashMap<Key, Reg>,
}

/// A lane kernel being written.
pub(super) struct Emit {
    regs: Arena<Reg, RegType>,
    scratch: Arena<Scratch, ScratchData>,
    /// The depth of the block that each register is defined in.
    depth: Vec<usize>,
    ints: HashMap<Reg, i64>,
    floats: HashMap<Reg, f64>,
    blocks: Vec<Block>,
    /// The depth above which nothing is put.
    pub floor: usize,
}

impl Emit {
    pub fn new() -> Self {
        Self {
            regs: Arena::default(),
            scratch: Arena::default(),
            depth: Vec::new(),
            ints: HashMap::new(),
            floats: HashMap::new(),
            blocks: vec![Block::default()],
            floor: 0,
        }
    }

    /// The registers, the memory and the program.
    pub fn finish(mut self) -> Written {
        let body = self.blocks.pop().unwrap_or_default().body;
        (self.regs, self.scratch, body)
    }

    /// The depth of the innermost open block.
    pub fn here(&self) -> usize {
        self.blocks.len() - 1
    }

    /// The depth of the block that `reg` is defined in.
    pub fn depth(&self, reg: Reg) -> usize {
        self.depth[reg.index()]
    }

    pub fn ty(&self, reg: Reg) -> RegType {
        self.regs[reg]
    }

    pub fn is_vector(&self, reg: Reg) -> bool {
        self.regs[reg].cols > 1
    }

    /// The register's value, if it is an integer known now.
    pub fn known_int(&self, reg: Reg) -> Option<i64> {
        self.ints.get(&reg).copied()
    }

    /// The register's value, if it is a float known now.
    pub fn known_float(&self, reg: Reg) -> Option<f64> {
        self.floats.get(&reg).copied()
    }

    /// New private memory.
    pub fn scratch(&mut self, elem: Elem, len: usize) -> Scratch {
        self.scratch.push(ScratchData { elem, len })
    }

    /// A new register of the innermost block.
    pub fn reg(&mut self, elem: Elem, cols: usize) -> Reg {
        let depth = self.here();
        self.reg_at(elem, cols, depth)
    }

    fn reg_at(&mut self, elem: Elem, cols: usize, depth: usize) -> Reg {
        self.depth.push(depth);
        self.regs.push(RegType { elem, rows: 1, cols })
    }

    /// Adds an instruction to the innermost block.
    pub fn push(&mut self, inst: Inst) {
        self.blocks.last_mut().expect("the outermost block stays open").body.push(inst);
    }

    /// Adds an instruction to the outermost block.
    pub fn push_outermost(&mut self, inst: Inst) {
        self.blocks[0].body.push(inst);
    }

    pub fn open(&mut self) {
        self.blocks.push(Block::default());
    }

    /// Closes the innermost block.
    pub fn close(&mut self) -> Vec<Inst> {
        self.blocks.pop().map(|block| block.body).unwrap_or_default()
    }

    /// The result of a computation, which is written in the outermost block not above `floor` that knows `uses`.
    fn pure(
        &mut self,
        key: Key,
        ty: (Elem, usize),
        uses: &[Reg],
        floor: usize,
        inst: impl FnOnce(Reg) -> Inst,
    ) -> Reg {
        let depth = uses.iter().map(|reg| self.depth(*reg)).max().unwrap_or(0).max(floor).max(self.floor);
        let known = |block: &Block| block.known.get(&key).copied();
        if let Some(reg) = self.blocks.iter().find_map(known) {
            return reg;
        }
        let out = self.reg_at(ty.0, ty.1, depth);
        let block = &mut self.blocks[depth];
        block.body.push(inst(out));
        block.known.insert(key, out);
        out
    }

    pub fn program(&mut self, axis: usize) -> Reg {
        self.pure(Key::Program(axis), (Elem::I64, 1), &[], 0, |out| Inst::Program { out, axis })
    }

    pub fn extent(&mut self, dim: &Dim) -> Reg {
        match dim.as_const() {
            Some(n) => self.int(n),
            None => {
                let dim = dim.clone();
                self.pure(Key::Extent(dim.clone()), (Elem::I64, 1), &[], 0, |out| Inst::Extent { out, dim })
            }
        }
    }

    pub fn int(&mut self, value: i64) -> Reg {
        let out = self.constant(Const::I(value), 1);
        self.ints.insert(out, value);
        out
    }

    pub fn float(&mut self, value: f64) -> Reg {
        let out = self.constant(Const::F(value), 1);
        self.floats.insert(out, value);
        out
    }

    pub fn bool(&mut self, value: bool) -> Reg {
        self.constant(Const::B(value), 1)
    }

    /// `value` in each of `cols` lanes.
    pub fn constant(&mut self, value: Const, cols: usize) -> Reg {
        let (elem, bits) = match value {
            Const::F(x) => (Elem::F32, x.to_bits()),
            Const::I(n) => (Elem::I64, n as u64),
            Const::B(b) => (Elem::Bool, b as u64),
        };
        self.pure(Key::Const(elem, cols, bits), (elem, cols), &[], 0, |out| Inst::Const { out, value })
    }

    pub fn map(&mut self, f: Fn1, x: Reg) -> Reg {
        if let (Fn1::Neg, Some(x)) = (f, self.known_float(x)) {
            return self.float(-x);
        }
        let ty = self.ty(x);
        self.pure(Key::Map(f, x), (ty.elem, ty.cols), &[x], 0, |out| Inst::Map { out, f, x })
    }

    pub fn zip(&mut self, f: Fn2, x: Reg, y: Reg) -> Reg {
        if let Some(known) = self.fold(f, x, y) {
            return known;
        }
        let (a, b) = (self.ty(x), self.ty(y));
        let elem = if f.is_predicate() { Elem::Bool } else { a.elem };
        // A division must not run where the program would not have: it fails for a divisor of zero.
        let divides = a.elem == Elem::I64 && matches!(f, Fn2::Div | Fn2::Rem);
        let floor = if divides && self.known_int(y).is_none_or(|n| n <= 0) { self.here() } else { 0 };
        self.pure(Key::Zip(f, x, y), (elem, a.cols.max(b.cols)), &[x, y], floor, |out| Inst::Zip {
            out,
            f,
            x,
            y,
        })
    }

    fn fold(&mut self, f: Fn2, x: Reg, y: Reg) -> Option<Reg> {
        match (self.known_int(x), self.known_int(y)) {
            (Some(a), Some(b)) => {
                let value = match f {
                    Fn2::Add => a.checked_add(b),
                    Fn2::Sub => a.checked_sub(b),
                    Fn2::Mul => a.checked_mul(b),
                    Fn2::Div if b > 0 => Some(a.div_euclid(b)),
                    Fn2::Rem if b > 0 => Some(a.rem_euclid(b)),
                    Fn2::Max => Some(a.max(b)),
                    Fn2::Min => Some(a.min(b)),
                    Fn2::Lt => return Some(self.bool(a < b)),
                    Fn2::Le => return Some(self.bool(a <= b)),
                    Fn2::Eq => return Some(self.bool(a == b)),
                    _ => None,
                };
                return value.map(|n| self.int(n));
            }
            (Some(0), None) => match f {
                Fn2::Add => return Some(y),
                Fn2::Mul => return Some(x),
                _ => {}
            },
            (None, Some(0)) => match f {
                Fn2::Add | Fn2::Sub => return Some(x),
                Fn2::Mul => return Some(y),
                _ => {}
            },
            (Some(1), None) if f == Fn2::Mul => return Some(y),
            (None, Some(1)) if f == Fn2::Mul || f == Fn2::Div => return Some(x),
            _ => {}
        }
        if x == y && self.ty(x).elem == Elem::I64 && f == Fn2::Sub {
            return Some(self.int(0));
        }
        let (a, b) = (self.known_float(x)? as f32, self.known_float(y)? as f32);
        let value = match f {
            Fn2::Add => a + b,
            Fn2::Sub => a - b,
            Fn2::Mul => a * b,
            _ => return None,
        };
        (!value.is_nan()).then(|| self.float(value.into()))
    }

    pub fn add(&mut self, x: Reg, y: Reg) -> Reg {
        self.zip(Fn2::Add, x, y)
    }

    pub fn sub(&mut self, x: Reg, y: Reg) -> Reg {
        self.zip(Fn2::Sub, x, y)
    }

    pub fn mul(&mut self, x: Reg, y: Reg) -> Reg {
        self.zip(Fn2::Mul, x, y)
    }

    pub fn select(&mut self, cond: Reg, x: Reg, y: Reg) -> Reg {
        if x == y {
            return x;
        }
        let (c, a, b) = (self.ty(cond), self.ty(x), self.ty(y));
        let cols = c.cols.max(a.cols).max(b.cols);
        let uses = [cond, x, y];
        self.pure(Key::Select(cond, x, y), (a.elem, cols), &uses, 0, |out| Inst::Select { out, cond, x, y })
    }

    pub fn cast(&mut self, elem: Elem, x: Reg) -> Reg {
        let ty = self.ty(x);
        if ty.elem == elem {
            return x;
        }
        self.pure(Key::Cast(elem, x), (elem, ty.cols), &[x], 0, |out| Inst::Cast { out, x })
    }

    pub fn round(&mut self, x: Reg, to: eva_ir::types::DType) -> Reg {
        let ty = self.ty(x);
        self.pure(Key::Round(x, to), (ty.elem, ty.cols), &[x], 0, |out| Inst::Round { out, x, to })
    }

    pub fn swap_pairs(&mut self, x: Reg) -> Reg {
        if !self.is_vector(x) {
            return x;
        }
        let ty = self.ty(x);
        self.pure(Key::SwapPairs(x), (ty.elem, ty.cols), &[x], 0, |out| Inst::SwapPairs { out, x })
    }

    /// A vector of the scalar `x`; a vector is one already.
    pub fn splat(&mut self, x: Reg) -> Reg {
        if self.is_vector(x) {
            return x;
        }
        match self.known_float(x) {
            Some(value) => self.constant(Const::F(value), LANES),
            None => {
                let ones = self.constant(Const::F(1.0), LANES);
                self.mul(ones, x)
            }
        }
    }

    /// Reads memory that keeps its values while its block, which is not above `floor`, is open. `number` tells one
    /// such span of time from the next.
    pub fn load(&mut self, space: Space, index: Reg, ty: (Elem, usize), floor: usize, number: usize) -> Reg {
        let from = Mem { space, index };
        let key = Key::Load(space, index, ty.1, number);
        self.pure(key, ty, &[index], floor, |out| Inst::VLoad { out, from })
    }

    /// Reads memory now.
    pub fn load_now(&mut self, space: Space, index: Reg, elem: Elem, cols: usize) -> Reg {
        let out = self.reg(elem, cols);
        self.push(Inst::VLoad { out, from: Mem { space, index } });
        out
    }

    pub fn store(&mut self, space: Space, index: Reg, value: Reg) {
        self.push(Inst::VStore { to: Mem { space, index }, value });
    }

    /// `cond` holds for all; nothing if there are none.
    pub fn all(&mut self, conds: &[Reg]) -> Option<Reg> {
        conds.iter().copied().reduce(|a, b| self.zip(Fn2::And, a, b))
    }
}
