//! Whether a GPU computes what the CPU does: memory, compiling, the folder of compiled kernels, calls, graphs, caches.
//!
//! ```text
//! cargo run -p eva-runtime --features cuda --example cuda_smoke [-- [cuda:N] [FILE.eva …]]
//! ```
//!
//! Runs the modules built in, or those of the files, which say their sizes as `tests/cases/run` does. Every function is
//! called several times with several sizes, so that graphs are made and changed. Exits with 1 if anything differs.

use eva_ir::dim::Sym;
use eva_ir::graph::{Module, ParamKind};
use eva_ir::text::parse;
use eva_ir::types::DType;
use eva_ir::verify::verify;
use eva_passes::CacheOptions;
use eva_passes::cache::Layout;
use eva_runtime::cuda::{CacheFolder, Gpu, bench};
use eva_runtime::{CompileOptions, Device, Error, Executable, Session, Tensor, Weights};
use std::collections::HashMap;
use std::error::Error as AnyError;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The modules that are run if no files are named, simple ones first.
const MODULES: [(&str, &str); 14] = [
    ("norm", NORM),
    ("product", PRODUCT),
    ("products in bf16", PRODUCT_BF16),
    ("weights of weights", PREPARED),
    ("tf32.eva", include_str!("../../tests/cases/run/tf32.eva")),
    ("functions.eva", include_str!("../../tests/cases/run/functions.eva")),
    ("tokens.eva", include_str!("../../tests/cases/run/tokens.eva")),
    ("routers.eva", include_str!("../../tests/cases/run/routers.eva")),
    ("sorted.eva", include_str!("../../tests/cases/run/sorted.eva")),
    ("dispatched.eva", include_str!("../../tests/cases/run/dispatched.eva")),
    ("mla.eva", include_str!("../../tests/cases/run/mla.eva")),
    ("naive.eva", include_str!("../../tests/cases/run/naive.eva")),
    ("pages.eva", include_str!("../../tests/cases/run/pages.eva")),
    ("pages in bf16", PAGES_BF16),
];

const NORM: &str = "// sizes: s=5
// sizes: s=37
// sizes: s=1
dim s dim m = 1024
fn @norm(%x: f32[s, m], weight %g: f32[m]) -> f32[s, m], f32[s, m] {
  %y = rms_norm %x, %g {eps = 1e-6} : f32[s, m]
  %z = add %y, %x : f32[s, m]
  return %y, %z
}";

const PRODUCT: &str = "// sizes: s=37
// sizes: s=130
// sizes: s=1
dim s dim m = 96 dim n = 200
fn @product(%x: f32[s, m], weight %g: f32[m], weight %w: f32[n, m]) -> f32[s, n] {
  %h = rms_norm %x, %g {eps = 1e-6} : f32[s, m]
  %y = einsum \"sm,nm->sn\" %h, %w : f32[s, n]
  %z = sigmoid %y : f32[s, n]
  return %z
}";

/// Weights that are computed of others when the function is loaded: folded, joined, and narrowed.
const PREPARED: &str = "// sizes: s=37
// sizes: s=130
// sizes: s=1
dim s dim m = 96 dim r = 64 dim h = 160
fn @layer(%x: bf16[s, m], weight %u: bf16[h, r], weight %v: bf16[h, m], weight %a: bf16[r, m], weight %g: f32[m])
    -> bf16[s, m], bf16[s, r] {
  %uv = einsum \"hr,hm->rm\" %u, %v : bf16[r, m]
  %y  = einsum \"sm,rm->sr\" %x, %uv : bf16[s, r]
  %ab = concat %uv, %a {axis = 0} : bf16[2*r, m]
  %z  = einsum \"sm,em->se\" %x, %ab : bf16[s, 2*r]
  %z0 = slice %z {axis = 1, range = 0..r} : bf16[s, r]
  %d  = add %z0, %y : bf16[s, r]
  %gg = mul %g, %g : f32[m]
  %g2 = cast %gg {to = bf16} : bf16[m]
  %xg = mul %x, %g2 : bf16[s, m]
  return %xg, %d
}
fn @main(%x: bf16[s, m], weight %u: bf16[h, r], weight %v: bf16[h, m], weight %a: bf16[r, m], weight %g: f32[m],
    weight %k: f32[m]) -> bf16[s, m], bf16[s, r], bf16[s, r] {
  %gk = mul %g, %k : f32[m]
  %0  = call @layer %x, %u, %v, %a, %g : (bf16[s, m], bf16[s, r])
  %x1 = get %0 {index = 0} : bf16[s, m]
  %d0 = get %0 {index = 1} : bf16[s, r]
  %1  = call @layer %x1, %u, %v, %a, %gk : (bf16[s, m], bf16[s, r])
  %x2 = get %1 {index = 0} : bf16[s, m]
  %d1 = get %1 {index = 1} : bf16[s, r]
  return %x2, %d0, %d1
}";

const PAGES_BF16: &str = "// sizes: b=2 s=1 t=700 g=32 k=11
// sizes: b=2 s=9 t=150 g=32 k=3
// ints: start = 690 140
// ints: table = 4 31 17 9 30 2 12 22 7 15 1 25 11 0 18 5 28 3 24 19 8 14
dim b dim s dim t dim g dim k dim h = 16 dim c = 512 dim p = 64 dim n = 128
fn @f(%q: bf16[b, s, h, c], %r: bf16[b, s, h, p], %start: i32[b], %table: i32[b, k], %new: bf16[b, s, c],
  %new_k: bf16[b, s, p], weight %w: bf16[h, n, c], state %kv: bf16[g, 64, c], state %k: bf16[g, 64, p],
) -> bf16[b, s, h, c], bf16[b, t, h, n], bf16[g, 64, c], bf16[g, 64, p] {
  %pool = page_write %kv, %new, %table, %start : bf16[g, 64, c]
  %pool_k = page_write %k, %new_k, %table, %start : bf16[g, 64, p]
  %all = page_read %pool, %table {tokens = [t]} : bf16[b, t, c]
  %all_k = page_read %pool_k, %table {tokens = [t]} : bf16[b, t, p]
  %o = attend \"bshc,btc,bshp,btp,btd->bshd\" %q, %all, %r, %all_k, %all, %start {scale = 0.09} : bf16[b, s, h, c]
  %keys = einsum \"btc,hnc->bthn\" %all, %w : bf16[b, t, h, n]
  return %o, %keys, %pool, %pool_k
}";

const PRODUCT_BF16: &str = "// sizes: s=300
// sizes: s=129
// sizes: s=1
// sizes: s=4096
dim s dim m = 512 dim n = 768
fn @product(%x: bf16[s, m], weight %w: bf16[n, m]) -> bf16[s, n] {
  %y = einsum \"sm,nm->sn\" %x, %w : bf16[s, n]
  return %y
}";

type Outcome<T> = Result<T, Box<dyn AnyError>>;

fn main() -> ExitCode {
    match run() {
        Ok(0) => {
            println!("all right");
            return ExitCode::SUCCESS;
        }
        Ok(n) => println!("{n} wrong"),
        Err(e) => println!("{e}"),
    }
    ExitCode::FAILURE
}

/// How much is wrong.
fn run() -> Outcome<usize> {
    let (mut device, mut files) = (Device::Cuda(0), Vec::new());
    for arg in std::env::args().skip(1) {
        match arg.parse() {
            Ok(named) => device = named,
            Err(_) => files.push(arg),
        }
    }
    let Device::Cuda(ordinal) = device else { return Err("the CPU is what a GPU is compared with".into()) };
    let gpu = Gpu::open(ordinal)?;
    println!("{:?}", gpu.properties);
    memory(&gpu)?;
    let mut wrong = 0;
    let mut check = |name: &str, text: &str| match module(name, text, device) {
        Ok(differing) => wrong += differing,
        Err(e) => {
            println!("{name}: {e}");
            wrong += 1;
        }
    };
    if files.is_empty() {
        MODULES.iter().for_each(|(name, text)| check(name, text));
    }
    for file in &files {
        check(file, &std::fs::read_to_string(file).map_err(|e| format!("{file}: {e}"))?);
    }
    Ok(wrong)
}

/// Bytes come back as they went, in large pieces and small.
fn memory(gpu: &Arc<Gpu>) -> Outcome<()> {
    let (free, total) = gpu.free_memory()?;
    println!("{free} of {total} bytes are free");
    let bytes: Vec<u8> = (0..100_000_003usize).map(|i| (i * 31 + i / 65_521) as u8).collect();
    let buffer = gpu.zeroed(bytes.len() + 11, "a test")?;
    let started = Instant::now();
    buffer.write(7, &bytes)?;
    gpu.synchronize()?;
    let up = started.elapsed();
    let mut back = vec![1; bytes.len() + 11];
    let started = Instant::now();
    buffer.read(0, &mut back)?;
    let down = started.elapsed();
    let whole =
        back[..7] == [0; 7] && back[7..bytes.len() + 7] == bytes[..] && back[bytes.len() + 7..] == [0; 4];
    if !whole {
        return Err("memory came back changed".into());
    }
    for i in 0..1000 {
        buffer.write(i * 3, &[i as u8; 3])?;
    }
    buffer.read(0, &mut back[..3000])?;
    if !back[..3000].iter().enumerate().all(|(i, &byte)| byte == (i / 3) as u8) {
        return Err("small pieces came back changed".into());
    }
    if buffer.write(bytes.len(), &[0; 12]).is_ok() {
        return Err("a write beyond a buffer was taken".into());
    }
    match gpu.allocate(total * 2, "too much") {
        Err(e) => println!("as it should be: {e}"),
        Ok(_) => return Err("more memory than there is was given".into()),
    }
    let rate = |time: Duration| bytes.len() as f64 / time.as_secs_f64() / 1e9;
    println!("copies: {:.1} GB/s there, {:.1} GB/s back", rate(up), rate(down));
    Ok(())
}

/// What follows `// name:` on the lines that start so.
fn said<'a>(text: &'a str, name: &str) -> Vec<&'a str> {
    let start = format!("// {name}:");
    text.lines().filter_map(|line| line.strip_prefix(start.as_str())).map(str::trim).collect()
}

/// Runs all functions of a module on both devices; how many results differ.
fn module(name: &str, text: &str, device: Device) -> Outcome<usize> {
    println!("--- {name}");
    let module = parse(text).map_err(|diags| diags.to_string())?;
    verify(&module).map_err(|diags| diags.to_string())?;
    // Caches stay as they are written, so that states fit.
    let cache = CacheOptions { layout: Layout::AsWritten, ..CacheOptions::default() };
    let passes = eva_passes::Options { cache, ..eva_passes::Options::default() };
    let on_cpu = CompileOptions { passes: passes.clone(), ..CompileOptions::default() };
    let on_cpu = Arc::new(Executable::compile(&module, &on_cpu)?);
    let folder = std::env::temp_dir().join(format!("eva-cuda-smoke-{}", std::process::id()));
    let mut options = CompileOptions { passes, device, ..CompileOptions::default() };
    options.cuda.cache = CacheFolder::At(folder.clone());
    let on_gpu = Executable::compile(&module, &options);
    // Made again, it is found.
    let again = on_gpu.as_ref().ok().map(|_| Executable::compile(&module, &options));
    let _ = std::fs::remove_dir_all(&folder);
    let on_gpu = Arc::new(on_gpu?);
    println!("{:?}", on_gpu.times);
    for kernel in on_gpu.loaded() {
        let (registers, spilled, shared) = (kernel.registers, kernel.spilled, kernel.shared);
        println!(
            "  {}: {} threads, {registers} registers, {spilled} bytes spilled, {shared} shared",
            kernel.name, kernel.threads
        );
    }
    let again = again.transpose()?.map_or(0, |exe| exe.times.cached);
    if again != on_gpu.loaded().len() {
        return Err(
            format!("only {again} of {} kernels were found in the folder", on_gpu.loaded().len()).into()
        );
    }
    let mut sizes = Vec::new();
    for line in said(text, "sizes") {
        let pairs = line.split_whitespace().filter_map(|pair| pair.split_once('='));
        sizes.push(pairs.map(|(name, n)| Ok((name, n.parse()?))).collect::<Outcome<Vec<(&str, usize)>>>()?);
    }
    let mut ints: HashMap<&str, Vec<f64>> = HashMap::new();
    for line in said(text, "ints") {
        let (name, numbers) = line.split_once('=').ok_or("`// ints: name = numbers`")?;
        let numbers = numbers.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
        ints.insert(name.trim(), numbers);
    }
    let mut wrong = 0;
    for (_, f) in module.funcs.iter() {
        wrong += function(&module, &f.name, [&on_cpu, &on_gpu], &sizes, &ints)?;
    }
    Ok(wrong)
}

/// Calls a function with all sizes, three rounds of them; how many results differ between the devices.
fn function(
    module: &Module,
    name: &str,
    exes: [&Arc<Executable>; 2],
    sizes: &[Vec<(&str, usize)>],
    ints: &HashMap<&str, Vec<f64>>,
) -> Outcome<usize> {
    let plan = exes[0].func_plan(exes[0].func(name)?);
    let mut seed = 1;
    let mut tensor = |param: &eva_passes::plan::ParamPlan, given: &[(&str, usize)]| -> Outcome<Tensor> {
        seed += 1;
        let fixed = |sym: &Sym| module.dims.iter().find(|(name, _)| name == sym).and_then(|(_, n)| *n);
        let value = |sym: &Sym| {
            given
                .iter()
                .find(|(name, _)| *name == sym.as_str())
                .map(|&(_, n)| n as i64)
                .or_else(|| fixed(sym))
        };
        let extents = param.ty.shape.iter().map(|dim| dim.eval(&value).and_then(|n| usize::try_from(n).ok()));
        let shape: Vec<usize> = extents.collect::<Option<_>>().ok_or("a size is not given")?;
        let n: usize = shape.iter().product();
        let dtype = param.ty.dtype;
        Ok(match ints.get(param.name.as_str()) {
            Some(given) if dtype.is_int() => {
                Tensor::from_f64(dtype, &shape, &(0..n).map(|i| given[i % given.len()]).collect::<Vec<_>>())
            }
            _ => Tensor::from_bytes(dtype, &shape, &bench::random(dtype, n, seed)).ok_or("sizes differ")?,
        })
    };
    let mut weights = Weights::new();
    for param in plan.weights() {
        weights.insert(param.name.clone(), Arc::new(tensor(param, &[])?.into()));
    }
    let mut sessions =
        [Session::new(exes[0].clone(), name, &weights)?, Session::new(exes[1].clone(), name, &weights)?];
    let mut wrong = 0;
    for round in 0..3 {
        for given in sizes {
            let mut inputs = Vec::new();
            let mut states = Vec::new();
            for param in &plan.params {
                match param.kind {
                    ParamKind::Input => inputs.push((param.name.as_str(), tensor(param, given)?)),
                    ParamKind::State => states.push((param.name.as_str(), tensor(param, given)?)),
                    ParamKind::Weight => {}
                }
            }
            let inputs: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, tensor)| (*name, tensor)).collect();
            let [want, have] = &mut sessions;
            let want = call(want, &inputs, &states, given)?;
            let have = call(have, &inputs, &states, given)?;
            for ((result, want), (_, have)) in want.iter().zip(&have) {
                let (difference, limit) = (difference(have, want), tolerance(want.dtype()));
                let ok = difference <= limit;
                wrong += usize::from(!ok);
                if !ok || round == 0 {
                    let verdict = if ok { "ok" } else { "WRONG" };
                    println!(
                        "  @{name} {given:?} round {round}: {result} differs by {difference:.1e} ({verdict})"
                    );
                }
            }
        }
    }
    let (gpu, last) = (exes[1].gpu().ok_or("it is not on a GPU")?, sizes.last().ok_or("no sizes")?);
    if plan.params.iter().all(|p| p.kind != ParamKind::State) {
        let mut inputs = Vec::new();
        for param in plan.params.iter().filter(|p| p.kind == ParamKind::Input) {
            inputs.push((param.name.as_str(), tensor(param, last)?));
        }
        let inputs: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, tensor)| (*name, tensor)).collect();
        let session = &mut sessions[1];
        for graphs in [false, true] {
            session.use_graphs(graphs);
            let timing = bench::runs::<Error>(gpu, 50, || session.start(&inputs, None, last))?;
            println!("  @{name} {last:?}: {:?} a call, graphs: {graphs}", timing.median());
        }
    }
    Ok(wrong)
}

/// The results of a call, and the states after it.
fn call(
    session: &mut Session,
    inputs: &[(&str, &Tensor)],
    before: &[(&str, Tensor)],
    sizes: &[(&str, usize)],
) -> Outcome<Vec<(String, Tensor)>> {
    let batch = before.first().map_or(1, |(_, tensor)| tensor.shape()[0]);
    let tokens = before.iter().map(|(_, tensor)| tensor.shape()[1]).max().unwrap_or(0);
    let mut states = match session.page_rows() {
        Some(_) => session.new_pages(batch)?,
        None => session.new_states(batch, tokens + 3)?,
    };
    for (name, tensor) in before {
        states.write(name, tensor)?;
    }
    let mut results = session.run(inputs, Some(&mut states), sizes)?;
    for (name, tensor) in before {
        results.push((format!("{name} (afterwards)"), states.read(name, tensor.shape()[1])?));
    }
    Ok(results)
}

/// The largest difference, over the largest magnitude (1 at least).
fn difference(have: &Tensor, want: &Tensor) -> f64 {
    if have.shape() != want.shape() {
        return f64::INFINITY;
    }
    let (have, want) = (have.to_f64(), want.to_f64());
    let scale = want.iter().fold(1.0f64, |m, x| m.max(x.abs()));
    let worst = have.iter().zip(&want).map(|(x, y)| if x == y { 0.0 } else { (x - y).abs() });
    worst.fold(0.0f64, |m, d| if d.is_nan() || m.is_nan() { f64::NAN } else { m.max(d) }) / scale
}

/// How far results may be apart, by their type.
fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::Bf16 => 2e-2,
        DType::F16 => 2e-3,
        _ => 2e-5,
    }
}
