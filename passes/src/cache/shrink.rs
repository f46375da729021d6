//! Writes functions with the states that [`super::decide`] has decided on.

use super::decide::{Decision, Group, Here, Kept, Made};
use super::tokens::{Node, Operand, Place, Tokens, View, fixed};
use crate::rebuild::{free_name, ill_typed, push_op, with_args, without_dead};
use eva_ir::attr::{Dims, Spec};
use eva_ir::diag::Diag;
use eva_ir::entity::{Arena, Entity};
use eva_ir::graph::{Def, Func, Function, Module, ParamKind, Value, ValueData, call_type};
use eva_ir::ops::{Op, cache_write::CacheWrite, einsum::Einsum, get::Get, reshape::Reshape};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// Where a parameter or a result of a changed function comes from.
#[derive(Clone, Copy)]
enum From {
    /// It is the old function's of this number.
    Old(usize),
    /// It is a new state of a group, by their numbers.
    New(usize, usize),
}

/// How a function's signature has changed.
struct Change {
    params: Vec<From>,
    results: Vec<From>,
}

/// The module with the states decided on.
pub(super) fn rewrite(module: &Module, decisions: &Arena<Func, Decision>) -> Result<Module, Diag> {
    let mut new = Module { dims: module.dims.clone(), kv_budget: module.kv_budget, ..Module::default() };
    let mut changes: Arena<Func, Option<Change>> = Arena::default();
    for (func, f) in module.funcs.iter() {
        let decision = &decisions[func];
        if decision.groups.is_empty() {
            new.funcs.push(f.clone());
            changes.push(None);
            continue;
        }
        let fixed = fixed(f);
        let writer = Writer {
            old: module,
            new: &new,
            f,
            decision,
            decisions,
            changes: &changes,
            fixed: &fixed,
            to: Function::new(&f.name),
            taken: f.values.iter().map(|(_, data)| data.name.clone()).collect(),
            map: HashMap::new(),
            current: HashMap::new(),
            again: HashMap::new(),
        };
        let (function, change) = writer.run()?;
        new.funcs.push(Arc::new(function));
        changes.push(Some(change));
    }
    Ok(new)
}

struct Writer<'a> {
    old: &'a Module,
    /// The functions before this one, rewritten.
    new: &'a Module,
    f: &'a Function,
    decision: &'a Decision,
    decisions: &'a Arena<Func, Decision>,
    changes: &'a Arena<Func, Option<Change>>,
    fixed: &'a [bool],
    to: Function,
    taken: HashSet<String>,
    map: HashMap<Value, Value>,
    /// The last version of each new state, by group and number.
    current: HashMap<(usize, usize), Value>,
    /// What was computed again for cached tokens.
    again: HashMap<Node, Value>,
}

impl<'a> Writer<'a> {
    fn run(mut self) -> Result<(Function, Change), Diag> {
        let (f, decision) = (self.f, self.decision);
        let mut change = Change { params: Vec::new(), results: Vec::new() };
        for (i, (param, _)) in f.params().enumerate() {
            match decision.of.get(&param) {
                None => {
                    change.params.push(From::Old(i));
                    let new = self.to.values.push(f.values[param].clone());
                    self.map.insert(param, new);
                }
                Some(&group) if decision.groups[group].old[0] == param => {
                    for (k, state) in decision.groups[group].new.iter().enumerate() {
                        change.params.push(From::New(group, k));
                        self.taken.insert(state.name.clone());
                        let new = self.to.values.push(ValueData {
                            name: state.name.clone(),
                            ty: state.ty.clone().into(),
                            def: Def::Param(ParamKind::State),
                            loc: f.values[param].loc,
                        });
                        self.current.insert((group, k), new);
                    }
                }
                Some(_) => {}
            }
        }
        for (value, data) in f.values.iter() {
            match &data.def {
                Def::Param(_) => {}
                _ if self.map.contains_key(&value) => {}
                Def::Op(Op::CacheWrite(_), args) if decision.of.contains_key(&args[0]) => {
                    let group = decision.of[&args[0]];
                    self.expand(group, value, args[1])?;
                }
                Def::Op(Op::Get(get), args) => self.get(value, args[0], get.index as usize)?,
                Def::Call(callee, args) if self.changes[*callee].is_some() => {
                    self.call(value, *callee, args)?
                }
                _ => self.copy(value),
            }
        }
        for (i, &result) in f.results.iter().enumerate() {
            let group = self.group_of(result);
            match group {
                None => {
                    change.results.push(From::Old(i));
                    let new = self.map[&result];
                    self.to.results.push(new);
                }
                Some(group) => {
                    let states = 0..decision.groups[group].new.len();
                    let states = states.map(|k| (From::New(group, k), self.current[&(group, k)]));
                    for (from, new) in states.collect::<Vec<_>>() {
                        if !self.to.results.contains(&new) {
                            change.results.push(from);
                            self.to.results.push(new);
                        }
                    }
                }
            }
        }
        Ok((without_dead(&self.to), change))
    }

    /// The group of the state that `value` is a version of, if that state goes.
    fn group_of(&self, value: Value) -> Option<usize> {
        self.decision.of.get(self.decision.versions.get(&value)?).copied()
    }

    fn copy(&mut self, value: Value) {
        let data = &self.f.values[value];
        let def = with_args(&data.def, |arg| self.map[&arg]);
        let new = self.to.values.push(ValueData { def, ..data.clone() });
        self.map.insert(value, new);
    }

    fn free(&mut self, base: &str) -> String {
        let name = free_name(base, 1, |name| !self.taken.contains(name));
        self.taken.insert(name.clone());
        name
    }

    /// Adds an op on account of the old value `source`.
    fn op(&mut self, name: String, op: impl Into<Op>, args: &[Value], source: Value) -> Result<Value, Diag> {
        push_op(&mut self.to, self.f, name, op, args, source).map_err(|e| ill_typed("cache", e))
    }

    /// In place of a write that goes: the rows of all cached tokens, from what is kept.
    fn expand(&mut self, group: usize, write: Value, rows: Value) -> Result<(), Diag> {
        let Group { made: Made::Here(here), .. } = &self.decision.groups[group] else {
            unreachable!("a state that is written here is in a group made here")
        };
        let new = self.cached(group, here, (rows, Place::FIRST))?;
        // The rows have the name of the state after the write, where no other write has had it.
        let name = self.f.values[write].name.clone();
        if !self.map.values().any(|&other| other == new) && self.again.values().any(|&other| other == new) {
            self.to.values[new].name = name;
        }
        self.map.insert(write, new);
        Ok(())
    }

    /// `node` for all cached tokens.
    fn cached(&mut self, group: usize, here: &'a Here, node: Node) -> Result<Value, Diag> {
        if let Some(&known) = self.again.get(&node) {
            return Ok(known);
        }
        let kept = here.kept.iter().find(|(kept, _)| *kept == node).map(|(_, kept)| *kept);
        let value = match kept {
            Some(Kept::Old(write)) => {
                if !self.map.contains_key(&write) {
                    self.copy(write);
                }
                self.map[&write]
            }
            Some(Kept::New(k)) => self.keep(group, k, here, node)?,
            None => {
                let view = self.view(&here.new);
                let operands = view.operands(node).expect("what cannot be computed again is kept");
                let op = view.for_tokens(node, &here.cached);
                let mut args = Vec::with_capacity(operands.len());
                for operand in operands {
                    args.push(match operand {
                        Operand::PerToken(node) => self.cached(group, here, node)?,
                        Operand::Fixed(value) => self.map[&value],
                    });
                }
                let name = self.free(&format!("{}_cached", self.f.values[node.0].name));
                self.op(name, op, &args, node.0)?
            }
        };
        self.again.insert(node, value);
        Ok(value)
    }

    fn view(&self, tokens: &'a Tokens) -> View<'a> {
        View { module: self.old, f: self.f, fixed: self.fixed, tokens }
    }

    /// Writes a value that is kept into its state, and gives it back for all cached tokens.
    fn keep(&mut self, group: usize, k: usize, here: &Here, (value, place): Node) -> Result<Value, Diag> {
        let shape = self.f.tensor(value).expect("what is kept is a tensor").shape.to_vec();
        let name = self.f.values[value].name.clone();
        let mut rows = self.map[&value];
        // Both with sequences and tokens on the first axes, and as the value has them.
        let apart = |tokens: &Tokens| match place {
            Place::Apart { .. } => shape.clone(),
            Place::Together(axis) => {
                let both = [tokens.batch.clone(), tokens.each.clone()];
                [&shape[..axis], both.as_slice(), &shape[axis + 1..]].concat()
            }
        };
        let (batch, token) = match place {
            Place::Apart { batch, token } => (batch, token),
            Place::Together(axis) => (axis, axis + 1),
        };
        let rank = apart(&here.new).len();
        let own: Vec<usize> = (0..rank).collect();
        let first: Vec<usize> = [batch, token]
            .into_iter()
            .chain(own.iter().copied().filter(|a| ![batch, token].contains(a)))
            .collect();
        let letter = |axis: usize| match axis {
            axis if axis == batch => 'b',
            axis if axis == token => 't',
            axis => char::from(b'c' + (axis % 16) as u8),
        };
        if let Place::Together(_) = place {
            let name = self.free(&format!("{name}_apart"));
            rows = self.op(name, Reshape { shape: Dims(apart(&here.new)) }, &[rows], value)?;
        }
        if own != first {
            let name = self.free(&format!("{name}_rows"));
            rows = self.op(name, Einsum { spec: Spec::new(&[&own], &first, letter) }, &[rows], value)?;
        }
        let state = self.current[&(group, k)];
        let next = self.free(&format!("{}.next", self.to.values[state].name));
        let start = self.map[&here.start];
        let mut all = self.op(next, CacheWrite {}, &[state, rows, start], value)?;
        self.current.insert((group, k), all);
        if own != first {
            let name = self.free(&format!("{name}_cached"));
            all = self.op(name, Einsum { spec: Spec::new(&[&first], &own, letter) }, &[all], value)?;
        }
        if let Place::Together(axis) = place {
            let mut shape = shape.clone();
            shape[axis] = &here.cached.batch * &here.cached.each;
            let name = self.free(&format!("{name}_cached"));
            all = self.op(name, Reshape { shape: Dims(shape) }, &[all], value)?;
        }
        Ok(all)
    }

    /// A part of a call's results, which may have another number now.
    fn get(&mut self, value: Value, tuple: Value, index: usize) -> Result<(), Diag> {
        if self.group_of(value).is_some() {
            return Ok(());
        }
        let callee = match &self.f.values[tuple].def {
            Def::Call(callee, _) => self.changes[*callee].as_ref(),
            _ => None,
        };
        let Some(change) = callee else {
            self.copy(value);
            return Ok(());
        };
        let at = change.results.iter().position(|from| matches!(from, From::Old(i) if *i == index));
        let at = at.expect("a result that is no state is there still");
        let new = self.part(self.f.values[value].name.clone(), self.map[&tuple], at, value)?;
        self.map.insert(value, new);
        Ok(())
    }

    fn part(&mut self, name: String, tuple: Value, index: usize, source: Value) -> Result<Value, Diag> {
        if self.to.tensor(tuple).is_some() {
            return Ok(tuple);
        }
        self.op(name, Get { index: index as i64 }, &[tuple], source)
    }

    /// A call of a function whose states have changed.
    fn call(&mut self, value: Value, callee: Func, args: &[Value]) -> Result<(), Diag> {
        let changes: &'a Arena<Func, Option<Change>> = self.changes;
        let change = changes[callee].as_ref().expect("the caller has looked");
        let old = &self.old.funcs[callee];
        // The group here of each group there, by the first state of it.
        let there =
            self.decisions[callee].groups.iter().map(|group| self.group_of(args[group.old[0].index()]));
        let there: Vec<usize> =
            there.map(|own| own.expect("states that go in a callee go in its callers")).collect();
        let new_args: Vec<Value> = change
            .params
            .iter()
            .map(|from| match from {
                From::Old(i) => self.map[&args[*i]],
                From::New(group, k) => self.current[&(there[*group], *k)],
            })
            .collect();
        let ty = call_type(&self.new.funcs[callee], &self.to.values, &new_args)
            .map_err(|e| ill_typed("cache", e))?;
        let data = &self.f.values[value];
        let mut name = data.name.clone();
        if data.ty.tensor().is_some() && ty.tensor().is_none() {
            name = self.free(&old.name);
        }
        let new =
            self.to.values.push(ValueData { name, ty, def: Def::Call(callee, new_args), loc: data.loc });
        self.map.insert(value, new);
        for (i, from) in change.results.iter().enumerate() {
            if let From::New(group, k) = from {
                let key = (there[*group], *k);
                let name = self.free(&format!("{}.next", self.decision.groups[key.0].new[*k].name));
                let next = self.part(name, new, i, value)?;
                self.current.insert(key, next);
            }
        }
        Ok(())
    }
}
