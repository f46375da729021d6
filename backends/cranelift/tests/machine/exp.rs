//! The exponential function over the whole range of `f32`.

use crate::common::numbers::ulps_off;
use crate::common::{call, compile_one, elementwise, isas};
use eva_cranelift::Compiled;
use eva_ir::kernel::Fn1;
use eva_ir::types::DType::F32;

const BLOCK: usize = 4096;

fn exp(compiled: &Compiled, xs: &[f32]) -> Vec<f32> {
    let mut bufs = [xs.iter().flat_map(|x| x.to_le_bytes()).collect(), vec![0; 4 * BLOCK]];
    call(compiled.kernel(0), &mut bufs, &[], &[(0, 1)]);
    bufs[1].chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

/// The worst error of a kernel on floats whose bits are `first`, `first + step`, …, and where it is.
fn worst(compiled: &Compiled, bits: impl Iterator<Item = u32>) -> (f64, f32) {
    let mut worst = (0.0, 0.0);
    let mut xs = Vec::with_capacity(BLOCK);
    let mut bits = bits.peekable();
    while bits.peek().is_some() {
        xs.clear();
        xs.extend(bits.by_ref().take(BLOCK).map(f32::from_bits));
        xs.resize(BLOCK, 0.0);
        for (&x, &got) in xs.iter().zip(&exp(compiled, &xs)) {
            let off = ulps_off(got.into(), f64::from(x).exp());
            worst = if off > worst.0 { (off, x) } else { worst };
        }
    }
    worst
}

#[test]
fn is_within_two_ulps_everywhere() {
    let kernel = elementwise(&[F32], F32, BLOCK, 4, |k, x| k.map(Fn1::Exp, x[0]));
    let compiled = compile_one(&kernel, eva_cranelift::Isa::host());
    // One in 1021 of all floats: infinities and NaNs too.
    let (off, x) = worst(&compiled, (0..=u32::MAX).step_by(1021));
    assert!(off <= 2.0, "{off} ulp at {x:e}");
    // Closely, where results are neither 0, 1 nor infinite.
    for sign in [0, 1 << 31] {
        let (from, to) = (1e-7f32.to_bits(), 104f32.to_bits());
        let (off, x) = worst(&compiled, (from..to).step_by(67).map(|bits| bits | sign));
        assert!(off <= 2.0, "{off} ulp at {x:e}");
    }
    // Around the ends.
    let ends = [88.722_84f32, 89.0, -87.336_55, -103.972_08, -104.0, -103.278_93];
    let (off, x) = worst(&compiled, ends.iter().flat_map(|x| x.to_bits() - 300..x.to_bits() + 300));
    assert!(off <= 2.0, "{off} ulp at {x:e}");
}

#[test]
fn has_the_same_bits_for_scalars_and_on_every_processor() {
    let xs: Vec<f32> = (0..BLOCK).map(|i| f32::from_bits(i as u32 * 1_048_573)).collect();
    let mut results = Vec::new();
    for isa in isas() {
        for cols in [1, 4] {
            let kernel = elementwise(&[F32], F32, BLOCK, cols, |k, x| k.map(Fn1::Exp, x[0]));
            let bits = exp(&compile_one(&kernel, isa.clone()), &xs).into_iter();
            results.push(bits.map(|y| if y.is_nan() { u32::MAX } else { y.to_bits() }).collect::<Vec<_>>());
        }
    }
    for other in &results[1..] {
        assert!(*other == results[0]);
    }
}
