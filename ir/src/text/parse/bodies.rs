//! What may follow a function's body: what it takes, and other bodies.

use super::{Known, Parse, Parser, Scope};
use crate::diag::Loc;
use crate::dim::Sym;
use crate::estimate::Estimate;
use crate::graph::{Alternative, Def, Function};
use crate::poly::Poly;
use crate::text::lex::{Kind, Token, clip};
use crate::types::TensorType;
use crate::verify::limits;
use std::collections::HashMap;
use std::sync::Arc;

impl<'a> Parser<'a> {
    /// `cost 1e-6*s or absorbed { … } cost 2e-6`, or nothing.
    pub(super) fn bodies(
        &mut self,
        scope: &mut Scope<'a>,
        results: Option<Vec<(TensorType, Loc)>>,
    ) -> Parse<()> {
        if !self.is_word("cost") {
            if self.is_word("or") {
                let reported = self.expected("`cost` and an estimate before `or`");
                self.help("what a function's bodies take decides between them: `} cost 1e-6*s`");
                return Err(reported);
            }
            return Ok(());
        }
        let estimate = self.estimate()?;
        if !self.is_word("or") {
            return Err(self.expected("`or` and another body, as in `or absorbed {`"));
        }
        let mut names: HashMap<&'a str, Token> = HashMap::new();
        while self.is_word("or") {
            self.bump();
            let (token, name) = self.word("the body's name, as in `or absorbed {`")?;
            if let Some(first) = names.insert(name, token) {
                self.twice(token, first, format!("there are two bodies `{}`", clip(name)));
            }
            let mut other = scope.same_parameters(name);
            let open = self.peek();
            self.expect(b'{', "and the body's statements")?;
            self.body(&mut other, results.clone(), open);
            if !self.is_word("cost") {
                return Err(self.expected("`cost` and an estimate"));
            }
            let estimate = self.estimate()?;
            scope.function.alternatives.push(Alternative { body: Arc::new(other.function), estimate });
        }
        scope.function.estimate = estimate;
        Ok(())
    }

    fn is_word(&self, word: &str) -> bool {
        let token = self.peek();
        token.kind == Kind::Word && self.str(token) == word
    }

    /// `cost 1e-6+2e-9*s + max(3e-9*s*t, 8e-9*t)`
    fn estimate(&mut self) -> Parse<Estimate> {
        self.bump();
        let (mut estimate, mut terms) = (Estimate::default(), 0);
        let mut sign = if self.eat(b'-') { -1.0 } else { 1.0 };
        loop {
            let token = self.peek();
            if self.is_word("max") && self.peek_second().kind == Kind::Punct(b'(') {
                if sign < 0.0 {
                    return Err(self.error(
                        "eva::syntax",
                        token,
                        "a maximum is added, not taken away",
                        "here",
                    ));
                }
                self.bump();
                self.bump();
                let a = self.poly(&mut terms)?;
                self.expect(b',', "and the other of the two")?;
                let b = self.poly(&mut terms)?;
                self.expect(b')', "after the second of the two")?;
                estimate.add_max(a, b);
            } else {
                let term = self.term(&mut terms)?;
                estimate.add(term.scaled(sign));
            }
            match self.sign() {
                Some(next) => sign = next,
                None => return Ok(estimate),
            }
        }
    }

    fn sign(&mut self) -> Option<f64> {
        if self.eat(b'+') { Some(1.0) } else { self.eat(b'-').then_some(-1.0) }
    }

    /// A sum of products of numbers and extents.
    fn poly(&mut self, terms: &mut usize) -> Parse<Poly> {
        let mut sum = Poly::default();
        let mut sign = if self.eat(b'-') { -1.0 } else { 1.0 };
        loop {
            sum = sum + self.term(terms)?.scaled(sign);
            match self.sign() {
                Some(next) => sign = next,
                None => return Ok(sum),
            }
        }
    }

    fn term(&mut self, terms: &mut usize) -> Parse<Poly> {
        let start = self.peek();
        *terms += 1;
        let (mut monomial, mut coefficient) = (Vec::new(), 1.0);
        loop {
            let token = self.peek();
            match token.kind {
                Kind::Int | Kind::Real => {
                    self.bump();
                    // The lexer has seen that it is one.
                    coefficient *= self.str(token).parse::<f64>().unwrap_or(f64::NAN);
                }
                _ => {
                    let extent = self.factor_named("a number or an extent, as in `2e-9*s*t`")?;
                    monomial.push(extent);
                }
            }
            if !self.eat(b'*') {
                break;
            }
        }
        if *terms > limits::ESTIMATE || monomial.len() > limits::FACTORS {
            return Err(self.error("eva::out_of_range", start, "this estimate is too long", "here"));
        }
        if !coefficient.is_finite() {
            return Err(self.error("eva::out_of_range", start, "this number is out of range", "here"));
        }
        Ok(Poly::term(monomial, coefficient))
    }

    fn factor_named(&mut self, what: &str) -> Parse<Sym> {
        let token = self.peek();
        let next_body = token.first && self.is_word("or") && self.peek_second().kind == Kind::Word;
        if next_body {
            return Err(self.missing(what));
        }
        if token.kind != Kind::Word {
            return Err(self.expected(what));
        }
        self.bump();
        let name = self.str(token);
        self.declared(token, name);
        Ok(name.into())
    }
}

impl<'a> Scope<'a> {
    /// The start of another body: the same parameters.
    fn same_parameters(&self, name: &str) -> Scope<'a> {
        let mut function = Function::new(name);
        let params = self.function.values.iter().filter(|(_, data)| matches!(data.def, Def::Param(_)));
        params.for_each(|(_, data)| {
            function.values.push(data.clone());
        });
        let is_param = |known: &Known| match known {
            Known::Value(value, _) => function.values.get(*value).is_some(),
            Known::Poisoned(_) | Known::Missing => true,
        };
        let names =
            self.names.iter().filter(|(_, known)| is_param(known)).map(|(&name, &known)| (name, known));
        Scope { names: names.collect(), function }
    }
}
