//! The function that computes what is hoisted, and the bodies without it.

use super::Fact;
use crate::rebuild::{free_name, with_args};
use eva_ir::attr::Dims;
use eva_ir::entity::Entity;
use eva_ir::graph::{Def, Func, Function, ParamKind, Value, ValueData};
use eva_ir::ops::Op;
use eva_ir::ops::reshape::Reshape;
use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap, HashSet};

/// What is computed of weights for all bodies of a function.
pub(super) struct Hoisted {
    /// The function that computes it.
    pub companion: Function,
    /// The parameters of the function that the companion takes.
    pub takes: Vec<usize>,
    /// For each body: the results of the companion that its values are, by number.
    pub of: Vec<HashMap<Value, usize>>,
}

/// What a value of a companion is; what is equal is computed once.
#[derive(PartialEq, Eq, Hash)]
enum Term<'a> {
    Op(&'a Op, Vec<Value>),
    Call(Func, Vec<Value>),
}

impl Hoisted {
    /// For bodies with the same parameters, and the values of each to hoist.
    pub fn new(bodies: &[Cow<Function>], cuts: &[Vec<Value>], of: Func, name: String) -> Self {
        let needed: Vec<Vec<bool>> = bodies.iter().zip(cuts).map(|(body, cuts)| cone(body, cuts)).collect();
        let first = &bodies[0];
        let mut new = Function { name, prepares: Some(of), ..Function::default() };
        let mut params: HashMap<Value, Value> = HashMap::new();
        let mut takes = Vec::new();
        for (param, _) in first.params().filter(|(param, _)| needed.iter().any(|body| body[param.index()])) {
            takes.push(param.index());
            params.insert(param, new.values.push(first.values[param].clone()));
        }
        let mut terms: HashMap<Term, Value> = HashMap::new();
        let mut maps = Vec::with_capacity(bodies.len());
        for (body, needed) in bodies.iter().zip(&needed) {
            let mut map = params.clone();
            for (value, data) in body.values.iter().filter(|(value, _)| needed[value.index()]) {
                let args = |args: &[Value]| args.iter().map(|arg| map[arg]).collect();
                let term = match &data.def {
                    Def::Param(_) => continue,
                    Def::Op(op, a) => Term::Op(op, args(a)),
                    Def::Call(func, a) => Term::Call(*func, args(a)),
                };
                let def = with_args(&data.def, |arg| map[&arg]);
                let make = || new.values.push(ValueData { def, ..data.clone() });
                let same = *terms.entry(term).or_insert_with(make);
                map.insert(value, same);
            }
            maps.push(map);
        }
        let results: BTreeSet<Value> =
            maps.iter().zip(cuts).flat_map(|(map, cuts)| cuts.iter().map(|cut| map[cut])).collect();
        let number: HashMap<Value, usize> =
            results.iter().enumerate().map(|(i, &value)| (value, i)).collect();
        let of = maps.iter().zip(cuts);
        let of: Vec<HashMap<Value, usize>> =
            of.map(|(map, cuts)| cuts.iter().map(|&cut| (cut, number[&map[&cut]])).collect()).collect();
        new.results = results.into_iter().collect();
        rename(&mut new, bodies, &of);
        Self { companion: new, takes, of }
    }

    /// `body` with what is hoisted as weights, after its other parameters.
    pub fn without(&self, body: &Function, facts: &[Option<Fact>], of: &HashMap<Value, usize>) -> Function {
        let mut new = Function { name: body.name.clone(), prepares: body.prepares, ..Function::default() };
        let mut map: HashMap<Value, Value> = HashMap::with_capacity(body.values.len());
        for (param, _) in body.params() {
            map.insert(param, new.values.push(body.values[param].clone()));
        }
        let def = Def::Param(ParamKind::Weight);
        let results = self.companion.results.iter().map(|&value| &self.companion.values[value]);
        let weights: Vec<Value> =
            results.map(|data| new.values.push(ValueData { def: def.clone(), ..data.clone() })).collect();
        map.extend(of.iter().map(|(&cut, &number)| (cut, weights[number])));
        // What is left of weights alone and still used: views and constants.
        let mut kept = vec![false; body.values.len()];
        body.results.iter().for_each(|value| kept[value.index()] = true);
        for (value, data) in body.values.iter().rev() {
            let stays = facts[value.index()].is_none() || kept[value.index()];
            kept[value.index()] = stays && !map.contains_key(&value);
            if kept[value.index()] {
                data.def.args().iter().for_each(|arg| kept[arg.index()] = true);
            }
        }
        for (value, data) in body.values.iter().filter(|(value, _)| kept[value.index()]) {
            let def = with_args(&data.def, |arg| map[&arg]);
            map.insert(value, new.values.push(ValueData { def, ..data.clone() }));
        }
        // A result has a name of its own that is known outside.
        new.results = body
            .results
            .iter()
            .map(|value| match of.contains_key(value) {
                true => {
                    let data = &body.values[*value];
                    let shape = data.ty.parts().iter().flat_map(|ty| ty.shape.iter().cloned());
                    let def = Def::Op(Reshape { shape: Dims(shape.collect()) }.into(), vec![map[value]]);
                    new.values.push(ValueData { def, ..data.clone() })
                }
                false => map[value],
            })
            .collect();
        new
    }
}

/// Which values `cuts` need, themselves included.
fn cone(f: &Function, cuts: &[Value]) -> Vec<bool> {
    let mut needed = vec![false; f.values.len()];
    cuts.iter().for_each(|cut| needed[cut.index()] = true);
    for (value, data) in f.values.iter().rev() {
        if needed[value.index()] {
            data.def.args().iter().for_each(|arg| needed[arg.index()] = true);
        }
    }
    needed
}

/// Gives a companion's values names of their own: its results some that no body has for anything else.
fn rename(companion: &mut Function, bodies: &[Cow<Function>], of: &[HashMap<Value, usize>]) {
    // What each name stands for in the bodies: a result of the companion, or something else.
    let mut stands: HashMap<&str, Option<usize>> = HashMap::new();
    for (body, of) in bodies.iter().zip(of) {
        for (value, data) in body.values.iter() {
            let this = of.get(&value).copied().filter(|_| !body.results.contains(&value));
            let known = stands.entry(&data.name).or_insert(this);
            *known = known.filter(|_| *known == this);
        }
    }
    let mut taken: HashSet<String> =
        companion.params().map(|(param, _)| companion.values[param].name.clone()).collect();
    let fresh = |base: &str, taken: &mut HashSet<String>, free: &dyn Fn(&str) -> bool| {
        let name = free_name(base, 1, |name| free(name) && !taken.contains(name));
        taken.insert(name.clone());
        name
    };
    let results = companion.results.clone();
    for (number, &value) in results.iter().enumerate() {
        let free = |name: &str| stands.get(name).is_none_or(|known| *known == Some(number));
        companion.values[value].name = fresh(&companion.values[value].name, &mut taken, &free);
    }
    let params = companion.params().count();
    let results: HashSet<Value> = results.into_iter().collect();
    let others: Vec<Value> =
        companion.values.keys().skip(params).filter(|value| !results.contains(value)).collect();
    for value in others {
        companion.values[value].name = fresh(&companion.values[value].name, &mut taken, &|_| true);
    }
}
