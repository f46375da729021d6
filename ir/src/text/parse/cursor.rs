//! The parser's place among the tokens: looking, moving on, skipping, and reporting.

use super::{Parse, Parser, Reported};
use crate::diag::{Diag, Loc};
use crate::text::MAX_DIAGS;
use crate::text::lex::{Kind, Token, clip};

impl<'a> Parser<'a> {
    pub(super) fn peek(&self) -> Token {
        self.tokens[self.at]
    }

    pub(super) fn peek_second(&self) -> Token {
        self.tokens[(self.at + 1).min(self.tokens.len() - 1)]
    }

    pub(super) fn bump(&mut self) {
        self.at = (self.at + 1).min(self.tokens.len() - 1);
    }

    pub(super) fn str(&self, token: Token) -> &'a str {
        &self.text[token.start..token.end()]
    }

    pub(super) fn is(&self, punct: u8) -> bool {
        self.peek().kind == Kind::Punct(punct)
    }

    pub(super) fn eat(&mut self, punct: u8) -> bool {
        let found = self.is(punct);
        if found {
            self.bump();
        }
        found
    }

    pub(super) fn expect(&mut self, punct: u8, and: &str) -> Parse<()> {
        if self.eat(punct) { Ok(()) } else { Err(self.expected(&format!("`{}` {and}", punct as char))) }
    }

    pub(super) fn word(&mut self, what: &str) -> Parse<(Token, &'a str)> {
        let token = self.peek();
        if token.kind != Kind::Word {
            return Err(self.expected(what));
        }
        self.bump();
        Ok((token, self.str(token)))
    }

    pub(super) fn value(&mut self, what: &str) -> Parse<(Token, &'a str)> {
        let token = self.peek();
        if token.kind != Kind::Value {
            return Err(self.expected(what));
        }
        self.bump();
        Ok((token, &self.str(token)[1..]))
    }

    /// From `start` to the token before the current one.
    pub(super) fn span(&self, start: Token) -> Loc {
        let end = self.tokens[self.at.saturating_sub(1)].end();
        Loc::Text { start: start.start, len: end.saturating_sub(start.start).max(start.len) }
    }

    /// Whether a function or a declaration starts here, or the text ends.
    pub(super) fn at_item(&self) -> bool {
        let token = self.peek();
        let second = self.peek_second().kind;
        match token.kind {
            Kind::End => true,
            Kind::Word => match self.str(token) {
                "fn" => second == Kind::Func || token.first,
                "dim" => token.first && second == Kind::Word,
                _ => false,
            },
            _ => false,
        }
    }

    /// Whether this is the `}` of a function, not of attributes.
    pub(super) fn at_end_of_body(&self) -> bool {
        let second = self.peek_second();
        let ends = || match second.kind {
            Kind::End => true,
            Kind::Word => matches!(self.str(second), "fn" | "dim" | "cost" | "or"),
            _ => false,
        };
        self.is(b'}') && (self.peek().first || ends())
    }

    pub(super) fn skip_to_item(&mut self) {
        while !self.at_item() {
            self.bump();
        }
    }

    pub(super) fn skip_param(&mut self) {
        while !self.at_item() && !self.is(b'{') {
            if self.is(b')') && matches!(self.peek_second().kind, Kind::Arrow | Kind::Punct(b'{')) {
                return;
            }
            let comma = self.eat(b',');
            let next = self.peek();
            if comma && (next.kind == Kind::Value || next.first || self.is(b')')) {
                return;
            }
            if !comma {
                self.bump();
            }
        }
    }

    pub(super) fn skip_statement(&mut self) {
        while !self.at_item() && !self.at_end_of_body() {
            let token = self.peek();
            let starts = match token.kind {
                Kind::Value => self.peek_second().kind == Kind::Punct(b'='),
                Kind::Word => self.str(token) == "return",
                _ => false,
            };
            if starts {
                return;
            }
            self.bump();
        }
    }

    pub(super) fn diag(&mut self, diag: Diag) -> Reported {
        self.failures += 1;
        self.kept = self.diags.len() < MAX_DIAGS;
        if self.kept {
            self.diags.push(diag);
        } else {
            self.at = self.tokens.len() - 1;
        }
        Reported
    }

    pub(super) fn error(
        &mut self,
        code: &'static str,
        token: Token,
        message: impl Into<String>,
        label: &str,
    ) -> Reported {
        self.diag(Diag::new(code, message).label(Some(token.loc()), label))
    }

    pub(super) fn twice(&mut self, again: Token, first: Token, message: String) {
        let diag = Diag::new("eva::duplicate", message).label(Some(again.loc()), "again here");
        self.diag(diag.label(Some(first.loc()), "first here"));
    }

    /// Says what should stand here, unless the lexer has complained about what does.
    pub(super) fn expected(&mut self, what: &str) -> Reported {
        let token = self.peek();
        if token.kind == Kind::Bad {
            self.failures += 1;
            self.kept = false;
            return Reported;
        }
        // Punctuation that is missing at the end of a line is missing there, not on the next.
        if token.first && what.starts_with('`') || token.kind == Kind::End {
            return self.missing(what);
        }
        let message = format!("expected {what}, but found {}", self.found(token));
        self.error("eva::syntax", token, message, "here")
    }

    /// Says what should stand behind the last token.
    pub(super) fn missing(&mut self, what: &str) -> Reported {
        let message = format!("expected {what}, but found {}", self.found(self.peek()));
        let last = self.tokens[self.at.saturating_sub(1)];
        self.error("eva::syntax", last, message, "after this")
    }

    /// Adds advice to what was reported last.
    pub(super) fn help(&mut self, help: impl Into<String>) {
        if let Some(diag) = self.diags.last_mut().filter(|_| self.kept) {
            diag.help = Some(help.into());
        }
    }

    pub(super) fn found(&self, token: Token) -> String {
        match token.kind {
            Kind::End => "the end of the text".into(),
            _ => format!("`{}`", clip(self.str(token))),
        }
    }
}
