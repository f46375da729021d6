//! Which form is chosen, and what it looks like.

use crate::support::{V3, arguments, case, choose, difference, fix, last, mla, parse, results};
use eva_ir::graph::{Def, Module};
use eva_ir::kernel::Phase;
use eva_ir::ops::Op;
use eva_ir::{text, verify};
use eva_passes::cost::CostOptions;
use eva_passes::form::{Form, Report, choose_and_report};
use eva_passes::interpret::{How, interpret};
use eva_passes::rewrite::rules::Use;
use eva_passes::rewrite::{Side, Sides};
use eva_passes::{Hoist, Options, attend, lower, optimize, target::Target};
use std::fmt::Write;

fn report(report: &Report) -> String {
    let mut text = String::new();
    let sizes: Vec<String> = report.sizes.iter().map(|(sym, n)| format!("{sym} = {n}")).collect();
    writeln!(text, "// open: {}", if sizes.is_empty() { "none".into() } else { sizes.join(", ") }).unwrap();
    for f in &report.functions {
        let (before, after) = f.cost;
        let how = if f.saturated { "saturated" } else { "stopped" };
        let nodes = format!("{} -> {} terms", f.nodes.0, f.nodes.1);
        let cost = format!("{:.3} -> {:.3} ms", before * 1e3, after * 1e3);
        writeln!(text, "// @{}: {cost}, {nodes}, {how} after {}", f.function, f.iterations).unwrap();
        for rule in f.rules.iter().filter(|rule| rule.matched > 0) {
            writeln!(text, "//   {}: {} of {}", rule.rule, rule.chosen.len(), rule.matched).unwrap();
        }
    }
    text
}

/// The function in this form, with the report above it.
fn shown(module: &Module, form: Form) -> String {
    let (chosen, done) = choose_and_report(module, form, &CostOptions::default(), Use::default()).unwrap();
    verify::verify(&chosen).unwrap();
    report(&done) + &text::print_function(&chosen, last(&chosen).0)
}

fn is_absorbed(module: &Module, form: Form) -> bool {
    let chosen = text::print(&choose(module, form));
    let absorbed = text::print(&choose(module, Form::Absorbed));
    assert!(chosen == absorbed || chosen == text::print(module), "one form or the other\n{chosen}");
    chosen == absorbed
}

#[test]
fn absorbed() {
    insta::assert_snapshot!(shown(&mla(), Form::Absorbed));
}

#[test]
fn expanded() {
    insta::assert_snapshot!(shown(&mla(), Form::Expanded));
    assert_eq!(text::print(&choose(&mla(), Form::Expanded)), text::print(&mla()));
}

#[test]
fn auto_when_decoding() {
    insta::assert_snapshot!(shown(&fix(mla(), V3), Form::Auto));
}

#[test]
fn auto_when_reading_a_prompt() {
    let prompt = fix(fix(mla(), V3), &[("s", 4096), ("t", 4096)]);
    insta::assert_snapshot!(shown(&prompt, Form::Auto));
}

/// With n = v = 128 and c = 512, making keys and values again pays for more than c(n+v)/(2c-n-v) = 170.7 new
/// tokens, whatever the heads and the number cached, if that is large.
#[test]
fn auto_turns_where_arithmetic_says() {
    let at = |new, cached| fix(fix(mla(), V3), &[("s", new), ("t", cached)]);
    for cached in [4096, 65536] {
        assert!(is_absorbed(&at(1, cached), Form::Auto), "{cached}");
        assert!(is_absorbed(&at(150, cached), Form::Auto), "{cached}");
        assert!(!is_absorbed(&at(180, cached), Form::Auto), "{cached}");
    }
    // More heads or fewer change nothing.
    assert!(is_absorbed(&fix(at(150, 65536), &[("h", 16)]), Form::Auto));
    assert!(!is_absorbed(&fix(at(180, 65536), &[("h", 16)]), Form::Auto));
}

#[test]
fn the_cached_extent_is_known_by_what_it_does() {
    let renamed = text::print(&fix(mla(), V3)).replace("dim t\n", "dim past\n");
    let renamed = renamed.replace("[b, t, ", "[b, past, ").replace(", t]", ", past]");
    let (_, done) =
        choose_and_report(&parse(&renamed), Form::Auto, &CostOptions::default(), Use::default()).unwrap();
    let sizes: Vec<(&str, i64)> = done.sizes.iter().map(|(sym, n)| (sym.as_str(), *n)).collect();
    assert_eq!(sizes, [("b", 1), ("past", 4096), ("s", 1)]);
    assert_eq!(done.functions[0].rules[0].chosen.len(), 1);
}

/// Absorbed attention has one key for all heads, so that heads are rows of one product.
#[test]
fn absorbed_attention_is_recognized_and_its_heads_share_keys() {
    for (form, spec, axes) in [
        (Form::Absorbed, "bshc,btc,bshp,btp,bta->bsha", 2),
        (Form::Expanded, "bshn,bthn,bshp,btp,bthv->bshv", 3),
    ] {
        let options = Options { form, hoist: Hoist::Never, ..Options::default() };
        let module = optimize(&mla(), &options).unwrap();
        let (func, f) = last(&module);
        let mut attends = f.values.iter().filter_map(|(_, data)| match &data.def {
            Def::Op(Op::Attend(op), args) => Some((op.spec.clone(), args.clone())),
            _ => None,
        });
        let (have, args) = attends.next().expect("one attention");
        assert!(attends.next().is_none() && args.len() == 6);
        assert_eq!(have, spec.parse().unwrap(), "{form:?}: {have}");
        assert!(f.values.iter().all(|(_, data)| !matches!(data.def, Def::Op(Op::CausalSoftmax(_), _))));

        let plan = lower::lower(&module, &Target::cpu()).unwrap();
        let name = if form == Form::Absorbed { "mla.o_latent" } else { "mla.o" };
        let kernel = plan.tiles.iter().map(|(_, kernel)| kernel).find(|kernel| kernel.name == name);
        let kernel = kernel.expect("attention has a kernel");
        assert_eq!(kernel.grid.len(), axes, "{form:?}: {kernel}");

        let (extents, start) = ([("b", 3), ("s", 2), ("t", 12)], [4, 10, 0]);
        let (sizes, args) = arguments(&module, &extents, &start, 5);
        let how = How { phase: Phase::Tile, slack: 3, options: Default::default() };
        let (have, _) = interpret(&plan, func, &sizes, &args, &how).unwrap();
        let want = results(&mla(), &extents, &start, 5);
        let have: Vec<_> = want.iter().map(|(name, _)| name.clone()).zip(have).collect();
        let d = difference(&have, &want);
        assert!(d < 1e-6, "{form:?}: {d:e}");
    }
}

/// What no rule matches stays as it is, whatever it is; all of it verifies.
#[test]
fn other_functions_are_not_touched() {
    for name in ["absorbed", "calls", "forms", "mla", "moe"] {
        let module = case(&format!("text/{name}.eva"));
        for form in [Form::Auto, Form::Absorbed, Form::Expanded] {
            let (chosen, done) =
                choose_and_report(&module, form, &CostOptions::default(), Use::default()).unwrap();
            verify::verify(&chosen).unwrap();
            for (func, f) in module.funcs.iter() {
                if !done.functions.iter().any(|g| g.function == f.name) {
                    assert_eq!(text::print_function(&chosen, func), text::print_function(&module, func));
                }
            }
        }
    }
}

#[test]
fn every_time_the_same() {
    let module = fix(mla(), V3);
    for form in [Form::Auto, Form::Absorbed] {
        let first = shown(&module, form);
        (0..20).for_each(|_| assert_eq!(shown(&module, form), first));
    }
}

#[test]
fn recognition_does_not_change_what_is_computed() {
    let sizes = [("b", 3), ("s", 2), ("t", 12)];
    let want = results(&mla(), &sizes, &[4, 10, 0], 7);
    let absorbed = attend::recognize(&choose(&mla(), Form::Absorbed)).unwrap();
    assert!(difference(&results(&absorbed, &sizes, &[4, 10, 0], 7), &want) < 1e-12);
}

/// Weights that are computed from weights when they are loaded: down-projections side by side, and a fold that is smaller
/// than its two factors.
#[test]
fn weights_are_joined_and_folded_where_that_is_smaller() {
    let shown = |sizes: &[(&str, i64)]| {
        let module = fix(fix(mla(), sizes), &[("b", 1), ("s", 1), ("t", 4096)]);
        let what = Use { weights: true, ..Use::default() };
        let (chosen, done) = choose_and_report(&module, Form::Auto, &CostOptions::default(), what).unwrap();
        let fired = done.functions[0].rules.iter().filter(|rule| !rule.chosen.is_empty());
        (fired.map(|rule| rule.rule).collect::<Vec<_>>(), done.functions[0].sides, text::print(&chosen))
    };
    let (fired, sides, chosen) = shown(V3);
    assert_eq!(fired, ["mla_absorb_key", "mla_absorb_value", "fuse_projections"], "{chosen}");
    assert_eq!(sides, Sides { key: Some(Side::Absorbed), value: Some(Side::Absorbed) });
    let small = [("m", 7168), ("r", 256), ("c", 128), ("h", 128), ("n", 128), ("p", 64), ("v", 128)];
    let (fired, sides, chosen) = shown(&small);
    assert!(fired.contains(&"fold_weights"), "{fired:?}\n{chosen}");
    assert_eq!(sides.key, Some(Side::Folded), "{chosen}");
    assert!(chosen.contains("einsum \"hnr,hnc->hrc\" %w_uq, %w_uk"), "{chosen}");
}
