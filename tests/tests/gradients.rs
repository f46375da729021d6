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
