//! Whole models as machine code against what Hugging Face transformers recorded.

use eva::compare::{CompareOptions, Row, compare};
use eva::engine::Quiet;
use std::path::PathBuf;

fn fixture(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(path)
}

fn rows(model: &str, options: &CompareOptions) -> Vec<Row> {
    let reference = fixture(model).join("expected.safetensors");
    compare(&fixture(model), &reference, options, &Quiet).unwrap_or_else(|e| panic!("{e}"))
}

fn check(model: &str, form: eva_passes::Form) {
    let mut options = CompareOptions::default();
    options.load.form = form;
    let rows = rows(model, &options);
    let failed: Vec<&Row> = rows.iter().filter(|row| !row.ok).collect();
    assert!(failed.is_empty(), "{failed:#?}");
    let compared = rows.iter().filter(|row| row.difference.is_some()).count();
    assert!(compared > 20, "only {compared} compared");
}

#[test]
fn v3_tiny_agrees_with_transformers() {
    check("v3-tiny", eva_passes::Form::Auto);
}

#[test]
fn v3_tiny_expanded_agrees_with_transformers() {
    check("v3-tiny", eva_passes::Form::Expanded);
}

#[test]
fn v3_tiny_absorbed_agrees_with_transformers() {
    check("v3-tiny", eva_passes::Form::Absorbed);
}

#[test]
fn v2_lite_tiny_agrees_with_transformers() {
    check("v2-lite-tiny", eva_passes::Form::Auto);
}
