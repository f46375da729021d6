//! Passes and rules of the user's own: when they run, and what their mistakes look like.

use eva_ir::diag::Diag;
use eva_ir::graph::Module;
use eva_ir::ops::{OpKind, silu::Silu};
use eva_ir::text;
use eva_passes::rewrite::{Id, build::Builder};
use eva_passes::{
    CacheOptions, Error, Exactness, Form, Hoist, Options, PASSES, Pass, Rule, optimize, order_of, run_pass,
};
use std::sync::{Arc, Mutex};

const GATE: &str = "dim b fn @f(%x: f32[b, 7]) -> f32[b, 7] {
  %s = sigmoid %x : f32[b, 7]
  %y = mul %x, %s : f32[b, 7]
  return %y
}";

fn module() -> Module {
    text::parse(GATE).unwrap()
}

fn silu(exactness: Exactness) -> Rule {
    let equals = |b: &mut Builder<'_>, _: &eva_ir::ops::Op, args: &[Id]| {
        let of_first = b.nodes(args[1], OpKind::Sigmoid).iter().any(|(_, of)| of[0] == args[0]);
        if of_first { vec![b.op(Silu {}, &args[..1])] } else { Vec::new() }
    };
    Rule::local("silu", "It is.", exactness, OpKind::Mul, "mul x (sigmoid x) => silu x", equals, "silu")
}

/// Passes that write their names down.
fn writing(names: &[(&'static str, Option<&'static str>)]) -> (Vec<Pass>, Arc<Mutex<Vec<&'static str>>>) {
    let written = Arc::new(Mutex::new(Vec::new()));
    let pass = |&(name, after): &(&'static str, Option<&'static str>)| {
        let written = written.clone();
        let pass = Pass::new(name, move |module| {
            written.lock().unwrap().push(name);
            Ok(module.clone())
        });
        after.map_or(pass.clone(), |after| pass.after(after))
    };
    (names.iter().map(pass).collect(), written)
}

#[test]
fn passes_run_in_their_places() {
    let (passes, written) =
        writing(&[("last", Some("hoist")), ("two", Some("form")), ("first", None), ("three", Some("form"))]);
    let options = Options { passes, tf32: true, ..Options::default() };
    let mut order = vec!["first"];
    for name in PASSES {
        order.push(name);
        match name {
            "form" => order.extend(["two", "three"]),
            "hoist" => order.push("last"),
            _ => {}
        }
    }
    assert_eq!(order_of(&options), order);
    optimize(&module(), &options).unwrap();
    assert_eq!(*written.lock().unwrap(), ["first", "two", "three", "last"]);
    // What comes after a pass comes there without it, too.
    let options = Options { hoist: Hoist::Never, tf32: false, ..options };
    let fewer: Vec<&str> = order.into_iter().filter(|name| !["hoist", "tf32"].contains(name)).collect();
    assert_eq!(order_of(&options), fewer);
    assert!(run_pass("two", &module(), &options).unwrap().is_ok());
    assert_eq!(written.lock().unwrap().len(), 5);
    assert!(run_pass("four", &module(), &options).is_none());
}

#[test]
fn names_and_places_that_there_are_not() {
    let said = |names: &[(&'static str, Option<&'static str>)]| {
        let options = Options { passes: writing(names).0, ..Options::default() };
        match optimize(&module(), &options) {
            Err(Error::Invalid(diags)) => diags.to_string(),
            other => panic!("{other:?}"),
        }
    };
    let text = said(&[("mine", Some("fuse"))]);
    assert!(text.contains("the pass `mine` is to run after `fuse`, which is not one of eva's"), "{text}");
    assert!(said(&[("mine", None), ("mine", Some("form"))]).contains("two passes are named `mine`"));
    assert!(said(&[("attend", None)]).contains("two passes are named `attend`"));
}

#[test]
fn what_passes_get_wrong_has_their_names() {
    let wrong = Pass::new("wrong", |module| {
        let mut module = module.clone();
        let (func, f) = module.funcs.iter().next().unwrap();
        let mut f = (**f).clone();
        f.results.clear();
        module.funcs[func] = f.into();
        Ok(module)
    });
    let options = Options { passes: vec![wrong], ..Options::default() };
    let error = optimize(&module(), &options).unwrap_err();
    assert!(matches!(error, Error::Pass { pass: "wrong", .. }), "{error}");
    assert!(
        error.to_string().starts_with("the pass `wrong` made a module that is not well-formed: "),
        "{error}"
    );
    let refuses = Pass::new("refuses", |_| Err(Diag::new("mine::no", "not this one")));
    let options = Options { passes: vec![refuses], ..Options::default() };
    let Error::Invalid(diags) = optimize(&module(), &options).unwrap_err() else { panic!() };
    assert_eq!((diags.0[0].code, diags.0[0].message.as_str()), ("mine::no", "not this one"));
}

#[test]
fn rules_apply_to_functions_without_products_and_as_far_as_results_may_move() {
    let with = |exactness, options: Options| {
        let options = Options { rules: vec![silu(exactness)], ..options };
        optimize(&module(), &options).unwrap().to_string().contains("silu")
    };
    assert!(with(Exactness::Reassociates, Options::default()));
    assert!(with(Exactness::Reassociates, Options { form: Form::Expanded, ..Options::default() }));
    assert!(!with(Exactness::Rounds, Options::default()));
    assert!(with(Exactness::Rounds, Options { numerics: Exactness::Rounds, ..Options::default() }));
    assert!(!with(Exactness::Reassociates, Options { numerics: Exactness::Exact, ..Options::default() }));
    let written = Options { form: Form::Written, cache: CacheOptions::default(), ..Options::default() };
    assert!(!with(Exactness::Exact, written), "nothing is rewritten");
}

#[test]
fn a_guard_that_is_not_declared_is_a_mistake_of_the_rule() {
    let equals = |b: &mut Builder<'_>, _: &eva_ir::ops::Op, _: &[Id]| {
        b.guard("the moon is full", false);
        Vec::new()
    };
    let rule =
        Rule::local("moon", "Why not.", Exactness::Exact, OpKind::Mul, "mul x y => nothing", equals, "none");
    let options = Options { rules: vec![rule.clone()], ..Options::default() };
    let Error::Invalid(diags) = optimize(&module(), &options).unwrap_err() else { panic!() };
    let message = "the rule `moon` asks for a guard that it does not declare: the moon is full";
    assert_eq!(diags.0[0].message, message);
    let declared = rule.guarded(&["the moon is full"]);
    assert_eq!(declared.guards(), ["the moon is full"]);
    assert!(declared.without("the sun shines").is_none());
    optimize(&module(), &Options { rules: vec![declared], ..Options::default() }).unwrap();
}
