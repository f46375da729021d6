//! Every example runs, and says what it is meant to say.

use std::process::Command;

/// What an example prints; it checks its own numbers.
fn output(path: &str) -> String {
    let out = Command::new(path).output().unwrap();
    let (text, errors) = (String::from_utf8(out.stdout).unwrap(), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{path} failed:\n{text}\n{errors}");
    text
}

#[test]
fn own_block() {
    let text = output(env!("CARGO_BIN_EXE_own_block"));
    assert!(text.contains("call @layer"), "{text}");
    assert!(text.contains("y [2, 5, 95] is within"), "{text}");
}

#[test]
fn mla_decode() {
    let text = output(env!("CARGO_BIN_EXE_mla_decode"));
    let (written, optimized) = text.split_once("// After the passes").expect("both are printed");
    assert!(written.contains("causal_softmax") && !written.contains("= attend"), "{written}");
    assert!(optimized.contains("= attend") && !optimized.contains("causal_softmax"), "{optimized}");
    // 40 of the latent and 8 rotary columns, 4 bytes each.
    assert!(optimized.contains("// 192 bytes are cached for each token."), "{optimized}");
}

#[test]
fn moe_layer() {
    let text = output(env!("CARGO_BIN_EXE_moe_layer"));
    assert_eq!(text.matches("goes to experts").count(), 6, "{text}");
    assert!(text.contains("y is within"), "{text}");
}
