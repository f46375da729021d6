//! What a whole function costs: at known extents, and as an expression over those that the module leaves open.

use super::{AMORTIZED, Cost, Metric, Work};
use eva_ir::entity::Entity;
use eva_ir::estimate::Estimate;
use eva_ir::graph::{Def, Function, ParamKind, Value};
use eva_ir::lower::Lowering;
use eva_ir::ops::Op;
use eva_ir::poly::Poly;
use eva_ir::types::{TensorType, Type};

/// An op of a function, with the types of its operands and its result.
struct Typed<'f> {
    op: &'f Op,
    args: Vec<&'f TensorType>,
    out: &'f Type,
    /// Whether it depends on weights alone.
    of_weights: bool,
}

impl Cost {
    /// What running `f` takes, in the metric's unit; what it calls aside.
    pub fn estimate(&self, f: &Function) -> Estimate {
        let mut estimate = Estimate::default();
        typed(f).for_each(|typed| self.add(&mut estimate, &typed));
        estimate
    }

    /// What computing these values of `f` takes, each by itself.
    pub fn estimate_of(&self, f: &Function, values: &[Value]) -> Estimate {
        let mut estimate = Estimate::default();
        let weights = of_weights(f);
        let ops = values.iter().filter_map(|&value| typed_value(f, value, weights[value.index()]));
        ops.for_each(|typed| self.add(&mut estimate, &typed));
        estimate
    }

    /// What moving a tensor to or from memory so many times takes, each of its bytes taking `more` besides.
    pub fn estimate_of_moving(&self, ty: &TensorType, times: f64, more: f64) -> Poly {
        let seconds = if self.metric == Metric::Flops { 0.0 } else { times / self.machine.bytes + more };
        self.symbolic_bytes(ty).scaled(seconds)
    }

    fn add(&self, estimate: &mut Estimate, typed: &Typed<'_>) {
        let Typed { op, args, out, of_weights } = typed;
        let all = |types: &mut dyn Iterator<Item = &TensorType>| {
            types.map(|ty| self.symbolic_bytes(ty)).fold(Poly::default(), |sum, bytes| sum + bytes)
        };
        match (self.metric, op.lowering()) {
            (_, Lowering::Alias | Lowering::Constant) => {}
            (Metric::Flops, _) => {
                let share = if *of_weights { 1.0 / AMORTIZED } else { 1.0 };
                estimate.add(self.symbolic_work(op, args, out).flops.scaled(share));
            }
            _ if *of_weights => {
                if !widens(op, args, out) {
                    let bytes = all(&mut args.iter().copied().chain(out.parts()));
                    estimate.add(bytes.scaled(1.0 / self.machine.bytes / AMORTIZED));
                }
            }
            _ => {
                let work = self.symbolic_work(op, args, out);
                let busy = self.busy(op, out, &work, &|ty| self.symbolic_elements(ty));
                estimate.add(Poly::from(self.machine.launch * work.launches));
                estimate.add_max(
                    busy.scaled(1.0 / self.machine.flops(op, args)),
                    work.bytes.scaled(1.0 / self.machine.bytes),
                );
            }
        }
    }

    /// What every call of `f` does, at the extents that this is for; what is computed when weights are loaded aside, and
    /// what it calls.
    pub fn total(&self, f: &Function) -> Work<f64> {
        let mut total = Work { flops: 0.0, bytes: 0.0, launches: 0.0 };
        for Typed { op, args, out, .. } in typed(f).filter(|typed| !typed.of_weights) {
            let work = self.work(op, &args, out);
            total.flops += work.flops;
            total.bytes += work.bytes;
            total.launches += work.launches;
        }
        total
    }
}

/// Whether `op` casts to a type that is not narrower.
pub(super) fn widens(op: &Op, args: &[&TensorType], out: &Type) -> bool {
    matches!(op, Op::Cast(_)) && out.tensor().is_some_and(|ty| ty.dtype.bytes() >= args[0].dtype.bytes())
}

/// The ops of `f` on tensors.
fn typed(f: &Function) -> impl Iterator<Item = Typed<'_>> {
    let weights = of_weights(f);
    f.values.keys().filter_map(move |value| typed_value(f, value, weights[value.index()]))
}

fn typed_value(f: &Function, value: Value, of_weights: bool) -> Option<Typed<'_>> {
    let data = &f.values[value];
    let Def::Op(op, args) = &data.def else { return None };
    // What takes a tuple takes it apart, which costs nothing.
    let args = args.iter().map(|&arg| f.tensor(arg)).collect::<Option<Vec<_>>>()?;
    Some(Typed { op, args, out: &data.ty, of_weights })
}

/// Which values of `f` depend on weights alone (or on nothing).
fn of_weights(f: &Function) -> Vec<bool> {
    let mut weights: Vec<bool> = Vec::with_capacity(f.values.len());
    for (_, data) in f.values.iter() {
        weights.push(match &data.def {
            Def::Param(kind) => *kind == ParamKind::Weight,
            Def::Op(_, args) => args.iter().all(|arg: &Value| weights[arg.index()]),
            Def::Call(..) => false,
        });
    }
    weights
}
