//! Every term that any rule adds computes what its class computes; those of exact rules, the same bits.

use crate::spellings::corpus;
use crate::support::{arguments, last, parse};
use eva_ir::eval::Array;
use eva_ir::graph::Module;
use eva_ir::testing::{Options, random_module};
use eva_ir::types::DType;
use eva_passes::cost::{Cost, CostOptions};
use eva_passes::rewrite::check::{self as checks, values};
use eva_passes::rewrite::rules::{Exactness, Use, all, usable};
use eva_passes::rewrite::{Choose, rewrite};
use proptest::prelude::*;
use std::collections::BTreeSet;

fn same_bits(a: &Array, b: &Array) -> bool {
    a.shape == b.shape && a.data.iter().zip(&b.data).all(|(x, y)| x.to_bits() == y.to_bits())
}

/// Snippets for rules that a block of attention has nothing for.
fn snippets() -> Vec<Module> {
    [
        "dim s dim m = 5 dim e = 7 dim k = 2
        fn @f(%x: f32[s, e], %rows: f32[s*k, m]) -> f32[s, m], f32[s, k] {
          %route = route_greedy %x {k = [k], scale = 1.5} : (i32[s, k], f32[s, k])
          %chosen = get %route {index = 0} : i32[s, k]
          %w = get %route {index = 1} : f32[s, k]
          %sorted = sort_by_expert %chosen {experts = [e]} : (i32[s*k], i32[s, k], i32[e+1])
          %position = get %sorted {index = 1} : i32[s, k]
          %sum = combine %rows, %position, %w : f32[s, m]
          %y = scale %sum {by = 0.4} : f32[s, m]
          %z = scale %w {by = 2.5} : f32[s, k]
          %u = einsum \"sk,sk->k\" %z, %w : f32[k]
          %v = einsum \"sk,sk->sk\" %z, %w : f32[s, k]
          return %y, %v
        }",
        "dim b dim s dim m = 5 dim r = 7 dim q = 4 dim p = 6
        fn @f(%x: f32[b, s, m], %positions: i32[b, s], weight %g: f32[m], weight %w: f32[r, m], weight %u: f32[q, m],
          weight %v: f32[p, m], weight %z: f32[p, r]) -> f32[b, s, r], f32[b, s, q], f32[b, s, p], f32[b, s, r] {
          %n = rms_norm %x, %g {eps = 1e-6} : f32[b, s, m]
          %a = einsum \"bsm,rm->bsr\" %n, %w : f32[b, s, r]
          %c = einsum \"bsm,qm->bsq\" %n, %u : f32[b, s, q]
          %d = einsum \"pm,bsm->bsp\" %v, %n : f32[b, s, p]
          %freqs = rope_freqs {width = [p], theta = 10000.0, pairs = interleaved, factor = 1.0, beta_fast = 32.0, beta_slow = 1.0, original = 4096} : f32[2, p]
          %table0 = rope_table %positions, %freqs {factor = 1.5} : f32[b, s, 2, p]
          %table = scale %table0 {by = 1.5} : f32[b, s, 2, p]
          %d2 = scale %d {by = 0.75} : f32[b, s, p]
          %e = rope %d2, %table {pairs = interleaved} : f32[b, s, p]
          %two = full {value = 4.0, shape = [], dtype = f32} : f32[]
          %three = full {value = 3.0, shape = [r], dtype = f32} : f32[r]
          %a2 = div %a, %two : f32[b, s, r]
          %a3 = div %a, %three : f32[b, s, r]
          %a4 = mul %a3, %three : f32[b, s, r]
          %a5 = add %a2, %a4 : f32[b, s, r]
          %f0 = einsum \"bsp,pr->bsr\" %d, %z : f32[b, s, r]
          %a6 = add %a5, %f0 : f32[b, s, r]
          return %a6, %c, %e, %f0
        }",
        "dim b dim s dim h = 3 dim g = 2 dim n = 4
        fn @f(%x: f32[b, s, h+g], %y: f32[b, s, h, n+1], weight %w: f32[h*n+h, h+g]) -> f32[b, s, n+1+h, h], f32[b, s, h, n+1], f32[b, s, h+h, n+1], f32[b, s, h, n+1] {
          %a = scale %x {by = 2.0} : f32[b, s, h+g]
          %p = slice %a {axis = 2, range = 0..h} : f32[b, s, h]
          %q = slice %a {axis = 2, range = h..h+g} : f32[b, s, g]
          %q1 = slice %q {axis = 2, range = 0..g} : f32[b, s, g]
          %q2 = slice %x {axis = 2, range = g..h+g} : f32[b, s, h]
          %all = slice %y {axis = 3, range = 0..n+1} : f32[b, s, h, n+1]
          %cut = slice %y {axis = 1, range = 0..s} : f32[b, s, h, n+1]
          %i = slice %y {axis = 3, range = 0..1} : f32[b, s, h, 1]
          %j = slice %y {axis = 3, range = 1..n+1} : f32[b, s, h, n]
          %ij = concat %i, %j {axis = 3} : f32[b, s, h, n+1]
          %r1 = reshape %ij {shape = [b*s, h, n+1]} : f32[b*s, h, n+1]
          %r2 = reshape %r1 {shape = [b, s, h, n+1]} : f32[b, s, h, n+1]
          %two = concat %y, %ij {axis = 2} : f32[b, s, h+h, n+1]
          %t = einsum \"bshn->bhsn\" %two : f32[b, h+h, s, n+1]
          %t2 = reshape %two {shape = [b*s, h+h, n+1]} : f32[b*s, h+h, n+1]
          %part = slice %t2 {axis = 1, range = h..h+h} : f32[b*s, h, n+1]
          %u = reshape %part {shape = [b, s, h, n+1]} : f32[b, s, h, n+1]
          %v = einsum \"bhsn->bshn\" %t : f32[b, s, h+h, n+1]
          %d = scale %two {by = 3.0} : f32[b, s, h+h, n+1]
          %e = add %d, %v : f32[b, s, h+h, n+1]
          %px = einsum \"bsh,bshn->bsnh\" %p, %cut : f32[b, s, n+1, h]
          %py = einsum \"bsh,bsg->bshg\" %p, %p : f32[b, s, h, h]
          %pz = concat %px, %py {axis = 2} : f32[b, s, n+1+h, h]
          %w1 = einsum \"bso,bshn->bshn\" %q2, %all : f32[b, s, h, n+1]
          %w2 = add %u, %w1 : f32[b, s, h, n+1]
          %w3 = add %w2, %r2 : f32[b, s, h, n+1]
          %tt = einsum \"bshn->bsnh\" %y : f32[b, s, n+1, h]
          %dots = einsum \"bsnh,bshn->bs\" %tt, %ij : f32[b, s]
          %long = einsum \"bsm,km->bsk\" %x, %w : f32[b, s, h*n+h]
          %wide = reshape %long {shape = [b, s, h, n+1]} : f32[b, s, h, n+1]
          return %pz, %w3, %e, %wide
        }",
    ]
    .iter()
    .map(|text| parse(text))
    .collect()
}

/// Checks one module by all rules, and by the exact ones; which of them did something.
fn check(module: &Module, seed: u64) -> BTreeSet<&'static str> {
    let (func, _) = last(module);
    let (sizes, args) = arguments(module, &[("b", 2), ("s", 3), ("t", 8)], &[5, 1], seed);
    let checked = checks::check(module, func, &all().unwrap(), &sizes, &args, None).unwrap();
    assert!(checked.wrong.is_empty(), "{:#?}\n{module}", checked.wrong);
    let exact = usable(Use { most: Exactness::Exact, absorb: true, weights: true }).unwrap();
    let bits = checks::check(module, func, &exact, &sizes, &args, Some(DType::F32)).unwrap();
    assert!(bits.wrong.is_empty(), "not exact: {:#?}\n{module}", bits.wrong);
    checked.fired
}

#[test]
fn every_term_computes_what_its_class_does_and_every_rule_adds_some() {
    let mut fired = BTreeSet::new();
    for (i, module) in corpus().iter().chain(&snippets()).enumerate() {
        fired.extend(check(module, i as u64));
    }
    let idle: Vec<&str> =
        all().unwrap().iter().map(|r| r.name).filter(|name| !fired.contains(name)).collect();
    assert!(idle.is_empty(), "no test for {idle:?}");
}

/// Extents that are equal, so that axes could be mixed up without a shape that says so.
#[test]
fn every_term_computes_what_its_class_does_though_extents_collide() {
    for (i, module) in corpus().into_iter().chain(snippets()).enumerate() {
        let mut module = module;
        for (sym, value) in &mut module.dims {
            *value = value.map(|n| if sym.as_str() == "k" || sym.as_str() == "q" { n } else { 4 });
        }
        check(&module, 100 + i as u64);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    /// What exact rules make of any graph gives the same bits, each op rounded to f32.
    #[test]
    fn exact_rules_keep_bits(seed in any::<u64>()) {
        let sample = random_module(seed, Options { ops: 14, narrow: false, calls: false });
        let rules = usable(Use { most: Exactness::Exact, absorb: true, weights: true }).unwrap();
        let args = sample.args(seed);
        let (func, f) = last(&sample.module);
        let cost = Cost::new(&sample.module, f, &CostOptions::default());
        let (g, _) = rewrite(f, &rules, &cost, Choose::Cheapest).unwrap();
        let mut new = sample.module.clone();
        new.funcs[func] = g.into();
        let new = Module { verified: Default::default(), ..new };
        prop_assert!(eva_ir::verify::verify(&new).is_ok(), "{}", new);
        let before = values(&sample.module, func, &sample.sizes, &args, Some(DType::F32));
        let after = values(&new, func, &sample.sizes, &args, Some(DType::F32));
        for (old, result) in f.results.iter().zip(&new.funcs[func].results) {
            let same = before[old].iter().zip(&after[result]).all(|(a, b)| same_bits(a, b));
            prop_assert!(same, "{}\n{}", sample.module, new);
        }
    }
}
