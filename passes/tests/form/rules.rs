//! Wrong rules are stopped by their names, and rules match whatever the order of factors and axes.

use crate::support::{last, mla, parse};
use eva_ir::graph::Module;
use eva_passes::cost::{Cost, CostOptions};
use eva_passes::rewrite::rules::{Exactness, Rule, absorption};
use eva_passes::rewrite::{Choose, rewrite};

const KEY: &str = "(einsum bshn,bthn->bhst ?q (einsum btc,hnc->bthn ?c ?w))";

fn rule(name: &'static str, from: &'static str, to: &'static str) -> Rule {
    Rule::new(name, " Wrong.", Exactness::Exact, (from, to), "new").unwrap()
}

fn mistake(rules: &[Rule]) -> String {
    let module = mla();
    let (_, f) = last(&module);
    let cost = Cost::new(&module, f, &CostOptions::default());
    let error = rewrite(f, rules, &cost, Choose::Cheapest).expect_err("the rule is wrong");
    assert_eq!(error.code, "eva::internal");
    error.message
}

#[test]
fn a_rule_that_swaps_axes_is_stopped_by_its_name() {
    let to = "(einsum bshc,btc->bsht (einsum bshn,hnc->bshc ?q ?w) ?c)";
    let mut rules = absorption().unwrap();
    rules.push(rule("wrong_absorb_key", KEY, to));
    assert_eq!(mistake(&rules), "the rule `wrong_absorb_key` equates f32[b, h, s, t] and f32[b, s, h, t]");
    // Which of the rules comes first does not matter.
    rules.rotate_right(1);
    assert_eq!(mistake(&rules), "the rule `wrong_absorb_key` equates f32[b, h, s, t] and f32[b, s, h, t]");
}

#[test]
fn a_rule_that_builds_nonsense_is_stopped_by_its_name() {
    let to = "(einsum bsc,btc->bst (einsum bshn,hnc->bsc ?q ?w) ?c)";
    assert_eq!(
        mistake(&[rule("wrong_sum", KEY, to)]),
        "the rule `wrong_sum` equates f32[b, h, s, t] and f32[b, s, t]"
    );
    let to = "(einsum bshn,btc,hnc->bhss ?q ?c ?w)";
    assert_eq!(
        mistake(&[rule("wrong_result", KEY, to)]),
        "the rule `wrong_result` builds an ill-typed `einsum`: axis `s` is twice in the result"
    );
}

#[test]
fn what_is_no_rule_is_refused() {
    let refused = |from, to| Rule::new("r", "", Exactness::Exact, (from, to), "new").unwrap_err().message;
    let ok = "(einsum ab,bc->ac ?x ?y)";
    for (from, to, why) in [
        ("?x", ok, "`?x` is anything"),
        (ok, "(einsum ab,bc->ac ?x ?z)", "?z is not on the left with these axes"),
        (ok, "(einsum ab,bd->ad ?x ?y)", "?y is not on the left with these axes"),
        ("(einsum ab->ac ?x ?y)", ok, "\"ab->ac\" is for 1 factors"),
        ("(einsum ?s ?x ?y)", ok, "the axes of a product must be written out"),
        ("(add ?x ?y)", ok, "`add` is not a product"),
        (
            "(einsum ab,bc->ac ?x (einsum xd,dy->xy ?y ?z))",
            ok,
            "\"ab,bc->ac\" calls a factor's axes otherwise than the factor does",
        ),
        ("(einsum abd,bdc->ac ?x ?y)", ok, "nothing tells the summed axes `b` and `d` apart"),
    ] {
        assert_eq!(refused(from, to), format!("the rule `r` cannot be read: {why}"));
    }
    assert!(
        refused("(einsum ab,bc->ac ?x", ok)
            .starts_with("the rule `r` cannot be read: `(einsum ab,bc->ac ?x`")
    );
}

#[test]
fn every_rule_says_why() {
    for rule in absorption().unwrap() {
        assert!(rule.why.len() > 20 && rule.why.ends_with('.') && !rule.why.contains("  "), "{}", rule.why);
        assert_eq!(rule.exactness, Exactness::Reassociates);
    }
}

/// In how many places each rule applies.
fn matched(module: &Module) -> Vec<usize> {
    let (_, f) = last(module);
    let cost = Cost::new(module, f, &CostOptions::default());
    match rewrite(f, &absorption().unwrap(), &cost, Choose::Rewritten).unwrap() {
        Some((_, done)) => done.rules.iter().map(|rule| rule.matched).collect(),
        None => vec![0, 0, 0],
    }
}

fn products(q: &str, k: &str, scores: &str) -> Module {
    parse(&format!(
        "dim b dim s dim t dim c = 11 dim h = 5 dim n = 7
        fn @f(%x: f32[b, s, h, n], %y: f32[b, t, c], weight %w: f32[h, n, c]) -> f32[b, h, s, t] {{
          %q = einsum \"bshn->{q}\" %x : f32{}
          %k = einsum \"btc,hnc->{k}\" %y, %w : f32{}
          %z = einsum \"{scores}\" %q, %k : f32[b, h, s, t]
          return %z
        }}",
        shape(q),
        shape(k),
    ))
}

fn shape(axes: &str) -> String {
    let axes: Vec<String> = axes.chars().map(|c| c.to_string()).collect();
    format!("[{}]", axes.join(", "))
}

#[test]
fn a_product_with_other_axes_does_not_match() {
    assert_eq!(matched(&products("bshn", "bthn", "bshn,bthn->bhst")), [1, 0, 0]);
    assert_eq!(matched(&products("hsnb", "nhtb", "hsnb,nhtb->bhst")), [1, 0, 0]);
    // One head's keys for all heads: the heads are summed before, so nothing can be absorbed.
    assert_eq!(matched(&products("bshn", "btn", "bshn,btn->bhst")), [0, 0, 0]);
    // A product over the tokens of keys that all queries share.
    let text = "dim b dim s dim t dim c = 11 dim h = 5 dim n = 7
        fn @f(%x: f32[b, t, h, n], %y: f32[b, s, c], weight %w: f32[h, n, c]) -> f32[b, h, s, t] {
          %q = einsum \"bsc,hnc->bshn\" %y, %w : f32[b, s, h, n]
          %z = einsum \"bshn,bthn->bhst\" %q, %x : f32[b, h, s, t]
          return %z
        }";
    assert_eq!(matched(&parse(text)), [0, 0, 0], "the queries are not what is expanded");
}

#[test]
fn a_key_that_is_used_elsewhere_stays_but_scores_are_absorbed() {
    let text = "dim b dim s dim t dim c = 11 dim h = 5 dim n = 7
        fn @f(%q: f32[b, s, h, n], %y: f32[b, t, c], weight %w: f32[h, n, c]) -> f32[b, h, s, t], f32[b, t, h, n] {
          %k = einsum \"btc,hnc->bthn\" %y, %w : f32[b, t, h, n]
          %z = einsum \"bshn,bthn->bhst\" %q, %k : f32[b, h, s, t]
          return %z, %k
        }";
    let module = parse(text);
    let (_, f) = last(&module);
    let cost = Cost::new(&module, f, &CostOptions::default());
    let (g, done) = rewrite(f, &absorption().unwrap(), &cost, Choose::Rewritten).unwrap().unwrap();
    assert_eq!(done.rules[0].chosen, 1);
    let names: Vec<&str> = g.values.iter().map(|(_, data)| data.name.as_str()).collect();
    assert_eq!(names, ["q", "y", "w", "k", "q_latent", "z"]);
    // By cost, the keys that are needed anyway are used.
    let (g, done) = rewrite(f, &absorption().unwrap(), &cost, Choose::Cheapest).unwrap().unwrap();
    assert_eq!((done.rules[0].matched, done.rules[0].chosen), (1, 0));
    assert_eq!(g.values.len(), f.values.len());
}

/// Averages of latents that two values share pay for both, though not for one of them.
#[test]
fn what_pays_only_together_is_chosen_together() {
    let averages = |n: usize| {
        let each = |what: &str| (0..n).map(|i| what.replace('#', &i.to_string())).collect::<Vec<_>>();
        parse(&format!(
            "dim b = 1 dim s = 100 dim t = 4096 dim c = 512 dim h = 128 dim v = 64
            fn @f(%x: f32[b, h, s, t], %y: f32[b, t, c], %start: i32[b], {}) -> {} {{
              %p = causal_softmax %x, %start : f32[b, h, s, t]
              {}
              return {}
            }}",
            each("weight %w#: f32[h, v, c],").concat(),
            each("f32[b, s, h, v]").join(", "),
            each(
                "%v# = einsum \"btc,hvc->bthv\" %y, %w# : f32[b, t, h, v]
                 %o# = einsum \"bhst,bthv->bshv\" %p, %v# : f32[b, s, h, v] "
            )
            .concat(),
            each("%o#").join(", "),
        ))
    };
    for (n, chosen) in [(1, 0), (2, 2), (3, 3)] {
        let module = averages(n);
        let (_, f) = last(&module);
        let cost = Cost::new(&module, f, &CostOptions::default());
        let (_, done) = rewrite(f, &absorption().unwrap(), &cost, Choose::Cheapest).unwrap().unwrap();
        assert_eq!((done.rules[1].matched, done.rules[1].chosen), (n, chosen));
        assert_eq!(done.cost.1 < done.cost.0, chosen > 0);
    }
}

#[test]
fn values_keep_their_lines_and_new_ones_have_those_that_asked_for_them() {
    let module = mla();
    let (_, f) = last(&module);
    let cost = Cost::new(&module, f, &CostOptions::default());
    let (g, _) = rewrite(f, &absorption().unwrap(), &cost, Choose::Rewritten).unwrap().unwrap();
    let loc = |name: &str| f.values.iter().find(|(_, data)| data.name == name).and_then(|(_, data)| data.loc);
    for (_, data) in g.values.iter() {
        let asked_for = match data.name.as_str() {
            "q_latent" => "s_c",
            "o_latent" => "o",
            name => name,
        };
        assert_eq!(data.loc, loc(asked_for), "{}", data.name);
    }
    assert!(loc("s_c").is_some() && loc("s_c") != loc("o"));
}
