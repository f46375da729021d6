//! `eva explain`: what is decided, and why.

use crate::support::{fixture, output, refusal};
use serde_json::Value;

fn case(name: &str) -> String {
    format!("{}/../tests/cases/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn json(args: &[&str]) -> Value {
    serde_json::from_str(&output(&[&["explain"], args, &["--json"]].concat())).unwrap()
}

/// The extents at which expanding takes as much arithmetic as absorbing, for keys (n) and values (v).
#[test]
fn crossovers_are_where_arithmetic_says() {
    let path = case("run/mla.eva");
    let source = std::fs::read_to_string(&path).unwrap();
    for (c, n, v) in [(512.0, 128.0, 128.0), (320.0, 96.0, 144.0)] {
        let set = [("c = 11", c), ("n = 7", n), ("v = 9", v), ("r = 13", 1536.0), ("m = 19", 7168.0)];
        let text = set.iter().fold(source.clone(), |text, (from, to)| {
            text.replace(&format!("dim {from}"), &format!("dim {} = {to}", &from[..1]))
        });
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("block.eva");
        std::fs::write(&file, text).unwrap();
        for cached in [128.0, 700.0, 4096.0, 32768.0] {
            let want = |n: f64| cached * c * n / (c * n + cached * (c - n));
            let answer = json(&[
                file.to_str().unwrap(),
                "--cost",
                "flops",
                "--cached",
                &format!("{cached}"),
                "--new",
                "1",
            ]);
            for (side, n) in [("key", n), ("value", v)] {
                let have = answer["crossover_new_tokens"][side].as_f64().unwrap();
                assert!((have - want(n)).abs() <= 1.0, "{side} at {cached}: {have}, not {}", want(n));
            }
            assert_eq!(
                (&answer["key_form"], &answer["value_form"]),
                (&"absorbed".into(), &"absorbed".into())
            );
        }
    }
}

#[test]
fn models_are_explained() {
    let dir = fixture("v3-tiny");
    let answer = json(&[dir.to_str().unwrap(), "--target", "h100"]);
    assert_eq!(answer["cache_layout"], "latent");
    assert_eq!(answer["cache_bytes_per_token_per_layer"], 192);
    assert!(
        answer["cost"]["flops"].as_f64().unwrap() > 0.0 && answer["egraph"]["nodes"].as_u64().unwrap() > 50
    );
    let dir = dir.to_str().unwrap();
    let message = refusal(2, &["explain", dir, "--new", "5", "--cached", "4"]);
    assert!(message.contains("the new tokens are attended to, too"), "{message}");
    let message = refusal(2, &["explain", dir, "--why-not", "absorb"]);
    assert!(message.contains("there is no rule `absorb`; rules are mla_absorb_key"), "{message}");
}

/// The form of attention of a training step, in both directions.
#[test]
fn forms_of_training_are_explained() {
    let dir = tempfile::tempdir().unwrap();
    let file = |latent: usize| {
        let path = dir.path().join(format!("{latent}.json"));
        let text = std::fs::read_to_string(fixture("v3-tiny").join("config.json")).unwrap();
        let text = text.replace("\"kv_lora_rank\": 32", &format!("\"kv_lora_rank\": {latent}"));
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_string()
    };
    let ask = |latent: usize, more: &[&str]| {
        json(&[&[&file(latent)[..], "--memory", "--batch", "2", "--new", "600"], more].concat())
    };
    let sides = |answer: &Value| {
        let forms = answer["forms"].as_array().unwrap();
        assert!(forms.len() == 2 && forms.iter().all(|form| form["chosen"] == forms[0]["chosen"]));
        let chosen = &forms[0]["candidates"][forms[0]["chosen"].as_u64().unwrap() as usize];
        [&chosen["forward"], &chosen["backward"]].map(|sides| sides["key"].as_str().unwrap().to_string())
    };
    assert_eq!(sides(&ask(8, &[])), ["absorbed", "absorbed"]);
    assert_eq!(sides(&ask(96, &[])), ["expanded", "expanded"]);
    assert_eq!(sides(&ask(96, &["--form", "absorbed"])), ["absorbed", "absorbed"]);
    assert!(ask(8, &["--form", "expanded"])["forms"].as_array().unwrap().is_empty());
    for (latent, more) in [(8, &[][..]), (96, &[]), (96, &["--form", "absorbed"])] {
        let path = file(latent);
        let args = [&["explain", &path, "--memory", "--batch", "2", "--new", "600"], more].concat();
        let text = output(&args);
        let from = text.find("Attention of").unwrap();
        let about = &text[from..from + text[from..].find("\n\n").unwrap()];
        insta::assert_snapshot!(format!("forms_of_training_{latent}{}", more.join("_")), about);
    }
}

/// What a training step takes, as fast as can be and within a budget; what does not fit is refused.
#[test]
fn memory_of_training_is_planned() {
    let model = fixture("v3-tiny");
    let model = model.to_str().unwrap();
    let ask = |more: &[&str]| json(&[&[model, "--memory", "--batch", "2", "--new", "48"], more].concat());
    let fast = ask(&[]);
    let peak = fast["peak"].as_u64().unwrap();
    let kept = |answer: &Value| -> u64 {
        let functions = answer["functions"].as_array().unwrap();
        let all = functions.iter().flat_map(|f| f["kept"].as_array().unwrap());
        all.map(|kept| kept["bytes"].as_u64().unwrap()).sum()
    };
    assert!(kept(&fast) > 0 && peak > kept(&fast));
    let budget = (peak * 9 / 10).to_string();
    let small = ask(&["--budget", &budget]);
    assert!(small["peak"].as_u64().unwrap() <= peak * 9 / 10);
    assert!(kept(&small) < kept(&fast));
    assert!(kept(&ask(&["--store", "bf16"])) < kept(&fast));
    let refused = refusal(1, &["explain", model, "--memory", "--budget", "3kB"]);
    assert!(refused.contains("a step takes") && refused.contains("3000"), "{refused}");
    assert!(refusal(2, &["explain", model, "--memory", "--budget", "3 parsecs"]).contains("no unit"));
    for more in [&["--tf32"][..], &["--fp8", "deepseek-v3"]] {
        let args = [&["explain", model, "--memory", "--target", "cuda"], more].concat();
        assert!(refusal(2, &args).contains(&format!("without {}", more[0])));
    }
}
