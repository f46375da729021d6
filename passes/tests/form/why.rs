//! Blocks in which keys cannot be absorbed keep the expanded form and say why.

use crate::support::{last, mla, parse};
use eva_ir::graph::Module;
use eva_ir::text;
use eva_passes::cost::{Cost, CostOptions};
use eva_passes::rewrite::rules::{Use, all, usable};
use eva_passes::rewrite::why::{Reason, why_not};
use eva_passes::rewrite::{Choose, Side, Sides, saturate_by};

fn edited(edits: &[(&str, &str)]) -> Module {
    let mut source = text::print(&mla());
    // Columns of names are aligned by printing; here they need not be.
    for (from, to) in edits {
        let line = source
            .lines()
            .find(|line| line.trim_start().starts_with(from))
            .unwrap_or_else(|| panic!("{from}"));
        source = source.replace(&line.to_string(), to);
    }
    parse(&source)
}

/// How keys and values are computed when decoding, and why the keys are not absorbed.
fn reasons(module: &Module) -> (Sides, Vec<Reason>) {
    let (_, f) = last(module);
    let s = saturate_by(f, &usable(Use::default()).unwrap()).unwrap();
    let cost = Cost::new(module, f, &CostOptions::default());
    let sides = s.sides(&s.cheapest(f, &cost, Choose::Absorbed).unwrap());
    let rules = all().unwrap();
    let rule = rules.iter().find(|rule| rule.name == "mla_absorb_key").unwrap();
    (sides, why_not(f, &s, rule))
}

fn is_kept(module: &Module, guard: &str, blocking: &str) {
    let (sides, reasons) = reasons(module);
    assert_eq!(sides, Sides { key: None, value: Some(Side::Absorbed) }, "{reasons:?}");
    let fits =
        |r: &Reason| r.guard.contains(guard) && r.blocking.as_ref().is_some_and(|(name, _)| name == blocking);
    assert!(reasons.iter().any(fits), "{guard}, {blocking}: {reasons:#?}\n{module}");
    assert!(reasons.iter().all(|r| r.loc.is_some()), "{reasons:#?}");
}

#[test]
fn what_can_be_absorbed_has_no_reason() {
    let (sides, reasons) = reasons(&mla());
    assert_eq!(sides, Sides { key: Some(Side::Absorbed), value: Some(Side::Absorbed) });
    assert_eq!(reasons, []);
}

#[test]
fn a_norm_of_the_keys() {
    let module = edited(&[
        ("weight %w_o:", "weight %w_o: f32[m, h, v], weight %g_k: f32[n],"),
        (
            "%s_c ",
            "%k2 = rms_norm %k, %g_k {eps = 1e-6} : f32[b, t, h, n] %s_c = einsum \"bshn,bthn->bhst\" %q, %k2 : f32[b, h, s, t]",
        ),
    ]);
    is_kept(&module, "a norm lies between", "k2");
}

#[test]
fn a_bias_on_the_keys() {
    let module = edited(&[
        ("weight %w_o:", "weight %w_o: f32[m, h, v], weight %bias: f32[h, n],"),
        (
            "%s_c ",
            "%k2 = add %k, %bias : f32[b, t, h, n] %s_c = einsum \"bshn,bthn->bhst\" %q, %k2 : f32[b, h, s, t]",
        ),
    ]);
    is_kept(&module, "a bias is added", "k2");
}

#[test]
fn rotated_keys() {
    let module = edited(&[
        ("%x:", "%x: f32[b, s, m], %turn: f32[b, t, 2, n],"),
        (
            "%s_c ",
            "%k2 = rope %k, %turn {pairs = halves} : f32[b, t, h, n] %s_c = einsum \"bshn,bthn->bhst\" %q, %k2 : f32[b, h, s, t]",
        ),
    ]);
    let module = text::print(&module).replace("dim n = 7", "dim n = 8");
    is_kept(&parse(&module), "RoPE turns the keys", "k2");
}

#[test]
fn keys_that_are_used_elsewhere() {
    let module = edited(&[
        (") -> f32[b, s, m]", ") -> f32[b, s, m], f32[b, t, c], f32[b, t, p], f32[b, t, h] {"),
        (
            "return ",
            "%sizes = mul %k, %k : f32[b, t, h, n] %size = einsum \"bthn->bth\" %sizes : f32[b, t, h] return %out, %c_kv, %k_pe, %size",
        ),
    ]);
    is_kept(&module, "only attention needs the inner product", "k");
    let (_, reasons) = reasons(&module);
    assert!(reasons.iter().any(|r| r.guard.contains("used elsewhere")), "{reasons:#?}");
}
