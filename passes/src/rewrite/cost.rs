//! What an op costs: a roofline at representative extents.
//!
//! Forms are compared by the time that a machine's arithmetic or its memory, whichever takes longer, needs for
//! each op. Three things that later passes do are foreseen: ops that are fused into their neighbours move no
//! memory of their own; views cost nothing; and the scores of attention, `[new, cached]` for each head, are never
//! stored. Products of weights alone count like any other, since every call computes them.
//!
//! # Extents without a value
//!
//! One compile serves every length, so most lengths are unknown when a form is chosen. They are taken to be those
//! of decoding: one sequence, one new token, and [`CACHED`] tokens to attend to. The cached extents are found by
//! what they do (the second axis of a state, the last of causally masked scores), not by name. A module that fixes
//! them (`dim s = 512`) is chosen for accordingly. Choosing at run time by the actual lengths is not done yet.

use eva_ir::dim::{Dim, Sym};
use eva_ir::graph::{Def, Function, Module, ParamKind};
use eva_ir::lower::Lowering;
use eva_ir::ops::Op;
use eva_ir::types::{TensorType, Type};
use std::collections::BTreeMap;

/// How many tokens are taken to be cached if the module does not say.
pub const CACHED: i64 = 4096;

/// A machine's peaks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Roofline {
    /// Floating-point operations a second.
    pub flops: f64,
    /// Bytes a second to and from memory.
    pub bytes: f64,
    /// Seconds to start a kernel.
    pub launch: f64,
}

impl Roofline {
    /// Round numbers of a CPU with a few cores: what counts is their ratio, about 10 operations a byte.
    pub const CPU: Roofline = Roofline { flops: 2e11, bytes: 2e10, launch: 5e-6 };
}

/// The values taken for the extents that `module` leaves open.
pub fn representative(module: &Module) -> BTreeMap<Sym, i64> {
    let open = module.dims.iter().filter(|(_, value)| value.is_none());
    let mut sizes: BTreeMap<Sym, i64> = open.map(|(sym, _)| (sym.clone(), 1)).collect();
    for (_, f) in module.funcs.iter() {
        for (_, data) in f.values.iter() {
            let cached = match &data.def {
                Def::Param(ParamKind::State) => data.ty.tensor().and_then(|ty| ty.shape.get(1)),
                Def::Op(Op::CausalSoftmax(_), args) => f.tensor(args[0]).and_then(|ty| ty.shape.last()),
                _ => None,
            };
            for sym in cached.map(Dim::syms).unwrap_or_default() {
                sizes.entry(sym).and_modify(|n| *n = CACHED);
            }
        }
    }
    sizes
}

/// The cost of the ops of one function.
pub struct Cost {
    machine: Roofline,
    sizes: BTreeMap<Sym, i64>,
    /// The extents, sorted, of tensors that are never stored.
    unstored: Vec<Vec<Dim>>,
}

impl Cost {
    /// For `f` on `machine`, with extents as [`representative`] gives them.
    pub fn new(module: &Module, f: &Function, machine: Roofline) -> Self {
        let mut sizes = representative(module);
        sizes.extend(module.dims.iter().filter_map(|(sym, value)| Some((sym.clone(), (*value)?))));
        let scores = |def: &Def| match def {
            Def::Op(Op::CausalSoftmax(_), args) => f.tensor(args[0]).map(extents),
            _ => None,
        };
        let mut unstored: Vec<_> = f.values.iter().filter_map(|(_, data)| scores(&data.def)).collect();
        unstored.sort();
        unstored.dedup();
        Self { machine, sizes, unstored }
    }

    /// Seconds that `op` takes on operands of these types.
    pub fn of(&self, op: &Op, args: &[&TensorType], out: &Type) -> f64 {
        let flops = || op.flops(args, out, &|ty| self.elements(ty)) / self.machine.flops;
        match op.lowering() {
            Lowering::Alias | Lowering::Constant => 0.0,
            Lowering::Pointwise | Lowering::View => flops(),
            Lowering::Kernel => {
                let stored = args.iter().copied().chain(out.parts()).filter(|ty| !self.is_unstored(ty));
                let bytes: f64 = stored.map(|ty| self.elements(ty) * ty.dtype.bytes() as f64).sum();
                self.machine.launch + flops().max(bytes / self.machine.bytes)
            }
        }
    }

    fn is_unstored(&self, ty: &TensorType) -> bool {
        !self.unstored.is_empty() && self.unstored.contains(&extents(ty))
    }

    /// The number of elements; in floating point, which does not overflow.
    fn elements(&self, ty: &TensorType) -> f64 {
        let size = |sym: &Sym| self.sizes.get(sym).map_or(1.0, |&n| n as f64);
        let term = |(syms, n): (&[Sym], i64)| syms.iter().map(size).product::<f64>() * n as f64;
        ty.shape.iter().map(|dim| dim.terms().map(term).sum::<f64>()).product()
    }
}

fn extents(ty: &TensorType) -> Vec<Dim> {
    let mut extents = ty.shape.to_vec();
    extents.sort();
    extents
}
