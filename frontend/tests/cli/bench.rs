//! `eva bench`.

use super::support::{command, finish, output};
use serde_json::Value;

/// Rows of small cases, measured as shortly as can be.
fn rows(args: &[&str]) -> Vec<Value> {
    let text = output(&[&["bench", "--json", "--runs", "1", "--run", "1", "--rest", "0"], args].concat());
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn every_case_is_right_on_the_cpu() {
    let listed = output(&["bench", "--list"]);
    let rows = rows(&[]);
    assert_eq!(rows.len(), listed.lines().count());
    for row in &rows {
        assert_eq!((&row["ok"], &row["device"]), (&true.into(), &"cpu".into()), "{row}");
        assert!(row["us"].as_f64().unwrap() > 0.0, "{row}");
        let (error, limit) = (row["err"].as_f64().unwrap(), row["limit"].as_f64().unwrap());
        // Where something is computed, it is rounded: an error of zero would mean that nothing was compared. Codes are
        // compared bit by bit.
        let copies = ["copy", "dispatch", "compile", "quantize"].map(Value::from).contains(&row["op"]);
        assert!(error <= limit && (error > 0.0) != copies, "{row}");
    }
    for bench in [
        "gemm",
        "grouped",
        "mla_decode",
        "mla_prefill",
        "rows",
        "forms",
        "attention",
        "experts",
        "layer",
        "fp8",
    ] {
        assert!(rows.iter().any(|row| row["bench"] == bench), "{bench}");
    }
}

#[test]
fn filters_choose_cases() {
    let list = |args: &[&str]| output(&[&["bench", "--list"], args].concat());
    let full = list(&["gemm", "--sizes", "full", "--filter", "m=1,m=16", "--filter", "n=2112"]);
    assert_eq!(full, "gemm m=1 n=2112 k=7168 dtype=bf16\ngemm m=16 n=2112 k=7168 dtype=bf16\n");
    let rows = rows(&[
        "gemm",
        "mla-decode",
        "--dtype",
        "f32",
        "--filter",
        "m=1,batch=3",
        "--filter",
        "k=200,kv=130",
    ]);
    let names: Vec<_> = rows.iter().map(|row| (row["bench"].as_str(), row["dtype"].as_str())).collect();
    assert_eq!(names, [(Some("gemm"), Some("f32")), (Some("mla_decode"), None)]);
    let mut nothing = command();
    nothing.args(["bench", "--filter", "m=1", "--filter", "none"]);
    let ran = finish(nothing, "");
    assert_eq!((ran.code, ran.out.as_str()), (Some(2), ""));
    assert!(ran.err.contains("no case has the words m=1 and none"), "{}", ran.err);
}

#[test]
fn a_case_that_does_not_end_does_not_stop_the_others() {
    let mut command = command();
    // The first two have more runs than end in time; compiling is no run.
    let first = ["--filter", "m=1,form=absorbed", "--run", "60000", "--runs", "1000"];
    command.args(["bench", "gemm", "layer", "--timeout", "2", "--json"]).args(first);
    let ran = finish(command, "");
    assert_eq!(ran.code, Some(1), "{}", ran.err);
    let rows: Vec<Value> = ran.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let ok: Vec<_> = rows.iter().map(|row| (row["bench"].as_str(), row["ok"].as_bool())).collect();
    let (gemm, layer) = (Some("gemm"), Some("layer"));
    assert_eq!(ok, [(gemm, Some(false)), (gemm, Some(false)), (layer, Some(true))], "{}", ran.out);
    assert_eq!(rows[1]["failed"], "it did not end within 2 s");
}

#[test]
fn devices_that_are_not_there_are_said_so() {
    let mut command = command();
    command.args(["bench", "rows", "--target", "cuda:63"]);
    let ran = finish(command, "");
    assert_eq!((ran.code, ran.out.as_str()), (Some(1), ""));
    assert!(ran.err.contains("the cases cannot be run"), "{}", ran.err);
}

#[test]
fn a_machine_is_measured_and_described() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mine.toml");
    let mut command = command();
    command.args(["bench", "calibrate", "--runs", "1", "--run", "1", "--rest", "0", "-o"]).arg(&path);
    let ran = finish(command, "");
    assert_eq!((ran.code, ran.out.as_str()), (Some(0), ""), "{}", ran.err);
    let text = std::fs::read_to_string(&path).unwrap();
    let machine = eva_passes::cost::Machine::from_toml(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    assert_eq!(machine.name, "cpu");
    // Anything that runs this reads a megabyte a second, and nothing reads a petabyte.
    assert!((1e6..1e15).contains(&machine.bytes) && machine.product.f32 > machine.vector / 100.0, "{text}");
    assert!(machine.launch < 1e-2, "{text}");
}

#[test]
fn calibrating_is_done_alone() {
    for args in [&["calibrate", "gemm"][..], &["gemm", "-o", "x.toml"]] {
        let mut command = command();
        command.arg("bench").args(args);
        let ran = finish(command, "");
        assert_eq!((ran.code, ran.out.as_str()), (Some(2), ""), "{}", ran.err);
        assert!(ran.err.contains("calibrate"), "{}", ran.err);
    }
}
