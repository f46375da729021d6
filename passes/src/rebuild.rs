//! Copying a function while changing it. Values that nothing needs any more stay behind.

use eva_ir::diag::Diag;
use eva_ir::graph::{Alternative, Def, Function, Module, Value, ValueData, call_type, op_type};
use eva_ir::op::TypeError;
use eva_ir::ops::Op;
use eva_ir::ops::get::Get;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// A function being copied from an older one.
pub struct Rebuild<'a> {
    /// The old function.
    pub old: &'a Function,
    /// The new one so far.
    pub new: Function,
    /// For each old value that has been dealt with, its new one.
    pub map: HashMap<Value, Value>,
    /// The names of the old function's values and of the new one's, once a new one was needed.
    taken: Option<HashSet<String>>,
}

impl<'a> Rebuild<'a> {
    /// Starts with the old function's parameters.
    pub fn new(old: &'a Function) -> Self {
        let new = Function { prepares: old.prepares, ..Function::new(&old.name) };
        let mut this = Self { old, new, map: HashMap::new(), taken: None };
        for (value, _) in old.params() {
            let new = this.new.values.push(old.values[value].clone());
            this.map.insert(value, new);
        }
        this
    }

    /// The new value of an old one, which has been copied.
    pub fn get(&self, value: Value) -> Value {
        self.map[&value]
    }

    /// Copies one value as it is, if it has not been dealt with.
    pub fn copy(&mut self, value: Value) {
        if self.map.contains_key(&value) {
            return;
        }
        let data = &self.old.values[value];
        let def = with_args(&data.def, |arg| self.map[&arg]);
        let new = self.new.values.push(ValueData { def, ..data.clone() });
        self.map.insert(value, new);
    }

    /// Adds an op for the sake of the old value `source`, whose line it gets.
    pub fn op(
        &mut self,
        name: &str,
        op: impl Into<Op>,
        args: &[Value],
        source: Value,
    ) -> Result<Value, TypeError> {
        let name = self.free(name);
        push_op(&mut self.new, self.old, name, op, args, source)
    }

    /// Adds an op in place of the old value `source`, whose name and line it gets.
    pub fn replace(&mut self, source: Value, op: impl Into<Op>, args: &[Value]) -> Result<Value, TypeError> {
        let name = self.old.values[source].name.clone();
        let new = push_op(&mut self.new, self.old, name, op, args, source)?;
        self.map.insert(source, new);
        Ok(new)
    }

    /// The finished copy, with the old results and without dead values.
    pub fn finish(mut self) -> Function {
        self.new.results = self.old.results.iter().map(|v| self.map[v]).collect();
        without_dead(&self.new)
    }

    /// `base`, or a name like it that no value has; it is taken from now on.
    pub fn free(&mut self, base: &str) -> String {
        let (old, new) = (self.old.values.iter(), self.new.values.iter());
        let names = || old.chain(new).map(|(_, data)| data.name.clone()).collect();
        let taken = self.taken.get_or_insert_with(names);
        let name = free_name(base, 1, |name| !taken.contains(name));
        taken.insert(name.clone());
        name
    }

    /// Copies the call `value` of a function that gives more than before, behind what it gave: `callee`, with these
    /// arguments. The new call, whose parts are its results; what was a tensor is the first of them.
    pub fn call_of_more(
        &mut self,
        value: Value,
        callee: &Function,
        args: Vec<Value>,
    ) -> Result<Value, TypeError> {
        let data = &self.old.values[value];
        let Def::Call(func, _) = data.def else { return Err(TypeError::new("it is no call")) };
        let ty = call_type(callee, &self.new.values, &args)?;
        let single = data.ty.tensor().is_some();
        let name = if single { self.free(&format!("{}.all", data.name)) } else { data.name.clone() };
        let call = self.new.values.push(ValueData { name, ty, def: Def::Call(func, args), loc: data.loc });
        if single {
            self.replace(value, Get { index: 0 }, &[call])?;
        } else {
            self.map.insert(value, call);
        }
        Ok(call)
    }
}

/// Adds an op to `new` for the sake of the old function's value `source`, whose line it gets.
pub fn push_op(
    new: &mut Function,
    old: &Function,
    name: String,
    op: impl Into<Op>,
    args: &[Value],
    source: Value,
) -> Result<Value, TypeError> {
    let op = op.into();
    let ty = op_type(&op, &new.values, args)?;
    let loc = old.values[source].loc;
    Ok(new.values.push(ValueData { name, ty, def: Def::Op(op, args.to_vec()), loc }))
}

/// The definition with other operands.
pub fn with_args(def: &Def, new: impl Fn(Value) -> Value) -> Def {
    let args = |args: &[Value]| args.iter().map(|&arg| new(arg)).collect();
    match def {
        Def::Param(kind) => Def::Param(*kind),
        Def::Op(op, a) => Def::Op(op.clone(), args(a)),
        Def::Call(func, a) => Def::Call(*func, args(a)),
    }
}

/// `base`, or the first of `base_n`, `base_n+1` and so on, where `n` is `first`, that is free.
pub fn free_name(base: &str, first: usize, free: impl Fn(&str) -> bool) -> String {
    let numbered = (first..).map(|i| format!("{base}_{i}"));
    let mut names = std::iter::once(base.to_string()).chain(numbered);
    names.find(|name| free(name)).expect("there are enough numbers")
}

/// The function without the ops that no result needs. Parameters stay: they are the signature.
pub fn without_dead(f: &Function) -> Function {
    let mut live: Vec<bool> = f.values.iter().map(|(_, data)| matches!(data.def, Def::Param(_))).collect();
    let index = |v: Value| eva_ir::entity::Entity::index(v);
    f.results.iter().for_each(|&v| live[index(v)] = true);
    for (value, data) in f.values.iter().rev() {
        if live[index(value)] {
            data.def.args().iter().for_each(|&arg| live[index(arg)] = true);
        }
    }
    let mut this = Rebuild::new(f);
    for (value, _) in f.values.iter() {
        if live[index(value)] {
            this.copy(value);
        }
    }
    this.new.results = f.results.iter().map(|v| this.map[v]).collect();
    this.new
}

/// A module with those bodies replaced for which `change` gives another: of every function its own, and its
/// alternatives. Alternatives that `change` gives a function which has none are kept.
pub fn functions(
    module: &Module,
    mut change: impl FnMut(&Function) -> Result<Option<Function>, Diag>,
) -> Result<Module, Diag> {
    let mut new = |f: &Arc<Function>| {
        let base = change(f)?;
        if f.alternatives.is_empty() {
            return Ok(base.map_or_else(|| f.clone(), Arc::new));
        }
        let mut changed = base.is_some();
        let mut alternatives = Vec::with_capacity(f.alternatives.len());
        for Alternative { body, estimate } in &f.alternatives {
            let new = change(body)?.map(Arc::new);
            changed |= new.is_some();
            alternatives
                .push(Alternative { body: new.unwrap_or_else(|| body.clone()), estimate: estimate.clone() });
        }
        if !changed {
            return Ok(f.clone());
        }
        let base = base.unwrap_or_else(|| (**f).clone());
        Ok(Arc::new(Function { estimate: f.estimate.clone(), alternatives, ..base }))
    };
    let funcs = module.funcs.iter().map(|(_, f)| new(f)).collect::<Result<_, _>>()?;
    Ok(Module { dims: module.dims.clone(), kv_budget: module.kv_budget, funcs, ..Module::default() })
}

/// A rule that built something ill-typed: a mistake of the compiler's own, named.
pub fn ill_typed(rule: &str, error: TypeError) -> Diag {
    Diag::new("eva::internal", format!("the pass `{rule}` builds an ill-typed op: {}", error.message))
}
