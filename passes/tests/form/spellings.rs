//! One block of latent attention, spelled in many ways: all reach one form.

use crate::support::{choose, difference, last, parse, results};
use eva_ir::graph::{Def, Module};
use eva_ir::ops::Op;
use eva_ir::verify;
use eva_passes::attend;
use eva_passes::cost::{Cost, CostOptions, Metric};
use eva_passes::form::{Form, choose_and_report};
use eva_passes::rewrite::rules::Use;
use eva_passes::rewrite::{Side, Sides};
use proptest::prelude::*;
use std::fmt::Write;

/// How a block is written.
#[derive(Clone, Copy, Debug)]
struct Spelling {
    /// Keys and values: each from its weight | from one weight | the same, as products of matrices.
    expansion: usize,
    /// Whether keys and values have heads before tokens, and how: not | by the product | by a transposition.
    heads_first: usize,
    /// Whether queries come from a latent.
    q_latent: bool,
    /// Rotary parts: scores added | put together, keys repeated by a product with ones | by adding zeros.
    rope: usize,
    /// Scores and averages as products of matrices, with batch and heads in one axis.
    matrices: bool,
    /// Where the scale is: scores | queries | keys | half on both | a product with a tensor of one number.
    scale: usize,
    /// The output: heads before tokens | as they come.
    out_first: bool,
}

fn spelled(how: Spelling) -> Module {
    let Spelling { expansion, heads_first, q_latent, rope, matrices, scale, out_first } = how;
    let mut s = String::from(
        "dim b dim s dim t dim m = 23 dim r = 29 dim c = 11 dim h = 5 dim n = 7 dim p = 6 dim v = 9
        fn @mla(%x: f32[b, s, m], %positions: i32[b, s], %start: i32[b],
          state %ckv: f32[b, t, c], state %kpe: f32[b, t, p],
          weight %w_dq: f32[r, m], weight %g_q: f32[r], weight %w_q: f32[h*n+h*p, m], weight %w_uq: f32[h*n+h*p, r],
          weight %w_dkv: f32[c, m], weight %w_kr: f32[p, m], weight %w_ukv: f32[h*n+h*v, c],
          weight %w_uk: f32[h, n, c], weight %w_uv: f32[c, h, v], weight %w_o: f32[m, h*v],
        ) -> f32[b, s, m], f32[b, t, c], f32[b, t, p] {
        %freqs = rope_freqs {width = [p], theta = 10000.0, pairs = halves, factor = 1.0, beta_fast = 32.0, beta_slow = 1.0, original = 4096} : f32[2, p]
        %table = rope_table %positions, %freqs {factor = 1.0} : f32[b, s, 2, p]
        %c_new = einsum \"bsm,cm->bsc\" %x, %w_dkv : f32[b, s, c]
        %k_flat = einsum \"bsm,pm->bsp\" %x, %w_kr : f32[b, s, p]
        %k_new = rope %k_flat, %table {pairs = halves} : f32[b, s, p]
        %c_kv = cache_write %ckv, %c_new, %start : f32[b, t, c]
        %k_pe0 = cache_write %kpe, %k_new, %start : f32[b, t, p]
        ",
    );
    let mut put = |line: &str| writeln!(s, "{line}").unwrap();
    // Queries [b, s, h, n] and [b, s, h, p].
    if q_latent {
        put("%q_down = einsum \"bsm,rm->bsr\" %x, %w_dq : f32[b, s, r]
             %c_q = rms_norm %q_down, %g_q {eps = 1e-6} : f32[b, s, r]
             %q_all = einsum \"bsr,kr->bsk\" %c_q, %w_uq : f32[b, s, h*n+h*p]");
    } else {
        put("%q_all = einsum \"bsm,km->bsk\" %x, %w_q : f32[b, s, h*n+h*p]");
    }
    put("%q_heads = reshape %q_all {shape = [b, s, h, n+p]} : f32[b, s, h, n+p]
         %q0 = slice %q_heads {axis = 3, range = 0..n} : f32[b, s, h, n]
         %q_flat = slice %q_heads {axis = 3, range = n..n+p} : f32[b, s, h, p]
         %q_pe0 = rope %q_flat, %table {pairs = halves} : f32[b, s, h, p]");
    let (on_q, on_k, on_scores) = match scale {
        0 | 4 => (1.0, 1.0, 0.25),
        1 => (0.25, 1.0, 1.0),
        2 => (1.0, 0.25, 1.0),
        _ => (0.5, 0.5, 1.0),
    };
    for (name, by, ty) in [("q", on_q, "b, s, h, n"), ("q_pe", on_q, "b, s, h, p"), ("k_pe", on_k, "b, t, p")]
    {
        put(&format!("%{name} = scale %{name}0 {{by = {by:?}}} : f32[{ty}]"));
    }
    // Keys and values, [b, t, h, ·] or [b, h, t, ·].
    let (axes, order) = if heads_first > 0 { ("b, h, t", "bht") } else { ("b, t, h", "bth") };
    match expansion {
        0 => {
            let o = if heads_first == 1 { "bht" } else { "bth" };
            let a = if heads_first == 1 { "b, h, t" } else { "b, t, h" };
            put(&format!("%k1 = einsum \"btc,hnc->{o}n\" %c_kv, %w_uk : f32[{a}, n]"));
            put(&format!("%v1 = einsum \"chv,btc->{o}v\" %w_uv, %c_kv : f32[{a}, v]"));
        }
        1 => put("%kv = einsum \"btc,kc->btk\" %c_kv, %w_ukv : f32[b, t, h*n+h*v]
                  %kv_heads = reshape %kv {shape = [b, t, h, n+v]} : f32[b, t, h, n+v]
                  %k1 = slice %kv_heads {axis = 3, range = 0..n} : f32[b, t, h, n]
                  %v1 = slice %kv_heads {axis = 3, range = n..n+v} : f32[b, t, h, v]"),
        _ => put("%rows = reshape %c_kv {shape = [b*t, c]} : f32[b*t, c]
                  %w_t = einsum \"kc->ck\" %w_ukv : f32[c, h*n+h*v]
                  %kv = einsum \"xc,ck->xk\" %rows, %w_t : f32[b*t, h*n+h*v]
                  %kv_heads = reshape %kv {shape = [b, t, h, n+v]} : f32[b, t, h, n+v]
                  %k1 = slice %kv_heads {axis = 3, range = 0..n} : f32[b, t, h, n]
                  %v1 = slice %kv_heads {axis = 3, range = n..n+v} : f32[b, t, h, v]"),
    }
    if heads_first > 0 && !(expansion == 0 && heads_first == 1) {
        put("%k2 = einsum \"bthn->bhtn\" %k1 : f32[b, h, t, n]
             %val = einsum \"bthv->bhtv\" %v1 : f32[b, h, t, v]");
    } else {
        put(&format!("%k2 = scale %k1 {{by = 1.0}} : f32[{axes}, n]"));
        put(&format!("%val = scale %v1 {{by = 1.0}} : f32[{axes}, v]"));
    }
    put(&format!("%k = scale %k2 {{by = {on_k:?}}} : f32[{axes}, n]"));
    // Scores.
    let mut scores = |q: &str, k: &str, n: &str, by: &str, k_heads: bool| {
        let k_axes = if k_heads { order } else { "bt" };
        if !matrices || !k_heads {
            put(&format!("%{by} = einsum \"bshn,{k_axes}n->bhst\" %{q}, %{k} : f32[b, h, s, t]"));
            return;
        }
        let (q_t, k_t) = (format!("{by}_q"), format!("{by}_k"));
        put(&format!("%{q_t}1 = einsum \"bshn->bhsn\" %{q} : f32[b, h, s, {n}]"));
        put(&format!("%{k_t}1 = einsum \"{order}n->bhtn\" %{k} : f32[b, h, t, {n}]"));
        put(&format!("%{q_t} = reshape %{q_t}1 {{shape = [b*h, s, {n}]}} : f32[b*h, s, {n}]"));
        put(&format!("%{k_t} = reshape %{k_t}1 {{shape = [b*h, t, {n}]}} : f32[b*h, t, {n}]"));
        put(&format!("%{by}_m = einsum \"xsn,xtn->xst\" %{q_t}, %{k_t} : f32[b*h, s, t]"));
        put(&format!("%{by} = reshape %{by}_m {{shape = [b, h, s, t]}} : f32[b, h, s, t]"));
    };
    if rope == 0 {
        scores("q", "k", "n", "s_c", true);
        scores("q_pe", "k_pe", "p", "s_r", false);
        put("%s1 = add %s_c, %s_r : f32[b, h, s, t]");
    } else {
        put("%q_cat = concat %q, %q_pe {axis = 3} : f32[b, s, h, n+p]");
        match rope {
            1 => put(&format!(
                "%ones = full {{value = 1.0, shape = [h], dtype = f32}} : f32[h]
                 %k_rep = einsum \"btp,h->{order}p\" %k_pe, %ones : f32[{axes}, p]"
            )),
            _ => {
                let (one, full) = if heads_first > 0 { ("b, 1, t", "h, 1, p") } else { ("b, t, 1", "h, p") };
                put(&format!("%k_one = reshape %k_pe {{shape = [{one}, p]}} : f32[{one}, p]"));
                put(&format!("%zeros = full {{value = 0.0, shape = [{full}], dtype = f32}} : f32[{full}]"));
                put(&format!("%k_rep = add %k_one, %zeros : f32[{axes}, p]"));
            }
        }
        put(&format!("%k_cat = concat %k, %k_rep {{axis = 3}} : f32[{axes}, n+p]"));
        let mut scores = |q: &str, k: &str| {
            if !matrices {
                put(&format!("%s1 = einsum \"bshn,{order}n->bhst\" %{q}, %{k} : f32[b, h, s, t]"));
                return;
            }
            put(&format!("%qt1 = einsum \"bshn->bhsn\" %{q} : f32[b, h, s, n+p]"));
            put(&format!("%kt1 = einsum \"{order}n->bhtn\" %{k} : f32[b, h, t, n+p]"));
            put("%qt = reshape %qt1 {shape = [b*h, s, n+p]} : f32[b*h, s, n+p]
                 %kt = reshape %kt1 {shape = [b*h, t, n+p]} : f32[b*h, t, n+p]
                 %sm = einsum \"xsn,xtn->xst\" %qt, %kt : f32[b*h, s, t]
                 %s1 = reshape %sm {shape = [b, h, s, t]} : f32[b, h, s, t]");
        };
        scores("q_cat", "k_cat");
    }
    if scale == 4 {
        put("%number = full {value = 0.25, shape = [], dtype = f32} : f32[]
             %scores = mul %s1, %number : f32[b, h, s, t]");
    } else {
        put(&format!("%scores = scale %s1 {{by = {on_scores:?}}} : f32[b, h, s, t]"));
    }
    put("%probs = causal_softmax %scores, %start : f32[b, h, s, t]");
    if out_first || matrices {
        put(&format!("%o1 = einsum \"bhst,{order}v->bhsv\" %probs, %val : f32[b, h, s, v]"));
        put("%o = einsum \"bhsv->bshv\" %o1 : f32[b, s, h, v]");
    } else {
        put(&format!("%o = einsum \"bhst,{order}v->bshv\" %probs, %val : f32[b, s, h, v]"));
    }
    put("%flat = reshape %o {shape = [b, s, h*v]} : f32[b, s, h*v]
         %out = einsum \"bsk,mk->bsm\" %flat, %w_o : f32[b, s, m]
         return %out, %c_kv, %k_pe0
        }");
    parse(&s)
}

/// The arithmetic of a block in a form, when decoding.
fn flops(module: &Module, form: Form) -> (f64, Sides) {
    let costs = CostOptions { metric: Metric::Flops, ..CostOptions::default() };
    let (chosen, done) = choose_and_report(module, form, &costs, Use::default()).unwrap();
    let (_, f) = last(&chosen);
    let cost = Cost::new(&chosen, f, &costs);
    let of = |data: &eva_ir::graph::ValueData| match &data.def {
        Def::Op(op @ Op::Einsum(_), args) => {
            let args: Vec<_> = args.iter().map(|&arg| f.tensor(arg).unwrap()).collect();
            cost.of(op, &args, &data.ty)
        }
        _ => 0.0,
    };
    (f.values.iter().map(|(_, data)| of(data)).sum(), done.functions[0].sides)
}

/// Checks that a spelling reaches the forms, with the arithmetic of the plainest one, and computes the same.
fn check(how: Spelling) {
    let module = spelled(how);
    let plain = spelled(Spelling { q_latent: how.q_latent, ..PLAIN });
    let (sizes, start) = ([("b", 2), ("s", 3), ("t", 8)], [5, 1]);
    let want = results(&module, &sizes, &start, 7);
    for (form, side) in [(Form::Absorbed, Side::Absorbed), (Form::Expanded, Side::Expanded)] {
        let chosen = choose(&module, form);
        verify::verify(&chosen).unwrap_or_else(|diags| panic!("{how:?} {diags}\n{chosen}"));
        let recognized = attend::recognize(&chosen).unwrap();
        verify::verify(&recognized).unwrap();
        let (_, f) = last(&recognized);
        let attends =
            f.values.iter().filter(|(_, data)| matches!(data.def, Def::Op(Op::Attend(_), _))).count();
        assert_eq!(attends, 1, "{how:?} {form:?}\n{recognized}");
        let d = difference(&results(&recognized, &sizes, &start, 7), &want);
        assert!(d < 1e-12, "{how:?} {form:?}: {d:e}\n{recognized}");
        let ((have, sides), (least, _)) = (flops(&module, form), flops(&plain, form));
        if side == Side::Absorbed {
            assert_eq!(sides, Sides { key: Some(side), value: Some(side) }, "{how:?}\n{chosen}");
        }
        assert!(have <= least * 1.001, "{how:?} {form:?}: {have} operations, not {least}\n{chosen}");
    }
}

const PLAIN: Spelling = Spelling {
    expansion: 0,
    heads_first: 0,
    q_latent: true,
    rope: 0,
    matrices: false,
    scale: 0,
    out_first: false,
};

fn some(i: usize) -> Spelling {
    Spelling {
        expansion: i % 3,
        heads_first: (i / 2) % 3,
        q_latent: i % 4 < 2,
        rope: (i / 3) % 3,
        matrices: i % 5 > 2,
        scale: i % 5,
        out_first: i % 2 == 1,
    }
}

/// Some blocks, spelled differently.
pub fn corpus() -> Vec<Module> {
    (0..7).map(|i| spelled(some(3 * i + 1))).collect()
}

#[test]
fn twenty_spellings() {
    (0..20).for_each(|i| check(some(i)));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn any_spelling(
        expansion in 0usize..3, heads_first in 0usize..3, q_latent: bool, rope in 0usize..3, matrices: bool,
        scale in 0usize..5, out_first: bool,
    ) {
        check(Spelling { expansion, heads_first, q_latent, rope, matrices, scale, out_first });
    }
}
