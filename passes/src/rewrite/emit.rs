//! From chosen terms back to a function. A value keeps its name and line, and its op if that was chosen.

use super::facts::{EGraph, op};
use super::term::Term;
use super::{Saturated, extract::Selection};
use crate::rebuild::{Rebuild, ill_typed};
use egg::Id;
use eva_ir::attr::Dims;
use eva_ir::diag::Diag;
use eva_ir::graph::{Function, Value};
use eva_ir::ops::{Op, reshape::Reshape};
use std::collections::{HashMap, HashSet};

/// A function taken out of an e-graph.
pub(super) struct Emitted {
    pub function: Function,
    /// The terms that replaced others or are new, with the names of their values.
    pub replaced: Vec<(Term, String)>,
    /// Whether it is another function than before.
    pub changed: bool,
}

/// The function that computes `f`'s values by the selected terms.
pub(super) fn emit(f: &Function, s: &Saturated, selection: &Selection) -> Result<Emitted, Diag> {
    let results: HashSet<Value> = f.results.iter().copied().collect();
    // Results have names that count, others the oldest.
    let mut first = HashMap::new();
    for value in f.values.keys().rev() {
        first.insert(s.class(value), value);
    }
    for &value in f.results.iter().rev() {
        first.insert(s.class(value), value);
    }
    let mut names: Vec<_> = s.egraph.analysis.names.iter().collect();
    names.sort();
    let names = names.into_iter().rev().map(|(&id, &name)| (s.egraph.find(id), name)).collect();
    let r = Rebuild::new(f);
    let mut emit = Emit {
        f,
        s,
        terms: &selection.terms,
        first,
        results,
        built: HashMap::new(),
        names,
        r,
        replaced: Vec::new(),
        changed: false,
    };
    let needed = |value: &Value| selection.terms.contains_key(&s.class(*value));
    for value in f.values.keys().filter(needed) {
        emit.value(value)?;
    }
    let changed = emit.changed || !emit.replaced.is_empty();
    Ok(Emitted { function: emit.r.finish(), replaced: emit.replaced, changed })
}

struct Emit<'a> {
    f: &'a Function,
    s: &'a Saturated,
    terms: &'a HashMap<Id, Term>,
    /// The old value that stands for each class that has one.
    first: HashMap<Id, Value>,
    results: HashSet<Value>,
    /// The new values of classes that have no old one.
    built: HashMap<Id, Value>,
    /// What rules call the values that they add.
    names: HashMap<Id, &'static str>,
    r: Rebuild<'a>,
    replaced: Vec<(Term, String)>,
    changed: bool,
}

impl Emit<'_> {
    /// Computes an old value, if it has not been.
    fn value(&mut self, value: Value) -> Result<(), Diag> {
        // Values are older than their users, so that a stack of those still needed is all it takes.
        let mut stack = vec![value];
        while let Some(&value) = stack.last() {
            if self.r.map.contains_key(&value) {
                stack.pop();
                continue;
            }
            let class = self.s.class(value);
            let chosen = self.terms.get(&class);
            let same = match chosen {
                Some(Term::Value(same, _)) => *same,
                Some(_) => self.first[&class],
                None => value,
            };
            if same != value {
                let Some(&new) = self.r.map.get(&same) else {
                    stack.push(same);
                    continue;
                };
                self.changed = true;
                match self.f.tensor(value).filter(|_| self.results.contains(&value)) {
                    // A result that is the same as another value is a value of its own all the same.
                    Some(ty) => {
                        let shape = Dims(ty.shape.to_vec());
                        self.r.replace(value, Reshape { shape }, &[new]).map_err(|e| ill_typed("form", e))?;
                    }
                    None => drop(self.r.map.insert(value, new)),
                }
                continue;
            }
            match chosen {
                Some(Term::Op(kind, children)) if *self.s.term(value) != self.terms[&class] => {
                    let attrs = kind.attr_names().len();
                    self.replaced.push((self.terms[&class].clone(), self.f.values[value].name.clone()));
                    let op = self.op(value, *kind, &children[..attrs])?;
                    let args = self.classes(&children[attrs..], value)?;
                    self.r.replace(value, op, &args).map_err(|e| ill_typed("form", e))?;
                }
                _ => {
                    let args = self.f.values[value].def.args();
                    let missing = args.iter().rev().filter(|arg| !self.r.map.contains_key(arg));
                    let missing: Vec<Value> = missing.copied().collect();
                    if missing.is_empty() {
                        self.r.copy(value);
                    }
                    stack.extend(missing);
                }
            }
        }
        Ok(())
    }

    /// The new values of classes, computed for the sake of `source`.
    fn classes(&mut self, classes: &[Id], source: Value) -> Result<Vec<Value>, Diag> {
        classes.iter().map(|&class| self.class(class, source)).collect()
    }

    fn class(&mut self, class: Id, source: Value) -> Result<Value, Diag> {
        let class = self.s.egraph.find(class);
        if let Some(&new) = self.built.get(&class) {
            return Ok(new);
        }
        if let Some(&value) = self.first.get(&class) {
            self.value(value)?;
            return Ok(self.r.get(value));
        }
        let Some(Term::Op(kind, children)) = self.terms.get(&class) else {
            return Err(Diag::new("eva::internal", "the pass `form` needs a value that it has not chosen"));
        };
        let attrs = kind.attr_names().len();
        let op = self.op(source, *kind, &children[..attrs])?;
        let args = self.classes(&children[attrs..], source)?;
        let part = || format!("{}_part", self.f.values[source].name);
        let name = self.names.get(&class).map_or_else(part, |name| (*name).into());
        let new = self.r.op(&name, op, &args, source).map_err(|e| ill_typed("form", e))?;
        self.built.insert(class, new);
        let term = self.terms[&class].clone();
        self.replaced.push((term, self.r.new.values[new].name.clone()));
        Ok(new)
    }

    fn op(&self, value: Value, kind: eva_ir::ops::OpKind, attrs: &[Id]) -> Result<Op, Diag> {
        let egraph: &EGraph = &self.s.egraph;
        op(egraph, kind, attrs).ok_or_else(|| {
            let name = &self.f.values[value].name;
            Diag::new("eva::internal", format!("the pass `form` chose wrong attributes for `{name}`"))
        })
    }
}
