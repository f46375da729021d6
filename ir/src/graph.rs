//! The graph IR: a module of functions, each a list of values defined in order.

use crate::diag::Loc;
use crate::dim::{Dim, Sym};
use crate::entity::{Arena, Entity, entity};
use crate::estimate::Estimate;
use crate::op::TypeError;
use crate::ops::Op;
use crate::types::{TensorType, Type};
use crate::verify::Verified;
use std::collections::HashMap;
use std::sync::Arc;

entity! {
    /// A value of a [`Function`]: a parameter, or the result of an op or a call.
    Value, "%"
}
entity! {
    /// A function of a [`Module`].
    Func, "@"
}

/// Functions that share one set of extents.
///
/// A function may call only functions added before it, so there is no recursion. Extents are the
/// module's: a call passes tensors whose types are *equal* to the callee's parameters.
#[derive(Clone, Debug, Default)]
pub struct Module {
    /// The extents' names, and the values of those that are fixed for a model.
    pub dims: Vec<(Sym, Option<i64>)>,
    /// How many bytes a token may take in the caches of one layer, if the module says so.
    pub kv_budget: Option<u64>,
    /// The functions; the last is the one a user runs, unless another is asked for by name. A pass shares with
    /// the module before it those that it leaves alone.
    pub funcs: Arena<Func, Arc<Function>>,
    /// Whether the module has been verified as it is.
    pub verified: Verified,
}

impl Module {
    /// The fixed value of an extent's symbol.
    pub fn size_of(&self, sym: &Sym) -> Option<i64> {
        self.dims.iter().find(|(name, _)| name == sym).and_then(|(_, value)| *value)
    }

    /// The function that prepares `func`, if there is one.
    pub fn preparation(&self, func: Func) -> Option<Func> {
        self.funcs.iter().find(|(_, f)| f.prepares == Some(func)).map(|(prepare, _)| prepare)
    }

    /// The value of `dim`, if all its symbols are fixed.
    pub fn constant(&self, dim: &Dim) -> Option<i64> {
        dim.eval(&|sym| self.size_of(sym))
    }

    /// The function with this name.
    pub fn func(&self, name: &str) -> Option<Func> {
        self.funcs.iter().find(|(_, f)| f.name == name).map(|(func, _)| func)
    }

    /// The module in which each function has one body alone: the one of the number that `choose` gives.
    pub fn with_bodies(&self, choose: impl Fn(&Function) -> usize) -> Module {
        let one = |f: &Arc<Function>| match f.alternatives.is_empty() {
            true => f.clone(),
            false => Arc::new(f.with_body(choose(f))),
        };
        let funcs = self.funcs.iter().map(|(_, f)| one(f)).collect();
        Module { dims: self.dims.clone(), kv_budget: self.kv_budget, funcs, ..Module::default() }
    }

    /// Adds a function without checking it; [`crate::verify::verify`] does.
    pub fn add(&mut self, function: Function) -> Func {
        self.funcs.push(Arc::new(function))
    }
}

/// A function on tensors.
///
/// Values are added, never changed or removed, and an op may use only values
/// added before it. So the graph is acyclic by construction, and the order of
/// `values` is an order it can run in. A pass reads one function and writes another.
#[derive(Clone, Debug, Default)]
pub struct Function {
    /// The name, unique in the module.
    pub name: String,
    /// Parameters first, then ops and calls.
    pub values: Arena<Value, ValueData>,
    /// What the function returns. A result is known outside by its value's name.
    pub results: Vec<Value>,
    /// What running this body takes, beside the alternatives; nothing if there are none.
    pub estimate: Estimate,
    /// Other bodies that compute the same. A call runs the one whose estimate is least for its extents, this function's
    /// own first among equals.
    pub alternatives: Vec<Alternative>,
    /// The function that this one prepares, if it does: of weights of that function it computes others of its
    /// weights, those named as the results, once and for all calls.
    pub prepares: Option<Func>,
}

/// Another body of a function, of the same meaning.
#[derive(Clone, Debug)]
pub struct Alternative {
    /// The body: a function with the same parameters, results of the same types, and no alternatives. Its name tells it
    /// from the other bodies.
    pub body: Arc<Function>,
    /// What running it takes.
    pub estimate: Estimate,
}

/// What is known of a value.
#[derive(Clone, Debug)]
pub struct ValueData {
    /// The name, unique in the function.
    pub name: String,
    /// The type.
    pub ty: Type,
    /// Where the value comes from.
    pub def: Def,
    /// The line that asked for it.
    pub loc: Option<Loc>,
}

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum Def {
    /// Given by the caller.
    Param(ParamKind),
    /// An op applied to older values.
    Op(Op, Vec<Value>),
    /// A call of another function; its type is the tuple of that function's results, or the tensor if there is one.
    Call(Func, Vec<Value>),
}

impl Def {
    /// The values used.
    pub fn args(&self) -> &[Value] {
        match self {
            Def::Param(_) => &[],
            Def::Op(_, args) | Def::Call(_, args) => args,
        }
    }
}

/// How a parameter is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ParamKind {
    /// Given on every call.
    Input,
    /// Given once, when the function is loaded.
    Weight,
    /// Kept between calls: updated by a `cache_write`, an `assign` or a call, whose result is returned in the same buffer.
    State,
}

impl ParamKind {
    /// The word before the parameter's name in the IR text, with a space after it.
    pub fn keyword(self) -> &'static str {
        match self {
            ParamKind::Input => "",
            ParamKind::Weight => "weight ",
            ParamKind::State => "state ",
        }
    }
}

impl Function {
    /// An empty function.
    pub fn new(name: &str) -> Self {
        Self { name: name.into(), ..Self::default() }
    }

    /// Adds a parameter.
    pub fn param(&mut self, kind: ParamKind, name: &str, ty: TensorType) -> Value {
        self.values.push(ValueData { name: name.into(), ty: ty.into(), def: Def::Param(kind), loc: None })
    }

    /// Adds `op` applied to `args`, with the type that the op infers.
    pub fn op(&mut self, name: &str, op: impl Into<Op>, args: &[Value]) -> Result<Value, TypeError> {
        let op = op.into();
        let ty = op_type(&op, &self.values, args)?;
        Ok(self.values.push(ValueData { name: name.into(), ty, def: Def::Op(op, args.to_vec()), loc: None }))
    }

    /// Adds a call of `func`, which is `callee`.
    pub fn call(
        &mut self,
        name: &str,
        func: Func,
        callee: &Function,
        args: &[Value],
    ) -> Result<Value, TypeError> {
        let ty = call_type(callee, &self.values, args)?;
        Ok(self.values.push(ValueData {
            name: name.into(),
            ty,
            def: Def::Call(func, args.to_vec()),
            loc: None,
        }))
    }

    /// The parameters, in order.
    pub fn params(&self) -> impl Iterator<Item = (Value, ParamKind)> {
        self.values.iter().filter_map(|(value, data)| match data.def {
            Def::Param(kind) => Some((value, kind)),
            _ => None,
        })
    }

    /// The bodies, this function itself first, with what running each takes.
    pub fn bodies(&self) -> impl Iterator<Item = (&Function, &Estimate)> {
        let others = self.alternatives.iter().map(|other| (&*other.body, &other.estimate));
        std::iter::once((self, &self.estimate)).chain(others)
    }

    /// The function with each body replaced by what `change` makes of it; estimates stay.
    pub fn map_bodies(&self, change: impl Fn(&Function) -> Function) -> Function {
        let (estimate, body) = (self.estimate.clone(), change(self));
        let alternative = |other: &Alternative| Alternative {
            body: Arc::new(change(&other.body)),
            estimate: other.estimate.clone(),
        };
        Function { estimate, alternatives: self.alternatives.iter().map(alternative).collect(), ..body }
    }

    /// This function with body `i` alone.
    pub fn with_body(&self, i: usize) -> Function {
        let body = i.checked_sub(1).map_or(self, |i| &*self.alternatives[i].body);
        let (estimate, alternatives) = (Estimate::default(), Vec::new());
        Function { name: self.name.clone(), estimate, alternatives, ..body.clone() }
    }

    /// The tensor type of `value`, which must not be a tuple.
    pub fn tensor(&self, value: Value) -> Option<&TensorType> {
        self.values[value].ty.tensor()
    }

    /// Who uses each value.
    pub fn uses(&self) -> Uses {
        let n = self.values.len();
        let each = || {
            self.values.iter().flat_map(|(user, data)| {
                let args = data.def.args().iter().enumerate();
                args.map(move |(i, arg)| (arg.index(), (user, i))).filter(|&(arg, _)| arg < n)
            })
        };
        let mut starts = vec![0; n + 1];
        each().for_each(|(arg, _)| starts[arg + 1] += 1);
        (0..n).for_each(|i| starts[i + 1] += starts[i]);
        let mut next = starts.clone();
        let mut all = vec![(Value::new(0), 0); starts[n]];
        for (arg, user) in each() {
            all[next[arg]] = user;
            next[arg] += 1;
        }
        Uses { starts, all }
    }

    /// How often each value is used, being a result included.
    pub fn use_counts(&self) -> HashMap<Value, usize> {
        let mut counts = HashMap::new();
        let args = self.values.iter().flat_map(|(_, data)| data.def.args().iter().copied());
        for value in args.chain(self.results.iter().copied()) {
            *counts.entry(value).or_insert(0) += 1;
        }
        counts
    }

    /// A name that starts with `base` and is not taken.
    pub fn fresh_name(&self, base: &str) -> String {
        let taken = |name: &str| self.values.iter().any(|(_, data)| data.name == name);
        if !taken(base) {
            return base.into();
        }
        (1..).map(|i| format!("{base}_{i}")).find(|name| !taken(name)).expect("there are enough numbers")
    }
}

/// The uses of each value of a [`Function`].
pub struct Uses {
    /// Where the uses of each value begin in `all`, and where those of the last end.
    starts: Vec<usize>,
    all: Vec<(Value, usize)>,
}

impl Uses {
    /// Who uses `value`, and as which operand, in order; nobody uses a value that does not exist.
    pub fn of(&self, value: Value) -> &[(Value, usize)] {
        match self.starts.get(value.index()..value.index() + 2) {
            Some(&[start, end]) => &self.all[start..end],
            _ => &[],
        }
    }
}

/// The type of `op` applied to `args`.
pub fn op_type(op: &Op, values: &Arena<Value, ValueData>, args: &[Value]) -> Result<Type, TypeError> {
    use crate::ops::OpKind;
    // `get` alone takes a tuple.
    if let (Op::Get(get), [tuple]) = (op, args)
        && let Type::Tuple(parts) = &values[*tuple].ty
    {
        let part = usize::try_from(get.index).ok().and_then(|i| parts.get(i));
        let error =
            || TypeError::new(format!("there is no part {} in {}", get.index, values[*tuple].ty)).at(0);
        return part.cloned().map(Type::Tensor).ok_or_else(error);
    }
    let mut types = Vec::with_capacity(args.len());
    for (i, &arg) in args.iter().enumerate() {
        let error = || {
            let message =
                format!("`{}` takes tensors, but this is {}", OpKind::name(op.kind()), values[arg].ty);
            TypeError::new(message).at(i).help("take a part of it with `get`")
        };
        types.push(values[arg].ty.tensor().ok_or_else(error)?);
    }
    op.infer(&types)
}

/// The type of a call of `callee` with `args`.
pub fn call_type(
    callee: &Function,
    values: &Arena<Value, ValueData>,
    args: &[Value],
) -> Result<Type, TypeError> {
    let params = callee.params().count();
    if params != args.len() {
        let message = format!("@{} takes {params} arguments, not {}", callee.name, args.len());
        return Err(TypeError::new(message));
    }
    for (i, ((param, _), &arg)) in callee.params().zip(args).enumerate() {
        let (want, have) = (&callee.values[param].ty, &values[arg].ty);
        if want != have {
            let name = &callee.values[param].name;
            return Err(TypeError::new(format!(
                "`{name}` of @{} is {want}, but this is {have}",
                callee.name
            ))
            .at(i));
        }
    }
    let mut results: Vec<_> =
        callee.results.iter().filter_map(|&value| callee.values[value].ty.tensor().cloned()).collect();
    Ok(if results.len() == 1 { Type::Tensor(results.remove(0)) } else { Type::Tuple(results) })
}
