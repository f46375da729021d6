//! Runs a kernel in all phases, in the interpreter.

use eva_ir::dim::{Dim, Sym};
use eva_ir::kernel::run::{Options, Order, Stats, Storage, run};
use eva_ir::kernel::{Access, Buf, BufData, Kernel, Phase, Scaled, ScaledAxis, verify::verify};
use eva_ir::types::DType;
use eva_passes::spread::{spread_block, spread_cpu};
use eva_passes::target::Hopper;

/// A buffer without gaps.
pub fn dense(name: &str, dtype: DType, access: Access, shape: &[Dim]) -> BufData {
    let strides = eva_ir::lower::row_major_strides(shape);
    BufData {
        name: name.into(),
        dtype,
        access,
        shape: shape.to_vec(),
        strides,
        offset: Dim::from(0),
        scaled: None,
    }
}

pub fn read(name: &str, shape: &[Dim]) -> BufData {
    dense(name, DType::F32, Access::Read, shape)
}

pub fn write(name: &str, shape: &[Dim]) -> BufData {
    dense(name, DType::F32, Access::Write, shape)
}

pub fn ints(name: &str, shape: &[Dim]) -> BufData {
    dense(name, DType::I32, Access::Read, shape)
}

pub fn sym(name: &str) -> Dim {
    Dim::sym(name)
}

pub fn n(n: i64) -> Dim {
    Dim::from(n)
}

/// The scales of a buffer of 8-bit floats: `axes` are the length of a block, where the first one begins, the steps along
/// the buffer's axes, and the distance of scales.
pub fn scaled(by: Buf, offset: i64, axes: &[(i64, Dim, &[Dim], i64)]) -> Option<Box<Scaled>> {
    let axis = |(block, from, steps, stride): &(i64, Dim, &[Dim], i64)| ScaledAxis {
        block: *block,
        from: from.clone(),
        steps: steps.to_vec(),
        stride: n(*stride),
    };
    Some(Box::new(Scaled { by, offset: n(offset), along: axes.iter().map(axis).collect() }))
}

/// A number that looks random, the same for the same arguments.
pub fn noise(seed: u64, i: u64) -> u64 {
    let x = (seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ i).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ x >> 31).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 29
}

/// A multiple of 1/8 from -4 to 4: sums and products of a few are exact in any order.
pub fn eighths(buf: Buf, i: u64) -> f64 {
    use eva_ir::entity::Entity;
    (noise(buf.index() as u64 + 1, i) % 65) as f64 / 8.0 - 4.0
}

/// The storages of a kernel, each just long enough: what is read is given by `value`, results are unwritten.
pub fn storages(
    kernel: &Kernel,
    sizes: &dyn Fn(&Sym) -> Option<i64>,
    value: &dyn Fn(Buf, u64) -> f64,
) -> Vec<Storage> {
    let eval = |dim: &Dim| dim.eval(sizes).expect("every extent has a value");
    let storage = |(buf, data): (Buf, &BufData)| {
        let shape: Vec<i64> = data.shape.iter().map(eval).collect();
        let last: i64 = shape.iter().zip(&data.strides).map(|(n, stride)| (n - 1) * eval(stride)).sum();
        let empty = shape.contains(&0);
        let len = if empty { 0 } else { (eval(&data.offset) + last + 1) as usize };
        match data.access {
            Access::Read => Storage::new(data.dtype, (0..len as u64).map(|i| value(buf, i))),
            Access::Write => Storage::unwritten(data.dtype, len),
        }
    };
    kernel.bufs.iter().map(storage).collect()
}

/// What the phases did: the results, and what the lane phase loaded and stored.
pub struct Ran {
    pub results: Vec<Storage>,
    pub lane: Stats,
    pub kernel: Kernel,
}

/// Spreads `kernel`, runs both phases on the same operands, and compares everything that was written.
pub fn agree_on(
    kernel: &Kernel,
    sizes: &[(&str, i64)],
    value: &dyn Fn(Buf, u64) -> f64,
    tolerance: f64,
) -> Ran {
    let size = |sym: &Sym| sizes.iter().find(|(name, _)| *name == sym.as_str()).map(|(_, n)| *n);
    verify(kernel).unwrap_or_else(|e| panic!("{}\n{kernel}", e.join("\n")));
    let binding: Vec<usize> = (0..kernel.bufs.len()).collect();
    let start = storages(kernel, &size, value);
    let mut expected = start.clone();
    run(kernel, &size, &mut expected, &binding, Options::default())
        .unwrap_or_else(|e| panic!("tile phase: {e}\n{kernel}"));
    let spread = |phase: Phase| {
        let spread =
            if phase == Phase::Lane { spread_cpu(kernel) } else { spread_block(kernel, &Hopper::H100) };
        let spread = spread.unwrap_or_else(|e| panic!("{e}\n{kernel}"));
        assert_eq!(spread.phase, phase);
        let mut bufs = kernel.bufs.clone();
        kernel.bufs.keys().for_each(|buf| bufs[buf].scaled = None);
        assert_eq!((&spread.bufs, &spread.grid), (&bufs, &kernel.grid));
        verify(&spread).unwrap_or_else(|e| panic!("{}\n{kernel}\n{spread}", e.join("\n")));
        let mut results = start.clone();
        let options = Options { order: Order::Shuffled(7), ..Options::default() };
        let stats = run(&spread, &size, &mut results, &binding, options)
            .unwrap_or_else(|e| panic!("{phase:?} phase: {e} with {sizes:?}\n{kernel}\n{spread}"));
        for (buf, (want, got)) in kernel.bufs.keys().zip(expected.iter().zip(&results)) {
            for (i, (a, b)) in want.data.iter().zip(&got.data).enumerate() {
                let same =
                    a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= tolerance * a.abs().max(1.0);
                let name = &kernel.bufs[buf].name;
                assert!(same, "{name}[{i}] is {b}, not {a}, with {sizes:?}\n{kernel}\n{spread}");
            }
        }
        (results, stats, spread)
    };
    spread(Phase::Block);
    let (results, lane, kernel) = spread(Phase::Lane);
    Ran { results, lane, kernel }
}

/// [`agree_on`] multiples of 1/8 and small integers.
pub fn agree(kernel: &Kernel, sizes: &[(&str, i64)]) -> Ran {
    let value = |buf: Buf, i: u64| {
        if kernel.bufs[buf].dtype.is_int() { eighths(buf, i).floor() } else { eighths(buf, i) }
    };
    agree_on(kernel, sizes, &value, 1e-12)
}

/// The bytes of private memory of a program.
pub fn private_bytes(kernel: &Kernel) -> usize {
    use eva_ir::kernel::Elem;
    kernel.scratch.iter().map(|(_, data)| data.len * if data.elem == Elem::I64 { 8 } else { 4 }).sum()
}
