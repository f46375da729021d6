//! What `eva viz` shows: data, page and graph.

use eva::viz::{View, ViewOptions, dot, page, view};
use eva_ir::text::parse;
use eva_passes::target::Target;

const TEXT: &str = "dim s
dim m = 6
dim r = 5
fn @layer(%x: f32[s, m], weight %u: f32[r, m], weight %g: f32[m]) -> f32[s, r] {
  %gg = mul %g, %g : f32[m]
  %n  = mul %x, %gg : f32[s, m]
  %e  = exp %n : f32[s, m]
  %y  = einsum \"sm,rm->sr\" %e, %u : f32[s, r]
  %z  = silu %y : f32[s, r]
  return %z
}
fn @main(%x: f32[s, m], weight %u: f32[r, m], weight %g: f32[m]) -> f32[s, r], f32[s, r] {
  %a = call @layer %x, %u, %g : f32[s, r]
  %b = scale %a {by = 0.5} : f32[s, r]
  return %a, %b
}
";

fn viewed(title: &str, text: &str, sizes: &[(&str, i64)]) -> View {
    let module = parse(text).unwrap_or_else(|diags| panic!("{diags}"));
    let sizes = sizes.iter().map(|(name, n)| (name.to_string(), *n)).collect();
    let text = Some(("layer.eva".to_string(), text.to_string()));
    let options = ViewOptions { sizes, text, ..ViewOptions::default() };
    view(title, &module, &Target::cpu(), &options).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn a_view() {
    let mut view = viewed("layer.eva", TEXT, &[("s", 7)]);
    // Tested where it is made.
    view.kernels.iter_mut().for_each(|kernel| kernel.text.clear());
    view.files.clear();
    insta::assert_snapshot!(serde_json::to_string_pretty(&view).unwrap());
}

#[test]
fn values_have_their_lines() {
    let view = viewed("layer.eva", TEXT, &[]);
    assert_eq!(view.files[0].lines.len(), TEXT.lines().count());
    for &graph in &view.stages[0].graphs {
        for node in &view.graphs[graph].nodes {
            let at = node.at.unwrap();
            let line = &view.files[at.file].lines[at.line - 1];
            assert!(line.number == at.line && line.text.contains(&format!("%{}", node.name)), "{node:?}");
        }
    }
}

#[test]
fn rows_are_below_what_they_are_computed_from() {
    let view = viewed("layer.eva", TEXT, &[]);
    for node in view.graphs.iter().flat_map(|graph| &graph.nodes) {
        let graph = view.graphs.iter().find(|graph| graph.nodes.contains(node)).unwrap();
        assert!(node.args.iter().all(|&arg| graph.nodes[arg].layer < node.layer), "{node:?}");
    }
}

#[test]
fn buffers_do_not_overlap() {
    let text = include_str!("../../tests/cases/run/mla.eva");
    let view = viewed("mla.eva", text, &[("s", 1000), ("t", 1003)]);
    assert!(view.arenas.iter().any(|arena| arena.buffers.len() >= 2));
    for arena in &view.arenas {
        for (i, a) in arena.buffers.iter().enumerate() {
            assert!(a.offset + a.bytes <= arena.bytes.unwrap() && a.last < arena.steps.len());
            for b in &arena.buffers[..i] {
                let together = a.first <= b.last && b.first <= a.last;
                let apart = a.offset + a.bytes <= b.offset || b.offset + b.bytes <= a.offset;
                assert!(!together || apart, "{a:?} {b:?}");
            }
        }
    }
}

#[test]
fn names_are_not_markup() {
    let mut view = viewed("</script><b>&\"layer\"", TEXT, &[]);
    view.graphs[0].nodes[0].name = "</script><script>alert(1)</script>".into();
    let page = page(&view);
    assert!(page.contains("<title>&lt;/script&gt;&lt;b&gt;&amp;\"layer\" – eva</title>"));
    assert_eq!(page.matches("</script>").count(), 2, "those of the page itself");
    assert!(!page.contains("alert(1)<") && page.contains("\\u003cscript\\u003ealert(1)"));
    let start = page.find("id=\"data\">").unwrap() + 10;
    let data = &page[start..start + page[start..].find("</script>").unwrap()];
    let data: serde_json::Value = serde_json::from_str(data).unwrap();
    assert_eq!(data["graphs"][0]["nodes"][0]["name"], "</script><script>alert(1)</script>");
    assert!(
        !page.contains("http:") || page.matches("http").count() == page.matches("http-equiv").count() + 1
    );
    assert!(
        !page.contains("src=") && !page.contains("@import") && !page.contains("url("),
        "nothing is loaded"
    );
}

#[test]
fn a_graph_for_graphviz() {
    insta::assert_snapshot!(dot(&viewed("layer.eva", TEXT, &[])));
}

#[test]
fn the_same_every_time() {
    let json = || serde_json::to_string(&viewed("layer.eva", TEXT, &[])).unwrap();
    assert_eq!(json(), json());
}

#[test]
fn a_model_for_a_gpu() {
    let json = include_str!("../../tests/fixtures/v3-tiny/config.json");
    let config = eva::model::config::Config::from_json(json).unwrap();
    let module = eva::model::causal_lm(&config, &eva::model::Options::default()).unwrap();
    let options = ViewOptions::default();
    let view = view("v3-tiny", &module, &Target::cuda(), &options).unwrap_or_else(|e| panic!("{e}"));
    let kernels: usize = view.kernels.iter().map(|kernel| kernel.ops.len()).sum();
    assert!(view.kernels.len() > 10 && kernels > view.kernels.len(), "ops share kernels");
    assert!(view.kernels.iter().all(|kernel| !kernel.buffers.is_empty() && !kernel.text.is_empty()));
    // What the DSL recorded has its lines.
    assert!(view.files.iter().any(|file| file.name.ends_with("mla.rs") && !file.lines.is_empty()));
}
