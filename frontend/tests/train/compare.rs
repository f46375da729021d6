//! `eva compare --training`: steps that PyTorch took.

use eva::compare::{CompareOptions, compare_training};
use eva::engine::Quiet;
use std::path::Path;

#[test]
fn six_steps_are_pytorchs() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/v3-tiny");
    let reference = dir.join("expected.safetensors");
    let rows = compare_training(&dir, &reference, &CompareOptions::default(), &Quiet).unwrap();
    assert_eq!(rows.len(), 12);
    let worst = |what: &str| {
        let rows = rows.iter().filter(|row| row.name.starts_with(what));
        rows.map(|row| row.difference.unwrap()).fold(0.0, f64::max)
    };
    assert!(rows.iter().all(|row| row.ok), "{rows:?}");
    // As near as PyTorch is to itself on another machine.
    assert!(worst("train.losses") < 1e-4 && worst("train.grad_norms") < 1e-4, "{rows:?}");
    let none = dir.with_file_name("v2-lite-tiny");
    let error =
        compare_training(&none, &none.join("expected.safetensors"), &CompareOptions::default(), &Quiet);
    assert_eq!(error.unwrap_err().to_string(), "the reference has no `train.losses`");
}
