//! How long a training step of a decoder block takes.
//!
//! ```text
//! cargo run --release -p eva-runtime [--features cuda] --example block -- [cpu|cuda] [f32|bf16] [TOKENS] [STEPS]
//! ```
//!
//! The forward pass, and the gradients of all weights and of the input. Numbers are random; each gradient is written where
//! the one of the step before was, as an optimizer has it. On a GPU, with up to 512 tokens, gradients are compared with the
//! CPU's.

use eva_ir::eval::Sizes;
use eva_ir::graph::ParamKind;
use eva_ir::types::TensorType;
use eva_passes::grad::{self, differentiate};
use eva_passes::hoist::Hoist;
use eva_runtime::{CompileOptions, Device, Executable, Session, Shared, Tensor, Weights};
use rand::{RngExt, SeedableRng};
use std::error::Error;
use std::sync::Arc;
use std::time::Instant;

/// A gradient's name and numbers.
type Gradients = Vec<(String, Vec<f64>)>;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let arg = |i: usize, other: &str| args.get(i).cloned().unwrap_or_else(|| other.into());
    let device: Device = arg(0, "cpu").parse()?;
    let (dtype, tokens, steps) = (arg(1, "f32"), arg(2, "256").parse()?, arg(3, "15").parse()?);
    let have = run(device, &dtype, tokens, steps)?;
    if device == Device::Cpu || tokens > 512 {
        return Ok(());
    }
    let want = run(Device::Cpu, &dtype, tokens, 1)?;
    for ((name, have), (_, want)) in have.iter().zip(&want) {
        let norm = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>().sqrt();
        let apart: Vec<f64> = have.iter().zip(want).map(|(x, y)| x - y).collect();
        println!("{name}: {:.1e} apart, relative to {:.3e}", norm(&apart) / norm(want), norm(want));
    }
    Ok(())
}

/// Runs so many steps and says how long they took; the gradients.
fn run(device: Device, dtype: &str, tokens: usize, steps: usize) -> Result<Gradients, Box<dyn Error>> {
    let module = eva_ir::text::parse(&include_str!("block.eva").replace("T[", &format!("{dtype}[")))?;
    let started = Instant::now();
    let module = differentiate(&module, "loss", &grad::Options::default())?;
    let passes = eva_passes::Options { hoist: Hoist::Never, ..Default::default() };
    let options = CompileOptions { passes, device, ..Default::default() };
    let exe = Arc::new(Executable::compile(&module, &options)?);
    println!("{device:?}: compiled in {:.0} ms", started.elapsed().as_secs_f64() * 1e3);

    let fixed = module.dims.iter().filter_map(|(sym, n)| Some((sym.clone(), (*n)?)));
    let sizes = Sizes(fixed.chain([("b".into(), 1), ("s".into(), tokens as i64)]).collect());
    let shape_of = |ty: &TensorType| ty.shape.iter().map(|dim| sizes.of(dim)).collect::<Vec<_>>();
    let plan = exe.func_plan(exe.func("loss.grad")?);
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(7);
    let (mut weights, mut inputs) = (Weights::new(), Vec::new());
    for param in plan.given() {
        let shape = shape_of(&param.ty);
        let by = match param.name.as_str() {
            name if name.starts_with("g_") || name == "loss.grad" => None,
            name if name.starts_with("w_") || name.starts_with("s_") => Some(0.035),
            "start" | "bias" | "shift" => Some(0.0),
            _ => Some(1.7),
        };
        let mut number = || by.map_or(1.0, |by: f64| random.random_range(-1.0..1.0) * by);
        let numbers: Vec<f64> = (0..shape.iter().product()).map(|_| number()).collect();
        let tensor = Tensor::from_f64(param.ty.dtype, &shape, &numbers);
        match param.kind {
            ParamKind::Weight => drop(weights.insert(param.name.clone(), Arc::new(tensor.into()))),
            _ => inputs.push((param.name.clone(), tensor)),
        }
    }
    let inputs: Vec<_> = inputs.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let mut parts = Vec::new();
    for result in plan.results.iter().filter(|result| result.name.ends_with(".grad")) {
        let (shape, dtype) = (shape_of(&result.ty), result.ty.dtype);
        let bytes = shape.iter().product::<usize>() * dtype.bytes() as usize;
        parts.push((result.name.clone(), Shared::zeroed(&exe, bytes, &result.name)?.part(0, dtype, &shape)?));
    }
    let into: Vec<_> = parts.iter().map(|(name, part)| (name.as_str(), part)).collect();

    let mut session = Session::new(exe.clone(), "loss.grad", &weights)?;
    let (mut times, mut loss) = (Vec::new(), Vec::new());
    for step in 0..steps + 2 {
        let started = Instant::now();
        session.start_into(&inputs, None, &[], &into)?;
        loss = session.take(&plan.results[0].name)?.to_f32();
        if step >= 2 {
            times.push(started.elapsed().as_secs_f64() * 1e3);
        }
    }
    times.sort_by(f64::total_cmp);
    let (median, least) = (times[times.len() / 2], times[0]);
    println!(
        "{tokens} tokens in {dtype}, loss {loss:?}: median {median:.2} ms, least {least:.2} ms of {steps}"
    );
    #[cfg(feature = "cuda")]
    if device != Device::Cpu {
        slowest(&mut session, &inputs)?;
    }
    parts.iter().map(|(name, part)| Ok((name.clone(), part.read()?.to_f64()))).collect()
}

/// Says which kernels take longest.
#[cfg(feature = "cuda")]
fn slowest(session: &mut Session, inputs: &[(&str, &Tensor)]) -> Result<(), Box<dyn Error>> {
    use eva_runtime::cuda::bench::{CallOptions, Timed, launches};
    let exe = session.executable().clone();
    let mut call = Timed { session, inputs, states: None, sizes: &[] };
    let mut kernels = launches(&mut call, &CallOptions { runs: 3, ..CallOptions::default() })?;
    kernels.sort_by_key(|(_, time)| std::cmp::Reverse(*time));
    for (kernel, time) in kernels.iter().take(24) {
        println!("{:9.1} µs {}", time.as_secs_f64() * 1e6, exe.plan().kernels[*kernel].name);
    }
    Ok(())
}
