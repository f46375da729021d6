//! Whether rules tell the truth: every term that they add is evaluated, and compared with the class that it is in.
//!
//! So a wrong rule is found in whatever place of a function it applies, chosen by cost or not.

use super::rules::Rule;
use super::term::Term;
use super::{facts, saturate_by};
use egg::Id;
use eva_ir::diag::Diag;
use eva_ir::eval::{Array, Sizes};
use eva_ir::graph::{Def, Func, Module, Value};
use eva_ir::kernel::run::round;
use eva_ir::ops::Op;
use eva_ir::types::DType;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// How far a term may be from its class, over the largest magnitude in it, where numbers are not rounded.
const CLOSE: f64 = 1e-10;

/// What was found in one function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// The terms that compute something else than their class, each with the rule that added it.
    pub wrong: Vec<String>,
    /// The rules that added something.
    pub fired: BTreeSet<&'static str>,
}

/// An op on what its operands are, each a tuple of one part or more.
fn apply(op: &Op, args: &[&Vec<Array>], sizes: &Sizes, rounded: Option<DType>) -> Vec<Array> {
    let mut parts = match op {
        Op::Get(get) => vec![args[0][get.index as usize].clone()],
        _ => op.eval(sizes, &args.iter().map(|parts| &parts[0]).collect::<Vec<_>>()),
    };
    if let Some(dtype) = rounded {
        parts.iter_mut().for_each(|x| *x = x.map(|x| round(x, dtype)));
    }
    parts
}

/// All values of a function, each op's result rounded to this type or not at all.
pub fn values(
    module: &Module,
    func: Func,
    sizes: &Sizes,
    args: &[Array],
    rounded: Option<DType>,
) -> HashMap<Value, Vec<Array>> {
    let mut values: HashMap<Value, Vec<Array>> = HashMap::new();
    let mut given = args.iter();
    for (value, data) in module.funcs[func].values.iter() {
        let parts = |args: &[Value]| args.iter().map(|arg| &values[arg]).collect::<Vec<_>>();
        let result = match &data.def {
            Def::Param(_) => given.next().map(|arg| vec![arg.clone()]).unwrap_or_default(),
            Def::Op(op, args) => apply(op, &parts(args), sizes, rounded),
            Def::Call(callee, args) => {
                let args: Vec<Array> = parts(args).iter().map(|parts| parts[0].clone()).collect();
                let inner = self::values(module, *callee, sizes, &args, rounded);
                module.funcs[*callee].results.iter().map(|v| inner[v][0].clone()).collect()
            }
        };
        values.insert(value, result);
    }
    values
}

/// Applies `rules` to a function and evaluates every term of its e-graph, `args` being what it is given: each must give
/// what its class does, or the same bits if every op is `rounded` to some type. `Err` if a rule is stopped as ill-typed.
pub fn check(
    module: &Module,
    func: Func,
    rules: &[Rule],
    sizes: &Sizes,
    args: &[Array],
    rounded: Option<DType>,
) -> Result<Checked, Diag> {
    let f = &module.funcs[func];
    let known = values(module, func, sizes, args, rounded);
    let s = saturate_by(f, rules)?;
    let agree = |a: &[Array], b: &[Array]| {
        let same = if rounded.is_some() { same_bits } else { close };
        a.iter().zip(b).all(|(a, b)| same(a, b))
    };
    let mut wrong = Vec::new();
    let mut values: BTreeMap<Id, Vec<Array>> = BTreeMap::new();
    for (value, data) in f.values.iter() {
        let class = values.entry(s.class(value)).or_insert_with(|| known[&value].clone());
        if !agree(class, &known[&value]) {
            wrong.push(format!("%{} is said to be equal to what it is not equal to", data.name));
        }
    }
    let mut classes: Vec<Id> = s.egraph.classes().map(|class| class.id).collect();
    classes.sort();
    let eval = |term: &Term, values: &BTreeMap<Id, Vec<Array>>| {
        let Term::Op(kind, children) = term else { return None };
        let (attrs, args) = children.split_at(kind.attr_names().len());
        let args: Vec<_> = args.iter().map(|&id| values.get(&s.egraph.find(id))).collect::<Option<_>>()?;
        Some(apply(&facts::op(&s.egraph, *kind, attrs)?, &args, sizes, rounded))
    };
    // What no value of the function is: by whichever of its terms has its operands first.
    loop {
        let open = classes.iter().copied().filter(|class| !values.contains_key(class));
        let found: Vec<_> = open
            .filter_map(|class| {
                Some((class, s.egraph[class].nodes.iter().find_map(|term| eval(term, &values))?))
            })
            .collect();
        if found.is_empty() {
            break;
        }
        values.extend(found);
    }
    let produced = s.produced();
    let named =
        |class: Id| f.values.iter().find(|(value, _)| s.class(*value) == class).map(|(_, data)| &data.name);
    for &class in &classes {
        for term in &s.egraph[class].nodes {
            let Some(now) = eval(term, &values) else { continue };
            if agree(&values[&class], &now) {
                continue;
            }
            let rule = produced.get(&super::extract::canonical(&s.egraph, term));
            let by = rule.map_or(String::new(), |rule| format!(", by the rule `{rule}`"));
            let place = named(class).map_or("a value that a rule added".into(), |name| format!("%{name}"));
            wrong.push(format!("`{term}` is not equal to {place}{by}"));
        }
    }
    Ok(Checked { wrong, fired: s.fired(rules) })
}

fn close(a: &Array, b: &Array) -> bool {
    let scale = a.data.iter().fold(1e-300f64, |m, x| m.max(x.abs()));
    a.shape == b.shape && a.data.iter().zip(&b.data).all(|(x, y)| (x - y).abs() <= CLOSE * scale)
}

fn same_bits(a: &Array, b: &Array) -> bool {
    a.shape == b.shape && a.data.iter().zip(&b.data).all(|(x, y)| x.to_bits() == y.to_bits())
}
