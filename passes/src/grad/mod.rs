//! Reverse-mode differentiation: to a function that gives a loss, another that gives its gradients, too.
//!
//! [`differentiate`] adds to a module with `@loss` the function `@loss.grad`. It takes what `@loss` takes and, as the input
//! `%{result}.grad`, the gradient of the loss itself (1, or what losses are scaled by); it gives the results of `@loss`, then
//! `%{weight}.grad` for each weight. Every op's share is the op's own rule ([`eva_ir::op::OpDef::vjp`]), in ordinary ops: what
//! comes out is a module like any other, for all passes and backends.
//!
//! ```text
//! @loss       ──►  @loss.grad                                the whole of it
//! @layer      ──►  @layer.forward    parameters ↦ results, saved values
//!                  @layer.backward   parameters and saved values that it needs, gradients of results
//!                                    ↦ gradients of parameters
//! ```
//!
//! A function that is called becomes two, which all its calls share. What is saved between them is a cut through the graph
//! of what the backward pass needs: each value is saved, or computed again of others (`split.rs`).
//!
//! Attention is recognized first ([`crate::attend`]), so that its gradient is ops too, and its sums are kept. Which form of
//! attention over latents it is recognized in follows from what both directions take ([`forms`]).

mod active;
pub mod budget;
pub mod forms;
mod mixed;
mod reverse;
mod split;

use crate::attend;
use crate::cost::{CostOptions, representative};
use crate::form::Form;
use crate::rebuild;
use crate::rewrite::rules::{Exactness, Rule};
use active::Active;
use eva_ir::diag::Diag;
use eva_ir::entity::Entity;
use eva_ir::graph::{Def, Func, Function, Module, ParamKind, Value, ValueData};
use eva_ir::ops::scale::Scale;
use eva_ir::types::{DType, TensorType};
use reverse::Joint;
use std::collections::HashMap;

/// What differentiation may be told.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The weights whose gradients are wanted; every weight of floats that the loss depends on, if none are named.
    pub wrt: Option<Vec<String>>,
    /// What saving a value for the backward pass is weighed with, and computing it again.
    pub cost: CostOptions,
    /// What a byte that is kept from the forward to the backward pass counts as, in seconds; more saves memory, and costs
    /// time. 0 is for speed alone, [`LEAST_MEMORY`] for memory alone.
    pub seconds_per_byte: f64,
    /// What wide values may be kept as, if narrower than they are: `bf16`, or 8-bit floats with a scale for 128 neighbours.
    /// This changes gradients; all else does not.
    pub store: Option<DType>,
    /// Which form attention over latents is to have in both directions.
    pub form: Form,
    /// How far forms may move results.
    pub numerics: Exactness,
    /// Rules of the user's own, beside those that find forms.
    pub rules: Vec<Rule>,
}

/// A price of a byte beside which no computation counts.
pub const LEAST_MEMORY: f64 = 1e-6;

/// What was decided on the way.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// What called functions keep.
    pub splits: Vec<Split>,
    /// The forms of attention, for each function that has a choice.
    pub forms: Vec<forms::Choice>,
}

/// What a called function saves, and what its backward pass computes again.
#[derive(Clone, Debug, PartialEq)]
pub struct Split {
    /// The function.
    pub function: String,
    /// What each call keeps, besides its arguments.
    pub kept: Vec<Kept>,
    /// The ops with kernels of their own that are computed a second time.
    pub again: Vec<String>,
}

/// A value that is kept.
#[derive(Clone, Debug, PartialEq)]
pub struct Kept {
    /// Its name.
    pub name: String,
    /// What it is kept as.
    pub ty: TensorType,
}

/// A value that the backward pass has `by` another, made of what was kept of it.
struct Restored {
    value: Value,
    from: Value,
    by: Value,
}

/// A called function that has been differentiated.
struct Pair {
    forward: Func,
    backward: Func,
    /// Whether the forward function gives a tuple where the function itself gives a tensor.
    wrapped: bool,
    /// The parameters that the backward function takes, then the numbers of the saved values among the forward function's
    /// results, and the results whose gradients it takes.
    needed: Vec<usize>,
    saved: Vec<usize>,
    seeds: Vec<usize>,
    /// The parameters whose gradients it gives.
    gradients: Vec<usize>,
}

/// The suffix of the name of what is the gradient of something.
pub const GRADIENT: &str = ".grad";

/// The module with `@{name}.grad`, and what that calls.
///
/// The loss is the function's first result, a number `f32[]`.
pub fn differentiate(module: &Module, name: &str, options: &Options) -> Result<Module, Diag> {
    differentiate_and_report(module, name, options).map(|(module, _)| module)
}

/// The same, and what was decided.
pub fn differentiate_and_report(
    module: &Module,
    name: &str,
    options: &Options,
) -> Result<(Module, Report), Diag> {
    match options.form {
        // The first after the one as written absorbs all that there is.
        Form::Absorbed => differentiate_by(module, name, options, &|_| 1),
        _ => differentiate_by(module, name, options, &forms::cheapest),
    }
}

/// The same, with `choose` deciding between the joint graphs of a function: it gives the number of one of them.
pub fn differentiate_by(
    original: &Module,
    name: &str,
    options: &Options,
    choose: &dyn Fn(&[forms::Candidate]) -> usize,
) -> Result<(Module, Report), Diag> {
    // Recognized attention says nothing of lengths any more.
    let mut sizes = representative(original);
    sizes.extend(options.cost.sizes.clone());
    let cost = CostOptions { sizes, ..options.cost.clone() };
    let options = &Options { cost, ..options.clone() };
    let module = attend::with_sums(&attend::recognize(original)?)?;
    let root = module.func(name);
    let root = root.ok_or_else(|| Diag::new("eva::unknown", format!("there is no function @{name}")))?;
    let f = &module.funcs[root];
    check_loss(f)?;
    let wrt = wanted(f, options)?;
    let active = Active::new(&module, root, &wrt)?;

    let mut new = module.clone();
    let mut pairs: HashMap<Func, Pair> = HashMap::new();
    let mut report = Report::default();
    for func in module.funcs.keys().take(root.index() + 1) {
        let (params, seeds) = (active.params(func), active.seeds(func));
        if !params.iter().any(|&p| p) || seeds.is_empty() {
            continue;
        }
        let given = forms::Given {
            original,
            module: &module,
            active: &active,
            new: &new,
            pairs: &pairs,
            root,
            wrt: &wrt,
            options,
            choose,
        };
        let forms::Taken { joint, function, choice } = given.take(func)?;
        report.forms.extend(choice);
        if let Some(function) = function {
            new.funcs[func] = function;
        }
        if func == root {
            let function = whole(&module.funcs[root], joint, options)?;
            new.add(function);
        } else {
            let (pair, split) = split::split(&mut new, &module.funcs[func], joint, options)?;
            pairs.insert(func, pair);
            report.splits.push(split);
        }
    }
    let name = format!("{name}{GRADIENT}");
    if new.func(&name).is_none() {
        return Err(no_weights(f));
    }
    Ok((Module { verified: Default::default(), ..new }, report))
}

/// Refuses a function that has no loss.
fn check_loss(f: &Function) -> Result<(), Diag> {
    let loss = f.results.first().and_then(|&loss| f.tensor(loss));
    if !loss.is_some_and(|ty| ty.rank() == 0 && ty.dtype.is_float()) {
        let what = loss.map_or("nothing".into(), |ty| ty.to_string());
        let diag =
            Diag::new("eva::gradient", format!("the first result of @{} is {what}, not a loss", f.name));
        return Err(diag.help("a loss is one number: `f32[]`"));
    }
    Ok(())
}

/// For each parameter, whether its gradient is wanted.
fn wanted(f: &Function, options: &Options) -> Result<Vec<bool>, Diag> {
    let params: Vec<(Value, ParamKind)> = f.params().collect();
    let is_float = |value: Value| f.tensor(value).is_some_and(|ty| ty.dtype.is_float());
    let Some(names) = &options.wrt else {
        let is_weight = |&(value, kind): &(Value, ParamKind)| kind == ParamKind::Weight && is_float(value);
        return Ok(params.iter().map(is_weight).collect());
    };
    for name in names {
        let param = params.iter().find(|(value, _)| f.values[*value].name == *name);
        let message = match param {
            None => format!("@{} has no parameter `{name}`", f.name),
            Some(&(value, _)) if !is_float(value) => {
                format!("`{name}` of @{} is {}, which has no gradient", f.name, f.values[value].ty)
            }
            Some(_) => continue,
        };
        return Err(Diag::new("eva::gradient", message));
    }
    Ok(params.iter().map(|(value, _)| names.contains(&f.values[*value].name)).collect())
}

fn no_weights(f: &Function) -> Diag {
    Diag::new("eva::gradient", format!("the loss of @{} depends on no weight of floats", f.name))
        .help("gradients are of weights; weights stored in 8 bits have none")
}

/// The function with its gradients: of the joint graph, everything.
fn whole(f: &Function, mut joint: Joint, options: &Options) -> Result<Function, Diag> {
    if let Some(names) = &options.wrt {
        let reached =
            |name: &String| joint.gradients.iter().any(|(_, param, g)| g.is_some() && param == name);
        if let Some(name) = names.iter().find(|name| !reached(name)) {
            return Err(Diag::new(
                "eva::gradient",
                format!("the loss of @{} does not depend on `{name}`", f.name),
            ));
        }
    }
    let gradients: Vec<(String, Value)> =
        joint.gradients.iter().filter_map(|(_, name, gradient)| Some((name.clone(), (*gradient)?))).collect();
    if gradients.is_empty() {
        return Err(no_weights(f));
    }
    let mut results = joint.results.clone();
    for (name, gradient) in gradients {
        let value = distinct(&mut joint, gradient, &results);
        joint.grown.rename(value, &format!("{name}{GRADIENT}"));
        results.push(value);
    }
    let mut order: Vec<Value> = joint.params.clone();
    order.extend(&joint.seeds);
    Ok(assemble(&joint.grown.function, &format!("{}{GRADIENT}", f.name), &order, &[], &[], &results))
}

/// `value`, or a copy of it where it is a parameter or one of `results` already.
fn distinct(joint: &mut Joint, value: Value, results: &[Value]) -> Value {
    let data = &joint.grown.function.values[value];
    if !results.contains(&value) && !matches!(data.def, Def::Param(_)) {
        return value;
    }
    // Every copy is a value of its own, whatever is there already.
    let by = eva_ir::attr::Real::new(1.0);
    let data = ValueData { def: Def::Op(Scale { by }.into(), vec![value]), ..data.clone() };
    joint.grown.push(data)
}

/// The function of these parameters and results: of `graph` what they need. `inputs` are values that become inputs, of
/// which those that are `restored` are made.
fn assemble(
    graph: &Function,
    name: &str,
    params: &[Value],
    inputs: &[Value],
    restored: &[Restored],
    results: &[Value],
) -> Function {
    let mut new = Function::new(name);
    let mut map: HashMap<Value, Value> = HashMap::new();
    for &param in params {
        map.insert(param, new.values.push(graph.values[param].clone()));
    }
    for &input in inputs {
        let def = Def::Param(ParamKind::Input);
        map.insert(input, new.values.push(ValueData { def, ..graph.values[input].clone() }));
    }
    for Restored { value, from, by } in restored {
        let data = &graph.values[*by];
        let def = rebuild::with_args(&data.def, |_| map[from]);
        map.insert(*value, new.values.push(ValueData { def, ..data.clone() }));
    }
    for (value, data) in graph.values.iter() {
        let known = data.def.args().iter().all(|arg| map.contains_key(arg));
        if matches!(data.def, Def::Param(_)) || map.contains_key(&value) || !known {
            continue;
        }
        let def = rebuild::with_args(&data.def, |arg| map[&arg]);
        map.insert(value, new.values.push(ValueData { def, ..data.clone() }));
    }
    new.results = results.iter().map(|value| map[value]).collect();
    rebuild::without_dead(&new)
}
