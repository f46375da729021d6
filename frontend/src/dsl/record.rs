//! [`Recording`]: the values of a function, in the order the DSL made them.

use super::program::{Program, UNKNOWN};
use super::tensor::Tensor;
use eva_ir::diag::{Diag, Loc};
use eva_ir::dim::Dim;
use eva_ir::entity::{Arena, Entity};
use eva_ir::graph::{Def, ParamKind, Value, ValueData, op_type};
use eva_ir::op::TypeError;
use eva_ir::ops::{Op, OpKind};
use eva_ir::types::{TensorType, Type};
use std::cell::{Ref, RefCell, RefMut};
use std::collections::HashMap;
use std::panic::Location;
use std::rc::Rc;

/// The line that called the DSL.
#[track_caller]
pub(super) fn here() -> Loc {
    Loc::Rust(Location::caller())
}

/// A function being recorded.
pub(super) struct Recording {
    pub program: Program,
    pub name: String,
    /// Where the function begins.
    pub loc: Loc,
    inner: RefCell<Inner>,
}

/// The changing part of a [`Recording`].
#[derive(Default)]
pub(super) struct Inner {
    /// Parameters and ops as they came; sorted when the function is finished.
    pub values: Arena<Value, ValueData>,
    /// What each value is to be called.
    pub names: Vec<Name>,
    /// The parameters by name.
    pub params: HashMap<Rc<str>, Value>,
    pub states: Vec<StateRecord>,
    /// What else becomes a result, under which name.
    pub taps: Vec<(Rc<str>, Value)>,
    /// Set when the function is finished: no more may be added.
    pub done: bool,
}

/// How a value came by its name.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Name {
    /// Not at all: it is called after its op.
    None,
    /// By [`Tensor::named`]: numbered if there are several.
    Wanted(Rc<str>),
    /// It is known outside by this name.
    Exact(Rc<str>),
}

/// A state parameter and what became of it.
pub(super) struct StateRecord {
    pub name: Rc<str>,
    pub param: Value,
    pub update: Update,
}

/// What became of a state.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Update {
    /// Nothing yet.
    Pending,
    /// Updated at this line, to this value unless that was a mistake.
    Done(Loc, Option<Value>),
}

/// An op to be recorded, and how to speak of it.
pub(super) struct Request<'a> {
    /// The method's name.
    pub what: &'a str,
    pub loc: Loc,
    /// Advice for when the operands do not fit and the op itself has none.
    pub help: &'a dyn Fn(&[TensorType]) -> Option<String>,
}

impl Recording {
    pub fn new(program: Program, name: &str, loc: Loc) -> Self {
        Self { program, name: name.into(), loc, inner: RefCell::default() }
    }

    pub fn inner(&self) -> Ref<'_, Inner> {
        self.inner.borrow()
    }

    pub fn inner_mut(&self) -> RefMut<'_, Inner> {
        self.inner.borrow_mut()
    }

    pub fn note(&self, diag: Diag) {
        self.program.note(diag);
    }

    /// Adds a value.
    pub fn push(&self, def: Def, ty: Type, name: Name, loc: Loc) -> Value {
        let mut inner = self.inner_mut();
        inner.names.push(name);
        inner.values.push(ValueData { name: String::new(), ty, def, loc: Some(loc) })
    }

    /// The name of `value` for messages, if it has one.
    pub fn name_of(&self, value: Value) -> Option<Rc<str>> {
        match &self.inner().names[value.index()] {
            Name::None => None,
            Name::Wanted(name) | Name::Exact(name) => Some(name.clone()),
        }
    }

    /// The values of `args`; `None` if one is in error or belongs elsewhere, which is noted.
    pub fn own(self: &Rc<Self>, args: &[Tensor], loc: Loc) -> Option<Vec<Value>> {
        let stranger = args.iter().find(|arg| !Rc::ptr_eq(&arg.recording, self));
        if let Some(stranger) = stranger {
            // The function that is finished is the one whose tensor has no business here.
            let (stray, user) = if self.inner().done {
                (args.iter().find(|a| Rc::ptr_eq(&a.recording, self)), &stranger.recording)
            } else {
                (Some(stranger), self)
            };
            self.note_stray(stray?, Some(&user.name), loc);
            return None;
        }
        if self.inner().done {
            self.note_stray(args.first()?, None, loc);
            return None;
        }
        args.iter().map(|arg| arg.value).collect()
    }

    fn note_stray(&self, stray: &Tensor, user: Option<&str>, loc: Loc) {
        let Some(value) = stray.value else { return };
        let home = &stray.recording;
        let name = home.name_of(value).map_or("a tensor".into(), |name| format!("`{name}`"));
        let place = user.map_or("after it was finished".into(), |user| format!("in @{user}"));
        let made = home.inner().values[value].loc;
        self.note(
            Diag::new("eva::foreign_tensor", format!("{name} of @{} is used {place}", home.name))
                .label(Some(loc), "used here")
                .label(made, format!("made here, in @{}", home.name))
                .help("a function sees its own parameters only: give the tensor as an input of a `call`"),
        );
    }

    /// Whether every extent of `types` is declared; the first that is not is noted.
    pub fn declared<'a>(&self, types: impl IntoIterator<Item = &'a TensorType>, loc: Loc) -> bool {
        let unknown = {
            let known = self.program.0.dims.borrow();
            let mut syms = types.into_iter().flat_map(|ty| &ty.shape).flat_map(Dim::factors);
            syms.find(|sym| !known.contains_key(sym)).cloned()
        };
        let Some(unknown) = unknown else { return true };
        if unknown.as_str() != UNKNOWN {
            let message = format!("`{unknown}` is no extent of this program");
            let help = format!("declare it: `p.dim(\"{unknown}\")`, or `p.dim_fixed(\"{unknown}\", …)`");
            self.note(Diag::new("eva::extent", message).label(Some(loc), "in a shape here").help(help));
        }
        false
    }

    /// Adds `op` applied to `args`, or notes what is wrong with it.
    pub fn op(self: &Rc<Self>, request: Request, op: impl Into<Op>, args: &[Tensor]) -> Tensor {
        let op = op.into();
        let loc = request.loc;
        let Some(args) = self.own(args, loc) else { return self.poison() };
        let inferred = op_type(&op, &self.inner().values, &args);
        let ty = match inferred.and_then(|ty| self.check_fixed(&op, &args).map(|()| ty)) {
            Ok(ty) => ty,
            Err(error) => {
                self.note(self.mismatch(&request, &op, error, &args));
                return self.poison();
            }
        };
        if !self.declared(ty.parts(), loc) {
            return self.poison();
        }
        let value = self.push(Def::Op(op, args), ty, Name::None, loc);
        Tensor { recording: self.clone(), value: Some(value) }
    }

    /// A tensor of a mistake already noted.
    pub fn poison(self: &Rc<Self>) -> Tensor {
        Tensor { recording: self.clone(), value: None }
    }

    fn types(&self, args: &[Value]) -> Vec<TensorType> {
        let inner = self.inner();
        args.iter().filter_map(|&arg| inner.values[arg].ty.tensor().cloned()).collect()
    }

    fn mismatch(&self, request: &Request, op: &Op, error: TypeError, args: &[Value]) -> Diag {
        let operands = op.kind().operands();
        let message = match args {
            [] => format!("this does not make a `{}`", request.what),
            [_] => format!("this operand does not fit `{}`", request.what),
            _ => format!("these operands do not fit `{}`", request.what),
        };
        let mut diag = Diag::new("eva::type_mismatch", message).label(Some(request.loc), error.message);
        for (i, &arg) in args.iter().enumerate() {
            let arg = self.before_cast(arg, request.loc);
            let data = &self.inner().values[arg];
            // Where operands come in any number, they are counted.
            let role = match (op.kind().is_variadic(), operands.get(i)) {
                (false, Some(operand)) => format!("`{operand}`"),
                _ => format!("operand {}", i + 1),
            };
            let name = self.name_of(arg).map_or(role, |name| format!("`{name}`"));
            diag = diag.label(data.loc, format!("{name} is {}", data.ty));
        }
        diag.help = error.help.or_else(|| (request.help)(&self.types(args)));
        diag
    }

    /// What the user gave where the method itself has cast it.
    fn before_cast(&self, arg: Value, loc: Loc) -> Value {
        let data = &self.inner().values[arg];
        match &data.def {
            Def::Op(Op::Cast(_), args) if data.loc == Some(loc) => args[0],
            _ => arg,
        }
    }

    /// Checks the extents that code is generated for one by one, and which therefore must have a value.
    fn check_fixed(&self, op: &Op, args: &[Value]) -> Result<(), TypeError> {
        let last = |i: usize| args.get(i).and_then(|_| self.types(args)[i].shape.last().cloned());
        let dims: Vec<Option<Dim>> = match op {
            Op::RouteNoauxTc(op) => vec![Some(op.k.clone()), last(0)],
            Op::RouteGreedy(op) => vec![Some(op.k.clone()), last(0)],
            Op::RouteGroupLimitedGreedy(op) => vec![Some(op.k.clone()), last(0)],
            Op::RopeFreqs(op) => vec![Some(op.width.clone())],
            Op::RmsNorm(_) => vec![last(0)],
            _ => vec![],
        };
        match dims.into_iter().flatten().find(|dim| self.program.value_of(dim).is_none()) {
            None => Ok(()),
            Some(dim) => {
                let name = OpKind::name(op.kind());
                Err(TypeError::new(format!("`{name}` needs the value of `{dim}`, which is not fixed"))
                    .help(format!("declare it with its value: `p.dim_fixed(\"{dim}\", …)`")))
            }
        }
    }

    /// The parts of a value with several.
    pub fn parts<const N: usize>(self: &Rc<Self>, tuple: &Tensor, loc: Loc) -> [Tensor; N] {
        std::array::from_fn(|i| self.part(tuple, i, Name::None, loc))
    }

    /// Part `i` of a value with several.
    pub fn part(self: &Rc<Self>, tuple: &Tensor, i: usize, name: Name, loc: Loc) -> Tensor {
        let Some(value) = tuple.value else { return self.poison() };
        let get = eva_ir::ops::get::Get { index: i as i64 };
        let ty = self.inner().values[value].ty.parts()[i].clone();
        let value = self.push(Def::Op(get.into(), vec![value]), ty.into(), name, loc);
        Tensor { recording: self.clone(), value: Some(value) }
    }

    /// Adds a parameter, or finds the one declared before with the same name, kind and type. The name can be one,
    /// and the type's extents are declared.
    pub fn param(self: &Rc<Self>, kind: ParamKind, name: &str, ty: TensorType, loc: Loc) -> Tensor {
        if self.inner().done {
            let message = format!("`{name}` is declared in @{} after it was finished", self.name);
            self.note(Diag::new("eva::foreign_tensor", message).label(Some(loc), "here"));
            return self.poison();
        }
        let first = self.inner().params.get(name).copied();
        if let Some(first) = first {
            let (same, again) = {
                let data = &self.inner().values[first];
                let same = data.ty == Type::Tensor(ty.clone()) && data.def == Def::Param(kind);
                (same, (data.loc, format!("first declared here, as {}{}", describe(&data.def), data.ty)))
            };
            if same && kind == ParamKind::Weight {
                return Tensor { recording: self.clone(), value: Some(first) };
            }
            let message = format!("`{name}` is declared twice in @{}", self.name);
            let diag = Diag::new("eva::duplicate_name", message)
                .label(Some(loc), format!("declared again, as {}{ty}", describe(&Def::Param(kind))))
                .label(again.0, again.1);
            let help = "a weight may be asked for again with the same type; else give it a name or a scope of its own";
            self.note(diag.help(help));
            return self.poison();
        }
        let name: Rc<str> = name.into();
        let value = self.push(Def::Param(kind), ty.into(), Name::Exact(name.clone()), loc);
        let mut inner = self.inner_mut();
        inner.params.insert(name.clone(), value);
        if kind == ParamKind::State {
            inner.states.push(StateRecord { name, param: value, update: Update::Pending });
        }
        Tensor { recording: self.clone(), value: Some(value) }
    }
}

impl Recording {
    /// The name of the state `param` and where it was written, if it was.
    pub fn written(&self, param: Value) -> Option<(Rc<str>, Loc)> {
        let inner = self.inner();
        let state = inner.states.iter().find(|state| state.param == param)?;
        match state.update {
            Update::Done(loc, _) => Some((state.name.clone(), loc)),
            Update::Pending => None,
        }
    }

    /// Says what became of the state `param`, and names its final value.
    pub fn set_update(&self, param: Value, loc: Loc, value: Option<Value>) {
        let mut inner = self.inner_mut();
        let Some(state) = inner.states.iter_mut().find(|state| state.param == param) else { return };
        state.update = Update::Done(loc, value);
        let name = format!("{}.next", state.name);
        if let Some(value) = value {
            inner.names[value.index()] = Name::Exact(name.into());
        }
    }
}

/// "an input ", "a weight " or "a state ".
fn describe(def: &Def) -> &'static str {
    match def {
        Def::Param(ParamKind::Weight) => "a weight ",
        Def::Param(ParamKind::State) => "a state ",
        _ => "an input ",
    }
}
