//! Reads a module, reports every mistake once, and goes on after each.
//!
//! Recursive descent over tokens; nothing nests, so the depth of the recursion does not depend on the
//! input. After a mistake the parser skips to where the next statement, parameter or function starts.
//! A value whose statement was wrong is *poisoned*: what uses it is silently poisoned too.

use super::lex::{Kind, Token, clip, lex};
use super::{MAX_DIAGS, nearest};
use crate::diag::{Diag, Diags, Loc};
use crate::graph::{Def, Func, Function, Module, ParamKind, Value, ValueData};
use crate::types::{TensorType, Type};
use std::collections::{HashMap, HashSet};

mod bodies;
mod cursor;
mod stmt;
mod value;

/// The module that `text` describes, or everything that is wrong with it (up to [`MAX_DIAGS`] mistakes, in
/// the order of the text).
///
/// Names, types, attributes and calls are checked here; the rest of what a module must be is checked by
/// [`crate::verify::verify`].
pub fn parse(text: &str) -> Result<Module, Diags> {
    let (tokens, lexical) = lex(text);
    let is_fn = |pair: &&[Token]| pair[0].kind == Kind::Word && &text[pair[0].start..pair[0].end()] == "fn";
    let later = tokens.windows(2).filter(is_fn).filter(|pair| pair[1].kind == Kind::Func);
    let later = later.map(|pair| &text[pair[1].start + 1..pair[1].end()]).collect();
    let mut parser = Parser {
        text,
        tokens,
        at: 0,
        module: Module::default(),
        diags: Vec::new(),
        failures: 0,
        dims: HashMap::new(),
        funcs: HashMap::new(),
        later,
        kept: false,
    };
    parser.module();
    let mut diags = lexical;
    diags.append(&mut parser.diags);
    if diags.is_empty() {
        return Ok(parser.module);
    }
    diags.sort_by_key(|diag| match diag.labels.first() {
        Some((Loc::Text { start, .. }, _)) => *start,
        _ => usize::MAX,
    });
    diags.truncate(MAX_DIAGS);
    Err(Diags(diags))
}

/// Marks that a mistake has been reported.
struct Reported;

type Parse<T> = Result<T, Reported>;

struct Parser<'a> {
    text: &'a str,
    /// Ends with [`Kind::End`].
    tokens: Vec<Token>,
    at: usize,
    module: Module,
    diags: Vec<Diag>,
    /// How many mistakes were met, including those that were reported before.
    failures: usize,
    /// Where each extent is declared.
    dims: HashMap<&'a str, Token>,
    /// The functions so far, where they are named, and `None` for those with mistakes.
    funcs: HashMap<&'a str, (Option<Func>, Token)>,
    /// Every function's name in the text.
    later: HashSet<&'a str>,
    /// Whether the mistake met last is the last of `diags`, which is what [`Parser::help`] is about.
    kept: bool,
}

/// The function being read.
struct Scope<'a> {
    function: Function,
    names: HashMap<&'a str, Known>,
}

/// What a name stands for.
#[derive(Clone, Copy)]
enum Known {
    /// A value.
    Value(Value, Token),
    /// Defined, but wrongly.
    Poisoned(Token),
    /// Used and not defined, which has been said.
    Missing,
}

impl<'a> Scope<'a> {
    fn add(&mut self, name: &'a str, token: Token, ty: Type, def: Def, loc: Loc) {
        let value = self.function.values.push(ValueData { name: name.into(), ty, def, loc: Some(loc) });
        self.names.insert(name, Known::Value(value, token));
    }

    fn poison(&mut self, name: &'a str, token: Token) {
        if self.defined(name).is_none() {
            self.names.insert(name, Known::Poisoned(token));
        }
    }

    /// Where the name is defined.
    fn defined(&self, name: &str) -> Option<Token> {
        match self.names.get(name) {
            Some(Known::Value(_, token) | Known::Poisoned(token)) => Some(*token),
            Some(Known::Missing) | None => None,
        }
    }
}

impl<'a> Parser<'a> {
    fn module(&mut self) {
        loop {
            let token = self.peek();
            match (token.kind, self.str(token)) {
                (Kind::End, _) => return,
                (Kind::Word, "dim") => {
                    if self.dim().is_err() {
                        self.skip_to_item();
                    }
                }
                (Kind::Word, "kv_budget") => {
                    if self.kv_budget().is_err() {
                        self.skip_to_item();
                    }
                }
                (Kind::Word, "fn") => {
                    let before = self.failures;
                    self.bump();
                    let mut scope = Scope { function: Function::default(), names: HashMap::new() };
                    let named = self.function(&mut scope);
                    if named.is_err() || self.failures > before {
                        self.skip_to_item();
                    }
                    if let Ok((name, token)) = named {
                        let func = (self.failures == before).then(|| self.module.add(scope.function));
                        self.funcs.entry(name).or_insert((func, token));
                    }
                }
                _ => {
                    let message = format!("expected `dim` or `fn`, but found {}", self.found(token));
                    self.error("eva::syntax", token, message, "here");
                    self.bump();
                    self.skip_to_item();
                }
            }
        }
    }

    /// `kv_budget 1152`
    fn kv_budget(&mut self) -> Parse<()> {
        let token = self.peek();
        self.bump();
        let bytes = self.int("bytes a token and layer, as in `kv_budget 1152`")?;
        match self.module.kv_budget {
            Some(_) => {
                self.error("eva::duplicate", token, "there are two budgets", "the second");
            }
            None => self.module.kv_budget = u64::try_from(bytes).ok(),
        }
        Ok(())
    }

    /// `dim h = 128`
    fn dim(&mut self) -> Parse<()> {
        self.bump();
        let what = "the extent's name, as in `dim h = 128`";
        if self.peek().first {
            return Err(self.missing(what));
        }
        let (token, name) = self.word(what)?;
        let known = self.dims.get(name).copied();
        self.dims.entry(name).or_insert(token);
        let mut value = None;
        if self.eat(b'=') {
            let token = self.peek();
            let minus = self.eat(b'-');
            let number = self.peek();
            let n = self.int("the extent's value, as in `dim h = 128`")?;
            if minus || n == 0 {
                let loc = Loc::Text { start: token.start, len: number.end() - token.start };
                self.diag(
                    Diag::new("eva::out_of_range", format!("the extent `{name}` must be positive"))
                        .label(Some(loc), "this is not"),
                );
                value = Some(1);
            } else {
                value = Some(n);
            }
        }
        match known {
            Some(first) => self.twice(token, first, format!("the extent `{}` is declared twice", clip(name))),
            None => self.module.dims.push((name.into(), value)),
        }
        Ok(())
    }

    /// `@name(parameters) -> types { statements; return values }`; fails where the end is not found.
    fn function(&mut self, scope: &mut Scope<'a>) -> Parse<(&'a str, Token)> {
        let token = self.peek();
        if token.kind != Kind::Func {
            return Err(self.expected("the function's name, as in `fn @layer(…)`"));
        }
        self.bump();
        let name = &self.str(token)[1..];
        scope.function.name = name.into();
        if let Some(&(_, first)) = self.funcs.get(name) {
            self.twice(token, first, format!("there are two functions @{}", clip(name)));
        }
        if self.params(scope).is_err() {
            self.skip_to_item();
            return Ok((name, token));
        }
        let results = self.signature(name)?;
        scope.function.prepares = self.prepares(name)?;
        let open = self.peek();
        self.expect(b'{', "and the function's statements")?;
        self.body(scope, results.clone(), open);
        if self.bodies(scope, results).is_err() {
            self.skip_to_item();
        }
        Ok((name, token))
    }

    /// `(%x: f32[b], weight %w: f32[m],)`
    fn params(&mut self, scope: &mut Scope<'a>) -> Parse<()> {
        self.expect(b'(', "and the parameters")?;
        while !self.eat(b')') {
            let read = self.param(scope).and_then(|()| match self.is(b')') {
                true => Ok(()),
                false => self.expect(b',', "or `)` after a parameter"),
            });
            if read.is_err() {
                self.skip_param();
                // The parentheses are never closed.
                if self.at_item() || self.is(b'{') {
                    return Err(Reported);
                }
            }
        }
        Ok(())
    }

    fn param(&mut self, scope: &mut Scope<'a>) -> Parse<()> {
        let start = self.peek();
        let kind = match (start.kind, self.str(start)) {
            (Kind::Word, "weight") => ParamKind::Weight,
            (Kind::Word, "state") => ParamKind::State,
            _ => ParamKind::Input,
        };
        if kind != ParamKind::Input {
            self.bump();
        }
        let (token, name) = self.value("a parameter, as in `%x: f32[b, m]` or `weight %w: bf16[m]`")?;
        let before = self.failures;
        let ty = self.expect(b':', "and the parameter's type").and_then(|()| self.tensor());
        if let Some(first) = scope.defined(name) {
            self.twice(token, first, format!("`%{}` is defined twice", clip(name)));
        } else if let (Ok(ty), true) = (&ty, self.failures == before) {
            let loc = self.span(start);
            scope.add(name, token, ty.clone().into(), Def::Param(kind), loc);
        } else {
            scope.poison(name, token);
        }
        ty.map(drop)
    }

    /// `-> f32[b, m], f32[b]`: the types with where they stand; `None` if they are wrong.
    fn signature(&mut self, name: &str) -> Parse<Option<Vec<(TensorType, Loc)>>> {
        if self.peek().kind != Kind::Arrow {
            let reported = self.expected("`->` and the types of the results");
            self.help(format!("a function says what it returns: `fn @{}(…) -> f32[b, m] {{`", clip(name)));
            return if self.is(b'{') { Ok(None) } else { Err(reported) };
        }
        self.bump();
        let mut results = Vec::new();
        loop {
            let start = self.peek();
            match self.tensor() {
                Ok(ty) => results.push((ty, self.span(start))),
                Err(reported) => {
                    while !self.is(b'{') && !self.at_item() {
                        self.bump();
                    }
                    return if self.is(b'{') { Ok(None) } else { Err(reported) };
                }
            }
            if !self.eat(b',') {
                return Ok(Some(results));
            }
        }
    }

    fn body(&mut self, scope: &mut Scope<'a>, results: Option<Vec<(TensorType, Loc)>>, open: Token) {
        loop {
            let token = self.peek();
            if token.kind == Kind::Value {
                self.statement(scope);
            } else if token.kind == Kind::Word && self.str(token) == "return" {
                if self.ret(scope, results).is_err() {
                    self.skip_statement();
                }
                break;
            } else if self.is(b'}') {
                self.error(
                    "eva::syntax",
                    token,
                    "the function returns nothing",
                    "`return` is missing before this",
                );
                self.help("end it with `return %y`");
                break;
            } else if self.at_item() {
                break;
            } else {
                let message = format!("expected a statement or `return`, but found {}", self.found(token));
                self.error("eva::syntax", token, message, "here");
                self.bump();
                self.skip_statement();
            }
        }
        let token = self.peek();
        if self.at_item() {
            let diag = Diag::new("eva::syntax", "this function has no end");
            let diag = diag.label(Some(open.loc()), "`{` is never closed");
            self.diag(diag.help("functions end with `return %y` and `}`"));
        } else if !self.eat(b'}') {
            self.error("eva::syntax", token, "`return` comes last in a function", "this comes after it");
            while !self.at_end_of_body() && !self.at_item() {
                self.bump();
            }
            self.eat(b'}');
        }
    }

    /// `return %y, %z`
    fn ret(&mut self, scope: &mut Scope<'a>, results: Option<Vec<(TensorType, Loc)>>) -> Parse<()> {
        let start = self.peek();
        self.bump();
        let mut tokens = Vec::new();
        loop {
            tokens.push(self.value("a result, as in `return %y`")?.0);
            if !self.eat(b',') {
                break;
            }
        }
        let loc = self.span(start);
        if let Some(want) = results.as_ref().filter(|want| want.len() != tokens.len()) {
            let (n, m) = (want.len(), tokens.len());
            let types =
                Loc::Text { start: loc_start(want[0].1), len: loc_end(want[n - 1].1) - loc_start(want[0].1) };
            let diag = Diag::new(
                "eva::type_mismatch",
                format!("the signature has {n} results, but {m} are returned"),
            );
            self.diag(diag.label(Some(loc), "returned here").label(Some(types), "promised here"));
            return Ok(());
        }
        for (i, &token) in tokens.iter().enumerate() {
            let Ok(value) = self.operand(scope, token) else { continue };
            let ty = &scope.function.values[value].ty;
            let want = results.as_ref().map(|want| &want[i]);
            let diag = match (ty, want) {
                (Type::Tuple(_), _) => Diag::new("eva::type_mismatch", "a function returns tensors only")
                    .label(Some(token.loc()), format!("this is the tuple {ty}"))
                    .help("take it apart with `get`, and return the parts"),
                (Type::Tensor(ty), Some((want, loc))) if ty != want => {
                    let message =
                        format!("the function returns {want} here, but `{}` is {ty}", self.str(token));
                    Diag::new("eva::type_mismatch", message)
                        .label(Some(token.loc()), format!("this is {ty}"))
                        .label(Some(*loc), "promised here")
                }
                _ => {
                    scope.function.results.push(value);
                    continue;
                }
            };
            self.diag(diag);
        }
        Ok(())
    }

    /// The value that `token` names. Says so, once a function, if there is none.
    fn operand(&mut self, scope: &mut Scope<'a>, token: Token) -> Parse<Value> {
        let name = &self.str(token)[1..];
        match scope.names.get(name) {
            Some(Known::Value(value, _)) => return Ok(*value),
            Some(_) => return Err(Reported),
            None => {}
        }
        let close = nearest(name, scope.names.keys().copied()).map(str::to_owned);
        let reported = self.error(
            "eva::undefined",
            token,
            format!("`%{}` is not defined", clip(name)),
            "no parameter and no statement before this one has this name",
        );
        if let Some(close) = close {
            self.help(format!("did you mean `%{close}`?"));
        }
        scope.names.insert(name, Known::Missing);
        Err(reported)
    }
}

fn loc_start(loc: Loc) -> usize {
    if let Loc::Text { start, .. } = loc { start } else { 0 }
}

fn loc_end(loc: Loc) -> usize {
    if let Loc::Text { start, len } = loc { start + len } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dim::Dim;

    #[test]
    fn extents_are_read_as_dim_reads_them() {
        for text in ["0", "7", "h", "h*n", "2*h*n+t-1", "-3*q", "-3*q-2"] {
            let module =
                format!("dim h dim n dim t dim q fn @f(%x: f32[{text}]) -> f32[{text}] {{ return %x }}");
            let module = parse(&module).unwrap_or_else(|e| panic!("{e}"));
            let f = &module.funcs[module.func("f").unwrap()];
            let (x, _) = f.params().next().unwrap();
            assert_eq!(f.tensor(x).unwrap().shape[0], text.parse::<Dim>().unwrap());
        }
    }
}
