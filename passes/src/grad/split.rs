//! What a called function saves between its forward and its backward pass.
//!
//! Of the joint graph, what does not depend on gradients of results can be computed in either pass. Each such value that the
//! backward pass needs is *saved* (a result of the forward function and an input of the backward one), or *computed again*
//! of others, which are then needed in turn. With what a value costs to save (its bytes, moved and kept) and to compute
//! again, the cheapest choice is a closure of least cost, which is a minimum cut (Picard 1976, "Maximal closure of a graph"):
//! a value that is computed again earns what saving it would cost, less its computation, and needs its operands.

use super::reverse::{Joint, internal};
use super::{GRADIENT, Kept, Options, Pair, Restored, Split, assemble, distinct};
use crate::cost::Cost;
use eva_ir::diag::Diag;
use eva_ir::entity::Entity;
use eva_ir::estimate::Estimate;
use eva_ir::graph::{Def, Function, Module, ParamKind, Value, ValueData};
use eva_ir::lower::Lowering;
use eva_ir::ops::{Op, cast::Cast, dequantize::Dequantize, quantize::Quantize};
use eva_ir::scales::{Block, Scales};
use eva_ir::types::TensorType;
use eva_ir::vjp::gradient_type;
use petgraph::algo::ford_fulkerson;
use petgraph::graph::{DiGraph, NodeIndex};
use petgraph::visit::EdgeRef;
use std::collections::{HashMap, HashSet, VecDeque};

/// Adds the two functions that `f` becomes to `new`.
pub(super) fn split(
    new: &mut Module,
    f: &Function,
    mut joint: Joint,
    options: &Options,
) -> Result<(Pair, Split), Diag> {
    // Gradients that did not come about are zeros.
    let mut gradients: Vec<Value> = Vec::new();
    for (i, param, gradient) in joint.gradients.clone() {
        let (name, at) = (format!("{param}{GRADIENT}"), joint.params[i]);
        let value = match gradient {
            Some(gradient) => gradient,
            None => {
                let ty = gradient_type(joint.grown.function.tensor(at).expect("parameters are tensors"));
                joint.grown.full(&name, 0.0, &ty, at).map_err(internal)?
            }
        };
        let value = distinct(&mut joint, value, &gradients);
        joint.grown.rename(value, &name);
        gradients.push(value);
    }
    let graph = &joint.grown.function;
    let after = after_seeds(graph, &joint.seeds);
    let needed = needed(graph, &after, &gradients);
    let Cut { chosen, .. } = choose(new, graph, &needed, options);

    let is_param = |value: &Value| matches!(graph.values[*value].def, Def::Param(_));
    let (params, saved): (Vec<Value>, Vec<Value>) = chosen.iter().copied().partition(is_param);
    let needed: Vec<usize> = (0..joint.params.len()).filter(|&i| params.contains(&joint.params[i])).collect();
    let mut report = Split { function: f.name.clone(), kept: Vec::new(), again: Vec::new() };

    // What is kept narrower than it is has a value of its own, and another that is made of it again.
    let (mut kept, mut restored) = (Vec::new(), Vec::new());
    for &value in &saved {
        let name = joint.grown.function.values[value].name.clone();
        let mut stored = value;
        if let Some([narrow, wide]) = narrowing(new, &joint.grown.function, value, options) {
            stored = joint.grown.op(&format!("{name}.kept"), narrow, &[value], value).map_err(internal)?;
            let wide = joint.grown.op(&format!("{name}.again"), wide, &[stored], value).map_err(internal)?;
            restored.push(Restored { value, from: stored, by: wide });
        }
        let ty = joint.grown.function.tensor(stored).expect("tensors are kept").clone();
        report.kept.push(Kept { name, ty });
        kept.push(stored);
    }

    let mut results = joint.results.clone();
    let saved_at = |&value: &Value| {
        results.iter().position(|&result| result == value).unwrap_or_else(|| {
            results.push(value);
            results.len() - 1
        })
    };
    let saved_at: Vec<usize> = kept.iter().map(saved_at).collect();
    let wrapped = f.results.len() == 1 && results.len() > 1;
    let graph = &joint.grown.function;
    let forward = assemble(graph, &format!("{}.forward", f.name), &joint.params, &[], &[], &results);

    let params: Vec<Value> = needed.iter().map(|&i| joint.params[i]).collect();
    let inputs: Vec<Value> = kept.iter().chain(&joint.seeds).copied().collect();
    let name = format!("{}.backward", f.name);
    let backward = assemble(graph, &name, &params, &inputs, &restored, &gradients);
    let of_backward = |name: &String| backward.values.iter().any(|(_, data)| data.name == *name);
    let before = graph.values.iter().filter(|(value, _)| after.get(value.index()) == Some(&false));
    let names = before.filter(|(value, data)| {
        matches!(&data.def, Def::Op(op, _) if op.lowering() == Lowering::Kernel) && !kept.contains(value)
    });
    report.again = names.map(|(_, data)| data.name.clone()).filter(of_backward).collect();
    let gradients = joint.gradients.iter().map(|(i, _, _)| *i).collect();
    let (forward, backward) = (new.add(forward), new.add(backward));
    let pair = Pair { forward, backward, wrapped, needed, saved: saved_at, seeds: joint.seeded, gradients };
    Ok((pair, report))
}

/// What there is between the two directions of a function.
#[derive(Default)]
pub(super) struct Between {
    /// What keeping values takes, and computing others again.
    pub estimate: Estimate,
    /// The bytes that are kept.
    pub bytes: f64,
}

/// What there would be between them if `joint` were split.
pub(super) fn between(new: &Module, joint: &Joint, gradients: &[Value], options: &Options) -> Between {
    let graph = &joint.grown.function;
    let needed = needed(graph, &after_seeds(graph, &joint.seeds), gradients);
    let Cut { chosen, again } = choose(new, graph, &needed, options);
    let cost = Cost::new(new, graph, &options.cost);
    let mut between = Between { estimate: cost.estimate_of(graph, &again), bytes: 0.0 };
    for value in chosen {
        let def = &graph.values[value].def;
        let (Some(ty), Some(times)) = (stored(new, graph, value, options), moves(def)) else { continue };
        between.estimate.add(cost.estimate_of_moving(&ty, times, options.seconds_per_byte));
        let is_param = matches!(def, Def::Param(_));
        between.bytes += if is_param { 0.0 } else { cost.stored_bytes(&ty) };
    }
    between
}

/// How a value is kept narrower than it is, if it may be: the op that narrows it, and the one that undoes that.
///
/// What attention's softmax and routers are computed again of stays as it is, and so does what has no long rows.
fn narrowing(module: &Module, graph: &Function, value: Value, options: &Options) -> Option<[Op; 2]> {
    let (to, ty) = (options.store?, graph.tensor(value)?);
    let long = ty.shape.last().and_then(|dim| module.constant(dim)).is_some_and(|n| n >= SHORT);
    let wide = ty.dtype.is_float() && ty.dtype.bytes() > to.bytes() && ty.rank() > 1 && long;
    let exact = |(_, data): (Value, &ValueData)| matches!(&data.def, Def::Op(Op::RouteGrad(_) | Op::CrossEntropyGrad(_), args) if args.contains(&value));
    if !wide || graph.values.iter().any(exact) {
        return None;
    }
    if !to.is_f8() {
        return Some([Cast { to }.into(), Cast { to: ty.dtype }.into()]);
    }
    let last = ty.rank() - 1;
    let blocks = (0..=last).map(|axis| if axis == last { Block::Of(BLOCK) } else { Block::Each });
    Some([Quantize::new(ty, to, &Scales::new(blocks), LEAST).into(), Dequantize { to: ty.dtype }.into()])
}

/// Rows with fewer elements are kept as they are.
const SHORT: i64 = 64;

/// So many elements of a row share a scale, and the least amax: as DeepSeek-V3's activations (arXiv:2412.19437, section
/// 3.3.2).
const BLOCK: u32 = 128;
const LEAST: f64 = 1e-4;

/// Which values depend on gradients of results.
fn after_seeds(graph: &Function, seeds: &[Value]) -> Vec<bool> {
    let mut after = vec![false; graph.values.len()];
    for (value, data) in graph.values.iter() {
        after[value.index()] = seeds.contains(&value) || data.def.args().iter().any(|arg| after[arg.index()]);
    }
    after
}

/// The values, none of them after the seeds, that the backward pass begins with.
fn needed(graph: &Function, after: &[bool], gradients: &[Value]) -> Vec<Value> {
    let mut live: HashSet<Value> = gradients.iter().copied().collect();
    let mut needed: Vec<Value> = gradients.iter().copied().filter(|g| !after[g.index()]).collect();
    for (value, data) in graph.values.iter().rev() {
        if after[value.index()] && live.contains(&value) {
            live.extend(data.def.args());
            needed.extend(data.def.args().iter().filter(|arg| !after[arg.index()]));
        }
    }
    needed.sort();
    needed.dedup();
    needed
}

/// What a value costs, in picoseconds: to save, and to compute again; `None` for what cannot be.
struct Price {
    save: Option<u64>,
    again: Option<u64>,
}

/// More than all prices together.
const NEVER: u64 = 1 << 60;

/// What the backward pass is given, parameters among it, and what it computes again of that.
struct Cut {
    chosen: Vec<Value>,
    again: Vec<Value>,
}

/// The cheapest choice of what the backward pass is given, so that it can compute `needed`.
fn choose(module: &Module, graph: &Function, needed: &[Value], options: &Options) -> Cut {
    let cost = Cost::new(module, graph, &options.cost);
    // Whatever may take part: the ancestors of what is needed.
    let mut part: HashSet<Value> = needed.iter().copied().collect();
    for (value, data) in graph.values.iter().rev() {
        if part.contains(&value) {
            part.extend(data.def.args());
        }
    }
    let mut values: Vec<Value> = part.into_iter().collect();
    values.sort();
    let prices: HashMap<Value, Price> =
        values.iter().map(|&v| (v, price(module, graph, v, &cost, options))).collect();

    // On the source's side are values that are needed in the backward pass, and of those the ones computed again.
    let mut cut: DiGraph<(), u64> = DiGraph::new();
    let (source, sink) = (cut.add_node(()), cut.add_node(()));
    let is_needed: HashMap<Value, NodeIndex> = values.iter().map(|&v| (v, cut.add_node(()))).collect();
    let mut again: HashMap<Value, NodeIndex> = HashMap::new();
    for &value in &values {
        let Price { save, again: price } = prices[&value];
        cut.add_edge(is_needed[&value], sink, save.unwrap_or(0));
        let Some(price) = price else {
            if save.is_none() {
                cut.add_edge(is_needed[&value], sink, NEVER);
            }
            continue;
        };
        let node = cut.add_node(());
        again.insert(value, node);
        cut.add_edge(node, is_needed[&value], NEVER);
        graph.values[value].def.args().iter().for_each(|arg| {
            cut.add_edge(node, is_needed[arg], NEVER);
        });
        match save {
            // Computed again it need not be saved.
            Some(save) if save >= price => cut.add_edge(source, node, save - price),
            Some(save) => cut.add_edge(node, sink, price - save),
            None => {
                cut.add_edge(is_needed[&value], node, NEVER);
                cut.add_edge(node, sink, price)
            }
        };
    }
    needed.iter().for_each(|value| {
        cut.add_edge(source, is_needed[value], NEVER);
    });
    let (_, flow) = ford_fulkerson(&cut, source, sink);

    // What can still be reached from the source is on its side.
    let mut reached = HashSet::from([source]);
    let mut queue = VecDeque::from([source]);
    while let Some(node) = queue.pop_front() {
        let forwards = cut.edges(node).filter(|e| flow[e.id().index()] < *e.weight()).map(|e| e.target());
        let back = cut.edges_directed(node, petgraph::Incoming);
        let back = back.filter(|e| flow[e.id().index()] > 0).map(|e| e.source());
        for next in forwards.chain(back) {
            if reached.insert(next) {
                queue.push_back(next);
            }
        }
    }
    let is_on = |node: Option<&NodeIndex>| node.is_some_and(|node| reached.contains(node));
    values.retain(|v| is_on(is_needed.get(v)));
    let (again, chosen) = values.into_iter().partition(|v| is_on(again.get(v)));
    Cut { chosen, again }
}

fn price(module: &Module, graph: &Function, value: Value, cost: &Cost, options: &Options) -> Price {
    let data = &graph.values[value];
    let picoseconds = |seconds: f64| (seconds * 1e12).min(1e15) as u64;
    if data.ty.tensor().is_none() {
        // A tuple is never saved; its parts are. That of a call is not computed again.
        let again = match &data.def {
            Def::Op(op, args) => types(graph, args).map(|types| picoseconds(cost.of(op, &types, &data.ty))),
            _ => None,
        };
        return Price { save: None, again };
    }
    let bytes = stored(module, graph, value, options).map_or(0.0, |ty| cost.stored_bytes(&ty));
    let times = moves(&data.def).unwrap_or(0.0);
    let saved = picoseconds(bytes * options.seconds_per_byte + times * cost.seconds_to_move(bytes));
    match &data.def {
        Def::Param(ParamKind::Input) => Price { save: Some(saved), again: None },
        Def::Param(_) => Price { save: Some(0), again: None },
        Def::Call(..) => Price { save: Some(saved.max(1)), again: None },
        Def::Op(op, args) => {
            let again = types(graph, args).map_or(0.0, |types| cost.of(op, &types, &data.ty));
            let again = if op.lowering() == Lowering::Alias { 0.0 } else { again };
            Price { save: Some(saved.max(1)), again: Some(picoseconds(again)) }
        }
    }
}

/// What a tensor is where it is kept.
fn stored(module: &Module, graph: &Function, value: Value, options: &Options) -> Option<TensorType> {
    let ty = graph.tensor(value)?;
    let dtype = narrowing(module, graph, value, options).and(options.store).unwrap_or(ty.dtype);
    Some(TensorType::new(dtype, ty.shape.iter().cloned()))
}

/// How often saving a value moves it; `None` for what is there anyway.
fn moves(def: &Def) -> Option<f64> {
    match def {
        Def::Param(ParamKind::Input) => Some(0.0),
        Def::Param(_) => None,
        // Being read again takes time, and so does being written, if only to be saved.
        Def::Op(op, _) if op.lowering() != Lowering::Kernel => Some(2.0),
        Def::Op(..) | Def::Call(..) => Some(1.0),
    }
}

fn types<'f>(graph: &'f Function, args: &[Value]) -> Option<Vec<&'f eva_ir::types::TensorType>> {
    args.iter().map(|&arg| graph.tensor(arg)).collect()
}
