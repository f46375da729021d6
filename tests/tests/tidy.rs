//! What the repository promises about itself: files in order, documents that agree with the code.

use eva_ir::ops::OpKind;
use eva_ir::text::parse;
use eva_ir::verify::verify;
use std::fs;
use std::path::{Path, PathBuf};

/// The most lines of a file of Rust.
const LONGEST: usize = 500;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// Every file below `folder` with this ending, as its path from the root and its text; build output aside.
fn files(folder: &str, ending: &str) -> Vec<(String, String)> {
    fn visit(folder: &Path, ending: &str, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())) {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() && !name.starts_with('.') && name != "target" {
                visit(&path, ending, found);
            } else if path.is_file() && name.ends_with(ending) {
                found.push(path);
            }
        }
    }
    let mut paths = Vec::new();
    visit(&root().join(folder), ending, &mut paths);
    paths.sort();
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        (path.strip_prefix(root()).unwrap().display().to_string(), text)
    };
    paths.into_iter().map(read).collect()
}

/// Fails with all of `wrong` at once.
fn none(wrong: Vec<String>) {
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn every_op_has_a_file_a_case_and_a_line_in_the_language() {
    let cases = files("tests/cases", ".eva");
    let language = read("docs/language.md");
    let mut wrong = Vec::new();
    for name in OpKind::ALL.iter().map(|op| op.name()) {
        if !root().join(format!("ir/src/ops/{name}.rs")).is_file() {
            wrong.push(format!("`{name}` has no file ir/src/ops/{name}.rs"));
        }
        // Cases of what is wrong do not count.
        let mut uses = cases.iter().filter(|(path, _)| !path.contains("verify"));
        if !uses
            .any(|(_, text)| text.split_whitespace().collect::<Vec<_>>().windows(2).any(|w| w == ["=", name]))
        {
            wrong.push(format!("`{name}` is in no file of tests/cases/run or tests/cases/text"));
        }
        if !language.contains(&format!("\n| `{name}` |")) {
            wrong.push(format!("`{name}` is not in the tables of docs/language.md"));
        }
    }
    none(wrong);
}

#[test]
fn the_example_of_the_language_is_well_formed() {
    let language = read("docs/language.md");
    let example = language.split("```text\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let module = parse(example).unwrap_or_else(|diags| panic!("{diags}"));
    verify(&module).unwrap_or_else(|diags| panic!("{diags}"));
    assert!(!module.funcs.is_empty());
}

#[test]
fn files_of_rust_say_what_they_are_and_end() {
    let files = files(".", ".rs");
    assert!(files.len() > 100, "they are found");
    let mut wrong = Vec::new();
    // Not written out, so as not to find themselves.
    let unfinished =
        [["TO", "DO"].concat(), ["FIX", "ME"].concat(), ["todo", "!("].concat(), ["#[", "ignore"].concat()];
    for (path, text) in &files {
        let lines = text.lines().count();
        if lines > LONGEST {
            wrong.push(format!("{path} has {lines} lines, over {LONGEST}"));
        }
        if !text.starts_with("//!") {
            wrong.push(format!("{path} does not begin with `//!`"));
        }
        for (line, mark) in text.lines().flat_map(|line| unfinished.iter().map(move |mark| (line, mark))) {
            if line.contains(mark.as_str()) {
                wrong.push(format!("{path}: `{}`", line.trim()));
            }
        }
    }
    none(wrong);
}

#[test]
fn the_architecture_names_every_crate_and_every_variable() {
    let text = read("ARCHITECTURE.md");
    let mut wrong = Vec::new();
    let manifests = files(".", "Cargo.toml");
    let names = manifests.iter().filter(|(path, _)| !path.contains("fuzz")).filter_map(|(_, manifest)| {
        manifest.lines().find_map(|line| line.strip_prefix("name = \"")?.strip_suffix('"')).map(str::to_owned)
    });
    let names: Vec<String> = names.collect();
    assert!(names.len() >= 8, "they are found: {names:?}");
    for name in names {
        if !text.contains(&format!("`{name}`")) {
            wrong.push(format!("ARCHITECTURE.md does not name `{name}`"));
        }
    }
    for (path, source) in files(".", ".rs").iter().filter(|(path, _)| path.contains("/src/")) {
        for (at, _) in source.match_indices("env::var") {
            let name = source[at..].split_once("(\"").and_then(|(call, rest)| {
                let literal = !call.contains('\n') && call.len() < 16;
                literal.then(|| rest.split('"').next().unwrap_or(""))
            });
            match name {
                Some(name) if text.contains(&format!("| `{name}` |")) => {}
                Some(name) => {
                    wrong.push(format!("{path} reads {name}, which is not in ARCHITECTURE.md's table"))
                }
                None => {}
            }
        }
    }
    none(wrong);
}

#[test]
fn the_readme_shows_the_example_as_it_is() {
    let readme = read("README.md");
    let shown = readme.split("```rust\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let example = read("examples/src/bin/own_block.rs");
    let region =
        example.split("// README: begin\n").nth(1).and_then(|rest| rest.split("// README: end").next());
    assert_eq!(shown, region.expect("the example marks what README.md shows"));
    assert!(shown.lines().count() >= 20, "it is a whole example");
}

#[test]
fn continuous_integration_runs_the_readmes_tests_last() {
    let readme = read("README.md");
    let command = readme.lines().find(|line| line.starts_with("cargo test")).expect("README.md says how");
    let ci = read(".ci/run");
    assert_eq!(ci.lines().rfind(|line| !line.trim().is_empty()), Some(command));
}

#[test]
fn documents_link_to_files_that_are_there() {
    let mut wrong = Vec::new();
    for (path, text) in files(".", ".md") {
        let folder = root().join(&path);
        let folder = folder.parent().unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = link.split('#').next().unwrap_or("");
            if !file.is_empty() && !file.contains("://") && !folder.join(file).exists() {
                wrong.push(format!("{path} links to {link}, which is not there"));
            }
        }
    }
    none(wrong);
}
