//! The index of a sharded checkpoint may hold anything.
#![no_main]

use eva_runtime::checkpoint::parse_index;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Err(message) = parse_index(bytes) {
        assert!(!message.is_empty() && message.len() < 10_000, "a refusal says why, briefly");
    }
});
