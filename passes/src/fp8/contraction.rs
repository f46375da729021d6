//! What a recipe makes of each product, and why.

use super::{Expansion, Recipe, gradient};
use eva_ir::attr::{Axis, Spec};
use eva_ir::dim::Dim;
use eva_ir::graph::{Def, Function, Module, ParamKind, Value};
use eva_ir::ops::{Op, einsum::Einsum};

/// What becomes of a product.
#[derive(Clone, Debug, PartialEq)]
pub enum Fate {
    /// Both operands are 8 bits.
    Eight,
    /// It can be given operands of 8 bits.
    Convert(Conversion),
    /// It is a weight's gradient, and can be given operands of 8 bits.
    Gradient(OfTokens),
    /// It is the gradient of experts' weights, and can be given operands of 8 bits, so many rows of which share a scale.
    Experts(u32),
    /// It stays as it is, and this is why.
    High(String),
    /// The recipe wants 8 bits, and this is why that cannot be.
    Fallback(String),
}

/// How a product gets operands of 8 bits.
#[derive(Clone, Debug, PartialEq)]
pub struct Conversion {
    /// Which operand is made of weights.
    pub weight: usize,
    /// For each operand, its axis that is summed.
    pub summed: [usize; 2],
    /// Axes of the weight whose indices are tensors of their own: those of experts.
    pub each: Vec<usize>,
    /// The weight parameter.
    pub param: Value,
    /// Whether it is stored in 8 bits.
    pub stored: bool,
}

/// How the gradient of a weight, a sum over tokens of two activations, gets operands of 8 bits: each is turned, so that tokens
/// are its last axis, and quantized along them.
#[derive(Clone, Debug, PartialEq)]
pub struct OfTokens {
    /// For each operand, its axes in the order that they get: those that stay, then tokens.
    pub order: [Vec<usize>; 2],
    /// How many of them are tokens.
    pub tokens: usize,
    /// The product of what comes of them.
    pub spec: Spec,
}

/// A weight parameter that a value is another view of.
struct Of {
    param: Value,
    /// Whether the parameter is 8 bits.
    eight: bool,
}

/// The weight that `value` is another view of, or a cast.
fn weight_of(f: &Function, value: Value) -> Option<Of> {
    let mut at = value;
    loop {
        match &f.values[at].def {
            Def::Param(ParamKind::Weight) => {
                let eight = f.tensor(at).is_some_and(|ty| ty.scales.is_some());
                return Some(Of { param: at, eight });
            }
            Def::Op(
                Op::Reshape(_)
                | Op::Slice(_)
                | Op::Cast(_)
                | Op::Dequantize(_)
                | Op::Quantize(_)
                | Op::QuantizeBy(_),
                args,
            ) => at = args[0],
            Def::Op(Op::Einsum(einsum), args)
                if args.len() == 1 && einsum.spec.out.len() == einsum.spec.inputs[0].len() =>
            {
                at = args[0];
            }
            _ => return None,
        }
    }
}

/// The name of the weight that a product multiplies with, or of the gradient of one that it is.
pub fn weight_name(module: &Module, f: &Function, value: Value) -> Option<String> {
    let args = match &f.values[value].def {
        Def::Op(Op::GroupedOuter(_), _) => &[],
        _ => product(f, value)?.1,
    };
    match args.iter().find_map(|&arg| weight_of(f, arg)) {
        Some(of) => Some(f.values[of.param].name.clone()),
        None => Some(gradient::of_weight(module, f, value)? + crate::grad::GRADIENT),
    }
}

/// The weight parameter that `value` is another view of, or a cast.
pub fn weight(f: &Function, value: Value) -> Option<Value> {
    weight_of(f, value).map(|of| of.param)
}

/// Whether `name` is that of the weight that makes keys and values of latents.
fn is_expansion(name: &str) -> bool {
    name.contains("kv_b_proj")
}

/// Whether `value` depends on weights and constants alone.
pub fn of_weights(f: &Function, value: Value) -> bool {
    let (mut stack, mut seen) = (vec![value], std::collections::HashSet::new());
    while let Some(at) = stack.pop() {
        if !seen.insert(at) {
            continue;
        }
        match &f.values[at].def {
            Def::Param(ParamKind::Weight) => {}
            Def::Param(_) | Def::Call(..) => return false,
            Def::Op(_, args) => stack.extend(args),
        }
    }
    true
}

/// The spec and the two operands of a product, and whether it is of experts.
pub fn product(f: &Function, value: Value) -> Option<(&Spec, &[Value], bool)> {
    match &f.values[value].def {
        Def::Op(Op::Einsum(Einsum { spec }), args) if args.len() == 2 && spec.out.len() < spec.axes() => {
            Some((spec, args, false))
        }
        Def::Op(Op::Grouped(grouped), args) => Some((&grouped.spec, &args[..2], true)),
        _ => None,
    }
}

/// What `recipe` makes of the product `value` once forms are chosen (`chosen`), or before. None if it is no product.
/// `multiple` is what sums must be a multiple of for the target's 8-bit products.
pub fn fate(
    module: &Module,
    f: &Function,
    value: Value,
    recipe: &Recipe,
    chosen: bool,
    multiple: i64,
) -> Option<Fate> {
    match &f.values[value].def {
        Def::Op(Op::Attend(_) | Op::AttendLse(_) | Op::AttendGradKeys(_) | Op::AttendGradQueries(_), _) => {
            return Some(Fate::High("attention's own products are kept".into()));
        }
        Def::Op(Op::GroupedOuter(_), args) => {
            if args[..2].iter().all(|&arg| f.tensor(arg).is_some_and(|ty| ty.scales.is_some())) {
                return Some(Fate::Eight);
            }
            let name = gradient::of_weight(module, f, value).unwrap_or_default();
            let kept = kept(recipe, &name, false, chosen).map(Fate::High);
            let tiles = recipe.activations.map(|casting| casting.tiles);
            return Some(kept.unwrap_or_else(|| gradient::experts(module, f, args, tiles, multiple)));
        }
        _ => {}
    }
    let (spec, args, grouped) = product(f, value)?;
    if args.iter().all(|&arg| f.tensor(arg).is_some_and(|ty| ty.scales.is_some())) {
        return Some(Fate::Eight);
    }
    let weights = [weight_of(f, args[0]), weight_of(f, args[1])];
    if args.iter().all(|&arg| of_weights(f, arg)) {
        return Some(Fate::High("it is of weights alone, and computed when they are loaded".into()));
    }
    let (weight, of) = match weights {
        [Some(of), None] => (0, of),
        [None, Some(of)] => (1, of),
        _ => {
            let Some(name) = gradient::of_weight(module, f, value) else {
                return Some(Fate::High("attention's own products are kept".into()));
            };
            let kept = kept(recipe, &name, false, chosen).map(Fate::High);
            return Some(kept.unwrap_or_else(|| gradient::conversion(module, f, spec, args, multiple)));
        }
    };
    let name = f.values[of.param].name.as_str();
    if let Some(why) = kept(recipe, name, of.eight, chosen) {
        return Some(Fate::High(why));
    }
    Some(conversion(module, f, spec, args, weight, of, grouped, multiple))
}

/// Why products with the weight `name`, and its gradient, stay as they are; none if they do not.
fn kept(recipe: &Recipe, name: &str, eight: bool, chosen: bool) -> Option<String> {
    if !eight && let Some(reason) = recipe.keeps(name) {
        return Some(reason.into());
    }
    if recipe.activations.is_none() {
        return Some("activations stay as they are".into());
    }
    let wanted = match recipe.expansion {
        Expansion::Quantized => true,
        Expansion::AbsorbedQuantized => chosen,
        Expansion::Free => false,
    };
    let why = "its other operand stays as it is, so that attention is free to absorb it";
    (is_expansion(name) && !wanted).then(|| why.into())
}

#[expect(clippy::too_many_arguments, reason = "all that is known of one product")]
fn conversion(
    module: &Module,
    f: &Function,
    spec: &Spec,
    args: &[Value],
    weight: usize,
    of: Of,
    grouped: bool,
    multiple: i64,
) -> Fate {
    let expert = if grouped { spec.inputs[1].first().copied() } else { None };
    let is_summed = |axis: &Axis| !spec.out.contains(axis) && Some(*axis) != expert;
    let summed: Vec<Axis> = (0..spec.axes() as Axis).filter(is_summed).collect();
    let [axis] = summed[..] else {
        let letters: Vec<String> = summed.iter().map(|&axis| format!("`{}`", spec.letter(axis))).collect();
        return Fate::Fallback(format!("it sums over {} at once", letters.join(" and ")));
    };
    let place = |side: usize| spec.inputs[side].iter().position(|&a| a == axis);
    let (Some(left), Some(right)) = (place(0), place(1)) else {
        return Fate::Fallback(format!("it sums over `{}` of one operand", spec.letter(axis)));
    };
    let dim = f.tensor(args[0]).map(|ty| ty.shape[left].clone()).unwrap_or_else(|| Dim::from(0));
    match module.constant(&dim) {
        Some(n) if n % multiple != 0 => {
            let message = format!(
                "the target multiplies 8-bit floats where sums are multiples of {multiple}, and `{dim}` is {n}"
            );
            return Fate::Fallback(message);
        }
        None => return Fate::Fallback(format!("the sum is over `{dim}`, which has no fixed value")),
        _ => {}
    }
    let each = if grouped { vec![0] } else { Vec::new() };
    let stored = of.eight;
    Fate::Convert(Conversion { weight, summed: [left, right], each, param: of.param, stored })
}
