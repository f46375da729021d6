//! What the rules and the pass do, and that they keep the meaning.

use eva::assert_pass_snapshot;
use eva::passes::cost::{Cost, CostOptions};
use eva::passes::rewrite::{Choose, rewrite};
use eva::passes::{Exactness, Options, Rule, optimize};
use eva::prelude::*;
use eva::runtime::{CompileOptions, Executable, Session, Tensor as Numbers, Weights};
use eva::testing::{Check, before_and_after};
use own_passes::{narrow_products, options, rules};
use std::sync::Arc;

/// A gated projection with an adapter: written in the DSL.
fn adapted() -> Program {
    let p = Program::new();
    let [b, s] = ["b", "s"].map(|name| p.dim(name));
    let [m, n, r] = [("m", 37), ("n", 23), ("r", 5)].map(|(name, size)| p.dim_fixed(name, size));
    p.function("adapted", |f| {
        let x = f.input("x", F32, [&b, &s, &m]);
        let y = x.linear(&f.weight("up", F32, [&n, &m]));
        let adapter = x.linear(&f.weight("a", F32, [&r, &m])).linear(&f.weight("b", F32, [&n, &r]));
        let y = y + adapter;
        (&y * y.sigmoid()).named("y")
    });
    p
}

/// Attention without a softmax: text of the IR.
const LINEAR: &str = "
dim b dim s = 700 dim t = 600 dim h = 3 dim n = 8 dim v = 9
fn @linear(%q: f32[b, s, h, n], %k: f32[b, t, h, n], %x: f32[b, t, h, v]) -> f32[b, s, h, v] {
  %scores = einsum \"bshn,bthn->bhst\" %q, %k : f32[b, h, s, t]
  %y = einsum \"bhst,bthv->bshv\" %scores, %x : f32[b, s, h, v]
  return %y
}";

fn rule(name: &str) -> Rule {
    rules().unwrap().into_iter().find(|rule| rule.name == name).unwrap()
}

#[test]
fn the_rules_alone() {
    assert_pass_snapshot!(rules().unwrap(), adapted());
}

#[test]
fn linear_attention_where_tokens_are_many() {
    assert_pass_snapshot!(rule("linear_attention"), LINEAR);
    // With few of them, the scores are smaller than k·v.
    let few = LINEAR.replace("700", "2").replace("600", "3");
    let said = before_and_after(&rule("linear_attention"), &few);
    assert!(
        said.contains("places of @linear, not taken, since it costs more\n// after: unchanged\n"),
        "{said}"
    );
}

#[test]
fn the_pass_alone() {
    assert_pass_snapshot!(narrow_products, adapted());
}

#[test]
fn all_passes_with_the_rules_and_the_pass() {
    assert_pass_snapshot!(options(true).unwrap(), adapted());
}

#[test]
fn the_rules_say_what_is_true() {
    Check::new().rules(&[rule("silu_of_sigmoid")], &adapted());
    let merged = "dim b dim m = 7 dim n = 5
    fn @f(%x: f32[b, m], weight %w: f32[n, m], weight %u: f32[m, n]) -> f32[b, n] {
      %y = einsum \"bm,nm->bn\" %x, %w : f32[b, n]
      %z = einsum \"bm,mn->bn\" %x, %u : f32[b, n]
      %sum = add %y, %z : f32[b, n]
      return %sum
    }";
    Check::new().rules(&[rule("sum_of_projections")], &merged);
    Check::new().rules(&[rule("linear_attention")], &LINEAR.replace("700", "3").replace("600", "5"));
    // The adapter is two products: eva's `fold_weights` makes it one, and then the rule fits.
    let both = options(false).unwrap();
    Check::new().pass(
        &move |module: &Module| {
            let (new, _) = eva::passes::form::choose_with(
                module,
                both.form,
                &CostOptions::default(),
                eva::passes::form::usable(&both),
                &both.rules,
            )?;
            Ok(new)
        },
        &adapted(),
    );
}

#[test]
fn the_pass_rounds_and_no_more() {
    Check::new().within(0.03).pass(&narrow_products, &adapted());
}

/// Each guard of a rule, with a module where the rule is wrong without it.
#[test]
fn the_guards_are_needed() {
    let sum = rule("sum_of_projections");
    // Two sums over different axes of one square tensor.
    let square = "dim m = 7
    fn @f(%x: f32[m, m], weight %w: f32[m, m], weight %u: f32[m, m]) -> f32[m, m] {
      %y = einsum \"ij,kj->ik\" %x, %w : f32[m, m]
      %z = einsum \"ij,ki->jk\" %x, %u : f32[m, m]
      %sum = add %y, %z : f32[m, m]
      return %sum
    }";
    let check = |rule: Rule| Check::new().try_rules(&[rule], &square).unwrap_err();
    assert!(check(sum.clone()).contains("adds nothing here"));
    let wrong = check(sum.without("both products have the same axes").unwrap());
    assert!(wrong.contains("the rule `sum_of_projections` builds an ill-typed `einsum`"), "{wrong}");
    // Without the other, nothing is wrong, but a sum of two inputs would be made in every call.
    let inputs = square.replace("weight ", "").replace("ij,ki->jk", "ij,kj->ik");
    let module = eva::ir::text::parse(&inputs).unwrap();
    let f = &module.funcs[module.func("f").unwrap()];
    let matched = |rule: Rule| {
        let cost = Cost::new(&module, f, &CostOptions::default());
        rewrite(f, &[rule], &cost, Choose::Cheapest).unwrap().1.rules[0].matched
    };
    assert_eq!(matched(sum.clone()), 0);
    assert_eq!(matched(sum.without("both have a weight as their second factor").unwrap()), 1);
}

#[test]
fn results_may_not_move_further_than_asked_for() {
    let module = adapted().finish().unwrap();
    let exact = Options { numerics: Exactness::Exact, ..options(false).unwrap() };
    assert!(!optimize(&module, &exact).unwrap().to_string().contains("silu"));
    assert!(optimize(&module, &options(false).unwrap()).unwrap().to_string().contains("silu"));
}

#[test]
fn compiled_and_run() {
    let module = adapted().finish().unwrap();
    let numbers = |shape: &[usize], seed: f64| {
        let n: usize = shape.iter().product();
        Numbers::from_f32(
            shape,
            &(0..n).map(|i| ((i as f64 + seed) * 1.618).sin() as f32 * 0.3).collect::<Vec<_>>(),
        )
    };
    let x = numbers(&[2, 3, 37], 0.5);
    let run = |passes: Options| {
        let options = CompileOptions { passes, threads: Some(1), ..CompileOptions::default() };
        let executable = Arc::new(Executable::compile(&module, &options).unwrap());
        let mut weights = Weights::new();
        for (name, shape) in [("up", [23, 37]), ("a", [5, 37]), ("b", [23, 5])] {
            weights.insert(name.into(), Arc::new(numbers(&shape, name.len() as f64).into()));
        }
        executable.prepare(&["adapted"], &mut weights).unwrap();
        let mut session = Session::new(executable, "adapted", &weights).unwrap();
        session.run(&[("x", &x)], None, &[]).unwrap()[0].1.to_f64()
    };
    let (plain, own) = (run(Options::default()), run(options(false).unwrap()));
    let off =
        |other: &[f64]| plain.iter().zip(other).map(|(a, b)| (a - b).abs()).max_by(f64::total_cmp).unwrap();
    assert!(off(&own) < 1e-5, "{}", off(&own));
    let narrow = run(options(true).unwrap());
    assert!(off(&narrow) > 1e-5 && off(&narrow) < 0.02, "{}", off(&narrow));
}
