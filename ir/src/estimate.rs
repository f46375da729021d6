//! [`Estimate`]: what running a body takes, as an expression over extents.

use crate::dim::Sym;
use crate::poly::Poly;
use std::fmt;

/// Seconds: a polynomial, and a sum of maxima of two (arithmetic and memory of one kernel each).
///
/// Canonical: no maximum is of polynomials one of which is the larger whatever the extents, and maxima are in order.
/// Numbers are compared with each other, so what is the same for all that are compared may be left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Estimate {
    sum: Poly,
    maxima: Vec<(Poly, Poly)>,
}

impl Estimate {
    /// Adds seconds.
    pub fn add(&mut self, seconds: Poly) {
        self.sum = std::mem::take(&mut self.sum) + seconds;
    }

    /// Adds the larger of two.
    pub fn add_max(&mut self, a: Poly, b: Poly) {
        if a.is_at_most(&b) {
            self.add(b);
        } else if b.is_at_most(&a) {
            self.add(a);
        } else {
            let pair = if a < b { (a, b) } else { (b, a) };
            let at = self.maxima.partition_point(|have| *have <= pair);
            self.maxima.insert(at, pair);
        }
    }

    /// The part that is a polynomial.
    pub fn sum(&self) -> &Poly {
        &self.sum
    }

    /// The maxima, in order.
    pub fn maxima(&self) -> &[(Poly, Poly)] {
        &self.maxima
    }

    /// The value, given one for each symbol; `None` if one is missing.
    pub fn eval(&self, value_of: &dyn Fn(&Sym) -> Option<i64>) -> Option<f64> {
        let maxima = self.maxima.iter();
        let mut maxima = maxima.map(|(a, b)| Some(a.eval(value_of)?.max(b.eval(value_of)?)));
        maxima.try_fold(self.sum.eval(value_of)?, |sum, seconds| Some(sum + seconds?))
    }

    /// All polynomials of it.
    pub fn polys(&self) -> impl Iterator<Item = &Poly> {
        std::iter::once(&self.sum).chain(self.maxima.iter().flat_map(|(a, b)| [a, b]))
    }

    /// Takes away from each of `all` what all have.
    pub fn cancel(all: &mut [Estimate]) {
        let Some((first, rest)) = all.split_first() else { return };
        let mut common = first.maxima.clone();
        for other in rest {
            let mut left = other.maxima.clone();
            common
                .retain(|pair| left.iter().position(|have| have == pair).map(|at| left.remove(at)).is_some());
        }
        let same =
            first.sum.terms().filter(|term| rest.iter().all(|other| other.sum.terms().any(|t| t == *term)));
        let same =
            same.map(|(syms, n)| Poly::term(syms.to_vec(), n)).fold(Poly::default(), |sum, term| sum + term);
        for estimate in all {
            estimate.add(same.clone().scaled(-1.0));
            for pair in &common {
                if let Some(at) = estimate.maxima.iter().position(|have| have == pair) {
                    estimate.maxima.remove(at);
                }
            }
        }
    }
}

/// The index of the least of these estimates, the first of equals; 0 if an extent that one needs has no value.
pub fn least<'a>(
    estimates: impl IntoIterator<Item = &'a Estimate>,
    value_of: &dyn Fn(&Sym) -> Option<i64>,
) -> usize {
    let mut best: Option<(usize, f64)> = None;
    for (i, estimate) in estimates.into_iter().enumerate() {
        let Some(seconds) = estimate.eval(value_of) else { return 0 };
        if best.is_none_or(|(_, least)| seconds < least) {
            best = Some((i, seconds));
        }
    }
    best.map_or(0, |(i, _)| i)
}

/// `1.5e-6+2e-9*s + max(3e-9*s*t, 8e-9*t)`
impl fmt::Display for Estimate {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}", self.sum)?;
        self.maxima.iter().try_for_each(|(a, b)| write!(f, " + max({a}, {b})"))
    }
}
