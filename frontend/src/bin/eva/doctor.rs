//! `eva doctor`: what this machine has, and whether compiling works on it.

mod gpu;
mod machine;

use super::ui::{bytes, emit};
use anyhow::{Context, bail, ensure};
use clap::Args as ClapArgs;
use eva_ir::eval::{Array, eval};
use eva_ir::text;
use eva_microkernels::{Features, cpu_features};
use eva_runtime::{CompileOptions, Device, Executable, Session, Tensor, Weights, pool};
use machine::Tool;
use serde_json::{Value, json};
use std::sync::Arc;

/// Arguments of `eva doctor`.
#[derive(ClapArgs)]
#[command(after_help = "\
Example:
  eva doctor --json

Fails only if the test does: what is missing for targets that are not built in does no harm.")]
pub struct Args {
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

/// Shows what there is; false if a self-test fails.
pub fn run(args: &Args) -> anyhow::Result<bool> {
    let gpus = gpu::find();
    let usable = gpus.gpus.iter().filter(|gpu| gpu.will_do()).map(|gpu| gpu.device);
    let tests: Vec<(Device, anyhow::Result<()>)> =
        std::iter::once(Device::Cpu).chain(usable).map(|device| (device, self_test(device))).collect();
    emit(&if args.json { as_json(&gpus, &tests) } else { as_text(&gpus, &tests) })?;
    Ok(tests.iter().all(|(_, test)| test.is_ok()))
}

fn as_json(gpus: &gpu::Found, tests: &[(Device, anyhow::Result<()>)]) -> String {
    let features: serde_json::Map<String, Value> =
        cpu_features().iter().map(|&(name, has)| (name.to_string(), Value::Bool(has))).collect();
    let (total, free) = machine::memory();
    let tool =
        |tool: &Tool| json!({"name": tool.name, "found": tool.found, "for": tool.purpose, "get": tool.how});
    let test = |(device, test): &(Device, anyhow::Result<()>)| {
        let error = test.as_ref().err().map(|error| format!("{error:#}"));
        json!({"device": device.to_string(), "ok": test.is_ok(), "error": error})
    };
    let report = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "os": std::env::consts::OS,
        "arch": std::env::consts::ARCH,
        "processor": machine::processor(),
        "features": features,
        "microkernels": Features::detect().to_string(),
        "threads": pool::default_threads(),
        "memory_bytes": total,
        "memory_available_bytes": free,
        "backends": {"cranelift": true, "cuda": cfg!(feature = "cuda")},
        "cuda": gpus.json(),
        "tools": machine::tools().iter().map(tool).collect::<Vec<_>>(),
        "self_tests": tests.iter().map(test).collect::<Vec<_>>(),
    });
    format!("{report:#}\n")
}

fn as_text(gpus: &gpu::Found, tests: &[(Device, anyhow::Result<()>)]) -> String {
    let features = cpu_features();
    let named = |wanted: bool| {
        let names = features.iter().filter(|(_, has)| *has == wanted).map(|(name, _)| *name);
        let names: Vec<&str> = names.collect();
        if names.is_empty() { "none".to_string() } else { names.join(" ") }
    };
    let size = |n: Option<u64>| n.map_or("unknown".into(), |n| bytes(n as usize));
    let (total, free) = machine::memory();
    let asked = std::env::var("EVA_THREADS").map_or(String::new(), |n| format!(" (EVA_THREADS is {n})"));
    let mut text = format!(
        "eva {}, {} on {}\n\n\
         processor     {}\n\
         has           {}\n\
         lacks         {}\n\
         microkernels  {}\n\
         threads       {}{asked}\n\
         memory        {}, {} available\n\n\
         backends\n  \
         cranelift     built in: runs on this processor\n  \
         cuda          {}\n\n\
         NVIDIA GPUs\n",
        env!("CARGO_PKG_VERSION"),
        std::env::consts::ARCH,
        std::env::consts::OS,
        machine::processor().unwrap_or("unknown".into()),
        named(true),
        named(false),
        Features::detect(),
        pool::default_threads(),
        size(total),
        size(free),
        if cfg!(feature = "cuda") { "built in: runs on NVIDIA's Hopper GPUs" } else { "not built in" },
    );
    text += &gpus.text();
    text += "\nfor GPUs; models run on the processor without\n";
    for Tool { name, found, purpose, how } in machine::tools() {
        text += &match found {
            Some(place) => format!("  {name:13} {place}\n"),
            None => format!("  {name:13} not found ({purpose}): {how}\n"),
        };
    }
    text.push('\n');
    for (device, test) in tests {
        text += &match test {
            Ok(()) => format!("self-test     {device}: ok, compiled, ran and agreed with the evaluator\n"),
            Err(error) => format!("self-test     {device}: FAILED: {error:#}\n"),
        };
    }
    text
}

/// A product, a row-wise and an element-wise op, with odd extents.
const TEST: &str = "\
dim b
dim m = 19
dim n = 7

fn @main(%x: f32[b, m], weight %w: bf16[n, m]) -> f32[b, n] {
  %wide = cast %w {to = f32} : f32[n, m]
  %p = einsum \"bm,nm->bn\" %x, %wide : f32[b, n]
  %q = silu %p : f32[b, n]
  %y = softmax %q : f32[b, n]
  return %y
}
";

/// Compiles and runs a small module; its results must be the evaluator's.
fn self_test(device: Device) -> anyhow::Result<()> {
    let module = text::parse(TEST)?;
    let options = CompileOptions { device, ..CompileOptions::default() };
    let executable = Arc::new(Executable::compile(&module, &options)?);
    let (b, m, n) = (5, 19, 7);
    // Multiples of 1/64 below 2: exact in bf16.
    let numbers = |n: usize, step: usize| (0..n).map(move |i| (i * step % 97) as f64 / 64.0 - 0.75).collect();
    let (x, w) = (Array::new(&[b, m], numbers(b * m, 31)), Array::new(&[n, m], numbers(n * m, 53)));
    let tensor = |dtype, array: &Array| Tensor::from_f64(dtype, &array.shape, &array.data);
    let weight = tensor(eva_ir::types::DType::Bf16, &w).into();
    let weights = Weights::from([("w".to_string(), Arc::new(weight))]);
    let mut session = Session::new(executable, "main", &weights)?;
    let results = session.run(&[("x", &tensor(eva_ir::types::DType::F32, &x))], None, &[])?;
    let func = module.func("main").context("the test has no function")?;
    let expected = eval(&module, func, &[x, w])?;
    let ([(_, found)], [expected]) = (results.as_slice(), expected.as_slice()) else {
        bail!("the test has {} results", results.len());
    };
    ensure!(found.to_f64().len() == expected.data.len(), "the result has the wrong size");
    for (i, (found, expected)) in found.to_f64().iter().zip(&expected.data).enumerate() {
        ensure!((found - expected).abs() <= 1e-5, "element {i} is {found}, not {expected}");
    }
    Ok(())
}
