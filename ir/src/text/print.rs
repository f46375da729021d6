//! Writes a module. Any module can be written, well-formed or not; what is well-formed reads back.

use crate::attr::{Attr, Axis, Spec};
use crate::estimate::Estimate;
use crate::graph::{Def, Func, Function, Module, Value};
use crate::types::{TensorType, Type};
use std::fmt::{self, Write};

/// Parameters longer than this do not widen the column of parameters.
const PARAM_WIDTH: usize = 64;
/// Nor do names longer than this widen the column of names.
const NAME_WIDTH: usize = 32;
/// Nor do operations longer than this widen theirs; those longer still than [`LINE_WIDTH`] are broken.
const OP_WIDTH: usize = 64;
/// Where the operands of a long operation are broken.
const LINE_WIDTH: usize = 100;

/// The canonical text of `module`.
pub fn print(module: &Module) -> String {
    let mut text = String::new();
    if let Some(bytes) = module.kv_budget {
        let _ = writeln!(text, "kv_budget {bytes}");
    }
    for (name, value) in &module.dims {
        let value = value.map_or(String::new(), |n| format!(" = {n}"));
        let _ = writeln!(text, "dim {name}{value}");
    }
    for func in module.funcs.keys() {
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(&print_function(module, func));
    }
    text
}

/// The text of one function, without the extents that its module declares.
pub fn print_function(module: &Module, func: Func) -> String {
    let mut text = String::new();
    let _ = function(module, &module.funcs[func], &mut text);
    text
}

/// A function with all its bodies.
fn function(module: &Module, f: &Function, text: &mut String) -> fmt::Result {
    let body = |text: &mut String, f: &Function| Printer { module, f }.body(text);
    Printer { module, f }.signature(text)?;
    body(text, f)?;
    if !f.alternatives.is_empty() {
        cost(text, &f.estimate)?;
    }
    for other in &f.alternatives {
        write!(text, "\nor {} ", other.body.name)?;
        body(text, &other.body)?;
        cost(text, &other.estimate)?;
    }
    writeln!(text)
}

/// What a body takes, behind it.
fn cost(text: &mut String, estimate: &Estimate) -> fmt::Result {
    write!(text, " cost {}", estimate.sum())?;
    estimate.maxima().iter().try_for_each(|(a, b)| write!(text, "\n  + max({a}, {b})"))
}

impl fmt::Display for Module {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&print(self))
    }
}

struct Printer<'a> {
    module: &'a Module,
    f: &'a Function,
}

impl Printer<'_> {
    fn signature(&self, text: &mut String) -> fmt::Result {
        write!(text, "fn @{}(", self.f.name)?;
        let params = self.f.params();
        let params = params.map(|(param, kind)| (format!("{}{}:", kind.keyword(), self.name(param)), param));
        let params: Vec<(String, Value)> = params.collect();
        let width = column(params.iter().map(|(left, _)| left.len()), PARAM_WIDTH);
        for (i, (left, param)) in params.iter().enumerate() {
            let line = if i == 0 { "\n" } else { "" };
            writeln!(text, "{line}  {left:width$} {},", self.f.values[*param].ty)?;
        }
        let ty = |&value: &Value| self.f.values.get(value).map_or("?".into(), |data| data.ty.to_string());
        let results: Vec<String> = self.f.results.iter().map(ty).collect();
        let prepares = self.f.prepares.map_or(String::new(), |func| {
            format!("prepares @{} ", self.module.funcs.get(func).map_or("?", |f| &f.name))
        });
        write!(text, ") -> {} {prepares}", results.join(", "))
    }

    /// Without a line's end.
    fn body(&self, text: &mut String) -> fmt::Result {
        writeln!(text, "{{")?;
        let stmts = self.f.values.iter().filter_map(|(value, data)| {
            let (head, args, tail) = self.parts(&data.def)?;
            let whole = format!("{head}{}{}{tail}", if args.is_empty() { "" } else { " " }, args.join(", "));
            Some((self.name(value), head, args, tail, whole, &data.ty))
        });
        let stmts: Vec<_> = stmts.collect();
        let left = column(stmts.iter().map(|stmt| stmt.0.len()), NAME_WIDTH);
        let middle = column(stmts.iter().map(|stmt| stmt.4.len()), OP_WIDTH);
        for (name, head, args, tail, whole, ty) in &stmts {
            if whole.len() <= LINE_WIDTH {
                writeln!(text, "  {name:left$} = {whole:middle$} : {ty}")?;
            } else {
                self.broken(text, &format!("{name:left$} = {head}"), args, tail, ty)?;
            }
        }
        let results: Vec<String> = self.f.results.iter().map(|&value| self.name(value)).collect();
        writeln!(text, "  return {}", results.join(", "))?;
        write!(text, "}}")
    }

    /// A statement with its operands on lines of their own.
    fn broken(&self, text: &mut String, head: &str, args: &[String], tail: &str, ty: &Type) -> fmt::Result {
        write!(text, "  {head}")?;
        let mut width = LINE_WIDTH;
        for (i, arg) in args.iter().enumerate() {
            let comma = if i + 1 < args.len() { "," } else { "" };
            if width + arg.len() + 2 > LINE_WIDTH {
                text.push_str("\n     ");
                width = 5;
            }
            write!(text, " {arg}{comma}")?;
            width += arg.len() + 2;
        }
        let tail = tail.trim_start();
        writeln!(text, "\n      {tail}{}: {ty}", if tail.is_empty() { "" } else { " " })
    }

    /// What stands before the operands, the operands, and the attributes (with a space before them).
    fn parts(&self, def: &Def) -> Option<(String, Vec<String>, String)> {
        let args = def.args().iter().map(|&arg| self.name(arg)).collect();
        match def {
            Def::Param(_) => None,
            Def::Call(callee, _) => {
                let callee = self.module.funcs.get(*callee).map_or("?", |f| &f.name);
                Some((format!("call @{callee}"), args, String::new()))
            }
            Def::Op(op, values) => {
                let (mut head, mut attrs) = (op.kind().name().to_owned(), Vec::new());
                for (key, attr) in op.kind().attr_names().iter().zip(op.attrs()) {
                    match attr {
                        Attr::Spec(spec) => head += &format!(" \"{}\"", self.spelled(&spec, values)),
                        attr => attrs.push(format!("{key} = {attr}")),
                    }
                }
                let tail =
                    if attrs.is_empty() { String::new() } else { format!(" {{{}}}", attrs.join(", ")) };
                Some((head, args, tail))
            }
        }
    }

    /// `spec` with each axis spelled by the first letter of its extent, where that is free.
    fn spelled(&self, spec: &Spec, args: &[Value]) -> Spec {
        let axes = spec.inputs.iter().zip(args).flat_map(|(axes, &arg)| {
            let ty: Option<&TensorType> = self.f.values.get(arg).and_then(|data| data.ty.tensor());
            let shape = ty.map_or(&[][..], |ty| &ty.shape);
            axes.iter().copied().zip(shape)
        });
        let mut letters = vec![None; spec.axes()];
        for (axis, dim) in axes {
            if let Some(letter @ None) = letters.get_mut(axis as usize) {
                *letter = dim.to_string().chars().find(char::is_ascii_lowercase);
            }
        }
        spec.spelled(|axis: Axis| letters.get(axis as usize).copied().flatten().unwrap_or('a'))
    }

    fn name(&self, value: Value) -> String {
        match self.f.values.get(value) {
            Some(data) => format!("%{}", data.name),
            None => "%?".into(),
        }
    }
}

/// How wide a column is: as its widest cell, leaving out those above `limit`.
fn column(widths: impl Iterator<Item = usize>, limit: usize) -> usize {
    widths.filter(|&width| width <= limit).max().unwrap_or(0)
}
