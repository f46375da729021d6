//! The text form on random modules, and on texts that are no modules.

use eva_ir::attr::Attr;
use eva_ir::dim::Dim;
use eva_ir::eval::eval_values;
use eva_ir::graph::Module;
use eva_ir::testing::{Options, Rng, difference, histogram, random_module};
use eva_ir::text::{MAX_DIAGS, parse, print};
use eva_ir::verify::verify;
use proptest::prelude::*;
use std::collections::HashMap;

/// What must hold of any text: it is read without a panic, and what it means survives printing.
fn check_any(text: &str) -> Option<Module> {
    match parse(text) {
        Ok(module) => {
            let printed = print(&module);
            let again = parse(&printed).unwrap_or_else(|diags| panic!("{diags}\n{printed}"));
            assert_eq!(difference(&module, &again), None, "{printed}");
            assert_eq!(print(&again), printed);
            let _ = verify(&module);
            Some(module)
        }
        Err(diags) => {
            assert!((1..=MAX_DIAGS).contains(&diags.0.len()));
            for diag in &diags.0 {
                assert!(!diag.labels.is_empty(), "`{diag}` has no place");
                assert!(diag.message.len() < 4000, "{diag}");
            }
            None
        }
    }
}

fn cases() -> Vec<String> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/cases");
    let mut texts = Vec::new();
    for folder in [format!("{folder}/text"), format!("{folder}/verify")] {
        for entry in std::fs::read_dir(folder).unwrap() {
            texts.push(std::fs::read_to_string(entry.unwrap().path()).unwrap());
        }
    }
    texts.sort();
    texts
}

/// Pieces that a mutation may put anywhere.
const PIECES: &[&str] = &[
    "%",
    "@",
    "\"",
    "{",
    "}",
    "[",
    "]",
    "(",
    ")",
    ",",
    ":",
    "=",
    "->",
    "..",
    "/",
    "*",
    "+",
    "-",
    "\n",
    "//",
    "dim",
    "fn",
    "return",
    "call",
    "weight ",
    "state ",
    "%x",
    "%y",
    "f32[b]",
    "f8e4m3[b/7]",
    "f32[]",
    "(f32[b], i32[])",
    "\"ab->ba\"",
    "einsum",
    "add",
    "full",
    "{axis = 0}",
    "0",
    "1",
    "-1",
    "9223372036854775807",
    "9999999999999999999999",
    "1e308",
    "1e999",
    "-inf",
    "NaN",
    "true",
    "b",
    "b*b",
    "b-b",
    "\u{feff}",
    "é",
    "\0",
    "\r\n",
    "%x = ",
    "} fn @g(",
    "@f",
];

fn mutate(text: &str, others: &[String], rng: &mut Rng) -> String {
    let mut chars: Vec<char> = text.chars().collect();
    for _ in 0..=rng.below(4) {
        let at = rng.below(chars.len() + 1);
        let len = rng.below(40).min(chars.len() - at);
        match rng.below(5) {
            0 => drop(chars.drain(at..at + len)),
            1 => {
                let copy: Vec<char> = chars[at..at + len].to_vec();
                let to = rng.below(chars.len() + 1);
                chars.splice(to..to, copy);
            }
            2 => {
                let other: Vec<char> = rng.pick(others).chars().collect();
                let from = rng.below(other.len() + 1);
                let copy = other[from..(from + len).min(other.len())].to_vec();
                chars.splice(at..at + len, copy);
            }
            _ => drop(chars.splice(at..at, rng.pick(PIECES).chars().collect::<Vec<_>>())),
        }
    }
    chars.into_iter().collect()
}

fn dim() -> impl Strategy<Value = Dim> {
    let sym = prop_oneof![Just("b"), Just("t"), Just("h_2"), Just("_n"), Just("m")];
    let term = (-9i64..10, prop::collection::vec(sym, 0..4))
        .prop_map(|(n, syms)| syms.into_iter().fold(Dim::from(n), |product, sym| product * Dim::sym(sym)));
    prop::collection::vec(term, 0..5)
        .prop_map(|terms| terms.into_iter().fold(Dim::from(0), |sum, term| sum + term))
}

proptest! {
    #[test]
    fn random_modules_survive_printing(seed: u64, ops in 0usize..40, narrow: bool, calls: bool) {
        let sample = random_module(seed, Options { ops, narrow, calls });
        let text = print(&sample.module);
        prop_assert!(verify(&sample.module).is_ok(), "{}\n{}", verify(&sample.module).unwrap_err(), text);
        let again = parse(&text).map_err(|diags| TestCaseError::fail(format!("{diags}\n{text}")))?;
        prop_assert_eq!(difference(&sample.module, &again), None, "{}", text);
        prop_assert_eq!(print(&again), text);
    }

    #[test]
    fn random_modules_stay_in_their_ranges(seed: u64, ops in 1usize..20, narrow: bool, calls: bool) {
        let sample = random_module(seed, Options { ops, narrow, calls });
        let f = &sample.module.funcs[sample.func];
        let values = eval_values(&sample.module, sample.func, &sample.sizes, &sample.args(seed));
        for (value, bound) in f.results.iter().zip(&sample.bounds) {
            for &x in &values[value][0].data {
                prop_assert!(x.abs() <= bound * (1.0 + 1e-9) + 1e-9, "{} is {x}\n{}", f.values[*value].name, sample.module);
            }
        }
    }

    #[test]
    fn random_modules_from_one_seed_start_alike(seed: u64, ops in 0usize..20) {
        let make = |ops| random_module(seed, Options { ops, narrow: true, calls: false }).module;
        let (few, many) = (make(ops), make(ops + 5));
        let (few, many) = (&few.funcs.iter().next().unwrap().1.values, &many.funcs.iter().next().unwrap().1.values);
        for ((_, x), (_, y)) in few.iter().zip(many.iter()) {
            prop_assert_eq!((&x.name, &x.ty, &x.def), (&y.name, &y.ty, &y.def));
        }
    }

    #[test]
    fn any_text_is_read_without_a_panic(text in "\\PC*") {
        check_any(&text);
    }

    #[test]
    fn pieces_of_texts_are_read_without_a_panic(pieces in prop::collection::vec(prop::sample::select(PIECES), 0..60)) {
        check_any(&pieces.concat());
        check_any(&pieces.join(" "));
    }

    #[test]
    fn dims_are_a_ring(a in dim(), b in dim(), c in dim()) {
        prop_assert_eq!(&a + &b, &b + &a);
        prop_assert_eq!(&a * &b, &b * &a);
        prop_assert_eq!(&(&a + &b) + &c, &a + &(&b + &c));
        prop_assert_eq!(&(&a * &b) * &c, &a * &(&b * &c));
        prop_assert_eq!(&a * &(&b + &c), &(&a * &b) + &(&a * &c));
        prop_assert_eq!(&(&a - &b) + &b, a.clone());
        prop_assert_eq!(&a - &a, Dim::from(0));
        prop_assert_eq!(&a + 0, a.clone());
        prop_assert_eq!(&a * 1, a.clone());
        prop_assert_eq!(&a * &Dim::from(0), Dim::from(0));
    }

    #[test]
    fn dims_calculate_like_their_values(a in dim(), b in dim(), values in prop::array::uniform5(1i64..50)) {
        let names = ["b", "t", "h_2", "_n", "m"];
        let value = |dim: &Dim| dim.eval(&|sym| names.iter().position(|name| *name == sym.as_str()).map(|i| values[i]));
        let (x, y) = (value(&a).unwrap(), value(&b).unwrap());
        prop_assert_eq!(value(&(&a + &b)), Some(x + y));
        prop_assert_eq!(value(&(&a - &b)), Some(x - y));
        prop_assert_eq!(value(&(&a * &b)), Some(x * y));
        let fixed = a.substitute(&|sym| names.iter().position(|name| *name == sym.as_str()).map(|i| values[i].into()));
        prop_assert_eq!(fixed.as_const(), Some(x));
    }

    #[test]
    fn dims_read_back(a in dim()) {
        prop_assert_eq!(a.to_string().parse::<Dim>(), Ok(a.clone()));
        let attr = Attr::from(a);
        prop_assert_eq!(attr.to_string().parse::<Attr>(), Ok(attr));
    }
}

#[test]
fn changed_texts_are_read_without_a_panic() {
    let texts = cases();
    let mut rng = Rng::new(7);
    let (mut good, mut bad) = (0, 0);
    for _ in 0..6000 {
        let text = mutate(&texts[rng.below(texts.len())], &texts, &mut rng);
        match check_any(&text) {
            Some(_) => good += 1,
            None => bad += 1,
        }
    }
    assert!(good > 100 && bad > 1000, "{good} texts were right and {bad} wrong");
}

#[test]
fn random_modules_have_every_op_that_they_can() {
    let mut counts: HashMap<&str, usize> = HashMap::new();
    for seed in 0..200 {
        let sample = random_module(seed, Options { ops: 12, narrow: true, calls: seed % 2 == 0 });
        for (name, n) in histogram(&sample.module) {
            *counts.entry(name).or_insert(0) += n;
        }
    }
    let wanted = "add sub mul div maximum exp log sqrt rsqrt recip sigmoid silu scale offset einsum reshape slice concat \
                  rms_norm softmax sum mean max cast call get";
    for name in wanted.split_whitespace() {
        assert!(counts.get(name).is_some_and(|&n| n >= 5), "{name}: {counts:?}");
    }
}

/// A text that is large in one way takes time in proportion.
#[test]
fn large_texts_are_read_soon() {
    let started = std::time::Instant::now();
    let mut long = String::from("dim b\nfn @f(%v0: f32[b]) -> f32[b] {\n");
    for i in 0..20_000 {
        long += &format!("  %v{} = exp %v{i} : f32[b]\n", i + 1);
    }
    assert!(parse(&(long.clone() + "  return %v20000\n}\n")).is_ok());
    let n = 200_000;
    let texts = [
        "(".repeat(n),
        "[".repeat(n),
        "{".repeat(n),
        "fn @f(".repeat(n / 6),
        "dim x ".repeat(n / 6),
        format!("dim b\nfn @f(%x: f32[{}1]) -> f32[b] {{", "b*".repeat(n)),
        format!("dim b\nfn @f(%x: f32[{}b]) -> f32[b] {{", "b+".repeat(n)),
        format!("dim b\nfn @f(%x: f32[{}]) -> f32[b] {{", "b,".repeat(n)),
        format!("fn @f(%x: f32[]) -> f32[] {{ %y = add {} : f32[] return %y }}", "%x,".repeat(n)),
        format!(
            "fn @f(%x: f32[]) -> f32[] {{ %y = concat {}%x {{axis = 0}} : f32[] return %y }}",
            "%x,".repeat(n)
        ),
        format!(
            "fn @f(%x: f32[]) -> f32[] {{ %y = einsum \"{}->a\" %x : f32[] return %y }}",
            "abc,".repeat(n)
        ),
        format!("fn @f(%x: f32[]) -> f32[] {{ {} return %x }}", "%y = exp %z : f32[] ".repeat(n / 20)),
        format!("%{}", "a".repeat(n)),
        format!("\"{}", "a".repeat(n)),
        "\"\n".repeat(n),
        "//".repeat(n),
        "9".repeat(n),
        "\u{300}".repeat(n),
        long,
    ];
    let wrong = texts.iter().filter(|text| parse(text).is_err()).count();
    assert_eq!(wrong, texts.len() - 1, "all but the comment are wrong");
    assert!(started.elapsed().as_secs() < 20, "{:?}", started.elapsed());
}
