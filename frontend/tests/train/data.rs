//! Data: the same order for the same seed, from anywhere; and files that are not data.

use eva::train::config::{DataConfig, DataKind, TokenType};
use eva::train::data::{Batches, Data, Fit, Plan, numbers};
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const VOCAB: usize = 300;

fn fit(cache: &Path) -> Fit<'_> {
    Fit { vocab: VOCAB, eos: Some(299), cache, seed: 4 }
}

fn file(dir: &TempDir, name: &str, bytes: &[u8]) -> PathBuf {
    let path = dir.path().join(name);
    fs::write(&path, bytes).unwrap();
    path
}

fn config(kind: DataKind, paths: &[&PathBuf], sequence: usize) -> DataConfig {
    let paths = paths.iter().map(|path| path.to_path_buf()).collect();
    DataConfig { kind, paths, sequence, holdout: 0.0, ..DataConfig::default() }
}

/// All sequences, tokens and labels.
fn all(config: &DataConfig, dir: &TempDir) -> Vec<(Vec<i64>, Vec<i64>)> {
    let data = Data::open(config, &fit(&dir.path().join("cache"))).unwrap_or_else(|e| panic!("{e}"));
    let mut found = Vec::new();
    for i in 0..data.train.sequences() {
        let (mut ids, mut labels) = (vec![0; config.sequence], vec![0; config.sequence]);
        data.train.read(i, &mut ids, &mut labels).unwrap();
        found.push((ids, labels));
    }
    found
}

fn error(config: &DataConfig, dir: &TempDir) -> String {
    let data = Data::open(config, &fit(&dir.path().join("cache")));
    let read = |data: Data| {
        let (mut ids, mut labels) = (vec![0; config.sequence], vec![0; config.sequence]);
        data.train.read(0, &mut ids, &mut labels).map(drop)
    };
    let error = data.and_then(read).expect_err("it is wrong").to_string();
    error.replace(dir.path().to_str().unwrap(), "DIR")
}

#[test]
fn texts_are_cut_to_sequences() {
    let dir = TempDir::new().unwrap();
    // Eight bytes are two sequences of three and one more token; five are one.
    let (a, b) = (file(&dir, "a", b"abcdefgh"), file(&dir, "b", b"vwxyz"));
    let found = all(&config(DataKind::Text, &[&a, &b], 3), &dir);
    let bytes = |text: &str| text.bytes().map(i64::from).collect::<Vec<_>>();
    let expected = [("abc", "bcd"), ("def", "efg"), ("vwx", "wxy")];
    assert_eq!(found, expected.map(|(ids, labels)| (bytes(ids), bytes(labels))));
}

#[test]
fn documents_end_with_a_separator() {
    let dir = TempDir::new().unwrap();
    let path = file(&dir, "d.jsonl", b"{\"text\": \"ab\"}\n\n{\"n\": 1, \"text\": \"\\u00e9\"}\n");
    let found = all(&config(DataKind::Jsonl, &[&path], 5), &dir);
    assert_eq!(found, [(vec![97, 98, 299, 0xc3, 0xa9], vec![98, 299, 0xc3, 0xa9, 299])]);
    let other = DataConfig { separator: Some(10), ..config(DataKind::Jsonl, &[&path], 2) };
    assert_eq!(all(&other, &dir)[0], (vec![97, 98], vec![98, 10]));
    // What is kept is found again, and what was changed is not.
    let cached = || fs::read_dir(dir.path().join("cache")).unwrap().count();
    assert_eq!(cached(), 2);
    all(&other, &dir);
    assert_eq!(cached(), 2);
    file(&dir, "d.jsonl", b"{\"text\": \"xyz\"}");
    assert_eq!(all(&other, &dir)[0], (vec![120, 121], vec![121, 122]));
}

#[test]
fn shards_have_two_or_four_bytes() {
    let dir = TempDir::new().unwrap();
    let tokens = [1u32, 256, 2, 299, 0];
    let two: Vec<u8> = tokens.iter().flat_map(|&t| (t as u16).to_le_bytes()).collect();
    let four: Vec<u8> = tokens.iter().flat_map(|t| t.to_le_bytes()).collect();
    let (two, four) = (file(&dir, "2", &two), file(&dir, "4", &four));
    let expected = [(vec![1, 256], vec![256, 2]), (vec![2, 299], vec![299, 0])];
    assert_eq!(all(&config(DataKind::Tokens, &[&two], 2), &dir), expected);
    let wide = DataConfig { token_type: TokenType::U32, ..config(DataKind::Tokens, &[&four], 2) };
    assert_eq!(all(&wide, &dir), expected);
}

#[test]
fn some_are_held_out() {
    let dir = TempDir::new().unwrap();
    let path = file(&dir, "a", &[7; 101]);
    let open = |holdout: f64, paths: Vec<PathBuf>| {
        let config = DataConfig { holdout, holdout_paths: paths, ..config(DataKind::Text, &[&path], 5) };
        let data = Data::open(&config, &fit(dir.path())).unwrap();
        (data.train.sequences(), data.held.map(|held| held.sequences()))
    };
    assert_eq!(open(0.0, vec![]), (20, None));
    assert_eq!(open(0.01, vec![]), (19, Some(1)));
    assert_eq!(open(0.33, vec![]), (13, Some(7)));
    assert_eq!(open(0.5, vec![file(&dir, "b", &[8; 16])]), (20, Some(3)));
}

#[test]
fn what_is_no_data_is_refused() {
    let dir = TempDir::new().unwrap();
    let text = |bytes: &[u8]| config(DataKind::Text, &[&file(&dir, "t", bytes)], 4);
    assert_eq!(error(&text(b"abcd"), &dir), "the data have 4 tokens: not one sequence of 4 and the next");
    assert_eq!(
        error(&DataConfig { holdout: 0.9, ..text(b"abcdefgh") }, &dir),
        "the data have 1 sequences, of which 1 are to be held out"
    );
    let gone = config(DataKind::Text, &[&dir.path().join("gone")], 4);
    assert!(error(&gone, &dir).starts_with("DIR/gone: cannot open it: "));
    let folder = config(DataKind::Text, &[&dir.path().to_path_buf()], 4);
    assert_eq!(error(&folder, &dir), "DIR: not a regular file");
    let tokens = config(DataKind::Tokens, &[&file(&dir, "s", b"12345")], 1);
    assert_eq!(error(&tokens, &dir), "DIR/s: its 5 bytes are no whole number of 2-byte tokens");
    let large = config(DataKind::Tokens, &[&file(&dir, "l", &[1, 0, 44, 1])], 1);
    assert_eq!(error(&large, &dir), "DIR/l: token 300 at 1 is not in the model's vocabulary of 300");
    let lines = |text: &[u8]| config(DataKind::Jsonl, &[&file(&dir, "j", text)], 1);
    assert_eq!(
        error(&lines(b"{\"text\": \"abc\"}\n{\"txt\": 1}"), &dir),
        "DIR/j, line 2: no text under `text`"
    );
    assert!(error(&lines(b"{text}"), &dir).starts_with("DIR/j, line 1: not JSON: "));
    let small = DataConfig { symbols: 299, ..config(DataKind::Copy, &[], 9) };
    assert_eq!(error(&small, &dir), "the task `copy` needs 301 tokens, and the model has 300");
}

#[test]
fn an_order_goes_on_from_anywhere() {
    let whole = numbers(10, 3, true, 0, 40);
    for epoch in whole.chunks(10) {
        let mut sorted = epoch.to_vec();
        sorted.sort_unstable();
        assert!(sorted.into_iter().eq(0..10), "{epoch:?}");
    }
    assert_ne!(whole[..10], whole[10..20]);
    assert_eq!(numbers(10, 3, true, 17, 23), whole[17..]);
    assert_ne!(numbers(10, 4, true, 0, 40), whole);
    assert_eq!(numbers(4, 3, false, 3, 6), [3, 0, 1, 2, 3, 0]);
}

#[test]
fn batches_go_on_from_anywhere() {
    let dir = TempDir::new().unwrap();
    let text: Vec<u8> = (0..=255).cycle().take(1000).collect();
    let config = config(DataKind::Text, &[&file(&dir, "a", &text)], 7);
    let data = Data::open(&config, &fit(dir.path())).unwrap();
    let plan = Plan { length: 7, batch: 3, accumulate: 2, shuffle: true, seed: 11 };
    let steps = |position: u64, n: usize| -> Vec<Vec<i64>> {
        let mut batches = Batches::from(data.train.clone(), plan, position);
        let step = |_| batches.step().unwrap();
        (0..n).flat_map(step).flat_map(|b| [b.ids.to_i64(), b.labels.to_i64()]).collect()
    };
    let all = steps(0, 30);
    assert_eq!(all.len(), 30 * 2 * 2);
    assert_eq!(steps(6 * 19, 11), all[19 * 4..]);
}
