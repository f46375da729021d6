//! Rewriting by equality saturation: a function becomes an e-graph, rules add equal terms, and the cheapest graph
//! is taken out again.
//!
//! Terms are the graph IR's own ops ([`term`]), and a class of equal terms has one type ([`facts`]), so that a wrong
//! rule is stopped by its name. Rules are a table ([`rules`]); those on products match up to the order of factors
//! and axes ([`contraction`]). What is cheapest is decided by [`crate::cost`], with shared values counted
//! once ([`extract`]). What is not rewritten keeps its name, its line and its op.
//!
//! The same function gives the same result always: e-graph and choices depend on no hash, and saturation is limited
//! in nodes and iterations, never in time.

pub mod attended;
pub mod build;
pub mod check;
pub mod contraction;
mod emit;
pub mod extract;
pub mod facts;
pub mod rules;
pub mod term;
pub mod why;

use crate::cost::Cost;
pub use egg::Id;
use egg::{Rewrite, Runner, SimpleScheduler, StopReason, Symbol};
use eva_ir::diag::Diag;
use eva_ir::graph::{Def, Function, ParamKind, Value};
use eva_ir::lower::Lowering;
use eva_ir::ops::{Op, OpKind};
use eva_ir::types::Type;
use extract::Selection;
use facts::{EGraph, Types};
use rules::{Exactness, Rule};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::time::Duration;
use term::Term;

/// How often all rules are applied at most.
pub const ITERATIONS: usize = 20;
/// How many terms an e-graph may have before rules stop.
pub const NODES: usize = 20_000;

/// Which of equal terms to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choose {
    /// Those that make the function cheapest.
    Cheapest,
    /// The cheapest of those that make no keys and values from latents, where a rule of latent attention found them.
    Absorbed,
}

/// What rules did to a function.
#[derive(Clone, Debug, PartialEq)]
pub struct Rewriting {
    /// The function's name.
    pub function: String,
    /// The rules, in the order of their table.
    pub rules: Vec<Fired>,
    /// Terms in the e-graph, attributes included: before the rules and after them.
    pub nodes: (usize, usize),
    /// How often the rules were applied.
    pub iterations: usize,
    /// Whether rules ended because they found nothing more, and not at a limit.
    pub saturated: bool,
    /// The function's cost, as [`Cost`] predicts it: before and after.
    pub cost: (f64, f64),
    /// How keys and values are computed.
    pub sides: Sides,
}

/// What one rule did.
#[derive(Clone, Debug, PartialEq)]
pub struct Fired {
    /// The rule's name.
    pub rule: &'static str,
    /// Why it holds.
    pub why: &'static str,
    /// How far it may move a result.
    pub exactness: Exactness,
    /// In how many places it applies.
    pub matched: usize,
    /// The values that it was chosen for, by name.
    pub chosen: Vec<String>,
}

/// How keys or values are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    /// Made for each head from what is cached.
    Expanded,
    /// Not at all: queries or outputs are multiplied by the up-projection instead.
    Absorbed,
    /// Not at all, and the up-projection is multiplied into the weight next to it.
    Folded,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Side::Expanded => "expanded",
            Side::Absorbed => "absorbed",
            Side::Folded => "folded",
        })
    }
}

/// How keys and values are computed; `None` where there are no latents to make them from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sides {
    /// The keys.
    pub key: Option<Side>,
    /// The values.
    pub value: Option<Side>,
}

/// Rewrites `f` by `rules`.
pub fn rewrite(
    f: &Function,
    rules: &[Rule],
    cost: &Cost,
    choose: Choose,
) -> Result<(Function, Rewriting), Diag> {
    let s = saturate_by(f, rules)?;
    let selection = s.cheapest(f, cost, choose)?;
    let (function, rewriting) = s.take(f, rules, cost, &selection)?;
    Ok((function.unwrap_or_else(|| f.clone()), rewriting))
}

/// Whether rules could change a function: whether it has more than one product, or an op that one of the user's `own`
/// begins at.
pub fn is_worthwhile(f: &Function, own: &[Rule]) -> bool {
    let ops = || {
        f.values.iter().filter_map(|(_, data)| if let Def::Op(op, _) = &data.def { Some(op) } else { None })
    };
    ops().filter(|op| matches!(op, Op::Einsum(_))).nth(1).is_some()
        || ops().any(|op| own.iter().any(|rule| rule.op() == op.kind()))
}

/// A function's e-graph after rules have added what they could.
pub struct Saturated {
    /// The e-graph.
    pub egraph: EGraph,
    /// The class of each value when it was added.
    ids: HashMap<Value, Id>,
    /// The term that each value is.
    terms: HashMap<Value, Term>,
    nodes: (usize, usize),
    iterations: usize,
    saturated: bool,
}

/// The e-graph of `f`, with all that `rules` add; or the mistake of one of them.
pub fn saturate_by(f: &Function, rules: &[Rule]) -> Result<Saturated, Diag> {
    saturate(f, &rules.iter().map(Rule::rewrite).collect::<Result<Vec<_>, _>>()?)
}

/// [`saturate_by`], with rules as egg takes them.
pub fn saturate<'r>(
    f: &Function,
    rules: impl IntoIterator<Item = &'r Rewrite<Term, Types>>,
) -> Result<Saturated, Diag> {
    let opaque = f.values.iter().filter(|(_, data)| is_opaque(f, &data.def));
    let values: HashMap<Value, Type> = opaque.map(|(value, data)| (value, data.ty.clone())).collect();
    let weights = f.params().filter(|(_, kind)| *kind == ParamKind::Weight).map(|(value, _)| value).collect();
    let mut egraph = EGraph::new(Types { values, weights, ..Types::default() });
    let (mut ids, mut terms) = (HashMap::new(), HashMap::new());
    for (value, data) in f.values.iter() {
        let term = match &data.def {
            Def::Param(_) => Term::Value(value, [].into()),
            def if is_opaque(f, def) => Term::Value(value, def.args().iter().map(|arg| ids[arg]).collect()),
            Def::Call(_, args) => Term::Value(value, args.iter().map(|arg| ids[arg]).collect()),
            Def::Op(op, args) => build::term(&mut egraph, op, args.iter().map(|arg| ids[arg])),
        };
        ids.insert(value, egraph.add(term.clone()));
        terms.insert(value, term);
    }
    egraph.analysis.needed = attended::needed_elsewhere(f).iter().map(|value| ids[value]).collect();
    let before = egraph.total_size();
    let stop = |runner: &mut Runner<Term, Types>| {
        runner.egraph.analysis.error.as_ref().map_or(Ok(()), |error| Err(error.clone()))
    };
    let runner = Runner::<Term, Types, ()>::new(Types::default())
        .with_egraph(egraph)
        .with_scheduler(SimpleScheduler)
        .with_iter_limit(ITERATIONS)
        .with_node_limit(NODES)
        .with_time_limit(Duration::MAX)
        .with_hook(stop)
        .run(rules);
    let (mut egraph, iterations) = (runner.egraph, runner.iterations.len());
    if let Some(error) = egraph.analysis.error.take() {
        return Err(Diag::new("eva::internal", error));
    }
    terms.values_mut().for_each(|term| *term = extract::canonical(&egraph, term));
    let nodes = (before, egraph.total_size());
    let saturated = matches!(runner.stop_reason, Some(StopReason::Saturated));
    Ok(Saturated { egraph, ids, terms, nodes, iterations, saturated })
}

/// Whether rules do not look into a value: parameters, calls, what is computed of 8-bit floats, but for the numbers that
/// those are; and what reads a state that may be replaced, so that nothing reads it later than it was written to.
fn is_opaque(f: &Function, def: &Def) -> bool {
    let replaced = |&arg: &Value| match &f.values[arg].def {
        Def::Param(kind) => *kind == ParamKind::State,
        Def::Op(op, _) => matches!(op, Op::Assign(_)),
        Def::Call(..) => false,
    };
    let eight = |&arg: &Value| f.values[arg].ty.parts().iter().any(|ty| ty.scales.is_some());
    match def {
        Def::Param(_) | Def::Call(..) => true,
        Def::Op(Op::Dequantize(_), _) => false,
        Def::Op(Op::CacheWrite(_) | Op::PageWrite(_), args) => args.iter().any(eight),
        Def::Op(op, args) => {
            matches!(op, Op::Quantize(_) | Op::QuantizeBy(_) | Op::QuantizeByExpert(_))
                || args.iter().any(|arg| eight(arg) || replaced(arg))
        }
    }
}

impl Saturated {
    /// The class that a value is in.
    pub fn class(&self, value: Value) -> Id {
        self.egraph.find(self.ids[&value])
    }

    /// Terms in the e-graph, attributes included: before the rules and after them.
    pub fn nodes(&self) -> (usize, usize) {
        self.nodes
    }

    /// The term that a value is in the function, with its children's present ids.
    fn term(&self, value: Value) -> &Term {
        &self.terms[&value]
    }

    /// The terms that rules put in place of others, with the rules' names.
    fn produced(&self) -> HashMap<Term, Symbol> {
        let produced = self.egraph.analysis.produced.iter().rev();
        let mut produced: HashMap<Term, Symbol> =
            produced.map(|(term, rule)| (extract::canonical(&self.egraph, term), *rule)).collect();
        // What the user wrote is not a rule's doing.
        for term in self.terms.values() {
            produced.remove(term);
        }
        produced
    }

    /// The rules that added something.
    pub fn fired(&self, rules: &[Rule]) -> BTreeSet<&'static str> {
        let added =
            |rule: &&Rule| self.egraph.analysis.produced.iter().any(|(_, name)| name.as_str() == rule.name);
        rules.iter().filter(added).map(|rule| rule.name).collect()
    }

    /// The terms to take for `f`'s results.
    pub fn cheapest(&self, f: &Function, cost: &Cost, choose: Choose) -> Result<Selection, Diag> {
        let forbidden = match choose {
            Choose::Cheapest => BTreeSet::new(),
            Choose::Absorbed => self.absorbable().into_keys().collect(),
        };
        self.cheapest_without(f, cost, &forbidden)
    }

    /// The keys and values made from latents that rules do without, and which rules.
    pub fn absorbable(&self) -> BTreeMap<Id, &'static str> {
        self.egraph.analysis.absorbed.iter().map(|a| (self.egraph.find(a.expanded), a.rule)).collect()
    }

    /// [`Self::cheapest`] of the terms that need none of these classes, where that can be.
    pub fn cheapest_without(
        &self,
        f: &Function,
        cost: &Cost,
        forbidden: &BTreeSet<Id>,
    ) -> Result<Selection, Diag> {
        let egraph = &self.egraph;
        // At a price that nobody would pay.
        let price = |term: &Term| {
            let class = || egraph.lookup(term.clone()).is_some_and(|id| forbidden.contains(&id));
            self.cost(cost, term) + if !forbidden.is_empty() && class() { 1e30 } else { 0.0 }
        };
        let original = f.values.keys().rev().map(|v| (self.class(v), self.term(v).clone())).collect();
        let roots: Vec<Id> = f.results.iter().map(|&v| self.class(v)).collect();
        let selection = extract::cheapest(egraph, &roots, &original, &price);
        selection.ok_or_else(|| Diag::new("eva::internal", "rules have made every form need itself"))
    }

    /// What a selection costs.
    pub fn total(&self, cost: &Cost, selection: &Selection) -> f64 {
        let mut terms: Vec<(&Id, &Term)> = selection.terms.iter().collect();
        terms.sort();
        terms.into_iter().map(|(_, term)| self.cost(cost, term)).sum()
    }

    /// How a selection computes keys and values.
    pub fn sides(&self, selection: &Selection) -> Sides {
        let mut sides = Sides::default();
        let mut weights = HashSet::new();
        for term in selection.terms.values() {
            if let Term::Op(OpKind::Einsum, children) = term
                && self.egraph.lookup(term.clone()).is_some_and(|id| self.egraph[id].data.is_weight())
            {
                weights.extend(children.iter().map(|&id| self.egraph.find(id)));
            }
        }
        for absorbed in &self.egraph.analysis.absorbed {
            let side = match absorbed.rule {
                "mla_absorb_key" => &mut sides.key,
                _ => &mut sides.value,
            };
            let now = if selection.terms.contains_key(&self.egraph.find(absorbed.expanded)) {
                Side::Expanded
            } else if weights.contains(&self.egraph.find(absorbed.weight)) {
                Side::Folded
            } else {
                Side::Absorbed
            };
            *side = Some(side.map_or(now, |side| side.min(now)));
        }
        sides
    }

    /// The function that a selection is, unless it is `f` itself, and what was done.
    pub fn take(
        &self,
        f: &Function,
        rules: &[Rule],
        cost: &Cost,
        selection: &Selection,
    ) -> Result<(Option<Function>, Rewriting), Diag> {
        let produced = self.produced();
        let emitted = emit::emit(f, self, selection)?;
        let fired = |rule: &Rule| {
            let mine = |term: &Term| produced.get(term).is_some_and(|name| name.as_str() == rule.name);
            let chosen = emitted.replaced.iter().filter(|(term, _)| mine(term));
            Fired {
                rule: rule.name,
                why: rule.why,
                exactness: rule.exactness,
                matched: produced.keys().filter(|term| mine(term)).count(),
                chosen: chosen.map(|(_, name)| name.clone()).collect(),
            }
        };
        let rewriting = Rewriting {
            function: f.name.clone(),
            rules: rules.iter().map(fired).collect(),
            nodes: self.nodes,
            iterations: self.iterations,
            saturated: self.saturated,
            cost: (self.total(cost, &self.original(f)), self.total(cost, selection)),
            sides: self.sides(selection),
        };
        Ok((emitted.changed.then_some(emitted.function), rewriting))
    }

    /// The function as it was.
    pub fn original(&self, f: &Function) -> Selection {
        let mut terms = HashMap::new();
        let mut open: Vec<Value> = f.results.clone();
        while let Some(value) = open.pop() {
            if terms.insert(self.class(value), self.term(value).clone()).is_none() {
                open.extend(f.values[value].def.args());
            }
        }
        Selection { terms }
    }

    /// Whether a class has a view of numbers that are stored in 8 bits.
    fn is_eight(&self, class: Id) -> bool {
        let (mut stack, mut seen) = (vec![self.egraph.find(class)], HashSet::new());
        while let Some(at) = stack.pop() {
            if !seen.insert(at) {
                continue;
            }
            for term in &self.egraph[at].nodes {
                match term {
                    Term::Op(OpKind::Dequantize, _) => return true,
                    Term::Op(kind @ (OpKind::Reshape | OpKind::Slice | OpKind::Cast), children) => {
                        stack.extend(
                            children.get(kind.attr_names().len()).map(|&inner| self.egraph.find(inner)),
                        );
                    }
                    _ => {}
                }
            }
        }
        false
    }

    /// What a term costs by itself.
    pub fn cost(&self, cost: &Cost, term: &Term) -> f64 {
        let Term::Op(kind, children) = term else { return 0.0 };
        let (attrs, args) = children.split_at(kind.attr_names().len());
        let tensor = |id: &Id| self.egraph[*id].data.ty().and_then(Type::tensor);
        let Some(op) = facts::op(&self.egraph, *kind, attrs) else { return 0.0 };
        // What takes a tuple takes it apart, which costs nothing.
        let Some(types) = args.iter().map(tensor).collect::<Option<Vec<_>>>() else { return 0.0 };
        let Some(class) = self.egraph.lookup(term.clone()) else { return 0.0 };
        let Some(out) = self.egraph[class].data.ty() else { return 0.0 };
        if self.egraph[class].data.is_weight() {
            // A weight that is stored in 8 bits stays so: what is computed of it would have more.
            let copies = op.lowering() != Lowering::Alias && args.iter().any(|&arg| self.is_eight(arg));
            return cost.of_weights(&op, &types, out) + cost.of_op() + if copies { 1e30 } else { 0.0 };
        }
        let own = cost.of(&op, &types, out);
        // Element-wise ops are fused behind what gives all of their operand, not behind what gives more than that.
        let is_pointwise = |user: Id| {
            let pointwise = |kind: &OpKind| {
                matches!(kind, OpKind::Silu | OpKind::Sigmoid | OpKind::Mul | OpKind::Add | OpKind::Cast)
            };
            self.egraph[user].nodes.iter().any(|term| matches!(term, Term::Op(kind, _) if pointwise(kind)))
        };
        match op {
            Op::Slice(_) if self.egraph[class].parents().any(|user| is_pointwise(self.egraph.find(user))) => {
                own + cost.of_copy(types[0], out)
            }
            _ => own + cost.of_op(),
        }
    }
}
