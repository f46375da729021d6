//! Kernels of the lane phase written by hand, and running them as machine code.

pub mod numbers;

use eva_cranelift::{Compiled, Isa, KernelFn, Options, SCRATCH_ALIGN, compile};
use eva_ir::dim::Dim;
use eva_ir::kernel::run::Storage;
use eva_ir::kernel::*;
use eva_ir::types::DType;
use std::alloc::{Layout, alloc_zeroed, dealloc};

/// A kernel of the lane phase being written.
pub struct Lane {
    pub kernel: Kernel,
    open: Vec<Vec<Inst>>,
}

impl Lane {
    pub fn new(name: &str) -> Self {
        let kernel = Kernel {
            name: name.into(),
            phase: Phase::Lane,
            bufs: Default::default(),
            scratch: Default::default(),
            block: None,
            grid: Vec::new(),
            regs: Default::default(),
            body: Vec::new(),
        };
        Self { kernel, open: vec![Vec::new()] }
    }

    pub fn finish(mut self) -> Kernel {
        assert_eq!(self.open.len(), 1);
        self.kernel.body = self.open.pop().unwrap();
        self.kernel
    }

    pub fn buf(&mut self, name: &str, dtype: DType, access: Access, len: impl Into<Dim>) -> Space {
        let (shape, strides) = (vec![len.into()], vec![Dim::from(1)]);
        let data =
            BufData { name: name.into(), dtype, access, shape, strides, offset: Dim::from(0), scaled: None };
        Space::Buf(self.kernel.bufs.push(data))
    }

    pub fn scratch(&mut self, elem: Elem, len: usize) -> Space {
        Space::Scratch(self.kernel.scratch.push(ScratchData { elem, len }))
    }

    pub fn reg(&mut self, elem: Elem, cols: usize) -> Reg {
        self.kernel.regs.push(RegType { elem, rows: 1, cols })
    }

    pub fn push(&mut self, inst: Inst) {
        self.open.last_mut().unwrap().push(inst);
    }

    pub fn emit(&mut self, elem: Elem, cols: usize, inst: impl FnOnce(Reg) -> Inst) -> Reg {
        let out = self.reg(elem, cols);
        self.push(inst(out));
        out
    }

    pub fn ty(&self, reg: Reg) -> RegType {
        self.kernel.regs[reg]
    }

    pub fn program(&mut self, extent: impl Into<Dim>, tile: i64) -> Reg {
        self.kernel.grid.push(GridAxis { extent: extent.into(), tile });
        let axis = self.kernel.grid.len() - 1;
        self.emit(Elem::I64, 1, |out| Inst::Program { out, axis })
    }

    pub fn extent(&mut self, dim: impl Into<Dim>) -> Reg {
        let dim = dim.into();
        self.emit(Elem::I64, 1, |out| Inst::Extent { out, dim })
    }

    pub fn int(&mut self, value: i64) -> Reg {
        self.emit(Elem::I64, 1, |out| Inst::Const { out, value: Const::I(value) })
    }

    pub fn float(&mut self, value: f64, cols: usize) -> Reg {
        self.emit(Elem::F32, cols, |out| Inst::Const { out, value: Const::F(value) })
    }

    pub fn truth(&mut self, value: bool, cols: usize) -> Reg {
        self.emit(Elem::Bool, cols, |out| Inst::Const { out, value: Const::B(value) })
    }

    pub fn map(&mut self, f: Fn1, x: Reg) -> Reg {
        let ty = self.ty(x);
        self.emit(ty.elem, ty.cols, |out| Inst::Map { out, f, x })
    }

    pub fn zip(&mut self, f: Fn2, x: Reg, y: Reg) -> Reg {
        let (a, b) = (self.ty(x), self.ty(y));
        let elem = if f.is_predicate() { Elem::Bool } else { a.elem };
        self.emit(elem, a.cols.max(b.cols), |out| Inst::Zip { out, f, x, y })
    }

    pub fn add(&mut self, x: Reg, y: Reg) -> Reg {
        self.zip(Fn2::Add, x, y)
    }

    pub fn mul(&mut self, x: Reg, y: Reg) -> Reg {
        self.zip(Fn2::Mul, x, y)
    }

    pub fn scaled(&mut self, x: Reg, by: i64) -> Reg {
        let by = self.int(by);
        self.mul(x, by)
    }

    pub fn select(&mut self, cond: Reg, x: Reg, y: Reg) -> Reg {
        let (c, a, b) = (self.ty(cond), self.ty(x), self.ty(y));
        self.emit(a.elem, c.cols.max(a.cols).max(b.cols), |out| Inst::Select { out, cond, x, y })
    }

    pub fn cast(&mut self, x: Reg, elem: Elem) -> Reg {
        let cols = self.ty(x).cols;
        self.emit(elem, cols, |out| Inst::Cast { out, x })
    }

    pub fn round(&mut self, x: Reg, to: DType) -> Reg {
        let cols = self.ty(x).cols;
        self.emit(Elem::F32, cols, |out| Inst::Round { out, x, to })
    }

    pub fn load(&mut self, space: Space, index: Reg, cols: usize) -> Reg {
        let elem = match space {
            Space::Buf(buf) if self.kernel.bufs[buf].dtype.is_int() => Elem::I64,
            Space::Buf(_) => Elem::F32,
            Space::Scratch(scratch) => self.kernel.scratch[scratch].elem,
            Space::Shared(_) => unreachable!("lane kernels have no shared memory"),
        };
        self.emit(elem, cols, |out| Inst::VLoad { out, from: Mem { space, index } })
    }

    pub fn store(&mut self, space: Space, index: Reg, value: Reg) {
        self.push(Inst::VStore { to: Mem { space, index }, value });
    }

    pub fn across(&mut self, f: Fn2, x: Reg) -> Reg {
        let elem = self.ty(x).elem;
        self.emit(elem, 1, |out| Inst::Across { out, f, x })
    }

    pub fn swap_pairs(&mut self, x: Reg) -> Reg {
        let ty = self.ty(x);
        self.emit(ty.elem, ty.cols, |out| Inst::SwapPairs { out, x })
    }

    pub fn fold(
        &mut self,
        trips: Reg,
        init: &[Reg],
        body: impl FnOnce(&mut Self, Reg, &[Reg]) -> Vec<Reg>,
    ) -> Vec<Reg> {
        let index = self.reg(Elem::I64, 1);
        let new = |k: &mut Self| -> Vec<Reg> {
            init.iter()
                .map(|&r| k.ty(r))
                .collect::<Vec<_>>()
                .into_iter()
                .map(|t| k.reg(t.elem, t.cols))
                .collect()
        };
        let (args, outs) = (new(self), new(self));
        self.open.push(Vec::new());
        let next = body(self, index, &args);
        let body = self.open.pop().unwrap();
        let carried =
            (0..init.len()).map(|i| Carried { init: init[i], arg: args[i], next: next[i], out: outs[i] });
        let carried = carried.collect();
        self.push(Inst::For { index, trips, carried, body });
        outs
    }

    pub fn repeat(&mut self, trips: Reg, body: impl FnOnce(&mut Self, Reg)) {
        self.fold(trips, &[], |k, i, _| {
            body(k, i);
            Vec::new()
        });
    }

    pub fn when(&mut self, cond: Reg, body: impl FnOnce(&mut Self)) {
        self.open.push(Vec::new());
        body(self);
        let body = self.open.pop().unwrap();
        self.push(Inst::If { cond, body });
    }
}

/// Private memory, aligned as the contract says.
pub struct Private {
    at: *mut u8,
    layout: Layout,
}

impl Private {
    pub fn new(bytes: usize) -> Self {
        let layout = Layout::from_size_align(bytes.max(1), SCRATCH_ALIGN).unwrap();
        // SAFETY: the layout is not of size zero.
        Self { at: unsafe { alloc_zeroed(layout) }, layout }
    }
    pub fn ptr(&self) -> *mut u8 {
        self.at
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout.
        unsafe { dealloc(self.at, self.layout) }
    }
}

/// Compiles one kernel.
pub fn compile_one(kernel: &Kernel, isa: Isa) -> Compiled {
    let compiled = compile(std::slice::from_ref(kernel), &Options { isa, ..Options::default() });
    compiled.unwrap_or_else(|e| panic!("{e}"))
}

/// The values of a kernel's symbols in the order of its calls.
pub fn sym_values(kernel: &Kernel, sizes: &[(&str, i64)]) -> Vec<i64> {
    let value =
        |name: &str| sizes.iter().find(|(n, _)| *n == name).unwrap_or_else(|| panic!("no size {name}")).1;
    kernel.syms().iter().map(|sym| value(sym.as_str())).collect()
}

/// Calls a kernel on raw buffers for each of the ranges.
pub fn call(run: KernelFn, bufs: &mut [Vec<u8>], syms: &[i64], ranges: &[(i64, i64)]) {
    let private = Private::new(run.scratch_bytes());
    let pointers: Vec<*mut u8> = bufs.iter_mut().map(|b| b.as_mut_ptr()).collect();
    for &(first, last) in ranges {
        // SAFETY: the tests' kernels stay inside the buffers that the tests give them.
        unsafe { run.call(pointers.as_ptr(), syms.as_ptr(), first, last, private.ptr()) };
    }
}

/// Runs all programs of a kernel on `isa` in one range; buffer `i` lies in storage `i`.
pub fn run_on(isa: Isa, kernel: &Kernel, sizes: &[(&str, i64)], storages: &mut [Storage]) {
    let compiled = compile_one(kernel, isa);
    let syms = sym_values(kernel, sizes);
    let programs = compiled.kernel(0).programs(&syms).unwrap();
    let mut bytes: Vec<Vec<u8>> = storages.iter().map(|s| numbers::encode_all(s.dtype, &s.data)).collect();
    call(compiled.kernel(0), &mut bytes, &syms, &[(0, programs)]);
    for (storage, bytes) in storages.iter_mut().zip(bytes) {
        storage.data = numbers::decode_all(storage.dtype, &bytes);
    }
}

/// The instruction sets that this machine can run and that differ.
pub fn isas() -> Vec<Isa> {
    vec![Isa::host(), Isa::baseline()]
}

/// A kernel over `n` elements (a multiple of 4): `out[i] = body(in 0[i], in 1[i], …)`.
pub fn elementwise(
    inputs: &[DType],
    out: DType,
    n: usize,
    cols: usize,
    body: impl FnOnce(&mut Lane, &[Reg]) -> Reg,
) -> Kernel {
    let mut k = Lane::new("elementwise");
    let n = n as i64;
    let spaces: Vec<Space> =
        inputs.iter().enumerate().map(|(i, &d)| k.buf(&format!("x{i}"), d, Access::Read, n)).collect();
    let to = k.buf("y", out, Access::Write, n);
    let trips = k.int(n / cols as i64);
    k.repeat(trips, |k, i| {
        let at = k.scaled(i, cols as i64);
        let xs: Vec<Reg> = spaces.iter().map(|&s| k.load(s, at, cols)).collect();
        let y = body(k, &xs);
        k.store(to, at, y);
    });
    k.finish()
}

/// Floats that break things, 20 of them.
pub const SPECIAL: [f32; 20] = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    0.5,
    -2.75,
    3.0e-39,
    -1.0e-45,
    1.5e38,
    f32::MAX,
    f32::MIN,
    f32::INFINITY,
    f32::NEG_INFINITY,
    f32::NAN,
    f32::MIN_POSITIVE,
    6.5e4,
    -6.1e-5,
    88.7,
    -103.9,
    1.000_000_1,
];

/// Every pair of special values.
pub fn special_pairs() -> (Vec<f64>, Vec<f64>) {
    let pairs = SPECIAL.iter().flat_map(|&x| SPECIAL.iter().map(move |&y| (f64::from(x), f64::from(y))));
    pairs.unzip()
}
