//! 8-bit floats: the quantizer against PyTorch's codes, the type rules, and products against their formula.

use super::fixtures::{Golden, assert_close, eval};
use eva_ir::attr::{Dims, Range, Real, Spec};
use eva_ir::codes::{decode, encode};
use eva_ir::dim::Dim;
use eva_ir::eval::Array;
use eva_ir::ops::quantize::{Quantize, code, scale};
use eva_ir::ops::*;
use eva_ir::scales::{Block, Encoding, Scales};
use eva_ir::types::{DType, TensorType};
use proptest::prelude::*;
use safetensors::SafeTensors;

/// The codes of a fixture.
fn codes(file: &str, name: &str) -> Vec<u8> {
    let path = format!("{}/../tests/fixtures/ops/{file}.safetensors", env!("CARGO_MANIFEST_DIR"));
    let bytes = std::fs::read(path).unwrap();
    SafeTensors::deserialize(&bytes).unwrap().tensor(name).unwrap().data().to_vec()
}

/// Whether two codes mean the same; the sign of a NaN means nothing.
fn same(dtype: DType, a: u8, b: u8) -> bool {
    a == b || decode(dtype, a).is_nan() && decode(dtype, b).is_nan()
}

#[test]
fn every_code_means_what_it_means_to_pytorch() {
    let golden = Golden::open("ops/fp8_cast");
    for (name, dtype) in [("e4m3fn", DType::F8E4M3), ("e5m2", DType::F8E5M2), ("e8m0fnu", DType::E8M0)] {
        let values = golden.get(&format!("{name}.values"));
        for (i, &want) in values.data.iter().enumerate() {
            let have = decode(dtype, i as u8);
            assert!(have == want || have.is_nan() && want.is_nan(), "{name} {i:#x}: {have}, not {want}");
        }
    }
}

#[test]
fn rounding_is_pytorchs_bit_for_bit() {
    let golden = Golden::open("ops/fp8_cast");
    let input = golden.get("input");
    for (name, dtype) in [("e4m3fn", DType::F8E4M3), ("e5m2", DType::F8E5M2)] {
        let (saturated, torch) =
            (codes("fp8_cast", &format!("saturated.{name}")), codes("fp8_cast", &format!("torch.{name}")));
        for ((&x, &saturated), &torch) in input.data.iter().zip(&saturated).zip(&torch) {
            let have = code(x as f32, 1.0, dtype);
            assert!(same(dtype, have, saturated), "{name} of {x}: {have:#x}, not {saturated:#x}");
            let have = encode(dtype, x);
            assert!(same(dtype, have, torch), "{name} of {x}: {have:#x}, not {torch:#x}");
        }
    }
}

/// Scales and codes of a tensor in blocks, as the op finds them.
fn quantized(x: &Array, blocks: [usize; 2], encoding: Encoding, least: f32) -> (Vec<f32>, Vec<u8>) {
    let [rows, cols] = [x.shape[0].div_ceil(blocks[0]), x.shape[1].div_ceil(blocks[1])];
    let mut amax = vec![0f32; rows * cols];
    let block = |i: usize| i / x.shape[1] / blocks[0] * cols + i % x.shape[1] / blocks[1];
    for (i, &x) in x.data.iter().enumerate() {
        amax[block(i)] = amax[block(i)].max(x.abs() as f32);
    }
    let scales: Vec<f32> = amax.iter().map(|&amax| scale(amax, DType::F8E4M3, encoding, least)).collect();
    let codes = x.data.iter().enumerate().map(|(i, &x)| code(x as f32, scales[block(i)], DType::F8E4M3));
    (scales.clone(), codes.collect())
}

#[test]
fn linear_layers_are_quantized_bit_for_bit() {
    let golden = Golden::open("ops/fp8_linear");
    for (case, encoding) in [("f32", Encoding::F32), ("ue8m0", Encoding::Pow2)] {
        for (name, scales, blocks) in [
            ("x", "x.scale", [1, 128]),
            ("dy", "dy.scale", [1, 128]),
            ("weight", "weight.scale_inv", [128, 128]),
        ] {
            let least = if name == "weight" { 1e-12 } else { 1e-4 };
            let (have_scales, have_codes) = quantized(&golden.get(name), blocks, encoding, least);
            let want: Vec<f32> =
                golden.get(&format!("{case}.{scales}")).data.iter().map(|&s| s as f32).collect();
            assert_eq!(have_scales, want, "{case}: scales of {name}");
            assert_eq!(
                have_codes,
                codes("fp8_linear", &format!("{case}.{name}.codes")),
                "{case}: codes of {name}"
            );
        }
        // Tiles of 128 tokens: the same tensors the other way round.
        for (name, scales) in [("x", "xT.scale"), ("dy", "dyT.scale")] {
            let x = golden.get(name);
            let turned = Array::from_fn(&[x.shape[1], x.shape[0]], |at| x.at(&[at[1], at[0]]));
            let (have, _) = quantized(&turned, [1, 128], encoding, 1e-4);
            let want: Vec<f32> =
                golden.get(&format!("{case}.{scales}")).data.iter().map(|&s| s as f32).collect();
            assert_eq!(have, want, "{case}: {scales}");
        }
    }
}

fn quantize(to: DType, ty: &TensorType, blocks: [Block; 2], encoding: Encoding, least: f64) -> Quantize {
    Quantize::new(ty, to, &Scales { blocks: blocks.into_iter().collect(), encoding }, least)
}

fn f32s(rows: i64, cols: i64) -> TensorType {
    TensorType::new(DType::F32, [Dim::from(rows), Dim::from(cols)])
}

#[test]
fn products_of_quantized_operands_are_the_fixtures() {
    let golden = Golden::open("ops/fp8_linear");
    let [x, weight, dy] = ["x", "weight", "dy"].map(|name| golden.get(name));
    let tile = [Block::Each, Block::Of(128)];
    let q = |x: &Array, blocks, encoding, least| {
        let ty = f32s(x.shape[0] as i64, x.shape[1] as i64);
        eval(quantize(DType::F8E4M3, &ty, blocks, encoding, least), &[x]).remove(0)
    };
    let einsum = |spec: &str, a: &Array, b: &Array| {
        eval(einsum::Einsum { spec: spec.parse::<Spec>().unwrap() }, &[a, b]).remove(0)
    };
    for (case, encoding) in [("f32", Encoding::F32), ("ue8m0", Encoding::Pow2)] {
        let w = q(&weight, [Block::Of(128); 2], encoding, 1e-12);
        let y = einsum("tm,om->to", &q(&x, tile, encoding, 1e-4), &w);
        assert_close(&y, &golden.get(&format!("{case}.y")), 2e-6);
        let dx = einsum("to,om->tm", &q(&dy, tile, encoding, 1e-4), &w);
        assert_close(&dx, &golden.get(&format!("{case}.dx")), 2e-6);
        let tokens = [Block::Of(128), Block::Each];
        let dw = einsum("to,tm->om", &q(&dy, tokens, encoding, 1e-4), &q(&x, tokens, encoding, 1e-4));
        assert_close(&dw, &golden.get(&format!("{case}.dweight")), 2e-6);
    }
}

fn ty(text: &str) -> TensorType {
    let module = format!("dim b dim m dim r dim k = 256 fn @f(%x: {text}) -> {text} {{ return %x }}");
    let module = eva_ir::text::parse(&module).unwrap_or_else(|e| panic!("{e}"));
    let (_, f) = module.funcs.iter().next().unwrap();
    f.tensor(f.params().next().unwrap().0).unwrap().clone()
}

fn infer(op: impl Into<Op>, args: &[&str]) -> Result<String, String> {
    let args: Vec<TensorType> = args.iter().map(|text| ty(text)).collect();
    let found = op.into().infer(&args.iter().collect::<Vec<_>>());
    found.map(|ty| ty.to_string()).map_err(|e| match e.help {
        Some(help) => format!("{} ({help})", e.message),
        None => e.message,
    })
}

fn einsum(spec: &str) -> einsum::Einsum {
    einsum::Einsum { spec: spec.parse().unwrap() }
}

#[track_caller]
fn accepts(op: impl Into<Op>, args: &[&str], want: &str) {
    assert_eq!(infer(op, args), Ok(want.to_string()));
}

#[track_caller]
fn refuses(op: impl Into<Op>, args: &[&str], want: &str) {
    assert_eq!(infer(op, args), Err(want.to_string()));
}

#[test]
fn products_ask_for_the_same_blocks_along_sums() {
    let linear = || einsum("bm,rm->br");
    accepts(linear(), &["f8e4m3[b, m/128]", "f8e4m3[r/128, m/128]"], "f32[b, r]");
    accepts(linear(), &["f8e4m3[b, m/128; pow2]", "f8e5m2[r, m/128]"], "f32[b, r]");
    accepts(linear(), &["f8e4m3[b, m/*]", "f8e4m3[r/*, m/*]"], "f32[b, r]");
    accepts(linear(), &["f8e4m3[b, m/32; e8m0]", "f8e4m3[r, m/32; e8m0]"], "f32[b, r]");
    refuses(
        linear(),
        &["f8e4m3[b, m/128]", "f8e4m3[r, m/64]"],
        "axis `m` has a scale per 128 on the left but a scale per 64 on the right (quantize it again along `m` in blocks of \
         128: `dequantize`, then `quantize`)",
    );
    refuses(
        linear(),
        &["f8e4m3[b/128, m]", "f8e4m3[r/128, m/128]"],
        "axis `m` is summed, but each of its indices has a scale of its own in f8e4m3[b/128, m] (quantize it again along \
         `m` in blocks of 128: `dequantize`, then `quantize`)",
    );
    refuses(
        linear(),
        &["f8e4m3[b, m/32; e8m0]", "f8e4m3[r, m/32]"],
        "the left side's scales are e8m0, but the right side's single (quantize both sides with scales of one kind: \
         `scales = e8m0`)",
    );
    refuses(
        linear(),
        &["f32[b, m]", "f8e4m3[r, m/32]"],
        "cannot multiply f32 by f8e4m3 (quantize this side, or dequantize the other)",
    );
}

#[test]
fn views_keep_blocks_whole() {
    accepts(einsum("rm->mr"), &["f8e4m3[r/128, m]"], "f8e4m3[m, r/128]");
    refuses(
        einsum("rm->r"),
        &["f8e4m3[r/128, m]"],
        "f8e4m3 has no arithmetic, so no sums (dequantize it first)",
    );
    let slice = |start: i64, end: i64| slice::Slice {
        axis: 1,
        range: Range { start: start.into(), end: end.into() },
    };
    accepts(slice(128, 256), &["f8e4m3[b, 384/128]"], "f8e4m3[b, 128/128]");
    accepts(slice(128, 200), &["f8e4m3[b, 200/128]"], "f8e4m3[b, 72/128]");
    refuses(
        slice(64, 256),
        &["f8e4m3[b, 384/128]"],
        "64..256 cuts blocks of 128 that share a scale (dequantize it first)",
    );
    let reshape =
        |dims: &[&str]| reshape::Reshape { shape: Dims(dims.iter().map(|d| d.parse().unwrap()).collect()) };
    accepts(reshape(&["b", "3", "256"]), &["f8e4m3[b, 768/128]"], "f8e4m3[b, 3, 256/128]");
    accepts(reshape(&["b*r", "m"]), &["f8e4m3[b, r, m/128]"], "f8e4m3[b*r, m/128]");
    refuses(
        reshape(&["b", "8", "96"]),
        &["f8e4m3[b, 768/128]"],
        "96 is no multiple of 128, which share a scale in f8e4m3[b, 768/128] (dequantize it first)",
    );
    refuses(
        reshape(&["b*m"]),
        &["f8e4m3[b, m/128]"],
        "f8e4m3[b, m/128] cannot be seen in this shape without mixing its scales (dequantize it first)",
    );
}

/// Rows keep their scales where they have their own.
#[test]
fn rows_are_moved_with_their_scales() {
    let dispatch = || dispatch::Dispatch { k: Dim::sym("r") };
    accepts(dispatch(), &["f8e4m3[b, m/128; e8m0]", "i32[b*r]"], "f8e4m3[b*r, m/128; e8m0]");
    accepts(dispatch(), &["f8e5m2[b, m/*]", "i32[b*r]"], "f8e5m2[b*r, m/*]");
    refuses(
        dispatch(),
        &["f8e4m3[b/128, m/128]", "i32[b*r]"],
        "`dispatch` takes no scales, but the input is f8e4m3[b/128, m/128] (dequantize it first)",
    );
}

#[test]
fn quantize_says_what_it_cannot_do() {
    let op = |per: &[&str], scales: &str, least: f64| Quantize {
        to: DType::F8E4M3,
        per: Dims(per.iter().map(|d| d.parse().unwrap()).collect()),
        scales: scales.into(),
        least: Real::new(least),
    };
    accepts(op(&["1", "128"], "single", 1e-4), &["bf16[b, m]"], "f8e4m3[b, m/128]");
    accepts(op(&["b", "m"], "pow2", 1e-4), &["f32[b, m]"], "f8e4m3[b/*, m/*; pow2]");
    refuses(
        op(&["1", "r"], "single", 1e-4),
        &["f32[b, m]"],
        "r neighbours that share a scale are neither a number nor a whole axis of f32[b, m]",
    );
    refuses(op(&["1"], "single", 1e-4), &["f32[b, m]"], "`per` has 1 entries, but f32[b, m] has 2 axes");
    refuses(
        op(&["1", "0"], "single", 1e-4),
        &["f32[b, m]"],
        "0 neighbours that share a scale are neither a number nor a whole axis of f32[b, m]",
    );
    refuses(
        op(&["1", "4"], "half", 1e-4),
        &["f32[b, m]"],
        "`scales` is one of single, pow2, e8m0, not `half`",
    );
    refuses(op(&["1", "4"], "single", 0.0), &["f32[b, m]"], "`least` is 0, but should be positive");
    refuses(
        op(&["1", "4"], "single", 1.0),
        &["i32[b, m]"],
        "`quantize` takes floats, not i32 (cast it first: `.cast(F32)`)",
    );
    refuses(
        dequantize::Dequantize { to: DType::F32 },
        &["f32[b, m]"],
        "`dequantize` takes 8-bit floats, not f32[b, m]",
    );
    refuses(
        dequantize::Dequantize { to: DType::I32 },
        &["f8e4m3[b, m]"],
        "`dequantize` makes f32, bf16 or f16, not i32",
    );
}

proptest! {
    /// Any `f32`, NaN and infinities included: the nearest code, ties to even, saturated; NaN stays NaN.
    #[test]
    fn codes_are_the_nearest(bits in any::<u32>(), exponent in -20i32..20, e5m2 in any::<bool>()) {
        let dtype = if e5m2 { DType::F8E5M2 } else { DType::F8E4M3 };
        let (x, scale) = (f32::from_bits(bits), 2f32.powi(exponent));
        let have = decode(dtype, code(x, scale, dtype));
        if x.is_nan() {
            prop_assert!(have.is_nan());
            return Ok(());
        }
        // Beyond the largest number everything is as near as that.
        let largest = if e5m2 { 57344.0 } else { 448.0 };
        let y = f64::from(x / scale).clamp(-largest, largest);
        let finite = (0..=255u8).map(|c| decode(dtype, c)).filter(|v| v.is_finite());
        let nearest = finite.fold(f64::INFINITY, |best, v| if (v - y).abs() < (best - y).abs() { v } else { best });
        prop_assert_eq!((have - y).abs(), (nearest - y).abs());
        // Of two that are as near, the one whose last bit is 0.
        let code = encode(dtype, have);
        let tie = (0..=255u8).any(|c| decode(dtype, c) != have && (decode(dtype, c) - y).abs() == (have - y).abs());
        prop_assert!(!tie || code.is_multiple_of(2), "{y} became {have}");
    }
}
