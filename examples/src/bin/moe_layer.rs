//! A mixture of experts, as in DeepSeek-V3: which experts the tokens go to, and what comes out.
//!
//! Rows are sorted by expert, so that each expert multiplies the rows routed to it and nothing is padded; an expert
//! without tokens costs nothing.
//!
//! `cargo run -p eva-examples --bin moe_layer`

use eva::model::moe::{Experts, Router};
use eva::model::weights::Weights;
use eva::prelude::*;
use eva_examples::{Failure, Numbers, difference, evaluate};
use eva_runtime::{CompileOptions, Executable, Session};
use std::sync::Arc;

fn module() -> Result<Module, Diags> {
    // With taps, what a block marks with `.tap(name)` becomes a result, too: here the router's choices.
    let p = Program::new().taps(true);
    let [b, s] = ["b", "s"].map(|name| p.dim(name));
    let m = p.dim_fixed("m", 95);
    let experts = Experts {
        routed: p.dim_fixed("e", 24),
        per_token: p.dim_fixed("k", 3),
        width: p.dim_fixed("f", 33),
        // One expert more that sees every token.
        shared: 1,
        // A token chooses its 3 experts in 2 of 3 groups of 8.
        router: Router::NoauxTc { groups: Groups { count: 3, kept: 2 }, normalize: true, scale: 2.5 },
    };
    p.function("experts", |f| {
        let x = f.input("x", F32, [&b, &s, &m]);
        let stored = |name: &str| if name.ends_with("e_score_correction_bias") { F32 } else { BF16 };
        experts.apply(&Weights::new(f, &stored), &x).named("y")
    });
    p.finish()
}

fn main() -> Result<(), Failure> {
    let module = module()?;
    println!("{module}");
    let executable = Arc::new(Executable::compile(&module, &CompileOptions::default())?);
    let mut numbers = Numbers(13);
    let weights = numbers.weights(&module, "experts");
    let mut session = Session::new(executable, "experts", &weights)?;

    let x = numbers.tensor(&[2, 3, 95]);
    let results = session.run(&[("x", &x)], None, &[])?;
    let find = |name: &str| results.iter().position(|(result, _)| result == name).expect("it is a result");
    let (chosen, weight) = (&results[find("topk_idx")].1, &results[find("topk_weight")].1);
    for (token, (experts, weights)) in chosen.to_i64().chunks(3).zip(weight.to_f32().chunks(3)).enumerate() {
        println!("// token {token} goes to experts {experts:?} with weights {weights:.3?}");
    }
    let used: std::collections::BTreeSet<i64> = chosen.to_i64().into_iter().collect();
    println!("// {} of 24 experts have no token and are not computed", 24 - used.len());

    let want = evaluate(&module, "experts", &[("x", &x)], &weights, &[("b", 2), ("s", 3)]);
    for ((name, have), want) in results.iter().zip(&want) {
        let off = difference(&have.to_f64(), &want.data);
        println!("// {name} is within {off:.0e} of the definition");
        assert!(off < 1e-5, "the machine code computes what the module means");
    }
    Ok(())
}
