//! Every function of every file in `cases/run`, by the evaluator, both interpreters and machine code.
//!
//! A file says in comments what it runs with: `// sizes: b=3 s=5` (once for each run) and, for parameters of integers,
//! `// ints: start = 4 0 2`. Floats are random.

use eva_ir::text::parse;
use eva_ir::verify::verify;
use eva_tests::check_chain;
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

/// What follows `// name:` on the lines that start so.
fn said<'a>(text: &'a str, name: &str) -> Vec<&'a str> {
    let start = format!("// {name}:");
    text.lines().filter_map(|line| line.strip_prefix(start.as_str())).map(str::trim).collect()
}

fn run(path: &Path) {
    let text = fs::read_to_string(path).unwrap();
    let module = parse(&text).unwrap_or_else(|diags| panic!("{}:\n{diags}", path.display()));
    verify(&module).unwrap_or_else(|diags| panic!("{}:\n{diags}", path.display()));
    let ints = said(&text, "ints").into_iter().map(|line| {
        let (name, numbers) = line.split_once('=').expect("`name = numbers`");
        (name.trim(), numbers.split_whitespace().map(|n| n.parse().expect("an integer")).collect())
    });
    let ints: HashMap<&str, Vec<i64>> = ints.collect();
    let runs = said(&text, "sizes");
    assert!(!runs.is_empty(), "{} does not say its sizes", path.display());
    for (seed, line) in runs.into_iter().enumerate() {
        let size = |pair: &'_ str| {
            let (name, n) = pair.split_once('=').expect("`name=n`");
            (name.to_string(), n.parse::<i64>().expect("an integer"))
        };
        let sizes: Vec<(String, i64)> = line.split_whitespace().map(size).collect();
        let sizes: Vec<(&str, i64)> = sizes.iter().map(|(name, n)| (name.as_str(), *n)).collect();
        for func in module.funcs.keys() {
            println!("{} @{} with {line}", path.display(), module.funcs[func].name);
            check_chain(&module, func, &sizes, &ints, seed as u64);
        }
    }
}

#[test]
fn cases_run_as_they_mean() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("cases/run");
    let mut paths: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(paths.len() >= 4, "there are cases");
    paths.iter().for_each(|path| run(path));
}
