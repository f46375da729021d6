//! Prompts that cannot be run; messages are compared whole.

use super::support::{Sections, config, fixture, path, refusal, with_config, without};
use serde_json::json;
use std::fs;

#[test]
fn prompts() {
    let dir = fixture("v3-tiny");
    let dir = dir.to_str().unwrap();
    let mut all = Sections::default();
    let mut add =
        |title: &str, more: &[&str]| all.add(title, &refusal(1, &[&["generate", dir], more].concat()));
    add("no tokens", &["--tokens", "", "--max-new-tokens", "3"]);
    add("no text", &["--prompt", "", "--max-new-tokens", "3"]);
    add("a text without a tokenizer", &["--prompt", "To be", "--max-new-tokens", "3"]);
    add("an id outside the vocabulary", &["--tokens", "287,0,288", "--max-new-tokens", "3"]);
    add("the largest id there is", &["--tokens", "4294967295", "--max-new-tokens", "3"]);
    add("more new tokens than fit", &["--tokens", "1,2", "--max-new-tokens", "163839"]);
    add("many more", &["--tokens", "1", "--max-new-tokens", "18446744073709551615"]);
    let short = with_config(&config("v3-tiny", &[("max_position_embeddings", json!(4))]));
    fs::copy(fixture("v3-tiny/model.safetensors"), short.path().join("model.safetensors")).unwrap();
    let message = refusal(1, &["generate", path(&short), "--tokens", "1,2,3,4,5", "--max-new-tokens", "1"]);
    all.add("a prompt longer than the maximum", &without(&short, &message));
    insta::assert_snapshot!(all.text());
}
