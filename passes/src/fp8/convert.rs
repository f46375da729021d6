//! Giving products operands of 8 bits.

use super::contraction::{Conversion, Fate, OfTokens, fate};
use super::whole::{Made, Part};
use super::{Casting, Options};
use crate::grad::GRADIENT;
use crate::rebuild::{Rebuild, functions};
use crate::turned::{Turned, tensor, with_order};
use eva_ir::attr::{Axis, Dims, Real, Spec};
use eva_ir::diag::Diag;
use eva_ir::dim::Dim;
use eva_ir::graph::{Def, Function, Module, Value};
use eva_ir::op::TypeError;
use eva_ir::ops::Op;
use eva_ir::ops::align_offsets::AlignOffsets;
use eva_ir::ops::cast::Cast;
use eva_ir::ops::einsum::Einsum;
use eva_ir::ops::grouped_outer::GroupedOuter;
use eva_ir::ops::quantize::Quantize;
use eva_ir::ops::quantize_by_expert::QuantizeByExpert;
use eva_ir::ops::scale::Scale;
use eva_ir::scales;
use eva_ir::types::DType;
use std::collections::{HashMap, HashSet};

/// The module with the products of 8 bits that the recipe wants, as far as they can be: before forms of attention are
/// chosen, or when they are (`chosen`).
pub fn convert(module: &Module, options: &Options, chosen: bool) -> Result<Module, Diag> {
    let Some(recipe) = &options.recipe else { return Ok(module.clone()) };
    functions(module, |f| {
        let mut pass = Convert::new(module, f, options.neighbours);
        for value in f.values.keys() {
            let fate = fate(module, f, value, recipe, chosen, options.multiple());
            let done = match (fate, recipe.activations) {
                (Some(Fate::Convert(conversion)), Some(casting)) => {
                    pass.product(f, value, &conversion, casting, recipe.weights).is_ok()
                }
                (Some(Fate::Gradient(of)), Some(casting)) => pass.gradient(f, value, &of, casting).is_ok(),
                (Some(Fate::Experts(rows)), Some(casting)) => pass.experts(f, value, rows, casting).is_ok(),
                _ => pass.single(f, value),
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
    fate: &Fate,
    options: &Options,
    [activations, weights]: [Casting; 2],
) -> Option<String> {
    let mut pass = Convert::new(module, f, options.neighbours);
    for before in f.values.keys().take_while(|before| *before != value) {
        pass.r.copy(before);
    }
    let done = match fate {
        Fate::Convert(conversion) => pass.product(f, value, conversion, activations, weights),
        Fate::Gradient(of) => pass.gradient(f, value, of, activations),
        Fate::Experts(rows) => pass.experts(f, value, *rows, activations),
        _ => Ok(()),
    };
    done.err().map(|error| error.message)
}

/// Gradients are of any magnitude, small ones mostly: that of a mean over tokens is divided by their number. With the least
/// magnitude that is for activations, what is far below it would be rounded to few numbers, or to zero.
const LEAST_OF_GRADIENTS: f64 = 1e-30;

/// The values of a backward pass that are, or depend on, gradients of its results.
fn gradients(f: &Function) -> HashSet<Value> {
    let mut found = HashSet::new();
    for (value, data) in f.values.iter() {
        let is_seed = matches!(data.def, Def::Param(_)) && data.name.ends_with(GRADIENT);
        if is_seed || data.def.args().iter().any(|arg| found.contains(arg)) {
            found.insert(value);
        }
    }
    found
}

struct Convert<'f> {
    module: &'f Module,
    r: Rebuild<'f>,
    /// What is quantized how: an operand of several products is quantized once.
    quantized: HashMap<(Value, Quantize), Value>,
    turned: Turned,
    /// What depends on gradients that are given.
    gradients: HashSet<Value>,
    /// Where experts' rows begin when they fill tiles, for each list of offsets and number of rows.
    starts: HashMap<(Value, i64), Value>,
    /// Operands of experts' gradients: what they are made of, and where experts begin.
    by_expert: HashMap<(Value, Value), Value>,
    /// The sums in `f32` of gradients of narrower types.
    sums: HashMap<Value, Value>,
    whole: Made,
    /// Whether products sum neighbours in memory.
    neighbours: bool,
    changed: bool,
}

impl<'f> Convert<'f> {
    fn new(module: &'f Module, f: &'f Function, neighbours: bool) -> Self {
        let (quantized, starts, by_expert, sums) = Default::default();
        let (r, whole, turned) = (Rebuild::new(f), Made::new(), Turned::new(f));
        Convert {
            module,
            r,
            quantized,
            turned,
            gradients: gradients(f),
            starts,
            by_expert,
            sums,
            whole,
            neighbours,
            changed: false,
        }
    }

    /// A weight's gradient, as a sum of 8-bit products over tokens.
    fn gradient(
        &mut self,
        f: &Function,
        value: Value,
        of: &OfTokens,
        casting: Casting,
    ) -> Result<(), TypeError> {
        let Def::Op(_, old) = &f.values[value].def else { return Err(TypeError::new("it is no op")) };
        let mut args = Vec::with_capacity(2);
        for (&arg, order) in old.iter().zip(&of.order) {
            let x = self.turned.operand(&mut self.r, arg, order, of.tokens, "tokens")?;
            let ty = tensor(&self.r.new, x)?;
            let scales = casting.scales(ty, ty.rank() - 1, &[]);
            let op = Quantize::new(ty, casting.to, &scales, casting.least);
            args.push(self.quantize(x, op, arg)?);
        }
        self.sums_of(f, value, Einsum { spec: of.spec.clone() }.into(), &args)
    }

    /// The gradient of experts' weights, as sums of 8-bit products over rows that begin where tiles of `rows` do.
    fn experts(&mut self, f: &Function, value: Value, rows: u32, casting: Casting) -> Result<(), TypeError> {
        let Def::Op(Op::GroupedOuter(op), old) = &f.values[value].def else {
            return Err(TypeError::new("it is no gradient of experts' weights"));
        };
        let (offsets, rows) = (self.r.get(old[2]), i64::from(rows));
        let starts = match self.starts.get(&(offsets, rows)) {
            Some(&known) => known,
            None => {
                let name = format!("{}_aligned", f.values[old[2]].name);
                let starts = self.r.op(&name, AlignOffsets { rows }, &[offsets], old[2])?;
                self.starts.insert((offsets, rows), starts);
                starts
            }
        };
        let mut args = Vec::with_capacity(3);
        for &arg in &old[..2] {
            let key = (self.r.get(arg), starts);
            args.push(match self.by_expert.get(&key) {
                Some(&known) => known,
                None => {
                    let name = format!("{}_{}", f.values[arg].name, casting.to);
                    let scales = casting.encoding.name().into();
                    let least = self.least(arg, Real::new(casting.least));
                    let op = QuantizeByExpert { to: casting.to, rows, scales, least };
                    let new = self.r.op(&name, op, &[key.0, offsets, starts], arg)?;
                    self.by_expert.insert(key, new);
                    new
                }
            });
        }
        args.push(starts);
        // What is summed are neighbours: rows are last.
        let inputs: Vec<Vec<Axis>> =
            op.spec.inputs.iter().map(|axes| axes.iter().rev().copied().collect()).collect();
        let spec = Spec::new(&[&inputs[0], &inputs[1]], &op.spec.out, |axis| op.spec.letter(axis));
        self.sums_of(f, value, GroupedOuter { spec }.into(), &args)
    }

    /// A gradient of weights whose sums are in `f32`, in place of `value`.
    fn sums_of(&mut self, f: &Function, value: Value, op: Op, args: &[Value]) -> Result<(), TypeError> {
        let dtype = f.tensor(value).map_or(DType::F32, |ty| ty.dtype);
        if dtype == DType::F32 {
            self.r.replace(value, op, args)?;
        } else {
            let sums = self.r.op(&format!("{}_sums", f.values[value].name), op, args, value)?;
            self.r.replace(value, Cast { to: dtype }, &[sums])?;
            self.sums.insert(value, sums);
        }
        self.changed = true;
        Ok(())
    }

    /// A gradient that counts as a narrower type and is cast to `f32`: the sums themselves, which were never rounded.
    fn single(&mut self, f: &Function, value: Value) -> bool {
        let Def::Op(Op::Cast(cast), args) = &f.values[value].def else { return false };
        let Some(&sums) = self.sums.get(&args[0]).filter(|_| cast.to == DType::F32) else { return false };
        if f.results.contains(&value) {
            let by = Real::new(1.0);
            return self.r.replace(value, Scale { by }, &[sums]).is_ok();
        }
        self.r.map.insert(value, sums);
        true
    }

    fn product(
        &mut self,
        f: &Function,
        value: Value,
        conversion: &Conversion,
        activations: Casting,
        weights: Casting,
    ) -> Result<(), TypeError> {
        let Def::Op(op, old) = &f.values[value].def else { return Err(TypeError::new("it is no op")) };
        let mut op = op.clone();
        let mut args: Vec<Value> = old.iter().map(|&arg| self.r.get(arg)).collect();
        let weight = conversion.weight;
        let param = conversion.param;
        if conversion.stored
            && let Err(error) = self.stored(f, old[weight], param)
        {
            let part = Part::of(f, value, weight, param).ok_or(error)?;
            let side = 1 - weight;
            let ty = tensor(f, old[side])?;
            let scales = activations.scales(ty, conversion.summed[side], &[]);
            let op = Quantize::new(ty, activations.to, &scales, activations.least);
            let x = self.quantize(args[side], op, old[side])?;
            part.replace(&mut self.r, &mut self.whole, value, x)?;
            self.changed = true;
            return Ok(());
        }
        for side in 0..2 {
            let ty = tensor(f, old[side])?;
            args[side] = match (side == weight, conversion.stored) {
                (true, true) => self.stored(f, old[side], param)?,
                (true, false) => {
                    let summed = conversion.summed[side];
                    let mut scales = weights.scales(ty, summed, &conversion.each);
                    let mut x = args[side];
                    if self.neighbours && summed + 1 < ty.rank() {
                        let order: Vec<usize> =
                            (0..ty.rank()).filter(|&axis| axis != summed).chain([summed]).collect();
                        op = with_order(&op, side, &order);
                        scales.blocks = order.iter().map(|&axis| scales.blocks[axis]).collect();
                        x = self.turned.operand(&mut self.r, old[side], &order, 1, "turned")?;
                    }
                    let quantize = Quantize::new(tensor(&self.r.new, x)?, weights.to, &scales, weights.least);
                    self.quantize(x, quantize, param)?
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
            self.r.replace(value, op, &args)?;
        } else {
            let name = format!("{}_sums", f.values[value].name);
            let sums = self.r.op(&name, op, &args, value)?;
            self.r.replace(value, Cast { to: dtype }, &[sums])?;
        }
        self.changed = true;
        Ok(())
    }

    /// The least magnitude that a scale of `source` is made of, where the recipe says `least`.
    fn least(&self, source: Value, least: Real) -> Real {
        if self.gradients.contains(&source) { least.min(Real::new(LEAST_OF_GRADIENTS)) } else { least }
    }

    fn quantize(&mut self, x: Value, op: Quantize, source: Value) -> Result<Value, TypeError> {
        let op = Quantize { least: self.least(source, op.least), ..op };
        if let Some(&known) = self.quantized.get(&(x, op.clone())) {
            return Ok(known);
        }
        let name = format!("{}_{}", self.r.old.values[source].name, op.to);
        let rows = self.rows_of(x, &op, source).and_then(|(moves, tokens, rest, per)| {
            let of_tokens = Quantize { per, ..op.clone() };
            let tokens = self.quantize(self.r.get(tokens), of_tokens, tokens).ok()?;
            let args: Vec<Value> = std::iter::once(tokens).chain(rest).collect();
            self.r.op(&name, moves, &args, source).ok()
        });
        let new = match rows {
            Some(rows) => rows,
            None => self.r.op(&name, op.clone(), &[x], source)?,
        };
        self.quantized.insert((x, op), new);
        Ok(new)
    }

    /// The op that makes `x` of rows of another value, that value, the op's other operands, and the blocks of its rows, if each
    /// row has scales of its own. Codes of the rows are then rows of the codes: so a token is quantized once for all of its
    /// experts, and for the shared one.
    fn rows_of(&self, x: Value, op: &Quantize, source: Value) -> Option<(Op, Value, Vec<Value>, Dims)> {
        let f = self.r.old;
        let Def::Op(moves @ (Op::Dispatch(_) | Op::Reshape(_)), args) = &f.values[source].def else {
            return None;
        };
        let (&tokens, rest) = args.split_first()?;
        let (of, ty) = (f.tensor(tokens)?, f.tensor(source)?);
        let (columns, rows) = op.per.0.split_last()?;
        let one = Dim::from(1);
        let same = self.r.get(source) == x && of.rank() > 1 && of.shape.last() == ty.shape.last();
        if !same || rows.is_empty() || rows.iter().any(|per| *per != one) {
            return None;
        }
        let per = (1..of.rank()).map(|_| one.clone()).chain([columns.clone()]).collect();
        let rest = rest.iter().map(|&arg| self.r.get(arg)).collect();
        Some((moves.clone(), tokens, rest, Dims(per)))
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
