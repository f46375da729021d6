//! Expanded caches become latent ones, and only where bytes shrink.

use crate::support::{check, lay_out, parse, states};
use eva_ir::diag::Loc;
use eva_ir::text;

/// Latent attention whose keys and values of all heads are cached. `k` and `v` are made by `expansion` of the latent
/// `%latent [b, s, c]` and the rotated key `%k_pe [b, s, p]`.
fn naive(expansion: &str) -> String {
    format!(
        "dim b dim s dim t dim m = 11 dim c = 8 dim h = 3 dim n = 5 dim p = 4 dim v = 6
fn @f(
  %x: f32[b, s, m], %positions: i32[b, s], %start: i32[b],
  weight %w_q: f32[h, n+p, m], weight %w_a: f32[c+p, m], weight %g: f32[c],
  weight %w_b: f32[h*n+h*v, c], weight %g_k: f32[n], weight %bias: f32[h, n], weight %w_o: f32[m, h, v],
  state %attn.k: f32[b, t, h, n+p], state %attn.v: f32[b, t, h, v],
) -> f32[b, s, m], f32[b, t, h, n+p], f32[b, t, h, v] {{
  %freqs = rope_freqs {{width = [p], theta = 100.0, pairs = interleaved, factor = 1.0, beta_fast = 32.0, beta_slow = 1.0, original = 64}} : f32[2, p]
  %table = rope_table %positions, %freqs {{factor = 1.0}} : f32[b, s, 2, p]
  %q = einsum \"bsm,hqm->bshq\" %x, %w_q : f32[b, s, h, n+p]
  %a = einsum \"bsm,cm->bsc\" %x, %w_a : f32[b, s, c+p]
  %y = slice %a {{axis = 2, range = 0..c}} : f32[b, s, c]
  %z = slice %a {{axis = 2, range = c..c+p}} : f32[b, s, p]
  %latent = rms_norm %y, %g {{eps = 1e-6}} : f32[b, s, c]
  %k_pe = rope %z, %table {{pairs = interleaved}} : f32[b, s, p]
{expansion}
  %k_all = cache_write %attn.k, %k, %start : f32[b, t, h, n+p]
  %v_all = cache_write %attn.v, %value, %start : f32[b, t, h, v]
  %scores = einsum \"bshq,bthq->bhst\" %q, %k_all : f32[b, h, s, t]
  %scaled = scale %scores {{by = 0.4}} : f32[b, h, s, t]
  %probs = causal_softmax %scaled, %start : f32[b, h, s, t]
  %heads = einsum \"bhst,bthv->bshv\" %probs, %v_all : f32[b, s, h, v]
  %out = einsum \"bshv,mhv->bsm\" %heads, %w_o : f32[b, s, m]
  return %out, %k_all, %v_all
}}"
    )
}

/// One product for keys and values, taken apart.
const FUSED: &str = "
  %w = reshape %w_b {shape = [h, n+v, c]} : f32[h, n+v, c]
  %kv = einsum \"bsc,hkc->bshk\" %latent, %w : f32[b, s, h, n+v]
  %k_nope = slice %kv {axis = 3, range = 0..n} : f32[b, s, h, n]
  %value = slice %kv {axis = 3, range = n..n+v} : f32[b, s, h, v]";
/// The rotated key for each head, and the keys.
const KEYS: &str = "
  %ones = full {value = 1.0, shape = [h], dtype = f32} : f32[h]
  %k_rot = einsum \"bsp,h->bshp\" %k_pe, %ones : f32[b, s, h, p]
  %k = concat %k_nope, %k_rot {axis = 3} : f32[b, s, h, n+p]";

const LATENT: [&str; 2] = ["attn.latent f32[b, t, c]", "attn.k_pe f32[b, t, p]"];

fn latent(expansion: &str) {
    let (new, report) = check(&parse(&naive(expansion)), "f");
    assert_eq!(states(&new, "f"), LATENT, "{new}");
    assert!(report.iter().all(|r| r.rewritten()));
    let [one] = report.as_slice() else { panic!("{report:?}") };
    assert_eq!(one.states, ["attn.k", "attn.v"]);
    assert_eq!(one.bytes, Some((4 * 3 * (5 + 4 + 6), 4 * (8 + 4))));
}

#[test]
fn keys_and_values_share_a_latent() {
    latent(&format!("{FUSED}{KEYS}"));
}

#[test]
fn whatever_the_spelling() {
    let split = "
  %w = reshape %w_b {shape = [h, n+v, c]} : f32[h, n+v, c]
  %w_uk = slice %w {axis = 1, range = 0..n} : f32[h, n, c]
  %w_uv = slice %w {axis = 1, range = n..n+v} : f32[h, v, c]
  %k_nope = einsum \"bsc,hnc->bshn\" %latent, %w_uk : f32[b, s, h, n]
  %value = einsum \"hvc,bsc->bshv\" %w_uv, %latent : f32[b, s, h, v]";
    latent(&format!("{split}{KEYS}"));
    // A matrix product of all tokens, then heads.
    let rows = "
  %rows = reshape %latent {shape = [b*s, c]} : f32[b*s, c]
  %flat = einsum \"gc,kc->gk\" %rows, %w_b : f32[b*s, h*n+h*v]
  %kv = reshape %flat {shape = [b, s, h, n+v]} : f32[b, s, h, n+v]
  %k_nope = slice %kv {axis = 3, range = 0..n} : f32[b, s, h, n]
  %value = slice %kv {axis = 3, range = n..n+v} : f32[b, s, h, v]";
    latent(&format!("{rows}{KEYS}"));
    // Heads first, as some write attention; and the rotated key stretched by an addition.
    let heads_first = "
  %w = reshape %w_b {shape = [h, n+v, c]} : f32[h, n+v, c]
  %kv = einsum \"bsc,hkc->bhsk\" %latent, %w : f32[b, h, s, n+v]
  %k_first = slice %kv {axis = 3, range = 0..n} : f32[b, h, s, n]
  %v_first = slice %kv {axis = 3, range = n..n+v} : f32[b, h, s, v]
  %zeros = full {value = 0.0, shape = [h, 1, p], dtype = f32} : f32[h, 1, p]
  %k_one = reshape %k_pe {shape = [b, 1, s, p]} : f32[b, 1, s, p]
  %k_rot = add %k_one, %zeros : f32[b, h, s, p]
  %k_heads = concat %k_first, %k_rot {axis = 3} : f32[b, h, s, n+p]
  %k = einsum \"bhsq->bshq\" %k_heads : f32[b, s, h, n+p]
  %value = einsum \"bhsv->bshv\" %v_first : f32[b, s, h, v]";
    latent(heads_first);
}

#[test]
fn a_bias_a_norm_and_a_cast_are_computed_again() {
    let more = "
  %biased = add %k_nope_0, %bias : f32[b, s, h, n]
  %normed = rms_norm %biased, %g_k {eps = 1e-6} : f32[b, s, h, n]
  %narrow = cast %normed {to = bf16} : bf16[b, s, h, n]
  %k_nope = cast %narrow {to = f32} : f32[b, s, h, n]";
    latent(&format!("{}{more}{KEYS}", FUSED.replace("%k_nope", "%k_nope_0")));
    // A norm spelled out: rows that no token has been written to must not become something infinite.
    let spelled = "
  %square = mul %k_nope_0, %k_nope_0 : f32[b, s, h, n]
  %mean = mean %square {axis = 3} : f32[b, s, h, 1]
  %more = offset %mean {by = 1e-6} : f32[b, s, h, 1]
  %by = rsqrt %more : f32[b, s, h, 1]
  %k_nope = mul %k_nope_0, %by : f32[b, s, h, n]";
    latent(&format!("{}{spelled}{KEYS}", FUSED.replace("%k_nope", "%k_nope_0")));
}

#[test]
fn what_is_infinite_for_a_row_without_a_token_is_not_computed_again() {
    // 1/x of rows that were never written would make the probabilities of zero that they meet into something else.
    let divided = FUSED.replace("%k_nope", "%k_nope_0");
    let inverse = "\n  %k_nope = recip %k_nope_0 : f32[b, s, h, n]";
    let (new, report) = check(&parse(&naive(&format!("{divided}{inverse}{KEYS}"))), "f");
    assert!(states(&new, "f").contains(&"attn.k_nope f32[b, t, h, n]".to_string()), "{new}");
    assert!(report.iter().all(|r| r.rewritten()), "the rotated key and the values are smaller");
    // Where it is surely more than zero, it is.
    let sure = "
  %k_exp = exp %k_nope_0 : f32[b, s, h, n]
  %k_more = offset %k_exp {by = 1.0} : f32[b, s, h, n]
  %k_nope = recip %k_more : f32[b, s, h, n]";
    latent(&format!("{divided}{sure}{KEYS}"));
}

/// Checks that both states stay, for this reason.
fn stays(source: &str, why: &str, blame: Option<&str>) {
    let module = parse(source);
    let (new, report) = check(&module, "f");
    assert_eq!(text::print(&new), text::print(&module));
    let k = report.iter().find(|r| r.states == ["attn.k"]).expect("there is a report of the keys");
    assert_eq!(k.why.as_deref(), Some(why));
    let (name, loc) = k.blame.clone().unzip();
    assert_eq!(name.as_deref(), blame);
    if let Some(blame) = blame {
        let Some(Some(Loc::Text { start, .. })) = loc else { panic!("the line of %{blame} is known") };
        assert!(source[start..].starts_with(&format!("%{blame} =")), "{}", &source[start..start + 20]);
    }
}

#[test]
fn rows_that_depend_on_the_position_stay() {
    let rotated = "
  %w = reshape %w_b {shape = [h, n+v, c]} : f32[h, n+v, c]
  %k_freqs = rope_freqs {width = [n+p], theta = 100.0, pairs = halves, factor = 1.0, beta_fast = 32.0, beta_slow = 1.0, original = 64} : f32[2, n+p]
  %k_table = rope_table %positions, %k_freqs {factor = 1.0} : f32[b, s, 2, n+p]
  %k_heads = einsum \"bsm,hqm->bshq\" %x, %w_q : f32[b, s, h, n+p]
  %k_turned = rope %k_heads, %k_table {pairs = halves} : f32[b, s, h, n+p]
  %k = scale %k_turned {by = 3.0} : f32[b, s, h, n+p]
  %all_v = einsum \"bsc,hkc->bshk\" %latent, %w : f32[b, s, h, n+v]
  %value = slice %all_v {axis = 3, range = n..n+v} : f32[b, s, h, v]";
    // The values alone become the latent.
    let (new, report) = check(&parse(&naive(rotated).replace("dim n = 5", "dim n = 6")), "f");
    assert_eq!(states(&new, "f"), ["attn.k f32[b, t, h, p+n]", "attn.latent f32[b, t, c]"]);
    let k = report.iter().find(|r| r.states == ["attn.k"]).unwrap();
    let why = "`%k_turned` cannot be computed again, `rope` turns it by its token's position";
    assert_eq!(k.why, Some(format!("nothing smaller determines it: {why}")));
    assert_eq!(k.blame.as_ref().unwrap().0, "k_turned");
}

#[test]
fn nothing_is_changed_where_bytes_do_not_shrink() {
    // As many numbers in the latent and the key as in the keys and values.
    let even = naive(&format!("{FUSED}{KEYS}")).replace("dim c = 8 dim h = 3", "dim c = 11 dim h = 1");
    let why = "`%k_pe` cannot be computed again, `rope` turns it by its token's position";
    stays(&even, &format!("nothing smaller determines it: {why}"), Some("k_pe"));
}

#[test]
fn what_is_no_weight_is_not_the_same_in_each_call() {
    let input = naive(&format!("{FUSED}{KEYS}")).replace("weight %w_b", "%w_b");
    let (new, report) = check(&parse(&input), "f");
    // The rotated key alone is kept once for all heads.
    let have = ["attn.k_pe f32[b, t, p]", "attn.k_nope f32[b, t, h, n]", "attn.v f32[b, t, h, v]"];
    assert_eq!(states(&new, "f"), have);
    let v = report.iter().find(|r| r.states == ["attn.v"]).unwrap();
    let why = "`%kv` cannot be computed again, it depends on `%w`, which is not a weight";
    assert_eq!(v.why, Some(format!("nothing smaller determines it: {why}")));
}

const LAYERS: &str = "dim b dim s dim t dim m = 10 dim c = 4 dim h = 3 dim n = 5
fn @layer(
  %x: f32[b, s, m], %start: i32[b], weight %a: f32[c, m], weight %up: f32[h, n, c], weight %o: f32[m, h, n],
  state %attn.keys: f32[b, t, h, n],
) -> f32[b, s, m], f32[b, t, h, n] {
  %latent = einsum \"bsm,cm->bsc\" %x, %a : f32[b, s, c]
  %k = einsum \"bsc,hnc->bshn\" %latent, %up : f32[b, s, h, n]
  %all = cache_write %attn.keys, %k, %start : f32[b, t, h, n]
  %q = einsum \"bsm,mhn->bshn\" %x, %o : f32[b, s, h, n]
  %scores = einsum \"bshn,bthn->bhst\" %q, %all : f32[b, h, s, t]
  %probs = causal_softmax %scores, %start : f32[b, h, s, t]
  %heads = einsum \"bhst,bthn->bshn\" %probs, %all : f32[b, s, h, n]
  %out = einsum \"bshn,mhn->bsm\" %heads, %o : f32[b, s, m]
  %y = add %x, %out : f32[b, s, m]
  return %y, %all
}
";

fn calls(name: &str, more: &str, results: &str, types: &str) -> String {
    format!(
        "
fn @{name}(
  %x: f32[b, s, m], %start: i32[b], weight %0.a: f32[c, m], weight %0.up: f32[h, n, c], weight %0.o: f32[m, h, n],
  weight %1.a: f32[c, m], weight %1.up: f32[h, n, c], weight %1.o: f32[m, h, n],
  state %0.attn.keys: f32[b, t, h, n], state %1.attn.keys: f32[b, t, h, n],
) -> f32[b, s, m], f32[b, t, h, n], f32[b, t, h, n]{types} {{
  %one = call @layer %x, %start, %0.a, %0.up, %0.o, %0.attn.keys : (f32[b, s, m], f32[b, t, h, n])
  %mid = get %one {{index = 0}} : f32[b, s, m]
  %k0 = get %one {{index = 1}} : f32[b, t, h, n]
  %two = call @layer %mid, %start, %1.a, %1.up, %1.o, %1.attn.keys : (f32[b, s, m], f32[b, t, h, n])
  %y = get %two {{index = 0}} : f32[b, s, m]
  %k1 = get %two {{index = 1}} : f32[b, t, h, n]
{more}
  return %y, %k0, %k1{results}
}}
"
    )
}

#[test]
fn callers_have_the_new_states_too() {
    let source = format!("{LAYERS}{}{}", calls("main", "", "", ""), calls("forward", "", "", ""));
    let (new, report) = check(&parse(&source), "main");
    for func in ["main", "forward"] {
        assert_eq!(states(&new, func), ["0.attn.latent f32[b, t, c]", "1.attn.latent f32[b, t, c]"]);
    }
    assert_eq!(states(&new, "layer"), ["attn.latent f32[b, t, c]"]);
    assert_eq!(report.len(), 5, "one of the layer, and one for each layer of each caller");
}

#[test]
fn a_caller_that_reads_a_state_keeps_it() {
    let reading =
        calls("main", "  %sum = sum %k1 {axis = 3} : f32[b, t, h, 1]", ", %sum", ", f32[b, t, h, 1]");
    let module = parse(&format!("{LAYERS}{reading}"));
    let (new, report) = check(&module, "main");
    assert_eq!(text::print(&new), text::print(&module));
    let layer = report.iter().find(|r| r.function == "layer").unwrap();
    assert_eq!(layer.why.as_deref(), Some("a caller reads it"));
}

#[test]
fn functions_that_share_a_state_agree() {
    // Another function keeps something else under the same name.
    let other = "
fn @other(
  %x: f32[b, s, m], %start: i32[b], weight %w: f32[h, n, m], state %0.attn.keys: f32[b, t, h, n],
) -> f32[b, t, h, n] {
  %k = einsum \"bsm,hnm->bshn\" %x, %w : f32[b, s, h, n]
  %k_1 = rope_like %k : f32[b, s, h, n]
  %all = cache_write %0.attn.keys, %k_1, %start : f32[b, t, h, n]
  return %all
}"
    .replace("%k_1 = rope_like %k", "%k_1 = exp %k");
    let (new, report) = lay_out(&parse(&format!("{LAYERS}{}{other}", calls("main", "", "", ""))));
    assert_eq!(states(&new, "main"), ["0.attn.keys f32[b, t, h, n]", "1.attn.keys f32[b, t, h, n]"]);
    let layer = report.iter().find(|r| r.function == "layer").unwrap();
    assert_eq!(layer.why.as_deref(), Some("another function keeps it otherwise"));
    // Written out in place of a call, it is the same.
    let inline = "
fn @inline(
  %x: f32[b, s, m], %start: i32[b], weight %a: f32[c, m], weight %up: f32[h, n, c], state %attn.keys: f32[b, t, h, n],
) -> f32[b, t, h, n] {
  %latent = einsum \"bsm,cm->bsc\" %x, %a : f32[b, s, c]
  %k = einsum \"bsc,hnc->bshn\" %latent, %up : f32[b, s, h, n]
  %all = cache_write %attn.keys, %k, %start : f32[b, t, h, n]
  return %all
}";
    let (new, _) = lay_out(&parse(&format!("{LAYERS}{inline}")));
    assert_eq!(states(&new, "layer"), states(&new, "inline"));
    assert_eq!(states(&new, "inline"), ["attn.latent f32[b, t, c]"]);
}
