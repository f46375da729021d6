//! The header of a safetensors file may promise anything; what is taken lies inside the file, without gaps.
#![no_main]

use eva_runtime::checkpoint::parse_header;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u16, &[u8])| {
    // The file may be longer than what was read of it, or cut short.
    let (length, bytes) = input;
    for file_len in [bytes.len() as u64, u64::from(length)] {
        match parse_header(bytes, file_len) {
            Ok(header) => {
                let mut end = None;
                for tensor in &header.tensors {
                    assert!(tensor.range.start <= tensor.range.end && tensor.range.end as u64 <= file_len);
                    assert_eq!(tensor.dtype.bytes_of(&tensor.shape), Some(tensor.range.len() as u64));
                    assert_eq!(
                        *end.get_or_insert(tensor.range.start),
                        tensor.range.start,
                        "no gap, no overlap"
                    );
                    end = Some(tensor.range.end);
                }
            }
            Err(error) => assert!(error.to_string().len() < 100_000, "a message stays readable"),
        }
    }
});
