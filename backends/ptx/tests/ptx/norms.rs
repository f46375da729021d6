//! Norms whose rows are quantized in their kernel: the same codes and scales, bit for bit, as of what memory would have held.

use crate::agree::{both, random};
use crate::gate::pass;
use eva_ir::dim::Sym;
use eva_ir::eval::{Array, Sizes};
use eva_ir::kernel::run::{Storage, round};
use eva_ir::kernel::{Kernel, Phase};
use eva_ir::types::DType;
use eva_passes::interpret::{Extents, How, interpret_with};
use eva_passes::plan::{FuncPlan, Step};
use eva_passes::target::Target;
use std::collections::HashMap;

/// `@f` with a norm and what is quantized of it; `@apart` the same through memory, each in a function of its own.
fn module(dtype: DType, m: usize, per: &str, ty: &str) -> String {
    // Kernels of tests that run beside each other have names of their own.
    let of = format!("{dtype}_{m}");
    let (row, codes) = (format!("{dtype}[b, s, m]"), format!("f8e4m3[b, s, {ty}]"));
    let norm = format!("%n = rms_norm %z, %g {{eps = 1e-6}} : {row}");
    let quantize = format!("%q = quantize %n {{to = f8e4m3, per = [1, 1, {per}, least = 1e-4}} : {codes}");
    format!(
        "dim b dim s dim m = {m}
        fn @f_{of}(%x: {row}, %y: {row}, %g: {dtype}[m]) -> {codes}, {row} {{
            %z = add %x, %y : {row}
            {norm}
            {quantize}
            return %q, %n
        }}
        fn @codes_{of}(%x: {row}, %y: {row}, %g: {dtype}[m]) -> {codes} {{
            %z = add %x, %y : {row}
            {norm}
            {quantize}
            return %q
        }}
        fn @norm_{of}(%x: {row}, %y: {row}, %g: {dtype}[m]) -> {row} {{
            %z = add %x, %y : {row}
            {norm}
            return %n
        }}
        fn @quantize_{of}(%n: {row}) -> {codes} {{
            {quantize}
            return %q
        }}
        fn @apart_{of}(%x: {row}, %y: {row}, %g: {dtype}[m]) -> {codes}, {row} {{
            %n = call @norm_{of} %x, %y, %g : {row}
            %q = call @quantize_{of} %n : {codes}
            return %q, %n
        }}"
    )
}

fn launches(f: &FuncPlan) -> usize {
    f.steps.iter().filter(|step| matches!(step, Step::Launch { .. })).count()
}

/// What a function's PTX gives, kernel after kernel, each as near to what the kernel means as roundings let it.
fn results(text: &str, name: &str, tokens: [i64; 2]) -> (Vec<Array>, usize) {
    let module = eva_ir::text::parse(text).unwrap_or_else(|e| panic!("{e}"));
    let plan = eva_passes::compile(&module, &Target::cuda(), &Default::default());
    let plan = plan.unwrap_or_else(|e| panic!("{e}"));
    let func = module.funcs.iter().find(|(_, f)| f.name.starts_with(name)).unwrap().0;
    let fixed = module.dims.iter().filter_map(|(sym, n)| Some((sym.clone(), (*n)?)));
    let [b, s] = tokens;
    let sizes = Sizes([(Sym::from("b"), b), (Sym::from("s"), s)].into_iter().chain(fixed).collect());
    let params = plan.funcs[func].params.iter().enumerate();
    let args: Vec<Array> = params
        .map(|(i, param)| {
            let shape: Vec<usize> = param.ty.shape.iter().map(|dim| sizes.of(dim)).collect();
            let numbers = random(i as u64 + 5, shape.iter().product());
            // Blocks differ in size, and one is all zeros.
            let number = |(at, x): (usize, f64)| match at / 64 % 13 {
                5 => 0.0,
                block => round(x * 2f64.powi(block as i32 - 6), param.ty.dtype),
            };
            Array::new(&shape, numbers.enumerate().map(number).collect())
        })
        .collect();
    let mut made = HashMap::new();
    let mut runner = |kernel: &Kernel, sizes: &Extents, storages: &mut [Storage], binding: &[usize]| {
        let ptx = made.entry(kernel.to_string()).or_insert_with(|| pass(kernel).0);
        let (mut meant, mut got) = (storages.to_vec(), storages.to_vec());
        let stats = both(kernel, ptx, sizes, &mut meant, &mut got, binding);
        for (meant, got) in meant.iter().zip(&got) {
            let step = match got.dtype {
                DType::F8E4M3 => 1.0 / 8.0,
                DType::E8M0 => 0.5,
                DType::Bf16 => 1.0 / 128.0,
                _ => 1e-2,
            };
            for (x, y) in meant.data.iter().zip(&got.data) {
                let near = (x - y).abs() <= step * x.abs().max(y.abs()) + 1e-6;
                assert!(near || x.is_nan() && y.is_nan(), "{x} is {y} as PTX\n{kernel}");
            }
        }
        storages.clone_from_slice(&got);
        Ok(stats)
    };
    let how = How { phase: Phase::Block, slack: 0, options: Default::default() };
    let (results, _) =
        interpret_with(&plan, func, &sizes, &args, &how, &mut runner).unwrap_or_else(|e| panic!("{e}"));
    (results, launches(&plan.funcs[func]))
}

fn bits(results: &[Array]) -> Vec<Vec<u64>> {
    results.iter().map(|array| array.data.iter().map(|x| x.to_bits()).collect()).collect()
}

/// Codes, scales and the norm itself; whether they are one kernel.
fn check(dtype: DType, m: usize, per: &str, ty: &str, one: bool) {
    let text = module(dtype, m, per, ty);
    let tokens = if m > 4000 { [1, 2] } else { [2, 3] };
    let (apart, _) = results(&text, "apart_", tokens);
    let (both, kernels) = results(&text, "f_", tokens);
    assert_eq!(kernels, if one { 1 } else { 2 }, "{text}");
    assert!(bits(&both) == bits(&apart), "{text}\n{both:?}\n{apart:?}");
    // Parts of the result: codes, the norm, and scales behind them.
    let (codes, kernels) = results(&text, "codes_", tokens);
    assert_eq!(kernels, if one { 1 } else { 2 }, "{text}");
    assert!(bits(&codes) == [bits(&both)[0].clone(), bits(&both)[2].clone()], "{text}");
}

#[test]
fn rows_are_quantized_where_they_lie() {
    use DType::{Bf16, F16, F32};
    check(Bf16, 7168, "128], scales = single", "m/128", true);
    check(F32, 7168, "128], scales = pow2", "m/128; pow2", true);
    check(Bf16, 1536, "32], scales = e8m0", "m/32; e8m0", true);
    check(F16, 512, "128], scales = e8m0", "m/128; e8m0", true);
    check(F32, 640, "128], scales = single", "m/128", true);
    check(Bf16, 1152, "64], scales = single", "m/64", true);
    check(Bf16, 128, "128], scales = single", "m/128", true);
    check(F32, 96, "32], scales = e8m0", "m/32; e8m0", true);
}

#[test]
fn whole_rows_have_a_scale() {
    check(DType::Bf16, 1000, "m], scales = single", "m/*", true);
    check(DType::F32, 77, "m], scales = pow2", "m/*; pow2", true);
}

/// A short last block, and blocks whose length is no power of two.
#[test]
fn other_blocks_have_a_kernel_of_their_own() {
    check(DType::Bf16, 200, "128], scales = single", "m/128", false);
    check(DType::F32, 200, "128], scales = single", "m/128", false);
    check(DType::Bf16, 96, "128], scales = single", "m/128", false);
    check(DType::Bf16, 288, "96], scales = single", "m/96", false);
}

/// As many registers as a block of 1024 threads lets each have.
#[test]
fn long_rows_are_not_spilled() {
    check(DType::Bf16, 16384, "128], scales = single", "m/128", true);
    check(DType::F16, 8192, "128], scales = pow2", "m/128; pow2", true);
}
