//! `eva generate`.

use super::support::{command, config, eva, finish, fixture, output, path, refusal};
use eva_runtime::checkpoint::Checkpoint;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use tempfile::TempDir;

/// The recorded prompt, and the tokens recorded after it.
fn recorded(model: &str) -> (String, String) {
    let file = Checkpoint::open(&fixture(model).join("expected.safetensors")).unwrap();
    let ids = |name: &str| -> Vec<String> {
        let (numbers, rest) = file.get(name).unwrap().bytes.as_chunks::<8>();
        assert!(rest.is_empty());
        numbers.iter().map(|bytes| i64::from_le_bytes(*bytes).to_string()).collect()
    };
    let (prompt, all) = (ids("gen.prompt"), ids("gen.tokens"));
    assert_eq!(all[..prompt.len()], prompt);
    (prompt.join(","), all[prompt.len()..].join(","))
}

/// The options that make the recorded tokens.
fn as_recorded<'a>(model: &'a Path, prompt: &'a str) -> Vec<&'a str> {
    vec!["generate", model.to_str().unwrap(), "--tokens", prompt, "--max-new-tokens", "24"]
}

#[test]
fn the_recorded_tokens_come_out_in_every_form() {
    for (model, forms) in
        [("v3-tiny", &["auto", "absorbed", "expanded"] as &[_]), ("v2-lite-tiny", &["auto"])]
    {
        let (prompt, expected) = recorded(model);
        assert_eq!(expected.split(',').count(), 24);
        for form in forms {
            let dir = fixture(model);
            let mut args = as_recorded(&dir, &prompt);
            args.extend(["--form", form]);
            assert_eq!(output(&args), format!("{expected}\n"), "{model}, {form}");
        }
        let dir = fixture(model);
        let exact = [as_recorded(&dir, &prompt), vec!["--numerics", "exact"]].concat();
        assert_eq!(output(&exact), format!("{expected}\n"), "{model}");
    }
}

#[test]
fn verbose_says_that_one_compile_serves_every_length() {
    let (prompt, expected) = recorded("v2-lite-tiny");
    let dir = fixture("v2-lite-tiny");
    let mut args = as_recorded(&dir, &prompt);
    args.extend(["--verbose", "--threads", "3"]);
    let ran = eva(&args);
    assert_eq!((ran.code, ran.out), (Some(0), format!("{expected}\n")));
    let line = |name: &str| {
        let line = ran.err.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("no {name} in {}", ran.err)).trim()
    };
    assert_eq!(line("compilations"), "1 (one serves every length)");
    assert_eq!(line("runs on"), "cpu, 3 threads");
    // Three layers of 32 + 16 numbers of four bytes.
    assert!(line("cache").starts_with("576 bytes per token, 18.00 KiB for 32 tokens"), "{}", line("cache"));
    assert!(line("prefill").starts_with("8 tokens in ") && line("decode").starts_with("23 tokens in "));
    for name in ["compile time", "kernels", "weights", "arena"] {
        assert!(line(name).starts_with(|c: char| c.is_ascii_digit() && c != '0' || name == "compile time"));
    }
}

#[test]
fn json_has_tokens_and_measurements() {
    let (prompt, expected) = recorded("v3-tiny");
    let dir = fixture("v3-tiny");
    let mut args = as_recorded(&dir, &prompt);
    args.push("--json");
    let report: Value = serde_json::from_str(&output(&args)).unwrap();
    let ids = |text: &str| text.split(',').map(|id| json!(id.parse::<u32>().unwrap())).collect::<Vec<_>>();
    assert_eq!(report["prompt"], json!(ids(&prompt)));
    assert_eq!(report["tokens"], json!(ids(&expected)));
    assert_eq!((&report["text"], &report["finish"]), (&Value::Null, &json!("length")));
    assert_eq!((&report["compilations"], &report["cache_bytes_per_token"]), (&json!(1), &json!(576)));
    let arena = |phase: &str| report["arena_bytes"][phase].as_u64().unwrap();
    assert!(arena("prefill") > arena("decode") && arena("decode") > 0);
}

#[test]
fn a_token_that_ends_a_text_ends_it_unless_told_otherwise() {
    let (prompt, expected) = recorded("v3-tiny");
    let expected: Vec<&str> = expected.split(',').collect();
    let dir = TempDir::new().unwrap();
    let end: u32 = expected[4].parse().unwrap();
    let text = config("v3-tiny", &[("eos_token_id", json!([1, end]))]);
    fs::write(dir.path().join("config.json"), text).unwrap();
    fs::copy(fixture("v3-tiny/model.safetensors"), dir.path().join("model.safetensors")).unwrap();
    let mut args = as_recorded(dir.path(), &prompt);
    assert_eq!(output(&args), format!("{}\n", expected[..5].join(",")));
    args.push("--ignore-eos");
    assert_eq!(output(&args), format!("{}\n", expected.join(",")));
}

#[test]
fn a_seed_means_the_same_tokens_and_bf16_runs() {
    let dir = fixture("v2-lite-tiny");
    let sampled = |seed: &str, more: &[&str]| {
        let mut args = vec!["generate", dir.to_str().unwrap(), "--tokens", "5,250", "--max-new-tokens", "12"];
        args.extend(["--top-k", "40", "--top-p", "0.95", "--seed", seed]);
        args.extend(more);
        output(&args)
    };
    let first = sampled("7", &[]);
    assert_eq!(first.trim().split(',').count(), 12);
    assert_eq!(sampled("7", &["--threads", "1"]), first);
    assert_ne!(sampled("8", &["--dtype", "bf16"]), first);
}

/// The bytes as tokens, as in byte-level tokenizers: printable ones stand for themselves, others for what follows
/// U+0100.
fn byte_tokenizer() -> Value {
    let mut vocab = serde_json::Map::new();
    let mut next = 0x100;
    for byte in 0..=255u8 {
        let printable = matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
        let c = if printable { char::from(byte) } else { char::from_u32(next).unwrap() };
        next += u32::from(!printable);
        vocab.insert(c.to_string(), json!(byte));
    }
    json!({
        "version": "1.0",
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    })
}

#[test]
fn text_goes_through_the_tokenizer() {
    let dir = TempDir::new().unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(fixture("v2-lite-tiny").join(file), dir.path().join(file)).unwrap();
    }
    fs::write(dir.path().join("tokenizer.json"), byte_tokenizer().to_string()).unwrap();
    let args = ["generate", path(&dir), "--prompt", "Who's there?", "--max-new-tokens", "15"];
    let streamed = output(&args);
    let report: Value = serde_json::from_str(&output(&[&args[..], &["--json"]].concat())).unwrap();
    let prompt: Vec<u32> = "Who's there?".bytes().map(u32::from).collect();
    assert_eq!(report["prompt"], json!(prompt));
    let ids: Vec<String> = prompt.iter().map(u32::to_string).collect();
    let given = output(&["generate", path(&dir), "--tokens", &ids.join(","), "--max-new-tokens", "15"]);
    let tokens: Vec<u64> = given.trim().split(',').map(|id| id.parse().unwrap()).collect();
    assert_eq!(report["tokens"], json!(tokens));
    // Ids above 255 have no text.
    let bytes: Vec<u8> = tokens.iter().filter_map(|&id| u8::try_from(id).ok()).collect();
    let text = String::from_utf8_lossy(&bytes).into_owned();
    assert!(!text.is_empty());
    assert_eq!(report["text"], json!(text));
    assert_eq!(streamed, format!("{text}\n"));
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let mut command = command();
    let dir = fixture("v3-tiny");
    let mut child = command
        .args(["print", dir.to_str().unwrap()])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), b"".as_slice()));
}

#[test]
fn threads_come_from_the_environment() {
    let mut command = command();
    let dir = fixture("v2-lite-tiny");
    command.env("EVA_THREADS", "2");
    command.args(["-v", "generate", dir.to_str().unwrap(), "--tokens", "3", "--max-new-tokens", "1"]);
    let ran = finish(command, "");
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert!(ran.err.contains("runs on       cpu, 2 threads\n"), "{}", ran.err);
}

#[test]
fn command_lines_without_sense_have_their_own_exit_code() {
    let dir = fixture("v3-tiny");
    let dir = dir.to_str().unwrap();
    let run = |more: &[&str]| refusal(2, &[&["generate", dir], more].concat());
    assert!(run(&["--max-new-tokens", "3"]).contains("<--prompt <TEXT>|--tokens <IDS>>"));
    let both = run(&["--prompt", "a", "--tokens", "1", "--max-new-tokens", "3"]);
    assert!(both.contains("cannot be used with"), "{both}");
    let one = ["--tokens", "1", "--max-new-tokens", "3"];
    let with = |more: &[&str]| run(&[&one, more].concat());
    assert!(run(&["--tokens", "1,x", "--max-new-tokens", "3"]).contains("`x` is not a token id"));
    assert!(run(&["--tokens", "-1", "--max-new-tokens", "3"]).contains("`-1` is not a token id"));
    assert!(
        run(&["--tokens", "1", "--max-new-tokens", "0"]).contains("it must be a whole number, 1 or more")
    );
    assert!(with(&["--temperature", "-1"]).starts_with("error: temperature is -1; it must be"));
    assert!(with(&["--top-p", "1.5"]).starts_with("error: top-p is 1.5; it must be"));
    assert!(with(&["--threads", "0"]).contains("it must be a whole number, 1 or more"));
    assert!(with(&["--form", "folded"]).contains("[possible values: absorbed, expanded, written, auto]"));
}

#[test]
fn caches_of_every_layout_make_the_recorded_tokens() {
    let (prompt, expected) = recorded("v3-tiny");
    let dir = fixture("v3-tiny");
    for layout in
        [&["--cache", "expanded"][..], &["--page-size", "7"], &["--cache", "expanded", "--page-size", "16"]]
    {
        let mut args = as_recorded(&dir, &prompt);
        args.extend(layout);
        assert_eq!(output(&args), format!("{expected}\n"), "{layout:?}");
    }
}

#[test]
fn prompts_that_go_together_make_the_tokens_that_they_make_alone() {
    let dir = fixture("v3-tiny");
    let (prompt, expected) = recorded("v3-tiny");
    let other = format!("{prompt},3,1");
    let mut args = as_recorded(&dir, &other);
    let alone = output(&args);
    args.extend(["--tokens", &prompt, "--page-size", "16", "--json"]);
    let report: Value = serde_json::from_str(&output(&args)).unwrap();
    let line = |i: usize| {
        let tokens = report["sequences"][i]["tokens"].as_array().unwrap();
        tokens.iter().map(Value::to_string).collect::<Vec<_>>().join(",")
    };
    assert_eq!((line(0), line(1)), (alone.trim().to_string(), expected));
    let shared = prompt.split(',').count() - 1;
    assert_eq!(report["prompt_tokens_run"], json!(shared + 3));
    // Without pages they cannot; nor with too few.
    args.retain(|arg| !["--page-size", "16", "--json"].contains(arg));
    assert!(refusal(2, &args).contains("several prompts at once need caches in pages: give --page-size"));
    args.extend(["--page-size", "16", "--pages", "2"]);
    assert!(refusal(1, &args).contains("but of 2 only"));
}

#[test]
fn a_budget_is_kept_or_refused() {
    let (prompt, expected) = recorded("v2-lite-tiny");
    let dir = fixture("v2-lite-tiny");
    let mut args = as_recorded(&dir, &prompt);
    args.extend(["--kv-budget", "192"]);
    assert_eq!(output(&args), format!("{expected}\n"));
    *args.last_mut().unwrap() = "191";
    let text = refusal(1, &args);
    assert!(
        text.contains("eva::kv_budget") && text.contains("`%model.layers.0.self_attn.ckv` 128"),
        "{text}"
    );
}

/// The values that quantizing changed most, for people and as JSON.
#[test]
fn what_quantizing_changed_is_said() {
    let dir = fixture("v3-tiny");
    let model = dir.to_str().unwrap();
    let args = ["generate", model, "--tokens", "5,9,2,30", "--max-new-tokens", "3", "--fp8", "deepseek-v3"];
    let ran = eva(&[&args[..], &["--fp8-report"]].concat());
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert!(ran.err.contains("values were quantized; those that it changed most:"), "{}", ran.err);
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("report.json");
    output(&[&args[..], &["--fp8-report", file.to_str().unwrap()]].concat());
    let rows: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    let rows = rows.as_array().unwrap();
    let errors: Vec<f64> = rows.iter().map(|row| row["error"].as_f64().unwrap()).collect();
    assert!(errors.is_sorted_by(|a, b| a >= b), "{errors:?}");
    assert!(errors.iter().all(|&error| (1e-3..0.1).contains(&error)), "{errors:?}");
    let of_q = |row: &&Value| row["used_by"][0] == "model.layers.0.self_attn.q_a_proj.weight";
    let both: Vec<bool> = rows.iter().filter(of_q).map(|row| row["is_weight"].as_bool().unwrap()).collect();
    assert!(both.contains(&true) && both.contains(&false), "the weight, and what it is multiplied with");
    let row = rows.iter().filter(of_q).find(|row| row["is_weight"] == false).unwrap();
    assert_eq!(row["saturated"], json!(0.0));
    assert!(row["line"].as_str().unwrap().contains(".rs:"), "{row}");
    assert!(row["elements"].as_f64().unwrap() > 0.0 && row["amax"].as_f64().unwrap() > 0.0);
}
