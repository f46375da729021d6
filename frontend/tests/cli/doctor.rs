//! `eva doctor`.

use super::support::{command, finish, output};
use serde_json::{Value, json};

#[test]
fn this_machine_can_compile() {
    let text = output(&["doctor"]);
    assert!(text.contains("self-test     ok"), "{text}");
    assert!(text.contains("cranelift     built in"), "{text}");
    assert!(text.contains("cuda          not built in"), "{text}");
    let report: Value = serde_json::from_str(&output(&["doctor", "--json"])).unwrap();
    assert_eq!(report["self_test"], json!({"ok": true, "error": null}));
    assert_eq!(report["version"], json!(env!("CARGO_PKG_VERSION")));
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
    let llvm = &report["tools"][0];
    assert_eq!((&llvm["name"], &llvm["found"]), (&json!("LLVM"), &Value::Null));
    assert!(llvm["get"].as_str().unwrap().contains("https://"));
}
