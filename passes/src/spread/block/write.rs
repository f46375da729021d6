//! Writes instructions of the block phase.

use eva_ir::dim::Dim;
use eva_ir::entity::Arena;
use eva_ir::kernel::block::{BlockInst, Shared, SharedData};
use eva_ir::kernel::*;
use eva_ir::types::DType;
use std::collections::HashMap;

/// A block kernel being written. What only computes is written once in a block and those inside it.
pub(super) struct Write {
    pub regs: Arena<Reg, RegType>,
    pub shared: Arena<Shared, SharedData>,
    blocks: Vec<(Vec<Inst>, HashMap<String, Reg>)>,
    ints: HashMap<Reg, i64>,
}

impl Write {
    pub fn new() -> Self {
        Self {
            regs: Arena::default(),
            shared: Arena::default(),
            blocks: vec![Default::default()],
            ints: HashMap::new(),
        }
    }

    /// The instructions of the outermost block.
    pub fn finish(&mut self) -> Vec<Inst> {
        std::mem::take(&mut self.blocks.last_mut().expect("the outermost block stays open").0)
    }

    pub fn open(&mut self) {
        self.blocks.push(Default::default());
    }

    pub fn close(&mut self) -> Vec<Inst> {
        self.blocks.pop().expect("a block was opened").0
    }

    pub fn reg(&mut self, elem: Elem, slots: usize) -> Reg {
        self.regs.push(RegType { elem, rows: 1, cols: slots })
    }

    pub fn slots(&self, reg: Reg) -> usize {
        self.regs[reg].cols
    }

    pub fn elem(&self, reg: Reg) -> Elem {
        self.regs[reg].elem
    }

    pub fn push(&mut self, inst: Inst) {
        self.blocks.last_mut().expect("the outermost block stays open").0.push(inst);
    }

    /// A tile in shared memory: the one like it, if there is one.
    pub fn tile(&mut self, data: SharedData) -> Shared {
        let found = self.shared.iter().find(|(_, have)| **have == data).map(|(shared, _)| shared);
        found.unwrap_or_else(|| self.shared.push(data))
    }

    /// An instruction with a result that may not be shared: it reads what others write.
    pub fn emit(&mut self, elem: Elem, slots: usize, inst: impl FnOnce(Reg) -> Inst) -> Reg {
        let out = self.reg(elem, slots);
        self.push(inst(out));
        out
    }

    /// An instruction that only computes: found again where it was written before.
    pub fn pure(&mut self, elem: Elem, slots: usize, inst: impl Fn(Reg) -> Inst) -> Reg {
        let key = format!("{elem:?} {slots} {:?}", inst(eva_ir::entity::Entity::new(0)));
        if let Some(&reg) = self.blocks.iter().rev().find_map(|(_, known)| known.get(&key)) {
            return reg;
        }
        let out = self.emit(elem, slots, inst);
        self.blocks.last_mut().expect("the outermost block stays open").1.insert(key, out);
        out
    }

    pub fn int(&mut self, n: i64) -> Reg {
        let reg = self.pure(Elem::I64, 1, |out| Inst::Const { out, value: Const::I(n) });
        self.ints.insert(reg, n);
        reg
    }

    /// The value of a register that [`Self::int`] or arithmetic on such gave.
    pub fn as_int(&self, reg: Reg) -> Option<i64> {
        self.ints.get(&reg).copied()
    }

    pub fn constant(&mut self, value: Const, slots: usize) -> Reg {
        let elem = match value {
            Const::F(_) => Elem::F32,
            Const::I(_) => Elem::I64,
            Const::B(_) => Elem::Bool,
        };
        self.pure(elem, slots, |out| Inst::Const { out, value })
    }

    pub fn extent(&mut self, dim: &Dim) -> Reg {
        match dim.as_const() {
            Some(n) => self.int(n),
            None => self.pure(Elem::I64, 1, |out| Inst::Extent { out, dim: dim.clone() }),
        }
    }

    pub fn thread(&mut self) -> Reg {
        self.pure(Elem::I64, 1, |out| Inst::Block(BlockInst::Thread { out }))
    }

    /// Integers, one for each slot.
    pub fn table(&mut self, values: Vec<i64>) -> Reg {
        if values.iter().all(|&value| value == values[0]) {
            return self.int(values[0]);
        }
        let slots = values.len();
        self.pure(Elem::I64, slots, |out| Inst::Block(BlockInst::Slots { out, values: values.clone() }))
    }

    pub fn map(&mut self, f: Fn1, x: Reg) -> Reg {
        let ty = self.regs[x];
        self.pure(ty.elem, ty.cols, |out| Inst::Map { out, f, x })
    }

    pub fn zip(&mut self, f: Fn2, x: Reg, y: Reg) -> Reg {
        if let (Some(a), Some(b)) = (self.as_int(x), self.as_int(y)) {
            let folded = match f {
                Fn2::Add => a.checked_add(b),
                Fn2::Sub => a.checked_sub(b),
                Fn2::Mul => a.checked_mul(b),
                Fn2::Div if b > 0 => Some(a.div_euclid(b)),
                Fn2::Rem if b > 0 => Some(a.rem_euclid(b)),
                _ => None,
            };
            if let Some(n) = folded {
                return self.int(n);
            }
        }
        match (f, self.as_int(x), self.as_int(y)) {
            (Fn2::Add, Some(0), _) | (Fn2::Mul, Some(1), _) => return y,
            (Fn2::Add | Fn2::Sub, _, Some(0)) | (Fn2::Mul | Fn2::Div, _, Some(1)) => return x,
            (Fn2::Mul, Some(0), _) | (Fn2::Mul, _, Some(0)) | (Fn2::Rem, _, Some(1)) => return self.int(0),
            _ => {}
        }
        let elem = if f.is_predicate() { Elem::Bool } else { self.elem(x) };
        let slots = self.slots(x).max(self.slots(y));
        self.pure(elem, slots, |out| Inst::Zip { out, f, x, y })
    }

    pub fn add(&mut self, x: Reg, y: Reg) -> Reg {
        self.zip(Fn2::Add, x, y)
    }

    pub fn mul(&mut self, x: Reg, y: Reg) -> Reg {
        self.zip(Fn2::Mul, x, y)
    }

    /// `x · n`
    pub fn times(&mut self, x: Reg, n: i64) -> Reg {
        let n = self.int(n);
        self.zip(Fn2::Mul, x, n)
    }

    /// `f(x, n)` with an integer constant.
    pub fn zip_int(&mut self, f: Fn2, x: Reg, n: i64) -> Reg {
        let n = self.int(n);
        self.zip(f, x, n)
    }

    /// Both, where there are two.
    pub fn both(&mut self, x: Option<Reg>, y: Option<Reg>) -> Option<Reg> {
        match (x, y) {
            (Some(x), Some(y)) => Some(self.zip(Fn2::And, x, y)),
            (x, y) => x.or(y),
        }
    }

    pub fn select(&mut self, cond: Reg, x: Reg, y: Reg) -> Reg {
        let slots = [cond, x, y].map(|reg| self.slots(reg)).into_iter().max().unwrap_or(1);
        self.pure(self.elem(x), slots, |out| Inst::Select { out, cond, x, y })
    }

    pub fn cast(&mut self, elem: Elem, x: Reg) -> Reg {
        if self.elem(x) == elem {
            return x;
        }
        self.pure(elem, self.slots(x), |out| Inst::Cast { out, x })
    }

    pub fn round(&mut self, x: Reg, to: DType) -> Reg {
        self.pure(Elem::F32, self.slots(x), |out| Inst::Round { out, x, to })
    }

    /// Some slots of `x`. A register of one slot has the same value in all it might have.
    pub fn pick(&mut self, x: Reg, slots: Vec<usize>) -> Reg {
        let n = self.slots(x);
        let all = slots.len() == n && slots.iter().enumerate().all(|(i, &slot)| i == slot);
        if all || n == 1 {
            return x;
        }
        let slots: Vec<u16> = slots.into_iter().map(|slot| slot as u16).collect();
        let len = slots.len();
        self.pure(self.elem(x), len, |out| Inst::Block(BlockInst::Pick { out, x, slots: slots.clone() }))
    }

    /// `x` in as many slots.
    pub fn stretch(&mut self, x: Reg, slots: usize) -> Reg {
        if self.slots(x) == slots {
            return x;
        }
        let elem = self.elem(x);
        self.pure(elem, slots, |out| Inst::Block(BlockInst::Pick { out, x, slots: vec![0; slots] }))
    }

    pub fn shuffle(&mut self, x: Reg, xor: usize) -> Reg {
        let ty = self.regs[x];
        self.pure(ty.elem, ty.cols, |out| Inst::Block(BlockInst::Shuffle { out, x, xor }))
    }

    pub fn load(&mut self, elem: Elem, slots: usize, space: Space, index: Reg, mask: Option<Reg>) -> Reg {
        let from = Mem { space, index };
        self.emit(elem, slots, |out| Inst::Block(BlockInst::Load { out, from, mask }))
    }

    pub fn store(&mut self, space: Space, index: Reg, value: Reg, mask: Option<Reg>) {
        self.push(Inst::Block(BlockInst::Store { to: Mem { space, index }, value, mask }));
    }
}
