//! Text to tokens and back with a small byte-level tokenizer, and what is said when there is none.

use std::fs;
use std::path::Path;

use eva::tokenizer::Tokenizer;
use proptest::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;

/// The character that stands for a byte in byte-level vocabularies.
fn character(byte: u8) -> char {
    let shown = |b: u32| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let b = u32::from(byte);
    let code = if shown(b) { b } else { 256 + (0..b).filter(|&c| !shown(c)).count() as u32 };
    char::from_u32(code).unwrap()
}

/// A tokenizer of the 256 bytes (their ids are their values), the merges `he` (256), `ll` (257), ` w` (258), and the
/// special token `<s>` (259).
fn bytes_and_merges() -> Value {
    let mut vocab = serde_json::Map::new();
    for byte in 0..=255u8 {
        vocab.insert(character(byte).to_string(), json!(byte));
    }
    let space = character(b' ');
    vocab.insert("he".into(), json!(256));
    vocab.insert("ll".into(), json!(257));
    vocab.insert(format!("{space}w"), json!(258));
    json!({
        "version": "1.0",
        "added_tokens": [{"id": 259, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true}],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "vocab": vocab, "merges": [["h", "e"], ["l", "l"], [space.to_string(), "w"]],
            "dropout": null, "unk_token": null, "fuse_unk": false, "byte_fallback": false}
    })
}

fn directory(tokenizer: &Value) -> TempDir {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    dir
}

fn tokenizer() -> Tokenizer {
    Tokenizer::load(directory(&bytes_and_merges()).path(), 288).unwrap()
}

fn refusal(dir: &Path, vocab: usize) -> String {
    Tokenizer::load(dir, vocab).unwrap_err().to_string().replace(dir.to_str().unwrap(), "DIR")
}

#[test]
fn there_and_back() {
    let tokenizer = tokenizer();
    let ids = tokenizer.encode("hello world").unwrap();
    assert_eq!(ids, [256, 257, 111, 258, 111, 114, 108, 100]);
    assert_eq!(tokenizer.decode(&ids).unwrap(), "hello world");
    assert!(tokenizer.encode("").unwrap().is_empty());
    assert_eq!(tokenizer.encode("é").unwrap(), [0xc3, 0xa9]);
    assert_eq!(tokenizer.encode("<s>h").unwrap(), [259, 104]);
    // Special tokens and ids without a token have no text.
    assert_eq!(tokenizer.decode(&[259, 104, 287, 105]).unwrap(), "hi");
    assert_eq!((tokenizer.id("<s>"), tokenizer.id("<t>")), (Some(259), None));
}

#[test]
fn texts_begin_with_a_token_if_the_settings_say_so() {
    let dir = directory(&bytes_and_merges());
    let with = |settings: Value| {
        fs::write(dir.path().join("tokenizer_config.json"), settings.to_string()).unwrap();
        Tokenizer::load(dir.path(), 260)
    };
    let encode = |settings| with(settings).unwrap().encode("hi").unwrap();
    assert_eq!(encode(json!({"add_bos_token": true, "bos_token": "<s>"})), [259, 104, 105]);
    assert_eq!(encode(json!({"add_bos_token": true, "bos_token": {"content": "<s>"}})), [259, 104, 105]);
    assert_eq!(encode(json!({"add_bos_token": false, "bos_token": "<s>"})), [104, 105]);
    assert_eq!(encode(json!({})), [104, 105]);
    let twice = with(json!({"add_bos_token": true, "bos_token": "<s>"})).unwrap();
    assert_eq!(twice.encode("<s>hi").unwrap(), [259, 104, 105]);
    let message = |settings| {
        let message = with(settings).unwrap_err().to_string();
        message.replace(dir.path().to_str().unwrap(), "DIR")
    };
    let advice = "copy the model's file again, or give the prompt with --tokens";
    assert_eq!(
        message(json!({"add_bos_token": true})),
        format!(
            "DIR/tokenizer_config.json: not a tokenizer: add_bos_token is true, but bos_token does not say which token; {advice}"
        )
    );
    assert_eq!(
        message(json!({"add_bos_token": true, "bos_token": "<t>"})),
        format!(
            "DIR/tokenizer_config.json: not a tokenizer: its bos_token `<t>` is not in tokenizer.json; {advice}"
        )
    );
}

#[test]
fn streams_whole_characters() {
    let tokenizer = tokenizer();
    let mut stream = tokenizer.stream();
    let mut push = |id: u32| stream.push(id).unwrap();
    assert_eq!([push(256), push(257), push(111)], ["he", "ll", "o"]);
    assert_eq!([push(0xc3), push(0xa9)], ["", "é"]);
    assert_eq!([push(0xf0), push(0x9f), push(0xa6), push(0x80), push(33)], ["", "", "", "🦀", "!"]);
    assert_eq!([push(259), push(287)], ["", ""]);
    // A byte that begins nothing is certain once three more have come.
    assert_eq!([push(0xff), push(0xff), push(0xff), push(0xff)], ["", "", "", "\u{fffd}"]);
    assert_eq!(push(104), "\u{fffd}\u{fffd}\u{fffd}h");
    assert_eq!([push(0xe2), push(0x82)], ["", ""]);
    assert_eq!(stream.finish().unwrap(), "\u{fffd}");
}

#[test]
fn what_is_wrong_is_said() {
    let empty = TempDir::new().unwrap();
    assert_eq!(
        refusal(empty.path(), 288),
        "DIR/tokenizer.json: no tokenizer there; give the prompt as token ids with --tokens, \
         or copy the model's tokenizer.json"
    );
    let dir = directory(&bytes_and_merges());
    assert_eq!(
        refusal(dir.path(), 259),
        "DIR/tokenizer.json: has token ids up to 259, but the model's vocab_size is 259; \
         the tokenizer and the model do not belong together"
    );
    Tokenizer::load(dir.path(), 260).unwrap();
    fs::write(dir.path().join("tokenizer.json"), "{\"model\"").unwrap();
    assert_eq!(
        refusal(dir.path(), 288),
        "DIR/tokenizer.json: not a tokenizer: EOF while parsing an object at line 1 column 8; \
         copy the model's file again, or give the prompt with --tokens"
    );
    let mut none = bytes_and_merges();
    none["model"]["vocab"] = json!({});
    none["model"]["merges"] = json!([]);
    none["added_tokens"] = json!([]);
    let dir = directory(&none);
    assert_eq!(
        refusal(dir.path(), 288),
        "DIR/tokenizer.json: not a tokenizer: it has no tokens; \
         copy the model's file again, or give the prompt with --tokens"
    );
}

proptest! {
    /// The pieces of a stream are the text of all tokens, whatever the tokens are.
    #[test]
    fn pieces_make_the_whole(ids in prop::collection::vec(0u32..260, 0..40)) {
        let tokenizer = tokenizer();
        let mut stream = tokenizer.stream();
        let mut text = String::new();
        for &id in &ids {
            text += &stream.push(id).unwrap();
        }
        text += &stream.finish().unwrap();
        prop_assert_eq!(text, tokenizer.decode(&ids).unwrap());
    }

    /// Texts come back as they were, also through a stream.
    #[test]
    fn texts_come_back(text in "\\PC{0,30}") {
        let tokenizer = tokenizer();
        let ids = tokenizer.encode(&text).unwrap();
        prop_assert_eq!(tokenizer.decode(&ids).unwrap(), text);
    }
}
