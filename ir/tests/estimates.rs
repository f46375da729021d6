//! Estimates of bodies: polynomials, maxima, and which is least.

use eva_ir::dim::{Dim, Sym};
use eva_ir::estimate::{Estimate, least};
use eva_ir::poly::Poly;
use proptest::prelude::*;

fn poly(terms: &[(&[&str], f64)]) -> Poly {
    let term = |(syms, n): &(&[&str], f64)| Poly::term(syms.iter().map(|&sym| sym.into()).collect(), *n);
    terms.iter().map(term).fold(Poly::default(), |sum, term| sum + term)
}

fn value(values: [i64; 3]) -> impl Fn(&Sym) -> Option<i64> {
    move |sym| ["b", "s", "t"].iter().position(|name| *name == sym.as_str()).map(|i| values[i])
}

fn polys() -> impl Strategy<Value = Poly> {
    let syms = prop::collection::vec(prop::sample::select(vec!["b", "s", "t"]), 0..3);
    prop::collection::vec((syms, -9i32..10), 0..5).prop_map(|terms| {
        let term = |(syms, n): (Vec<&str>, i32)| poly(&[(&syms, f64::from(n))]);
        terms.into_iter().map(term).fold(Poly::default(), |sum, term| sum + term)
    })
}

#[test]
fn fixed_extents_become_numbers() {
    let dim: Dim = "3*s*h*t-2*h+t".parse().unwrap();
    let have = Poly::of(&dim, &|sym| (sym.as_str() == "h").then_some(5));
    assert_eq!(have, poly(&[(&["s", "t"], 15.0), (&[], -10.0), (&["t"], 1.0)]));
    assert_eq!(have.to_string(), "1.0*t+15.0*s*t-10.0");
    assert_eq!(have.eval(&value([1, 2, 7])), Some(15.0 * 14.0 - 10.0 + 7.0));
    assert_eq!(poly(&[(&["q"], 2.0)]).eval(&value([1, 2, 7])), None);
    assert_eq!(Poly::from(0.0).to_string(), "0.0");
}

#[test]
fn maxima_that_are_decided_are_none() {
    let mut estimate = Estimate::default();
    estimate.add_max(poly(&[(&["s"], 2.0)]), poly(&[(&["s"], 3.0), (&["t"], 1.0)]));
    estimate.add_max(poly(&[(&["b", "s"], 2.0)]), poly(&[(&["b", "t"], 1.0)]));
    estimate.add_max(poly(&[(&["b"], 5.0)]), poly(&[(&["s"], 7.0)]));
    assert_eq!(estimate.to_string(), "1.0*t+3.0*s + max(5.0*b, 7.0*s) + max(2.0*b*s, 1.0*b*t)");
    assert_eq!(estimate.eval(&value([1, 2, 5])), Some(5.0 + 6.0 + 14.0 + 5.0));
    assert_eq!(estimate.eval(&value([4, 2, 3])), Some(3.0 + 6.0 + 20.0 + 16.0));
}

#[test]
fn the_least_is_chosen_and_the_first_of_equals() {
    let with = |terms: &[(&[&str], f64)]| {
        let mut estimate = Estimate::default();
        estimate.add(poly(terms));
        estimate
    };
    let all =
        [with(&[(&["s"], 2.0), (&[], 9.0)]), with(&[(&["s"], 5.0)]), with(&[(&["s"], 3.0), (&[], 6.0)])];
    assert_eq!(least(&all, &value([1, 2, 0])), 1);
    assert_eq!(least(&all, &value([1, 3, 0])), 0);
    assert_eq!(least(&all, &value([1, 4, 0])), 0);
    assert_eq!(least(&[with(&[(&["q"], 1.0)]), with(&[])], &value([1, 1, 1])), 0);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn polynomials_calculate_like_their_values(a in polys(), b in polys(), at in prop::array::uniform3(1i64..50)) {
        let value = |poly: &Poly| poly.eval(&value(at)).unwrap();
        prop_assert_eq!(value(&(a.clone() + b.clone())), value(&a) + value(&b));
        prop_assert_eq!(value(&(a.clone() * b.clone())), value(&a) * value(&b));
        prop_assert!(!a.is_at_most(&b) || value(&a) <= value(&b));
        prop_assert_eq!(a.clone() + a.clone().scaled(-1.0), Poly::default());
    }

    /// What is the same in all makes no difference.
    #[test]
    fn cancelling_keeps_differences(
        bodies in prop::collection::vec(prop::collection::vec((polys(), polys()), 0..4), 2..4),
        shared in prop::collection::vec((polys(), polys()), 0..4),
        at in prop::array::uniform3(1i64..50),
    ) {
        let estimate = |pairs: &[(Poly, Poly)]| {
            let mut estimate = Estimate::default();
            for (a, b) in pairs.iter().chain(&shared) {
                estimate.add(a.clone());
                estimate.add_max(a.clone(), b.clone());
            }
            estimate
        };
        let before: Vec<Estimate> = bodies.iter().map(|pairs| estimate(pairs)).collect();
        let mut after = before.clone();
        Estimate::cancel(&mut after);
        let value = |estimate: &Estimate| estimate.eval(&value(at)).unwrap();
        for (i, j) in [(0, 1), (1, before.len() - 1)] {
            prop_assert_eq!(value(&before[i]) - value(&before[j]), value(&after[i]) - value(&after[j]));
        }
        let (have, had) = (|all: &[Estimate]| all.iter().map(|e| e.polys().count()).sum::<usize>(), &before);
        prop_assert!(have(&after) <= have(had));
        for pair in after[0].maxima() {
            prop_assert!(after.iter().any(|other| !other.maxima().contains(pair)), "{:?}", after);
        }
    }
}
