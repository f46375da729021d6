//! One statement: its syntax first, then what it means.

use super::{Parse, Parser, Reported, Scope};
use crate::attr::{Attr, Dims, Range, Real, Spec};
use crate::diag::{Diag, Loc};
use crate::dim::Dim;
use crate::graph::{Def, Func, Value, call_type, op_type};
use crate::op::TypeError;
use crate::ops::{Op, OpKind};
use crate::text::lex::{Kind, Token, clip};
use crate::text::nearest;
use crate::types::{DType, Type};
use crate::verify::limits;

/// A statement's syntax.
struct Stmt<'a> {
    name: Token,
    /// The op's name, or the function's with its `@`.
    head: Token,
    spec: Option<(Token, Spec)>,
    args: Vec<Token>,
    attrs: Vec<(Token, &'a str, Attr, Loc)>,
    /// The written type and where it stands; `None` if it is missing.
    ty: Option<(Type, Loc)>,
    loc: Loc,
}

impl<'a> Parser<'a> {
    /// `%y = add %x, %x : f32[b]`
    pub(super) fn statement(&mut self, scope: &mut Scope<'a>) {
        let token = self.peek();
        let name = &self.str(token)[1..];
        let before = self.failures;
        let stmt = self.syntax();
        if stmt.is_err() {
            self.skip_statement();
        }
        let defined = match stmt {
            Ok(stmt) if self.failures == before => self.define(scope, name, stmt),
            _ => Err(Reported),
        };
        if defined.is_err() {
            scope.poison(name, token);
        }
    }

    fn define(&mut self, scope: &mut Scope<'a>, name: &'a str, stmt: Stmt<'a>) -> Parse<()> {
        if let Some(first) = scope.defined(name) {
            self.twice(stmt.name, first, format!("`%{}` is defined twice", clip(name)));
            return Ok(());
        }
        let (def, ty) =
            if stmt.head.kind == Kind::Func { self.call(scope, &stmt)? } else { self.op(scope, &stmt)? };
        match &stmt.ty {
            None => {
                let reported = self.expected("`:` and the type");
                self.help(format!("write `: {ty}`"));
                return Err(reported);
            }
            Some((written, loc)) if *written != ty => {
                let diag = Diag::new(
                    "eva::type_mismatch",
                    format!("`%{}` has type {ty}, not {written}", clip(name)),
                );
                let diag = diag.label(Some(*loc), format!("should be {ty}"));
                return Err(self.diag(Diag { help: difference(&ty, written), ..diag }));
            }
            Some(_) => {}
        }
        scope.add(name, stmt.name, ty, def, stmt.loc);
        Ok(())
    }

    fn syntax(&mut self) -> Parse<Stmt<'a>> {
        let name = self.peek();
        self.bump();
        self.expect(b'=', "after the value's name")?;
        let (mut head, word) = self.word("an op, as in `%y = add %x, %x : f32[b]`")?;
        if word == "call" {
            head = self.peek();
            if head.kind != Kind::Func {
                return Err(self.expected("the function's name, as in `call @layer %x`"));
            }
            self.bump();
        }
        let spec = if self.peek().kind == Kind::Str { Some(self.spec()?) } else { None };
        let mut args = Vec::new();
        if self.peek().kind == Kind::Value && self.peek_second().kind != Kind::Punct(b'=') {
            loop {
                args.push(self.value("a value after `,`")?.0);
                if !self.eat(b',') {
                    break;
                }
            }
        }
        let mut attrs = Vec::new();
        if self.eat(b'{') {
            while !self.eat(b'}') {
                let (token, key) = self.word("an attribute's name, as in `{axis = 1}`")?;
                self.expect(b'=', "and the attribute's value")?;
                let start = self.peek();
                let attr = self.attr()?;
                attrs.push((token, key, attr, self.span(start)));
                if !self.is(b'}') {
                    self.expect(b',', "or `}`")?;
                }
            }
        }
        let mut ty = None;
        if self.eat(b':') {
            let start = self.peek();
            ty = Some((self.ty()?, self.span(start)));
        } else if self.peek().kind == Kind::Value && !self.peek().first {
            return Err(self.expected("`,` between operands, or `:` and the type"));
        } else if self.peek().kind == Kind::Bad {
            return Err(self.expected("the type"));
        }
        Ok(Stmt { name, head, spec, args, attrs, ty, loc: self.span(name) })
    }

    fn spec(&mut self) -> Parse<(Token, Spec)> {
        let token = self.peek();
        self.bump();
        let text = self.str(token);
        let parsed = text[1..text.len() - 1].parse();
        let spec = parsed.map_err(|()| {
            let message = format!("{} is not a spec", clip(text));
            let reported = self.error("eva::syntax", token, message, "here");
            self.help("a letter an axis, operands between commas, then the result: `\"ab,bc->ac\"`");
            reported
        })?;
        Ok((token, spec))
    }

    fn operands(&mut self, scope: &mut Scope<'a>, args: &[Token]) -> Parse<Vec<Value>> {
        let values: Vec<_> = args.iter().map(|&token| self.operand(scope, token)).collect();
        values.into_iter().collect()
    }

    fn call(&mut self, scope: &mut Scope<'a>, stmt: &Stmt<'a>) -> Parse<(Def, Type)> {
        let args = self.operands(scope, &stmt.args);
        if let Some((token, ..)) = stmt.attrs.first() {
            return Err(self.error("eva::unknown_attribute", *token, "a call has no attributes", "here"));
        }
        if let Some((token, _)) = stmt.spec {
            return Err(self.error("eva::syntax", token, "a call has no spec", "here"));
        }
        let func = self.callee(&scope.function.name, stmt.head, "called here");
        // A function with mistakes has been complained about.
        let (func, args) = (func?.ok_or(Reported)?, args?);
        let ty = call_type(&self.module.funcs[func], &scope.function.values, &args)
            .map_err(|error| self.type_error(scope, stmt, &args, None, error))?;
        Ok((Def::Call(func, args), ty))
    }

    /// `prepares @name` of the function `inside`, or nothing.
    pub(super) fn prepares(&mut self, inside: &str) -> Parse<Option<Func>> {
        let token = self.peek();
        if token.kind != Kind::Word || self.str(token) != "prepares" {
            return Ok(None);
        }
        self.bump();
        let token = self.peek();
        if token.kind != Kind::Func {
            return Err(self.expected("the function that is prepared, as in `prepares @main`"));
        }
        self.bump();
        self.callee(inside, token, "named here")
    }

    /// The function before `inside` that `token` names; `None` for one that has mistakes.
    fn callee(&mut self, inside: &str, token: Token, label: &str) -> Parse<Option<Func>> {
        let name = &self.str(token)[1..];
        if let Some(&(func, _)) = self.funcs.get(name) {
            return Ok(func);
        }
        let shown = clip(name);
        let close = nearest(name, self.funcs.keys().copied()).map(str::to_owned);
        let (message, help) = if inside == name {
            (format!("@{shown} calls itself"), Some("a function may call only those before it".into()))
        } else if self.later.contains(name) {
            let help = "a function may call only those before it: move that one up";
            (format!("@{shown} is defined after this function"), Some(help.into()))
        } else {
            let help = close.map(|close| format!("did you mean `@{close}`?"));
            (format!("there is no function @{shown}"), help)
        };
        let diag = Diag::new("eva::undefined", message).label(Some(token.loc()), label);
        Err(self.diag(Diag { help, ..diag }))
    }

    fn op(&mut self, scope: &mut Scope<'a>, stmt: &Stmt<'a>) -> Parse<(Def, Type)> {
        let args = self.operands(scope, &stmt.args);
        let name = self.str(stmt.head);
        let Some(kind) = OpKind::by_name(name) else {
            let message = format!("there is no op named `{}`", clip(name));
            let reported = self.error("eva::unknown_op", stmt.head, message, "here");
            if let Some(close) = nearest(name, OpKind::ALL.iter().map(|kind| kind.name())) {
                self.help(format!("did you mean `{close}`?"));
            }
            return Err(reported);
        };
        let op = self.attributes(stmt, kind);
        let (op, args) = (op?, args?);
        if args.len() > limits::OPERANDS {
            let message = format!("`{name}` has more than {} operands", limits::OPERANDS);
            return Err(self.error("eva::out_of_range", stmt.head, message, "here"));
        }
        let ty = op_type(&op, &scope.function.values, &args)
            .map_err(|error| self.type_error(scope, stmt, &args, Some(kind), error))?;
        Ok((Def::Op(op, args), ty))
    }

    /// The op with the attributes as written.
    fn attributes(&mut self, stmt: &Stmt<'a>, kind: OpKind) -> Parse<Op> {
        let (op, names) = (kind.name(), kind.attr_names());
        let mut given: Vec<Option<(Attr, Loc)>> = vec![None; names.len()];
        let before = self.failures;
        if let Some((token, spec)) = &stmt.spec {
            match names.iter().position(|&name| name == "spec") {
                Some(i) => given[i] = Some((Attr::Spec(spec.clone()), token.loc())),
                None => {
                    self.error("eva::unknown_attribute", *token, format!("`{op}` takes no spec"), "here");
                }
            }
        }
        for (token, key, attr, loc) in &stmt.attrs {
            match names.iter().position(|name| name == key) {
                None => {
                    let message = format!("`{op}` has no attribute `{}`", clip(key));
                    self.error("eva::unknown_attribute", *token, message, "here");
                    self.help(match nearest(key, names.iter().copied()) {
                        Some(close) => format!("did you mean `{close}`?"),
                        None if names.is_empty() => format!("`{op}` has no attributes"),
                        None => format!("its attributes are `{}`", names.join("`, `")),
                    });
                }
                Some(i) if given[i].is_some() => {
                    self.error("eva::duplicate", *token, format!("`{key}` is given twice"), "again here");
                }
                Some(i) => given[i] = Some((attr.clone(), *loc)),
            }
        }
        if self.failures > before {
            return Err(Reported);
        }
        for (i, name) in names.iter().enumerate() {
            if given[i].is_none() {
                let expected = expected(kind, &given[..i]);
                let (message, help) = if *name == "spec" {
                    (
                        format!("`{op}` needs a spec"),
                        format!("write one behind the op: `{op} \"ab,bc->ac\" …`"),
                    )
                } else {
                    (format!("`{op}` needs the attribute `{name}`"), format!("`{name}` is {expected}"))
                };
                self.error("eva::missing_attribute", stmt.head, message, "here");
                self.help(help);
                return Err(Reported);
            }
        }
        let attrs: Vec<Attr> = given.iter().flatten().map(|(attr, _)| attr.clone()).collect();
        kind.with_attrs(&attrs).map_err(|i| {
            let (name, (attr, loc)) = (names[i], given[i].as_ref().expect("all are given"));
            let message = format!("`{name}` of `{op}` is {}, not `{attr}`", expected(kind, &given[..i]));
            let diag = Diag::new("eva::wrong_attribute", message).label(Some(*loc), "here");
            let help = match attr {
                Attr::Int(n) if accepts(kind, &given[..i], Attr::Real(Real::new(0.5))) => {
                    Some(format!("write `{n}.0`"))
                }
                Attr::Int(n) if accepts(kind, &given[..i], Dim::from(1).into()) => {
                    Some(format!("write `[{n}]`"))
                }
                Attr::Word(w) if accepts(kind, &given[..i], Dim::from(1).into()) => {
                    Some(format!("write `[{}]`", w.as_str()))
                }
                _ => None,
            };
            self.diag(Diag { help, ..diag })
        })
    }

    /// What an op or a call says about its operands, shown at the guilty one.
    fn type_error(
        &mut self,
        scope: &Scope<'a>,
        stmt: &Stmt<'a>,
        args: &[Value],
        kind: Option<OpKind>,
        error: TypeError,
    ) -> Reported {
        let mut diag = Diag::new("eva::type_mismatch", error.message);
        let show = |i: usize| {
            let role = kind
                .and_then(|kind| kind.operands().get(i))
                .map_or(String::new(), |name| format!("`{name}` is "));
            format!("{role}{}", scope.function.values[args[i]].ty)
        };
        match error.operand.filter(|&i| i < args.len()) {
            // The others are part of the picture, if there are few.
            Some(guilty) => {
                diag = diag.label(Some(stmt.args[guilty].loc()), show(guilty));
                let others = (0..args.len()).filter(|&i| i != guilty && kind.is_some() && args.len() <= 3);
                for i in others {
                    diag = diag.label(Some(stmt.args[i].loc()), show(i));
                }
            }
            None => diag = diag.label(Some(stmt.head.loc()), "here"),
        }
        self.diag(Diag { help: error.help, ..diag })
    }
}

/// Whether the attribute behind `given` may be `sample`.
fn accepts(kind: OpKind, given: &[Option<(Attr, Loc)>], sample: Attr) -> bool {
    let attrs: Vec<Attr> = given.iter().flatten().map(|(attr, _)| attr.clone()).chain([sample]).collect();
    // An error about a later attribute means that this one is right.
    kind.with_attrs(&attrs).map_or_else(|i| i > given.len(), |_| true)
}

/// What the attribute behind `given` must be. The op is asked, by offering it a value of each kind.
fn expected(kind: OpKind, given: &[Option<(Attr, Loc)>]) -> &'static str {
    let one = || Dim::from(1);
    let samples = [
        (Attr::Int(1), "an integer, like `1`"),
        (Attr::Real(Real::new(0.5)), "a number with a point or an exponent, like `1.0` or `1e-6`"),
        (Attr::Bool(true), "`true` or `false`"),
        (Attr::Range(Range { start: Dim::from(0), end: one() }), "a range, like `0..n`"),
        (Attr::Dims(Dims(vec![one(), one()])), "a list of extents, like `[b, h*n]`"),
        (one().into(), "an extent in brackets, like `[n]`"),
        (Attr::DType(DType::F32), "an element type, like `f32`"),
        (Attr::Word("word".into()), "a word"),
    ];
    let found = samples.into_iter().find(|(sample, _)| accepts(kind, given, sample.clone()));
    found.map_or("something else", |(_, what)| what)
}

/// Where two types of equal rank differ first.
fn difference(have: &Type, written: &Type) -> Option<String> {
    let (Type::Tensor(have), Type::Tensor(written)) = (have, written) else { return None };
    if have.dtype != written.dtype {
        return Some(format!("the elements are {}", have.dtype));
    }
    if have.rank() != written.rank() {
        return Some(format!("there are {} axes", have.rank()));
    }
    let axis = have.shape.iter().zip(&written.shape).position(|(a, b)| a != b)?;
    Some(format!("axis {axis} is {}, not {}", have.shape[axis], written.shape[axis]))
}
