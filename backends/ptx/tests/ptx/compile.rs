//! Modules as a whole: how they read, what is refused, and that threads do not matter.

use crate::build::Build;
use crate::{forms, memory, product};
use eva_ir::dim::Dim;
use eva_ir::kernel::block::{BlockInst, Keep, MmaLeft, MmaTile};
use eva_ir::kernel::{Access, Kernel, Phase, Space};
use eva_ir::types::DType;
use eva_ptx::{Error, OptLevel, Options, compile, compile_all};

fn options() -> Options {
    Options { keep_llvm: true, ..Options::default() }
}

#[test]
fn masked_copies_read_like_this() {
    let ptx = compile(&memory::copy("widen", DType::Bf16, DType::F32, 4, true), &options()).unwrap();
    insta::assert_snapshot!("masked_copy_llvm", ptx.llvm.unwrap());
    insta::assert_snapshot!("masked_copy_ptx", ptx.text);
}

#[test]
fn loops_and_branches_read_like_this() {
    let ptx = compile(&memory::row_sums(), &options()).unwrap();
    insta::assert_snapshot!("row_sums_llvm", ptx.llvm.unwrap());
    insta::assert_snapshot!("row_sums_ptx", ptx.text);
}

#[test]
fn products_read_like_this() {
    let ptx = compile(&forms::small(), &options()).unwrap();
    insta::assert_snapshot!("product_ptx", ptx.text);
}

#[test]
fn without_passes_there_is_ptx_too() {
    let options = Options { level: OptLevel::None, ..Options::default() };
    let ptx = compile(&memory::row_sums(), &options).unwrap();
    assert!(ptx.text.contains(".entry eva_sum(") && ptx.llvm.is_none(), "{}", ptx.text);
    let newer = Options { version: (8, 7), ..Options::default() };
    assert!(compile(&memory::row_sums(), &newer).unwrap().text.contains(".version 8.7"));
}

#[test]
fn any_number_of_threads_makes_the_same() {
    let dtypes = [DType::Bf16, DType::F16, DType::F32, DType::I32];
    let kernels: Vec<Kernel> =
        (0..9).map(|i| memory::copy(&format!("copy {i}"), dtypes[i % 4], dtypes[i % 4], 2, true)).collect();
    let one = compile_all(&kernels, &options(), 1).unwrap();
    assert_eq!(one, compile_all(&kernels, &options(), 4).unwrap());
    assert_eq!(one, compile_all(&kernels, &options(), 100).unwrap());
    let entries: Vec<&str> = one.iter().map(|ptx| ptx.entry.as_str()).collect();
    assert_eq!(&entries[..2], ["eva_copy_0", "eva_copy_1"]);
    assert!(one.iter().all(|ptx| ptx.text.contains(&format!(".entry {}(", ptx.entry))));
    assert!(compile_all(&[], &options(), 0).unwrap().is_empty());
}

#[test]
fn the_first_error_is_given() {
    let mut kernels: Vec<Kernel> =
        (0..5).map(|i| memory::copy(&format!("k{i}"), DType::F32, DType::F32, 1, false)).collect();
    for i in [4, 2] {
        kernels[i].phase = Phase::Lane;
        kernels[i].block = None;
        kernels[i].body.clear();
    }
    let error = compile_all(&kernels, &options(), 3).unwrap_err();
    assert_eq!(error.to_string(), "kernel `k2`: it is not in the block phase");
}

/// The message with which a kernel is refused.
fn refused(kernel: &Kernel) -> String {
    match compile(kernel, &Options::default()) {
        Err(Error::Kernel { what, .. }) => what,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_the_chip_has_not_is_refused() {
    // An instruction of no meaning.
    let mut malformed = memory::row_sums();
    malformed.body.truncate(3);
    malformed.body.remove(0);
    assert!(refused(&malformed).contains("is not assigned here"), "{}", refused(&malformed));

    // More registers than there are for blocks of 12 warps.
    let mut greedy = product::gemm("greedy", DType::Bf16, false);
    let Some(eva_ir::kernel::Inst::Block(BlockInst::Roles { roles })) = greedy.body.last_mut() else {
        panic!("the kernel ends with roles")
    };
    roles[0].registers = 32;
    assert_eq!(refused(&greedy), "roles of 65536 registers, where 384 threads have 168 each");

    let mut many = Build::new("many", 1);
    for i in 0..600 {
        many.buf(&format!("b{i}"), DType::F32, Access::Read, &[Dim::from(4)]);
    }
    assert_eq!(refused(&many.finish()), "its parameters are over 4096 bytes");

    let mut b = Build::new("registers", 4);
    let buf = b.buf("a", DType::F32, Access::Read, &[Dim::from(4096)]);
    let tile = b.shared(DType::F8E4M3, [1, 8, 128], true);
    let zero = b.int(0);
    let at = b.slots(&[0; 16]);
    let left = b.load(Space::Buf(buf), at, 1, None);
    let acc = b.float(0.0, 4);
    let right = MmaTile { tile, turn: zero, transposed: false, first: 0 };
    let product = b.mma(acc, Keep::No, MmaLeft::Registers(left), (right, zero), 32);
    b.mma_wait(0, &[product]);
    assert_eq!(refused(&b.finish()), "a left operand of f8e4m3 in registers");
}
