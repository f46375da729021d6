//! Wrong IR texts, one of each kind; messages are compared whole.

use super::support::{Sections, eva_reading};
use serde_json::{Value, json};

/// A function around some statements, the last of which defines `%y`.
fn around(statements: &str) -> String {
    format!(
        "dim b\ndim m = 7\ndim n = 9\n\nfn @f(%x: f32[b, m], weight %w: f32[n, m]) -> f32[b, n] {{\n{statements}\n  return %y\n}}\n"
    )
}

const PRODUCT: &str = "  %y = einsum \"bm,nm->bn\" %x, %w : f32[b, n]";

#[test]
fn mistakes_are_shown_in_their_lines() {
    let mut all = Sections::default();
    let mut add = |title: &str, text: &str| {
        let ran = eva_reading(&["check", "-"], text);
        assert_eq!((ran.code, ran.out.as_str()), (Some(1), ""), "{title}: {}", ran.err);
        all.add(title, &ran.err);
    };
    add("lexical", &around(&PRODUCT.replace("%w :", "%w ; :")));
    add("lexical, a quotation mark", &around(&PRODUCT.replace("bn\" ", "bn ")));
    add("syntax", &around(&PRODUCT.replace("%x, %w", "%x %w")));
    add("syntax, no end", "dim b\nfn @f(%x: f32[b]) -> f32[b] {\n  return %x\n");
    add("unknown op", &around(&PRODUCT.replace("einsum", "einsun")));
    add("unknown value", &around(&PRODUCT.replace("%w", "%v")));
    add("unknown extent", &around(&PRODUCT.replace("[b, n]", "[b, k]")));
    add("unknown attribute", &around("  %z = scale %x {bi = 2.0} : f32[b, m]\n  %y = exp %z : f32[b, m]"));
    add("wrong type", &around("  %y = add %x, %w : f32[b, m]"));
    add("wrong written type", &around(&PRODUCT.replace("f32[b, n]", "f32[n, b]")));
    add("wrong result", &around("  %y = exp %x : f32[b, m]"));
    add(
        "a state that is never updated",
        "dim b\ndim t\nfn @f(%x: f32[b], state %c: f32[b, t]) -> f32[b] {\n  return %x\n}\n",
    );
    add("several", &around(&format!("  %z = exq %x : f32[b, m]\n{}", PRODUCT.replace("nm->", "mn->"))));
    add("something else", "{\"hidden_size\": 7}");
    insta::assert_snapshot!(all.text());
}

#[test]
fn json_lists_mistakes_with_their_places() {
    let ran = eva_reading(&["check", "--json", "-"], &around(&PRODUCT.replace("einsum", "é")));
    assert_eq!((ran.code, ran.err.as_str()), (Some(1), ""));
    let report: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(report["ok"], json!(false));
    let label = &report["mistakes"][0]["labels"][0];
    assert_eq!((&label["line"], &label["column"]), (&json!(6), &json!(8)), "{report}");
    assert!(!report["mistakes"][0]["message"].as_str().unwrap().is_empty());
}
