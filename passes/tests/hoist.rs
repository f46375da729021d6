//! What is computed of weights when a function is loaded: that it is what it was, and that nothing is computed twice.

use eva_ir::entity::Entity;
use eva_ir::eval::{Array, Sizes, eval_values};
use eva_ir::graph::{Def, Func, Module, ParamKind};
use eva_ir::kernel::Phase;
use eva_ir::testing::{Options as Contents, Rng, Sample, random_module};
use eva_ir::{text, verify};
use eva_passes::hoist::{Hoist, hoist};
use eva_passes::interpret::{How, interpret};
use eva_passes::plan::Plan;
use eva_passes::target::Target;
use eva_passes::{Form, Options, compile, run_pass};
use proptest::prelude::*;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

fn parse(source: &str) -> Module {
    text::parse(source).unwrap_or_else(|diags| panic!("{diags}\n{source}"))
}

/// Functions with all that can be hoisted, and some that cannot be.
fn cases() -> Module {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/cases/run/hoist.eva");
    parse(&std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
}

/// The results of a function of a module that may have companions, on arguments for its first parameters.
fn results(module: &Module, func: Func, sizes: &Sizes, args: &[Array]) -> Vec<Array> {
    let f = &module.funcs[func];
    let mut args = args.to_vec();
    if let Some(prepare) = module.preparation(func) {
        let companion = &module.funcs[prepare];
        let names: Vec<&str> = f.params().map(|(param, _)| f.values[param].name.as_str()).collect();
        let given: HashMap<&str, Array> = names.iter().copied().zip(args.iter().cloned()).collect();
        let weights: Vec<Array> = companion
            .params()
            .map(|(param, _)| given[companion.values[param].name.as_str()].clone())
            .collect();
        let values = eval_values(module, prepare, sizes, &weights);
        let made: HashMap<&str, &Array> =
            companion.results.iter().map(|v| (companion.values[*v].name.as_str(), &values[v][0])).collect();
        args.extend(names[args.len()..].iter().map(|name| made[name].clone()));
    }
    let values = eval_values(module, func, sizes, &args);
    f.results.iter().map(|value| values[value][0].clone()).collect()
}

fn random(f: &eva_ir::graph::Function, sizes: &Sizes, seed: u64) -> Vec<Array> {
    let mut rng = Rng::new(seed);
    let params = f.params().map(|(param, _)| f.tensor(param).expect("parameters are tensors"));
    let params = params.map(|ty| {
        let shape: Vec<usize> = ty.shape.iter().map(|dim| sizes.of(dim)).collect();
        Array::from_fn(&shape, |_| eva_ir::kernel::run::round(2.0 * rng.unit() - 1.0, ty.dtype))
    });
    params.collect()
}

fn bits(arrays: &[Array]) -> Vec<(Vec<usize>, Vec<u64>)> {
    arrays
        .iter()
        .map(|array| (array.shape.clone(), array.data.iter().map(|x| x.to_bits()).collect()))
        .collect()
}

/// Checks that every function of `module` gives the same bits after the pass, and that the module is well-formed.
fn check(module: &Module, sizes: &Sizes, args: &dyn Fn(Func) -> Vec<Array>) {
    let hoisted = hoist(module).unwrap();
    verify::verify(&hoisted).unwrap_or_else(|diags| panic!("{diags}\n{hoisted}"));
    assert_eq!(text::print(&parse(&text::print(&hoisted))), text::print(&hoisted));
    assert_eq!(text::print(&hoist(&hoisted).unwrap()), text::print(&hoisted), "twice is once");
    for func in module.funcs.keys() {
        let args = args(func);
        for body in 0..2 {
            let one = |m: &Module| m.with_bodies(|f| body.min(f.alternatives.len()));
            let (want, have) =
                (results(&one(module), func, sizes, &args), results(&one(&hoisted), func, sizes, &args));
            assert_eq!(bits(&have), bits(&want), "body {body} of @{}\n{hoisted}", module.funcs[func].name);
        }
        let params = module.funcs[func].params().count();
        let new = &hoisted.funcs[func];
        for (i, ((value, kind), (old, _))) in
            new.params().zip(module.funcs[func].params()).enumerate().take(params)
        {
            assert_eq!((value.index(), kind), (i, module.funcs[func].params().nth(i).unwrap().1));
            assert_eq!(new.values[value].name, module.funcs[func].values[old].name);
        }
    }
}

fn sizes(module: &Module, open: &[(&str, i64)]) -> Sizes {
    let fixed = module.dims.iter().filter_map(|(sym, n)| Some((sym.clone(), (*n)?)));
    Sizes(open.iter().map(|&(name, n)| (name.into(), n)).chain(fixed).collect())
}

#[test]
fn cases_are_equal() {
    let module = cases();
    let sizes = sizes(&module, &[("s", 5), ("k", 4)]);
    check(&module, &sizes, &|func| random(&module.funcs[func], &sizes, func.index() as u64));
}

#[test]
fn cases_look_like_this() {
    let hoisted = run_pass("hoist", &cases(), &Options::default()).unwrap().unwrap();
    insta::assert_snapshot!(text::print(&hoisted));
}

#[test]
fn what_has_nothing_to_hoist_is_left_alone() {
    let module = parse(
        "dim s dim m = 6 dim k = 3
        fn @f(%x: f32[s, m], weight %w: bf16[m, k]) -> f32[s, k] {
          %parts = slice %w {axis = 0, range = 0..m} : bf16[m, k]
          %flat  = reshape %parts {shape = [m, k]} : bf16[m, k]
          %wide  = cast %flat {to = f32} : f32[m, k]
          %y     = einsum \"sm,mk->sk\" %x, %wide : f32[s, k]
          return %y
        }",
    );
    let hoisted = hoist(&module).unwrap();
    assert_eq!(hoisted.funcs.len(), 1);
    assert!(module.funcs.iter().zip(hoisted.funcs.iter()).all(|((_, a), (_, b))| Arc::ptr_eq(a, b)));
}

#[test]
fn what_a_calls_extents_decide_stays_in_it() {
    let module = parse(
        "dim s dim m = 6
        fn @f(%x: f32[s, m], weight %w: f32[m], weight %start: i32[1]) -> f32[s, m], i32[1, s] {
          %at   = positions %start {new = [s]} : i32[1, s]
          %y    = mul %x, %w : f32[s, m]
          return %y, %at
        }",
    );
    assert_eq!(text::print(&hoist(&module).unwrap()), text::print(&module));
}

/// The second body has a product that the first has too under another name, one of its own under the name of what the first
/// computes of its input, and one twice.
#[test]
fn bodies_share_what_is_hoisted() {
    let module = parse(
        "dim s dim m = 6 dim r = 5 dim h = 3
        fn @f(%x: f32[s, m], weight %u: f32[h, m], weight %v: f32[h, r], weight %g: f32[m]) -> f32[s, r] {
          %y  = mul %x, %g : f32[s, m]
          %uv = einsum \"hm,hr->mr\" %u, %v : f32[m, r]
          %z  = einsum \"sm,mr->sr\" %y, %uv : f32[s, r]
          return %z
        } cost 2e-9*s
        or other {
          %folded = einsum \"hm,hr->mr\" %u, %v : f32[m, r]
          %y      = einsum \"mr,m->mr\" %folded, %g : f32[m, r]
          %again  = einsum \"hm,hr->mr\" %u, %v : f32[m, r]
          %z      = einsum \"sm,mr->sr\" %x, %y : f32[s, r]
          %zero   = scale %again {by = 0.0} : f32[m, r]
          %w      = einsum \"sm,mr->sr\" %x, %zero : f32[s, r]
          %zw     = add %z, %w : f32[s, r]
          return %zw
        } cost 1e-6
        fn @main(%x: f32[s, m], weight %u: f32[h, m], weight %v: f32[h, r], weight %g: f32[m]) -> f32[s, r] {
          %z = call @f %x, %u, %v, %g : f32[s, r]
          return %z
        }",
    );
    let sizes = sizes(&module, &[("s", 4)]);
    check(&module, &sizes, &|func| random(&module.funcs[func], &sizes, 11));
    insta::assert_snapshot!(text::print(&hoist(&module).unwrap()));
}

#[test]
fn results_keep_their_names() {
    let module = parse(
        "dim m = 6
        fn @f(%x: f32[m], weight %g: f32[m]) -> f32[m], f32[m], f32[m] {
          %a = exp %g : f32[m]
          %b = exp %g : f32[m]
          %c = exp %g : f32[m]
          %y = mul %x, %c : f32[m]
          return %a, %b, %y
        }",
    );
    let sizes = sizes(&module, &[]);
    check(&module, &sizes, &|func| random(&module.funcs[func], &sizes, 7));
    let hoisted = hoist(&module).unwrap();
    let companion = hoisted.preparation(module.func("f").unwrap()).unwrap();
    assert_eq!(hoisted.funcs[companion].results.len(), 1, "computed once");
    let f = &hoisted.funcs[Func::new(0)];
    let names: Vec<&str> = f.results.iter().map(|&value| f.values[value].name.as_str()).collect();
    assert_eq!(names, ["a", "b", "y"]);
}

#[test]
fn joined_weights_stay_narrow() {
    let module = parse(
        "dim s dim m = 6 dim k = 4 dim n = 3
        fn @f(%x: f32[s, m], weight %a: bf16[k + n, m], weight %b: bf16[n*m], weight %c: f16[k, m]) -> f32[s, 2*n], f32[s, 2*k] {
          %wide = cast %a {to = f32} : f32[k + n, m]
          %head = slice %wide {axis = 0, range = 0..n} : f32[n, m]
          %flat = cast %b {to = f32} : f32[n*m]
          %rows = reshape %flat {shape = [n, m]} : f32[n, m]
          %ab   = concat %head, %rows {axis = 0} : f32[2*n, m]
          %y    = einsum \"sm,em->se\" %x, %ab : f32[s, 2*n]
          %tail = slice %wide {axis = 0, range = n..k + n} : f32[k, m]
          %c32  = cast %c {to = f32} : f32[k, m]
          %two  = concat %tail, %c32 {axis = 0} : f32[2*k, m]
          %z    = einsum \"sm,em->se\" %x, %two : f32[s, 2*k]
          return %y, %z
        }",
    );
    let sizes = sizes(&module, &[("s", 5)]);
    check(&module, &sizes, &|func| random(&module.funcs[func], &sizes, 19));
    let hoisted = hoist(&module).unwrap();
    let f = &hoisted.funcs[Func::new(0)];
    let types: Vec<String> = f
        .params()
        .skip(4)
        .map(|(param, _)| format!("{}: {}", f.values[param].name, f.values[param].ty))
        .collect();
    assert_eq!(
        types,
        ["ab.bf16: bf16[2*n, m]", "two: f32[2*k, m]"],
        "types that differ are joined as they were"
    );
}

/// The kernels of a call of `func`, and what it loads, by the interpreter.
fn traffic(module: &Module, func: Func, hoist: Hoist) -> (Plan, Vec<Array>, Vec<String>) {
    let plan = compile(module, &Target::cpu(), &Options { hoist, form: Form::Written, ..Options::default() })
        .unwrap();
    let sizes = sizes(module, &[("s", 5), ("k", 4)]);
    let args = random(&module.funcs[func], &sizes, 3);
    let how = How { phase: Phase::Tile, slack: 0, options: eva_ir::kernel::run::Options::default() };
    let (results, traffic) = interpret(&plan, func, &sizes, &args, &how).unwrap();
    let kernels = traffic.launches.iter().map(|launch| launch.kernel.clone()).collect();
    (plan, results, kernels)
}

#[test]
fn a_call_computes_nothing_of_weights_alone() {
    let module = cases();
    let main = module.func("main").unwrap();
    let (without, want, all) = traffic(&module, main, Hoist::Never);
    let (plan, have, kernels) = traffic(&module, main, Hoist::AtLoad);
    assert_eq!(bits(&have), bits(&want));
    assert_eq!((without.funcs.len(), without.funcs[main].prepare), (module.funcs.len(), None));
    let computed =
        |name: &str, kernels: &[String]| kernels.iter().filter(|kernel| kernel.as_str() == name).count();
    // A result is copied to where the caller wants it.
    for (name, before, after) in
        [("layer.uqk", 2, 0), ("layer.ab", 2, 0), ("main.half", 1, 0), ("main.both", 1, 1)]
    {
        let counts = (computed(name, &all), computed(name, &kernels));
        assert_eq!(counts, (before, after), "{name}: {all:?} {kernels:?}");
    }
    let f = &plan.funcs[main];
    let named = |needed: bool| -> Vec<&str> {
        let params = f.weights().filter(|param| param.needed == needed);
        params.map(|param| param.name.as_str()).collect()
    };
    assert_eq!(named(true), ["w.0.o", "w.1.o"]);
    assert_eq!(named(false), ["w.0.uq", "w.0.uk", "gain", "w.0.a", "b", "w.1.uk", "w.1.a"]);
    let given = module.funcs[main].params().count();
    assert_eq!(f.given().count(), given);
    let from = |name: &str| {
        let param = f.params.iter().find(|param| param.name == name).unwrap();
        param.prepared.as_ref().unwrap().from.clone()
    };
    assert_eq!(from("layers.0.uqk"), ["b", "gain", "w.0.a", "w.0.uk", "w.0.uq"]);
    assert_eq!(from("half"), ["gain"]);
}

#[test]
fn equal_computations_of_two_functions_have_one_key() {
    let module = parse(
        "dim s dim m = 6
        fn @a(%x: f32[s, m], weight %w: f32[m], weight %g: f32[m]) -> f32[s, m] {
          %wg = mul %w, %g : f32[m]
          %y  = mul %x, %wg : f32[s, m]
          return %y
        }
        fn @b(%x: f32[s, m], weight %g: f32[m], weight %w: f32[m]) -> f32[s, m], f32[s, m] {
          %gw   = mul %g, %w : f32[m]
          %same = mul %w, %g : f32[m]
          %y    = mul %x, %same : f32[s, m]
          %z    = mul %x, %gw : f32[s, m]
          return %y, %z
        }",
    );
    let plan = compile(&module, &Target::cpu(), &Options::default()).unwrap();
    let key = |func: &str, name: &str| {
        let param = plan.funcs[module.func(func).unwrap()].params.iter().find(|param| param.name == name);
        param.unwrap().prepared.as_ref().unwrap().key
    };
    assert_eq!(key("a", "wg"), key("b", "same"));
    assert_ne!(key("a", "wg"), key("b", "gw"), "the order of operands is not looked through");
}

/// How many values of a function take weights alone, views and wider readings aside.
fn of_weights_alone(sample: &Sample) -> usize {
    let f = &sample.module.funcs[sample.func];
    let mut alone: Vec<bool> = Vec::new();
    for (_, data) in f.values.iter() {
        alone.push(match &data.def {
            Def::Param(kind) => *kind == ParamKind::Weight,
            def => def.args().iter().all(|arg| alone[arg.index()]),
        });
    }
    f.values.iter().filter(|(value, data)| alone[value.index()] && !matches!(data.def, Def::Param(_))).count()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_modules_are_equal(seed: u64, ops in 1usize..24, narrow: bool, calls: bool) {
        let sample = random_module(seed, Contents { ops, narrow, calls });
        check(&sample.module, &sample.sizes, &|func| match func == sample.func {
            true => sample.args(seed),
            false => random(&sample.module.funcs[func], &sample.sizes, seed).into_iter().map(positive).collect(),
        });
    }
}

/// Numbers that a root or a logarithm can be taken of.
fn positive(array: Array) -> Array {
    Array { data: array.data.iter().map(|x| x.abs() + 0.5).collect(), ..array }
}

#[test]
fn random_modules_have_something_to_hoist() {
    let with = (0..100).filter(|&seed| {
        let sample = random_module(seed, Contents { ops: 12, narrow: true, calls: true });
        of_weights_alone(&sample) > 0
            && hoist(&sample.module).unwrap().funcs.len() > sample.module.funcs.len()
    });
    assert!(with.count() >= 20, "a fifth of all");
}
