//! How a [`Recording`] becomes a [`Function`]: parameters first, nothing unused, every value with a name of its own.

use super::call::Signature;
use super::record::{Inner, Name, Recording, Update};
use super::tensor::Tensor;
use eva_ir::diag::Diag;
use eva_ir::entity::Entity;
use eva_ir::graph::{Def, Function, ParamKind, Value, ValueData};
use std::collections::{HashMap, HashSet};
use std::rc::Rc;

impl Recording {
    /// The function with these results, and what a caller must know of it; `None` if there are mistakes in it.
    pub fn finish(self: &Rc<Self>, results: &[Tensor]) -> Option<(Function, Signature)> {
        let results = self.own(results, self.loc);
        self.inner_mut().done = true;
        let updates = self.updated_states();
        let (given, updates) = (results?, updates?);

        let taps = self.inner().taps.clone();
        let mut all: Vec<Value> = Vec::new();
        let mut place = |value: Value| {
            all.iter().position(|&v| v == value).unwrap_or_else(|| {
                all.push(value);
                all.len() - 1
            })
        };
        let given_at: Vec<usize> = given.iter().map(|&v| place(v)).collect();
        let states_at: Vec<usize> = updates.iter().map(|&v| place(v)).collect();
        let taps_at: Vec<(Rc<str>, usize)> = taps.into_iter().map(|(name, v)| (name, place(v))).collect();
        if all.is_empty() {
            let message = format!("@{} has no results", self.name);
            let help = "end the function with the tensors it gives, without a `;`";
            self.note(
                Diag::new("eva::no_results", message).label(Some(self.loc), "this function").help(help),
            );
            return None;
        }
        let order = self.order(&all);
        let names = self.names(&order, &all)?;

        let inner = self.inner();
        let mut function = Function::new(&self.name);
        // Where each recorded value is now; what is not needed is nowhere.
        let mut moved: Vec<Option<Value>> = vec![None; inner.values.len()];
        let at = |moved: &[Option<Value>], old: Value| moved[old.index()].expect("operands are kept, too");
        for (&old, name) in order.iter().zip(&names) {
            let ValueData { ty, def, loc, .. } = &inner.values[old];
            let args = |args: &[Value]| args.iter().map(|&arg| at(&moved, arg)).collect::<Vec<_>>();
            let def = match def {
                Def::Param(kind) => Def::Param(*kind),
                Def::Op(op, used) => Def::Op(op.clone(), args(used)),
                Def::Call(func, used) => Def::Call(*func, args(used)),
            };
            let (name, ty) = (String::from(&**name), ty.clone());
            moved[old.index()] = Some(function.values.push(ValueData { name, ty, def, loc: *loc }));
        }
        function.results = all.iter().map(|&v| at(&moved, v)).collect();
        let mut signature = self.outline(given.len());
        signature.result_names = function.results.iter().map(|&v| names[v.index()].clone()).collect();
        (signature.given, signature.states_at, signature.taps) = (given_at, states_at, taps_at);
        Some((function, signature))
    }

    /// The parameters of the function as far as it got, and that it gives `results` tensors.
    pub fn outline(&self, results: usize) -> Signature {
        let inner = self.inner();
        let of_kind = |kind: ParamKind| {
            let param = |(value, data): (Value, &ValueData)| match (&data.def, &inner.names[value.index()]) {
                (Def::Param(k), Name::Exact(name)) if *k == kind => {
                    Some((name.clone(), data.ty.tensor()?.clone(), data.loc))
                }
                _ => None,
            };
            inner.values.iter().filter_map(param).collect()
        };
        Signature {
            inputs: of_kind(ParamKind::Input),
            weights: of_kind(ParamKind::Weight),
            states: of_kind(ParamKind::State),
            given: vec![0; results],
            states_at: Vec::new(),
            taps: Vec::new(),
            result_names: Vec::new(),
        }
    }

    /// The final value of each state; `None` if a state has none.
    fn updated_states(&self) -> Option<Vec<Value>> {
        let inner = self.inner();
        let mut values = Some(Vec::new());
        for state in &inner.states {
            let value = match state.update {
                Update::Done(_, value) => value,
                Update::Pending => {
                    let message = format!("the state `{}` of @{} is never written", state.name, self.name);
                    let diag = Diag::new("eva::state", message)
                        .label(inner.values[state.param].loc, "declared here");
                    self.note(diag.help("write the new rows: `state.write(&rows, &start)`"));
                    None
                }
            };
            values = values.zip(value).map(|(mut values, value)| {
                values.push(value);
                values
            });
        }
        values
    }

    /// The values to keep, parameters first: inputs, weights, states, then what the results need.
    fn order(&self, results: &[Value]) -> Vec<Value> {
        let inner = self.inner();
        let mut needed = vec![false; inner.values.len()];
        results.iter().for_each(|value| needed[value.index()] = true);
        for (value, data) in inner.values.iter().rev() {
            if needed[value.index()] {
                data.def.args().iter().for_each(|arg| needed[arg.index()] = true);
            }
        }
        let rank = |value: &Value| match inner.values[*value].def {
            Def::Param(kind) => kind as usize,
            _ => ParamKind::State as usize + 1,
        };
        let is_param = |value: &Value| matches!(inner.values[*value].def, Def::Param(_));
        let mut order: Vec<Value> =
            inner.values.keys().filter(|v| needed[v.index()] || is_param(v)).collect();
        order.sort_by_key(rank);
        order
    }

    /// A name for each value of `order`, in that order, all different: those known outside as they are, then those of the results,
    /// then the others that were asked for, numbered where there are several, then the ops' names.
    fn names(&self, order: &[Value], results: &[Value]) -> Option<Vec<Rc<str>>> {
        let inner = self.inner();
        let mut names = Names {
            of: vec![None; inner.values.len()],
            taken: HashSet::with_capacity(order.len()),
            next: HashMap::new(),
        };
        for &value in order {
            if let Name::Exact(name) = &inner.names[value.index()] {
                names.take(value, name);
            }
        }
        let mut clash = false;
        for &value in results {
            if let Name::Wanted(name) = &inner.names[value.index()]
                && !names.take(value, name)
            {
                let diag = Diag::new(
                    "eva::duplicate_name",
                    format!("a result of @{} is named `{name}`, but so is another value", self.name),
                );
                let diag = diag.label(inner.values[value].loc, "this result");
                self.note(diag.help("a result is known by its name: give it another with `.named(…)`"));
                clash = true;
            }
        }
        for &value in order {
            if let Name::Wanted(name) = &inner.names[value.index()] {
                names.number(value, name);
            }
        }
        for &value in order {
            if names.of[value.index()].is_none() {
                names.number(value, &op_name(&inner, value).into());
            }
        }
        if clash {
            return None;
        }
        order.iter().map(|value| names.of[value.index()].take()).collect()
    }
}

/// What a value without a name is called.
fn op_name(inner: &Inner, value: Value) -> &'static str {
    match &inner.values[value].def {
        Def::Op(op, _) => op.kind().name(),
        Def::Call(..) => "call",
        Def::Param(_) => "param",
    }
}

/// Names given so far.
struct Names {
    /// The name of each recorded value that has one.
    of: Vec<Option<Rc<str>>>,
    taken: HashSet<Rc<str>>,
    /// How often a number was added to each name.
    next: HashMap<Rc<str>, usize>,
}

impl Names {
    /// Names `value` exactly so, if the name is free.
    fn take(&mut self, value: Value, name: &Rc<str>) -> bool {
        self.taken.insert(name.clone()) && self.of[value.index()].replace(name.clone()).is_none()
    }

    /// Names `value`, unless it has a name, with a number after the name if it is taken.
    fn number(&mut self, value: Value, name: &Rc<str>) {
        if self.of[value.index()].is_some() || self.take(value, name) {
            return;
        }
        loop {
            let next = self.next.entry(name.clone()).or_insert(0);
            *next += 1;
            let numbered = format!("{name}_{next}").into();
            if self.take(value, &numbered) {
                return;
            }
        }
    }
}
