//! What depends on weights alone is computed once, when a function is loaded, and not in every call.
//!
//! A function whose ops use such values gets a weight for each, and a companion that computes them from the others
//! ([`Function::prepares`]). Its caller computes them likewise: 61 calls of a layer are 61 calls of the layer's companion
//! in the caller's. Companions come after all other functions, so that those keep their numbers. The parameters that a
//! function had it keeps, used or not.
//!
//! What costs a call nothing stays in it: views of a weight, and a widening cast, which is part of the read of what
//! uses it and half as many bytes to read. So the value hoisted is the one before them, and weights that are widened and
//! then joined are joined as they are stored.
//!
//! A callee's weights are hoisted only where each call gives it values of weights alone. What has an extent that
//! neither the module nor the shape of a weight fixes is not hoisted.
//!
//! The bodies of a function ([`Function::alternatives`]) share what is hoisted, each computation once.
//!
//! This is for inference: where weights change between calls, compile with [`Hoist::Never`].

mod companion;
mod narrow;

use crate::rebuild::{free_name, ill_typed, with_args};
use companion::Hoisted;
use eva_ir::attr::Attr;
use eva_ir::diag::Diag;
use eva_ir::dim::{Dim, Sym};
use eva_ir::entity::{Arena, Entity};
use eva_ir::graph::{Alternative, Def, Func, Function, Module, ParamKind, Value, ValueData};
use eva_ir::ops::Op;
use eva_ir::types::DType;
use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

/// When what depends on weights alone is computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hoist {
    /// When a function is loaded, once: for weights that do not change between calls.
    #[default]
    AtLoad,
    /// In every call.
    Never,
}

/// The module with companions, as far as there is anything to hoist. One that has companions is left as it is.
pub fn hoist(module: &Module) -> Result<Module, Diag> {
    if module.funcs.iter().any(|(_, f)| f.prepares.is_some()) {
        return Ok(module.clone());
    }
    let analysis = Analysis::new(module);
    let mut hoister =
        Hoister { module, analysis, funcs: Arena::default(), companions: Vec::new(), by: HashMap::new() };
    for func in module.funcs.keys() {
        hoister.function(func)?;
    }
    let Hoister { mut funcs, companions, .. } = hoister;
    for companion in companions {
        funcs.push(Arc::new(companion));
    }
    Ok(Module { dims: module.dims.clone(), funcs, ..Module::default() })
}

/// What is known of a value that depends on weights and constants alone.
#[derive(Clone, Default)]
struct Fact {
    /// Whether it takes a weight, or a call.
    weights: bool,
    /// The open extents that the shapes of its weights give.
    given: Arc<BTreeSet<Sym>>,
}

/// Which values depend on weights alone.
struct Analysis {
    /// The open extents in each function, called ones included.
    open: Arena<Func, BTreeSet<Sym>>,
    /// Whether each parameter of each function is a weight that is always given values of weights alone.
    stable: Arena<Func, Vec<bool>>,
}

impl Analysis {
    fn new(module: &Module) -> Self {
        let mut open: Arena<Func, BTreeSet<Sym>> = Arena::default();
        for (_, f) in module.funcs.iter() {
            let mut syms = BTreeSet::new();
            for (_, data) in f.bodies().flat_map(|(body, _)| body.values.iter()) {
                collect_open(module, data, &mut syms);
                if let Def::Call(callee, _) = data.def {
                    syms.extend(open[callee].iter().cloned());
                }
            }
            open.push(syms);
        }
        let weights = |f: &Function| f.params().map(|(_, kind)| kind == ParamKind::Weight).collect();
        let stable = module.funcs.iter().map(|(_, f)| weights(f)).collect();
        let mut this = Self { open, stable };
        // Callers are newer than what they call.
        for (func, body) in
            module.funcs.iter().rev().flat_map(|(func, f)| f.bodies().map(move |b| (func, b.0)))
        {
            let facts = this.facts(module, func, body);
            for (_, data) in body.values.iter() {
                let Def::Call(callee, args) = &data.def else { continue };
                let stable = &mut this.stable[*callee];
                stable.iter_mut().zip(args).for_each(|(stable, arg)| *stable &= facts[arg.index()].is_some());
            }
        }
        this
    }

    /// What is known of each value of `f`, which has the parameters of `func`; `None` of those that depend on more.
    fn facts(&self, module: &Module, func: Func, f: &Function) -> Vec<Option<Fact>> {
        let mut facts: Vec<Option<Fact>> = Vec::with_capacity(f.values.len());
        let none = Arc::<BTreeSet<Sym>>::default();
        for (value, data) in f.values.iter() {
            let fact = match &data.def {
                Def::Param(_) => self.stable[func][value.index()].then(|| {
                    let shape = data.ty.parts().iter().flat_map(|ty| &ty.shape);
                    let alone = shape.filter_map(Dim::as_sym).filter(|sym| module.size_of(sym).is_none());
                    let given: BTreeSet<Sym> = alone.cloned().collect();
                    Fact {
                        weights: true,
                        given: if given.is_empty() { none.clone() } else { Arc::new(given) },
                    }
                }),
                Def::Op(_, args) | Def::Call(_, args) => self.joined(&facts, args, &none),
            };
            facts.push(fact.filter(|fact| self.has_extents(module, data, fact)).map(|mut fact| {
                fact.weights |= matches!(data.def, Def::Call(..));
                fact
            }));
        }
        facts
    }

    fn joined(&self, facts: &[Option<Fact>], args: &[Value], none: &Arc<BTreeSet<Sym>>) -> Option<Fact> {
        let mut all = Fact { weights: false, given: none.clone() };
        for arg in args {
            let fact = facts[arg.index()].as_ref()?;
            all.weights |= fact.weights;
            if !fact.given.is_subset(&all.given) {
                Arc::make_mut(&mut all.given).extend(fact.given.iter().cloned());
            }
        }
        Some(all)
    }

    /// Whether all extents that the value needs are known when weights are.
    fn has_extents(&self, module: &Module, data: &ValueData, fact: &Fact) -> bool {
        let mut needed = BTreeSet::new();
        collect_open(module, data, &mut needed);
        let inside = match data.def {
            Def::Call(callee, _) => self.open.get(callee),
            _ => None,
        };
        needed.is_subset(&fact.given) && inside.is_none_or(|inside| inside.is_subset(&fact.given))
    }
}

/// Adds the extents without a value that are in the type and the attributes of a value.
fn collect_open(module: &Module, data: &ValueData, syms: &mut BTreeSet<Sym>) {
    let mut add = |dim: &Dim| {
        if dim.as_const().is_none() {
            syms.extend(dim.syms().into_iter().filter(|sym| module.size_of(sym).is_none()));
        }
    };
    data.ty.parts().iter().flat_map(|ty| &ty.shape).for_each(&mut add);
    let Def::Op(op, _) = &data.def else { return };
    for attr in op.attrs() {
        match attr {
            Attr::Dims(dims) => dims.0.iter().for_each(&mut add),
            Attr::Range(range) => [&range.start, &range.end].into_iter().for_each(&mut add),
            _ => {}
        }
    }
}

/// A function's companion, as callers see it.
struct Companion {
    func: Func,
    /// The function's parameters that it takes.
    takes: Vec<usize>,
}

struct Hoister<'a> {
    module: &'a Module,
    analysis: Analysis,
    /// The functions so far.
    funcs: Arena<Func, Arc<Function>>,
    companions: Vec<Function>,
    by: HashMap<Func, Companion>,
}

impl Hoister<'_> {
    fn function(&mut self, func: Func) -> Result<(), Diag> {
        let old = &self.module.funcs[func];
        let mut bodies = Vec::with_capacity(1 + old.alternatives.len());
        for (body, _) in old.bodies() {
            let expanded = self.with_prepared_calls(body)?;
            let body = expanded.map_or(Cow::Borrowed(body), Cow::Owned);
            let facts = self.analysis.facts(self.module, func, &body);
            bodies.push(narrow::narrow(&body, &facts)?.map_or(body, Cow::Owned));
        }
        let facts: Vec<_> = bodies.iter().map(|body| self.analysis.facts(self.module, func, body)).collect();
        let cuts: Vec<_> = bodies.iter().zip(&facts).map(|(body, facts)| cuts(body, facts)).collect();
        let hoisted = match cuts.iter().all(Vec::is_empty) {
            true => None,
            false => Some(Hoisted::new(&bodies, &cuts, func, self.free_name(&old.name))),
        };
        let Some(hoisted) = hoisted else {
            let changed = bodies.iter().any(|body| matches!(body, Cow::Owned(_)));
            self.funcs.push(match changed {
                true => Arc::new(with_bodies(old, bodies.into_iter().map(Cow::into_owned))),
                false => old.clone(),
            });
            return Ok(());
        };
        let bodies = bodies
            .iter()
            .zip(&facts)
            .zip(&hoisted.of)
            .map(|((body, facts), of)| hoisted.without(body, facts, of));
        let new = with_bodies(old, bodies);
        let number = Func::new(self.module.funcs.len() + self.companions.len());
        self.companions.push(hoisted.companion);
        self.by.insert(func, Companion { func: number, takes: hoisted.takes });
        self.funcs.push(Arc::new(new));
        Ok(())
    }

    /// The function with calls that give their callees what those have hoisted; `None` if there are none.
    fn with_prepared_calls(&self, old: &Function) -> Result<Option<Function>, Diag> {
        let prepared = |def: &Def| matches!(def, Def::Call(callee, _) if self.by.contains_key(callee));
        if !old.values.iter().any(|(_, data)| prepared(&data.def)) {
            return Ok(None);
        }
        let mut names: HashSet<String> = old.values.iter().map(|(_, data)| data.name.clone()).collect();
        let mut fresh = |base: String| {
            let name = free_name(&base, 1, |name| !names.contains(name));
            names.insert(name.clone());
            name
        };
        let mut new = Function { name: old.name.clone(), prepares: old.prepares, ..Function::default() };
        let mut map: Vec<Value> = Vec::with_capacity(old.values.len());
        for (_, data) in old.values.iter() {
            let mut def = with_args(&data.def, |arg| map[arg.index()]);
            if let Def::Call(callee, args) = &mut def
                && let Some(companion) = self.by.get(callee)
            {
                let prepare = &self.companions[companion.func.index() - self.module.funcs.len()];
                let given: Vec<Value> = companion.takes.iter().map(|&i| args[i]).collect();
                let parts: Vec<&str> =
                    prepare.results.iter().map(|&v| prepare.values[v].name.as_str()).collect();
                let whole = match parts[..] {
                    [part] => format!("{}.{part}", data.name),
                    _ => format!("{}.prepared", data.name),
                };
                let call = new
                    .call(&fresh(whole), companion.func, prepare, &given)
                    .map_err(|e| ill_typed("hoist", e))?;
                new.values[call].loc = data.loc;
                if parts.len() == 1 {
                    args.push(call);
                }
                for (i, part) in parts.iter().enumerate().filter(|_| parts.len() > 1) {
                    let get = eva_ir::ops::get::Get { index: i as i64 };
                    let get = new.op(&fresh(format!("{}.{part}", data.name)), get, &[call]);
                    let get = get.map_err(|e| ill_typed("hoist", e))?;
                    new.values[get].loc = data.loc;
                    args.push(get);
                }
            }
            map.push(new.values.push(ValueData { def, ..data.clone() }));
        }
        new.results = old.results.iter().map(|v| map[v.index()]).collect();
        Ok(Some(new))
    }

    fn free_name(&self, of: &str) -> String {
        let taken = |name: &str| {
            let companions = self.companions.iter().map(|f| &f.name);
            self.module.funcs.iter().map(|(_, f)| &f.name).chain(companions).any(|other| other == name)
        };
        free_name(&format!("{of}.prepare"), 1, |name| !taken(name))
    }
}

/// The values to hoist, in order: of weights alone, used by what is not or returned, and more than views of weights.
fn cuts(f: &Function, facts: &[Option<Fact>]) -> Vec<Value> {
    let mut seen = vec![false; f.values.len()];
    let calls = f.values.iter().filter(|(value, _)| facts[value.index()].is_none());
    let mut wanted: Vec<Value> = calls.flat_map(|(_, data)| data.def.args()).copied().collect();
    wanted.extend(&f.results);
    let mut cuts = BTreeSet::new();
    while let Some(value) = wanted.pop() {
        let hoistable = facts[value.index()].as_ref().is_some_and(|fact| fact.weights);
        if !hoistable || std::mem::replace(&mut seen[value.index()], true) {
            continue;
        }
        match &f.values[value].def {
            Def::Param(_) => {}
            Def::Op(op, args) if is_free(f, op, args) => wanted.extend(args),
            _ => drop(cuts.insert(value)),
        }
    }
    cuts.into_iter().collect()
}

/// Whether a call has this op's result for nothing.
fn is_free(f: &Function, op: &Op, args: &[Value]) -> bool {
    match op {
        Op::Reshape(_) | Op::Slice(_) | Op::Dequantize(_) => true,
        Op::Cast(cast) => is_widening(f, cast.to, args[0]),
        _ => false,
    }
}

/// Whether a cast of `value` to `to` keeps every number, in as many bytes or more.
fn is_widening(f: &Function, to: DType, value: Value) -> bool {
    f.tensor(value).is_some_and(|ty| {
        ty.dtype == to || (ty.dtype.is_int() == to.is_int() && ty.dtype.bytes() < to.bytes())
    })
}

/// The function with other bodies, as many as it has.
fn with_bodies(f: &Function, bodies: impl IntoIterator<Item = Function>) -> Function {
    let mut bodies = bodies.into_iter();
    let base = bodies.next().unwrap_or_else(|| f.clone());
    let others = f.alternatives.iter().zip(bodies);
    let alternatives =
        others.map(|(old, body)| Alternative { body: Arc::new(body), estimate: old.estimate.clone() });
    Function { estimate: f.estimate.clone(), alternatives: alternatives.collect(), ..base }
}
