//! Writes kernels of the block phase, one call an instruction.

use eva_ir::dim::Dim;
use eva_ir::entity::Arena;
use eva_ir::kernel::block::{
    Block, BlockInst, Keep, Launch, Map, MapData, MmaLeft, MmaTile, Pipe, PipeData, Role, Shared, SharedData,
};
use eva_ir::kernel::{
    Access, Buf, BufData, Carried, Const, Elem, Fn1, Fn2, GridAxis, Inst, Kernel, Mem, Phase, Reg, RegType,
    Space,
};
use eva_ir::types::DType;

/// A kernel that is being written.
pub struct Build {
    pub kernel: Kernel,
    bodies: Vec<Vec<Inst>>,
}

impl Build {
    /// A kernel of `warps` warps and one program.
    pub fn new(name: &str, warps: usize) -> Self {
        let block = Block {
            warps,
            launch: Launch::Each { per_block: 1 },
            shared: Arena::default(),
            pipes: Arena::default(),
            maps: Arena::default(),
        };
        let kernel = Kernel {
            name: name.into(),
            phase: Phase::Block,
            bufs: Arena::default(),
            scratch: Arena::default(),
            block: Some(block),
            grid: vec![GridAxis { extent: Dim::from(1), tile: 1 }],
            regs: Arena::default(),
            body: Vec::new(),
        };
        Self { kernel, bodies: vec![Vec::new()] }
    }

    pub fn finish(mut self) -> Kernel {
        self.kernel.body = self.bodies.pop().expect("a body was begun");
        assert!(self.bodies.is_empty(), "every body was ended");
        self.kernel
    }

    pub fn block(&mut self) -> &mut Block {
        self.kernel.block.as_mut().expect("the kernel is of the block phase")
    }

    /// A buffer whose elements lie row by row.
    pub fn buf(&mut self, name: &str, dtype: DType, access: Access, shape: &[Dim]) -> Buf {
        let strides = eva_ir::lower::row_major_strides(shape);
        let (name, shape, offset) = (name.into(), shape.to_vec(), Dim::from(0));
        self.kernel.bufs.push(BufData { name, dtype, access, shape, strides, offset, scaled: None })
    }

    pub fn shared(&mut self, dtype: DType, [stages, rows, cols]: [usize; 3], swizzle: bool) -> Shared {
        let name = format!("s{}", self.block().shared.len());
        self.block().shared.push(SharedData { name, dtype, rows, cols, stages, swizzle })
    }

    /// A pipe of tiles that have `stages` stages.
    pub fn pipe(&mut self, tiles: &[Shared], stages: usize, consumers: usize) -> Pipe {
        let name = format!("p{}", self.block().pipes.len());
        self.block().pipes.push(PipeData { name, tiles: tiles.to_vec(), stages, consumers })
    }

    /// Boxes of a buffer of two axes, as large as a tile.
    pub fn tiling(&mut self, buf: Buf, tile: Shared) -> Map {
        let SharedData { rows, cols, swizzle, .. } = self.block().shared[tile];
        self.block().maps.push(MapData { buf, axes: [0, 1], rows, cols, swizzle })
    }

    pub fn reg(&mut self, elem: Elem, cols: usize) -> Reg {
        self.kernel.regs.push(RegType { elem, rows: 1, cols })
    }

    pub fn ty(&self, reg: Reg) -> RegType {
        self.kernel.regs[reg]
    }

    pub fn push(&mut self, inst: Inst) {
        self.bodies.last_mut().expect("a body was begun").push(inst);
    }

    pub fn inst(&mut self, inst: BlockInst) {
        self.push(Inst::Block(inst));
    }

    /// What `write` writes, as a body of its own.
    pub fn nested(&mut self, write: impl FnOnce(&mut Self)) -> Vec<Inst> {
        self.bodies.push(Vec::new());
        write(self);
        self.bodies.pop().expect("it was begun here")
    }

    pub fn thread(&mut self) -> Reg {
        let out = self.reg(Elem::I64, 1);
        self.inst(BlockInst::Thread { out });
        out
    }

    pub fn number(&mut self) -> Reg {
        let out = self.reg(Elem::I64, 1);
        self.inst(BlockInst::Number { out });
        out
    }

    pub fn extent(&mut self, dim: &Dim) -> Reg {
        let out = self.reg(Elem::I64, 1);
        self.push(Inst::Extent { out, dim: dim.clone() });
        out
    }

    pub fn int(&mut self, value: i64) -> Reg {
        let out = self.reg(Elem::I64, 1);
        self.push(Inst::Const { out, value: Const::I(value) });
        out
    }

    /// A float in `cols` slots.
    pub fn float(&mut self, value: f64, cols: usize) -> Reg {
        let out = self.reg(Elem::F32, cols);
        self.push(Inst::Const { out, value: Const::F(value) });
        out
    }

    pub fn slots(&mut self, values: &[i64]) -> Reg {
        let out = self.reg(Elem::I64, values.len());
        self.inst(BlockInst::Slots { out, values: values.to_vec() });
        out
    }

    pub fn map(&mut self, f: Fn1, x: Reg) -> Reg {
        let RegType { elem, cols, .. } = self.ty(x);
        let out = self.reg(elem, cols);
        self.push(Inst::Map { out, f, x });
        out
    }

    pub fn zip(&mut self, f: Fn2, x: Reg, y: Reg) -> Reg {
        let (a, b) = (self.ty(x), self.ty(y));
        let elem = if f.is_predicate() { Elem::Bool } else { a.elem };
        let out = self.reg(elem, a.cols.max(b.cols));
        self.push(Inst::Zip { out, f, x, y });
        out
    }

    /// `f` of an integer and a number.
    pub fn by(&mut self, f: Fn2, x: Reg, n: i64) -> Reg {
        let n = self.int(n);
        self.zip(f, x, n)
    }

    pub fn select(&mut self, cond: Reg, x: Reg, y: Reg) -> Reg {
        let cols = [cond, x, y].map(|reg| self.ty(reg).cols).into_iter().max().expect("there are three");
        let out = self.reg(self.ty(x).elem, cols);
        self.push(Inst::Select { out, cond, x, y });
        out
    }

    pub fn cast(&mut self, x: Reg, to: Elem) -> Reg {
        let out = self.reg(to, self.ty(x).cols);
        self.push(Inst::Cast { out, x });
        out
    }

    pub fn round(&mut self, x: Reg, to: DType) -> Reg {
        let out = self.reg(Elem::F32, self.ty(x).cols);
        self.push(Inst::Round { out, x, to });
        out
    }

    pub fn pick(&mut self, x: Reg, slots: &[u16]) -> Reg {
        let out = self.reg(self.ty(x).elem, slots.len());
        self.inst(BlockInst::Pick { out, x, slots: slots.to_vec() });
        out
    }

    pub fn join(&mut self, parts: &[Reg]) -> Reg {
        let cols = parts.iter().map(|&part| self.ty(part).cols).sum();
        let out = self.reg(self.ty(parts[0]).elem, cols);
        self.inst(BlockInst::Join { out, parts: parts.to_vec() });
        out
    }

    pub fn fma(&mut self, x: Reg, y: Reg, acc: Reg) -> Reg {
        let cols = [x, y, acc].map(|reg| self.ty(reg).cols).into_iter().max().expect("there are three");
        let out = self.reg(Elem::F32, cols);
        self.inst(BlockInst::Fma { out, x, y, acc });
        out
    }

    /// `v` elements at each index.
    pub fn load(&mut self, space: Space, index: Reg, v: usize, mask: Option<Reg>) -> Reg {
        let dtype = match space {
            Space::Buf(buf) => self.kernel.bufs[buf].dtype,
            Space::Shared(shared) => self.block().shared[shared].dtype,
            Space::Scratch(_) => panic!("not memory of this phase"),
        };
        let elem = if dtype.is_int() { Elem::I64 } else { Elem::F32 };
        let out = self.reg(elem, self.ty(index).cols * v);
        self.inst(BlockInst::Load { out, from: Mem { space, index }, mask });
        out
    }

    pub fn store(&mut self, space: Space, index: Reg, value: Reg, mask: Option<Reg>) {
        self.inst(BlockInst::Store { to: Mem { space, index }, value, mask });
    }

    pub fn shuffle(&mut self, x: Reg, xor: usize) -> Reg {
        let RegType { elem, cols, .. } = self.ty(x);
        let out = self.reg(elem, cols);
        self.inst(BlockInst::Shuffle { out, x, xor });
        out
    }

    pub fn barrier(&mut self, id: usize, warps: usize) {
        self.inst(BlockInst::Barrier { id, warps });
    }

    /// A product of `n` columns and `k` terms.
    pub fn mma(&mut self, acc: Reg, keep: Keep, a: MmaLeft, (b, b_row): (MmaTile, Reg), k: usize) -> Reg {
        let cols = self.ty(acc).cols;
        let out = self.reg(Elem::F32, cols);
        self.inst(BlockInst::Mma { out, acc, keep, a, b, b_row, n: 2 * cols, k });
        out
    }

    /// Waits until at most `pending` products are unfinished, of which `values` are not.
    pub fn mma_wait(&mut self, pending: usize, values: &[Reg]) -> Vec<Reg> {
        let outs: Vec<Reg> = values
            .iter()
            .map(|&x| {
                let cols = self.ty(x).cols;
                self.reg(Elem::F32, cols)
            })
            .collect();
        let values = outs.iter().copied().zip(values.iter().copied()).collect();
        self.inst(BlockInst::MmaWait { pending, values });
        outs
    }

    /// A role, which [`Build::inst`] takes with others.
    pub fn role(
        &mut self,
        name: &str,
        (warps, registers, solo): (usize, usize, bool),
        write: impl FnOnce(&mut Self),
    ) -> Role {
        let body = self.nested(write);
        Role { name: name.into(), warps, registers, solo, body }
    }

    /// A loop that carries `init`; `write` gives what is next.
    pub fn repeat(
        &mut self,
        trips: Reg,
        init: &[Reg],
        write: impl FnOnce(&mut Self, Reg, &[Reg]) -> Vec<Reg>,
    ) -> Vec<Reg> {
        let index = self.reg(Elem::I64, 1);
        let twin = |b: &mut Self, reg: Reg| {
            let RegType { elem, cols, .. } = b.ty(reg);
            b.reg(elem, cols)
        };
        let args: Vec<Reg> = init.iter().map(|&reg| twin(self, reg)).collect();
        let outs: Vec<Reg> = init.iter().map(|&reg| twin(self, reg)).collect();
        let mut next = Vec::new();
        let body = self.nested(|b| next = write(b, index, &args));
        assert_eq!(next.len(), init.len(), "every register goes on");
        let carried = (0..init.len())
            .map(|i| Carried { init: init[i], arg: args[i], next: next[i], out: outs[i] })
            .collect();
        self.push(Inst::For { index, trips, carried, body });
        outs
    }

    pub fn guard(&mut self, cond: Reg, write: impl FnOnce(&mut Self)) {
        let body = self.nested(write);
        self.push(Inst::If { cond, body });
    }
}
