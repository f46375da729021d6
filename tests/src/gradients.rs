//! Functions with losses of their own, and what small steps say of their gradients.

use crate::Random;
use eva_ir::attr::Spec;
use eva_ir::eval::{Array, Sizes, eval_values};
use eva_ir::graph::{Def, Func, Function, Module, ParamKind, Value};
use eva_ir::ops::{Op, add::Add, cast::Cast, einsum::Einsum};
use eva_ir::types::{DType, TensorType};
use eva_passes::rebuild::with_args;
use std::collections::HashMap;

/// The module with a function `@objective`, the sum of all float results of `func` times random inputs: its float parameters are
/// weights, but for tables of rotations, which have no gradient. `None` for a function with states or without float results.
pub fn with_loss(module: &Module, func: Func) -> Option<Module> {
    let f = &module.funcs[func];
    let is_table = |value: Value| {
        let rotates =
            |def: &Def| matches!(def, Def::Op(Op::Rope(_) | Op::RopeTranspose(_), args) if args[1] == value);
        f.values.iter().any(|(_, data)| rotates(&data.def))
    };
    let mut loss = Function::new("objective");
    let mut map: HashMap<Value, Value> = HashMap::new();
    for (value, kind) in f.params() {
        let ty = f.tensor(value)?;
        let kind = match kind {
            ParamKind::State => return None,
            _ if is_table(value) => ParamKind::Input,
            _ if ty.dtype.is_float() || ty.dtype.is_f8() => ParamKind::Weight,
            _ => ParamKind::Input,
        };
        map.insert(value, loss.param(kind, &f.values[value].name, ty.clone()));
    }
    let floats: Vec<Value> =
        f.results.iter().copied().filter(|&v| f.tensor(v).is_some_and(|ty| ty.dtype.is_float())).collect();
    let weigh = |(i, &value): (usize, &Value)| {
        let ty = TensorType::new(DType::F32, f.tensor(value)?.shape.iter().cloned());
        Some(loss.param(ParamKind::Input, &format!("by.{i}"), ty))
    };
    let by: Vec<Value> = floats.iter().enumerate().map(weigh).collect::<Option<_>>()?;
    for (value, data) in f.values.iter() {
        if !matches!(data.def, Def::Param(_)) {
            let def = with_args(&data.def, |arg| map[&arg]);
            let copy = eva_ir::graph::ValueData { def, ..data.clone() };
            map.insert(value, loss.values.push(copy));
        }
    }
    let mut total = None;
    for (i, (value, by)) in floats.iter().zip(by).enumerate() {
        let mut result = map[value];
        if f.tensor(*value)?.dtype != DType::F32 {
            result = loss.op(&format!("wide.{i}"), Cast { to: DType::F32 }, &[result]).ok()?;
        }
        let axes: Vec<usize> = (0..f.tensor(*value)?.rank()).collect();
        let spec = Spec::new(&[&axes, &axes], &[], |axis| (b'a' + axis as u8) as char);
        let part = loss.op(&format!("part.{i}"), Einsum { spec }, &[result, by]).ok()?;
        total = Some(match total {
            None => part,
            Some(sum) => loss.op(&format!("sum.{i}"), Add {}, &[sum, part]).ok()?,
        });
    }
    loss.results = vec![total?];
    let mut module = module.clone();
    module.add(loss);
    Some(module)
}

/// Whether anything is rounded on the way: then small steps say nothing, or little.
fn rounding(module: &Module) -> Option<DType> {
    let ops = module.funcs.iter().flat_map(|(_, f)| f.values.iter());
    let rounds = ops.filter_map(|(_, data)| match &data.def {
        Def::Op(Op::Cast(cast), _) if cast.to.is_float() => Some(cast.to),
        Def::Op(Op::Quantize(_) | Op::Dequantize(_), _) => Some(DType::Bf16),
        _ => None,
    });
    rounds.min_by_key(|dtype| dtype.bytes())
}

/// Checks `@objective.grad` of `module` against differences of `@objective`, parameter by parameter, each along a random direction.
/// The arguments are those of `@objective`.
pub fn check_differences(module: &Module, sizes: &Sizes, args: &[Array], seed: u64) {
    let [loss, grad] = ["objective", "objective.grad"].map(|name| module.func(name).expect("it is there"));
    let (f, g) = (&module.funcs[loss], &module.funcs[grad]);
    let (step, limit) = match rounding(module) {
        None => (1e-5, 2e-6),
        Some(DType::F32) => (2e-3, 2e-3),
        Some(_) => return,
    };
    let value_of = |args: &[Array]| eval_values(module, loss, sizes, args)[&f.results[0]][0].data[0];
    let given: Vec<Array> = args.iter().cloned().chain([Array::new(&[], vec![1.0])]).collect();
    let values = eval_values(module, grad, sizes, &given);
    let gradient = |name: &str| {
        let name = format!("{name}.grad");
        g.results.iter().find(|&&r| g.values[r].name == name).map(|r| values[r][0].clone())
    };
    let mut random = Random(seed);
    for (i, (param, kind)) in f.params().enumerate() {
        let name = &f.values[param].name;
        if kind != ParamKind::Weight || !f.tensor(param).is_some_and(|ty| ty.dtype.is_float()) {
            assert!(gradient(name).is_none(), "`{name}` has a gradient");
            continue;
        }
        let direction: Vec<f64> = args[i].data.iter().map(|_| random.number()).collect();
        let at = |step: f64| {
            let mut args = args.to_vec();
            args[i].data.iter_mut().zip(&direction).for_each(|(x, d)| *x += step * d);
            value_of(&args)
        };
        let by = |step: f64| (at(step) - at(-step)) / (2.0 * step);
        let want = by(step);
        let have = gradient(name);
        let have: f64 = have.map_or(0.0, |g| g.data.iter().zip(&direction).map(|(g, d)| g * d).sum());
        let scale = 1.0f64.max(want.abs()).max(have.abs());
        // Where a shorter step says something else, another element became the largest on the way.
        if (want - by(step / 4.0)).abs() > limit * scale {
            continue;
        }
        let text = eva_ir::text::print(module);
        assert!((have - want).abs() <= limit * scale, "`{name}`: {have} along it, {want} by steps\n{text}");
    }
}
