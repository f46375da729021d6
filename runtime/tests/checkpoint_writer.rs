//! Writing checkpoints and reading them back.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use eva_runtime::checkpoint::{Checkpoint, CheckpointDType, TensorDecl, Writer};
use tempfile::TempDir;

fn decl(name: &str, dtype: CheckpointDType, shape: &[usize]) -> TensorDecl {
    TensorDecl { name: name.into(), dtype, shape: shape.into() }
}

fn sample() -> Vec<TensorDecl> {
    use CheckpointDType::{Bf16, F32, F64, I64, U8};
    vec![
        decl("odd", U8, &[3]),
        decl("wide", F64, &[5]),
        decl("half", Bf16, &[7, 3]),
        decl("scalar", I64, &[]),
        decl("none", F32, &[4, 0]),
        decl("plain", F32, &[2, 11]),
    ]
}

fn bytes_of(i: usize, tensor: &TensorDecl) -> Vec<u8> {
    let n = tensor.dtype.bytes_of(&tensor.shape).unwrap() as usize;
    (0..n).map(|j| (i * 41 + j * 7) as u8).collect()
}

/// Fills a tensor in pieces of five bytes.
fn fill(tensors: &[TensorDecl]) -> impl FnMut(usize, &mut dyn Write) -> io::Result<()> + '_ {
    |i, out| bytes_of(i, &tensors[i]).chunks(5).try_for_each(|piece| out.write_all(piece))
}

fn check(dir: &Path, tensors: &[TensorDecl]) -> Checkpoint {
    let checkpoint = Checkpoint::open(dir).unwrap();
    assert_eq!(checkpoint.len(), tensors.len());
    for (i, tensor) in tensors.iter().enumerate() {
        let found = checkpoint.get(&tensor.name).unwrap();
        assert_eq!((found.dtype, found.shape), (tensor.dtype, &tensor.shape[..]), "{}", tensor.name);
        assert_eq!(found.bytes, bytes_of(i, tensor), "{}", tensor.name);
    }
    checkpoint
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn one_file() {
    let dir = TempDir::new().unwrap();
    let tensors = sample();
    let out = dir.path().join("new/deep");
    let writer = Writer::new().metadata("format", "pt").metadata("who", "é\"\n");
    let written = writer.write_dir(&out, &tensors, fill(&tensors)).unwrap();
    assert_eq!((written.files, written.tensor_bytes), (vec![out.join("model.safetensors")], 181));
    let checkpoint = check(&out, &tensors);
    assert_eq!(checkpoint.metadata().get("who"), Some(&"é\"\n"));
    assert_eq!(names(&out), ["model.safetensors"]);
    // The public crate accepts it, and wide types lie aligned.
    let bytes = fs::read(out.join("model.safetensors")).unwrap();
    let (header, public) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!((header + 8) % 64, 0);
    for tensor in &tensors {
        let info = public.info(&tensor.name).unwrap();
        assert_eq!(info.data_offsets.0 % tensor.dtype.bytes(), 0, "{}", tensor.name);
    }
}

#[test]
fn shards() {
    let tensors = sample();
    for (max, files) in [(1u64, 6), (40, 5), (50, 3), (90, 3), (181, 1), (u64::MAX, 1)] {
        let dir = TempDir::new().unwrap();
        let writer = Writer::new().max_shard_bytes(max);
        let written = writer.write_dir(dir.path(), &tensors, fill(&tensors)).unwrap();
        assert_eq!(written.files.len(), files, "{max}");
        let checkpoint = check(dir.path(), &tensors);
        assert_eq!(checkpoint.files().count(), files);
        assert_eq!(names(dir.path()).len(), if files == 1 { 1 } else { files + 1 });
    }
}

#[test]
fn an_empty_list_is_an_empty_checkpoint() {
    let dir = TempDir::new().unwrap();
    Writer::new().write_dir(dir.path(), &[], |_, _| Ok(())).unwrap();
    assert!(Checkpoint::open(dir.path()).unwrap().is_empty());
}

#[test]
fn replaces_only_when_told_to() {
    let dir = TempDir::new().unwrap();
    let tensors = sample();
    let single = Writer::new();
    let many = Writer::new().max_shard_bytes(50);
    single.write_dir(dir.path(), &tensors[..2], fill(&tensors)).unwrap();
    let path = dir.path().join("model.safetensors");
    for refused in [&single, &many] {
        let message = refused.write_dir(dir.path(), &tensors, fill(&tensors)).unwrap_err().to_string();
        assert_eq!(
            message,
            format!("{}: already there; choose another directory, or remove it first", path.display())
        );
    }
    // From one file to shards and back: no file of the other form stays to hide the new one.
    many.clone().overwrite(true).write_dir(dir.path(), &tensors, fill(&tensors)).unwrap();
    check(dir.path(), &tensors);
    assert!(!path.exists());
    assert!(single.write_dir(dir.path(), &tensors, fill(&tensors)).is_err());
    single.clone().overwrite(true).write_dir(dir.path(), &tensors[..3], fill(&tensors)).unwrap();
    check(dir.path(), &tensors[..3]);
    let file = dir.path().join("other.safetensors");
    single.write_file(&file, &tensors, fill(&tensors)).unwrap();
    check(&file, &tensors);
    assert!(single.write_file(&file, &tensors, fill(&tensors)).is_err());
}

#[test]
fn a_failure_leaves_nothing_behind() {
    let dir = TempDir::new().unwrap();
    let tensors = sample();
    let path = dir.path().join("model.safetensors");
    let message = |max: u64, fill: &mut dyn FnMut(usize, &mut dyn Write) -> io::Result<()>| {
        let writer = Writer::new().max_shard_bytes(max);
        let message = writer.write_dir(dir.path(), &tensors, fill).unwrap_err().to_string();
        assert_eq!(names(dir.path()), [""; 0], "{message}");
        message.replace(path.to_str().unwrap(), "FILE")
    };
    let mut good = fill(&tensors);
    let mut with = |wrong: usize, bytes: Vec<u8>| {
        message(u64::MAX, &mut |i, out| if i == wrong { out.write_all(&bytes) } else { good(i, out) })
    };
    assert_eq!(
        with(2, vec![0; 41]),
        "FILE: cannot write tensor `half`: 41 bytes were produced of the 42 it has"
    );
    assert_eq!(
        with(2, vec![0; 43]),
        "FILE: cannot write tensor `half`: more bytes were produced than it has: 42 left, 43 more came"
    );
    assert_eq!(
        message(u64::MAX, &mut |_, _| Err(io::Error::other("out of numbers"))),
        "FILE: cannot write tensor `wide`: out of numbers"
    );
    // The third shard fails: the first two are gone too.
    let mut good = fill(&tensors);
    let shard = message(1, &mut |i, out| if i == 2 { Err(io::Error::other("no")) } else { good(i, out) });
    assert!(shard.ends_with("model-00003-of-00006.safetensors: cannot write tensor `half`: no"), "{shard}");
}

#[test]
fn lists_that_cannot_be_written() {
    let dir = TempDir::new().unwrap();
    let message = |tensors: &[TensorDecl]| {
        let message = Writer::new().write_dir(dir.path(), tensors, |_, _| Ok(())).unwrap_err().to_string();
        message.replace(dir.path().to_str().unwrap(), "DIR")
    };
    let f32 = CheckpointDType::F32;
    assert_eq!(
        message(&[decl("a", f32, &[1]), decl("a", f32, &[2])]),
        "DIR: cannot write tensor `a`: the name occurs twice"
    );
    assert_eq!(
        message(&[decl("__metadata__", f32, &[1])]),
        "DIR: cannot write tensor `__metadata__`: this name is reserved for the file's free text"
    );
    assert_eq!(
        message(&[decl("a", f32, &[usize::MAX / 2, 3])]),
        "DIR: cannot write tensor `a`: with it the checkpoint has more than 2^63 bytes"
    );
    assert_eq!(
        message(&[decl("a", f32, &[1; 17])]),
        "DIR: cannot write tensor `a`: it has more than 16 extents"
    );
}
