//! Wrong rules are stopped by their names, and rules match whatever the order of factors and axes.

use crate::support::{last, mla, parse};
use eva_ir::graph::Module;
use eva_passes::cost::{Cost, CostOptions};
use eva_passes::rewrite::rules::latent::absorption;
use eva_passes::rewrite::rules::{Exactness, Rule, all};
use eva_passes::rewrite::{Choose, rewrite};

const KEY: &str = "(einsum bshn,bthn->bhst ?q (einsum btc,hnc->bthn ?c ?w))";

fn rule(name: &'static str, from: &'static str, to: &'static str) -> Rule {
    Rule::new(name, " Wrong.", Exactness::Exact, (from, to), &[], "new").unwrap()
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
    // Products take the order of axes from what they replace, so that it takes a rule of another kind to swap some.
    let swap = |b: &mut eva_passes::rewrite::build::Builder<'_>, _: &eva_ir::ops::Op, args: &[egg::Id]| {
        let spec = "bshn,bthn->bsht".parse().unwrap();
        let fits = args.len() == 2 && b.shape(args[0]).len() == 4 && b.shape(args[1]).len() == 4;
        let fits = fits && b.shape(args[0])[2..] == b.shape(args[1])[2..];
        if fits { vec![b.op(eva_ir::ops::einsum::Einsum { spec }, args)] } else { Vec::new() }
    };
    let kind = eva_ir::ops::OpKind::Einsum;
    let mut rules = absorption().unwrap();
    rules.push(Rule::local("wrong_absorb_key", "Wrong.", Exactness::Exact, kind, "x => y", swap, "new"));
    assert_eq!(mistake(&rules), "the rule `wrong_absorb_key` equates f32[b, h, s, t] and f32[b, s, h, t]");
    // Which of the rules comes first does not matter.
    rules.rotate_right(1);
    assert_eq!(mistake(&rules), "the rule `wrong_absorb_key` equates f32[b, h, s, t] and f32[b, s, h, t]");
}

#[test]
fn a_rule_that_builds_nonsense_is_stopped_by_its_name() {
    // The inner product loses an axis that the outer one needs.
    let to = "(einsum bsc,btc->bhst (einsum bshn,hnc->bsc ?q ?w) ?c)";
    assert_eq!(
        mistake(&[rule("wrong_sum", KEY, to)]),
        "the rule `wrong_sum` builds an ill-typed `einsum`: axis `b` of the result is in no operand"
    );
}

#[test]
fn what_is_no_rule_is_refused() {
    let refused =
        |from, to| Rule::new("r", "", Exactness::Exact, (from, to), &[], "new").unwrap_err().message;
    let ok = "(einsum ab,bc->ac ?x ?y)";
    for (from, to, why) in [
        ("?x", ok, "`?x` is anything"),
        (ok, "(einsum ab,bc->ac ?x ?z)", "?z is not on the left with these axes"),
        (ok, "(einsum ab,bd->ad ?x ?y)", "?y is not on the left with these axes"),
        (ok, "(einsum ab,bc->a ?x ?y)", "the two sides have different axes"),
        ("(einsum ab,bc->ac ?x ?x)", ok, "?x is there twice"),
        ("(einsum ab->ac ?x ?y)", ok, "\"ab->ac\" is for 1 factors"),
        ("(einsum ?s ?x ?y)", ok, "the axes of a product must be written out"),
        ("(add ?x ?y)", ok, "`add` is not a product"),
        (
            "(einsum ab,bc->ac ?x (einsum xd,dy->xy ?y ?z))",
            ok,
            "\"ab,bc->ac\" calls a factor's axes otherwise than the factor does",
        ),
        (
            "(einsum abd,bdc->ac ?x ?y)",
            "(einsum abd,bdc->ac ?x ?y)",
            "nothing tells the axes `b` and `d` apart",
        ),
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
    for rule in all().unwrap() {
        assert!(rule.why.len() > 15 && rule.why.ends_with('.') && !rule.why.contains("  "), "{}", rule.why);
        assert!(rule.says().contains(" => "), "{rule:?}");
        assert_ne!(rule.exactness, Exactness::Rounds, "{rule:?}");
    }
    insta::assert_snapshot!(all().unwrap().iter().map(|rule| format!("{rule:?}\n")).collect::<String>());
}

/// In how many places each rule applies.
fn matched(module: &Module) -> Vec<usize> {
    let (_, f) = last(module);
    let cost = Cost::new(module, f, &CostOptions::default());
    let (_, done) = rewrite(f, &absorption().unwrap(), &cost, Choose::Absorbed).unwrap();
    done.rules.iter().map(|rule| rule.matched).collect()
}

fn products(q: &str, k: &str, scores: &str) -> Module {
    parse(&format!(
        "dim b dim s dim t dim c = 11 dim h = 5 dim n = 7
        fn @f(%x: f32[b, s, h, n], %y: f32[b, t, c], %start: i32[b], weight %w: f32[h, n, c]) -> f32[b, h, s, t] {{
          %q = einsum \"bshn->{q}\" %x : f32{}
          %k = einsum \"btc,hnc->{k}\" %y, %w : f32{}
          %z = einsum \"{scores}\" %q, %k : f32[b, h, s, t]
          %p = causal_softmax %z, %start : f32[b, h, s, t]
          return %p
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
    assert_eq!(matched(&products("bshn", "bthn", "bshn,bthn->bhst")), [1, 0]);
    assert_eq!(matched(&products("hsnb", "nhtb", "hsnb,nhtb->bhst")), [1, 0]);
    // One head's keys for all heads: the heads are summed before, so nothing can be absorbed.
    assert_eq!(matched(&products("bshn", "btn", "bshn,btn->bhst")), [0, 0]);
    // A product over the tokens of keys that all queries share.
    let text = "dim b dim s dim t dim c = 11 dim h = 5 dim n = 7
        fn @f(%x: f32[b, t, h, n], %y: f32[b, s, c], %start: i32[b], weight %w: f32[h, n, c]) -> f32[b, h, s, t] {
          %q = einsum \"bsc,hnc->bshn\" %y, %w : f32[b, s, h, n]
          %z = einsum \"bshn,bthn->bhst\" %q, %x : f32[b, h, s, t]
          %p = causal_softmax %z, %start : f32[b, h, s, t]
          return %p
        }";
    assert_eq!(matched(&parse(text)), [0, 0], "the queries are not what is expanded");
}

#[test]
fn a_key_that_is_used_elsewhere_is_kept() {
    let text = |result: &str| {
        parse(&format!(
            "dim b dim s dim t dim c = 11 dim h = 5 dim n = 7
        fn @f(%q: f32[b, s, h, n], %y: f32[b, t, c], %start: i32[b], weight %w: f32[h, n, c]) -> f32[b, h, s, t], {result} {{
          %k = einsum \"btc,hnc->bthn\" %y, %w : f32[b, t, h, n]
          %z = einsum \"bshn,bthn->bhst\" %q, %k : f32[b, h, s, t]
          %p = causal_softmax %z, %start : f32[b, h, s, t]
          %r = reshape %k {{shape = [b, t, h*n]}} : f32[b, t, h*n]
          return %p, %{}
        }}",
            if result.contains("h*n") { "r" } else { "z" }
        ))
    };
    let module = text("f32[b, t, h*n]");
    let (_, f) = last(&module);
    let cost = Cost::new(&module, f, &CostOptions::default());
    let (g, done) = rewrite(f, &absorption().unwrap(), &cost, Choose::Absorbed).unwrap();
    assert_eq!((done.rules[0].matched, done.rules[0].chosen.len()), (0, 0));
    assert_eq!(g.values.len(), f.values.len());
    // What only shows the keys otherwise does not need them.
    let module = text("f32[b, h, s, t]");
    let (_, f) = last(&module);
    let cost = Cost::new(&module, f, &CostOptions::default());
    let (g, done) = rewrite(f, &absorption().unwrap(), &cost, Choose::Absorbed).unwrap();
    assert_eq!(done.rules[0].chosen, ["z"]);
    let names: Vec<&str> = g.values.iter().map(|(_, data)| data.name.as_str()).collect();
    assert_eq!(names, ["q", "y", "start", "w", "q_latent", "z", "p"]);
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
        let (_, done) = rewrite(f, &absorption().unwrap(), &cost, Choose::Cheapest).unwrap();
        assert_eq!((done.rules[1].matched, done.rules[1].chosen.len()), (n, chosen));
        assert_eq!(done.cost.1 < done.cost.0, chosen > 0);
    }
}

#[test]
fn values_keep_their_lines_and_new_ones_have_those_that_asked_for_them() {
    let module = mla();
    let (_, f) = last(&module);
    let cost = Cost::new(&module, f, &CostOptions::default());
    let (g, _) = rewrite(f, &absorption().unwrap(), &cost, Choose::Absorbed).unwrap();
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
