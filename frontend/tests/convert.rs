//! Checkpoints to 8-bit floats and back.

use eva::convert::{ConvertError, ConvertOptions, Converted, To, convert};
use eva::init::{InitOptions, init};
use eva::model::config::{Config, ScaleFormat, is_projection};
use eva_ir::{codes, types::DType};
use eva_runtime::checkpoint::{Checkpoint, CheckpointDType, INDEX_FILE};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const FP8: To = To::Fp8(ScaleFormat::Float);

fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(path)
}

fn options(to: To, max_shard_bytes: u64) -> ConvertOptions {
    ConvertOptions { to, max_shard_bytes }
}

fn run(from: &Path, out: &Path, options: &ConvertOptions) -> Converted {
    convert(from, out, options, |_, _| {}).unwrap_or_else(|e| panic!("{e}"))
}

/// Every file of a directory.
fn contents(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    entries.map(|e| (e.file_name().into_string().unwrap(), fs::read(e.path()).unwrap())).collect()
}

/// A checkpoint of odd sizes: bands and blocks end anywhere.
fn odd(dtype: CheckpointDType, quantization: Option<Value>) -> TempDir {
    let text = fs::read_to_string(fixture("v3-tiny/config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&text).unwrap();
    for (key, n) in
        [("hidden_size", 261), ("intermediate_size", 130), ("q_lora_rank", 129), ("kv_lora_rank", 37)]
    {
        config[key] = json!(n);
    }
    config["num_hidden_layers"] = json!(2);
    if let Some(quantization) = quantization {
        config["quantization_config"] = quantization;
    }
    let dir = TempDir::new().unwrap();
    let options = InitOptions { seed: 5, dtype: Some(dtype), max_shard_bytes: None };
    init(&config.to_string(), &dir.path().join("m"), options, |_, _| {}).unwrap();
    dir
}

#[test]
fn codes_and_scales_are_those_that_torch_makes() {
    let dir = TempDir::new().unwrap();
    let out = dir.path().join("out");
    let done = run(&fixture("v3-tiny"), &out, &options(FP8, 400_000));
    assert!(done.files.len() > 3 && done.kept == 0, "{done:?}");
    let (made, recorded) =
        (Checkpoint::open(&out).unwrap(), Checkpoint::open(&fixture("v3-tiny-fp8")).unwrap());
    let mut weights = 0;
    for expected in recorded.iter() {
        let found = made.get(expected.name).unwrap_or_else(|| panic!("{} is missing", expected.name));
        assert_eq!((found.dtype, found.shape), (expected.dtype, expected.shape), "{}", expected.name);
        assert_eq!(found.bytes, expected.bytes, "{}", expected.name);
        weights += usize::from(expected.dtype == CheckpointDType::F8E4M3);
    }
    assert!(weights > 100 && weights < done.weights, "{weights}, and those of the MTP module");
    // What the fixture has none of: the module for the token after the next, whose own projection stays.
    let kept = made.get("model.layers.3.eh_proj.weight").unwrap();
    assert_eq!(kept.dtype, CheckpointDType::Bf16);
    let config = Config::load(&out).unwrap();
    assert_eq!(config.quantization, Config::load(&fixture("v3-tiny-fp8")).unwrap().quantization);
    config.check(&made, true).unwrap();
}

#[test]
fn there_and_back() {
    let from = odd(CheckpointDType::F32, None);
    let dir = TempDir::new().unwrap();
    for (name, format) in [("single", ScaleFormat::Float), ("powers", ScaleFormat::PowerOfTwo)] {
        let (there, back, again) = (
            dir.path().join(name),
            dir.path().join(format!("{name}-bf16")),
            dir.path().join(format!("{name}-again")),
        );
        let source = from.path().join("m");
        run(&source, &there, &options(To::Fp8(format), 300_000));
        run(&there, &back, &options(To::Bf16, 1 << 40));
        let open = |dir: &Path| Checkpoint::open(dir).unwrap();
        let (old, codes, numbers) = (open(&source), open(&there), open(&back));
        Config::load(&back).unwrap().check(&numbers, true).unwrap();
        assert_eq!(Config::load(&back).unwrap().quantization, None);
        for before in old.iter() {
            let after = numbers.get(before.name).unwrap();
            if !is_projection(before.name) {
                assert_eq!((after.dtype, after.bytes), (before.dtype, before.bytes), "{}", before.name);
                continue;
            }
            assert_eq!(after.dtype, CheckpointDType::Bf16, "{}", before.name);
            let (rows, columns) = (before.shape[0], before.shape[1]);
            let (x, y) = (before.to_f32().unwrap(), after.to_f32().unwrap());
            let scales = codes.get(&format!("{}_scale_inv", before.name)).unwrap();
            assert_eq!(scales.shape, [rows.div_ceil(128), columns.div_ceil(128)]);
            let scales = scales.to_f32().unwrap();
            let bytes = codes.get(before.name).unwrap().bytes;
            for (i, (x, y)) in x.iter().zip(y).enumerate() {
                let (row, column) = (i / columns, i % columns);
                let scale = scales[row / 128 * columns.div_ceil(128) + column / 128];
                let value = codes::decode(DType::F8E4M3, bytes[i]) as f32;
                // Half a step of the code, and the rounding to bf16.
                let step = (value.abs() / 16.0).max(1.0 / 1024.0);
                assert!((x - value * scale).abs() <= step * scale * 1.001, "{} {i}: {x}", before.name);
                assert_eq!(y, half::bf16::from_f32(value * scale).to_f32(), "{} {i}", before.name);
            }
            if format == ScaleFormat::PowerOfTwo {
                assert!(scales.iter().all(|scale| scale.to_bits() & 0x7f_ffff == 0), "{}", before.name);
            }
            // The largest number of a block has the largest code, or one of the octave below it.
            for (block, scale) in scales.iter().enumerate() {
                let (r, c) = (block / columns.div_ceil(128) * 128, block % columns.div_ceil(128) * 128);
                let inside = |i: &usize| {
                    (r..r + 128).contains(&(i / columns)) && (c..c + 128).contains(&(i % columns))
                };
                let most = (0..x.len()).filter(inside).map(|i| x[i].abs()).fold(0.0, f32::max);
                let exact = most / 448.0;
                let fits = if format == ScaleFormat::Float {
                    *scale == exact
                } else {
                    exact <= *scale && *scale < 2.0 * exact
                };
                assert!(fits, "{} {block}: {scale} for {most}", before.name);
            }
        }
        // Another turn loses nothing where scales are powers of two: codes times scales have codes, perhaps other ones.
        if format == ScaleFormat::PowerOfTwo {
            run(&back, &again, &options(To::Fp8(format), 1 << 40));
            let last = dir.path().join("last");
            run(&again, &last, &options(To::Bf16, 1 << 40));
            assert_eq!(contents(&last), contents(&back));
        }
    }
}

#[test]
fn fresh_weights_are_converted_likewise() {
    for format in [ScaleFormat::Float, ScaleFormat::PowerOfTwo] {
        let mut quantization = json!({"quant_method": "fp8", "weight_block_size": [128, 128]});
        if format == ScaleFormat::PowerOfTwo {
            quantization["scale_fmt"] = json!("ue8m0");
        }
        let (wide, made) = (odd(CheckpointDType::F32, None), odd(CheckpointDType::F32, Some(quantization)));
        let out = made.path().join("converted");
        run(&wide.path().join("m"), &out, &options(To::Fp8(format), 1 << 40));
        let (found, expected) =
            (Checkpoint::open(&made.path().join("m")).unwrap(), Checkpoint::open(&out).unwrap());
        assert_eq!(found.len(), expected.len());
        for tensor in expected.iter() {
            let found = found.get(tensor.name).unwrap();
            assert_eq!((found.dtype, found.bytes), (tensor.dtype, tensor.bytes), "{}", tensor.name);
        }
        Config::load(&made.path().join("m")).unwrap().check(&found, true).unwrap();
    }
}

#[test]
fn a_run_that_stopped_is_continued_and_what_it_left_is_checked() {
    let dir = TempDir::new().unwrap();
    let (whole, out) = (dir.path().join("whole"), dir.path().join("out"));
    let options = options(FP8, 200_000);
    let all = run(&fixture("v3-tiny"), &whole, &options).files.len();
    assert!(all > 6, "{all}");
    // It stops in the middle of the fourth file, as a process that panics does.
    let stopped = std::panic::catch_unwind(|| {
        let mut seen = 0;
        convert(&fixture("v3-tiny"), &out, &options, |done, _| {
            seen = seen.max(done);
            assert!(seen < 700_000, "stop here");
        })
    });
    assert!(stopped.is_err());
    let file = |i: usize| out.join(format!("model-{i:05}-of-{all:05}.safetensors"));
    assert!(file(3).exists() && !file(all).exists() && !out.join("config.json").exists());
    assert!(!out.join(INDEX_FILE).exists());
    let kept = (1..=all).filter(|&i| file(i).exists()).count();
    // One of those is damaged meanwhile.
    let mut bytes = fs::read(file(2)).unwrap();
    let at = bytes.len() - 7;
    bytes[at] ^= 1;
    fs::write(file(2), bytes).unwrap();
    let untouched = fs::metadata(file(1)).unwrap().modified().unwrap();
    // Other options are another conversion.
    let other = ConvertOptions { max_shard_bytes: 100_000, ..options };
    let refused = convert(&fixture("v3-tiny"), &out, &other, |_, _| {}).unwrap_err();
    assert!(matches!(refused, ConvertError::Another { .. }), "{refused}");
    let done = run(&fixture("v3-tiny"), &out, &options);
    assert_eq!(done.kept, kept - 1);
    assert_eq!(fs::metadata(file(1)).unwrap().modified().unwrap(), untouched);
    assert_eq!(contents(&out), contents(&whole));
}

#[test]
fn what_cannot_be_converted_is_refused() {
    let dir = TempDir::new().unwrap();
    let out = dir.path().join("out");
    let message = |from: &Path, to: To| {
        let message = convert(from, &out, &options(to, 1 << 40), |_, _| {}).unwrap_err().to_string();
        assert!(!out.exists(), "{message}");
        message.replace(from.to_str().unwrap(), "FROM")
    };
    let already = |form: &str| format!("FROM: its weights are {form} already; there is nothing to convert");
    assert_eq!(message(&fixture("v3-tiny-fp8"), FP8), already("8-bit floats"));
    assert_eq!(message(&fixture("v3-tiny"), To::Bf16), already("BF16"));
    let odd = odd(CheckpointDType::F32, None);
    let from = odd.path().join("m");
    // A NaN in a weight.
    let file = from.join("model.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    let name = "model.layers.1.self_attn.o_proj.weight";
    let start = {
        let checkpoint = Checkpoint::open(&from).unwrap();
        let tensor = checkpoint.get(name).unwrap();
        let at = tensor.bytes;
        bytes.windows(at.len()).position(|window| window == at).unwrap()
    };
    bytes[start..start + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&file, bytes).unwrap();
    let error = convert(&from, &out, &options(FP8, 1 << 40), |_, _| {}).unwrap_err().to_string();
    let wanted = format!("cannot write tensor `{name}");
    assert!(
        error.contains(&wanted) && error.contains("row 0 of it has a number that is not finite"),
        "{error}"
    );
    fs::remove_dir_all(&out).unwrap();
    // Something is there.
    fs::create_dir(&out).unwrap();
    fs::write(out.join("notes.txt"), "mine").unwrap();
    let error =
        convert(&fixture("v3-tiny"), &out, &options(FP8, 1 << 40), |_, _| {}).unwrap_err().to_string();
    assert_eq!(
        error.replace(out.to_str().unwrap(), "OUT"),
        "OUT: it is not empty; choose another directory, or remove it first"
    );
    assert_eq!(contents(&out).len(), 1);
}
