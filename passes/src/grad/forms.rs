//! The form of attention of a function with gradients: chosen on the joint graph, by what both directions take.
//!
//! Keys and values expanded from latents, or queries absorbed into them, are found by the rules of [`crate::form`], on the
//! function as it is written. Each form is differentiated, so that no rule is needed for gradients of attention, and the
//! joint graphs are compared as wholes: every op of both directions, and what is kept between them or computed again
//! (`split.rs`, which only then makes two functions of the one that was chosen). The logarithms of the scores' sums are the
//! same numbers in all forms, so the gradients of the written form can be taken with another forward.

use super::active::Active;
use super::reverse::{Joint, reverse};
use super::{Options, Pair, assemble, split};
use crate::Hoist;
use crate::attend;
use crate::cost::Cost;
use crate::form::{self, Form};
use crate::rewrite::extract::Selection;
use crate::rewrite::{Id, Side, Sides, saturate_by};
use eva_ir::diag::Diag;
use eva_ir::dim::Sym;
use eva_ir::estimate::{Estimate, least};
use eva_ir::graph::{Def, Func, Function, Module, Value};
use eva_ir::ops::Op;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// What was compared for a function with attention over latents, and what was chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// The function.
    pub function: String,
    /// The values taken for extents that the module leaves open.
    pub sizes: BTreeMap<Sym, i64>,
    /// The joint graphs, the one as written first.
    pub candidates: Vec<Candidate>,
    /// The number of the one that was chosen.
    pub chosen: usize,
}

/// A function with its gradients in one form.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// How keys and values are computed by the forward pass.
    pub forward: Sides,
    /// The same, of what the gradients are of.
    pub backward: Sides,
    /// What both directions and what is between them take, in the metric's unit (seconds), over the extents that the module
    /// leaves open; what is called aside, and with what is kept at the sizes of the choice.
    pub estimate: Estimate,
    /// The part of it that the results alone need, at the sizes of the choice.
    pub forward_seconds: f64,
    /// What gradients need besides.
    pub backward_seconds: f64,
    /// What keeping values for the backward pass takes, and computing others again.
    pub kept_seconds: f64,
    /// The bytes that are kept.
    pub kept_bytes: f64,
}

impl Candidate {
    /// What decides: both directions, and what is between them.
    pub fn seconds(&self) -> f64 {
        self.forward_seconds + self.backward_seconds + self.kept_seconds
    }
}

impl Choice {
    /// The number of the candidate that would be chosen by cost at other extents, as far as they are open.
    pub fn at(&self, sizes: &BTreeMap<Sym, i64>) -> usize {
        let value_of = |sym: &Sym| sizes.get(sym).or_else(|| self.sizes.get(sym)).copied();
        least(self.candidates.iter().map(|candidate| &candidate.estimate), &value_of)
    }
}

/// What all forms are made of.
pub(super) struct Given<'a> {
    /// The module as it was given.
    pub original: &'a Module,
    /// The same with attention recognized, and what takes part in it.
    pub module: &'a Module,
    pub active: &'a Active<'a>,
    /// The module so far, and the functions that have been differentiated.
    pub new: &'a Module,
    pub pairs: &'a HashMap<Func, Pair>,
    /// The function with the loss, and which of its parameters are differentiated by.
    pub root: Func,
    pub wrt: &'a [bool],
    pub options: &'a Options,
    /// Which of the candidates to take.
    pub choose: &'a dyn Fn(&[Candidate]) -> usize,
}

/// A form, differentiated.
struct Formed {
    /// The function, its attention recognized.
    function: Arc<Function>,
    joint: Joint,
    forward: Sides,
    backward: Sides,
}

/// A function with keys or values absorbed, and which.
type Absorbed = (Arc<Function>, Sides);

/// The form that was taken.
pub(super) struct Taken {
    pub joint: Joint,
    /// The function, if it is not as it was written.
    pub function: Option<Arc<Function>>,
    /// What was compared, if there was a choice.
    pub choice: Option<Choice>,
}

impl Given<'_> {
    /// The joint graph of `func`, in the form that is chosen.
    pub fn take(&self, func: Func) -> Result<Taken, Diag> {
        let written = self.joint(self.module, self.active, func)?;
        let Some((sides, others)) = self.others(func)? else {
            return Ok(Taken { joint: written, function: None, choice: None });
        };
        let mut all = vec![Formed {
            function: self.module.funcs[func].clone(),
            joint: written,
            forward: sides,
            backward: sides,
        }];
        for (function, sides) in others {
            let module = with_function(self.module, func, function.clone());
            let active = Active::new(&module, self.root, self.wrt)?;
            // What an absorbed form depends on is what the written one does.
            let same = active.params(func) == self.active.params(func)
                && active.seeds(func) == self.active.seeds(func);
            // A form that cannot be differentiated is none.
            if let (true, Ok(joint)) = (same, self.joint(&module, &active, func)) {
                all.push(Formed { function, joint, forward: sides, backward: sides });
            }
        }
        if all.len() == 1 {
            return Ok(Taken { joint: all.remove(0).joint, function: None, choice: None });
        }
        if self.options.form == Form::Auto {
            for i in 1..all.len() {
                if let Some(joint) = super::mixed::mixed(&all[0].joint, &all[0].function, &all[i].function) {
                    let (function, forward) = (all[i].function.clone(), all[i].forward);
                    all.push(Formed { function, joint, forward, backward: sides });
                }
            }
        }
        let candidates: Vec<Candidate> = all.iter().map(|formed| self.cost(func, formed)).collect();
        let chosen = (self.choose)(&candidates).min(candidates.len() - 1);
        let (function, sizes) = (self.module.funcs[func].name.clone(), self.options.cost.sizes.clone());
        let formed = all.swap_remove(chosen);
        let choice = Some(Choice { function, sizes, candidates, chosen });
        Ok(Taken { joint: formed.joint, function: (chosen > 0).then_some(formed.function), choice })
    }

    fn joint(&self, module: &Module, active: &Active<'_>, func: Func) -> Result<Joint, Diag> {
        let (params, seeds) = (active.params(func), active.seeds(func));
        reverse(self.new, module, func, &params, &seeds, active, self.pairs)
    }

    /// How keys and values are computed as written, and the function with some of them absorbed, its attention recognized, in
    /// several ways: all that can be absorbed first.
    fn others(&self, func: Func) -> Result<Option<(Sides, Vec<Absorbed>)>, Diag> {
        let f = &self.original.funcs[func];
        let attends = f.values.iter().any(|(_, data)| matches!(data.def, Def::Op(Op::CausalSoftmax(_), _)));
        let is_open = matches!(self.options.form, Form::Auto | Form::Absorbed);
        if !attends || !is_open || !f.alternatives.is_empty() {
            return Ok(None);
        }
        let what = crate::Options {
            numerics: self.options.numerics,
            rules: self.options.rules.clone(),
            hoist: Hoist::Never,
            ..crate::Options::default()
        };
        let rules = form::rules(&what)?;
        let s = saturate_by(f, &rules)?;
        let cost = Cost::new(self.original, f, &self.options.cost);
        let mut seen: Vec<Selection> = Vec::new();
        let mut found = Vec::new();
        for forced in parts(&s.absorbable()) {
            // What is not forced is as the forward pass alone has it cheapest.
            let selection = s.cheapest_without(f, &cost, &forced)?;
            let sides = s.sides(&selection);
            let absorbs = [sides.key, sides.value].contains(&Some(Side::Absorbed));
            if !absorbs || seen.contains(&selection) {
                continue;
            }
            if let Some(function) = s.take(f, &rules, &cost, &selection)?.0 {
                let module = with_function(self.original, func, Arc::new(function));
                let module = attend::with_sums(&attend::recognize(&module)?)?;
                found.push((module.funcs[func].clone(), sides));
            }
            seen.push(selection);
        }
        Ok((!found.is_empty()).then(|| (s.sides(&s.original(f)), found)))
    }

    /// What a form takes.
    fn cost(&self, func: Func, formed: &Formed) -> Candidate {
        let Formed { joint, forward, backward, .. } = formed;
        let costs = &self.options.cost;
        let graph = &joint.grown.function;
        let estimate = |results: &[Value]| {
            let params: Vec<Value> = joint.params.iter().chain(&joint.seeds).copied().collect();
            let part = assemble(graph, "joint", &params, &[], &[], results);
            let cost = Cost::new(self.new, &part, costs);
            let estimate = cost.estimate(&part);
            let seconds = estimate.eval(&|sym| cost.size_of(sym)).unwrap_or(f64::INFINITY);
            (estimate, seconds)
        };
        let gradients: Vec<Value> = joint.gradients.iter().filter_map(|(_, _, gradient)| *gradient).collect();
        let (_, forward_seconds) = estimate(&joint.results);
        let (mut estimate, all) = estimate(&[&joint.results[..], &gradients].concat());
        let between = match func == self.root {
            // What is not split keeps what it needs.
            true => split::Between::default(),
            false => split::between(self.new, joint, &gradients, self.options),
        };
        let cost = Cost::new(self.new, graph, costs);
        let kept_seconds = between.estimate.eval(&|sym| cost.size_of(sym)).unwrap_or(f64::INFINITY);
        estimate.add(between.estimate.sum().clone());
        between.estimate.maxima().iter().cloned().for_each(|(a, b)| estimate.add_max(a, b));
        Candidate {
            forward: *forward,
            backward: *backward,
            estimate,
            forward_seconds,
            backward_seconds: all - forward_seconds,
            kept_seconds,
            kept_bytes: between.bytes,
        }
    }
}

/// Which keys and values to absorb, the others being as the forward pass has them cheapest: all; each of them alone, and all but
/// each; none. Of many, all keys or all values in place of each.
fn parts(all: &BTreeMap<Id, &'static str>) -> Vec<BTreeSet<Id>> {
    let of = |is_in: &dyn Fn(Id, &str) -> bool| -> BTreeSet<Id> {
        all.iter().filter(|(id, rule)| is_in(**id, rule)).map(|(id, _)| *id).collect()
    };
    let mut parts = vec![of(&|_, _| true)];
    if all.len() <= FEW {
        parts.extend(all.keys().map(|one| of(&|id, _| id != *one)));
        parts.extend(all.keys().map(|one| of(&|id, _| id == *one)));
    } else {
        let rules: BTreeSet<&str> = all.values().copied().collect();
        parts.extend(rules.iter().map(|rule| of(&|_, other| other == *rule)));
    }
    parts.push(BTreeSet::new());
    let mut seen = BTreeSet::new();
    parts.retain(|part| seen.insert(part.clone()));
    parts
}

/// So many keys and values are decided one by one.
const FEW: usize = 4;

/// The number of the candidate that takes least, the first of equals: so what is written stays.
pub(super) fn cheapest(candidates: &[Candidate]) -> usize {
    let seconds = candidates.iter().map(Candidate::seconds).enumerate();
    seconds.min_by(|(_, a), (_, b)| a.total_cmp(b)).map_or(0, |(i, _)| i)
}

fn with_function(module: &Module, func: Func, function: Arc<Function>) -> Module {
    let mut module = module.clone();
    module.funcs[func] = function;
    Module { verified: Default::default(), ..module }
}
