//! From chosen terms back to a function. A value keeps its name and line, and its op if that was chosen.

use super::facts::{EGraph, op};
use super::term::Term;
use super::{Saturated, extract::Selection};
use crate::rebuild::{Rebuild, ill_typed};
use egg::Id;
use eva_ir::diag::Diag;
use eva_ir::graph::{Function, Value};
use eva_ir::ops::Op;
use std::collections::{HashMap, HashSet};

/// The function that computes `f`'s values by the selected terms, and the terms that replaced others.
pub(super) fn emit(
    f: &Function,
    s: &Saturated,
    selection: &Selection,
) -> Result<(Function, Vec<Term>), Diag> {
    let mut first = HashMap::new();
    for value in f.values.keys().rev() {
        first.insert(s.class(value), value);
    }
    let results = f.results.iter().copied().collect();
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
    };
    let needed = |value: &Value| selection.terms.contains_key(&s.class(*value));
    for value in f.values.keys().filter(needed) {
        emit.value(value)?;
    }
    Ok((emit.r.finish(), emit.replaced))
}

struct Emit<'a> {
    f: &'a Function,
    s: &'a Saturated,
    terms: &'a HashMap<Id, Term>,
    /// The first old value of each class that has one.
    first: HashMap<Id, Value>,
    results: HashSet<Value>,
    /// The new values of classes that have no old one.
    built: HashMap<Id, Value>,
    /// What rules call the values that they add.
    names: HashMap<Id, &'static str>,
    r: Rebuild<'a>,
    replaced: Vec<Term>,
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
            match self.terms.get(&class) {
                Some(Term::Op(kind, children)) if *self.s.term(value) != self.terms[&class] => {
                    let attrs = kind.attr_names().len();
                    self.replaced.push(self.terms[&class].clone());
                    let op = self.op(value, *kind, &children[..attrs])?;
                    let args = self.classes(&children[attrs..], value)?;
                    self.r.replace(value, op, &args).map_err(|e| ill_typed("form", e))?;
                }
                Some(Term::Value(same, _)) if *same != value && !self.results.contains(&value) => {
                    match self.r.map.get(same) {
                        Some(&new) => drop(self.r.map.insert(value, new)),
                        None => stack.push(*same),
                    }
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
