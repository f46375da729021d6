//! Calls that follow each other, on the evaluator.

use eva_ir::dim::Sym;
use eva_ir::eval::{Array, Sizes, eval_values};
use eva_ir::graph::{Func, Module, ParamKind};
use eva_ir::{text, verify};
use eva_passes::cache::{CacheOptions, StateReport, lay_out_and_report};
use std::collections::BTreeMap;

pub fn parse(source: &str) -> Module {
    let module = text::parse(source).unwrap_or_else(|e| panic!("{e}"));
    verify::verify(&module).unwrap_or_else(|e| panic!("{e}"));
    module
}

/// The module laid out, verified; and what became of its states.
pub fn lay_out(module: &Module) -> (Module, Vec<StateReport>) {
    let (new, report) =
        lay_out_and_report(module, &CacheOptions::default()).unwrap_or_else(|e| panic!("{e}"));
    verify::verify(&new).unwrap_or_else(|e| panic!("{e}\n{new}"));
    (new, report)
}

/// The states of a function with their types, as text.
pub fn states(module: &Module, func: &str) -> Vec<String> {
    let f = &module.funcs[module.func(func).expect("the function is there")];
    let states = f.params().filter(|(_, kind)| *kind == ParamKind::State);
    states.map(|(state, _)| format!("{} {}", f.values[state].name, f.values[state].ty)).collect()
}

/// One call: the tokens cached of each sequence, and how many are new.
pub struct Step {
    pub start: Vec<i64>,
    pub new: i64,
}

/// The same number for the same name, call and place, whatever the module.
fn number(name: &str, call: usize, i: usize) -> f64 {
    let mut x = name.bytes().fold(call as u64 + 17, |x, c| x.wrapping_mul(31).wrapping_add(c.into()));
    x = (x.wrapping_add(i as u64)).wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
    x ^= x >> 29;
    x = x.wrapping_mul(0x9e3779b97f4a7c15);
    (x >> 33) as f64 / (1u64 << 30) as f64 - 1.0
}

/// An argument that is no state: weights are the same in all calls, `start` and `positions` as they are, the rest
/// random.
pub fn argument(name: &str, kind: ParamKind, shape: &[usize], call: usize, start: &[i64]) -> Array {
    let n: usize = shape.iter().product();
    let data = |call| (0..n).map(|i| number(name, call, i)).collect();
    match (kind, name) {
        (ParamKind::Weight, _) => Array::new(shape, data(usize::MAX - 20)),
        (_, "start") => Array::new(shape, start.iter().map(|&n| n as f64).collect()),
        (_, "positions") => Array::from_fn(shape, |index| (start[index[0]] + index[1] as i64) as f64),
        _ => Array::new(shape, data(call)),
    }
}

/// Runs calls one after the other from empty caches; all results that are not states, by name and call. Inputs and
/// weights are random; the integers are `start`, and `positions` counted from it.
pub fn run(
    module: &Module,
    func: Func,
    steps: &[Step],
    fixed: &[(&str, i64)],
) -> Vec<BTreeMap<String, Array>> {
    let f = &module.funcs[func];
    let table = &verify::state_results(module)[func];
    let mut kept: BTreeMap<String, Array> = BTreeMap::new();
    let mut all = Vec::new();
    for (call, step) in steps.iter().enumerate() {
        let t = step.start.iter().max().expect("a sequence") + step.new;
        let given = [("b", step.start.len() as i64), ("s", step.new), ("t", t)];
        let own = module.dims.iter().filter_map(|(sym, n)| Some((sym.clone(), (*n)?)));
        let given = given.iter().chain(fixed).map(|&(name, n)| (Sym::from(name), n));
        let sizes = Sizes(given.chain(own).collect());
        let args: Vec<Array> = f
            .params()
            .map(|(param, kind)| {
                let name = &f.values[param].name;
                let ty = f.tensor(param).expect("parameters are tensors");
                let shape: Vec<usize> = ty.shape.iter().map(|dim| sizes.of(dim)).collect();
                match kind {
                    ParamKind::State => Array::from_fn(&shape, |index| match kept.get(name) {
                        Some(old) if index[1] < old.shape[1] => old.at(index),
                        _ => 0.0,
                    }),
                    kind => argument(name, kind, &shape, call, &step.start),
                }
            })
            .collect();
        let values = eval_values(module, func, &sizes, &args);
        let mut results = BTreeMap::new();
        for (i, result) in f.results.iter().enumerate() {
            let array = values[result][0].clone();
            match table.iter().find(|(_, at)| *at == Some(i)) {
                Some((state, _)) => kept.insert(f.values[*state].name.clone(), array),
                None => results.insert(f.values[*result].name.clone(), array),
            };
        }
        all.push(results);
    }
    all
}

/// Sequences of different lengths, fed in pieces of different sizes.
pub fn steps() -> Vec<Step> {
    [(vec![0, 0], 5), (vec![3, 5], 1), (vec![4, 6], 3), (vec![7, 7], 1)]
        .map(|(start, new)| Step { start, new })
        .into()
}

/// Checks that a module does the same when it is laid out; gives that module and what became of its states.
pub fn check(module: &Module, func: &str) -> (Module, Vec<StateReport>) {
    let (new, report) = lay_out(module);
    let at = |m: &Module| m.func(func).expect("the function is there");
    let want = run(module, at(module), &steps(), &[]);
    let have = run(&new, at(&new), &steps(), &[]);
    for (call, (want, have)) in want.iter().zip(&have).enumerate() {
        let names = |results: &BTreeMap<String, Array>| results.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(want), names(have), "{new}");
        for (name, want) in want {
            let have = &have[name];
            assert_eq!(want.shape, have.shape);
            // What is computed again is computed from the same numbers, in the same order.
            let other = want.data.iter().zip(&have.data).find(|(x, y)| x != y);
            assert!(other.is_none(), "call {call}: `{name}` differs: {other:?}\n{new}");
        }
    }
    let (again, _) = lay_out(&new);
    assert_eq!(text::print(&again), text::print(&new), "laid out again, nothing changes");
    (new, report)
}
