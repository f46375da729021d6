//! Cuts a text into tokens. Whatever cannot be a token is reported and stays as [`Kind::Bad`], so that
//! the parser knows that somebody has complained already.

use super::MAX_DIAGS;
use crate::diag::{Diag, Loc};

/// What a token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A keyword, an op, an extent, an attribute's name: letters, digits and `_`.
    Word,
    /// `%` and a value's name.
    Value,
    /// `@` and a function's name.
    Func,
    /// Digits only.
    Int,
    /// A number with a point or an exponent.
    Real,
    /// Text in quotation marks, which are part of the token.
    Str,
    /// `->`
    Arrow,
    /// `..`
    Dots,
    /// One of `()[]{},:=/*+-`.
    Punct(u8),
    /// Not a token; reported.
    Bad,
    /// After the last token.
    End,
}

/// Some bytes of the text, and what they are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Token {
    pub kind: Kind,
    pub start: usize,
    pub len: usize,
    /// Whether only space is before it on its line.
    pub first: bool,
}

impl Token {
    pub fn end(&self) -> usize {
        self.start + self.len
    }

    pub fn loc(&self) -> Loc {
        Loc::Text { start: self.start, len: self.len }
    }
}

/// Whether `name` can be the name of an extent: a letter or `_`, then letters, digits and `_`.
pub fn is_extent_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') && name.chars().all(is_word)
}

/// Whether `name` can be the name of a value or a function: letters, digits, `_` and `.`.
pub fn is_value_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|c| is_name(c.into()))
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

fn is_name(c: char) -> bool {
    is_word(c) || c == '.'
}

/// `name` for a message: cut if it is long.
pub(super) fn clip(name: &str) -> String {
    let mut chars = name.chars();
    let head: String = chars.by_ref().take(60).collect();
    if chars.next().is_some() { format!("{head}…") } else { head }
}

/// The tokens of `text`, the last of them [`Kind::End`], and what is wrong with those that are none.
pub(super) fn lex(text: &str) -> (Vec<Token>, Vec<Diag>) {
    let mut lexer = Lexer { text, pos: 0, first: true, tokens: Vec::new(), diags: Vec::new() };
    if text.starts_with('\u{feff}') {
        lexer.pos = '\u{feff}'.len_utf8();
    }
    while lexer.token() {}
    (lexer.tokens, lexer.diags)
}

struct Lexer<'a> {
    text: &'a str,
    pos: usize,
    first: bool,
    tokens: Vec<Token>,
    diags: Vec<Diag>,
}

impl Lexer<'_> {
    /// Reads one token; `false` after the last.
    fn token(&mut self) -> bool {
        self.space();
        let rest = &self.text[self.pos..];
        let mut chars = rest.chars();
        let Some(c) = chars.next() else {
            self.push(Kind::End, 0);
            return false;
        };
        let next = chars.next();
        let run = |from: usize, accept: fn(char) -> bool| {
            rest[from..].find(|c| !accept(c)).unwrap_or(rest.len() - from) + from
        };
        match c {
            '%' | '@' => {
                let len = run(1, is_name);
                let (kind, what) = if c == '%' { (Kind::Value, "value") } else { (Kind::Func, "function") };
                if len == 1 {
                    self.bad(1, format!("`{c}` starts the name of a {what}, but no name follows"), None);
                } else {
                    self.push(kind, len);
                }
            }
            c if c.is_ascii_digit() => self.number(),
            c if is_word(c) => self.push(Kind::Word, run(1, is_word)),
            '"' => match rest[1..].find(['"', '\n']) {
                Some(i) if rest.as_bytes()[i + 1] == b'"' => self.push(Kind::Str, i + 2),
                end => {
                    let len = end.map_or(rest.len(), |i| i + 1);
                    let help = "close it with `\"` on the same line";
                    self.bad(
                        rest[..len].trim_end().len(),
                        "this quotation mark is never closed".into(),
                        Some(help),
                    );
                }
            },
            '-' if next == Some('>') => self.push(Kind::Arrow, 2),
            '.' if next == Some('.') => self.push(Kind::Dots, 2),
            '(' | ')' | '[' | ']' | '{' | '}' | ',' | ':' | ';' | '=' | '/' | '*' | '+' | '-' => {
                self.push(Kind::Punct(c as u8), 1);
            }
            _ => {
                let stray = |c: char| !c.is_whitespace() && !is_word(c) && !"%@\"()[]{},:;=/*+-".contains(c);
                let len = rest.find(|c| !stray(c)).unwrap_or(rest.len());
                let what = clip(&rest[..len]).escape_debug().to_string();
                let help = match c {
                    '#' => Some("comments start with `//`"),
                    '\'' => Some("a spec stands between quotation marks: `\"ab,bc->ac\"`"),
                    '<' | '>' => {
                        Some("the block of an 8-bit float divides its extent: `f8e4m3[r/128, m/128]`")
                    }
                    _ => None,
                };
                self.bad(len, format!("`{what}` means nothing here"), help);
            }
        }
        true
    }

    /// Digits, or a number with a point or an exponent.
    fn number(&mut self) {
        let bytes = &self.text.as_bytes()[self.pos..];
        let mut len = 0;
        while let Some(&c) = bytes.get(len) {
            let sign = matches!(c, b'+' | b'-')
                && matches!(bytes[len - 1], b'e' | b'E')
                && bytes.get(len + 1).is_some_and(u8::is_ascii_digit);
            let point = c == b'.' && bytes.get(len + 1).is_some_and(u8::is_ascii_digit);
            if !(c.is_ascii_alphanumeric() || c == b'_' || sign || point) {
                break;
            }
            len += 1;
        }
        let text = &self.text[self.pos..self.pos + len];
        if text.bytes().all(|c| c.is_ascii_digit()) {
            self.push(Kind::Int, len);
        } else if text.parse::<f64>().is_ok() {
            self.push(Kind::Real, len);
        } else {
            self.bad(len, format!("`{}` is not a number", clip(text)), None);
        }
    }

    /// Skips space and comments.
    fn space(&mut self) {
        loop {
            let rest = &self.text[self.pos..];
            let space = rest.len() - rest.trim_start().len();
            self.first |= rest[..space].contains('\n') || self.pos == 0;
            self.pos += space;
            if !self.text[self.pos..].starts_with("//") {
                return;
            }
            self.pos += self.text[self.pos..].find('\n').unwrap_or(self.text.len() - self.pos);
        }
    }

    fn push(&mut self, kind: Kind, len: usize) {
        self.tokens.push(Token { kind, start: self.pos, len, first: std::mem::take(&mut self.first) });
        self.pos += len;
    }

    fn bad(&mut self, len: usize, message: String, help: Option<&str>) {
        let loc = Loc::Text { start: self.pos, len };
        self.push(Kind::Bad, len);
        if self.diags.len() < MAX_DIAGS {
            let diag = Diag::new("eva::syntax", message).label(Some(loc), "here");
            self.diags.push(Diag { help: help.map(Into::into), ..diag });
        }
    }
}
