//! Calls of one function of a program by another.

use super::args::{Operands, Results};
use super::program::Program;
use super::record::{Name, Recording, here};
use super::scope::Scope;
use super::tensor::Tensor;
use eva_ir::diag::{Diag, Loc};
use eva_ir::graph::{self, Def, ParamKind, Value};
use eva_ir::types::{TensorType, Type};
use std::collections::HashMap;
use std::marker::PhantomData;
use std::rc::Rc;

/// A finished function of a program, which gives an `R`. Clones are the same function.
pub struct Func<R> {
    program: Program,
    recording: Rc<Recording>,
    /// `None` if there are mistakes in it.
    func: Option<graph::Func>,
    signature: Rc<Signature>,
    results: PhantomData<R>,
}

impl<R> Clone for Func<R> {
    fn clone(&self) -> Self {
        Self {
            program: self.program.clone(),
            recording: self.recording.clone(),
            func: self.func,
            signature: self.signature.clone(),
            results: PhantomData,
        }
    }
}

/// A parameter: its name, its type, and where it was declared.
pub(super) type Param = (Rc<str>, TensorType, Option<Loc>);

/// What a caller must know of a function.
pub(super) struct Signature {
    pub inputs: Vec<Param>,
    pub weights: Vec<Param>,
    pub states: Vec<Param>,
    /// Which results are those that the function's body gave.
    pub given: Vec<usize>,
    /// Which result is the update of each state.
    pub states_at: Vec<usize>,
    /// Which results are tapped, and their names.
    pub taps: Vec<(Rc<str>, usize)>,
    /// The names of all results.
    pub result_names: Vec<Rc<str>>,
}

impl<R> Func<R> {
    pub(super) fn new(
        program: Program,
        recording: Rc<Recording>,
        func: Option<graph::Func>,
        signature: Signature,
    ) -> Self {
        Self { program, recording, func, signature: Rc::new(signature), results: PhantomData }
    }

    /// The function's name.
    pub fn name(&self) -> &str {
        &self.recording.name
    }

    /// The weights' names and types, in order.
    pub fn weights(&self) -> impl Iterator<Item = (&str, &TensorType)> {
        self.signature.weights.iter().map(|(name, ty, _)| (&**name, ty))
    }

    /// The states' names and types, in order.
    pub fn states(&self) -> impl Iterator<Item = (&str, &TensorType)> {
        self.signature.states.iter().map(|(name, ty, _)| (&**name, ty))
    }
}

impl Scope {
    /// Calls `func` with `inputs`, in the order it declares them.
    ///
    /// Its weights and states become weights and states of this function, under the scope `at` within this one:
    /// called at `layers.3`, its `norm.weight` is `layers.3.norm.weight`. Its tapped tensors are tapped here as
    /// `layers.3.…`, without the enclosing scope.
    #[track_caller]
    pub fn call<R: Results>(&self, func: &Func<R>, at: &str, inputs: impl Operands) -> R {
        self.call_tapped(func, at, at, inputs)
    }

    /// As [`Scope::call`], with tapped tensors under another name than weights.
    #[track_caller]
    pub fn call_tapped<R: Results>(&self, func: &Func<R>, at: &str, taps: &str, inputs: impl Operands) -> R {
        let loc = here();
        let scope = if at.is_empty() { self.clone() } else { self.scope(at) };
        let results = scope.call_values(func, taps, &inputs.tensors(), loc);
        let poison = || vec![self.recording.poison(); func.signature.given.len()];
        R::rebuild(&mut results.unwrap_or_else(poison).into_iter())
    }

    fn call_values<R>(&self, func: &Func<R>, taps: &str, inputs: &[Tensor], loc: Loc) -> Option<Vec<Tensor>> {
        let (recording, signature) = (&self.recording, &func.signature);
        if !Rc::ptr_eq(&func.program.0, &recording.program.0) {
            let message = format!("@{} belongs to another program", func.name());
            let diag = Diag::new("eva::foreign_function", message).label(Some(loc), "called here");
            recording
                .note(diag.label(Some(func.recording.loc), "made here").help("make it in this program, too"));
            return None;
        }
        if inputs.len() != signature.inputs.len() {
            self.note_count(func, inputs.len(), loc);
            return None;
        }
        let inputs = recording.own(inputs, loc)?;
        self.check_types(func, &inputs, loc)?;
        let callee = func.func?;

        let mut args = inputs;
        for (name, ty, _) in &signature.weights {
            let weight = recording.param(ParamKind::Weight, &self.full_name(name), ty.clone(), loc);
            args.push(weight.value?);
        }
        let mut states = Vec::new();
        for (name, ty, _) in &signature.states {
            let state = recording.param(ParamKind::State, &self.full_name(name), ty.clone(), loc);
            states.push(state.value?);
        }
        args.extend(&states);
        let ty = {
            let module = recording.program.0.module.borrow();
            let inner = recording.inner();
            graph::call_type(&module.funcs[callee], &inner.values, &args).ok()?
        };
        Some(self.take_results(func, Def::Call(callee, args), ty, &states, taps, loc))
    }

    /// Adds the call, takes its results apart, and gives states and taps on.
    fn take_results<R>(
        &self,
        func: &Func<R>,
        call: Def,
        ty: Type,
        states: &[Value],
        taps: &str,
        loc: Loc,
    ) -> Vec<Tensor> {
        let (recording, signature) = (&self.recording, &func.signature);
        let inside = |name: &str| match taps {
            "" => name.to_string(),
            taps => [taps, ".", name].concat(),
        };
        let single = matches!(ty, Type::Tensor(_));
        let call_name = if single { inside(&signature.result_names[0]) } else { inside(func.name()) };
        let value = recording.push(call, ty, Name::Wanted(call_name.into()), loc);
        let tuple = Tensor { recording: recording.clone(), value: Some(value) };
        let mut parts: HashMap<usize, Tensor> = HashMap::new();
        let mut part = |i: usize| {
            let take = || {
                let name = Name::Wanted(inside(&signature.result_names[i]).into());
                recording.part(&tuple, i, name, loc)
            };
            if single { tuple.clone() } else { parts.entry(i).or_insert_with(take).clone() }
        };
        for (&state, &i) in states.iter().zip(&signature.states_at) {
            recording.set_update(state, loc, part(i).value);
        }
        let given: Vec<Tensor> = signature.given.iter().map(|&i| part(i)).collect();
        for (name, i) in &signature.taps {
            part(*i).tap_at(&inside(name), loc);
        }
        given
    }

    fn note_count<R>(&self, func: &Func<R>, have: usize, loc: Loc) {
        let params = &func.signature.inputs;
        let list: Vec<_> = params.iter().map(|(name, ty, _)| format!("{name}: {ty}")).collect();
        let s = if params.len() == 1 { "" } else { "s" };
        let message = format!("@{} takes {} input{s}, not {have}", func.name(), params.len());
        let diag = Diag::new("eva::call_inputs", message)
            .label(Some(loc), "called here")
            .label(Some(func.recording.loc), "the function begins here");
        let help = match list.as_slice() {
            [] => "its weights and states are passed by themselves".to_string(),
            list => format!("it takes ({}); weights and states are passed by themselves", list.join(", ")),
        };
        self.recording.note(diag.help(help));
    }

    fn check_types<R>(&self, func: &Func<R>, inputs: &[Value], loc: Loc) -> Option<()> {
        let mut ok = Some(());
        for ((name, want, declared), &input) in func.signature.inputs.iter().zip(inputs) {
            let (have, made) = {
                let data = &self.recording.inner().values[input];
                (data.ty.clone(), data.loc)
            };
            if have == Type::Tensor(want.clone()) {
                continue;
            }
            let message = format!("the input `{name}` of @{} is {want}, but this is {have}", func.name());
            let given = self.recording.name_of(input).map_or("this".into(), |name| format!("`{name}`"));
            let diag = Diag::new("eva::call_inputs", message)
                .label(Some(loc), "called here")
                .label(made, format!("{given} is {have}"))
                .label(*declared, format!("`{name}` is {want}"));
            self.recording
                .note(diag.help("extents fit by name: a call passes tensors of exactly these types"));
            ok = None;
        }
        ok
    }
}
