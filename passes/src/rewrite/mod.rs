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

pub mod contraction;
mod emit;
pub mod extract;
pub mod facts;
pub mod rules;
pub mod term;

use crate::cost::Cost;
use egg::{Id, Rewrite, Runner, SimpleScheduler, StopReason, Symbol};
use eva_ir::diag::Diag;
use eva_ir::graph::{Def, Function, Value};
use eva_ir::types::Type;
use extract::Selection;
use facts::{EGraph, Types};
use rules::Rule;
use std::collections::{HashMap, HashSet};
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
    /// Wherever a rule found something, what it found; elsewhere those that make the function cheapest.
    Rewritten,
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
    /// The function's cost in seconds, as [`Cost`] predicts it: before and after.
    pub cost: (f64, f64),
}

/// What one rule did.
#[derive(Clone, Debug, PartialEq)]
pub struct Fired {
    /// The rule's name.
    pub rule: &'static str,
    /// Why it holds.
    pub why: &'static str,
    /// In how many places it applies.
    pub matched: usize,
    /// In how many of them it was chosen.
    pub chosen: usize,
}

/// Rewrites `f` by `rules`; `None` if no rule applies anywhere.
pub fn rewrite(
    f: &Function,
    rules: &[Rule],
    cost: &Cost,
    choose: Choose,
) -> Result<Option<(Function, Rewriting)>, Diag> {
    // What no rule matches as it stands, none ever will: no e-graph is needed to see that.
    let applies = |value: Value| rules.iter().any(|rule| rule.contraction.matches(f, value));
    if !f.values.keys().any(applies) {
        return Ok(None);
    }
    let s = saturate(f, rules.iter().map(|rule| &rule.rewrite))?;
    let selection = s.cheapest(f, cost, choose)?;
    let produced = s.produced();
    let (function, replaced) = emit::emit(f, &s, &selection)?;
    let fired = |rule: &Rule| {
        let mine = |term: &&Term| produced.get(*term).is_some_and(|name| name.as_str() == rule.name);
        let chosen = replaced.iter().filter(mine).count();
        Fired { rule: rule.name, why: rule.why, matched: produced.keys().filter(mine).count(), chosen }
    };
    let rewriting = Rewriting {
        function: f.name.clone(),
        rules: rules.iter().map(fired).collect(),
        nodes: s.nodes,
        iterations: s.iterations,
        saturated: s.saturated,
        cost: (selection.before, selection.after),
    };
    let unchanged = replaced.is_empty();
    Ok(Some((if unchanged { f.clone() } else { function }, rewriting)))
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
pub fn saturate<'r>(
    f: &Function,
    rules: impl IntoIterator<Item = &'r Rewrite<Term, Types>>,
) -> Result<Saturated, Diag> {
    let opaque = f.values.iter().filter(|(_, data)| !matches!(data.def, Def::Op(..)));
    let values: HashMap<Value, Type> = opaque.map(|(value, data)| (value, data.ty.clone())).collect();
    let mut egraph = EGraph::new(Types { values, ..Types::default() });
    let (mut ids, mut terms) = (HashMap::new(), HashMap::new());
    for (value, data) in f.values.iter() {
        let term = match &data.def {
            Def::Param(_) => Term::Value(value, [].into()),
            Def::Call(_, args) => Term::Value(value, args.iter().map(|arg| ids[arg]).collect()),
            Def::Op(op, args) => {
                let mut children: Vec<Id> =
                    op.attrs().into_iter().map(|attr| egraph.add(Term::Attr(attr))).collect();
                children.extend(args.iter().map(|arg| ids[arg]));
                Term::Op(op.kind(), children.into())
            }
        };
        ids.insert(value, egraph.add(term.clone()));
        terms.insert(value, term);
    }
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

impl Saturated {
    /// The class that a value is in.
    fn class(&self, value: Value) -> Id {
        self.egraph.find(self.ids[&value])
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

    /// The terms to take for `f`'s results.
    pub fn cheapest(&self, f: &Function, cost: &Cost, choose: Choose) -> Result<Selection, Diag> {
        let egraph = &self.egraph;
        let seconds = |term: &Term| self.seconds(cost, term);
        let produced = self.produced();
        let class = |term: &Term| egraph.lookup(term.clone());
        let rewritten: HashSet<Id> = match choose {
            Choose::Cheapest => HashSet::new(),
            Choose::Rewritten => produced.keys().filter_map(class).collect(),
        };
        let may = |id: Id, term: &Term| !rewritten.contains(&id) || produced.contains_key(term);
        let original = f.values.keys().rev().map(|v| (self.class(v), self.term(v).clone())).collect();
        let roots: Vec<Id> = f.results.iter().map(|&v| self.class(v)).collect();
        let selection = extract::cheapest(egraph, &roots, &original, &seconds, &may);
        selection.ok_or_else(|| Diag::new("eva::internal", "rules have made every form need itself"))
    }

    fn seconds(&self, cost: &Cost, term: &Term) -> f64 {
        let Term::Op(kind, children) = term else { return 0.0 };
        let (attrs, args) = children.split_at(kind.attr_names().len());
        let tensor = |id: &Id| self.egraph[*id].data.ty().and_then(Type::tensor);
        let Some(op) = facts::op(&self.egraph, *kind, attrs) else { return 0.0 };
        // What takes a tuple takes it apart, which costs nothing.
        let Some(args) = args.iter().map(tensor).collect::<Option<Vec<_>>>() else { return 0.0 };
        let Some(out) = self.egraph.lookup(term.clone()).and_then(|id| self.egraph[id].data.ty()) else {
            return 0.0;
        };
        cost.of(&op, &args, out)
    }
}
