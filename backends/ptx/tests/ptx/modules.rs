//! Whole modules, as the passes make kernels of them: each kernel's PTX does what the kernel means.

use crate::agree::{both, random};
use crate::gate::{count, pass};
use eva_ir::dim::Sym;
use eva_ir::eval::{Array, Sizes};
use eva_ir::graph::{Func, Module};
use eva_ir::kernel::run::{Storage, round};
use eva_ir::kernel::{Access, Kernel, Phase};
use eva_ir::testing::{Options as Wanted, random_module};
use eva_ir::types::DType;
use eva_passes::CacheOptions;
use eva_passes::cache::Layout;
use eva_passes::interpret::{Extents, How, interpret_with};
use eva_passes::plan::Plan;
use eva_passes::target::Target;
use eva_ptx::Ptx;
use std::collections::HashMap;
use std::path::PathBuf;

/// How far apart two results may be: of the larger, and of the largest number of the buffer.
fn limits(dtype: DType) -> (f64, f64) {
    match dtype {
        DType::I64 | DType::I32 => (0.0, 0.0),
        DType::F64 | DType::F32 => (2e-5, 1e-6),
        // A unit in the last place, where the last bits of an `f32` decide a tie; and some in what was summed.
        DType::Bf16 => (1.0 / 128.0, 2e-3),
        DType::F16 | DType::Tf32 => (1.0 / 1024.0, 2e-4),
        DType::F8E4M3 => (1.0 / 8.0, 1e-2),
        DType::F8E5M2 => (1.0 / 4.0, 1e-2),
        // Where the last bits of an `f32` decide.
        DType::E8M0 => (0.5, 0.0),
    }
}

/// A module's plan for a GPU, or why there is none.
fn compiled(module: &Module) -> Result<Plan, String> {
    // Caches stay as they are written, so that arguments fit.
    let cache = CacheOptions { layout: Layout::AsWritten, ..CacheOptions::default() };
    let options = eva_passes::Options { cache, ..eva_passes::Options::default() };
    eva_passes::compile(module, &Target::cuda(), &options).map_err(|e| e.to_string())
}

/// Runs a function's plan, and each kernel's PTX beside it on the same numbers.
fn check(plan: &Plan, func: Func, sizes: &Sizes, args: &[Array]) {
    let how = How { phase: Phase::Block, slack: 3, options: Default::default() };
    let mut made: HashMap<String, Ptx> = HashMap::new();
    let mut runner = |kernel: &Kernel, sizes: &Extents, storages: &mut [Storage], binding: &[usize]| {
        let ptx = made.entry(kernel.to_string()).or_insert_with(|| pass(kernel).0);
        let mut got = storages.to_vec();
        let stats = both(kernel, ptx, sizes, storages, &mut got, binding);
        for (&storage, (_, buf)) in
            binding.iter().zip(kernel.bufs.iter()).filter(|(_, (_, b))| b.access == Access::Write)
        {
            let (expected, got) = (&storages[storage].data, &got[storage].data);
            // The numbers that a product reads from registers are rounded first.
            let rounds = kernel
                .bufs
                .iter()
                .map(|(_, b)| b.dtype)
                .find(|d| kernel.to_string().contains("mma") && d.bytes() == 2);
            let (relative, of_largest) =
                limits(rounds.filter(|_| buf.dtype == DType::F32).unwrap_or(buf.dtype));
            let largest = expected.iter().filter(|x| x.is_finite()).fold(0.0f64, |m, x| m.max(x.abs()));
            for (i, (&x, &y)) in expected.iter().zip(got).enumerate() {
                let same = x == y || x.is_nan() && y.is_nan();
                let near = (x - y).abs() <= relative * x.abs().max(y.abs()) + of_largest * largest;
                assert!(
                    same || near,
                    "`{}`[{i}] is {x}, but the PTX says {y}\n{kernel}\n{}",
                    buf.name,
                    ptx.text
                );
            }
        }
        Ok(stats)
    };
    interpret_with(plan, func, sizes, args, &how, &mut runner).unwrap_or_else(|e| panic!("{e}"));
}

/// What follows `// name:` on the lines that start so.
fn said<'a>(text: &'a str, name: &str) -> Vec<&'a str> {
    let start = format!("// {name}:");
    text.lines().filter_map(|line| line.strip_prefix(start.as_str())).map(str::trim).collect()
}

/// Runs every function of a module with all the sizes that its text names.
pub fn case(name: &str, text: &str) {
    let module = eva_ir::text::parse(text).unwrap_or_else(|diags| panic!("{name}:\n{diags}"));
    let plan = compiled(&module).unwrap_or_else(|e| panic!("{name}: {e}"));
    let ints: HashMap<&str, Vec<f64>> = said(text, "ints")
        .into_iter()
        .map(|line| {
            let (name, numbers) = line.split_once('=').expect("`name = numbers`");
            (name.trim(), numbers.split_whitespace().map(|n| n.parse().expect("an integer")).collect())
        })
        .collect();
    for line in said(text, "sizes") {
        let given = line.split_whitespace().map(|pair| {
            let (name, n) = pair.split_once('=').expect("`name=n`");
            (Sym::from(name), n.parse().expect("an integer"))
        });
        let fixed = module.dims.iter().filter_map(|(sym, n)| Some((sym.clone(), (*n)?)));
        let sizes = Sizes(given.chain(fixed).collect());
        for (func, f) in module.funcs.iter() {
            println!("{name} @{} with {line}", f.name);
            // Of 8-bit floats the plan has codes, and scales as parameters of their own.
            let params = plan.funcs[func].params.iter().enumerate();
            let args: Vec<Array> = params
                .map(|(i, param)| {
                    let ty = &param.ty;
                    let shape: Vec<usize> = ty.shape.iter().map(|dim| sizes.of(dim)).collect();
                    let n = shape.iter().product();
                    let data: Vec<f64> = match ints.get(param.name.as_str()) {
                        Some(given) if ty.dtype.is_int() => (0..n).map(|i| given[i % given.len()]).collect(),
                        _ if ty.dtype.is_int() => vec![0.0; n],
                        _ => random(i as u64 + 1, n).map(|x| round(x, ty.dtype)).collect(),
                    };
                    Array::new(&shape, data)
                })
                .collect();
            check(&plan, func, &sizes, &args);
        }
    }
}

#[test]
fn kernels_of_cases_mean_the_same_as_ptx() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/cases/run");
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(paths.len() >= 4, "there are cases");
    for path in paths {
        case(&path.display().to_string(), &std::fs::read_to_string(&path).unwrap());
    }
}

/// Few rows, some, and many; weights as they are, and the other way round.
#[test]
fn products_of_tensor_cores_mean_the_same_as_ptx() {
    let module = "
dim m
dim k = 192
dim n = 264

fn @rows(%x: bf16[m, k], weight %w: bf16[n, k]) -> bf16[m, n] {
  %y = einsum \"mk,nk->mn\" %x, %w : bf16[m, n]
  return %y
}

fn @columns(%x: f16[m, k], weight %w: f16[k, n]) -> f16[m, n] {
  %y = einsum \"mk,kn->mn\" %x, %w : f16[m, n]
  return %y
}

// sizes: m=3
// sizes: m=50
// sizes: m=200
// sizes: m=530
";
    case("products", module);
}

/// Attention with its sums and its backward, and gradients of experts' weights, of 16-bit floats.
#[test]
fn gradients_of_tensor_cores_mean_the_same_as_ptx() {
    let module = "
dim b
dim s
dim t
dim g = 150
dim e = 3
dim h = 2
dim n = 72
dim p = 16
dim v = 40

fn @attention(
  %q: bf16[b, s, h, n], %k: bf16[b, t, h, n], %r: bf16[b, s, h, p], %c: bf16[b, t, p], %v: bf16[b, t, h, v],
  %start: i32[b], %delta: f32[b, h, s], %do: bf16[b, s, h, v],
) -> bf16[b, s, h, v], bf16[b, s, h, n], bf16[b, s, h, p], bf16[b, t, h, n], f32[h, b, t, p], bf16[b, t, h, v] {
  %both = attend_lse \"bshn,bthn,bshp,btp,bthv->bshv\" %q, %k, %r, %c, %v, %start {scale = 0.11} : (bf16[b, s, h, v], f32[b, h, s])
  %o = get %both {index = 0} : bf16[b, s, h, v]
  %lse = get %both {index = 1} : f32[b, h, s]
  %gq = attend_grad_queries \"bshn,bthn,bshp,btp,bthv->bshv\" %q, %k, %r, %c, %v, %start, %lse, %delta, %do {scale = 0.11} : (bf16[b, s, h, n], bf16[b, s, h, p])
  %dq = get %gq {index = 0} : bf16[b, s, h, n]
  %dr = get %gq {index = 1} : bf16[b, s, h, p]
  %gk = attend_grad_keys \"bshn,bthn,bshp,btp,bthv->bshv\" %q, %k, %r, %c, %v, %start, %lse, %delta, %do {scale = 0.11} : (bf16[b, t, h, n], f32[h, b, t, p], bf16[b, t, h, v])
  %dk = get %gk {index = 0} : bf16[b, t, h, n]
  %dc = get %gk {index = 1} : f32[h, b, t, p]
  %dv = get %gk {index = 2} : bf16[b, t, h, v]
  return %o, %dq, %dr, %dk, %dc, %dv
}

fn @latents(
  %q: bf16[b, s, h, v], %k: bf16[b, t, v], %r: bf16[b, s, h, p], %c: bf16[b, t, p], %start: i32[b], %delta: f32[b, h, s],
  %do: bf16[b, s, h, v],
) -> bf16[b, s, h, v], bf16[b, s, h, v], bf16[b, s, h, p], bf16[b, t, v], bf16[b, t, p], bf16[b, t, v] {
  %both = attend_lse \"bshv,btv,bshp,btp,bta->bsha\" %q, %k, %r, %c, %k, %start {scale = 0.11} : (bf16[b, s, h, v], f32[b, h, s])
  %o = get %both {index = 0} : bf16[b, s, h, v]
  %lse = get %both {index = 1} : f32[b, h, s]
  %gq = attend_grad_queries \"bshv,btv,bshp,btp,bta->bsha\" %q, %k, %r, %c, %k, %start, %lse, %delta, %do {scale = 0.11} : (bf16[b, s, h, v], bf16[b, s, h, p])
  %dq = get %gq {index = 0} : bf16[b, s, h, v]
  %dr = get %gq {index = 1} : bf16[b, s, h, p]
  %gk = attend_grad_keys \"bshv,btv,bshp,btp,bta->bsha\" %q, %k, %r, %c, %k, %start, %lse, %delta, %do {scale = 0.11} : (bf16[b, t, v], bf16[b, t, p], bf16[b, t, v])
  %dk = get %gk {index = 0} : bf16[b, t, v]
  %dc = get %gk {index = 1} : bf16[b, t, p]
  %dv = get %gk {index = 2} : bf16[b, t, v]
  return %o, %dq, %dr, %dk, %dc, %dv
}

fn @experts(%x: bf16[g, n], %y: bf16[g, v], %offsets: i32[e + 1], %z: bf16[b, s, t]) -> f32[e, v, n], bf16[b, s, t] {
  %w = grouped_outer \"gn,gv->evn\" %x, %y, %offsets : bf16[e, v, n]
  %wide = cast %w {to = f32} : f32[e, v, n]
  %same = scale %z {by = 2.0} : bf16[b, s, t]
  return %wide, %same
}

// ints: start = 31 0
// ints: offsets = 5 64 64 141
// sizes: b=2 s=70 t=133
// sizes: b=1 s=3 t=40
";
    case("gradients", module);
}

/// Codes and scales of several kinds; what is quantized before; weights of 8 bits that are numbers when they are read.
#[test]
fn products_of_codes_mean_the_same_as_ptx() {
    let module = "
dim m
dim k = 272
dim n = 200

fn @blocks(%x: bf16[m, k], weight %w: f8e4m3[n/128, k/128]) -> bf16[m, n] {
  %q = quantize %x {to = f8e4m3, per = [1, 128], scales = single, least = 1e-4} : f8e4m3[m, k/128]
  %y = einsum \"mk,nk->mn\" %q, %w : f32[m, n]
  %z = cast %y {to = bf16} : bf16[m, n]
  return %z
}

fn @short(%x: f8e5m2[m, k/32; e8m0], weight %w: f8e4m3[n, k/32; e8m0]) -> f32[m, n] {
  %y = einsum \"mk,nk->mn\" %x, %w : f32[m, n]
  return %y
}

fn @rows(%x: f8e4m3[m, k/*], weight %w: f8e4m3[n/*, k/*]) -> f32[m, n] {
  %y = einsum \"mk,nk->mn\" %x, %w : f32[m, n]
  return %y
}

fn @weights(%x: f32[m, k], weight %w: f8e4m3[n/16, k/16; pow2]) -> f32[m, n] {
  %d = dequantize %w {to = f32} : f32[n, k]
  %y = einsum \"mk,nk->mn\" %x, %d : f32[m, n]
  return %y
}

// sizes: m=3
// sizes: m=50
// sizes: m=139
";
    case("codes", module);
    let experts = "
dim m
dim k = 272
dim n = 200
dim e = 3

fn @experts(%x: f8e4m3[m, k/128], weight %w: f8e4m3[e, n/128, k/128], %offsets: i32[e + 1]) -> f32[m, n] {
  %y = grouped \"mk,enk->mn\" %x, %w, %offsets : f32[m, n]
  return %y
}

// sizes: m=139
// ints: offsets = 0 2 130 139
";
    case("codes of experts", experts);
    let many = experts
        .replace("m=139", "m=790")
        .replace("2 130 139", "2 131 790")
        .replace("@experts", "@rows_of_experts");
    case("codes of many rows of experts", &many);
}

/// Tiles of experts' rows, whose numbers are looked up.
#[test]
fn rows_of_many_experts_mean_the_same_as_ptx() {
    let module = "
dim m
dim k = 24
dim n = 8
dim e = 11

fn @many(%x: bf16[m, k], weight %w: bf16[e, n, k], %offsets: i32[e + 1]) -> bf16[m, n] {
  %y = grouped \"mk,enk->mn\" %x, %w, %offsets : bf16[m, n]
  return %y
}

// sizes: m=2830
// ints: offsets = 5 5 260 516 516 517 1030 1030 1030 2500 2790 2830
";
    case("rows of many experts", module);
}

/// Operands of gradients, which are quantized as they are turned.
#[test]
fn turned_operands_mean_the_same_as_ptx() {
    let module = include_str!("../../../../tests/cases/tensor/turned.eva");
    case("turned", module);
}

/// Experts' rows, moved to where tiles of them begin.
#[test]
fn sums_of_codes_of_rows_of_experts_mean_the_same_as_ptx() {
    let module = "
dim g
dim e = 3
dim f = 208
dim m = 144

fn @gradient(%x: bf16[g, f], %y: bf16[g, m], %offsets: i32[e + 1]) -> f32[e, f, m], i32[e + 1] {
  %starts = align_offsets %offsets {rows = 128} : i32[e + 1]
  %q = quantize_by_expert %x, %offsets, %starts {to = f8e4m3, rows = 128, scales = single, least = 1e-4} : f8e4m3[f, g + 128*e/128]
  %r = quantize_by_expert %y, %offsets, %starts {to = f8e4m3, rows = 128, scales = single, least = 1e-4} : f8e4m3[m, g + 128*e/128]
  %w = grouped_outer \"fg,mg->efm\" %q, %r, %starts : f32[e, f, m]
  return %w, %starts
}

// sizes: g=304
// ints: offsets = 0 70 70 304
";
    case("codes of experts' rows", &module.replace("dim g\n", "dim g = 304\n"));
}

/// Rows of tokens are moved 16 bytes at a time, as codes or not, and nothing is widened or rounded on the way.
#[test]
fn rows_are_moved_in_whole_accesses() {
    let text = "dim t = 64 dim k = 8 dim m = 7168
fn @moved(%q: f8e4m3[t, m/128], %x: bf16[t, m], %order: i32[t*k]) -> f8e4m3[t*k, m/128], bf16[t*k, m] {
  %codes = dispatch %q, %order {k = [k]} : f8e4m3[t*k, m/128]
  %rows = dispatch %x, %order {k = [k]} : bf16[t*k, m]
  return %codes, %rows
}";
    let plan = compiled(&eva_ir::text::parse(text).unwrap()).unwrap();
    for (name, accesses) in [("moved.codes", 1), ("moved.rows", 2)] {
        let kernel = plan.kernels.iter().find(|(_, kernel)| kernel.name == name).unwrap().1;
        let ptx = pass(kernel).0.text;
        let words = ["ld.global.nc.v4.b32", "st.global.v4.b32", "st.global", "cvt.r"];
        assert_eq!(words.map(|word| count(&ptx, word)), [accesses, accesses, accesses, 0], "{ptx}");
    }
}

/// The case of latent attention, in bf16 and as wide as tensor cores have it.
#[test]
fn latent_attention_of_tensor_cores_means_the_same_as_ptx() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/cases/run/mla.eva");
    let text = std::fs::read_to_string(path).unwrap();
    let wide = [("m", 128), ("r", 96), ("c", 64), ("h", 16), ("n", 48), ("p", 32), ("v", 80)];
    let line = |line: &str| {
        let dim = line.strip_prefix("dim ").and_then(|dim| dim.split_once(" = "));
        match dim.and_then(|(dim, _)| wide.iter().find(|(name, _)| *name == dim)) {
            Some((name, n)) => format!("dim {name} = {n}\n"),
            // Angles stay as they are.
            None if line.contains("freqs") || line.contains("%table =") => format!("{line}\n"),
            None if line.starts_with("//") => String::new(),
            None => line.replace("f32[", "bf16[") + "\n",
        }
    };
    let text: String = text.lines().map(line).collect();
    let runs =
        "// sizes: b=2 s=1 t=70\n// sizes: b=1 s=37 t=90\n// ints: start = 69 40\n// ints: positions = 50 51";
    case("latent attention", &(text + runs));
}

/// Blocks of keys come by bulk copies from the pages that a table names.
#[test]
fn attention_over_pages_means_the_same_as_ptx() {
    for width in [128, 384] {
        let module = format!(
            "dim b dim s dim t dim g dim k dim h = 5 dim c = {width} dim p = 16 dim n = 72
fn @f(%q: bf16[b, s, h, c], %r: bf16[b, s, h, p], %start: i32[b], %table: i32[b, k], %new: bf16[b, s, c],
  %new_k: bf16[b, s, p], weight %w: bf16[h, n, c], state %kv: bf16[g, 64, c], state %k: bf16[g, 64, p],
) -> bf16[b, s, h, c], bf16[b, t, h, n], bf16[g, 64, c], bf16[g, 64, p] {{
  %pool = page_write %kv, %new, %table, %start : bf16[g, 64, c]
  %pool_k = page_write %k, %new_k, %table, %start : bf16[g, 64, p]
  %all = page_read %pool, %table {{tokens = [t]}} : bf16[b, t, c]
  %all_k = page_read %pool_k, %table {{tokens = [t]}} : bf16[b, t, p]
  %o = attend \"bshc,btc,bshp,btp,btd->bshd\" %q, %all, %r, %all_k, %all, %start {{scale = 0.09}} : bf16[b, s, h, c]
  %keys = einsum \"btc,hnc->bthn\" %all, %w : bf16[b, t, h, n]
  return %o, %keys, %pool, %pool_k
}}
// sizes: b=2 s=1 t=70 g=5 k=2
// ints: start = 69 40
// ints: table = 4 1 3 0
"
        );
        case(&format!("pages, {width} wide"), &module);
    }
}

#[test]
fn kernels_of_random_modules_mean_the_same_as_ptx() {
    let mut ran = 0;
    for seed in 0..24 {
        let wanted = Wanted { ops: 4 + seed as usize % 9, narrow: seed % 2 == 1, calls: seed % 3 == 0 };
        let sample = random_module(seed, wanted);
        println!("seed {seed}");
        match compiled(&sample.module) {
            Ok(plan) => {
                check(&plan, sample.func, &sample.sizes, &sample.args(seed));
                ran += 1;
            }
            // There is no f64 on a GPU.
            Err(why) => assert!(why.contains("f64"), "seed {seed}: {why}"),
        }
    }
    assert!(ran >= 15, "{ran} modules ran");
}
