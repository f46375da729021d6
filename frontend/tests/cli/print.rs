//! `eva print`: whatever it prints is a module that parses back to itself.

use super::support::{Sections, config, eva_reading, fixture, output, path, refusal, with_config, without};
use eva_ir::{text, verify};
use eva_passes::PASSES;
use serde_json::json;

/// Prints, and checks that it is well-formed and canonical.
fn printed(args: &[&str]) -> String {
    let printed = output(&[&["print"], args].concat());
    let module = text::parse(&printed).unwrap_or_else(|diags| panic!("{args:?}: {diags}\n{printed}"));
    verify::verify(&module).unwrap_or_else(|diags| panic!("{args:?}: {diags}\n{printed}"));
    let body = printed.strip_prefix("// ").map_or(printed.as_str(), |rest| rest.split_once('\n').unwrap().1);
    assert_eq!(text::print(&module), body);
    printed
}

/// Without the spaces that align columns.
fn has(text: &str, part: &str) -> bool {
    text.split_whitespace().collect::<Vec<_>>().join(" ").contains(part)
}

const BLOCKS: [&str; 8] =
    ["layer", "attention", "norm", "mlp", "experts", "router", "shared", "layer.2.post_attention_layernorm"];

#[test]
fn every_block_of_every_fixture_is_well_formed() {
    for model in ["v3-tiny", "v2-lite-tiny", "v3-tiny-fp8"] {
        let dir = fixture(model);
        let dir = dir.to_str().unwrap();
        for block in BLOCKS {
            assert!(printed(&[dir, "--block", block]).contains(&format!("fn @{block}(")));
        }
        for pass in PASSES {
            printed(&[dir, "--after", pass]);
            printed(&[dir, "--after", pass, "--block", "layer.1", "--form", "absorbed"]);
        }
    }
}

#[test]
fn blocks_of_a_layer_have_its_weights() {
    let dir = fixture("v3-tiny");
    let dir = dir.to_str().unwrap();
    insta::assert_snapshot!("attention", printed(&[dir, "--block", "layer.2.attention"]));
    insta::assert_snapshot!("router", printed(&[dir, "--block", "router"]));
    // Of the first dense layer, and of an expert layer.
    assert!(has(&printed(&[dir, "--block", "layer.0.mlp"]), "gate_proj.weight: bf16[i, m]"));
    assert!(has(&printed(&[dir, "--block", "layer.1.mlp"]), "mlp.experts.gate_proj.weight: bf16[e, f, m]"));
    assert_eq!(
        printed(&[dir, "--block", "layer.1.experts"]).replace("layer.1.experts", "layer.1.mlp"),
        printed(&[dir, "--block", "layer.1.mlp"])
    );
    // The MTP layer comes after the others, and the module has what it calls.
    printed(&[dir, "--block", "layer.3.attention"]);
    let mtp = printed(&[dir, "--block", "mtp"]);
    assert!(
        mtp.contains("fn @moe_layer(") && mtp.contains("fn @mtp(") && !mtp.contains("fn @main("),
        "{mtp}"
    );
    let main = printed(&[dir, "--block", "@main"]);
    assert!(main.contains("fn @dense_layer(") && !main.contains("fn @forward("), "{main}");
}

#[test]
fn forms_and_types_show() {
    let dir = fixture("v2-lite-tiny");
    let dir = dir.to_str().unwrap();
    let form = |form: &str| printed(&[dir, "--block", "attention", "--form", form]);
    assert_eq!(form("written"), printed(&[dir, "--block", "attention"]));
    assert_ne!(form("absorbed"), form("expanded"));
    assert!(printed(&[dir, "--block", "attention", "--after", "attend"]).contains("= attend "));
    let bf16 = printed(&[dir, "--block", "norm", "--dtype", "bf16"]);
    assert!(has(&bf16, "%x: bf16[b, s, m]"), "{bf16}");
}

#[test]
fn a_configuration_is_enough() {
    let changes = [
        ("torch_dtype", json!("float16")),
        ("num_attention_heads", json!(5)),
        ("num_key_value_heads", json!(5)),
        ("hidden_size", json!(95)),
    ];
    let dir = with_config(&config("v3-tiny", &changes));
    let file = dir.path().join("config.json").display().to_string();
    let whole = printed(&[&file]);
    assert_eq!(printed(&[path(&dir)]), whole);
    assert!(has(&whole, "dim m = 95") && has(&whole, "dim h = 5"), "{whole}");
    assert!(has(&whole, "weight %lm_head.weight: f16[w, m]"), "{whole}");
    assert!(has(&whole, "e_score_correction_bias: f32[e]"), "{whole}");
    // Weights of 8 bits are what they are in the checkpoint, or what the configuration alone says of them.
    let quantized = printed(&[fixture("v3-tiny-fp8").to_str().unwrap()]);
    assert!(has(&quantized, "weight %self_attn.kv_b_proj.weight: f8e4m3[h*v+h*n/128, c/128]"), "{quantized}");
    assert!(has(&quantized, "weight %mlp.experts.down_proj.weight: f8e4m3[e, m/128, f/128]"), "{quantized}");
    assert!(has(&quantized, "weight %mlp.gate.weight: bf16[e, m]"), "{quantized}");
    assert_eq!(printed(&[fixture("v3-tiny-fp8/config.json").to_str().unwrap()]), quantized);
}

#[test]
fn files_are_printed_too() {
    let mla = fixture("../cases/run/mla.eva");
    let mla = mla.to_str().unwrap();
    let whole = printed(&[mla]);
    assert_eq!(eva_reading(&["print", "-"], &whole).out, whole);
    assert_eq!(printed(&[mla, "--block", "mla"]), whole);
    assert_eq!(
        printed(&[mla, "--after", PASSES[PASSES.len() - 1]]),
        output(&["opt", mla, "--passes", &PASSES.join(",")])
    );
}

#[test]
fn what_there_is_not() {
    let (v3, v2) = (fixture("v3-tiny"), fixture("v2-lite-tiny"));
    let (v3, v2) = (v3.to_str().unwrap(), v2.to_str().unwrap());
    let mla = fixture("../cases/run/mla.eva");
    let mla = mla.to_str().unwrap();
    let mut all = Sections::default();
    all.add("no such block", &refusal(1, &["print", v3, "--block", "attentoin"]));
    all.add("no such block of a layer", &refusal(1, &["print", v3, "--block", "layer.1.attm"]));
    all.add("no such layer", &refusal(1, &["print", v2, "--block", "layer.3.attention"]));
    all.add("experts of a dense layer", &refusal(1, &["print", v3, "--block", "layer.0.experts"]));
    let dense = with_config(&config("v3-tiny", &[("first_k_dense_replace", json!(9))]));
    all.add(
        "experts of a dense model",
        &without(&dense, &refusal(1, &["print", path(&dense), "--block", "router"])),
    );
    all.add("no such function", &refusal(1, &["print", mla, "--block", "attention"]));
    all.add("no such pass", &refusal(2, &["print", v3, "--after", "fold"]));
    all.add("the type of a file", &refusal(2, &["print", mla, "--dtype", "bf16"]));
    insta::assert_snapshot!(all.text());
}
