//! Giving products operands of 8 bits.

use super::contraction::{Conversion, Fate, fate};
use super::whole::{Made, Part};
use super::{Casting, Options};
use crate::rebuild::{Rebuild, functions};
use eva_ir::diag::Diag;
use eva_ir::graph::{Def, Function, Module, Value};
use eva_ir::op::TypeError;
use eva_ir::ops::Op;
use eva_ir::ops::cast::Cast;
use eva_ir::ops::quantize::Quantize;
use eva_ir::scales;
use eva_ir::types::DType;
use std::collections::HashMap;

/// The module with the products of 8 bits that the recipe wants, as far as they can be: before forms of attention are
/// chosen, or when they are (`chosen`).
pub fn convert(module: &Module, options: &Options, chosen: bool) -> Result<Module, Diag> {
    let Some(recipe) = &options.recipe else { return Ok(module.clone()) };
    functions(module, |f| {
        let mut pass = Convert {
            module,
            r: Rebuild::new(f),
            quantized: HashMap::new(),
            whole: Made::new(),
            changed: false,
        };
        for value in f.values.keys() {
            let fate = fate(module, f, value, recipe, chosen, options.multiple());
            let done = match (fate, recipe.activations) {
                (Some(Fate::Convert(conversion)), Some(casting)) => {
                    pass.product(f, value, &conversion, casting, recipe.weights).is_ok()
                }
                _ => false,
            };
            if !done {
                pass.r.copy(value);
            }
        }
        let changed = pass.changed;
        changed.then(|| Ok(pass.r.finish())).transpose()
    })
}

/// Why the conversion would not be well-typed, if it would not.
pub fn refusal(
    module: &Module,
    f: &Function,
    value: Value,
    conversion: &Conversion,
    activations: Casting,
    weights: Casting,
) -> Option<String> {
    let mut pass =
        Convert { module, r: Rebuild::new(f), quantized: HashMap::new(), whole: Made::new(), changed: false };
    for before in f.values.keys().take_while(|before| *before != value) {
        pass.r.copy(before);
    }
    pass.product(f, value, conversion, activations, weights).err().map(|error| error.message)
}

struct Convert<'f> {
    module: &'f Module,
    r: Rebuild<'f>,
    /// What is quantized how: an operand of several products is quantized once.
    quantized: HashMap<(Value, Quantize), Value>,
    whole: Made,
    changed: bool,
}

impl Convert<'_> {
    fn product(
        &mut self,
        f: &Function,
        value: Value,
        conversion: &Conversion,
        activations: Casting,
        weights: Casting,
    ) -> Result<(), TypeError> {
        let Def::Op(op, old) = &f.values[value].def else { return Err(TypeError::new("it is no op")) };
        let mut args: Vec<Value> = old.iter().map(|&arg| self.r.get(arg)).collect();
        let weight = conversion.weight;
        if let Some(param) = conversion.stored
            && let Err(error) = self.stored(f, old[weight], param)
        {
            let part = Part::of(f, value, weight, param).ok_or(error)?;
            let side = 1 - weight;
            let ty = f.tensor(old[side]).ok_or_else(|| TypeError::new("an operand is several tensors"))?;
            let scales = activations.scales(ty, conversion.summed[side], &[]);
            let op = Quantize::new(ty, activations.to, &scales, activations.least);
            let x = self.quantize(args[side], op, old[side])?;
            part.replace(&mut self.r, &mut self.whole, value, x)?;
            self.changed = true;
            return Ok(());
        }
        for side in 0..2 {
            let ty = f.tensor(old[side]).ok_or_else(|| TypeError::new("an operand is several tensors"))?;
            args[side] = match (side == weight, conversion.stored) {
                (true, Some(param)) => self.stored(f, old[side], param)?,
                (true, None) => {
                    let scales = weights.scales(ty, conversion.summed[side], &conversion.each);
                    self.quantize(
                        args[side],
                        Quantize::new(ty, weights.to, &scales, weights.least),
                        conversion.param,
                    )?
                }
                (false, _) => {
                    let scales = activations.scales(ty, conversion.summed[side], &[]);
                    let op = Quantize::new(ty, activations.to, &scales, activations.least);
                    self.quantize(args[side], op, old[side])?
                }
            };
        }
        let dtype = f.tensor(value).map_or(DType::F32, |ty| ty.dtype);
        if dtype == DType::F32 {
            self.r.replace(value, op.clone(), &args)?;
        } else {
            let name = format!("{}_sums", f.values[value].name);
            let sums = self.r.op(&name, op.clone(), &args, value)?;
            self.r.replace(value, Cast { to: dtype }, &[sums])?;
        }
        self.changed = true;
        Ok(())
    }

    fn quantize(&mut self, x: Value, op: Quantize, source: Value) -> Result<Value, TypeError> {
        if let Some(&known) = self.quantized.get(&(x, op.clone())) {
            return Ok(known);
        }
        let name = format!("{}_{}", self.r.old.values[source].name, op.to);
        let new = self.r.op(&name, op.clone(), &[x], source)?;
        self.quantized.insert((x, op), new);
        Ok(new)
    }

    /// What `value` is of a weight that is stored in 8 bits, with the views on the way applied to the 8 bits.
    fn stored(&mut self, f: &Function, value: Value, param: Value) -> Result<Value, TypeError> {
        let mut path = Vec::new();
        let mut at = value;
        while at != param {
            let Def::Op(op, args) = &f.values[at].def else {
                return Err(TypeError::new("the weight is computed"));
            };
            match op {
                Op::Dequantize(_) => {}
                // What comes after is to be 8 bits again.
                Op::Cast(_) => {}
                op => path.push((at, op)),
            }
            at = args[0];
        }
        path.into_iter().rev().try_fold(self.r.get(param), |x, (at, op)| {
            let name = format!("{}_stored", f.values[at].name);
            let new = self.r.op(&name, op.clone(), &[x], at)?;
            let types = self.r.new.tensor(x).zip(self.r.new.tensor(new));
            match types.and_then(|(arg, out)| scales::cuts(op, arg, out, &|dim| self.module.constant(dim))) {
                Some(message) => Err(TypeError::new(message)),
                None => Ok(new),
            }
        })
    }
}
