//! Types, extents and attribute values.

use super::{Parse, Parser};
use crate::attr::{Attr, Dims, Range, Real};
use crate::dim::Dim;
use crate::scales::{Block, Encoding, Scales};
use crate::text::lex::{Kind, Token, clip};
use crate::text::nearest;
use crate::types::{DType, Shape, TensorType, Type};
use crate::verify::limits;

impl<'a> Parser<'a> {
    /// A tensor type, or several in parentheses.
    pub(super) fn ty(&mut self) -> Parse<Type> {
        if !self.eat(b'(') {
            return self.tensor().map(Type::Tensor);
        }
        let mut parts = Vec::new();
        while !self.eat(b')') {
            parts.push(self.tensor()?);
            if !self.is(b')') {
                self.expect(b',', "or `)`")?;
            }
        }
        Ok(Type::Tuple(parts))
    }

    /// `f8e4m3[r/128, m/128]`
    pub(super) fn tensor(&mut self) -> Parse<TensorType> {
        let start = self.peek();
        if start.kind == Kind::Punct(b'(') {
            return Err(self.expected("a tensor's type, as in `f32[b, m]`"));
        }
        let (token, name) = self.word("a type, as in `f32[b, m]`")?;
        let Some(dtype) = DType::by_name(name) else {
            let message = format!("there is no element type `{}`", clip(name));
            let reported = self.error("eva::unknown_dtype", token, message, "this is none");
            self.help(match nearest(name, DType::ALL.map(DType::name)) {
                Some(close) => format!("did you mean `{close}`?"),
                None => format!("there are {}", DType::ALL.map(DType::name).join(", ")),
            });
            return Err(reported);
        };
        self.expect(b'[', "and the extents of the axes")?;
        let (mut shape, mut scales) = (Shape::new(), Scales::new([]));
        while !self.is(b']') && !self.is(b';') {
            shape.push(self.extent()?);
            scales.blocks.push(self.block(dtype)?);
            if !self.is(b']') && !self.is(b';') {
                self.expect(b',', "or `]`")?;
            }
        }
        if self.is(b';') {
            scales.encoding = self.encoding(dtype)?;
        }
        self.expect(b']', "after the extents")?;
        let ty = TensorType { dtype, shape, scales: dtype.is_f8().then_some(scales) };
        match limits::check_shape(&ty.shape) {
            Ok(()) => Ok(ty),
            Err(message) => Err(self.error("eva::out_of_range", start, message, "this type")),
        }
    }

    /// `/128` or `/*` behind an extent, or nothing.
    fn block(&mut self, dtype: DType) -> Parse<Block> {
        let slash = self.peek();
        if !self.eat(b'/') {
            return Ok(Block::Each);
        }
        if !dtype.is_f8() {
            let message = format!("{dtype} elements have no scales, so no blocks");
            let reported = self.error("eva::type_mismatch", slash, message, "here");
            self.help("only f8e4m3 and f8e5m2 are written with blocks: `f8e4m3[r/128, m/128]`");
            return Err(reported);
        }
        if self.eat(b'*') {
            return Ok(Block::Whole);
        }
        let size = self.peek();
        let n = self.int("how many neighbours share a scale, as in `m/128`, or `*` for all")?;
        match u32::try_from(n) {
            Ok(n) if n > 0 => Ok(Block::Of(n)),
            _ => {
                let message = format!("a block of {n} is not possible");
                Err(self.error("eva::out_of_range", size, message, "1 to 4294967295"))
            }
        }
    }

    /// `; pow2` before the bracket that closes a type.
    fn encoding(&mut self, dtype: DType) -> Parse<Encoding> {
        let semicolon = self.peek();
        self.expect(b';', "before how scales are written")?;
        if !dtype.is_f8() {
            let message = format!("{dtype} elements have no scales");
            return Err(self.error("eva::type_mismatch", semicolon, message, "here"));
        }
        let (token, name) = self.word("how scales are written, as in `f8e4m3[m/128; pow2]`")?;
        Encoding::by_name(name).ok_or_else(|| {
            let message = format!("scales are not written as `{}`", clip(name));
            let reported = self.error("eva::unknown_encoding", token, message, "this is none");
            self.help(format!("there are {}", Encoding::ALL.map(Encoding::name).join(", ")));
            reported
        })
    }

    /// A sum of products of names and numbers.
    pub(super) fn extent(&mut self) -> Parse<Dim> {
        let start = self.peek();
        let mut sign = if self.eat(b'-') { -1 } else { 1 };
        let mut sum = Dim::from(0);
        let mut factors = 0;
        loop {
            let mut product = Dim::from(sign);
            loop {
                factors += 1;
                if factors > limits::FACTORS {
                    let message = "this extent is too long";
                    return Err(self.error("eva::out_of_range", start, message, "starts here"));
                }
                product = product * self.factor()?;
                if !self.eat(b'*') {
                    break;
                }
            }
            sum = sum + product;
            sign = if self.eat(b'+') {
                1
            } else if self.eat(b'-') {
                -1
            } else {
                break;
            };
        }
        match limits::check_dim(&sum) {
            Ok(()) => Ok(sum),
            Err(message) => Err(self.error("eva::out_of_range", start, message, "starts here")),
        }
    }

    fn factor(&mut self) -> Parse<Dim> {
        let token = self.peek();
        if token.kind != Kind::Word {
            return self.int("an extent, as in `h`, `128` or `2*t+1`").map(Dim::from);
        }
        self.bump();
        let name = self.str(token);
        self.declared(token, name);
        Ok(Dim::sym(name))
    }

    /// Says so, once, if nobody has declared this extent.
    pub(super) fn declared(&mut self, token: Token, name: &'a str) {
        if !self.dims.contains_key(name) {
            let close = nearest(name, self.dims.keys().copied());
            let message = format!("the extent `{}` is not declared", clip(name));
            self.error("eva::undefined", token, message, "used here");
            let declare = format!("declare it: `dim {}`", clip(name));
            self.help(match close {
                Some(close) => format!("{declare}; or did you mean `{close}`?"),
                None => declare,
            });
            self.dims.insert(name, token);
        }
    }

    /// An integer that is not negative.
    pub(super) fn int(&mut self, what: &str) -> Parse<i64> {
        let token = self.peek();
        if token.kind != Kind::Int {
            return Err(self.expected(what));
        }
        self.bump();
        let text = self.str(token);
        text.parse().map_err(|_| self.too_large(token, text))
    }

    fn too_large(&mut self, token: Token, text: &str) -> super::Reported {
        let message = format!("{} is out of range", clip(text));
        let reported = self.error("eva::out_of_range", token, message, "here");
        self.help("numbers have 64 bits");
        reported
    }

    /// What follows `key =`.
    pub(super) fn attr(&mut self) -> Parse<Attr> {
        let start = self.peek();
        if self.eat(b'[') {
            let mut dims = Vec::new();
            while !self.eat(b']') {
                dims.push(self.extent()?);
                if !self.is(b']') {
                    self.expect(b',', "or `]`")?;
                }
            }
            return match limits::check_shape(&dims) {
                Ok(()) => Ok(Attr::Dims(Dims(dims))),
                Err(message) => Err(self.error("eva::out_of_range", start, message, "this list")),
            };
        }
        if start.kind == Kind::Str {
            let reported = self.error("eva::syntax", start, "a spec stands before the operands", "not here");
            self.help("write it behind the op: `einsum \"ab,bc->ac\" %x, %y`");
            return Err(reported);
        }
        if self.range_follows() {
            let from = self.extent()?;
            if self.peek().kind != Kind::Dots {
                return Err(self.expected("`..`"));
            }
            self.bump();
            return Ok(Attr::Range(Range { start: from, end: self.extent()? }));
        }
        let minus = self.eat(b'-');
        let token = self.peek();
        let text = format!("{}{}", if minus { "-" } else { "" }, self.str(token));
        let attr = match token.kind {
            Kind::Int => text.parse().map(Attr::Int).map_err(|_| self.too_large(token, &text))?,
            Kind::Real => match text.parse::<f64>() {
                Ok(x) if x.is_finite() => Attr::Real(Real::new(x)),
                _ => return Err(self.too_large(token, &text)),
            },
            // Behind `-` only `inf`: there is but one NaN.
            Kind::Word if minus && text != "-inf" => return Err(self.expected("a number")),
            Kind::Word => text.parse().map_err(|()| {
                let message = format!("`{}` is not an attribute's value", clip(&text));
                let reported = self.error("eva::syntax", token, message, "here");
                self.help("values are like `3`, `1e-6`, `true`, `bf16`, `halves`, `0..n` or `[b, h*n]`");
                reported
            })?,
            _ => {
                return Err(self
                    .expected("a value, like `3`, `1e-6`, `true`, `bf16`, `halves`, `0..n` or `[b, h*n]`"));
            }
        };
        self.bump();
        if matches!(self.peek().kind, Kind::Punct(b'+' | b'-' | b'*')) {
            let reported = self.expected("`,` or `}`");
            self.help("an extent as an attribute is written in brackets: `[h*n]`");
            return Err(reported);
        }
        Ok(attr)
    }

    /// Whether `..` comes before the end of this attribute.
    fn range_follows(&self) -> bool {
        let arithmetic = |kind| matches!(kind, Kind::Word | Kind::Int | Kind::Punct(b'+' | b'-' | b'*'));
        let ahead = &self.tokens[self.at..];
        // An extent has fewer tokens than this.
        let ahead = ahead.iter().take(2 * limits::FACTORS + 2);
        ahead.map(|token| token.kind).find(|&kind| !arithmetic(kind)) == Some(Kind::Dots)
    }
}
