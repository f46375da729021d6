//! Small things that the tests share.

use eva_ir::dim::{Dim, Sym};
use eva_ir::entity::Arena;
use eva_ir::kernel::run::{Options, RunError, Stats, Storage, run};
use eva_ir::kernel::*;
use eva_ir::types::DType;

/// A row-major buffer whose extents are numbers or names.
pub fn buf(name: &str, dtype: DType, shape: &[&str], access: Access) -> BufData {
    let shape: Vec<Dim> = shape.iter().map(|dim| dim.parse().expect("an extent")).collect();
    let mut strides = vec![Dim::from(1); shape.len()];
    for i in (1..shape.len()).rev() {
        strides[i - 1] = &strides[i] * &shape[i];
    }
    BufData { name: name.into(), dtype, access, shape, strides, offset: Dim::from(0), scaled: None }
}

/// The values of extents.
pub fn sizes(of: &[(&'static str, i64)]) -> impl Fn(&Sym) -> Option<i64> {
    move |sym| of.iter().find(|(name, _)| *name == sym.as_str()).map(|(_, n)| *n)
}

/// Runs a kernel whose buffers each have their own storage.
pub fn run_on(
    kernel: &Kernel,
    of: &[(&'static str, i64)],
    storages: &mut [Storage],
    options: Options,
) -> Result<Stats, RunError> {
    let binding: Vec<usize> = (0..storages.len()).collect();
    let of = of.to_vec();
    let sizes = move |sym: &Sym| of.iter().find(|(name, _)| *name == sym.as_str()).map(|(_, n)| *n);
    run(kernel, &sizes, storages, &binding, options)
}

/// Numbers that look like nothing in particular, between -2 and 2.
pub fn numbers(len: usize, seed: u64) -> Vec<f64> {
    let mut x = seed.wrapping_mul(0x9e37_79b9).wrapping_add(12345);
    let next = |_| {
        x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (x >> 40) as f64 / (1 << 22) as f64 - 2.0
    };
    (0..len).map(next).collect()
}

pub fn close(have: &[f64], want: &[f64], tolerance: f64) {
    assert_eq!(have.len(), want.len());
    for (i, (have, want)) in have.iter().zip(want).enumerate() {
        // Not `>`: NaN is close to nothing.
        assert!((have - want).abs() <= tolerance * want.abs().max(1.0), "element {i}: {have}, not {want}");
    }
}

/// Instructions put together by hand, well-formed or not.
pub struct Raw(pub Kernel);

impl Raw {
    pub fn new(phase: Phase) -> Self {
        Self(Kernel {
            name: "raw".into(),
            phase,
            bufs: Arena::default(),
            scratch: Arena::default(),
            block: None,
            grid: Vec::new(),
            regs: Arena::default(),
            body: Vec::new(),
        })
    }

    pub fn reg(&mut self, elem: Elem, rows: usize, cols: usize) -> Reg {
        self.0.regs.push(RegType { elem, rows, cols })
    }

    /// An instruction that assigns a new register.
    pub fn emit(&mut self, elem: Elem, rows: usize, cols: usize, inst: impl FnOnce(Reg) -> Inst) -> Reg {
        let out = self.reg(elem, rows, cols);
        self.0.body.push(inst(out));
        out
    }

    pub fn push(&mut self, inst: Inst) {
        self.0.body.push(inst);
    }

    pub fn int(&mut self, n: i64) -> Reg {
        self.emit(Elem::I64, 1, 1, |out| Inst::Const { out, value: Const::I(n) })
    }

    pub fn floats(&mut self, rows: usize, cols: usize, x: f64) -> Reg {
        self.emit(Elem::F32, rows, cols, |out| Inst::Const { out, value: Const::F(x) })
    }

    pub fn bools(&mut self, rows: usize, cols: usize, b: bool) -> Reg {
        self.emit(Elem::Bool, rows, cols, |out| Inst::Const { out, value: Const::B(b) })
    }

    pub fn buf(&mut self, dtype: DType, shape: &[&str], access: Access) -> Buf {
        let name = ["a", "b", "c", "d", "e"][self.0.bufs.len()];
        self.0.bufs.push(buf(name, dtype, shape, access))
    }

    pub fn scratch(&mut self, elem: Elem, len: usize) -> Scratch {
        self.0.scratch.push(ScratchData { elem, len })
    }

    /// What the verifier says, in one line.
    pub fn errors(&self) -> String {
        verify::verify(&self.0).expect_err("the kernel is not well-formed").join("; ")
    }

    pub fn is_fine(&self) {
        assert_eq!(verify::verify(&self.0), Ok(()));
    }
}

/// A rectangle without limits.
pub fn place(buf: Buf, at: &[Reg], axes: [Option<usize>; 2]) -> Place {
    Place { buf, at: at.to_vec(), axes, limits: Vec::new() }
}
