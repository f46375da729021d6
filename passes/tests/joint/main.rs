//! The form of latent attention of functions with gradients: chosen on the joint graph, and equal whatever is chosen.

#[path = "../form/support.rs"]
#[allow(dead_code)]
mod support;

use eva_ir::eval::Array;
use eva_ir::graph::Module;
use eva_ir::{text, verify};
use eva_passes::cost::{CostOptions, Machine};
use eva_passes::grad::forms::{Candidate, Choice};
use eva_passes::grad::{Options, Report, differentiate_and_report, differentiate_by};
use eva_passes::rewrite::{Side, Sides};
use eva_passes::{Exactness, Form};
use proptest::prelude::*;
use support::{difference, fix, parse, results};

/// Two layers of latent attention over whole sequences, and a loss.
const LAYERS: &str = include_str!("../../../tests/cases/run/latent_layers.eva");

fn model(extents: [i64; 6]) -> Module {
    let names = ["m", "c", "h", "n", "p", "v"];
    fix(parse(LAYERS), &names.into_iter().zip(extents).collect::<Vec<_>>())
}

/// Latents of 16, and heads of 64 and 64.
const SMALL: [i64; 6] = [1024, 16, 16, 64, 16, 64];
/// DeepSeek-V3's.
const V3: [i64; 6] = [7168, 512, 128, 128, 64, 128];
/// Keys are narrower than latents, values wider.
const UNEVEN: [i64; 6] = [256, 32, 8, 16, 14, 128];
/// For reading.
const TINY: [i64; 6] = [24, 3, 5, 7, 4, 9];

fn options(form: Form, [batch, tokens]: [i64; 2]) -> Options {
    let sizes = [("b".into(), batch), ("s".into(), tokens)].into();
    Options { form, cost: CostOptions { sizes, ..CostOptions::new(Machine::cpu()) }, ..Options::default() }
}

fn verified(module: Module) -> Module {
    verify::verify(&module).unwrap_or_else(|e| panic!("{e}\n{}", text::print(&module)));
    module
}

fn decided(extents: [i64; 6], lengths: [i64; 2]) -> (Module, Report) {
    let options = options(Form::Auto, lengths);
    let (module, report) = differentiate_and_report(&model(extents), "loss", &options).unwrap();
    (verified(module), report)
}

/// With the candidate of this number.
fn with(module: &Module, number: usize) -> (Module, Report) {
    let (module, report) =
        differentiate_by(module, "loss", &options(Form::Auto, [2, 600]), &|_| number).unwrap();
    (verified(module), report)
}

const EXPANDED: Sides = Sides { key: Some(Side::Expanded), value: Some(Side::Expanded) };
const ABSORBED: Sides = Sides { key: Some(Side::Absorbed), value: Some(Side::Absorbed) };

fn chosen(report: &Report) -> &Candidate {
    let [Choice { candidates, chosen, .. }] = &report.forms[..] else { panic!("{:?}", report.forms) };
    &candidates[*chosen]
}

fn shown(module: &Module, names: &[&str]) -> String {
    names
        .iter()
        .map(|name| text::print_function(module, module.func(name).unwrap()))
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn small_latents_are_absorbed_and_v3s_expanded() {
    let kept = |report: &Report| -> Vec<String> {
        report.splits[0].kept.iter().map(|kept| kept.name.clone()).collect()
    };
    let (module, report) = decided(SMALL, [1, 512]);
    assert_eq!((chosen(&report).forward, chosen(&report).backward), (ABSORBED, ABSORBED));
    let names = kept(&report);
    let has = |name: &str| names.iter().any(|kept| kept == name);
    assert!(has("ckv") && has("q_latent") && !has("k_nope") && !has("value"), "{names:?}");
    // The function itself is in the same form, and so is what measures without gradients.
    assert!(shown(&module, &["layer"]).contains("q_latent"));
    let written = &report.forms[0].candidates[0];
    assert_eq!((written.forward, written.backward), (EXPANDED, EXPANDED));
    assert!(chosen(&report).seconds() < written.seconds() && chosen(&report).kept_bytes < written.kept_bytes);

    for lengths in [[1, 512], [1, 4096], [16, 4096]] {
        let (module, report) = decided(V3, lengths);
        assert_eq!((chosen(&report).forward, chosen(&report).backward), (EXPANDED, EXPANDED));
        let names = kept(&report);
        assert!(["k_nope", "value"].iter().all(|name| names.iter().any(|kept| kept == name)), "{names:?}");
        // Nothing is otherwise than without a choice.
        let (without, none) =
            differentiate_and_report(&model(V3), "loss", &options(Form::Expanded, lengths)).unwrap();
        assert_eq!(text::print(&module), text::print(&without));
        assert!(none.forms.is_empty() && none.splits == report.splits);
    }
    // One of the two alone.
    let (_, report) = decided(UNEVEN, [1, 256]);
    let sides = Sides { key: Some(Side::Expanded), value: Some(Side::Absorbed) };
    assert_eq!((chosen(&report).forward, chosen(&report).backward), (sides, sides));
}

/// With as many tokens as are attended to, absorbing multiplies by the up-projections as often as expanding, so that the
/// widths decide; but for short sequences by what is kept. What is said for other lengths is what is chosen for them.
#[test]
fn the_choice_follows_the_lengths() {
    let extents = [256, 24, 8, 48, 16, 16];
    let (_, report) = decided(extents, [1, 64]);
    let mut seen = Vec::new();
    for tokens in [4, 16, 64, 300, 1200, 5000, 20000] {
        let (_, there) = decided(extents, [1, tokens]);
        seen.push(chosen(&there).backward);
        let at = report.forms[0].at(&[("s".into(), tokens)].into());
        assert_eq!(report.forms[0].candidates[at].backward, chosen(&there).backward, "{tokens}");
        for candidate in &there.forms[0].candidates {
            let sum = candidate.estimate.eval(&|sym| there.forms[0].sizes.get(sym).copied()).unwrap();
            assert!((sum / candidate.seconds() - 1.0).abs() < 1e-9);
        }
    }
    let keys = Sides { key: Some(Side::Absorbed), value: Some(Side::Expanded) };
    assert_eq!((seen.first(), seen.last()), (Some(&ABSORBED), Some(&keys)), "{seen:?}");
}

#[test]
fn forms_that_are_asked_for() {
    let both = |form, numerics| {
        let options = Options { numerics, ..options(form, [1, 512]) };
        differentiate_and_report(&model(SMALL), "loss", &options).unwrap()
    };
    let (expanded, report) = both(Form::Expanded, Exactness::Reassociates);
    assert!(report.forms.is_empty() && !text::print(&expanded).contains("latent"));
    for (form, numerics) in [(Form::Written, Exactness::Reassociates), (Form::Auto, Exactness::Exact)] {
        let (module, report) = both(form, numerics);
        assert!(report.forms.is_empty());
        assert_eq!(text::print(&module), text::print(&expanded));
    }
    // Whatever it costs.
    let options = options(Form::Absorbed, [1, 512]);
    let (_, report) = differentiate_and_report(&model(V3), "loss", &options).unwrap();
    assert_eq!((chosen(&report).forward, chosen(&report).backward), (ABSORBED, ABSORBED));
    assert!(report.forms[0].candidates.iter().all(|candidate| candidate.forward == candidate.backward));
}

#[test]
fn every_time_the_same() {
    let first = decided(SMALL, [2, 300]);
    for _ in 0..5 {
        let again = decided(SMALL, [2, 300]);
        assert_eq!(text::print(&again.0), text::print(&first.0));
        assert_eq!(again.1, first.1);
    }
}

#[test]
fn joint_graphs_look_like_this() {
    let functions = ["layer.forward", "layer.backward"];
    let module = model(TINY);
    let number = |forward: Sides, backward: Sides| {
        let (_, report) = with(&module, 0);
        let is_it = |candidate: &Candidate| (candidate.forward, candidate.backward) == (forward, backward);
        report.forms[0].candidates.iter().position(is_it).expect("it is among them")
    };
    for (name, forward, backward) in [
        ("expanded", EXPANDED, EXPANDED),
        ("absorbed", ABSORBED, ABSORBED),
        ("absorbed_then_expanded", ABSORBED, EXPANDED),
    ] {
        let (module, report) = with(&module, number(forward, backward));
        let kept: Vec<&str> = report.splits[0].kept.iter().map(|kept| kept.name.as_str()).collect();
        let text = format!("// kept: {}\n{}", kept.join(", "), shown(&module, &functions));
        insta::assert_snapshot!(name, text);
    }
}

/// All candidates for these extents, and the results of `@loss.grad` of each.
fn gradients(module: &Module, sizes: &[(&str, i64)], start: &[i64]) -> Vec<(String, Vec<(String, Array)>)> {
    let all = with(module, 0).1.forms[0].candidates.len();
    let of = |number: usize| {
        let (module, report) = with(module, number);
        let Candidate { forward, backward, .. } = chosen(&report);
        (format!("{forward:?} {backward:?}"), results(&module, sizes, start, 7))
    };
    (0..all).map(of).collect()
}

fn check(module: &Module, sizes: &[(&str, i64)], start: &[i64]) {
    let all = gradients(module, sizes, start);
    assert!(all.len() >= 3, "expanded, absorbed, and either forward and backward");
    for (form, have) in &all[1..] {
        let d = difference(have, &all[0].1);
        assert!(d < 1e-10, "{form}: {d:e}");
    }
}

#[test]
fn gradients_are_those_of_the_expanded_form() {
    check(&model(TINY), &[("b", 2), ("s", 11)], &[0, 0]);
}

/// Two attentions in one function, the one with the loss; and three, whose keys and values are decided together.
#[test]
fn gradients_of_two_attentions_in_the_function_with_the_loss() {
    let (head, rest) = LAYERS.split_once("fn @layer(").unwrap();
    let (_, loss) = rest.split_once("fn @loss(").unwrap();
    let (_, body) = rest.split_once("-> f32[b, s, m] {\n").unwrap();
    let body = body.split_once("  return").unwrap().0;
    let one = |i: usize, from: &str, to: &str| {
        let values: Vec<&str> =
            body.lines().map(|line| line.trim()[1..].split(' ').next().unwrap()).collect();
        let rename = |line: &str| {
            let mut line = format!("{line} ");
            for name in &values {
                for end in [" ", ","] {
                    line = line.replace(&format!("%{name}{end}"), &format!("%{name}.{i}{end}"));
                }
            }
            line.replace("%x,", &format!("%{from},")).replace(&format!("%out.{i}"), &format!("%{to}"))
        };
        body.lines().map(rename).collect::<Vec<_>>().join("\n")
    };
    let (before, after) = loss.split_once("  %one = call").unwrap();
    let after = after.split_once("  %loss").unwrap().1;
    let flat = |layers: &[String]| format!("{head}fn @loss({before}{}\n  %loss{after}", layers.join("\n"));
    let text = flat(&[one(1, "first", "one"), one(2, "one", "two")]);
    let three = flat(&[one(1, "first", "one"), one(2, "one", "between"), one(3, "between", "two")]);
    let module = fix(parse(&three), &[("c", 8)]);
    check(&module, &[("b", 1), ("s", 5)], &[0]);
    assert_eq!(with(&module, 0).1.forms[0].candidates.len(), 5);
    for latent in [3, 8] {
        // Narrower than keys and values, or than values alone.
        let module = fix(parse(&text), &[("c", latent)]);
        let sizes = [("b", 2), ("s", 7)];
        check(&module, &sizes, &[0, 0]);
        let apart = gradients(&fix(model(TINY), &[("c", latent)]), &sizes, &[0, 0]);
        let together = gradients(&module, &sizes, &[0, 0]);
        assert!(together.len() >= apart.len());
        let d = difference(&together[0].1, &apart[0].1);
        assert!(d < 1e-10, "{d:e}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn whatever_the_extents(extents in [1i64..7, 1..7, 1..6, 1..7, 1..4, 1..7], b in 1i64..4, s in 1i64..9) {
        let [m, c, h, n, p, v] = extents;
        check(&model([m, c, h, n, 2 * p, v]), &[("b", b), ("s", s)], &vec![0; b as usize]);
    }
}
