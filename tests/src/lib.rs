//! What the tests share: random inputs, closeness, and the chain of evaluator, interpreters and machine code.

pub mod gradients;
pub mod scaled;

use eva_ir::dim::Sym;
use eva_ir::eval::{Array, Sizes, eval_values};
use eva_ir::graph::{Def, Func, Function, Module, ParamKind};
use eva_ir::kernel::Phase;
use eva_ir::testing::Sample;
use eva_ir::text;
use eva_ir::types::DType;
use eva_passes::CacheOptions;
use eva_passes::cache;
use eva_passes::interpret::{How, interpret};
use eva_passes::plan::Plan;
use eva_passes::target::Target;
use eva_runtime::{CompileOptions, Executable, Session, Tensor, Weights};
use std::collections::HashMap;
use std::sync::Arc;

/// Values of extents by name; a module's fixed ones are added to them.
pub fn sizes(module: &Module, given: &[(&str, i64)]) -> Sizes {
    let fixed = module.dims.iter().filter_map(|(sym, n)| Some((sym.clone(), (*n)?)));
    let given = given.iter().map(|&(name, n)| (Sym::from(name), n));
    Sizes(given.chain(fixed).collect())
}

/// A generator of numbers that is the same everywhere.
pub struct Random(pub u64);

impl Random {
    /// A number in `-1.0..1.0`.
    pub fn number(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((self.0 >> 33) as f64 / (1u64 << 30) as f64) - 1.0
    }

    /// An integer in `0..n`.
    pub fn below(&mut self, n: usize) -> usize {
        (((self.number() + 1.0) / 2.0 * n as f64) as usize).min(n.saturating_sub(1))
    }
}

/// One argument a parameter: floats rounded to the parameter's type; integers from `ints` by the parameter's name,
/// or zero.
pub fn arguments(f: &Function, sizes: &Sizes, seed: u64, ints: &HashMap<&str, Vec<i64>>) -> Vec<Array> {
    let mut random = Random(seed);
    let mut argument = |value| {
        let ty = f.tensor(value).expect("parameters are tensors");
        let shape: Vec<usize> = ty.shape.iter().map(|d| sizes.of(d)).collect();
        let given = ints.get(f.values[value].name.as_str());
        let n: usize = shape.iter().product();
        let data = (0..n).map(|i| match ty.dtype.is_int() {
            true => given.map_or(0.0, |g| g[i % g.len()] as f64),
            false => eva_ir::kernel::run::round(random.number(), ty.dtype),
        });
        let array = Array::new(&shape, data.collect());
        // What 8-bit floats can be is decided by their blocks.
        if ty.scales.is_some() { scaled::quantized(ty, &array) } else { array }
    };
    f.params().map(|(value, _)| argument(value)).collect()
}

/// The largest difference between two arrays, over the largest magnitude of the second (1 at least).
pub fn difference(a: &Array, b: &Array) -> f64 {
    assert_eq!(a.shape, b.shape, "the same shape");
    let scale = b.data.iter().fold(1.0f64, |m, x| m.max(x.abs()));
    let worst = a.data.iter().zip(&b.data).map(|(x, y)| if x == y { 0.0 } else { (x - y).abs() });
    worst.fold(0.0f64, |m, d| if m.is_nan() || d.is_nan() { f64::NAN } else { m.max(d) }) / scale
}

/// How far results may be from the evaluator's, by their type.
pub fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::Bf16 => 4e-2,
        DType::F16 | DType::Tf32 => 4e-3,
        _ => 2e-5,
    }
}

/// Checks evaluator = tile interpreter = lane interpreter = machine code, and evaluator = tile interpreter = block
/// interpreter with a GPU's tiles, for one function on random arguments.
pub fn check_chain(
    module: &Module,
    func: Func,
    given: &[(&str, i64)],
    ints: &HashMap<&str, Vec<i64>>,
    seed: u64,
) {
    let sizes = sizes(module, given);
    let check = |module: &Module| {
        let args = arguments(&module.funcs[func], &sizes, seed, ints);
        check_args(module, func, &sizes, &args, &[]);
    };
    check(module);
    // With other states the function takes other arguments.
    let laid_out = cache::lay_out(module, &CacheOptions::default()).unwrap_or_else(|e| panic!("{e}"));
    if text::print(&laid_out) != text::print(module) {
        check(&laid_out);
    }
}

/// Passes that leave caches as they are written, so that arguments fit.
pub fn as_written() -> eva_passes::Options {
    let cache = CacheOptions { layout: cache::Layout::AsWritten, ..CacheOptions::default() };
    eva_passes::Options { cache, ..eva_passes::Options::default() }
}

/// Checks the chain on one of the generator's modules.
pub fn check_random(sample: &Sample, seed: u64) {
    check_args(&sample.module, sample.func, &sample.sizes, &sample.args(seed), &sample.bounds);
}

/// Checks the chain on given arguments. `bounds` are the largest magnitudes that results can have, where known.
pub fn check_args(module: &Module, func: Func, sizes: &Sizes, args: &[Array], bounds: &[f64]) {
    let f = &module.funcs[func];
    let values = eval_values(module, func, sizes, args);
    let want: Vec<Array> = f.results.iter().map(|v| values[v][0].clone()).collect();
    // In a plan, 8-bit floats are codes, and scales behind everything else.
    let args = &scaled::apart(f, sizes, args);
    let whole = |have: Vec<Array>| scaled::together(f, sizes, have);
    let options = CompileOptions { passes: as_written(), ..CompileOptions::default() };
    let executable = Executable::compile(module, &options).unwrap_or_else(|e| panic!("{e}"));
    let plan: &Plan = executable.plan();
    // The narrowest type that anything is computed in decides how far results may be off.
    let computed = module.funcs.iter().flat_map(|(_, f)| f.values.iter());
    let computed = computed.filter(|(_, data)| !matches!(data.def, Def::Param(ParamKind::Weight)));
    let dtypes: Vec<DType> =
        computed.flat_map(|(_, data)| data.ty.parts().iter().map(|ty| ty.dtype)).collect();
    let narrow = [DType::Bf16, DType::F16, DType::Tf32].into_iter().find(|dtype| dtypes.contains(dtype));
    let coarse = narrow.unwrap_or(DType::F32);

    for phase in [Phase::Tile, Phase::Lane] {
        let how = How { phase, slack: 3, options: eva_ir::kernel::run::Options::default() };
        let (have, _) = interpret(plan, func, sizes, args, &how).unwrap_or_else(|e| panic!("{phase:?}: {e}"));
        let limit = if coarse == DType::F32 { 1e-7 } else { tolerance(coarse) };
        compare(f, &format!("{phase:?}"), &whole(have), &want, bounds, limit);
    }
    let have = run_machine(Arc::new(executable), f, sizes, args);
    compare(f, "machine code", &whole(have), &want, bounds, tolerance(coarse));
    // What a GPU would run, in the interpreter.
    let gpu = eva_passes::compile(module, &Target::cuda(), &as_written()).unwrap_or_else(|e| panic!("{e}"));
    for phase in [Phase::Tile, Phase::Block] {
        let how = How { phase, slack: 3, options: eva_ir::kernel::run::Options::default() };
        let (have, _) =
            interpret(&gpu, func, sizes, args, &how).unwrap_or_else(|e| panic!("GPU, {phase:?}: {e}"));
        let limit = if coarse == DType::F32 { 1e-7 } else { tolerance(coarse) };
        compare(f, &format!("GPU, {phase:?}"), &whole(have), &want, bounds, limit);
    }
}

fn compare(f: &Function, who: &str, have: &[Array], want: &[Array], bounds: &[f64], limit: f64) {
    for (i, ((have, want), &value)) in have.iter().zip(want).zip(&f.results).enumerate() {
        // Relative to what the values can be, if that is more than what they are.
        let largest = want.data.iter().fold(1.0f64, |m, x| m.max(x.abs()));
        let d = difference(have, want) * largest / bounds.get(i).map_or(largest, |b| b.max(largest));
        let name = &f.values[value].name;
        assert!(d <= limit, "{who}: `{name}` of @{} differs by {d:e}\nhave {have:?}\nwant {want:?}", f.name);
    }
}

/// Runs a function as machine code on arrays, one for each parameter of its plan, and gives the plan's results, states'
/// included, as arrays.
pub fn run_machine(executable: Arc<Executable>, f: &Function, sizes: &Sizes, args: &[Array]) -> Vec<Array> {
    let plan = executable.func_plan(executable.func(&f.name).expect("it was compiled"));
    let (mut weights, mut inputs, mut state_args) = (Weights::new(), Vec::new(), Vec::new());
    for (param, array) in plan.given().zip(args) {
        let (name, tensor) =
            (param.name.clone(), Tensor::from_f64(param.ty.dtype, &array.shape, &array.data));
        match param.kind {
            ParamKind::Weight => drop(weights.insert(name, Arc::new(tensor.into()))),
            ParamKind::Input => inputs.push((name, tensor)),
            ParamKind::State => state_args.push((name, tensor)),
        }
    }
    let mut session = Session::new(executable.clone(), &f.name, &weights).unwrap_or_else(|e| panic!("{e}"));
    let caches = plan.params.iter().filter(|param| param.kind == ParamKind::State && !param.whole);
    let caches: Vec<&str> = caches.map(|param| param.name.as_str()).collect();
    let caches = || state_args.iter().filter(|(name, _)| caches.contains(&name.as_str()));
    let batch = caches().next().map_or(1, |(_, t)| t.shape()[0]);
    let tokens = caches().map(|(_, t)| t.shape()[1]).max().unwrap_or(0);
    let given: Vec<(&str, usize)> = sizes.0.iter().map(|(sym, &n)| (sym.as_str(), n as usize)).collect();
    let states = match session.page_rows() {
        Some(_) => session.new_pages(batch),
        None if caches().next().is_none() => session.whole_states(&given),
        None => session.new_states(batch, tokens + 3),
    };
    let mut states = states.unwrap_or_else(|e| panic!("{e}"));
    for (name, tensor) in &state_args {
        states.write(name, tensor).unwrap_or_else(|e| panic!("{e}"));
    }
    let named: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let results = session.run(&named, Some(&mut states), &given).unwrap_or_else(|e| panic!("{e}"));
    let mut plain = results.into_iter();
    plan.results
        .iter()
        .map(|result| match result.state {
            None => {
                let (_, tensor) = plain.next().expect("one for each result that is not a state");
                Array::new(tensor.shape(), tensor.to_f64())
            }
            Some(param) => {
                let tensor = states.read(&plan.params[param].name, tokens).expect("it is a state");
                Array::new(tensor.shape(), tensor.to_f64())
            }
        })
        .collect()
}
