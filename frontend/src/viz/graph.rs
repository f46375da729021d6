//! Bodies of functions as graphs: nodes, what changed, and where to draw them.

use super::source::{Place, Sources};
use eva_ir::attr::Attr;
use eva_ir::dim::Sym;
use eva_ir::entity::Entity;
use eva_ir::estimate::least;
use eva_ir::graph::{Def, Function, Module, ParamKind, ValueData};
use eva_ir::ops::Op;
use eva_passes::cost::{Cost, CostOptions};
use petgraph::Direction;
use petgraph::graph::{DiGraph, NodeIndex};
use serde::Serialize;
use std::collections::HashSet;
use std::fmt::Write;

/// A body of a function.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Graph {
    /// The function's name.
    pub function: String,
    /// The body's, if it is not the function's own.
    pub body: Option<String>,
    /// What it is reckoned to take, where there are several bodies: as extents decide, and in seconds for those taken.
    pub estimate: Option<(String, Option<f64>)>,
    /// Whether it is the body that runs for those extents.
    pub runs: bool,
    /// The function that it prepares weights for, if it does.
    pub prepares: Option<String>,
    /// The values.
    pub nodes: Vec<Node>,
    /// The numbers of the nodes that are returned.
    pub results: Vec<usize>,
    /// The names of the values that the stage before has and this has not.
    pub removed: Vec<String>,
}

/// A value.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Where it comes from.
    pub kind: Kind,
    /// The op with its attributes, or the call.
    pub op: String,
    /// Its type.
    pub ty: String,
    /// The nodes that it is computed from.
    pub args: Vec<usize>,
    /// The function called, if one is.
    pub call: Option<String>,
    /// The line that it comes from.
    pub at: Option<Place>,
    /// Whether it is a weight, or another reading of one: a view of it, or a cast.
    pub reads_weight: bool,
    /// Whether the stage before has no such value.
    pub changed: bool,
    /// The row to draw it in: below all that it is computed from.
    pub layer: usize,
    /// Its place in the row.
    pub order: usize,
    /// The seconds that it is reckoned to take in a call, for the extents taken; nothing for parameters, calls, and what
    /// depends on weights alone.
    pub seconds: Option<f64>,
    /// The kernels that compute it, in the last stage.
    pub kernels: Vec<usize>,
}

/// Where a value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A parameter given on every call.
    Input,
    /// A parameter given when the function is loaded.
    Weight,
    /// A parameter kept between calls.
    State,
    /// An op.
    Op,
    /// A call.
    Call,
}

/// A body's graph, or the number of the one that it is equal to.
pub(super) enum Made {
    New(Graph),
    Same(usize),
}

/// The bodies of `f`; `before` are the numbers of the stage before among `graphs`.
pub(super) fn of_function(
    module: &Module,
    f: &Function,
    costs: &CostOptions,
    sources: &mut Sources,
    before: &[usize],
    graphs: &[Graph],
) -> Vec<Made> {
    let mut all = Vec::new();
    let value = |sym: &Sym| costs.sizes.get(sym).copied();
    let runs = least(f.bodies().map(|(_, estimate)| estimate), &value);
    for (i, (body, estimate)) in f.bodies().enumerate() {
        let estimate = (!f.alternatives.is_empty()).then(|| (estimate.to_string(), estimate.eval(&value)));
        let name = (i > 0).then(|| body.name.clone());
        let prepares = f.prepares.and_then(|func| module.funcs.get(func)).map(|f| f.name.clone());
        let mut nodes: Vec<Node> =
            body.values.iter().map(|(_, data)| node(module, body, data, sources)).collect();
        for (value, data) in body.values.iter() {
            if let Def::Op(Op::Reshape(_) | Op::Slice(_) | Op::Cast(_), args) = &data.def {
                nodes[value.index()].reads_weight = args.iter().all(|arg| nodes[arg.index()].reads_weight);
            }
        }
        reckon(module, body, costs, &mut nodes);
        let results = body.results.iter().map(|value| value.index()).collect();
        let mut graph = Graph {
            function: f.name.clone(),
            body: name,
            estimate,
            runs: i == runs,
            prepares,
            nodes,
            results,
            removed: Vec::new(),
        };
        place(&mut graph.nodes);
        let same = |other: &&usize| {
            let other = &graphs[**other];
            other.function == graph.function && other.body == graph.body
        };
        // A new body is beside the function's own.
        let own = |other: &&usize| graphs[**other].function == graph.function;
        let old = before.iter().find(same).or_else(|| before.iter().find(own));
        if let Some(&old) = old {
            let other = &graphs[old];
            let decided =
                (&graph.body, &graph.estimate, graph.runs) == (&other.body, &other.estimate, other.runs);
            if decided && bare(&graph) == bare(other) {
                all.push(Made::Same(old));
                continue;
            }
            compare(&mut graph, other);
        }
        all.push(Made::New(graph));
    }
    all
}

/// What each op is reckoned to take in a call.
fn reckon(module: &Module, body: &Function, costs: &CostOptions, nodes: &mut [Node]) {
    let cost = Cost::new(module, body, costs);
    let mut of_weights: Vec<bool> = Vec::with_capacity(nodes.len());
    for (value, data) in body.values.iter() {
        let args = data.def.args();
        let alone = match &data.def {
            Def::Param(kind) => *kind == ParamKind::Weight,
            _ => args.iter().all(|arg| of_weights[arg.index()]),
        };
        of_weights.push(alone);
        let Def::Op(op, args) = &data.def else { continue };
        let types: Option<Vec<_>> = args.iter().map(|&arg| body.tensor(arg)).collect();
        nodes[value.index()].seconds =
            types.filter(|_| !alone).map(|types| cost.of(op, &types, &data.ty)).filter(|s| s.is_finite());
    }
}

/// What a graph is, without what it is compared to.
fn bare(graph: &Graph) -> (Vec<Said<'_>>, &[usize]) {
    (said(graph), &graph.results)
}

/// What a node says: its name, its op, its type and its operands' names.
type Said<'a> = (&'a str, &'a str, &'a str, Vec<&'a str>);

fn said(graph: &Graph) -> Vec<Said<'_>> {
    let names = |node: &Node| node.args.iter().map(|&arg| graph.nodes[arg].name.as_str()).collect();
    graph.nodes.iter().map(|n| (n.name.as_str(), n.op.as_str(), n.ty.as_str(), names(n))).collect()
}

/// Marks what `graph` has and `old` has not.
fn compare(graph: &mut Graph, old: &Graph) {
    let before: HashSet<Said> = said(old).into_iter().collect();
    let changed: Vec<bool> = said(graph).iter().map(|node| !before.contains(node)).collect();
    let names: HashSet<&str> = graph.nodes.iter().map(|node| node.name.as_str()).collect();
    let removed = old.nodes.iter().filter(|node| !names.contains(node.name.as_str()));
    graph.removed = removed.map(|node| node.name.clone()).collect();
    graph.nodes.iter_mut().zip(changed).for_each(|(node, changed)| node.changed = changed);
}

fn node(module: &Module, f: &Function, data: &ValueData, sources: &mut Sources) -> Node {
    let (kind, op, call) = match &data.def {
        Def::Param(ParamKind::Input) => (Kind::Input, "input".into(), None),
        Def::Param(ParamKind::Weight) => (Kind::Weight, "weight".into(), None),
        Def::Param(ParamKind::State) => (Kind::State, "state".into(), None),
        Def::Call(callee, _) => {
            let name = module.funcs.get(*callee).map_or("?", |f| &f.name);
            (Kind::Call, format!("call @{name}"), Some(name.to_string()))
        }
        Def::Op(op, args) => {
            let mut text = op.kind().name().to_string();
            for (name, attr) in op.kind().attr_names().iter().zip(op.attrs()) {
                let _ = match attr {
                    Attr::Spec(spec) => write!(text, " \"{}\"", spelled(&spec, f, args)),
                    attr => write!(text, " {name}={attr}"),
                };
            }
            (Kind::Op, text, None)
        }
    };
    let args = data.def.args().iter().map(|arg| arg.index()).collect();
    let at = data.loc.and_then(|loc| sources.place(loc));
    let (name, ty) = (data.name.clone(), data.ty.to_string());
    let reads_weight = kind == Kind::Weight;
    let (changed, layer, order, seconds, kernels) = (false, 0, 0, None, Vec::new());
    Node { name, kind, op, ty, args, call, at, reads_weight, changed, layer, order, seconds, kernels }
}

/// A spec with axes by the first letters of their extents, as IR text has it.
fn spelled(spec: &eva_ir::attr::Spec, f: &Function, args: &[eva_ir::graph::Value]) -> eva_ir::attr::Spec {
    let mut letters = vec![None; spec.axes()];
    for (axes, &arg) in spec.inputs.iter().zip(args) {
        let shape = f.tensor(arg).map_or(&[][..], |ty| &ty.shape);
        for (&axis, dim) in axes.iter().zip(shape) {
            if let Some(letter @ None) = letters.get_mut(axis as usize) {
                *letter = dim.to_string().chars().find(char::is_ascii_lowercase);
            }
        }
    }
    spec.spelled(|axis| letters.get(axis as usize).copied().flatten().unwrap_or('a'))
}

/// The nodes with edges from operands to users.
fn digraph(nodes: &[Node]) -> DiGraph<usize, ()> {
    let mut graph = DiGraph::new();
    let ids: Vec<NodeIndex> = (0..nodes.len()).map(|i| graph.add_node(i)).collect();
    for (user, node) in nodes.iter().enumerate() {
        for &arg in &node.args {
            graph.update_edge(ids[arg], ids[user], ());
        }
    }
    graph
}

/// Gives each node a row, the longest way from a parameter to it, and a place there: near its operands and users.
fn place(nodes: &mut [Node]) {
    let graph = digraph(nodes);
    let of = |id: NodeIndex, direction| graph.neighbors_directed(id, direction).map(|other| graph[other]);
    // Values are in an order that they can be computed in.
    let is_param = |node: &Node| matches!(node.kind, Kind::Input | Kind::Weight | Kind::State);
    // What a call needs no time for, or could have at any time, is right above the first that uses it.
    let late: Vec<bool> =
        nodes.iter().map(|node| is_param(node) || node.reads_weight || node.args.is_empty()).collect();
    for id in graph.node_indices() {
        let below = of(id, Direction::Incoming).map(|arg| nodes[arg].layer + 1).max();
        nodes[graph[id]].layer = below.unwrap_or(usize::from(!is_param(&nodes[graph[id]])));
    }
    for id in graph.node_indices().rev().filter(|id| late[id.index()]) {
        let above = of(id, Direction::Outgoing).map(|user| nodes[user].layer - 1).min();
        nodes[graph[id]].layer = above.unwrap_or(nodes[graph[id]].layer);
    }
    let rows = nodes.iter().map(|node| node.layer + 1).max().unwrap_or(0);
    let mut layers: Vec<Vec<usize>> = vec![Vec::new(); rows];
    nodes.iter().enumerate().for_each(|(i, node)| layers[node.layer].push(i));
    for (i, node) in layers.iter().flat_map(|row| row.iter().enumerate()) {
        nodes[*node].order = i;
    }
    for sweep in 0..6 {
        let (down, direction) = match sweep % 2 {
            0 => (true, Direction::Incoming),
            _ => (false, Direction::Outgoing),
        };
        let order: Vec<usize> = if down { (0..rows).collect() } else { (0..rows).rev().collect() };
        for row in order {
            let middle = |&node: &usize| {
                let near: Vec<usize> =
                    of(NodeIndex::new(node), direction).map(|other| nodes[other].order).collect();
                match near.len() {
                    0 => nodes[node].order as f64,
                    n => near.iter().sum::<usize>() as f64 / n as f64,
                }
            };
            let mut keyed: Vec<(f64, usize)> = layers[row].iter().map(|node| (middle(node), *node)).collect();
            keyed.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
            layers[row] = keyed.iter().map(|(_, node)| *node).collect();
            layers[row].iter().enumerate().for_each(|(i, &node)| nodes[node].order = i);
        }
    }
}

/// The bodies of a view's last stage in Graphviz's language, ops that share a kernel in one box.
pub fn dot(view: &super::View) -> String {
    let last = view.stages.last().map_or(&[][..], |stage| &stage.graphs);
    let mut text = String::from("digraph eva {\n  node [shape=box, fontname=monospace];\n");
    for &number in last {
        let graph = &view.graphs[number];
        let title = graph.body.as_ref().map_or(String::new(), |body| format!(" or {body}"));
        let _ =
            writeln!(text, "  subgraph \"cluster_{number}\" {{\n    label=\"@{}{title}\";", graph.function);
        let edges = digraph(&graph.nodes);
        for id in edges.node_indices() {
            let node = &graph.nodes[edges[id]];
            let label = format!("%{}\n{}\n{}", node.name, node.op, node.ty);
            let kernel = node.kernels.first().map_or(String::new(), |k| format!(", group=\"k{k}\""));
            let _ = writeln!(text, "    n{number}_{} [label={label:?}{kernel}];", id.index());
        }
        for edge in edges.edge_indices() {
            if let Some((from, to)) = edges.edge_endpoints(edge) {
                let _ = writeln!(text, "    n{number}_{} -> n{number}_{};", from.index(), to.index());
            }
        }
        text += "  }\n";
    }
    text + "}\n"
}
