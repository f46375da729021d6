//! What a function costs on a machine: arithmetic alone, or a roofline.
//!
//! Forms of one function are compared op by op ([`Cost::of`]). [`Metric::Flops`] counts floating-point operations and
//! nothing else. [`Metric::Roofline`] is seconds: a launch, and the time that the machine's arithmetic or its memory,
//! whichever takes longer, needs. Three things that later passes do are foreseen: ops that are fused into their
//! neighbours move no memory of their own; views cost nothing; and the scores of attention, `[new, cached]` for each
//! head, are never stored. What weights alone decide is computed when they are loaded, not in every call
//! ([`Cost::of_weights`]).
//!
//! Machines are data ([`Machine`]). Extents that the module leaves open have the values of decoding if nothing else is
//! said ([`Lengths`]).

mod function;
mod lengths;
mod machine;

pub use lengths::{CACHED, Lengths, representative};
pub use machine::{Machine, MachineError, Products};

use eva_ir::dim::{Dim, Sym};
use eva_ir::graph::{Def, Function, Module};
use eva_ir::lower::Lowering;
use eva_ir::ops::Op;
use eva_ir::poly::{Amount, Poly};
use eva_ir::types::{TensorType, Type};
use std::collections::BTreeMap;

/// In how many calls a computation on weights alone, which is done once when they are loaded, should pay.
pub const AMORTIZED: f64 = 1024.0;

/// What cost is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Metric {
    /// Floating-point operations.
    Flops,
    /// Seconds.
    #[default]
    Roofline,
}

/// What costs are reckoned with.
#[derive(Clone, Debug, PartialEq)]
pub struct CostOptions {
    /// The machine.
    pub machine: Machine,
    /// What is counted.
    pub metric: Metric,
    /// Values for extents that the module leaves open, instead of those that [`representative`] takes.
    pub sizes: BTreeMap<Sym, i64>,
}

impl Default for CostOptions {
    fn default() -> Self {
        Self::new(Machine::cpu())
    }
}

impl CostOptions {
    /// Seconds on `machine`, when decoding.
    pub fn new(machine: Machine) -> Self {
        Self { machine, metric: Metric::Roofline, sizes: BTreeMap::new() }
    }
}

/// What an op does: [`f64`] where extents are known, [`Poly`] where they are not.
#[derive(Clone, Debug, PartialEq)]
pub struct Work<N> {
    /// Floating-point operations.
    pub flops: N,
    /// Bytes read and written.
    pub bytes: N,
    /// Kernels started.
    pub launches: f64,
}

/// The cost of the ops of one function.
pub struct Cost {
    machine: Machine,
    metric: Metric,
    /// The values of extents that the module fixes.
    fixed: BTreeMap<Sym, i64>,
    /// A value for every extent.
    sizes: BTreeMap<Sym, i64>,
    /// The extents, sorted, of tensors that are never stored.
    unstored: Vec<Vec<Dim>>,
}

impl Cost {
    /// For `f` of `module`.
    pub fn new(module: &Module, f: &Function, options: &CostOptions) -> Self {
        let fixed: BTreeMap<Sym, i64> =
            module.dims.iter().filter_map(|(sym, value)| Some((sym.clone(), (*value)?))).collect();
        let mut sizes = representative(module);
        sizes.extend(options.sizes.clone());
        sizes.extend(fixed.clone());
        let scores = |def: &Def| match def {
            Def::Op(Op::CausalSoftmax(_), args) => f.tensor(args[0]).map(extents),
            _ => None,
        };
        let mut unstored: Vec<_> = f.values.iter().filter_map(|(_, data)| scores(&data.def)).collect();
        unstored.sort();
        unstored.dedup();
        Self { machine: options.machine.clone(), metric: options.metric, fixed, sizes, unstored }
    }

    /// The cost at other extents, where the module does not fix them.
    pub fn at(&self, sizes: &BTreeMap<Sym, i64>) -> Self {
        let mut all = self.sizes.clone();
        all.extend(sizes.clone());
        all.extend(self.fixed.clone());
        let Self { machine, metric, fixed, unstored, .. } = self;
        Self {
            machine: machine.clone(),
            metric: *metric,
            fixed: fixed.clone(),
            sizes: all,
            unstored: unstored.clone(),
        }
    }

    /// The value that is taken for an extent.
    pub fn size_of(&self, sym: &Sym) -> Option<i64> {
        self.sizes.get(sym).copied()
    }

    /// The cost of `op` on operands of these types: seconds, or floating-point operations.
    pub fn of(&self, op: &Op, args: &[&TensorType], out: &Type) -> f64 {
        let work = self.work(op, args, out);
        match self.metric {
            Metric::Flops => work.flops,
            Metric::Roofline => {
                let computed =
                    self.busy(op, out, &work, &|ty| self.elements(ty)) / self.machine.flops(op, args);
                self.machine.launch * work.launches + computed.max(work.bytes / self.machine.bytes)
            }
        }
    }

    /// The cost of `op` on operands that depend on weights alone, so that it is computed when they are loaded: its
    /// bytes, of which each of [`AMORTIZED`] calls bears a part. Views and widening casts are not even stored.
    pub fn of_weights(&self, op: &Op, args: &[&TensorType], out: &Type) -> f64 {
        match (self.metric, op.lowering()) {
            (_, Lowering::Alias | Lowering::Constant) => 0.0,
            _ if function::widens(op, args, out) => 0.0,
            (Metric::Flops, _) => self.work(op, args, out).flops / AMORTIZED,
            (Metric::Roofline, _) => {
                let bytes: f64 = args.iter().copied().chain(out.parts()).map(|ty| self.bytes(ty)).sum();
                bytes / self.machine.bytes / AMORTIZED
            }
        }
    }

    /// The cost of copying `from` to where it is one tensor of type `to`, by a kernel of its own.
    pub fn of_copy(&self, from: &TensorType, to: &Type) -> f64 {
        let bytes: f64 =
            to.parts().iter().map(|ty| 2.0 * self.elements(ty) * from.dtype.bytes() as f64).sum();
        match self.metric {
            Metric::Flops => 0.0,
            Metric::Roofline => self.machine.launch + bytes / self.machine.bytes,
        }
    }

    /// The bytes that a tensor takes in memory.
    pub fn stored_bytes(&self, ty: &TensorType) -> f64 {
        self.bytes(ty)
    }

    /// The seconds that memory takes to move as many bytes once.
    pub fn seconds_to_move(&self, bytes: f64) -> f64 {
        bytes / self.machine.bytes
    }

    /// What every op costs, whatever it does: next to nothing, so that of equal ways the shorter is taken.
    pub fn of_op(&self) -> f64 {
        match self.metric {
            Metric::Flops => 0.0,
            Metric::Roofline => 1e-9,
        }
    }

    /// What `op` does.
    pub fn work(&self, op: &Op, args: &[&TensorType], out: &Type) -> Work<f64> {
        self.work_in(op, args, out, &|ty| self.elements(ty))
    }

    /// What `op` does, over the extents that the module leaves open.
    pub fn symbolic_work(&self, op: &Op, args: &[&TensorType], out: &Type) -> Work<Poly> {
        self.work_in(op, args, out, &|ty| self.symbolic_elements(ty))
    }

    fn work_in<N: Amount>(
        &self,
        op: &Op,
        args: &[&TensorType],
        out: &Type,
        size: &dyn Fn(&TensorType) -> N,
    ) -> Work<N> {
        let none = || N::from(0.0);
        match op.lowering() {
            Lowering::Alias | Lowering::Constant => Work { flops: none(), bytes: none(), launches: 0.0 },
            Lowering::Pointwise | Lowering::View => {
                Work { flops: op.flops(args, out, size), bytes: none(), launches: 0.0 }
            }
            Lowering::Kernel => {
                // Of a state only the new rows are touched: read, and written to their places.
                let moved = if op.updates_state() {
                    vec![args[1]; 2]
                } else {
                    [args, &out.parts().iter().collect::<Vec<_>>()].concat()
                };
                let stored = moved.into_iter().filter(|ty| !self.is_unstored(ty));
                let bytes = stored.fold(none(), |sum, ty| sum + size(ty) * N::from(ty.dtype.bytes() as f64));
                Work { flops: op.flops(args, out, size), bytes, launches: 1.0 }
            }
        }
    }

    /// Operations that the units are busy with: an element that a fused op only moves is as much as one computed.
    fn busy<N: Amount>(&self, op: &Op, out: &Type, work: &Work<N>, size: &dyn Fn(&TensorType) -> N) -> N {
        match op.lowering() {
            Lowering::Pointwise | Lowering::View => {
                out.parts().iter().map(size).fold(N::from(0.0), |sum, n| sum + n)
            }
            _ => work.flops.clone(),
        }
    }

    fn is_unstored(&self, ty: &TensorType) -> bool {
        !self.unstored.is_empty() && self.unstored.contains(&extents(ty))
    }

    fn bytes(&self, ty: &TensorType) -> f64 {
        self.elements(ty) * ty.dtype.bytes() as f64
    }

    /// The number of elements; in floating point, which does not overflow.
    fn elements(&self, ty: &TensorType) -> f64 {
        let size = |sym: &Sym| self.sizes.get(sym).map_or(1.0, |&n| n as f64);
        let term = |(syms, n): (&[Sym], i64)| syms.iter().map(size).product::<f64>() * n as f64;
        ty.shape.iter().map(|dim| dim.terms().map(term).sum::<f64>()).product()
    }

    fn symbolic_bytes(&self, ty: &TensorType) -> Poly {
        self.symbolic_elements(ty).scaled(ty.dtype.bytes() as f64)
    }

    fn symbolic_elements(&self, ty: &TensorType) -> Poly {
        let poly = |dim| Poly::of(dim, &|sym| self.fixed.get(sym).copied());
        ty.shape.iter().map(poly).fold(Poly::from(1.0), |product, dim| product * dim)
    }
}

fn extents(ty: &TensorType) -> Vec<Dim> {
    let mut extents = ty.shape.to_vec();
    extents.sort();
    extents
}
