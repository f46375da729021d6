//! The forward pass of one form of attention with the gradients of another: both have the same logarithms of sums.
//!
//! Values of two forms of a function go by the same names where they are equal ([`crate::rewrite`] keeps names), so what the
//! forward of the other form begins with is found in the joint graph, and its attention's result and sums take the place of
//! those that the gradients would otherwise be made of. Keys and values that only gradients need are then computed for them
//! alone.

use super::reverse::Joint;
use crate::rebuild::with_args;
use eva_ir::entity::Entity;
use eva_ir::graph::{Def, Function, Value, ValueData};
use eva_ir::ops::{Op, get::Get};
use eva_ir::vjp::Growing;
use std::collections::{HashMap, HashSet};

/// An attention in two forms.
struct Pair {
    /// The op of the written form.
    written: Value,
    /// That of the other one, and its result.
    other: [Value; 2],
}

/// The joint graph `joint` of `written`, with the attention of `other` as its forward; `None` where that cannot be said.
pub(super) fn mixed(joint: &Joint, written: &Function, other: &Function) -> Option<Joint> {
    let graph = &joint.grown.function;
    let of = |value: Value| joint.forward[value.index()];
    let by_name: HashMap<&str, Value> = names(written).map(|(name, value)| (name, of(value))).collect();
    let pairs = pairs(written, other)?;
    let mut instead = HashMap::new();
    let mut between: HashSet<Value> = HashSet::new();
    for Pair { written, other: [op, o] } in &pairs {
        let attend = of(*written);
        instead.insert((attend, 1), (*op, Some(1)));
        instead.insert((attend, 0), (*o, None));
        between.extend(path(other, *op, *o));
    }
    let mut copy = Copy {
        graph,
        other,
        by_name: &by_name,
        instead: &instead,
        between: &between,
        grown: Growing::new(Function::default()),
        of_graph: HashMap::new(),
        of_other: HashMap::new(),
    };
    for value in graph.values.keys() {
        copy.graph(value);
    }
    let Copy { grown, of_graph, .. } = copy;
    let all = |values: &[Value]| values.iter().map(|value| of_graph[value]).collect();
    let gradients = joint.gradients.iter();
    let gradients = gradients.map(|(i, name, value)| (*i, name.clone(), value.map(|value| of_graph[&value])));
    Some(Joint {
        forward: all(&joint.forward),
        params: all(&joint.params),
        results: all(&joint.results),
        seeds: all(&joint.seeds),
        seeded: joint.seeded.clone(),
        gradients: gradients.collect(),
        grown,
    })
}

fn names(f: &Function) -> impl Iterator<Item = (&str, Value)> {
    f.values.iter().map(|(value, data)| (data.name.as_str(), value))
}

fn attentions(f: &Function) -> Vec<Value> {
    let is_attend = |(_, data): &(Value, &ValueData)| matches!(data.def, Def::Op(Op::AttendLse(_), _));
    f.values.iter().filter(is_attend).map(|(value, _)| value).collect()
}

/// The attentions of two forms that belong together: those whose results have the same name. Sums with several axes of heads
/// may be in another order, so that there must be one.
fn pairs(written: &Function, other: &Function) -> Option<Vec<Pair>> {
    let in_other: HashMap<&str, Value> = names(other).collect();
    let mut pairs = Vec::new();
    for attend in attentions(written) {
        let is_result = |data: &ValueData| matches!(&data.def, Def::Op(Op::Get(Get { index: 0 }), args) if args[0] == attend);
        let result = written.values.iter().find(|(_, data)| is_result(data)).map(|(value, _)| value)?;
        let o = *in_other.get(written.values[result].name.as_str())?;
        let mut found = attentions(other).into_iter().filter(|&op| path(other, op, o).contains(&op));
        // The last one: others are what it depends on.
        let op = found.next_back()?;
        let sums = |f: &Function, op: Value| f.values[op].ty.parts().get(1).cloned();
        let (ours, theirs) = (sums(written, attend)?, sums(other, op)?);
        if ours != theirs || ours.rank() > 3 || written.values[result].ty != other.values[o].ty {
            return None;
        }
        pairs.push(Pair { written: attend, other: [op, o] });
    }
    let mut ops: Vec<Value> = pairs.iter().map(|pair| pair.other[0]).collect();
    ops.dedup();
    (ops.len() == pairs.len() && pairs.len() == attentions(other).len()).then_some(pairs)
}

/// What depends on `from` and is needed for `to`, both included; nothing if `to` does not depend on `from`.
fn path(f: &Function, from: Value, to: Value) -> HashSet<Value> {
    let mut after = HashSet::from([from]);
    for (value, data) in f.values.iter().skip(from.index()) {
        if data.def.args().iter().any(|arg| after.contains(arg)) {
            after.insert(value);
        }
    }
    let mut found = HashSet::new();
    let mut open = vec![to];
    while let Some(value) = open.pop() {
        if after.contains(&value) && found.insert(value) {
            open.extend(f.values[value].def.args());
        }
    }
    found
}

struct Copy<'a> {
    graph: &'a Function,
    other: &'a Function,
    by_name: &'a HashMap<&'a str, Value>,
    /// For part 0 or 1 of an attention, the value of the other form, or a part of that.
    instead: &'a HashMap<(Value, i64), (Value, Option<i64>)>,
    /// What of the other form is not taken by name: its attention, up to the result.
    between: &'a HashSet<Value>,
    grown: Growing,
    of_graph: HashMap<Value, Value>,
    of_other: HashMap<Value, Value>,
}

impl Copy<'_> {
    fn graph(&mut self, value: Value) -> Value {
        if let Some(&new) = self.of_graph.get(&value) {
            return new;
        }
        let graph = self.graph;
        let data = &graph.values[value];
        let part = match &data.def {
            Def::Op(Op::Get(Get { index }), args) => self.instead.get(&(args[0], *index)),
            _ => None,
        };
        let new = match part {
            Some(&(other, part)) => {
                let whole = self.other(other);
                match part {
                    None => whole,
                    Some(index) => {
                        let part = self.grown.op(&data.name, Get { index }, &[whole], whole);
                        part.expect("the other attention has sums of the same type")
                    }
                }
            }
            None => {
                let map: HashMap<Value, Value> =
                    data.def.args().iter().map(|&arg| (arg, self.graph(arg))).collect();
                self.grown.push(ValueData { def: with_args(&data.def, |arg| map[&arg]), ..data.clone() })
            }
        };
        self.of_graph.insert(value, new);
        new
    }

    fn other(&mut self, value: Value) -> Value {
        if let Some(&new) = self.of_other.get(&value) {
            return new;
        }
        let other = self.other;
        let data = &other.values[value];
        // Equal names are equal values, but for what each form has named by itself.
        let alike = |same: &&Value| self.graph.values[**same].ty == data.ty && !self.between.contains(&value);
        let same = self.by_name.get(data.name.as_str()).filter(alike);
        let new = match same {
            Some(&same) => self.graph(same),
            None => {
                let map: HashMap<Value, Value> =
                    data.def.args().iter().map(|&arg| (arg, self.other(arg))).collect();
                self.grown.push(ValueData { def: with_args(&data.def, |arg| map[&arg]), ..data.clone() })
            }
        };
        self.of_other.insert(value, new);
        new
    }
}
