//! What a well-formed module is. Every pass is given one and must leave one.
//!
//! **Module.** Extents have distinct names that the text can hold ([`crate::text::is_extent_name`]), and
//! positive values where they have any. Functions have distinct names that the text can hold.
//!
//! **Values.** Names are distinct in a function, and the text can hold them. Parameters come first, and are
//! tensors. Operands are older than what uses them. A call is of an older function, with arguments of
//! exactly its parameters' types.
//!
//! **Types.** The type of an op or a call is what [`crate::graph::op_type`] and [`crate::graph::call_type`]
//! infer. Every extent in a type or an attribute is declared by the module. An extent whose value is fixed is
//! positive. No tensor needs 2⁶³ bytes or more, even where the extents that are not fixed are 1. 8-bit floats, and they
//! alone, have scales: a block for each axis, of at least 1. Types stay below [`limits`].
//!
//! **Attributes.** Reading back the text of an attribute gives the same attribute.
//!
//! **Results.** There is one at least; all are tensors; none is listed twice.
//!
//! **State.** A cache is used exactly once: as operand 0 of `cache_write` or
//! `page_write`, or as an argument of
//! a call whose parameter is state too. What such an update gives may be read, and updated again; it is not
//! read after that, nor returned. A state that is updated as operand 0 of `assign`, or by calls that do so, is updated
//! in no other way; it may be read before that, too, and by the `assign` itself. The last version is a result. A call is given state only where
//! its parameter is state, and always there.
//!
//! **Alternatives.** The bodies beside a function's own have distinct names that are an extent's in form, the same
//! parameters (names, types and kinds), results of the same types, each state in the same place among them, and no
//! alternatives of their own; everything above holds for them too. Estimates are of finite numbers and declared extents. A
//! function without alternatives has none.
//!
//! **Preparation.** A function that prepares another ([`Function::prepares`]) is newer than it, and the only one to. Its
//! parameters are weights, and weights of that function have their names and types; so have its results, others.

use crate::attr::Attr;
use crate::diag::{Diag, Diags};
use crate::dim::{Dim, Sym};
use crate::entity::{Arena, Entity};
use crate::estimate::Estimate;
use crate::graph::{Def, Func, Function, Module, Value, call_type, op_type};
use crate::op::TypeError;
use crate::scales::{self, Block};
use crate::text::{MAX_DIAGS, is_extent_name, is_value_name};
use crate::types::{DType, TensorType, Type};
use state::States;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

mod bodies;
pub mod limits;
mod prepare;
mod state;

pub use state::{StateResults, is_assigned, state_results};

/// Where each function before one returns its state.
type Tables = Arena<Func, StateResults>;

/// The extents and functions of a module when it was verified, if it was: see [`verified`].
///
/// Functions that are shared are never changed in place, so the same functions are still as they were.
#[derive(Clone, Debug, Default)]
pub struct Verified(Option<Arc<Snapshot>>);

#[derive(Debug)]
struct Snapshot {
    dims: Vec<(Sym, Option<i64>)>,
    funcs: Vec<Arc<Function>>,
}

impl Verified {
    /// Whether `module` is still as it was when it was verified.
    fn holds_for(&self, module: &Module) -> bool {
        let funcs = || module.funcs.iter().map(|(_, f)| f);
        self.0.as_ref().is_some_and(|then| {
            then.dims == module.dims
                && then.funcs.len() == module.funcs.len()
                && then.funcs.iter().zip(funcs()).all(|(then, now)| Arc::ptr_eq(then, now))
        })
    }
}

/// The module, verified; [`verify`] need not look at it again until its extents or functions are changed.
pub fn verified(mut module: Module) -> Result<Module, Diags> {
    verify(&module)?;
    let funcs = module.funcs.iter().map(|(_, f)| f.clone()).collect();
    module.verified = Verified(Some(Arc::new(Snapshot { dims: module.dims.clone(), funcs })));
    Ok(module)
}

/// Checks the whole module; reports up to [`MAX_DIAGS`] mistakes.
pub fn verify(module: &Module) -> Result<(), Diags> {
    if module.verified.holds_for(module) {
        return Ok(());
    }
    let mut diags = Vec::new();
    let mut names = HashSet::new();
    for (sym, value) in &module.dims {
        if !is_extent_name(sym.as_str()) {
            diags.push(Diag::new("eva::name", format!("`{sym}` cannot be the name of an extent")));
        }
        if !names.insert(sym) {
            diags.push(Diag::new("eva::duplicate", format!("the extent `{sym}` is declared twice")));
        }
        if value.is_some_and(|n| n <= 0) {
            diags.push(Diag::new("eva::out_of_range", format!("the extent `{sym}` must be positive")));
        }
    }
    let mut names = HashSet::new();
    for (_, f) in module.funcs.iter() {
        if !is_value_name(&f.name) {
            diags.push(Diag::new("eva::name", format!("`{}` cannot be the name of a function", f.name)));
        }
        if !names.insert(&f.name) {
            diags.push(Diag::new("eva::duplicate", format!("there are two functions @{}", f.name)));
        }
    }
    let mut tables = Arena::default();
    for func in module.funcs.keys() {
        let (found, table) = check_function(module, func, &tables);
        diags.extend(found);
        tables.push(table);
        if diags.len() >= MAX_DIAGS {
            break;
        }
    }
    finish(diags)
}

/// Checks one function of a module whose extents and older functions are well-formed.
pub fn verify_function(module: &Module, func: Func) -> Result<(), Diags> {
    let mut tables = Arena::default();
    for older in module.funcs.keys().take(func.index()) {
        let table = States::new(module, &module.funcs[older], &tables).table();
        tables.push(table);
    }
    finish(check_function(module, func, &tables).0)
}

fn finish(mut diags: Vec<Diag>) -> Result<(), Diags> {
    diags.truncate(MAX_DIAGS);
    if diags.is_empty() { Ok(()) } else { Err(Diags(diags)) }
}

/// What is wrong with a function, and where it returns its state.
fn check_function(module: &Module, func: Func, tables: &Tables) -> (Vec<Diag>, StateResults) {
    let f = &module.funcs[func];
    let (mut diags, table) = check_body(module, func, f, tables);
    if diags.is_empty() {
        diags = prepare::check(module, func);
    }
    if !(f.alternatives.is_empty() && f.estimate == Estimate::default()) && diags.is_empty() {
        diags = bodies::check(module, f, &table, &|body| check_body(module, func, body, tables));
    }
    (diags, table)
}

/// The same for one body of `func`.
fn check_body(module: &Module, func: Func, f: &Function, tables: &Tables) -> (Vec<Diag>, StateResults) {
    let states = States::new(module, f, tables);
    let extents = module.dims.iter().map(|(sym, value)| (sym, *value)).collect();
    let (checked, sound, diags) = (HashSet::new(), Vec::new(), Vec::new());
    let mut checker = Checker { module, func, f, extents, checked, sound, diags };
    checker.values();
    checker.results();
    if checker.diags.is_empty() {
        checker.diags = states.check();
    }
    (checker.diags, states.table())
}

struct Checker<'a> {
    module: &'a Module,
    func: Func,
    f: &'a Function,
    /// The module's extents, and the values of those that are fixed.
    extents: HashMap<&'a Sym, Option<i64>>,
    /// Types that nothing is wrong with: a large function has many values of few types.
    checked: HashSet<&'a TensorType>,
    /// Whether each value's type can be reasoned about.
    sound: Vec<bool>,
    diags: Vec<Diag>,
}

impl<'a> Checker<'a> {
    fn values(&mut self) {
        let mut names = HashSet::with_capacity(self.f.values.len());
        let mut params_end = false;
        for (value, data) in self.f.values.iter() {
            if self.diags.len() >= MAX_DIAGS {
                return;
            }
            if !is_value_name(&data.name) {
                self.report("eva::name", value, format!("`{}` cannot be the name of a value", data.name));
            }
            if !names.insert(&data.name) {
                self.report("eva::duplicate", value, format!("`%{}` is defined twice", data.name));
            }
            let is_param = matches!(data.def, Def::Param(_));
            if is_param && params_end {
                self.report("eva::order", value, format!("the parameter `%{}` comes after an op", data.name));
            }
            params_end |= !is_param;
            let before = self.diags.len();
            self.ty(value, &data.ty, is_param);
            self.sound.push(self.diags.len() == before);
            self.definition(value);
        }
    }

    fn ty(&mut self, value: Value, ty: &'a Type, is_param: bool) {
        if is_param && ty.tensor().is_none() {
            self.report("eva::type_mismatch", value, format!("a parameter is one tensor, not {ty}"));
        }
        for part in ty.parts() {
            if self.checked.contains(part) {
                continue;
            }
            let before = self.diags.len();
            if let Err(message) = limits::check_shape(&part.shape) {
                self.report("eva::out_of_range", value, message);
                continue;
            }
            self.declared(value, &part.shape);
            if let Some(message) = self.size(part).or_else(|| wrong_scales(part)) {
                self.report("eva::type_mismatch", value, message);
            }
            if self.diags.len() == before {
                self.checked.insert(part);
            }
        }
    }

    /// Reports the extents that nobody declared.
    fn declared<'d>(&mut self, value: Value, dims: impl IntoIterator<Item = &'d Dim>) {
        let mut said = HashSet::new();
        for sym in dims.into_iter().flat_map(Dim::factors) {
            if !self.extents.contains_key(sym) && said.insert(sym) {
                let diag = Diag::new("eva::undefined", format!("the extent `{sym}` is not declared"));
                let diag = diag.label(self.f.values[value].loc, "used here");
                self.diags.push(diag.help(format!("declare it: `dim {sym}`")));
            }
        }
    }

    /// What is wrong with the extents' values, if anything is.
    fn size(&self, ty: &TensorType) -> Option<String> {
        let mut bytes = ty.dtype.bytes();
        for (axis, dim) in ty.shape.iter().enumerate() {
            let value = |sym: &Sym| self.extents.get(sym).copied().flatten();
            let least = dim.eval(&|sym| Some(value(sym).unwrap_or(1)));
            if let Some(n) = least.filter(|&n| n <= 0 && dim.factors().all(|sym| value(sym).is_some())) {
                let is = if dim.as_const().is_some() { String::new() } else { format!(" = {dim}") };
                return Some(format!("axis {axis} of {ty} has the extent {n}{is}, which is not positive"));
            }
            match least.and_then(|n| bytes.checked_mul(n.max(1))) {
                Some(n) => bytes = n,
                None => return Some(format!("{ty} has more bytes than 64 bits can count")),
            }
        }
        None
    }

    fn definition(&mut self, value: Value) {
        let data = &self.f.values[value];
        let args = data.def.args();
        if let Some(&arg) = args.iter().find(|arg| arg.index() >= value.index()) {
            let message = match self.f.values.get(arg) {
                Some(arg) => format!("`%{}` uses `%{}`, which is not older", data.name, arg.name),
                None => format!("`%{}` uses a value that does not exist", data.name),
            };
            return self.report("eva::order", value, message);
        }
        if !self.sound[value.index()] {
            return;
        }
        let sound = args.iter().all(|arg| self.sound[arg.index()]);
        let inferred = match &data.def {
            Def::Param(_) => return,
            Def::Op(op, _) => {
                let before = self.diags.len();
                op.kind()
                    .attr_names()
                    .iter()
                    .zip(op.attrs())
                    .for_each(|(key, attr)| self.attr(value, key, &attr));
                if args.len() > limits::OPERANDS {
                    let message =
                        format!("`{}` has more than {} operands", op.kind().name(), limits::OPERANDS);
                    self.report("eva::out_of_range", value, message);
                }
                if !sound || self.diags.len() > before {
                    return;
                }
                op_type(op, &self.f.values, args)
            }
            Def::Call(callee, _) => {
                let Some(function) =
                    self.module.funcs.get(*callee).filter(|_| callee.index() < self.func.index())
                else {
                    let message =
                        format!("`%{}` calls a function that is not older than this one", data.name);
                    return self.report("eva::order", value, message);
                };
                if !sound {
                    return;
                }
                call_type(function, &self.f.values, args)
            }
        };
        match inferred {
            Ok(ty) if ty == data.ty => self.whole_blocks(value),
            Ok(ty) => {
                let message = format!("`%{}` has type {ty}, not {}", data.name, data.ty);
                self.report("eva::type_mismatch", value, message);
            }
            Err(error) => self.type_error(value, error),
        }
    }

    /// Reports an op that cuts blocks of neighbours that share a scale.
    fn whole_blocks(&mut self, value: Value) {
        let data = &self.f.values[value];
        let (Def::Op(op, args), Some(out)) = (&data.def, data.ty.tensor()) else { return };
        let Some(arg) = args.first().and_then(|&arg| self.f.tensor(arg)).filter(|ty| ty.scales.is_some())
        else {
            return;
        };
        let known = |sym: &Sym| self.extents.get(sym).copied().flatten();
        if let Some(message) = scales::cuts(op, arg, out, &|dim| dim.eval(&known)) {
            self.type_error(value, TypeError::new(message).at(0).help("dequantize it first"));
        }
    }

    fn attr(&mut self, value: Value, key: &str, attr: &Attr) {
        let dims: &[Dim] = match attr {
            Attr::Dims(dims) => &dims.0,
            Attr::Range(range) => &[range.start.clone(), range.end.clone()],
            _ => &[],
        };
        let short = match attr {
            Attr::Dims(_) => limits::check_shape(dims),
            _ => dims.iter().try_for_each(limits::check_dim),
        };
        if let Err(message) = short {
            return self.report("eva::out_of_range", value, message);
        }
        self.declared(value, dims);
        // The text of an integer is always read back.
        if !matches!(attr, Attr::Int(_)) && attr.to_string().parse().as_ref() != Ok(attr) {
            let message = format!("the text cannot hold the attribute `{key}`, which is {attr:?}");
            self.report("eva::wrong_attribute", value, message);
        }
    }

    fn type_error(&mut self, value: Value, error: TypeError) {
        let data = &self.f.values[value];
        let mut diag = Diag::new("eva::type_mismatch", error.message).label(data.loc, "here");
        if let Some(&arg) = error.operand.and_then(|i| data.def.args().get(i)) {
            let arg = &self.f.values[arg];
            diag = diag.label(arg.loc, format!("`%{}` is {}", arg.name, arg.ty));
        }
        self.diags.push(Diag { help: error.help, ..diag });
    }

    fn results(&mut self) {
        if self.f.results.is_empty() {
            self.diags.push(Diag::new("eva::result", format!("@{} returns nothing", self.f.name)));
        }
        let mut seen = HashSet::new();
        for &value in &self.f.results {
            let Some(data) = self.f.values.get(value) else {
                let message = format!("@{} returns a value that does not exist", self.f.name);
                self.diags.push(Diag::new("eva::result", message));
                continue;
            };
            if !seen.insert(value) {
                self.report("eva::result", value, format!("`%{}` is returned twice", data.name));
            }
            if data.ty.tensor().is_none() {
                self.report(
                    "eva::result",
                    value,
                    format!("`%{}` is returned, but {} is no tensor", data.name, data.ty),
                );
            }
        }
    }

    fn report(&mut self, code: &'static str, value: Value, message: String) {
        self.diags.push(Diag::new(code, message).label(self.f.values[value].loc, "here"));
    }
}

/// What is wrong with the scales of `ty`, if anything is.
fn wrong_scales(ty: &TensorType) -> Option<String> {
    match &ty.scales {
        None if ty.dtype.is_f8() => Some(format!("{ty} has no blocks, so no scales")),
        Some(_) if !ty.dtype.is_f8() => Some(format!("{} elements have no scales, so no blocks", ty.dtype)),
        None if ty.dtype == DType::E8M0 => Some("e8m0 is for scales alone".into()),
        Some(scales) if scales.blocks.len() != ty.rank() => {
            Some(format!("{ty} has {} axes but {} blocks", ty.rank(), scales.blocks.len()))
        }
        Some(scales) if scales.blocks.contains(&Block::Of(0)) => Some(format!("a block of {ty} is 0")),
        _ => None,
    }
}
