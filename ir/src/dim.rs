//! [`Dim`]: how long one axis of a tensor is.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::{Add, Mul, Sub};
use std::sync::Arc;

/// The name of an extent, such as `h` (heads) or `t` (cached tokens).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sym(Arc<str>);

impl Sym {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Sym {
    fn from(name: &str) -> Self {
        Self(name.into())
    }
}

impl fmt::Display for Sym {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Sym {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The extent of one axis: a polynomial over [`Sym`]s with integer coefficients.
///
/// Always in canonical form, so two extents are equal exactly when the derived
/// `==` says so, and equal extents have equal hashes. Arithmetic saturates at the
/// ends of `i64`; the verifier refuses a module whose extents get there.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Dim(Poly);

/// A polynomial. Extents are copied with every type, so copies are cheap.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Poly {
    /// One without symbols.
    Number(i64),
    /// One with symbols.
    Terms(Arc<Terms>),
}

/// A polynomial's terms. Their hash is kept, for types are looked up in tables far more often than extents are made.
#[derive(PartialEq, Eq)]
struct Terms {
    hash: u64,
    /// From monomial (sorted symbols, repeated for powers) to coefficient; no zeros.
    sum: BTreeMap<Vec<Sym>, i64>,
}

impl Terms {
    fn new(sum: BTreeMap<Vec<Sym>, i64>) -> Self {
        let mut hasher = DefaultHasher::new();
        sum.hash(&mut hasher);
        Self { hash: hasher.finish(), sum }
    }
}

impl Hash for Terms {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.hash.hash(state);
    }
}

impl Ord for Terms {
    fn cmp(&self, other: &Self) -> Ordering {
        self.sum.cmp(&other.sum)
    }
}

impl PartialOrd for Terms {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Dim {
    /// The extent with this name.
    pub fn sym(name: &str) -> Self {
        Self(Poly::Terms(Arc::new(Terms::new(BTreeMap::from([(vec![name.into()], 1)])))))
    }

    /// The extent's value, if it has no symbols.
    pub fn as_const(&self) -> Option<i64> {
        match self.0 {
            Poly::Number(n) => Some(n),
            Poly::Terms(_) => None,
        }
    }

    /// The symbol, if the extent is one alone.
    pub fn as_sym(&self) -> Option<&Sym> {
        let mut terms = self.terms();
        match (terms.next(), terms.next()) {
            (Some(([sym], 1)), None) => Some(sym),
            _ => None,
        }
    }

    /// The extent's value, given a value for each symbol; `None` if one is missing or the value overflows.
    pub fn eval(&self, value_of: &dyn Fn(&Sym) -> Option<i64>) -> Option<i64> {
        self.terms().try_fold(0i64, |sum, (monomial, n)| {
            let product = monomial.iter().try_fold(n, |product, sym| product.checked_mul(value_of(sym)?))?;
            sum.checked_add(product)
        })
    }

    /// The extent with every symbol replaced for which `value_of` gives another.
    pub fn substitute(&self, value_of: &dyn Fn(&Sym) -> Option<Dim>) -> Dim {
        // Most extents are a number or a name alone.
        if self.as_const().is_some() {
            return self.clone();
        }
        if let Some(sym) = self.as_sym() {
            return value_of(sym).unwrap_or_else(|| self.clone());
        }
        self.terms().fold(Dim::from(0), |sum, (monomial, n)| {
            let factor = |sym: &Sym| value_of(sym).unwrap_or_else(|| Dim::sym(sym.as_str()));
            sum + monomial.iter().fold(Dim::from(n), |product, sym| product * factor(sym))
        })
    }

    /// The symbols that the extent depends on, each once, in alphabetical order.
    pub fn syms(&self) -> Vec<Sym> {
        let mut syms: Vec<Sym> = self.factors().cloned().collect();
        syms.sort();
        syms.dedup();
        syms
    }

    /// The symbols that the extent depends on, as often as they are in it.
    pub fn factors(&self) -> impl Iterator<Item = &Sym> {
        self.terms().flat_map(|(monomial, _)| monomial)
    }

    /// The extent as a sum of `coefficient · symbol · symbol · …`.
    pub fn terms(&self) -> impl Iterator<Item = (&[Sym], i64)> {
        let (number, terms) = match &self.0 {
            Poly::Number(0) => (None, None),
            Poly::Number(n) => (Some((&[][..], *n)), None),
            Poly::Terms(terms) => (None, Some(terms)),
        };
        let terms = terms.into_iter().flat_map(|terms| terms.sum.iter());
        number.into_iter().chain(terms.map(|(monomial, &n)| (monomial.as_slice(), n)))
    }

    /// The extent in units of `n`, which divides every coefficient.
    pub fn divided(&self, n: i64) -> Dim {
        Self::from_terms(self.terms().map(|(monomial, by)| (monomial.to_vec(), by / n)))
    }

    /// The product of `dims`.
    pub fn product<'a>(dims: impl IntoIterator<Item = &'a Dim>) -> Dim {
        dims.into_iter().fold(Dim::from(1), |product, dim| product * dim.clone())
    }

    fn from_terms(terms: impl IntoIterator<Item = (Vec<Sym>, i64)>) -> Self {
        let mut sum: BTreeMap<Vec<Sym>, i64> = BTreeMap::new();
        for (monomial, n) in terms {
            let entry = sum.entry(monomial).or_insert(0);
            *entry = entry.saturating_add(n);
        }
        sum.retain(|_, n| *n != 0);
        match sum.first_key_value() {
            None => Dim::from(0),
            Some((monomial, &n)) if monomial.is_empty() && sum.len() == 1 => Dim::from(n),
            Some(_) => Self(Poly::Terms(Arc::new(Terms::new(sum)))),
        }
    }
}

impl std::str::FromStr for Dim {
    type Err = ();
    /// Reads what `Display` writes: products of symbols and numbers, joined by `+` and `-`.
    fn from_str(s: &str) -> Result<Self, ()> {
        let is_name = |f: &str| {
            f.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
                && f.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        };
        let factor = |f: &str| match f.trim() {
            f if !f.is_empty() && f.bytes().all(|c| c.is_ascii_digit()) => {
                f.parse::<i64>().map(Dim::from).map_err(drop)
            }
            f if is_name(f) => Ok(Dim::sym(f)),
            _ => Err(()),
        };
        let product =
            |p: &str| p.split('*').map(factor).try_fold(Dim::from(1), |product, f| Ok(product * f?));
        let (mut sum, mut start, mut sign) = (Dim::from(0), 0, 1);
        if let Some(rest) = s.strip_prefix('-') {
            (start, sign) = (s.len() - rest.len(), -1);
        }
        let mut at = start;
        for (i, c) in s.char_indices().skip(start).chain([(s.len(), '+')]) {
            if c == '+' || c == '-' {
                sum = sum + product(&s[at..i])? * Dim::from(sign);
                (at, sign) = (i + 1, if c == '-' { -1 } else { 1 });
            }
        }
        Ok(sum)
    }
}

impl From<i64> for Dim {
    fn from(n: i64) -> Self {
        Self(Poly::Number(n))
    }
}

impl From<&Dim> for Dim {
    fn from(dim: &Dim) -> Self {
        dim.clone()
    }
}

impl Add for Dim {
    type Output = Dim;
    fn add(self, rhs: Dim) -> Dim {
        match (self.as_const(), rhs.as_const()) {
            (Some(0), _) => rhs,
            (_, Some(0)) => self,
            (Some(m), Some(n)) => Dim::from(m.saturating_add(n)),
            _ => Dim::from_terms(self.terms().chain(rhs.terms()).map(|(monomial, n)| (monomial.to_vec(), n))),
        }
    }
}

impl Sub for Dim {
    type Output = Dim;
    fn sub(self, rhs: Dim) -> Dim {
        self + rhs * Dim::from(-1)
    }
}

impl Mul for Dim {
    type Output = Dim;
    fn mul(self, rhs: Dim) -> Dim {
        match (self.as_const(), rhs.as_const()) {
            (Some(1), _) => return rhs,
            (_, Some(1)) => return self,
            (Some(m), Some(n)) => return Dim::from(m.saturating_mul(n)),
            _ => {}
        }
        let mut terms = Vec::new();
        for (a, m) in self.terms() {
            for (b, n) in rhs.terms() {
                let mut monomial = [a, b].concat();
                monomial.sort();
                terms.push((monomial, m.saturating_mul(n)));
            }
        }
        Dim::from_terms(terms)
    }
}

macro_rules! dim_ops {
    ($($Op:ident $op:ident),*) => {$(
        impl $Op<&Dim> for &Dim {
            type Output = Dim;
            fn $op(self, rhs: &Dim) -> Dim { $Op::$op(self.clone(), rhs.clone()) }
        }
        impl $Op<i64> for &Dim {
            type Output = Dim;
            fn $op(self, rhs: i64) -> Dim { $Op::$op(self.clone(), Dim::from(rhs)) }
        }
    )*};
}
dim_ops!(Add add, Sub sub, Mul mul);

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        if let Some(n) = self.as_const() {
            return write!(f, "{n}");
        }
        // Symbols before the constant; positive terms before negative ones, so that no text starts with `-`
        // unless it must.
        let mut terms: Vec<_> = self.terms().collect();
        terms.reverse();
        terms.sort_by_key(|&(_, n)| n < 0);
        for (i, (monomial, n)) in terms.into_iter().enumerate() {
            let sign = if n < 0 {
                "-"
            } else if i == 0 {
                ""
            } else {
                "+"
            };
            let names: Vec<_> = monomial.iter().map(|s| s.as_str()).collect();
            match (n.unsigned_abs(), names.as_slice()) {
                (n, []) => write!(f, "{sign}{n}")?,
                (1, names) => write!(f, "{sign}{}", names.join("*"))?,
                (n, names) => write!(f, "{sign}{n}*{}", names.join("*"))?,
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Dim {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
