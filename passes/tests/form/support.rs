//! Modules to rewrite, and what they compute.

use eva_ir::eval::{Array, Sizes, eval_values};
use eva_ir::graph::{Func, Function, Module};
use eva_ir::kernel::run::round;
use eva_ir::text;
use eva_passes::form::{self, Form};
use eva_passes::{Hoist, Options};
use std::path::Path;

/// The module that `source` says.
pub fn parse(source: &str) -> Module {
    text::parse(source).unwrap_or_else(|diags| panic!("{diags}\n{source}"))
}

/// A case of the folder that all tests share.
pub fn case(name: &str) -> Module {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/cases").join(name);
    parse(&std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
}

/// An attention block with latents, in the expanded form.
pub fn mla() -> Module {
    case("run/mla.eva")
}

/// The module in this form, as a CPU would have it.
pub fn choose(module: &Module, form: Form) -> Module {
    form::choose(module, &Options { form, hoist: Hoist::Never, ..Options::default() }).unwrap()
}

/// The extents of DeepSeek-V3.
pub const V3: &[(&str, i64)] =
    &[("m", 7168), ("r", 1536), ("c", 512), ("h", 128), ("n", 128), ("p", 64), ("v", 128)];

/// The module with these values for its extents.
pub fn fix(mut module: Module, sizes: &[(&str, i64)]) -> Module {
    for (sym, value) in &mut module.dims {
        if let Some((_, n)) = sizes.iter().find(|(name, _)| *name == sym.as_str()) {
            *value = Some(*n);
        }
    }
    module
}

/// The last function of a module.
pub fn last(module: &Module) -> (Func, &Function) {
    let (func, f) = module.funcs.iter().last().expect("a function");
    (func, f)
}

/// Random arguments for the last function, each sequence after `start` cached tokens.
pub fn arguments(module: &Module, sizes: &[(&str, i64)], start: &[i64], seed: u64) -> (Sizes, Vec<Array>) {
    let (_, f) = last(module);
    let fixed = module.dims.iter().filter_map(|(sym, value)| Some((sym.clone(), (*value)?)));
    let sizes = Sizes(sizes.iter().map(|&(name, n)| (name.into(), n)).chain(fixed).collect());
    let mut state = seed;
    let mut random = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as f64 / (1u64 << 30) as f64 - 1.0
    };
    let mut argument = |value| {
        let ty = f.tensor(value).expect("parameters are tensors");
        let shape: Vec<usize> = ty.shape.iter().map(|dim| sizes.of(dim)).collect();
        match (ty.dtype.is_int(), shape.as_slice()) {
            (true, [_]) => Array::from_fn(&shape, |i| start[i[0]] as f64),
            (true, _) => Array::from_fn(&shape, |i| (start[i[0]] + i[1] as i64) as f64),
            (false, _) => Array::from_fn(&shape, |_| round(random(), ty.dtype)),
        }
    };
    let args = f.params().map(|(value, _)| argument(value)).collect();
    (sizes, args)
}

/// What the last function computes from random arguments; by name.
pub fn results(module: &Module, sizes: &[(&str, i64)], start: &[i64], seed: u64) -> Vec<(String, Array)> {
    let (func, f) = last(module);
    let (sizes, args) = arguments(module, sizes, start, seed);
    let values = eval_values(module, func, &sizes, &args);
    f.results.iter().map(|v| (f.values[*v].name.clone(), values[v][0].clone())).collect()
}

/// The largest difference between results of the same names, over the largest magnitude of each.
pub fn difference(have: &[(String, Array)], want: &[(String, Array)]) -> f64 {
    assert_eq!(have.len(), want.len());
    let mut worst = 0.0f64;
    for ((a, have), (b, want)) in have.iter().zip(want) {
        assert_eq!((a, &have.shape), (b, &want.shape));
        let scale = want.data.iter().fold(1e-300f64, |m, x| m.max(x.abs()));
        for (x, y) in have.data.iter().zip(&want.data) {
            assert!(x.is_finite() && y.is_finite(), "`{a}` is not finite");
            worst = worst.max((x - y).abs() / scale);
        }
    }
    worst
}
