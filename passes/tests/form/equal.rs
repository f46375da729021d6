//! Every form computes the same.

use crate::support::{choose, difference, fix, last, mla, parse, results};
use eva_ir::graph::{Def, Module};
use eva_ir::ops::Op;
use eva_ir::{text, verify};
use eva_passes::attend;
use eva_passes::cost::CostOptions;
use eva_passes::form::{Form, choose_and_report};
use eva_passes::rewrite::rules::Use;
use proptest::prelude::*;

/// Checks that absorption is found in this many places, and that the forms agree before and after recognition.
fn check(module: &Module, places: usize, sizes: &[(&str, i64)], start: &[i64], seed: u64) -> Module {
    let want = results(module, sizes, start, seed);
    for form in [Form::Expanded, Form::Auto, Form::Absorbed] {
        let chosen = choose(module, form);
        verify::verify(&chosen).unwrap_or_else(|diags| panic!("{diags}\n{chosen}"));
        let d = difference(&results(&chosen, sizes, start, seed), &want);
        assert!(d < 1e-12, "{form:?}: {d:e}\n{chosen}");
    }
    let (absorbed, done) =
        choose_and_report(module, Form::Absorbed, &CostOptions::default(), Use::default()).unwrap();
    let mut rules = done.functions.iter().flat_map(|f| &f.rules);
    let chosen: usize =
        rules.by_ref().filter(|rule| rule.rule.starts_with("mla_absorb")).map(|rule| rule.chosen.len()).sum();
    assert_eq!(chosen, places, "{}", text::print(&absorbed));
    let recognized = attend::recognize(&absorbed).unwrap();
    verify::verify(&recognized).unwrap();
    let d = difference(&results(&recognized, sizes, start, seed), &want);
    assert!(d < 1e-12, "recognized: {d:e}\n{recognized}");
    absorbed
}

fn attends(module: &Module) -> usize {
    let recognized = attend::recognize(module).unwrap();
    let is_attend = |def: &Def| matches!(def, Def::Op(Op::Attend(_), _));
    last(&recognized).1.values.iter().filter(|(_, data)| is_attend(&data.def)).count()
}

#[test]
fn with_awkward_extents() {
    let absorbed = check(&mla(), 2, &[("b", 2), ("s", 3), ("t", 8)], &[5, 1], 3);
    assert_eq!(attends(&absorbed), 1);
    check(&mla(), 2, &[("b", 1), ("s", 1), ("t", 1)], &[0], 4);
    check(&mla(), 2, &[("b", 4), ("s", 6), ("t", 23)], &[17, 0, 3, 8], 5);
}

#[test]
fn with_weights_that_are_parts_of_one_and_stored_narrower() {
    let source = "dim b dim s dim t dim c = 11 dim h = 5 dim n = 7 dim v = 9
    fn @f(
      %q: f32[b, s, h, n], %new: f32[b, s, c], %start: i32[b], state %ckv: f32[b, t, c],
      weight %self_attn.kv_b_proj.weight: bf16[h*n+h*v, c],
    ) -> f32[b, s, h, v], f32[b, t, c], f32[b, h, s, t] {
      %all = cache_write %ckv, %new, %start : f32[b, t, c]
      %rows = reshape %self_attn.kv_b_proj.weight {shape = [h, n+v, c]} : bf16[h, n+v, c]
      %uk = slice %rows {axis = 1, range = 0..n} : bf16[h, n, c]
      %uv = slice %rows {axis = 1, range = n..n+v} : bf16[h, v, c]
      %w_uk = cast %uk {to = f32} : f32[h, n, c]
      %w_uv = cast %uv {to = f32} : f32[h, v, c]
      %k = einsum \"btc,hnc->bthn\" %all, %w_uk : f32[b, t, h, n]
      %val = einsum \"btc,hvc->bthv\" %all, %w_uv : f32[b, t, h, v]
      %s = einsum \"bshn,bthn->bhst\" %q, %k : f32[b, h, s, t]
      %x = scale %s {by = 0.31} : f32[b, h, s, t]
      %p = causal_softmax %x, %start : f32[b, h, s, t]
      %o = einsum \"bhst,bthv->bshv\" %p, %val : f32[b, s, h, v]
      return %o, %all, %p
    }";
    check(&parse(source), 2, &[("b", 2), ("s", 3), ("t", 10)], &[7, 2], 6);
}

#[test]
fn two_attentions_of_one_function_and_names_that_are_taken() {
    let one = |i: usize, from: &str| {
        format!(
            "%all.{i} = cache_write %ckv.{i}, %new, %start : f32[b, t, c]
             %k.{i} = einsum \"btc,hnc->bthn\" %all.{i}, %w_uk : f32[b, t, h, n]
             %val.{i} = einsum \"btc,hvc->bthv\" %all.{i}, %w_uv : f32[b, t, h, v]
             %s.{i} = einsum \"bshn,bthn->bhst\" {from}, %k.{i} : f32[b, h, s, t]
             %p.{i} = causal_softmax %s.{i}, %start : f32[b, h, s, t]
             %o.{i} = einsum \"bhst,bthv->bshv\" %p.{i}, %val.{i} : f32[b, s, h, v]"
        )
    };
    let source = format!(
        "dim b dim s dim t dim c = 11 dim h = 5 dim n = 7 dim v = 9
        fn @f(
          %q: f32[b, s, h, n], %new: f32[b, s, c], %start: i32[b], state %ckv.0: f32[b, t, c],
          state %ckv.1: f32[b, t, c], weight %w_uk: f32[h, n, c], weight %w_uv: f32[h, v, c],
          weight %w_b: f32[v, n], weight %unused: f32[n, v, c],
        ) -> f32[b, s, h, n], f32[b, t, c], f32[b, t, c], f32[b, s, h, v] {{
          %o_latent = exp %q : f32[b, s, h, n]
          {}
          %again = einsum \"bshv,vn->bshn\" %o.0, %w_b : f32[b, s, h, n]
          %sum = add %again, %o_latent : f32[b, s, h, n]
          {}
          return %sum, %all.0, %all.1, %o.1
        }}",
        one(0, "%q"),
        one(1, "%sum"),
    );
    let absorbed = check(&parse(&source), 4, &[("b", 3), ("s", 2), ("t", 6)], &[4, 0, 1], 8);
    let (_, f) = last(&absorbed);
    let names: Vec<&str> = f.values.iter().map(|(_, data)| data.name.as_str()).collect();
    assert_eq!(
        names[5..],
        [
            "w_uk",
            "w_uv",
            "w_b",
            "unused",
            "o_latent",
            "all.0",
            "q_latent",
            "s.0",
            "p.0",
            "o_latent_1",
            "o.0",
            "again",
            "sum",
            "all.1",
            "q_latent_1",
            "s.1",
            "p.1",
            "o_latent_2",
            "o.1",
        ]
    );
    assert_eq!(attends(&absorbed), 2);
}

#[test]
fn among_calls_tuples_and_values_that_are_written_twice() {
    let source = "dim b dim s dim t dim c = 11 dim h = 5 dim n = 7 dim v = 9 dim k = 2
    fn @cache(%new: f32[b, s, c], %start: i32[b], state %ckv: f32[b, t, c]) -> f32[b, t, c], f32[b, s, c] {
      %all = cache_write %ckv, %new, %start : f32[b, t, c]
      %twice = add %new, %new : f32[b, s, c]
      return %all, %twice
    }
    fn @f(
      %q: f32[b, s, h, n], %new: f32[b, s, c], %start: i32[b], state %ckv: f32[b, t, c],
      weight %w_uk: f32[h, n, c], weight %w_uv: f32[h, v, c],
    ) -> f32[b, t, c], f32[b, h, s, v], i32[b*h*s, k], f32[b*h*s, k], f32[b, h, s, v] {
      %done = call @cache %new, %start, %ckv : (f32[b, t, c], f32[b, s, c])
      %all = get %done {index = 0} : f32[b, t, c]
      %k = einsum \"hnc,btc->bthn\" %w_uk, %all : f32[b, t, h, n]
      %val = einsum \"btc,hvc->bthv\" %all, %w_uv : f32[b, t, h, v]
      %scores = einsum \"bthn,bshn->bhst\" %k, %q : f32[b, h, s, t]
      %p = causal_softmax %scores, %start : f32[b, h, s, t]
      %o = einsum \"bthv,bhst->bhsv\" %val, %p : f32[b, h, s, v]
      %o.again = einsum \"bthv,bhst->bhsv\" %val, %p : f32[b, h, s, v]
      %rows = reshape %o {shape = [b*h*s, v]} : f32[b*h*s, v]
      %route = route_greedy %rows {k = [k], scale = 1.5} : (i32[b*h*s, k], f32[b*h*s, k])
      %chosen = get %route {index = 0} : i32[b*h*s, k]
      %share = get %route {index = 1} : f32[b*h*s, k]
      return %all, %o, %chosen, %share, %o.again
    }";
    let absorbed = check(&parse(source), 2, &[("b", 2), ("s", 3), ("t", 7)], &[4, 1], 9);
    assert_eq!(text::print(&absorbed), text::print(&parse(&text::print(&absorbed))));
}

/// Attention whose tensors have their axes in these orders, and whose products their factors.
fn ordered(k: &str, val: &str, w_uk: &str, w_uv: &str, swap: [bool; 4]) -> Module {
    let shape = |axes: &str| axes.chars().map(|c| c.to_string()).collect::<Vec<_>>().join(", ");
    let einsum = |swap: bool, out: &str, [x, y]: [(&str, &str); 2]| {
        let [x, y] = if swap { [y, x] } else { [x, y] };
        format!("einsum \"{},{}->{out}\" %{}, %{} : f32[{}]", x.1, y.1, x.0, y.0, shape(out))
    };
    parse(&format!(
        "dim b dim s dim t dim c = 11 dim h = 5 dim n = 7 dim v = 9
        fn @f(
          %q: f32[b, s, h, n], %new: f32[b, s, c], %start: i32[b], state %ckv: f32[b, t, c],
          weight %w_uk: f32[{}], weight %w_uv: f32[{}],
        ) -> f32[b, s, h, v], f32[b, t, c] {{
          %all = cache_write %ckv, %new, %start : f32[b, t, c]
          %k = {}
          %val = {}
          %scores = {}
          %p = causal_softmax %scores, %start : f32[b, h, s, t]
          %o = {}
          return %o, %all
        }}",
        shape(w_uk),
        shape(w_uv),
        einsum(swap[0], k, [("all", "btc"), ("w_uk", w_uk)]),
        einsum(swap[1], val, [("all", "btc"), ("w_uv", w_uv)]),
        einsum(swap[2], "bhst", [("q", "bshn"), ("k", k)]),
        einsum(swap[3], "bshv", [("p", "bhst"), ("val", val)]),
    ))
}

fn shuffled(letters: &'static str) -> impl Strategy<Value = String> {
    Just(letters.chars().collect::<Vec<_>>()).prop_shuffle().prop_map(|letters| letters.into_iter().collect())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn whatever_the_order_of_axes_and_factors(
        k in shuffled("bthn"), val in shuffled("bthv"), w_uk in shuffled("hnc"), w_uv in shuffled("hvc"),
        swap in any::<[bool; 4]>(),
    ) {
        let module = ordered(&k, &val, &w_uk, &w_uv, swap);
        let absorbed = check(&module, 2, &[("b", 2), ("s", 3), ("t", 8)], &[5, 2], 10);
        prop_assert_eq!(attends(&absorbed), 1);
    }

    #[test]
    fn whatever_the_extents(
        sizes in [1i64..5, 1..6, 1..6, 1..6, 1..6, 1..6, 1..4, 1..6], starts in proptest::collection::vec(0i64..6, 1..4),
        seed in any::<u64>(),
    ) {
        let [s, m, r, c, h, n, p, v] = sizes;
        let fixed = [("m", m), ("r", r), ("c", c), ("h", h), ("n", n), ("p", 2 * p), ("v", v)];
        let t = starts.iter().max().unwrap() + s;
        check(&fix(mla(), &fixed), 2, &[("b", starts.len() as i64), ("s", s), ("t", t)], &starts, seed);
    }
}
