//! The mistakes that are most easily made in the DSL, and the whole of what is said about each.

use eva::prelude::*;
use eva::report::render;

/// All messages about a program, without line numbers, which would change whenever this file does.
fn messages(p: &Program) -> String {
    let text = render(&p.finish().expect_err("the program is wrong"), None);
    let line = |line: &str| {
        let line = match line.split_once(".rs:") {
            Some((before, _)) => format!("{}.rs]", before.trim_start()),
            None => line.into(),
        };
        match line.find(['│', '·', '╰', '╭']) {
            Some(gutter) if line[..gutter].chars().all(|c| c == ' ' || c.is_ascii_digit()) => {
                format!("    {}", &line[gutter..])
            }
            _ => line,
        }
    };
    text.lines().map(|l| line(l).trim_end().to_string() + "\n").collect()
}

/// A program with the extents that the mistakes are made with.
struct Setup {
    p: Program,
    b: Dim,
    s: Dim,
    m: Dim,
    i: Dim,
}

fn setup() -> Setup {
    let p = Program::new();
    let ([b, s], [m, i]) =
        (["b", "s"].map(|n| p.dim(n)), [("m", 64), ("i", 160)].map(|(n, v)| p.dim_fixed(n, v)));
    Setup { p, b, s, m, i }
}

#[test]
fn a_weight_that_is_transposed() {
    let Setup { p, b, s, m, i } = setup();
    p.function("main", |f| {
        let x = f.input("x", F32, [&b, &s, &m]);
        let w = f.weight("up_proj.weight", BF16, [&m, &i]);
        let y = x.linear(&w);
        y.silu() * y // silent: `y` is in error already
    });
    insta::assert_snapshot!(messages(&p));
}

#[test]
fn element_types_that_differ() {
    let Setup { p, b, s, m, .. } = setup();
    p.function("main", |f| {
        let x = f.input("x", F32, [&b, &s, &m]);
        let gate = f.input("gate", BF16, [&b, &s, &m]);
        let product = x.einsum("bsm,bsm->bs", &gate);
        (&x * &gate, product)
    });
    insta::assert_snapshot!(messages(&p));
}

#[test]
fn letters_of_an_einsum() {
    let Setup { p, b, s, m, i } = setup();
    p.function("main", |f| {
        let x = f.input("x", F32, [&b, &s, &m]);
        let w = f.weight("w", F32, [&i, &m]);
        let swapped = x.einsum("bsm,mi->bsi", &w);
        let missing = x.einsum("sm,im->si", &w);
        let none = x.einsum("bsm,im->bso", &w);
        let typo = x.einsum("bsm,im-bsi", &w);
        [swapped, missing, none, typo]
    });
    insta::assert_snapshot!(messages(&p));
}

#[test]
fn axes_that_are_not_there() {
    let Setup { p, b, m, .. } = setup();
    p.function("main", |f| {
        let x = f.input("x", F32, [&b, &m]);
        let [_, _, width] = x.dims();
        let w = f.weight("w", F32, [&width, &x.dim(2)]); // silent
        (x.sum(-3), x.slice(2, 0..8), x.linear(&w))
    });
    insta::assert_snapshot!(messages(&p));
}

#[test]
fn a_slice_out_of_range() {
    let Setup { p, b, m, i, .. } = setup();
    p.function("main", |f| {
        let x = f.input("x", F32, [&b, &(&m + &i)]);
        let [left, right] = x.split(-1, [&m, &m]);
        (x.slice(-1, &i..), x.slice(-1, 0..65), left + right)
    });
    insta::assert_snapshot!(messages(&p));
}

#[test]
fn a_reshape_with_another_number_of_elements() {
    let Setup { p, b, s, m, .. } = setup();
    let h = p.dim_fixed("h", 4);
    p.function("main", |f| {
        let x = f.input("x", F32, [&b, &s, &m]);
        x.reshape([&b, &s, &h, &Dim::from(16)])
    });
    insta::assert_snapshot!(messages(&p));
}

#[test]
fn a_sum_of_transposed_tensors() {
    let Setup { p, b, s, m, i } = setup();
    p.function("main", |f| {
        let x = f.input("x", F32, [&b, &s, &m]);
        let y = f.input("y", F32, [&b, &m, &s]);
        let z = f.input("z", F32, [&b, &i]);
        (&x + &y, &x - &z)
    });
    insta::assert_snapshot!(messages(&p));
}

#[test]
fn a_tensor_of_another_function() {
    let Setup { p, b, m, .. } = setup();
    let mut leaked = None;
    let norm = p.function("norm", |f| {
        let x = f.input("x", F32, [&b, &m]);
        leaked = Some(x.clone());
        x.rms_norm(&f.weight("weight", F32, [&m]), 1e-6)
    });
    let leaked = leaked.unwrap();
    p.function("main", |f| {
        let y = f.input("y", F32, [&b, &m]);
        &leaked + f.call(&norm, "norm", &y)
    });
    let _late = leaked.exp();
    let other = Program::new();
    let c = other.dim("c");
    other.function("main", |f| {
        let z = f.input("z", F32, [&c, &m]);
        let z = f.call(&norm, "norm", &f.input("x", F32, [&c])) + z;
        f.call(&norm, "norm", &z)
    });
    insta::assert_snapshot!(messages(&p) + &messages(&other));
}

#[test]
fn one_name_for_two_things() {
    let Setup { p, b, s, m, i } = setup();
    let _ = p.dim_fixed("m", 65);
    let _ = p.dim("two words");
    let _ = p.dim_fixed("empty", 0);
    for _ in 0..2 {
        p.function("twice", |f| f.input("x", F32, [&b, &m]).exp());
    }
    p.function("main", |f| {
        let x = f.input("x", F32, [&b, &m]).exp().named("y");
        let w = f.scope("mlp").weight("w", BF16, [&i, &m]);
        let again = f.weight("mlp.w", F32, [&i, &m]);
        let input = f.input("mlp.w", BF16, [&i, &m]);
        let y = f.input("z", F32, [&b, &s]).exp().named("y");
        [x.linear(&w), x.linear(&again), x.linear(&input), y.named("a b")]
    });
    p.function("results", |f| {
        let x = f.input("x", F32, [&b, &s]);
        (x.exp().named("y"), x.log().named("y"))
    });
    insta::assert_snapshot!(messages(&p));
}

#[test]
fn a_call_with_the_wrong_inputs() {
    let Setup { p, b, s, m, .. } = setup();
    let layer = p.function("layer", |f| {
        let x = f.input("x", F32, [&b, &s, &m]);
        let start = f.input("start", I32, [&b]);
        let w = f.weight("w", F32, [&m, &m]);
        x.linear(&w) + start.cast(F32).reshape([&b, &Dim::from(1), &Dim::from(1)])
    });
    p.function("main", |f| {
        let x = f.input("x", F32, [&b, &s, &m]);
        let start = f.input("start", I64, [&b]);
        let one = f.call(&layer, "layers.0", &x);
        let two = f.call(&layer, "layers.1", [&x.permute("bsm->sbm"), &start]);
        one + two
    });
    insta::assert_snapshot!(messages(&p));
}

#[test]
fn results_that_are_forgotten() {
    let Setup { p, b, s, m, .. } = setup();
    let t = p.dim("t");
    p.function("main", |f| {
        let x = f.input("x", F32, [&b, &m]);
        x.silu();
    });
    p.function("unwritten", |f| {
        let _cache = f.state("cache", F32, [&b, &t, &m]);
        f.input("x", F32, [&b, &m]).silu()
    });
    p.function("written", |f| {
        let x = f.input("x", F32, [&b, &s, &m]);
        let start = f.input("start", I32, [&b]);
        let cache = f.state("cache", F32, [&b, &t, &m]);
        let wide = f.state("wide", F32, [&b, &t, &(&m * 2)]).write(&x, &start);
        [cache.write(&x, &start), cache.write(&x.exp(), &start), wide]
    });
    insta::assert_snapshot!(messages(&p));
}

#[test]
fn extents_without_the_value_or_the_declaration_that_is_needed() {
    let Setup { p, b, s, m, .. } = setup();
    let [e, k] = [p.dim("e"), p.dim_fixed("k", 2)];
    p.function("main", |f| {
        let logits = f.input("logits", F32, [&s, &e]);
        let x = f.input("x", F32, [&b, &s, &m]);
        let (expert, weight) = logits.route_greedy(&k, 1.0);
        let undeclared = f.input("y", F32, [&b, &Dim::sym("width")]);
        (expert, weight, x.rms_norm(&f.weight("gain", F32, [&m]), 1e-6), undeclared)
    });
    insta::assert_snapshot!(messages(&p));
}

/// A block that comes with eva is code like a user's own: what does not fit it is shown where it was called.
#[test]
fn a_block_that_is_given_what_does_not_fit() {
    use eva::model::mlp::SwiGlu;
    use eva::model::weights::Weights;
    let Setup { p, b, s, m, i } = setup();
    p.function("main", |f| {
        let x = f.input("x", F32, [&b, &s, &m]);
        let w = Weights::new(f, &|_| BF16);
        let _gate = f.weight("mlp.gate_proj.weight", BF16, [&m, &i]);
        let tokens = f.input("tokens", I64, [&b, &s]);
        (SwiGlu { width: i.clone() }.apply(&w.at("mlp"), &x), SwiGlu { width: s.clone() }.apply(&w, &tokens))
    });
    insta::assert_snapshot!(messages(&p));
}
