//! `eva check` and `eva opt`.

use super::support::{Sections, command, eva, eva_reading, finish, fixture, output, path, refusal, without};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::path::PathBuf;
use tempfile::TempDir;

fn case(name: &str) -> PathBuf {
    fixture("../cases").join(name)
}

const TEXT: &str = "dim b\ndim s\ndim t\ndim m = 7 // wide\nfn @f(%x: f32[b, s, m], %y: f32[b, t, m]) -> f32[b, s, t] {\n  \
    %z = einsum \"bsm,btm->bst\" %x, %y : f32[b, s, t] return %z }";

#[test]
fn good_files_pass() {
    let mla = case("run/mla.eva");
    assert_eq!(output(&["check", mla.to_str().unwrap()]), "ok: 1 function\n");
    let ran = eva_reading(&["check", "-"], TEXT);
    assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (Some(0), "ok: 1 function\n", ""));
    let report: Value = serde_json::from_str(&output(&["check", "--json", mla.to_str().unwrap()])).unwrap();
    assert_eq!(report, json!({"ok": true, "functions": 1, "mistakes": []}));
}

#[test]
fn files_that_cannot_be_read() {
    let dir = TempDir::new().unwrap();
    let file = |name: &str| dir.path().join(name).display().to_string();
    // Without blocks of its own on disk.
    File::create(file("huge.eva")).unwrap().set_len((64 << 20) + 1).unwrap();
    fs::write(file("latin.eva"), b"dim b // \xe9t\xe9\n").unwrap();
    let mut all = Sections::default();
    for (title, name) in [("none", "none.eva"), ("too long", "huge.eva"), ("not UTF-8", "latin.eva")] {
        let message = refusal(1, &["check", &file(name)]);
        assert_eq!(refusal(1, &["opt", &file(name)]), message);
        assert_eq!(refusal(1, &["print", &file(name)]), message);
        all.add(title, &without(&dir, &message));
    }
    all.add("a directory", &without(&dir, &refusal(1, &["check", path(&dir)])));
    insta::assert_snapshot!(all.text());
}

#[test]
fn opt_fixes_extents_and_prints_canonically() {
    let ran = eva_reading(&["opt", "-", "--set", "s=1", "--set", "t=4096"], TEXT);
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""));
    insta::assert_snapshot!(ran.out);
    assert_eq!(eva_reading(&["opt", "-"], &ran.out).out, ran.out);
    assert_eq!(eva_reading(&["opt", "-", "--set", "m=7"], &ran.out).out, ran.out);
}

#[test]
fn opt_runs_passes_in_the_order_given() {
    let mla = case("run/mla.eva");
    let mla = mla.to_str().unwrap();
    let all = eva_passes::PASSES.join(",");
    let one = output(&["opt", mla, "--passes", &all, "--form", "expanded"]);
    assert_eq!(eva_reading(&["check", "-"], &one).code, Some(0));
    assert!(one.contains("attend") && !one.contains("causal_softmax"), "{one}");
    // One after the other is the same.
    let mut text = fs::read_to_string(mla).unwrap();
    for pass in eva_passes::PASSES {
        let ran = eva_reading(&["opt", "-", "--passes", pass, "--form", "expanded"], &text);
        assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""));
        text = ran.out;
    }
    assert_eq!(text, one);
    assert_ne!(output(&["opt", mla, "--passes", &all, "--form", "absorbed"]), one);
}

#[test]
fn what_passes_leave_can_be_dumped() {
    let mut command = command();
    command.env("EVA_DUMP", "form").args(["opt", "-", "--passes", "form"]);
    let ran = finish(command, TEXT);
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), "// after form\n(unchanged)\n"));
}

#[test]
fn wrong_settings_and_passes() {
    let mut all = Sections::default();
    let mut add = |title: &str, code: i32, args: &[&str]| {
        let ran = eva_reading(&[&["opt", "-"], args].concat(), TEXT);
        assert_eq!((ran.code, ran.out.as_str()), (Some(code), ""), "{}", ran.err);
        all.add(title, &ran.err);
    };
    add("no such extent", 1, &["--set", "u=3"]);
    add("another value", 1, &["--set", "m=8"]);
    add("twice", 1, &["--set", "s=2", "--set", "s=3"]);
    add("zero", 2, &["--set", "s=0"]);
    add("no number", 2, &["--set", "s=many"]);
    add("no value", 2, &["--set", "s"]);
    add(
        "too large for its tensors",
        1,
        &["--set", "s=9223372036854775807", "--set", "t=9223372036854775807"],
    );
    add("no such pass", 2, &["--passes", "form,fold"]);
    insta::assert_snapshot!(all.text());
}

#[test]
fn help_and_version() {
    assert_eq!(output(&["--version"]), format!("eva {}\n", env!("CARGO_PKG_VERSION")));
    insta::assert_snapshot!(output(&["--help"]));
    for command in ["generate", "compare", "compile", "print", "opt", "check", "init", "bench", "doctor"] {
        let help = output(&[command, "--help"]);
        assert!(help.contains("Example") && help.contains(&format!("  eva {command} ")), "{help}");
    }
    assert_eq!(eva(&[]).code, Some(2));
    assert_eq!(eva(&["frobnicate"]).code, Some(2));
}

/// How far results may move decides which rules are used: what sums in another order is not exact.
#[test]
fn results_move_as_far_as_numerics_says() {
    let mla = case("run/mla.eva");
    let mla = mla.to_str().unwrap();
    let form = |more: &[&str]| output(&[&["opt", mla, "--passes", "form"], more].concat());
    let absorbed = form(&[]);
    assert!(absorbed.contains("%q_latent"), "{absorbed}");
    assert_eq!(form(&["--numerics", "reassociates"]), absorbed);
    assert_eq!(form(&["--numerics", "rounds"]), absorbed);
    let exact = form(&["--numerics", "exact"]);
    assert!(!exact.contains("q_latent") && exact.contains("%s_c "), "{exact}");
    assert_eq!(exact, form(&["--numerics", "exact", "--form", "expanded"]));

    let said = |args: &[&str]| eva(&[args, &["--numerics", "exact", "--form", "absorbed"]].concat());
    for args in [
        &["opt", mla, "--passes", "form"][..],
        &["print", mla],
        &["explain", mla],
        &["viz", mla, "-o", "page.html"],
    ] {
        let ran = said(args);
        assert_eq!(ran.code, Some(2), "{args:?}: {}", ran.err);
        let message = "--form absorbed --numerics exact: the absorbed form sums in another order";
        assert!(ran.err.contains(message), "{args:?}: {}", ran.err);
    }
    let ran = eva(&["opt", mla, "--passes", "form", "--numerics", "sloppy"]);
    assert!(ran.err.contains("[possible values: exact, reassociates, rounds]"), "{}", ran.err);
}
