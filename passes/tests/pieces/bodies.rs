//! Functions with a body for each part of the lengths.

use crate::support::{V3, case, choose, difference, fix, last, mla, results};
use eva_ir::dim::Sym;
use eva_ir::estimate::least;
use eva_ir::graph::{Function, Module};
use eva_ir::{text, verify};
use eva_passes::cost::{Cost, CostOptions, Lengths, Machine};
use eva_passes::form::pieces::Search;
use eva_passes::form::{Form, choose_and_report};
use eva_passes::rewrite::Side;
use eva_passes::rewrite::rules::{Use, usable};
use std::collections::BTreeMap;

fn open() -> Module {
    fix(mla(), V3)
}

/// The number of the body that runs for these lengths.
fn chosen(f: &Function, sizes: &BTreeMap<Sym, i64>) -> usize {
    least(f.bodies().map(|(_, estimate)| estimate), &|sym| sizes.get(sym).copied())
}

#[test]
fn open_lengths_have_a_body_each() {
    for machine in Machine::built_in() {
        let (module, report) =
            choose_and_report(&open(), Form::Auto, &CostOptions::new(machine.clone()), Use::default())
                .unwrap();
        verify::verify(&module).unwrap();
        let (_, f) = last(&module);
        let lines: Vec<String> = report
            .bodies
            .iter()
            .map(|body| {
                format!("{}: {:?} {:?}\n  {}", body.name, body.sides.key, body.sides.value, body.estimate)
            })
            .collect();
        insta::assert_snapshot!(format!("bodies_{}", machine.name), lines.join("\n"));
        assert_eq!(report.bodies.len(), f.bodies().count());
        let printed = text::print(&module);
        assert_eq!(text::print(&text::parse(&printed).unwrap()), printed);
    }
}

/// At lengths of the grid and between them, the body that runs is hardly worse than what is found for these lengths alone.
#[test]
fn the_body_that_runs_is_the_cheapest() {
    let costs = CostOptions::default();
    let (module, _) = choose_and_report(&open(), Form::Auto, &costs, Use::default()).unwrap();
    let (_, f) = last(&module);
    let original = open();
    let (_, g) = last(&original);
    let rules = usable(Use::default()).unwrap();
    let search = Search::new(g, &rules, Cost::new(&original, g, &costs)).unwrap();
    let lengths = Lengths::of(&original);
    let mut runs = vec![0; f.bodies().count()];
    for (batch, cached) in [(1, 1), (1, 17), (3, 300), (1, 3000), (64, 4096), (7, 20000)] {
        let news = [1, 2, 7, 60, 150, 190, 1000, 20000].into_iter().filter(|&new| new <= cached);
        for new in news {
            let sizes = lengths.sizes(batch, new, cached);
            let i = chosen(f, &sizes);
            runs[i] += 1;
            let seconds =
                |f: &Function| search.cost.estimate(f).eval(&|sym| sizes.get(sym).copied()).unwrap();
            let (best, _) =
                search.s.take(g, &rules, &search.cost, &search.cheapest(&sizes).unwrap()).unwrap();
            let best = best.map_or_else(|| seconds(g), |best| seconds(&best));
            let here = seconds(&f.with_body(i));
            assert!(here <= best * 1.02, "{sizes:?}: {here} s by body {i}, {best} s alone");
        }
    }
    assert!(runs.iter().all(|&n| n > 5), "every body runs somewhere: {runs:?}");
}

/// By arithmetic alone, the body changes at the crossover: near 170 new tokens when many are cached.
#[test]
fn the_body_changes_where_arithmetic_says() {
    let (module, report) =
        choose_and_report(&open(), Form::Auto, &CostOptions::default(), Use::default()).unwrap();
    let (_, f) = last(&module);
    let lengths = Lengths::of(&module);
    let sides: Vec<_> = report.bodies.iter().map(|body| body.sides.key).collect();
    let side = |new, cached| sides[chosen(f, &lengths.sizes(1, new, cached))].unwrap();
    for (cached, from) in [(512, 128), (4096, 164), (32768, 170)] {
        assert_eq!(side(1, cached), Side::Absorbed);
        // Memory matters a little where few tokens are cached.
        assert_eq!(side(from - 12, cached), Side::Absorbed, "{cached}");
        assert_eq!(side(from + 12, cached), Side::Expanded, "{cached}");
        assert_eq!(side(cached, cached), Side::Expanded);
    }
}

#[test]
fn all_bodies_compute_the_same() {
    let (module, report) =
        choose_and_report(&mla(), Form::Auto, &CostOptions::default(), Use::default()).unwrap();
    let sizes = [("b", 3), ("s", 2), ("t", 12)];
    let want = results(&mla(), &sizes, &[4, 10, 0], 7);
    assert!(report.bodies.len() > 1);
    for i in 0..report.bodies.len() {
        let one = module.with_bodies(|_| i);
        verify::verify(&one).unwrap();
        let d = difference(&results(&one, &sizes, &[4, 10, 0], 7), &want);
        assert!(d < 1e-12, "body {i}: {d:e}");
    }
}

#[test]
fn forced_forms_and_fixed_lengths_have_one_body() {
    for form in [Form::Absorbed, Form::Expanded] {
        assert!(last(&choose(&mla(), form)).1.alternatives.is_empty());
    }
    let fixed = fix(open(), &[("b", 1), ("s", 1), ("t", 4096)]);
    assert!(last(&choose(&fixed, Form::Auto)).1.alternatives.is_empty());
    // One open length is enough for several.
    let open_new = fix(open(), &[("b", 1), ("t", 4096)]);
    let (module, report) =
        choose_and_report(&open_new, Form::Auto, &CostOptions::default(), Use::default()).unwrap();
    let names: Vec<&str> = report.bodies.iter().map(|body| body.name.as_str()).collect();
    assert_eq!(names, ["mla", "expanded"]);
    let syms = |f: &Function| {
        f.bodies()
            .flat_map(|(_, e)| e.polys())
            .flat_map(|p| p.terms())
            .flat_map(|(s, _)| s.to_vec())
            .collect::<Vec<_>>()
    };
    assert!(syms(last(&module).1).iter().all(|sym| sym.as_str() == "s"));
}

/// What has several bodies already keeps them, and a pass sees each.
#[test]
fn passes_see_every_body() {
    let (module, _) = choose_and_report(&mla(), Form::Auto, &CostOptions::default(), Use::default()).unwrap();
    let recognized = eva_passes::attend::recognize(&module).unwrap();
    verify::verify(&recognized).unwrap();
    let (_, f) = last(&recognized);
    for (body, _) in f.bodies() {
        assert!(text::print(&fixed_module(&recognized, body)).contains(" attend "), "{}", body.name);
    }
    // What has been decided stays.
    for module in [&module, &recognized] {
        for form in [Form::Auto, Form::Absorbed] {
            assert_eq!(text::print(&choose(module, form)), text::print(module));
        }
    }
}

fn fixed_module(module: &Module, body: &Function) -> Module {
    let mut one = Module { dims: module.dims.clone(), ..Module::default() };
    one.add(Function { alternatives: Vec::new(), estimate: Default::default(), ..body.clone() });
    one
}

#[test]
fn every_time_the_same() {
    let print = || text::print(&choose(&open(), Form::Auto));
    let first = print();
    (0..20).for_each(|_| assert_eq!(print(), first));
}

/// Functions without latents have nothing to choose between.
#[test]
fn other_functions_have_one_body() {
    let module = choose(&case("text/moe.eva"), Form::Auto);
    assert!(module.funcs.iter().all(|(_, f)| f.alternatives.is_empty()));
}
