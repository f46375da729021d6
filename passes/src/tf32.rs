//! Products of `f32` for tensor cores, which take ten bits of a mantissa: operands are rounded to `tf32`, sums stay `f32`.
//!
//! ```text
//! %dx = einsum "bsn,nm->bsm" %dy, %w   =>   %a  = cast %dy {to = tf32}
//!                                           %t  = einsum "nm->mn" %w
//!                                           %b  = cast %t {to = tf32}
//!                                           %dx = einsum "bsn,mn->bsm" %a, %b
//! ```
//!
//! What is summed comes last on both sides, since tensor cores sum neighbours of 32 bits and no others; several summed axes
//! become one. An operand of several products is rounded once. Of rows of experts that are summed, the operands are turned as a
//! whole. What has no whole units of 16 bytes along the sum stays as it is, and so does a sum over what has no fixed extent.
//!
//! The pass comes behind all that chooses products, so that attention, which stays `f32`, is an op by then, and before weights
//! are computed of weights.

use crate::rebuild::{Rebuild, functions};
use crate::turned::{Turned, tensor, with_order};
use eva_ir::attr::{Axis, Spec};
use eva_ir::diag::Diag;
use eva_ir::dim::Dim;
use eva_ir::graph::{Def, Function, Module, Value};
use eva_ir::op::TypeError;
use eva_ir::ops::Op;
use eva_ir::ops::cast::Cast;
use eva_ir::ops::einsum::Einsum;
use eva_ir::ops::grouped_outer::GroupedOuter;
use eva_ir::types::DType;
use std::collections::HashMap;

/// Numbers in the unit that rows must be whole multiples of.
const UNIT: i64 = 4;

/// The module with all products of `f32` that can be as products of `tf32`.
pub fn convert(module: &Module) -> Result<Module, Diag> {
    functions(module, |f| {
        let mut pass = Convert {
            module,
            r: Rebuild::new(f),
            turned: Turned::new(f),
            rounded: HashMap::new(),
            changed: false,
        };
        for value in f.values.keys() {
            match pass.product(f, value) {
                Ok(true) => pass.changed = true,
                // What would not be well-typed stays as it is.
                Ok(false) | Err(_) => pass.r.copy(value),
            }
        }
        let changed = pass.changed;
        changed.then(|| Ok(pass.r.finish())).transpose()
    })
}

struct Convert<'f> {
    module: &'f Module,
    r: Rebuild<'f>,
    turned: Turned,
    /// What has been rounded.
    rounded: HashMap<Value, Value>,
    changed: bool,
}

impl Convert<'_> {
    /// Writes the product `value` with rounded operands; whether it is one that can be.
    fn product(&mut self, f: &Function, value: Value) -> Result<bool, TypeError> {
        let Def::Op(op, args) = &f.values[value].def else { return Ok(false) };
        let singles =
            args.iter().take(2).filter(|&&arg| f.tensor(arg).is_some_and(|ty| ty.dtype == DType::F32));
        if singles.count() < 2 {
            return Ok(false);
        }
        match op {
            Op::Einsum(einsum) if args.len() == 2 => self.contraction(f, value, &einsum.spec, args),
            Op::Grouped(grouped) => {
                let terms = tensor(f, args[0])?.shape[1].clone();
                if !self.is_whole(&terms) {
                    return Ok(false);
                }
                let x = self.rounded(self.r.get(args[0]), args[0])?;
                let axes = &grouped.spec.inputs[1];
                let summed = axes
                    .iter()
                    .position(|axis| !grouped.spec.out.contains(axis) && Some(axis) != axes.first());
                let summed = summed.ok_or_else(|| TypeError::new("nothing is summed"))?;
                let order: Vec<usize> =
                    (0..axes.len()).filter(|&axis| axis != summed).chain([summed]).collect();
                let w = self.turned.operand(&mut self.r, args[1], &order, 1, "turned")?;
                let w = self.rounded(w, args[1])?;
                let offsets = self.r.get(args[2]);
                self.r.replace(value, with_order(op, 1, &order), &[x, w, offsets])?;
                Ok(true)
            }
            Op::GroupedOuter(outer) => {
                let [left, right] = &outer.spec.inputs[..] else { return Ok(false) };
                // Rows come first in both operands, or last.
                let first = left.first() == right.first();
                let rows = tensor(f, args[0])?.shape[usize::from(!first)].clone();
                if !self.is_whole(&rows) {
                    return Ok(false);
                }
                let order = if first { [1, 0] } else { [0, 1] };
                let mut new = Vec::with_capacity(3);
                for &arg in &args[..2] {
                    let x = self.turned.operand(&mut self.r, arg, &order, 1, "turned")?;
                    new.push(self.rounded(x, arg)?);
                }
                new.push(self.r.get(args[2]));
                let [left, right] = [left, right].map(|axes| order.map(|place| axes[place]));
                let spec = Spec::new(&[&left, &right], &outer.spec.out, |axis| outer.spec.letter(axis));
                self.r.replace(value, GroupedOuter { spec }, &new)?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    fn contraction(
        &mut self,
        f: &Function,
        value: Value,
        spec: &Spec,
        args: &[Value],
    ) -> Result<bool, TypeError> {
        let [left, right] = &spec.inputs[..] else { return Ok(false) };
        let summed: Vec<Axis> = left.iter().copied().filter(|axis| !spec.out.contains(axis)).collect();
        let both = summed.iter().all(|axis| right.contains(axis))
            && right.iter().all(|axis| spec.out.contains(axis) || summed.contains(axis));
        // Rows and columns of a result.
        let own = |a: &[Axis], b: &[Axis]| a.iter().any(|axis| !b.contains(axis));
        if summed.is_empty() || !both || !own(left, right) || !own(right, left) {
            return Ok(false);
        }
        let place = |axes: &[Axis], axis: &Axis| axes.iter().position(|a| a == axis).unwrap_or(0);
        let ty = tensor(f, args[0])?;
        if !self.is_whole(&Dim::product(summed.iter().map(|axis| &ty.shape[place(left, axis)]))) {
            return Ok(false);
        }
        let (mut new, mut inputs) = (Vec::with_capacity(2), Vec::with_capacity(2));
        for (axes, &arg) in [left, right].into_iter().zip(args) {
            let kept = (0..axes.len()).filter(|&i| spec.out.contains(&axes[i]));
            let order: Vec<usize> = kept.chain(summed.iter().map(|axis| place(axes, axis))).collect();
            let x = self.turned.operand(&mut self.r, arg, &order, summed.len(), "turned")?;
            new.push(self.rounded(x, arg)?);
            inputs.push(order[..order.len() + 1 - summed.len()].iter().map(|&i| axes[i]).collect::<Vec<_>>());
        }
        let spec = Spec::new(&[&inputs[0], &inputs[1]], &spec.out, |axis| spec.letter(axis));
        self.r.replace(value, Einsum { spec }, &new)?;
        Ok(true)
    }

    /// Whether rows of so many numbers are whole units, whatever the extents in it.
    fn is_whole(&self, terms: &Dim) -> bool {
        match self.module.constant(terms) {
            Some(n) => n > 0 && n % UNIT == 0,
            None => terms.terms().all(|(_, n)| n % UNIT == 0),
        }
    }

    /// `x`, which stands for the old value `source`, rounded.
    fn rounded(&mut self, x: Value, source: Value) -> Result<Value, TypeError> {
        if let Some(&known) = self.rounded.get(&x) {
            return Ok(known);
        }
        let name = format!("{}_tf32", self.r.old.values[source].name);
        let new = self.r.op(&name, Cast { to: DType::Tf32 }, &[x], source)?;
        self.rounded.insert(x, new);
        Ok(new)
    }
}
