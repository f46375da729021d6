//! The `.eva` parser takes any text; what it takes prints back to the same module, and the verifier takes any of it.
#![no_main]

use eva_ir::text::{parse, print};
use eva_ir::verify::verify;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    match parse(text) {
        Ok(module) => {
            let printed = print(&module);
            let again =
                parse(&printed).unwrap_or_else(|diags| panic!("{diags}\nin its own print:\n{printed}"));
            assert_eq!(print(&again), printed);
            let (first, second) = (verify(&module).is_ok(), verify(&again).is_ok());
            assert_eq!(first, second, "the copy is as well-formed as the original");
        }
        Err(diags) => {
            assert!(!diags.0.is_empty(), "a refusal says why");
            // Every message can be written.
            let _ = diags.to_string();
        }
    }
});
