//! Gradients, of every case and of random modules: by small steps, and along the chain to machine code.

use eva_ir::graph::{Def, Module};
use eva_ir::ops::Op;
use eva_ir::testing::{Options, random_module};
use eva_ir::text;
use eva_passes::grad::{self, differentiate};
use eva_tests::gradients::{check_differences, with_loss};
use eva_tests::{arguments, check_args, sizes};
use proptest::prelude::*;
use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;

fn said<'a>(text: &'a str, name: &str) -> Vec<&'a str> {
    let start = format!("// {name}:");
    text.lines().filter_map(|line| line.strip_prefix(start.as_str())).map(str::trim).collect()
}

/// What has no gradient by its nature, or is only for running models.
fn is_without(op: &Op) -> bool {
    let of_gradients = matches!(op, Op::RouteGrad(_) | Op::CrossEntropyGrad(_) | Op::SegmentSum(_));
    let of_gradients = of_gradients || matches!(op, Op::AttendGradQueries(_) | Op::AttendGradKeys(_));
    of_gradients || matches!(op, Op::PageWrite(_) | Op::PageRead(_))
}

/// The module with the gradients of `@objective`; `None` if that depends on no weight.
fn differentiated(module: &Module) -> Option<Module> {
    match differentiate(module, "objective", &grad::Options::default()) {
        Ok(new) => {
            eva_ir::verify::verify(&new).unwrap_or_else(|e| panic!("{e}\n{}", text::print(&new)));
            Some(new)
        }
        Err(diag) => {
            let message = diag.to_string();
            assert!(message.contains("depends on no weight"), "{message}\n{}", text::print(module));
            None
        }
    }
}

#[test]
fn of_every_case() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("cases/run");
    let mut paths: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let mut checked = 0;
    for path in paths {
        let text = fs::read_to_string(&path).unwrap();
        let module = text::parse(&text).unwrap();
        let ints = said(&text, "ints").into_iter().map(|line| {
            let (name, numbers) = line.split_once('=').unwrap();
            (name.trim(), numbers.split_whitespace().map(|n| n.parse().unwrap()).collect())
        });
        let ints: HashMap<&str, Vec<i64>> = ints.collect();
        let line = said(&text, "sizes")[0];
        let given = line.split_whitespace().map(|pair| pair.split_once('=').unwrap());
        let given: Vec<(&str, i64)> = given.map(|(name, n)| (name, n.parse().unwrap())).collect();
        let sizes = sizes(&module, &given);
        for func in module.funcs.keys() {
            let name = &module.funcs[func].name;
            let ops = |f: &eva_ir::graph::Function| {
                f.values.iter().any(|(_, data)| matches!(&data.def, Def::Op(op, _) if is_without(op)))
            };
            if ops(&module.funcs[func]) {
                continue;
            }
            let Some(with_loss) = with_loss(&module, func) else { continue };
            let Some(new) = differentiated(&with_loss) else { continue };
            println!("{} @{name}", path.display());
            let loss = &new.funcs[new.func("objective").unwrap()];
            let args = arguments(loss, &sizes, 5, &ints);
            check_differences(&new, &sizes, &args, 7);
            let given: Vec<_> = args.into_iter().chain([eva_ir::eval::Array::new(&[], vec![0.7])]).collect();
            check_args(&new, new.func("objective.grad").unwrap(), &sizes, &given, &[]);
            checked += 1;
        }
    }
    assert!(checked > 10, "only {checked} functions have gradients");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn of_random_modules(seed in any::<u64>(), calls in any::<bool>()) {
        let sample = random_module(seed, Options { ops: 14, narrow: false, calls });
        if let Some(module) = with_loss(&sample.module, sample.func)
            && let Some(new) = differentiated(&module)
        {
            let loss = &new.funcs[new.func("objective").unwrap()];
            let mut args = sample.args(seed ^ 1);
            let by = arguments(loss, &sample.sizes, seed ^ 2, &HashMap::new());
            let given = args.len();
            args.extend(by.into_iter().skip(given));
            check_differences(&new, &sample.sizes, &args, seed ^ 3);
        }
    }
}

/// Expanded, absorbed, one of keys and values absorbed, and the forward of either with the gradients of the expanded form.
#[test]
fn forms_of_latent_attention_have_the_same_gradients() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("cases/run/latent_layers.eva");
    // Latents that are wider than keys, and narrower than values.
    let source = fs::read_to_string(path).unwrap().replace("dim c = 3", "dim c = 8");
    let module = text::parse(&source).unwrap();
    let sizes = sizes(&module, &[("b", 2), ("s", 41)]);
    let with = |number: usize| {
        let options = grad::Options::default();
        let (new, report) = grad::differentiate_by(&module, "loss", &options, &|_| number).unwrap();
        let choice = report.forms.into_iter().next().expect("there is a choice");
        (choice.chosen == number).then_some((new, choice))
    };
    let mut seen = Vec::new();
    let mut first: Option<Vec<_>> = None;
    while let Some((new, choice)) = with(seen.len()) {
        let func = new.func("loss.grad").unwrap();
        let ints = HashMap::from([("start", vec![0, 0])]);
        let mut args = arguments(&new.funcs[func], &sizes, 8, &ints);
        *args.last_mut().unwrap() = eva_ir::eval::Array::new(&[], vec![0.7]);
        // The evaluator's first are the expanded form's.
        let values = eva_ir::eval::eval_values(&new, func, &sizes, &args);
        let have: Vec<_> = new.funcs[func].results.iter().map(|v| values[v][0].clone()).collect();
        for (x, y) in have.iter().zip(first.get_or_insert_with(|| have.clone())) {
            assert!(eva_tests::difference(x, y) < 1e-11);
        }
        check_args(&new, func, &sizes, &args, &[]);
        let candidate = &choice.candidates[choice.chosen];
        seen.push((candidate.forward, candidate.backward));
    }
    let mixed = seen.iter().filter(|(forward, backward)| forward != backward).count();
    assert!(seen.len() >= 5 && mixed >= 2, "{seen:?}");
}

/// A layer that is called twice: two functions are made of it, whatever is kept between them.
const LAYERS: &str = "
dim b
dim s
dim m = 72
dim i = 136
fn @layer(%x: f32[b, s, m], weight %gain: f32[m], weight %up: f32[i, m], weight %gate: f32[i, m], weight %down: f32[m, i]) -> f32[b, s, m] {
  %normed = rms_norm %x, %gain {eps = 1e-6} : f32[b, s, m]
  %a = einsum \"bsm,im->bsi\" %normed, %up : f32[b, s, i]
  %c = einsum \"bsm,im->bsi\" %normed, %gate : f32[b, s, i]
  %on = silu %c : f32[b, s, i]
  %both = mul %a, %on : f32[b, s, i]
  %y = einsum \"bsi,mi->bsm\" %both, %down : f32[b, s, m]
  %out = add %x, %y : f32[b, s, m]
  return %out
}
fn @objective(%x: f32[b, s, m], weight %scale: f32[m], weight %0.gain: f32[m], weight %0.up: f32[i, m], weight %0.gate: f32[i, m],
              weight %0.down: f32[m, i], weight %1.gain: f32[m], weight %1.up: f32[i, m], weight %1.gate: f32[i, m],
              weight %1.down: f32[m, i]) -> f32[] {
  %begin = mul %x, %scale : f32[b, s, m]
  %one = call @layer %begin, %0.gain, %0.up, %0.gate, %0.down : f32[b, s, m]
  %two = call @layer %one, %1.gain, %1.up, %1.gate, %1.down : f32[b, s, m]
  %square = mul %two, %two : f32[b, s, m]
  %loss = einsum \"bsm->\" %square : f32[]
  return %loss
}";

#[test]
fn within_a_budget_gradients_are_the_same_bits() {
    use eva_passes::grad::budget::fit;
    use eva_passes::target::Target;
    let module = text::parse(LAYERS).unwrap();
    let extents = [("b", 3), ("s", 29)];
    let sizes = sizes(&module, &extents);
    let given = extents.iter().map(|&(name, n)| (name.into(), n)).collect();
    let (target, passes) = (Target::cpu(), eva_passes::Options::default());
    let at = |budget, store| {
        let options = grad::Options { store, ..grad::Options::default() };
        fit(&module, "objective", &options, (&target, &passes), &given, budget)
    };
    let fast = at(None, None).unwrap();
    check_differences(
        &fast.module,
        &sizes,
        &arguments(&fast.module.funcs[fast.module.func("objective").unwrap()], &sizes, 3, &HashMap::new()),
        4,
    );

    let small = at(Some(fast.peak * 8 / 10), None).unwrap();
    assert!(small.peak <= fast.peak * 8 / 10 && small.seconds_per_byte > 0.0);
    assert!(
        small.report.splits[0].kept.len() < fast.report.splits[0].kept.len(),
        "{:?}",
        small.report.splits
    );
    assert!(!small.report.splits[0].again.is_empty(), "{:?}", small.report.splits);
    let run = |fitted: &grad::budget::Fitted| {
        let executable = eva_runtime::Executable::compile(&fitted.module, &Default::default()).unwrap();
        let f = fitted.module.funcs[fitted.module.func("objective.grad").unwrap()].clone();
        let mut args = arguments(&f, &sizes, 3, &HashMap::new());
        *args.last_mut().unwrap() = eva_ir::eval::Array::new(&[], vec![1.0]);
        eva_tests::run_machine(std::sync::Arc::new(executable), &f, &sizes, &args)
    };
    let (a, b) = (run(&fast), run(&small));
    let order = |fitted: &grad::budget::Fitted| {
        let f = &fitted.module.funcs[fitted.module.func("objective.grad").unwrap()];
        f.results.iter().map(|&v| f.values[v].name.clone()).collect::<Vec<_>>()
    };
    assert_eq!(order(&fast), order(&small));
    let bits = |all: &[eva_ir::eval::Array]| {
        all.iter().flat_map(|a| a.data.iter().map(|x| x.to_bits())).collect::<Vec<_>>()
    };
    assert_eq!(bits(&a), bits(&b));

    // Kept in fewer bits, gradients are near.
    for (dtype, limit) in [(eva_ir::types::DType::Bf16, 1e-2), (eva_ir::types::DType::F8E4M3, 8e-2)] {
        let narrow = at(None, Some(dtype)).unwrap();
        assert!(
            narrow.report.splits[0].kept.iter().any(|kept| kept.ty.dtype == dtype),
            "{:?}",
            narrow.report.splits
        );
        assert!(narrow.peak < fast.peak);
        for (x, y) in run(&narrow).iter().zip(&a) {
            let norm = |d: f64, x: &f64| d + x * x;
            let error: Vec<f64> = x.data.iter().zip(&y.data).map(|(x, y)| x - y).collect();
            let relative = (error.iter().fold(0.0, norm) / y.data.iter().fold(0.0, norm)).sqrt();
            assert!(relative < limit, "{dtype}: {relative}");
        }
    }
    // What cannot fit is said.
    let message = at(Some(1000), None).unwrap_err().to_string();
    assert!(message.contains("a step takes") && message.contains("1000"), "{message}");
}
