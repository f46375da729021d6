//! [`Poly`]: how much of something there is, as a polynomial over extents.

use crate::dim::{Dim, Sym};
use std::cmp::Ordering;
use std::fmt;
use std::ops::{Add, Mul};

/// What a cost can be counted in: a number where extents are known, a [`Poly`] where they are not.
pub trait Amount: Clone + From<f64> + Add<Output = Self> + Mul<Output = Self> {}

impl Amount for f64 {}
impl Amount for Poly {}

/// A polynomial over [`Sym`]s whose coefficients are not whole: seconds, bytes, operations.
///
/// Canonical: monomials are sorted (as are the symbols of each, repeated for powers), and no coefficient is zero.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Poly(Vec<Term>);

/// A monomial and its coefficient.
type Term = (Vec<Sym>, f64);

impl Poly {
    /// The polynomial with this one term.
    pub fn term(mut monomial: Vec<Sym>, coefficient: f64) -> Self {
        monomial.sort();
        Self(if coefficient == 0.0 { Vec::new() } else { vec![(monomial, coefficient)] })
    }

    /// The extent `dim`, with the values that `size_of` knows put in.
    pub fn of(dim: &Dim, size_of: &dyn Fn(&Sym) -> Option<i64>) -> Self {
        dim.terms().fold(Self::default(), |sum, (syms, n)| {
            let (mut monomial, mut coefficient) = (Vec::new(), n as f64);
            for sym in syms {
                match size_of(sym) {
                    Some(n) => coefficient *= n as f64,
                    None => monomial.push(sym.clone()),
                }
            }
            sum + Self::term(monomial, coefficient)
        })
    }

    /// Monomials with their coefficients, in order.
    pub fn terms(&self) -> impl ExactSizeIterator<Item = (&[Sym], f64)> {
        self.0.iter().map(|(monomial, coefficient)| (monomial.as_slice(), *coefficient))
    }

    /// The value, given one for each symbol; `None` if one is missing.
    pub fn eval(&self, value_of: &dyn Fn(&Sym) -> Option<i64>) -> Option<f64> {
        self.terms().try_fold(0.0, |sum, (monomial, coefficient)| {
            let product = monomial.iter().try_fold(coefficient, |p, sym| Some(p * value_of(sym)? as f64));
            Some(sum + product?)
        })
    }

    /// The polynomial times a number.
    pub fn scaled(mut self, by: f64) -> Self {
        self.0.iter_mut().for_each(|(_, coefficient)| *coefficient *= by);
        self.0.retain(|(_, coefficient)| *coefficient != 0.0);
        self
    }

    /// Whether no value of positive symbols makes it more than `other`.
    pub fn is_at_most(&self, other: &Self) -> bool {
        let difference = other.clone() + self.clone().scaled(-1.0);
        difference.terms().all(|(_, coefficient)| coefficient >= 0.0)
    }
}

impl From<f64> for Poly {
    fn from(n: f64) -> Self {
        Self::term(Vec::new(), n)
    }
}

impl Add for Poly {
    type Output = Poly;
    fn add(mut self, rhs: Poly) -> Poly {
        for (monomial, coefficient) in rhs.0 {
            match self.0.binary_search_by(|(have, _)| have.cmp(&monomial)) {
                Ok(at) => self.0[at].1 += coefficient,
                Err(at) => self.0.insert(at, (monomial, coefficient)),
            }
        }
        self.0.retain(|(_, coefficient)| *coefficient != 0.0);
        self
    }
}

impl Mul for Poly {
    type Output = Poly;
    fn mul(self, rhs: Poly) -> Poly {
        let mut product = Poly::default();
        for (a, m) in &self.0 {
            for (b, n) in &rhs.0 {
                product = product + Poly::term([a.as_slice(), b].concat(), m * n);
            }
        }
        product
    }
}

/// An order of texts, and no more: it says nothing of which is larger.
impl Ord for Poly {
    fn cmp(&self, other: &Self) -> Ordering {
        let term = |((a, m), (b, n)): (&Term, &Term)| a.cmp(b).then(m.total_cmp(n));
        let terms = self.0.iter().zip(&other.0).map(term);
        terms.fold(Ordering::Equal, Ordering::then).then(self.0.len().cmp(&other.0.len()))
    }
}

impl PartialOrd for Poly {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Eq for Poly {}

/// `1.5e-9*b*s+3e-6`: every coefficient is written, with a point or an exponent.
impl fmt::Display for Poly {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("0.0");
        }
        for (i, (monomial, coefficient)) in self.0.iter().rev().enumerate() {
            let sign = match (coefficient.is_sign_negative(), i) {
                (true, _) => "-",
                (false, 0) => "",
                (false, _) => "+",
            };
            write!(f, "{sign}{:?}", coefficient.abs())?;
            monomial.iter().try_for_each(|sym| write!(f, "*{sym}"))?;
        }
        Ok(())
    }
}
