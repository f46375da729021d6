//! What a DSL program records, shown as IR text, and what it means.

use eva::prelude::*;
use eva_ir::eval::{Array, eval};
use eva_ir::text::{parse, print};

/// The program's text, which must parse back to itself.
fn text(p: &Program) -> String {
    let module = p.finish().unwrap_or_else(|diags| panic!("{diags}"));
    let text = print(&module);
    assert_eq!(print(&parse(&text).unwrap()), text);
    text
}

/// A block as a user would write it: multi-query attention with a cache.
fn attention(w: &Scope, x: &Tensor, start: &Tensor, heads: &Dim, width: &Dim, cached: &Dim) -> Tensor {
    let [b, s, m] = x.dims();
    let q = x.linear(&w.weight("q.weight", BF16, [&(heads * width), &m]));
    let q = q.reshape([&b, &s, heads, width]).named("q");
    let k = x.linear(&w.weight("k.weight", BF16, [width, &m])).tap("key");
    let k = w.state("cache", F32, [&b, cached, width]).write(&k, start);
    let scores = q.einsum("bshd,btd->bhst", &k) * 0.25;
    let out = scores.causal_softmax(start).einsum("bhst,btd->bshd", &k);
    out.reshape([&b, &s, &(heads * width)]).linear(&w.weight("o.weight", BF16, [&m, &(heads * width)]))
}

fn two_layers(taps: bool) -> Program {
    let p = Program::new().taps(taps);
    let [b, s, t] = ["b", "s", "t"].map(|name| p.dim(name));
    let [m, h, d] = [("m", 10), ("h", 3), ("d", 4)].map(|(name, n)| p.dim_fixed(name, n));
    let layer = p.function("layer", |f| {
        let x = f.input("x", F32, [&b, &s, &m]);
        let start = f.input("start", I32, [&b]);
        let normed = x.rms_norm(&f.weight("norm.weight", BF16, [&m]), 1e-5);
        (&x + attention(&f.scope("attn"), &normed, &start, &h, &d, &t)).tap("out")
    });
    p.function("main", |f| {
        let x = f.input("x", F32, [&b, &s, &m]);
        let start = f.input("start", I32, [&b]);
        let model = f.scope("model");
        let x = (0..2).fold(x, |x, i| model.call(&layer, &format!("layers.{i}"), [&x, &start]));
        let unused = x.exp();
        drop(unused.sum(-1));
        (x.mean(1).named("y"), x.slice(1, ..&s))
    });
    p
}

#[test]
fn a_layer_is_a_function_whose_weights_and_states_its_caller_passes_on() {
    insta::assert_snapshot!(text(&two_layers(false)));
}

#[test]
fn tapped_tensors_become_results_of_every_caller() {
    insta::assert_snapshot!(text(&two_layers(true)));
}

#[test]
fn operators_and_methods_record_their_ops() {
    let p = Program::new();
    let [b, s] = ["b", "s"].map(|name| p.dim(name));
    let [m, n] = [("m", 6), ("n", 4)].map(|(name, n)| p.dim_fixed(name, n));
    p.function("main", |f| {
        let x = f.input("x", F32, [&b, &s, &(&m + &n)]);
        let row = f.full(0.5, F32, [&m]);
        let [left, right] = x.split(-1, [&m, &n]);
        let left = 2.0 * (&left + &row) / 4.0 - 1.0;
        let left = -left.maximum(&row) * left.sigmoid() / (1.0 + left.exp());
        let joined = left.concat(-1, [&right, &right.sqrt()]);
        let chain = joined
            .slice(-1, &(&m + &n)..)
            .permute("bsn->snb")
            .einsum("snb,bsm,bsn->mn", [&left, &right.cast(F32)]);
        assert_eq!(joined.dim(-1), &m + &(&n * 2));
        assert_eq!((joined.rank(), joined.dtype()), (3, F32));
        assert_eq!(format!("{right:?}"), "%3: f32[b, s, n] in @main");
        [joined.max(-1), chain.softmax().named("weights"), right.cast(BF16).named("half")]
    });
    insta::assert_snapshot!(text(&p));
}

#[test]
fn names_that_are_known_outside_win() {
    let p = Program::new();
    let b = p.dim("b");
    p.function("main", |f| {
        let x = f.input("x", F32, [&b]);
        let scale = (&x * 2.0).named("w").named("y");
        let again = (&scale * 2.0).named("y");
        let w = f.weight("w", F32, [&b]);
        let same = f.weight("w", F32, [&b]);
        (&w * (again + same).named("add")).exp().named("y")
    });
    insta::assert_snapshot!(text(&p));
}

#[test]
fn numbers_come_out_as_written() {
    let p = Program::new();
    let [b, m] = [p.dim("b"), p.dim_fixed("m", 3)];
    p.function("main", |f| {
        let x = f.input("x", F32, [&b, &m]);
        let y = f.input("y", F32, [&m]);
        (3.0 * (&x - &y) / 2.0 - 0.5) / &y + 1.0
    });
    let module = p.finish().unwrap();
    let func = module.func("main").unwrap();
    let x = Array::new(&[2, 3], vec![1.0, 2.0, 3.0, 5.0, 8.0, 13.0]);
    let y = Array::new(&[3], vec![2.0, -1.0, 4.0]);
    let want =
        Array::from_fn(&[2, 3], |i| (3.0 * (x.at(i) - y.at(&i[1..])) / 2.0 - 0.5) / y.at(&i[1..]) + 1.0);
    assert_eq!(eval(&module, func, &[x, y]).unwrap(), [want]);
}

#[test]
fn a_function_that_only_updates_state_gives_nothing() {
    let p = Program::new();
    let [b, s, t, c] = ["b", "s", "t", "c"].map(|name| p.dim(name));
    let store = p.function("store", |f| {
        let x = f.input("x", F32, [&b, &s, &c]);
        let start = f.input("start", I32, [&b]);
        f.state("rows", F32, [&b, &t, &c]).write(&x, &start);
    });
    assert_eq!(
        store.states().map(|(name, ty)| format!("{name} {ty}")).collect::<Vec<_>>(),
        ["rows f32[b, t, c]"]
    );
    p.function("main", |f| {
        let x = f.input("x", F32, [&b, &s, &c]);
        let start = f.input("start", I32, [&b]);
        f.call(&store, "first", [&x, &start]);
        f.call(&store, "second", [&x.exp(), &start]);
    });
    insta::assert_snapshot!(text(&p));
}

#[test]
fn a_naive_block_caches_latents_within_its_budget() {
    use eva_passes::cache::{CacheBytes, CacheOptions, lay_out};
    let block = |budget| {
        let p = Program::new().kv_budget(budget);
        let [b, s, t] = ["b", "s", "t"].map(|name| p.dim(name));
        let [m, c, h, n] = [("m", 29), ("c", 10), ("h", 3), ("n", 7)].map(|(name, n)| p.dim_fixed(name, n));
        p.function("block", |f| {
            let x = f.input("x", F32, [&b, &s, &m]);
            let start = f.input("start", I32, [&b]);
            let latent = x.linear(&f.weight("down", BF16, [&c, &m])).named("latent");
            let k = latent.linear(&f.weight("up", BF16, [&(&h * &n), &c])).reshape([&b, &s, &h, &n]);
            let k = f.scope("attn").state("k", F32, [&b, &t, &h, &n]).write(&k, &start);
            let q = x.linear(&f.weight("q", BF16, [&(&h * &n), &m])).reshape([&b, &s, &h, &n]);
            let probs = q.einsum("bshn,bthn->bhst", &k).causal_softmax(&start);
            probs.einsum("bhst,bthn->bshn", &k)
        });
        p.finish().unwrap()
    };
    let laid_out = lay_out(&block(40), &CacheOptions::default()).unwrap();
    let bytes = CacheBytes::of(&laid_out, laid_out.func("block").unwrap()).unwrap();
    let names: Vec<&str> = bytes.states.iter().map(|(name, ..)| name.as_str()).collect();
    assert_eq!((names, bytes.per_layer()), (vec!["attn.latent"], 40));
    let error = lay_out(&block(39), &CacheOptions::default()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "a token takes 40 bytes in the caches of @block, but the module allows 39: `%attn.latent` 40 (f32[b, t, c])"
    );
    assert!(matches!(error.labels[0].0, eva_ir::diag::Loc::Rust(at) if at.file().ends_with("dsl.rs")));
}
