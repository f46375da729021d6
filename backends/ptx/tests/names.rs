//! What needs no LLVM.

use eva_ir::entity::Arena;
use eva_ir::kernel::block::{Block, Launch, PipeData, SharedData};
use eva_ir::kernel::{Kernel, Phase};
use eva_ir::types::DType;
use eva_ptx::{entry_name, shared_bytes};

fn kernel(name: &str) -> Kernel {
    Kernel {
        name: name.into(),
        phase: Phase::Block,
        bufs: Arena::default(),
        scratch: Arena::default(),
        block: None,
        grid: Vec::new(),
        regs: Arena::default(),
        body: Vec::new(),
    }
}

#[test]
fn entry_points_have_names_that_ptx_takes() {
    assert_eq!(entry_name(&kernel("rms_norm")), "eva_rms_norm");
    // A word of PTX, dots, and letters of other alphabets.
    assert_eq!(entry_name(&kernel("add")), "eva_add");
    assert_eq!(entry_name(&kernel("mla.out 2")), "eva_mla_out_2");
    assert_eq!(entry_name(&kernel("größe")), "eva_gr__e");
    assert_eq!(entry_name(&kernel("")), "eva_");
    assert_eq!(entry_name(&kernel(&"x".repeat(999))).len(), 204);
}

#[test]
fn shared_memory_is_laid_out() {
    let mut kernel = kernel("k");
    assert_eq!(shared_bytes(&kernel), 0);
    let launch = Launch::Each { per_block: 1 };
    let (shared, pipes, maps) = Default::default();
    let mut block = Block { warps: 1, launch, shared, pipes, maps };
    let mut tile = |dtype, rows, cols, stages, swizzle| {
        block.shared.push(SharedData { name: String::new(), dtype, rows, cols, stages, swizzle })
    };
    // 3 stages of 8 rows of 2 panels, then 7 floats, then 5 stages of 3 numbers.
    let first = tile(DType::Bf16, 8, 128, 3, true);
    tile(DType::F32, 1, 7, 1, false);
    tile(DType::I64, 1, 3, 5, false);
    block.pipes.push(PipeData { name: String::new(), tiles: vec![first], stages: 3, consumers: 4 });
    kernel.block = Some(block);
    assert_eq!(shared_bytes(&kernel), (3 * 8 * 256 + 128 + 5 * 24usize).next_multiple_of(16) + 3 * 16);
}
