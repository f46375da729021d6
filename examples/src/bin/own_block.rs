//! A block of your own: written in the DSL, compiled to machine code, run, and checked against what it means.
//!
//! `cargo run -p eva-examples --bin own_block`

use eva_examples::{Failure, Numbers, difference, evaluate};
use eva_runtime::{CompileOptions, Executable, Session};
use std::sync::Arc;

// README: begin
use eva::prelude::*;

/// Attention over a cache of latents: `c` numbers a token, however many heads read them.
fn attention(w: &Scope, x: &Tensor, start: &Tensor, [t, h, n, c]: [&Dim; 4]) -> Tensor {
    let [b, s, m] = x.dims();
    let q = x.linear(&w.weight("q.weight", BF16, [&(h * n), &m])).reshape([&b, &s, h, n]);
    let latent = x.linear(&w.weight("down.weight", BF16, [c, &m]));
    let cache = w.state("cache", F32, [&b, t, c]).write(&latent, start);
    let [k, v] = ["k", "v"].map(|name| {
        let up = w.weight(&format!("{name}.weight"), BF16, [h, n, c]).cast(F32);
        cache.einsum("btc,hnc->bthn", &up)
    });
    let scores = q.einsum("bshn,bthn->bhst", &k) * 0.2;
    let out = scores.causal_softmax(start).einsum("bhst,bthn->bshn", &v);
    out.reshape([&b, &s, &(h * n)]).linear(&w.weight("o.weight", BF16, [&m, &(h * n)]))
}

fn model(layers: usize) -> Result<Module, Diags> {
    let p = Program::new();
    let [b, s, t] = ["b", "s", "t"].map(|name| p.dim(name)); // known when it runs: one compile serves every length
    let [m, h, n, c] =
        [("m", 95), ("h", 5), ("n", 24), ("c", 40)].map(|(name, size)| p.dim_fixed(name, size));
    let layer = p.function("layer", |f| {
        let (x, start) = (f.input("x", F32, [&b, &s, &m]), f.input("start", I32, [&b]));
        let normed = x.rms_norm(&f.weight("norm.weight", BF16, [&m]), 1e-6);
        &x + attention(&f.scope("attention"), &normed, &start, [&t, &h, &n, &c])
    });
    p.function("main", |f| {
        let (x, start) = (f.input("x", F32, [&b, &s, &m]), f.input("start", I32, [&b]));
        (0..layers).fold(x, |x, l| f.call(&layer, &format!("layers.{l}"), [&x, &start])).named("y")
    });
    p.finish()
}
// README: end

fn main() -> Result<(), Failure> {
    // A mistake in the program is reported here, with its line in this file.
    let module = model(3)?;
    println!("{module}");

    // To machine code for this processor: the layer once, though it is called three times.
    let executable = Arc::new(Executable::compile(&module, &CompileOptions::default())?);
    println!(
        "{} kernels for {} layers, {} bytes of code",
        executable.plan().kernels.len(),
        3,
        executable.code_bytes()
    );

    let mut numbers = Numbers(7);
    let weights = numbers.weights(&module, "main");
    let mut session = Session::new(executable, "main", &weights)?;
    // Two sequences, with room for 16 tokens each.
    let mut states = session.new_states(2, 16)?;

    // Five tokens at once: none are cached before, five after.
    let x = numbers.tensor(&[2, 5, 95]);
    let start = eva_runtime::Tensor::from_i32(&[2], &[0, 0]);
    let inputs = [("x", &x), ("start", &start)];
    let results = session.run(&inputs, Some(&mut states), &[("t", 5)])?;
    let (name, y) = &results[0];

    // What the module means, by the evaluator, in f64.
    let want = evaluate(&module, "main", &inputs, &weights, &[("b", 2), ("s", 5), ("t", 5)]);
    let off = difference(&y.to_f64(), &want[0].data);
    println!("{name} {:?} is within {off:.0e} of the definition", y.shape());
    assert!(off < 1e-5, "the machine code computes what the module means");
    Ok(())
}
