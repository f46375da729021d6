//! `eva doctor`.

use super::support::{command, finish, output};
use serde_json::{Value, json};

#[test]
fn this_machine_can_compile() {
    let text = output(&["doctor"]);
    assert!(text.contains("self-test     cpu: ok"), "{text}");
    assert!(text.contains("cranelift     built in"), "{text}");
    let built_in = cfg!(feature = "cuda");
    let word = if built_in { "built in" } else { "not built in" };
    assert!(text.contains(&format!("\n  cuda          {word}")), "{text}");
    let report: Value = serde_json::from_str(&output(&["doctor", "--json"])).unwrap();
    assert_eq!(report["self_tests"][0], json!({"device": "cpu", "ok": true, "error": null}));
    assert_eq!(report["version"], json!(env!("CARGO_PKG_VERSION")));
    assert_eq!(report["backends"]["cuda"], json!(built_in));
    let features = report["features"].as_object().unwrap();
    for (name, has) in eva_microkernels::cpu_features() {
        assert_eq!(features[name], json!(has), "{name}");
    }
    assert!(report["threads"].as_u64().unwrap() > 0 && report["tools"].as_array().unwrap().len() > 2);
}

#[test]
fn what_is_not_found_says_how_to_get_it() {
    let mut command = command();
    command.args(["doctor", "--json"]).env("PATH", "").env("EVA_THREADS", "5");
    let ran = finish(command, "");
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    let report: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(report["threads"], json!(5));
    for tool in report["tools"].as_array().unwrap() {
        assert!(tool["get"].as_str().unwrap().contains("https://"), "{tool}");
    }
}

/// Where there is no GPU that will do, the report says why, and what to do about it; where there is one, it was tested.
#[test]
fn gpus_are_tested_or_the_report_says_why_not() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = command();
    command.args(["doctor", "--json"]).env("EVA_CACHE_DIR", folder.path());
    let ran = finish(command, "");
    let report: Value = serde_json::from_str(&ran.out).unwrap();
    let cuda = &report["cuda"];
    assert_eq!(cuda["built_in"], json!(cfg!(feature = "cuda")));
    let usable = cuda["gpus"].as_array().unwrap().iter().filter(|gpu| gpu["usable"] == json!(true)).count();
    assert_eq!(report["self_tests"].as_array().unwrap().len(), 1 + usable, "{report:#}");
    assert_eq!(cuda["problem"].is_null(), usable > 0, "{report:#}");
    if !cfg!(feature = "cuda") {
        let problem = cuda["problem"].as_str().unwrap();
        assert!(problem.contains("built without CUDA") && problem.contains("--features cuda"), "{problem}");
        assert_eq!(cuda["cache"], Value::Null);
    } else {
        assert_eq!(cuda["cache"]["folder"], json!(folder.path().join("kernels").to_str().unwrap()));
        assert_eq!(cuda["cache"]["files"], json!(0));
    }
}
