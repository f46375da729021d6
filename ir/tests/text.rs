//! The text form: what is printed reads back, and what cannot be read is explained.

use eva_ir::text::{parse, print};
use eva_ir::verify::verify;
use std::fs;
use std::path::PathBuf;

/// Each case prints back exactly as it is written, and is well-formed.
///
/// With `EVA_BLESS=1` the cases are rewritten as they print.
#[test]
fn cases_print_back() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/cases/text");
    let mut seen = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        let module = parse(&text).unwrap_or_else(|diags| panic!("{}:\n{diags}", path.display()));
        verify(&module).unwrap_or_else(|diags| panic!("{}:\n{diags}", path.display()));
        let printed = print(&module);
        if std::env::var_os("EVA_BLESS").is_some() {
            fs::write(&path, &printed).unwrap();
        } else {
            assert_eq!(printed, text, "{} prints otherwise", path.display());
        }
        assert_eq!(print(&parse(&printed).unwrap()), printed);
        seen += 1;
    }
    assert!(seen >= 5, "there are cases");
}
