//! That a kernel's PTX does what the kernel means: the emulator against the interpreter.

use crate::emulate;
use crate::gate::pass;
use eva_ir::dim::Sym;
use eva_ir::kernel::Kernel;
use eva_ir::kernel::block::Launch;
use eva_ir::kernel::run::{Options, Stats, Storage, run};
use eva_ptx::Ptx;

/// Blocks of a persistent launch.
const BLOCKS: u64 = 3;

/// Runs the kernel and its PTX on these buffers, one storage each, and asks for results that differ by `tolerance` of
/// the larger at most. Gives what the PTX made.
pub fn agree(kernel: &Kernel, sizes: &[(&str, i64)], storages: Vec<Storage>, tolerance: f64) -> Vec<Storage> {
    agree_within(kernel, sizes, storages, [tolerance, 0.0])
}

/// Also takes results that differ by `limits[1]` of the largest number of their buffer: sums in which little is left.
pub fn agree_within(
    kernel: &Kernel,
    sizes: &[(&str, i64)],
    storages: Vec<Storage>,
    limits: [f64; 2],
) -> Vec<Storage> {
    let (ptx, _) = pass(kernel);
    let value = |sym: &Sym| sizes.iter().find(|(name, _)| *name == sym.as_str()).map(|&(_, value)| value);
    let binding: Vec<usize> = (0..storages.len()).collect();
    let (mut expected, mut got) = (storages.clone(), storages);
    both(kernel, &ptx, &value, &mut expected, &mut got, &binding);
    for ((expected, got), (_, buf)) in expected.iter().zip(&got).zip(kernel.bufs.iter()) {
        let largest = expected.data.iter().filter(|x| x.is_finite()).fold(0.0f64, |m, x| m.max(x.abs()));
        for (i, (&x, &y)) in expected.data.iter().zip(&got.data).enumerate() {
            let same = x == y || x.is_nan() && y.is_nan();
            let near = (x - y).abs() <= limits[0] * x.abs().max(y.abs()) + limits[1] * largest;
            assert!(
                same || near,
                "{}: `{}`[{i}] is {x}, but the PTX says {y}\n{}",
                kernel.name,
                buf.name,
                ptx.text
            );
        }
    }
    got
}

/// Runs the kernel on `expected`, and its PTX on `got`.
pub fn both(
    kernel: &Kernel,
    ptx: &Ptx,
    sizes: &dyn Fn(&Sym) -> Option<i64>,
    expected: &mut [Storage],
    got: &mut [Storage],
    binding: &[usize],
) -> Stats {
    let options = Options { f32: true, blocks: BLOCKS, ..Options::default() };
    let stats = run(kernel, sizes, expected, binding, options).unwrap_or_else(|e| panic!("{e}\n{kernel}"));
    let launched = match kernel.block.as_ref().map(|block| block.launch) {
        Some(Launch::Each { per_block }) => stats.programs.div_ceil(per_block as u64),
        _ => stats.programs.min(BLOCKS),
    };
    emulate::run(kernel, ptx, sizes, got, binding, launched);
    stats
}

/// Numbers that look random, from -1 to 1; the same for the same seed.
pub fn random(seed: u64, n: usize) -> impl Iterator<Item = f64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..n).map(move |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    })
}
