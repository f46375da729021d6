//! What is wrong with a module is found, and shown on the line that is wrong.

use eva_ir::diag::{Diag, Loc};
use eva_ir::text::parse;
use eva_ir::verify::verify;
use std::fs;
use std::path::PathBuf;

/// The line of the first byte that `diag` points at, from 1.
fn line(text: &str, diag: &Diag) -> usize {
    match diag.labels.first() {
        Some((Loc::Text { start, .. }, _)) => text[..*start].matches('\n').count() + 1,
        other => panic!("`{diag}` points at {other:?}"),
    }
}

/// In each case, exactly the mistakes that its comments announce are found, on their lines.
///
/// A line `… // error: text` has one mistake whose message contains the text, or several such comments.
#[test]
fn cases_have_the_errors_they_say() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/cases/verify");
    let mut wrong = String::new();
    let mut seen = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        let announced = (1..).zip(text.lines()).flat_map(|(i, line)| {
            let parts = line.split("// error: ").skip(1);
            parts.map(move |part| (i, part.trim()))
        });
        let mut missing: Vec<(usize, &str)> = announced.collect();
        let diags =
            parse(&text).and_then(|module| verify(&module)).map_or_else(|diags| diags.0, |()| Vec::new());
        for diag in &diags {
            let line = line(&text, diag);
            match missing.iter().position(|(i, part)| *i == line && diag.message.contains(part)) {
                Some(i) => drop(missing.remove(i)),
                None => wrong += &format!("{}:{line}: not announced: {diag}\n", path.display()),
            }
        }
        for (line, part) in missing {
            wrong += &format!("{}:{line}: not found: {part}\n", path.display());
        }
        seen += 1;
    }
    assert!(wrong.is_empty(), "\n{wrong}");
    assert!(seen >= 10, "there are cases");
}
