//! `eva viz`.

use super::support::{Sections, eva, fixture, output, refusal, without};
use serde_json::Value;
use tempfile::TempDir;

fn case(name: &str) -> String {
    fixture("../cases").join(name).display().to_string()
}

#[test]
fn a_page_and_its_data() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("page.html");
    let mla = case("run/mla.eva");
    let ran = eva(&["viz", &mla, "-o", file.to_str().unwrap(), "--set", "t=77"]);
    assert_eq!((ran.code, ran.out.as_str()), (Some(0), ""));
    assert!(ran.err.starts_with("wrote ") && ran.err.contains(" kernels, "), "{}", ran.err);
    let page = std::fs::read_to_string(&file).unwrap();
    assert!(page.starts_with("<!doctype html>") && page.contains("mla.eva"));
    let data: Value = serde_json::from_str(&output(&["viz", &mla, "--json", "--set", "t=77"])).unwrap();
    let stages: Vec<&str> =
        data["stages"].as_array().unwrap().iter().filter_map(|s| s["pass"].as_str()).collect();
    assert_eq!(stages, eva_passes::order_of(&eva_passes::Options::default()));
    assert!(data["extents"].as_array().unwrap().iter().any(|e| e["name"] == "t" && e["value"] == 77));
    let rules = data["rewrites"][0]["rules"].as_array().unwrap();
    assert!(rules.iter().any(|rule| rule["matched"].as_u64() > Some(0)), "{rules:?}");
}

#[test]
fn a_graph_for_graphviz() {
    let text = output(&["viz", &case("run/mla.eva"), "--dot", "--form", "expanded"]);
    assert!(text.starts_with("digraph eva {") && text.contains("label=\"%out\\neinsum"), "{text}");
}

#[test]
fn a_model_for_a_gpu() {
    let model = fixture("v3-tiny").display().to_string();
    let data: Value = serde_json::from_str(&output(&["viz", &model, "--json", "--target", "cuda"])).unwrap();
    assert_eq!(data["target"], "cuda");
    assert!(data["kernels"].as_array().unwrap().len() > 10);
}

#[test]
fn what_makes_no_sense() {
    let dir = TempDir::new().unwrap();
    let mla = case("run/mla.eva");
    let mut all = Sections::default();
    all.add("no output", &refusal(2, &["viz", "layer.eva"]));
    all.add("no such extent", &refusal(1, &["viz", &mla, "--json", "--set", "q=3"]));
    all.add("a fixed extent", &refusal(1, &["viz", &mla, "--json", "--set", "m=3"]));
    all.add("a type for a text", &refusal(2, &["viz", &mla, "--json", "--dtype", "bf16"]));
    let nowhere = dir.path().join("none").join("page.html").display().to_string();
    all.add("nowhere", &without(&dir, &refusal(1, &["viz", &mla, "-o", &nowhere])));
    insta::assert_snapshot!(all.text());
}
