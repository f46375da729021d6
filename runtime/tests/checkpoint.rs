//! Opening checkpoints, and everything that can be wrong with one; messages are compared whole.

use std::fs;
use std::path::{Path, PathBuf};

use eva_runtime::checkpoint::{Checkpoint, CheckpointDType, INDEX_FILE, SINGLE_FILE, parse_header};
use proptest::prelude::*;
use tempfile::TempDir;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures")
}

/// A file with this header and `data` bytes of data.
fn file(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend((0..data).map(|i| i as u8));
    bytes
}

/// A directory with these files.
fn directory(files: &[(&str, &[u8])]) -> TempDir {
    let dir = TempDir::new().unwrap();
    for (name, bytes) in files {
        fs::write(dir.path().join(name), bytes).unwrap();
    }
    dir
}

/// The message of opening `dir`, with the directory's path cut out.
fn refusal(dir: &TempDir) -> String {
    let message = Checkpoint::open(dir.path()).expect_err("this must not open").to_string();
    message.replace(dir.path().to_str().unwrap(), "DIR")
}

/// The message about a single file with these bytes.
fn refusal_of(bytes: &[u8]) -> String {
    let message = refusal(&directory(&[(SINGLE_FILE, bytes)]));
    message.strip_prefix("DIR/model.safetensors: ").expect("the message begins with the file").to_string()
}

fn entry(dtype: &str, shape: &str, start: u64, end: u64) -> String {
    format!(r#"{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{start},{end}]}}"#)
}

#[test]
fn reads_what_is_there() {
    let header = format!(
        r#"{{"__metadata__":{{"format":"pt"}},"b.w":{},"a":{},"s":{},"none":{}}}   "#,
        entry("BF16", "[3,1]", 8, 14),
        entry("F32", "[2]", 0, 8),
        entry("I64", "[]", 14, 22),
        entry("F16", "[7,0]", 22, 22)
    );
    let dir = directory(&[(SINGLE_FILE, &file(&header, 22))]);
    let whole = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(whole.names().collect::<Vec<_>>(), ["a", "b.w", "none", "s"]);
    assert_eq!((whole.len(), whole.total_bytes(), whole.is_empty()), (4, 22, false));
    assert_eq!(whole.metadata().get("format"), Some(&"pt"));
    let b = whole.get("b.w").unwrap();
    assert_eq!((b.name, b.dtype, b.shape), ("b.w", CheckpointDType::Bf16, &[3, 1][..]));
    assert_eq!(b.bytes, [8, 9, 10, 11, 12, 13]);
    assert_eq!(b.file, dir.path().join(SINGLE_FILE));
    assert_eq!(
        whole.get("s").unwrap().to_i64().unwrap(),
        [i64::from_le_bytes([14, 15, 16, 17, 18, 19, 20, 21])]
    );
    assert_eq!(whole.get("none").unwrap().elements(), 0);
    assert!(whole.get("c").is_none());
    let alone = Checkpoint::open(&dir.path().join(SINGLE_FILE)).unwrap();
    assert_eq!(alone.iter().map(|t| t.bytes.len()).collect::<Vec<_>>(), [8, 6, 0, 8]);
}

#[test]
fn converts_elements() {
    let values: Vec<u8> = [1.5f32, -0.25, 3.0e38].iter().flat_map(|v| v.to_le_bytes()).collect();
    let halves = [0x00, 0x3e, 0x00, 0xb4]; // 1.5 and -0.25 in f16
    let brains = [0xc0, 0x3f, 0x80, 0xbe]; // 1.5 and -0.25 in bf16
    let header = format!(
        r#"{{"f":{},"h":{},"b":{},"u":{}}}"#,
        entry("F32", "[3]", 0, 12),
        entry("F16", "[2]", 12, 16),
        entry("BF16", "[2]", 16, 20),
        entry("U8", "[1]", 20, 21)
    );
    let mut bytes = file(&header, 0);
    bytes.extend(values.iter().chain(&halves).chain(&brains).chain(&[200]));
    let dir = directory(&[(SINGLE_FILE, &bytes)]);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let f32s = |name| checkpoint.get(name).unwrap().to_f32();
    assert_eq!(f32s("f").unwrap(), [1.5, -0.25, 3.0e38]);
    assert_eq!(f32s("h").unwrap(), [1.5, -0.25]);
    assert_eq!(f32s("b").unwrap(), [1.5, -0.25]);
    assert_eq!(checkpoint.get("u").unwrap().to_i64().unwrap(), [200]);
    let name = dir.path().join(SINGLE_FILE);
    assert_eq!(
        f32s("u").unwrap_err().to_string(),
        format!("{}: tensor `u` is U8; expected F64, F32, BF16 or F16", name.display())
    );
    assert_eq!(
        checkpoint.get("f").unwrap().to_i64().unwrap_err().to_string(),
        format!(
            "{}: tensor `f` is F32; expected a signed integer of at most 64 bits or an unsigned one of at most 32",
            name.display()
        )
    );
}

#[test]
fn opens_the_fixtures() {
    let v3 = Checkpoint::open(&fixtures().join("v3-tiny")).unwrap();
    assert_eq!((v3.len(), v3.total_bytes()), (207, 2_098_624));
    let fp8 = Checkpoint::open(&fixtures().join("v3-tiny-fp8")).unwrap();
    assert_eq!((fp8.files().count(), fp8.total_bytes()), (2, 780_092));
    let q_a = fp8.get("model.layers.0.self_attn.q_a_proj.weight").unwrap();
    assert_eq!((q_a.dtype, q_a.shape), (CheckpointDType::F8E4M3, &[48, 144][..]));
    let by_index = Checkpoint::open(&fixtures().join("v3-tiny-fp8").join(INDEX_FILE)).unwrap();
    assert_eq!(by_index.names().count(), fp8.len());
}

#[cfg(target_os = "linux")]
#[test]
fn released_pages_leave_memory_and_come_back() {
    let bytes = 5_000_000u64;
    let header = format!(r#"{{"small":{},"big":{}}}"#, entry("U8", "[3]", 0, 3), {
        entry("U8", &format!("[{bytes}]"), 3, 3 + bytes)
    });
    let dir = directory(&[(SINGLE_FILE, &file(&header, bytes as usize + 3))]);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    // Resident kilobytes of this one map, as the system counts them.
    let resident = || {
        let path = dir.path().join(SINGLE_FILE);
        let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
        let mut lines = smaps.lines().skip_while(|l| !l.ends_with(path.to_str().unwrap()));
        let rss = lines.find_map(|l| l.strip_prefix("Rss:")).unwrap();
        rss.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    let sum = || checkpoint.get("big").unwrap().bytes.iter().map(|&b| u64::from(b)).sum::<u64>();
    let before = sum();
    assert!(resident() * 1000 > bytes * 9 / 10);
    let released = checkpoint.release("big") as u64;
    assert!(released > bytes - 200_000 && released <= bytes, "{released}");
    assert!(resident() * 1000 < bytes / 5, "{} kB are still resident", resident());
    assert_eq!(sum(), before);
    assert_eq!((checkpoint.release("small"), checkpoint.release("unknown")), (0, 0));
}

#[test]
fn nothing_to_open() {
    let dir = directory(&[]);
    let gone = Checkpoint::open(&dir.path().join("gone")).unwrap_err().to_string();
    assert_eq!(
        gone.replace(dir.path().to_str().unwrap(), "DIR"),
        "DIR/gone: no such file or directory; give the directory that holds model.safetensors or \
         model.safetensors.index.json"
    );
    assert_eq!(
        refusal(&dir),
        "DIR: no checkpoint in this directory: neither model.safetensors nor model.safetensors.index.json is there; \
         give the directory that holds the model's weights"
    );
    let dir = directory(&[("weights.safetensors", &file("{}", 0)), ("a.safetensors", b"")]);
    assert_eq!(
        refusal(&dir),
        "DIR: no checkpoint in this directory: neither model.safetensors nor model.safetensors.index.json is there; \
         it does hold `a.safetensors`, `weights.safetensors`: give that file's path, or rename it"
    );
    let dir = directory(&[]);
    fs::create_dir(dir.path().join(SINGLE_FILE)).unwrap();
    assert_eq!(
        refusal(&dir),
        "DIR/model.safetensors: not a regular file; give a .safetensors file or the directory that holds it"
    );
}

#[cfg(unix)]
#[test]
fn a_pipe_is_refused_and_not_waited_for() {
    let dir = directory(&[]);
    let path = std::ffi::CString::new(dir.path().join(SINGLE_FILE).to_str().unwrap()).unwrap();
    // SAFETY: the path is a valid C string.
    assert_eq!(unsafe { libc::mkfifo(path.as_ptr(), 0o600) }, 0);
    assert_eq!(
        refusal(&dir),
        "DIR/model.safetensors: not a regular file; give a .safetensors file or the directory that holds it"
    );
}

#[test]
fn files_cut_short() {
    assert_eq!(refusal_of(b""), "the file is empty; copy or download it again");
    assert_eq!(
        refusal_of(b"\x10\0\0"),
        "the file has 3 bytes, too few for the 8 bytes that begin a safetensors file; copy or download it again"
    );
    let header = format!(r#"{{"a":{}}}"#, entry("F32", "[2,3]", 0, 24));
    let whole = file(&header, 24);
    assert_eq!(
        refusal_of(&whole[..20]),
        format!(
            "the first 8 bytes promise a header of {} bytes, but only 12 bytes follow; the file is cut short or is \
             not a safetensors file: copy or download it again",
            header.len()
        )
    );
    assert_eq!(
        refusal_of(&whole[..whole.len() - 5]),
        "the data of tensor `a` end at byte 24, but the file holds only 19 bytes of data; \
         the file is cut short: copy or download it again"
    );
}

#[test]
fn headers_of_absurd_length() {
    let mut bytes = u64::MAX.to_le_bytes().to_vec();
    bytes.extend([b'{'; 100]);
    assert_eq!(
        refusal_of(&bytes),
        "the first 8 bytes promise a header of 18446744073709551615 bytes, more than the 100000000 allowed; \
         this is not a safetensors file, or it is damaged"
    );
    assert_eq!(
        refusal_of(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n"),
        "this is a Git LFS pointer, not the file it stands for; run `git lfs pull` in its repository"
    );
}

#[test]
fn headers_that_are_not_the_json_they_should_be() {
    let not_json = |header: &str| {
        let message = refusal_of(&file(header, 0));
        let detail = message.strip_prefix("the header is not the JSON of a safetensors file: ").unwrap();
        detail.strip_suffix("; copy or download the file again").unwrap().to_string()
    };
    assert_eq!(not_json(""), "it has no bytes");
    assert_eq!(not_json("<html>"), "it begins with byte 0x3c instead of `{`");
    assert_eq!(not_json("{\"a\":"), "tensor `a`: EOF while parsing a value at line 1 column 5");
    assert_eq!(not_json("{} 1"), "trailing characters at line 1 column 4");
    assert_eq!(
        not_json("{\"a\":7}"),
        "tensor `a`: invalid type: integer `7`, expected an object of dtype, shape and data_offsets at line 1 column 6"
    );
    assert_eq!(
        not_json(r#"{"a":{"dtype":"F32","shape":[1]}}"#),
        "tensor `a`: missing field `data_offsets` at line 1 column 32"
    );
    assert_eq!(
        not_json(r#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#),
        "tensor `a`: invalid value: integer `-1`, expected usize at line 1 column 31"
    );
    assert_eq!(
        not_json(&format!(r#"{{"a":{}}}"#, entry("F32", &format!("{:?}", [1; 17]), 0, 4))),
        "tensor `a`: a shape of more than 16 extents at line 1 column 79"
    );
    let twice = format!(r#"{{"a":{},"a":{}}}"#, entry("U8", "[1]", 0, 1), entry("U8", "[1]", 1, 2));
    assert_eq!(not_json(&twice), "tensor `a` occurs twice at line 1 column 56");
    assert_eq!(
        not_json(r#"{"__metadata__":{"a":1}}"#),
        "`__metadata__`: invalid type: integer `1`, expected a string at line 1 column 22"
    );
    assert!(not_json(&"[".repeat(3_000_000).replacen('[', "{\"a\":[", 1)).starts_with("tensor `a`: "));
}

#[test]
fn offsets_that_lie() {
    let one = |dtype, shape, start, end| file(&format!(r#"{{"a":{}}}"#, entry(dtype, shape, start, end)), 24);
    assert_eq!(
        refusal_of(&one("F32", "[2,3]", 0, 20)),
        "tensor `a` of shape [2, 3] and type F32 needs 24 bytes, but its data_offsets [0, 20] span 20; \
         the header is damaged"
    );
    assert_eq!(
        refusal_of(&one("F32", "[2,3]", 24, 0)),
        "tensor `a` of shape [2, 3] and type F32 needs 24 bytes, but its data_offsets [24, 0] span nothing \
         (they run backwards); the header is damaged"
    );
    for shape in ["[4294967296,4294967296]", "[4294967296,4294967296,0]", "[9223372036854775807]"] {
        assert_eq!(
            refusal_of(&one("F32", shape, 0, 24)),
            format!(
                "tensor `a` of shape {} and type F32 has more than 2^63 bytes; the header is damaged",
                shape.replace(',', ", ")
            )
        );
    }
    assert_eq!(
        refusal_of(&one("U8", "[24]", u64::MAX - 24, u64::MAX)),
        "the data of tensor `a` end at byte 18446744073709551615, but the file holds only 24 bytes of data; \
         the file is cut short: copy or download it again"
    );
    assert_eq!(
        refusal_of(&one("F7", "[24]", 0, 24)),
        "tensor `a` has the unknown type `F7`; known types: F64, F32, F16, BF16, F8_E4M3, F8_E5M2, F8_E8M0, I64, I32, \
         I16, I8, U64, U32, U16, U8, BOOL"
    );
    let two = |first: (u64, u64), second: (u64, u64)| {
        let shape = |(start, end)| format!("[{}]", end - start);
        let header = format!(
            r#"{{"b":{},"a":{}}}"#,
            entry("U8", &shape(first), first.0, first.1),
            entry("U8", &shape(second), second.0, second.1)
        );
        refusal_of(&file(&header, 24))
    };
    assert_eq!(
        two((0, 13), (11, 24)),
        "the data of tensors `b` and `a` overlap: the first ends at byte 13, the second starts at byte 11; \
         the header is damaged"
    );
    assert_eq!(
        two((13, 24), (0, 11)),
        "bytes 11 to 13 of the data, before tensor `b`, belong to no tensor; the header is damaged"
    );
    assert_eq!(
        two((0, 13), (13, 21)),
        "the tensors end at byte 21 of the data, but the file holds 24 bytes of data; \
         the header is damaged or something was appended to the file"
    );
}

/// A directory with shards that hold the named tensors (one byte each) and an index.
fn sharded(shards: &[(&str, &[&str])], weight_map: &[(&str, &str)]) -> TempDir {
    let dir = directory(&[]);
    for (name, tensors) in shards {
        let entries: Vec<String> = (0u64..)
            .zip(*tensors)
            .map(|(i, t)| format!("\"{t}\":{}", entry("U8", "[1]", i, i + 1)))
            .collect();
        let bytes = file(&format!("{{{}}}", entries.join(",")), tensors.len());
        fs::write(dir.path().join(name), bytes).unwrap();
    }
    let entries: Vec<String> = weight_map.iter().map(|(t, f)| format!("\"{t}\":\"{f}\"")).collect();
    let index = format!("{{\"metadata\":{{}},\"weight_map\":{{{}}}}}", entries.join(","));
    fs::write(dir.path().join(INDEX_FILE), index).unwrap();
    dir
}

#[test]
fn shards_and_their_index_must_agree() {
    let good = sharded(&[("x", &["a", "c"]), ("y", &["b"])], &[("a", "x"), ("b", "y"), ("c", "x")]);
    let checkpoint = Checkpoint::open(good.path()).unwrap();
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["a", "b", "c"]);
    assert_eq!(checkpoint.get("b").unwrap().file, good.path().join("y"));

    let index = "DIR/model.safetensors.index.json: ";
    let other = "the index and the shards are not of one checkpoint";
    let missing = sharded(&[("x", &["a"])], &[("a", "x"), ("b", "y")]);
    assert_eq!(
        refusal(&missing),
        format!(
            "{index}the index puts tensor `b` into `y`, which is not there; copy or download that file too"
        )
    );
    for path in ["../x", "/etc/passwd", "sub/x", ".", "..", ""] {
        let escaping = sharded(&[("x", &["a"])], &[("a", "x"), ("b", path)]);
        assert_eq!(
            refusal(&escaping),
            format!(
                "{index}the index puts tensor `b` into `{path}`, which is not a plain file name; \
                 shards must lie beside the index"
            )
        );
    }
    let absent = sharded(&[("x", &["a"])], &[("a", "x"), ("b", "x")]);
    assert_eq!(
        refusal(&absent),
        format!("{index}the index puts tensor `b` into `x`, but that file does not hold it; {other}")
    );
    let elsewhere = sharded(&[("x", &["a"]), ("y", &["b", "c"])], &[("a", "x"), ("b", "y"), ("c", "x")]);
    assert_eq!(
        refusal(&elsewhere),
        format!("{index}the index puts tensor `c` into `x`, but it is in `y`; {other}")
    );
    let unlisted = sharded(&[("x", &["a", "d"])], &[("a", "x")]);
    assert_eq!(
        refusal(&unlisted),
        format!("{index}`x` holds tensor `d`, which the index does not name; {other}")
    );
    let twice = sharded(&[("x", &["a"]), ("y", &["a", "b"])], &[("a", "y"), ("b", "y"), ("c", "x")]);
    assert_eq!(
        refusal(&twice),
        format!("{index}tensor `a` is both in `x` and in `y`; the shards are not of one checkpoint")
    );
    let broken = sharded(&[("x", &["a"])], &[("a", "x")]);
    fs::write(broken.path().join("x"), b"").unwrap();
    assert_eq!(refusal(&broken), "DIR/x: the file is empty; copy or download it again");
}

#[test]
fn indexes_that_are_not_the_json_they_should_be() {
    let refused = |index: &str| {
        let message = refusal(&directory(&[(INDEX_FILE, index.as_bytes())]));
        let detail =
            message.strip_prefix("DIR/model.safetensors.index.json: not a checkpoint index: ").unwrap();
        detail.strip_suffix("; copy or download it again").unwrap().to_string()
    };
    assert_eq!(refused("<html>"), "expected value at line 1 column 1");
    assert_eq!(refused(""), "EOF while parsing a value at line 1 column 0");
    assert_eq!(refused("{}"), "missing field `weight_map` at line 1 column 2");
    assert_eq!(
        refused("{\"weight_map\":[]}"),
        "invalid type: sequence, expected an object from tensor names to file names at line 1 column 14"
    );
    assert_eq!(
        refused("{\"weight_map\":{\"a\":3}}"),
        "the file of tensor `a`: invalid type: integer `3`, expected a string at line 1 column 20"
    );
    assert_eq!(
        refused("{\"weight_map\":{\"a\":\"x\",\"a\":\"y\"}}"),
        "tensor `a` occurs twice at line 1 column 31"
    );
    assert_eq!(refused("{\"weight_map\":{}}"), "its weight_map names no tensor");
}

proptest! {
    /// Whatever the bytes: an answer, and only ranges inside the file.
    #[test]
    fn any_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..200), len in any::<u64>()) {
        let _ = parse_header(&bytes, len);
        let _ = parse_header(&bytes, bytes.len() as u64);
    }

    /// One changed byte in a good file: refused, or every tensor still lies inside the file and fits its shape.
    #[test]
    fn a_changed_byte_is_refused_or_harmless(at in 0usize..300, byte in any::<u8>()) {
        let header = format!(
            r#"{{"__metadata__":{{"k":"v"}},"a":{},"b":{},"c":{}}}"#,
            entry("F32", "[2,3]", 0, 24), entry("BF16", "[5]", 24, 34), entry("F8_E4M3", "[7]", 34, 41)
        );
        let mut bytes = file(&header, 41);
        let at = at % bytes.len();
        bytes[at] = byte;
        if let Ok(header) = parse_header(&bytes, bytes.len() as u64) {
            let mut covered = 0;
            for tensor in header.tensors {
                prop_assert!(tensor.range.end <= bytes.len());
                prop_assert_eq!(tensor.dtype.bytes_of(&tensor.shape), Some(tensor.range.len() as u64));
                covered += tensor.range.len();
            }
            prop_assert_eq!(covered, 41);
        }
    }
}
