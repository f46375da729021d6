//! What a machine reaches, as the cost model wants to know it: through the whole path, by what the compiler makes.

use super::gemm;
use super::lab::{Fill, Lab, Operand, Program};
use super::reference::{part, relative_error};
use super::{BenchError, Measured};
use eva_ir::types::DType;
use eva_passes::cost::{Machine, Products};
use eva_runtime::Device;
use std::fmt::Write;

/// Kernels of the longer of two chains, of which the difference is the time of a launch.
const LAUNCHES: usize = 65;
/// Elements of what these kernels compute: next to nothing.
const ROW: usize = 3;
/// Element-wise ops that share a kernel.
const FUSED: usize = 24;

/// Measures the lab's device.
pub fn calibrate(lab: &mut Lab, name: &str) -> Result<Machine, BenchError> {
    let cpu = lab.options.device == Device::Cpu;
    let prefill = if cpu { [512, 2048, 2048] } else { [4096, 4096, 7168] };
    let decode = if cpu { [1, 8192, 4096] } else { [1, 65536, 7168] };
    let rate = |amount: f64, measured: &Measured| amount / measured.times[0].as_secs_f64();
    let product = |lab: &mut Lab, dtype, sizes| right(gemm::run(lab, dtype, sizes)?);
    let (f32, bf16) = (product(lab, DType::F32, prefill)?, product(lab, DType::Bf16, prefill)?);
    let read = product(lab, if cpu { DType::F32 } else { DType::Bf16 }, decode)?;
    let launches = [chain(lab, 1)?, chain(lab, LAUNCHES)?].map(|measured| measured.times[0].as_secs_f64());
    let launch = ((launches[1] - launches[0]) / (LAUNCHES - 1) as f64).max(1e-9);
    let fused = fused(lab, if cpu { [256, 1024] } else { [4096, 4096] })?;
    let bf16 = rate(bf16.flops, &bf16);
    Ok(Machine {
        name: name.into(),
        bytes: rate(read.bytes, &read),
        launch,
        vector: fused.flops / (fused.times[0].as_secs_f64() - launch).max(1e-9),
        // No kernel multiplies 8-bit floats yet.
        product: Products { f32: rate(f32.flops, &f32), bf16, f8: bf16 },
    })
}

/// The measurement, or an error if what was measured is wrong.
fn right(measured: Measured) -> Result<Measured, BenchError> {
    if measured.is_right() { Ok(measured) } else { Err(BenchError::Wrong(measured.error)) }
}

/// So many small kernels, one after the other.
fn chain(lab: &mut Lab, n: usize) -> Result<Measured, BenchError> {
    let mut text = format!("fn @chain(weight %x0: f32[1, {ROW}]) -> f32[1, {ROW}] {{\n");
    for i in 0..n {
        let _ = writeln!(text, "  %x{} = softmax %x{i} : f32[1, {ROW}]", i + 1);
    }
    let _ = writeln!(text, "  return %x{n}\n}}");
    let want = |x: Vec<f64>| {
        (0..n).fold(x, |x, _| {
            let sum: f64 = x.iter().map(|x| x.exp()).sum();
            x.iter().map(|x| x.exp() / sum).collect()
        })
    };
    rows(lab, &text, "chain", [1, ROW], 0.0, &want)
}

/// Many element-wise ops in one kernel.
fn fused(lab: &mut Lab, [m, n]: [usize; 2]) -> Result<Measured, BenchError> {
    let mut text = format!("fn @fused(weight %x0: f32[{m}, {n}]) -> f32[{m}, {n}] {{\n");
    for i in 0..FUSED {
        let op = if i % 3 == 0 { "silu" } else { "add" };
        let second = if i % 3 == 0 { String::new() } else { format!(", %x{}", i - 1) };
        let _ = writeln!(text, "  %x{} = {op} %x{i}{second} : f32[{m}, {n}]", i + 1);
    }
    let _ = writeln!(text, "  return %x{FUSED}\n}}");
    let want = |x: Vec<f64>| {
        let one = |x: f64| {
            let (mut before, mut last) = (x, x);
            for i in 0..FUSED {
                let next = if i % 3 == 0 { last / (1.0 + (-last).exp()) } else { last + before };
                (before, last) = (last, next);
            }
            last
        };
        x.into_iter().map(one).collect()
    };
    rows(lab, &text, "fused", [m, n], (FUSED * m * n) as f64, &want)
}

/// Measures a function of one operand whose first row is `want` of the operand's.
fn rows(
    lab: &mut Lab,
    text: &str,
    function: &str,
    [m, n]: [usize; 2],
    flops: f64,
    want: &dyn Fn(Vec<f64>) -> Vec<f64>,
) -> Result<Measured, BenchError> {
    let shape = [m, n];
    let operands = [Operand { name: "x0", dtype: DType::F32, shape: &shape, fill: Fill::Normal(0) }];
    let program =
        Program { text, function, operands: &operands, flops, bytes: (8 * m * n) as f64, limit: 1e-4 };
    right(lab.measure(&program, &|lab, results| {
        let have = part(&results[0], 0, n);
        relative_error(have.into_iter().zip(want(lab.elements(0, 0, 0).row(0, n))))
    })?)
}
