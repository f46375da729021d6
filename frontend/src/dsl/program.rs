//! [`Program`]: the functions and extents of a module, and the mistakes made so far.

use super::args::Results;
use super::call::Func;
use super::record::{Recording, here};
use super::scope::Scope;
use eva_ir::diag::{Diag, Diags, Loc};
use eva_ir::dim::{Dim, Sym};
use eva_ir::graph::Module;
use eva_ir::text::{is_extent_name, is_value_name};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

/// A module being recorded. Clones are the same program.
#[derive(Clone, Default)]
pub struct Program(pub(super) Rc<Shared>);

/// What all handles of a program share.
#[derive(Default)]
pub(super) struct Shared {
    pub module: RefCell<Module>,
    pub diags: RefCell<Vec<Diag>>,
    pub taps: Cell<bool>,
    /// Where each extent and each function was named.
    pub dims: RefCell<HashMap<Sym, Loc>>,
    functions: RefCell<HashMap<String, Loc>>,
}

/// The extent of a tensor that could not be made: everything that has it stays silent.
pub(super) const UNKNOWN: &str = "?";

impl Program {
    /// A program without functions.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether tensors marked with [`super::Tensor::tap`] become results, too. To be said before the first function.
    pub fn taps(self, on: bool) -> Self {
        self.0.taps.set(on);
        self
    }

    /// How many bytes a token may take in the caches of one layer, as the compiler lays them out: a model that needs more
    /// does not compile.
    pub fn kv_budget(self, bytes: u64) -> Self {
        self.0.module.borrow_mut().kv_budget = Some(bytes);
        self
    }

    /// An extent that is known when the program runs, such as the number of tokens.
    #[track_caller]
    pub fn dim(&self, name: &str) -> Dim {
        self.declare(name, None, here())
    }

    /// An extent with a value of its own, such as the number of heads. It stays apart from others of the same value.
    #[track_caller]
    pub fn dim_fixed(&self, name: &str, value: i64) -> Dim {
        self.declare(name, Some(value), here())
    }

    fn declare(&self, name: &str, value: Option<i64>, loc: Loc) -> Dim {
        if !is_extent_name(name) {
            let message = format!("`{name}` is not a name for an extent");
            return self.bad_dim(
                Diag::new("eva::name", message)
                    .label(Some(loc), "here")
                    .help("letters, digits and `_`, a letter first"),
            );
        }
        if let Some(n) = value.filter(|n| *n < 1) {
            let message = format!("the extent `{name}` is {n}");
            return self.bad_dim(
                Diag::new("eva::extent", message)
                    .label(Some(loc), "here")
                    .help("an extent is 1 at least; leave an axis out rather than making it empty"),
            );
        }
        let sym = Sym::from(name);
        let mut module = self.0.module.borrow_mut();
        match module.dims.iter().find(|(other, _)| *other == sym) {
            Some((_, other)) if *other != value => {
                let say = |v: Option<i64>| v.map_or("known only when it runs".into(), |v: i64| v.to_string());
                let message = format!("the extent `{name}` is {} and {}", say(*other), say(value));
                let first = self.0.dims.borrow().get(&sym).copied();
                drop(module);
                self.bad_dim(
                    Diag::new("eva::extent", message)
                        .label(Some(loc), "named again here")
                        .label(first, "first named here"),
                )
            }
            Some(_) => Dim::sym(name),
            None => {
                self.0.dims.borrow_mut().insert(sym.clone(), loc);
                module.dims.push((sym, value));
                Dim::sym(name)
            }
        }
    }

    fn bad_dim(&self, diag: Diag) -> Dim {
        self.note(diag);
        Dim::sym(UNKNOWN)
    }

    /// The value of `dim`, if all extents in it are fixed.
    pub fn value_of(&self, dim: &Dim) -> Option<i64> {
        self.0.module.borrow().constant(dim)
    }

    /// Adds a function: `body` declares its parameters and gives its results.
    ///
    /// The parameters are the inputs, then the weights, then the states, each in the order of their declaration. The
    /// results are what `body` gives, then the updated states, then what was tapped. What no result needs is left out.
    #[track_caller]
    pub fn function<R: Results>(&self, name: &str, body: impl FnOnce(&Scope) -> R) -> Func<R> {
        let loc = here();
        if !is_value_name(name) {
            let message = format!("`{name}` is not a name for a function");
            self.note(
                Diag::new("eva::name", message).label(Some(loc), "here").help("letters, digits, `_` and `.`"),
            );
        }
        if let Some(first) = self.0.functions.borrow_mut().insert(name.into(), loc) {
            self.note(
                Diag::new("eva::duplicate_name", format!("there are two functions named `{name}`"))
                    .label(Some(loc), "the second")
                    .label(Some(first), "the first"),
            );
        }
        let recording = Rc::new(Recording::new(self.clone(), name, loc));
        let results = body(&Scope::new(recording.clone())).tensors();
        let finished = recording.finish(&results);
        let (func, signature) = match finished {
            Some((function, signature)) => (Some(self.0.module.borrow_mut().add(function)), signature),
            None => (None, recording.outline(results.len())),
        };
        Func::new(self.clone(), recording, func, signature)
    }

    /// The module, verified; or every mistake that was made, in the order they were made in.
    pub fn finish(&self) -> Result<Module, Diags> {
        let diags = self.0.diags.borrow().clone();
        if !diags.is_empty() {
            return Err(Diags(diags));
        }
        eva_ir::verify::verified(self.0.module.borrow().clone())
    }

    /// Notes a mistake.
    pub(super) fn note(&self, diag: Diag) {
        self.0.diags.borrow_mut().push(diag);
    }
}
