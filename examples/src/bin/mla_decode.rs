//! Multi-head latent attention with its cache: a prompt at once, then token by token.
//!
//! Prints the block as IR, before and after the passes, and what a cached token takes; then checks that tokens fed one by
//! one give what all of them give at once.
//!
//! `cargo run -p eva-examples --bin mla_decode`

use eva::model::mla::{Mla, Tokens};
use eva::model::rope::Rope;
use eva::model::weights::Weights;
use eva::prelude::*;
use eva_examples::{Failure, Numbers, difference, evaluate};
use eva_runtime::{CompileOptions, Executable, Session, Tensor as Data};
use std::sync::Arc;

/// Width of the residual stream.
const WIDTH: usize = 95;

/// The attention block of a small DeepSeek-V2-Lite: queries without a latent of their own.
fn module() -> Result<Module, Diags> {
    let p = Program::new();
    let [b, s, t] = ["b", "s", "t"].map(|name| p.dim(name));
    let m = p.dim_fixed("m", WIDTH as i64);
    let rope = Rope { rotary: Rotary { theta: 10000.0, pairs: Pairs::Interleaved, yarn: None }, factor: 1.0 };
    let attention = Mla {
        heads: p.dim_fixed("h", 5),
        nope: p.dim_fixed("n", 24),
        rope: p.dim_fixed("p", 8),
        value: p.dim_fixed("v", 20),
        latent: p.dim_fixed("c", 40),
        query_latent: None,
        pairs: rope.rotary.pairs,
        scale: 32f64.sqrt().recip(),
        bias: false,
        expanded_cache: false,
        observe: false,
    };
    p.function("attention", |f| {
        let x = f.input("x", F32, [&b, &s, &m]);
        let start = f.input("start", I32, [&b]);
        // Angles are made once for all layers, where there are several.
        let rope = rope.table(f, &start, &s, &attention.rope);
        let tokens = Tokens { rope, start, cached: Some(t) };
        // Every weight is stored in bf16.
        attention.apply(&Weights::new(f, &|_| BF16), &x, &tokens).named("y")
    });
    p.finish()
}

fn main() -> Result<(), Failure> {
    let module = module()?;
    println!("// As it is written: keys and values of every head are expanded from the latents.\n{module}");
    let optimized = eva_passes::optimize(&module, &eva_passes::Options::default())?;
    println!("// After the passes: scores, mask, softmax and average are one op.\n{optimized}");

    let executable = Arc::new(Executable::compile(&module, &CompileOptions::default())?);
    let mut numbers = Numbers(11);
    let weights = numbers.weights(&module, "attention");
    let mut session = Session::new(executable, "attention", &weights)?;
    println!("// {} bytes are cached for each token.", session.state_bytes_per_token());

    // Nine tokens of one sequence: six as a prompt, three one after the other.
    let tokens = 9;
    let x = numbers.tensor(&[1, tokens, WIDTH]);
    let mut states = session.new_states(1, tokens)?;
    let mut y = Vec::new();
    for range in [0..6, 6..7, 7..8, 8..9] {
        let rows = &x.to_f32()[range.start * WIDTH..range.end * WIDTH];
        let rows = Data::from_f32(&[1, range.len(), WIDTH], rows);
        // How many tokens are cached already; the cache has `t` after this call.
        let start = Data::from_i32(&[1], &[range.start as i32]);
        let results =
            session.run(&[("x", &rows), ("start", &start)], Some(&mut states), &[("t", range.end)])?;
        y.extend(results[0].1.to_f64());
    }

    let inputs = [("x", &x), ("start", &Data::from_i32(&[1], &[0]))];
    let want = evaluate(&module, "attention", &inputs, &weights, &[("b", 1), ("s", tokens), ("t", tokens)]);
    let off = difference(&y, &want[0].data);
    println!("// One by one is within {off:.0e} of all at once.");
    assert!(off < 1e-5, "decoding gives what a prefill gives");
    Ok(())
}
