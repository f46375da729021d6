//! What the verifier refuses that no text can say: modules as a faulty pass might leave them.

use eva_ir::attr::{Dims, Range, Real, Spec, Word};
use eva_ir::dim::Dim;
use eva_ir::entity::Entity;
use eva_ir::estimate::Estimate;
use eva_ir::graph::{Alternative, Def, Func, Function, Module, ParamKind, Value, ValueData};
use eva_ir::ops::Op;
use eva_ir::ops::concat::Concat;
use eva_ir::ops::einsum::Einsum;
use eva_ir::ops::exp::Exp;
use eva_ir::ops::reshape::Reshape;
use eva_ir::ops::rope::Rope;
use eva_ir::ops::scale::Scale;
use eva_ir::ops::slice::Slice;
use eva_ir::poly::Poly;
use eva_ir::scales::{Block, Scales};
use eva_ir::text::{parse, print};
use eva_ir::types::{DType, TensorType, Type};
use eva_ir::verify::{limits, state_results, verified, verify, verify_function};
use std::sync::Arc;

fn f32(shape: &[&str]) -> TensorType {
    TensorType::new(DType::F32, shape.iter().map(|dim| dim.parse().unwrap()))
}

/// A well-formed module: `@f(%x) = exp %x`.
fn module() -> Module {
    let mut f = Function::new("f");
    let x = f.param(ParamKind::Input, "x", f32(&["b", "m"]));
    let y = f.op("y", Exp {}, &[x]).unwrap();
    f.results.push(y);
    let mut module = Module { dims: vec![("b".into(), None), ("m".into(), Some(7))], ..Module::default() };
    module.add(f);
    verify(&module).unwrap();
    module
}

/// A function of `module`, to be changed.
fn function(module: &mut Module, func: Func) -> &mut Function {
    Arc::make_mut(&mut module.funcs[func])
}

fn f() -> Func {
    Func::new(0)
}

fn x() -> Value {
    Value::new(0)
}

fn y() -> Value {
    Value::new(1)
}

/// The module is refused with exactly these messages; printing it does not panic.
#[track_caller]
fn refused(module: &Module, messages: &[&str]) {
    let diags = verify(module).expect_err("the module is wrong").0;
    let found: Vec<&str> = diags.iter().map(|diag| diag.message.as_str()).collect();
    assert_eq!(found, messages);
    let _ = print(module);
}

fn push(module: &mut Module, name: &str, ty: impl Into<Type>, def: Def) {
    function(module, f()).values.push(ValueData { name: name.into(), ty: ty.into(), def, loc: None });
}

#[test]
fn names_of_extents() {
    let mut m = module();
    m.dims.push(("b".into(), None));
    m.dims.push(("2b".into(), None));
    m.dims.push(("".into(), Some(0)));
    refused(
        &m,
        &[
            "the extent `b` is declared twice",
            "`2b` cannot be the name of an extent",
            "`` cannot be the name of an extent",
            "the extent `` must be positive",
        ],
    );
}

#[test]
fn names_of_functions() {
    let mut m = module();
    let copy = Function::clone(&m.funcs[f()]);
    m.add(copy.clone());
    m.add(Function { name: "a b".into(), ..copy });
    refused(&m, &["there are two functions @f", "`a b` cannot be the name of a function"]);
}

#[test]
fn names_of_values() {
    let mut m = module();
    function(&mut m, f()).values[y()].name = "x".into();
    refused(&m, &["`%x` is defined twice"]);
    for name in ["", "a-b", "%y", "y z", "é"] {
        function(&mut m, f()).values[y()].name = name.into();
        refused(&m, &[&format!("`{name}` cannot be the name of a value")]);
    }
    function(&mut m, f()).values[y()].name = "layers.0.mlp.down_proj.weight".into();
    verify(&m).unwrap();
}

#[test]
fn parameters_come_first() {
    let mut m = module();
    push(&mut m, "late", f32(&["b"]), Def::Param(ParamKind::Input));
    refused(&m, &["the parameter `%late` comes after an op"]);
}

#[test]
fn parameters_are_tensors() {
    let mut m = module();
    function(&mut m, f()).values[x()].ty = Type::Tuple(vec![f32(&["b"]), f32(&["m"])]);
    refused(&m, &["a parameter is one tensor, not (f32[b], f32[m])"]);
}

#[test]
fn operands_are_older() {
    let mut m = module();
    function(&mut m, f()).values[y()].def = Def::Op(Exp {}.into(), vec![y()]);
    refused(&m, &["`%y` uses `%y`, which is not older"]);
    function(&mut m, f()).values[y()].def = Def::Op(Exp {}.into(), vec![Value::new(17)]);
    refused(&m, &["`%y` uses a value that does not exist"]);
}

#[test]
fn types_are_what_is_inferred() {
    let mut m = module();
    function(&mut m, f()).values[y()].ty = f32(&["m", "b"]).into();
    refused(&m, &["`%y` has type f32[b, m], not f32[m, b]"]);
    function(&mut m, f()).values[y()].def = Def::Op(Exp {}.into(), vec![x(), x()]);
    refused(&m, &["`exp` takes 1 operand, not 2"]);
}

#[test]
fn calls_are_of_older_functions() {
    let mut m = module();
    let ty = f32(&["b", "m"]);
    push(&mut m, "z", ty.clone(), Def::Call(f(), vec![x()]));
    refused(&m, &["`%z` calls a function that is not older than this one"]);
    let mut m = module();
    push(&mut m, "z", ty, Def::Call(Func::new(9), vec![x()]));
    refused(&m, &["`%z` calls a function that is not older than this one"]);
}

#[test]
fn calls_pass_equal_types() {
    let mut m = module();
    let mut g = Function::new("g");
    let a = g.param(ParamKind::Input, "a", f32(&["m", "b"]));
    let def = Def::Call(f(), vec![a]);
    let z = g.values.push(ValueData { name: "z".into(), ty: f32(&["m", "b"]).into(), def, loc: None });
    g.results.push(z);
    m.add(g);
    refused(&m, &["`x` of @f is f32[b, m], but this is f32[m, b]"]);
    assert!(verify_function(&m, f()).is_ok(), "the other function is right");
    assert!(verify_function(&m, Func::new(1)).is_err());
}

#[test]
fn extents_are_declared() {
    let mut m = module();
    m.dims.remove(0);
    refused(&m, &["the extent `b` is not declared", "the extent `b` is not declared"]);
    let mut m = module();
    let range = Range { start: 0.into(), end: Dim::sym("q") };
    push(&mut m, "z", f32(&["b", "q"]), Def::Op(Slice { axis: 1, range }.into(), vec![x()]));
    refused(&m, &["the extent `q` is not declared"]);
}

#[test]
fn extents_are_positive() {
    let mut m = module();
    for (dim, message) in [
        ("0", "axis 0 of f32[0] has the extent 0, which is not positive"),
        ("m-7", "axis 0 of f32[m-7] has the extent 0 = m-7, which is not positive"),
    ] {
        function(&mut m, f()).values[x()].ty = f32(&[dim]).into();
        function(&mut m, f()).values[y()].ty = f32(&[dim]).into();
        refused(&m, &[message, message]);
    }
}

#[test]
fn bytes_can_be_counted() {
    let mut m = module();
    let large = 1 << 61;
    m.dims[1].1 = Some(large);
    let message = "f32[b, m] has more bytes than 64 bits can count";
    refused(&m, &[message, message]);
    m.dims[1].1 = Some(large - 1);
    verify(&m).unwrap();
}

#[test]
fn eight_bit_floats_have_scales() {
    let with = |dtype: DType, scales: Option<Scales>| {
        let mut m = module();
        let f = function(&mut m, f());
        f.values[x()].ty = TensorType { dtype, scales, ..f32(&["b", "m"]) }.into();
        f.results = vec![x()];
        let unused = f.values.iter().take(1).map(|(_, data)| data.clone()).collect();
        f.values = unused;
        m
    };
    let blocks = |blocks: &[Block]| Some(Scales::new(blocks.iter().copied()));
    verify(&with(DType::F8E4M3, blocks(&[Block::Each, Block::Of(128)]))).unwrap();
    verify(&with(DType::F8E5M2, blocks(&[Block::Whole, Block::Each]))).unwrap();
    refused(&with(DType::F8E4M3, None), &["f8e4m3[b, m] has no blocks, so no scales"]);
    refused(&with(DType::F8E4M3, blocks(&[Block::Each])), &["f8e4m3[b, m] has 2 axes but 1 blocks"]);
    refused(&with(DType::F8E5M2, blocks(&[Block::Of(0), Block::Each])), &["a block of f8e5m2[b/0, m] is 0"]);
    let message = "bf16 elements have no scales, so no blocks";
    refused(&with(DType::Bf16, blocks(&[Block::Each, Block::Of(128)])), &[message]);
    refused(&with(DType::E8M0, None), &["e8m0 is for scales alone"]);
}

#[test]
fn types_stay_below_the_limits() {
    let mut long = Dim::from(0);
    let mut m = module();
    for i in 0..=limits::TERMS {
        m.dims.push((format!("d{i}").as_str().into(), None));
        long = &long + &Dim::sym(&format!("d{i}"));
    }
    let mut with = |shape: Vec<Dim>| {
        let ty = TensorType::new(DType::F32, shape);
        let f = function(&mut m, f());
        f.values[x()].ty = ty.clone().into();
        f.values[y()].ty = ty.into();
        m.clone()
    };
    let message = "an extent has at most 16 terms and 64 factors";
    refused(&with(vec![long]), &[message, message]);
    let power = Dim::product(std::iter::repeat_n(&Dim::sym("b"), limits::FACTORS));
    refused(&with(vec![power]), &[message, message]);
    let message = "17 axes are too many: at most 16";
    refused(&with(vec![1.into(); 17]), &[message, message]);
    let message = "the product of these extents has more than 256 terms";
    let sum: Dim = "b+m".parse().unwrap();
    refused(&with(vec![sum.clone(); 9]), &[message, message]);
    verify(&with(vec![sum; 8])).unwrap();
    let message = "the numbers of this extent are out of range";
    refused(&with(vec![Dim::from(i64::MAX) * Dim::sym("b")]), &[message, message]);
}

#[test]
fn operands_are_not_too_many() {
    let mut m = module();
    let args = vec![x(); limits::OPERANDS + 1];
    let ty = f32(&[&format!("{}*b", args.len()), "m"]);
    push(&mut m, "z", ty, Def::Op(Concat { axis: 0 }.into(), args));
    refused(&m, &["`concat` has more than 1024 operands"]);
}

#[test]
fn attributes_can_be_written() {
    let with = |op: Op| {
        let mut m = module();
        push(&mut m, "z", f32(&["b", "m"]), Def::Op(op, vec![x()]));
        m
    };
    let nan = f64::from_bits(f64::NAN.to_bits() | 1);
    refused(
        &with(Scale { by: Real::new(nan) }.into()),
        &["the text cannot hold the attribute `by`, which is Real(NaN)"],
    );
    verify(&with(Scale { by: Real::new(f64::NAN) }.into())).unwrap();
    verify(&with(Scale { by: Real::new(-0.0) }.into())).unwrap();
    let word = Rope { pairs: Word::from("two words") };
    refused(&with(word.into()), &["the text cannot hold the attribute `pairs`, which is Word(two words)"]);
    let axes: Vec<u8> = (0..60).collect();
    let spec = Spec::new(&[&axes], &axes, |_| 'a');
    assert!(
        verify(&with(Einsum { spec }.into())).unwrap_err().0[0].message.starts_with("the text cannot hold")
    );
    let shape = Dims(vec![1.into(); 17]);
    refused(&with(Reshape { shape }.into()), &["17 axes are too many: at most 16"]);
}

#[test]
fn results_are_tensors_and_distinct() {
    let mut m = module();
    function(&mut m, f()).results.clear();
    refused(&m, &["@f returns nothing"]);
    function(&mut m, f()).results = vec![y(), y()];
    refused(&m, &["`%y` is returned twice"]);
    function(&mut m, f()).results = vec![y(), Value::new(5)];
    refused(&m, &["@f returns a value that does not exist"]);
}

#[test]
fn tuples_are_not_results() {
    let text = "dim b\nfn @two(%x: f32[b]) -> f32[b], f32[b] {\n %y = exp %x : f32[b]\n return %x, %y\n}\n\
                fn @g(%x: f32[b]) -> f32[b] {\n %t = call @two %x : (f32[b], f32[b])\n return %x\n}\n";
    let mut m = parse(text).unwrap();
    function(&mut m, Func::new(1)).results = vec![Value::new(1)];
    refused(&m, &["`%t` is returned, but (f32[b], f32[b]) is no tensor"]);
}

#[test]
fn state_is_found_among_results() {
    let text = include_str!("../../tests/cases/text/calls.eva");
    let m = parse(text).unwrap();
    let names = |func: &str| -> Vec<(String, Option<usize>)> {
        let func = m.func(func).unwrap();
        let name = |value| m.funcs[func].values[value].name.clone();
        state_results(&m)[func].iter().map(|&(value, index)| (name(value), index)).collect()
    };
    assert_eq!(names("layer"), [("cache".into(), Some(1))]);
    assert_eq!(names("head"), []);
    assert_eq!(names("model"), [("layers.0.cache".into(), Some(1)), ("layers.1.cache".into(), Some(2))]);
}

/// A module that has been verified is verified again once its extents or its functions have changed, in place or not.
#[test]
fn changes_after_verification_are_seen() {
    let verified_module = || verified(module()).unwrap();
    verify(&verified_module()).unwrap();

    let mut m = verified_module();
    m.dims[1].1 = Some(0);
    refused(
        &m,
        &[
            "the extent `m` must be positive",
            "axis 1 of f32[b, m] has the extent 0 = m, which is not positive",
            "axis 1 of f32[b, m] has the extent 0 = m, which is not positive",
        ],
    );

    let mut m = verified_module();
    function(&mut m, f()).results.clear();
    refused(&m, &["@f returns nothing"]);

    let mut m = verified_module();
    m.add(Function::new("g"));
    refused(&m, &["@g returns nothing"]);

    let mut m = verified_module();
    let mut copy = Function::clone(&m.funcs[f()]);
    copy.values[y()].name = "x".into();
    m.funcs[f()] = Arc::new(copy);
    refused(&m, &["`%x` is defined twice"]);
}

/// A callee that does not return its state is refused, and so is the caller, once each.
#[test]
fn state_lost_in_a_callee() {
    let text = include_str!("../../tests/cases/text/calls.eva");
    let mut m = parse(text).unwrap();
    let layer = m.func("layer").unwrap();
    function(&mut m, layer).results.truncate(1);
    let diags = verify(&m).unwrap_err().0;
    assert_eq!(diags[0].message, "the updated state `%cache` is not returned");
    assert_eq!(state_results(&m)[layer][0].1, None);
}

#[test]
fn no_more_than_twenty_mistakes_are_reported() {
    let mut m = module();
    for i in 0..50 {
        push(&mut m, &format!("a b{i}"), f32(&["b", "m"]), Def::Op(Exp {}.into(), vec![x()]));
    }
    assert_eq!(verify(&m).unwrap_err().0.len(), 20);
}

/// What text cannot say of alternatives, or says without a line.
#[test]
fn alternatives() {
    let with = |change: &dyn Fn(&mut Function)| {
        let mut m = module();
        let mut body = Function { name: "other".into(), ..Function::clone(&m.funcs[f()]) };
        change(&mut body);
        function(&mut m, f())
            .alternatives
            .push(Alternative { body: Arc::new(body), estimate: Estimate::default() });
        m
    };
    verify(&with(&|_| {})).unwrap();
    refused(&with(&|body| body.name = "a.b".into()), &["`a.b` cannot be the name of a body of @f"]);
    refused(
        &with(&|body| body.values[x()].name = "z".into()),
        &["the body `other` has other parameters than @f"],
    );
    refused(
        &with(&|body| body.values[x()].def = Def::Param(ParamKind::Weight)),
        &["the body `other` has other parameters than @f"],
    );
    refused(
        &with(&|body| {
            let sb = body.op("sb", Einsum { spec: "bm->mb".parse().unwrap() }, &[x()]).unwrap();
            body.results = vec![sb];
        }),
        &["the body `other` of @f returns f32[m, b], not f32[b, m]"],
    );
    refused(&with(&|body| body.values[y()].name = "x".into()), &["`%x` is defined twice"]);
    let own = with(&|_| {}).funcs[f()].alternatives[0].clone();
    refused(
        &with(&|body| body.alternatives.push(own.clone())),
        &["the body `other` of @f has alternatives of its own"],
    );

    let mut m = with(&|_| {});
    let twice = m.funcs[f()].alternatives[0].clone();
    function(&mut m, f()).alternatives.push(twice.clone());
    refused(&m, &["there are two bodies `other` of @f"]);
    function(&mut m, f()).alternatives.resize(limits::ALTERNATIVES + 1, twice);
    refused(&m, &["@f has more than 16 alternatives"]);

    let estimated = |mut m: Module, poly: Poly| {
        function(&mut m, f()).estimate.add(poly);
        m
    };
    verify(&estimated(with(&|_| {}), Poly::term(vec!["b".into()], 0.5))).unwrap();
    refused(&estimated(module(), Poly::from(0.5)), &["@f has an estimate, but no alternatives"]);
    refused(&estimated(with(&|_| {}), Poly::from(f64::NAN)), &["the estimate of `f` is not finite"]);
    refused(
        &estimated(with(&|_| {}), Poly::term(vec!["q".into()], 0.5)),
        &["the extent `q` is not declared"],
    );
    let long = (0..=limits::ESTIMATE).map(|n| Poly::term(vec!["b".into(); n], 0.5));
    let long = long.fold(Poly::default(), |sum, term| sum + term);
    refused(&estimated(with(&|_| {}), long), &["the estimate of `f` is too long"]);
}

#[test]
fn what_is_prepared_is_older() {
    let mut m = parse(include_str!("../../tests/cases/text/prepares.eva")).unwrap();
    verify(&m).unwrap();
    let [target, companion] = ["f", "f.prepare"].map(|name| m.func(name).unwrap());
    assert_eq!(m.preparation(target), Some(companion));
    for wrong in [companion, Func::new(7)] {
        function(&mut m, companion).prepares = Some(wrong);
        refused(&m, &["@f.prepare prepares a function that is not older"]);
    }
}
