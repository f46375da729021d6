//! States that are replaced as a whole: what is written where it was read, and what is stored besides.

use eva_passes::plan::{Base, FuncPlan, Step};
use eva_passes::target::Target;
use eva_passes::{Options, compile, optimize};

fn plan(text: &str, name: &str) -> FuncPlan {
    let module = eva_ir::text::parse(text).unwrap_or_else(|e| panic!("{e}"));
    let plan = compile(&module, &Target::cpu(), &Options::default()).unwrap_or_else(|e| panic!("{e}"));
    let func = module.func(name).unwrap();
    plan.funcs[func].clone()
}

/// The names of the launches and of the temporaries.
fn launches(f: &FuncPlan) -> (Vec<&str>, Vec<&str>) {
    let mut names = (Vec::new(), Vec::new());
    for step in &f.steps {
        if let Step::Launch { name, .. } = step {
            names.0.push(name.as_str());
        }
    }
    for base in &f.bases {
        if let Base::Temp(temp) = base {
            names.1.push(temp.name.as_str());
        }
    }
    names
}

#[test]
fn an_optimizer_stores_its_states_alone() {
    let f = plan(
        "dim r dim c = 512
fn @f(%g: f32[r, c], %lr: f32[], state %p: f32[r, c], state %m: f32[r, c], state %v: f32[r, c]) -> f32[r, c], f32[r, c], f32[r, c] {
  %m_old = scale %m {by = 0.9} : f32[r, c]
  %m_new = scale %g {by = 0.1} : f32[r, c]
  %m_sum = add %m_old, %m_new : f32[r, c]
  %m1 = assign %m, %m_sum : f32[r, c]
  %gg = mul %g, %g : f32[r, c]
  %v_old = scale %v {by = 0.99} : f32[r, c]
  %v_new = scale %gg {by = 0.01} : f32[r, c]
  %v_sum = add %v_old, %v_new : f32[r, c]
  %v1 = assign %v, %v_sum : f32[r, c]
  %root = sqrt %v1 : f32[r, c]
  %low = offset %root {by = 1e-8} : f32[r, c]
  %ratio = div %m1, %low : f32[r, c]
  %step = mul %ratio, %lr : f32[r, c]
  %less = sub %p, %step : f32[r, c]
  %p1 = assign %p, %less : f32[r, c]
  return %p1, %m1, %v1
}",
        "f",
    );
    assert_eq!(launches(&f), (vec!["f.m_sum", "f.v_sum", "f.less"], vec![]));
}

#[test]
fn a_product_is_added_where_the_sum_is() {
    let f = plan(
        "dim k dim r = 40 dim c = 72
fn @f(%x: f32[k, r], %y: f32[k, c], state %sum: f32[r, c]) -> f32[r, c] {
  %xy = einsum \"kr,kc->rc\" %x, %y : f32[r, c]
  %more = add %sum, %xy : f32[r, c]
  %next = assign %sum, %more : f32[r, c]
  return %next
}",
        "f",
    );
    assert_eq!(launches(&f), (vec!["f.more"], vec![]));
}

/// What is read of the old value elsewhere is stored before, and read from there.
#[test]
fn the_old_value_is_read_before() {
    let f = plan(
        "dim c = 72
fn @f(%x: f32[40, c], state %s: f32[40, c]) -> f32[40, c], f32[40, c] {
  %e = exp %s : f32[40, c]
  %first = slice %s {axis = 0, range = 0..1} : f32[1, c]
  %sum = add %x, %first : f32[40, c]
  %next = assign %s, %sum : f32[40, c]
  %after = mul %e, %next : f32[40, c]
  return %next, %after
}",
        "f",
    );
    assert_eq!(launches(&f), (vec!["f.e", "f.sum", "f.next", "f.after"], vec!["e", "sum"]));
}

/// A rule may not move the read of a state behind what replaces it: `x · w1 + x · w2`, say, to `x · (w1 + w2)`.
#[test]
fn rules_leave_what_reads_a_state() {
    let text = "dim k dim r = 40 dim c = 72
fn @f(%x: f32[k, r], weight %a: f32[c, r], weight %b: f32[c, r], state %s: f32[c, r]) -> f32[c, r], f32[k, c] {
  %one = einsum \"kr,cr->kc\" %x, %s : f32[k, c]
  %next = assign %s, %a : f32[c, r]
  %two = einsum \"kr,cr->kc\" %x, %b : f32[k, c]
  %sum = add %one, %two : f32[k, c]
  return %next, %sum
}";
    let module = eva_ir::text::parse(text).unwrap_or_else(|e| panic!("{e}"));
    let done = optimize(&module, &Options::default()).unwrap_or_else(|e| panic!("{e}"));
    let text = done.to_string();
    let place = |what: &str| text.find(what).unwrap_or_else(|| panic!("{what} in\n{text}"));
    assert!(place("%one ") < place("%next "), "{text}");
}
