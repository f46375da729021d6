//! Products of `tf32`: the tiles of all variants, with operands that are rounded and turned before.

use crate::modules::case;

#[test]
fn products_of_tf32_mean_the_same_as_ptx() {
    let module = "
dim m
dim k = 44
dim n = 328
dim t = 148

fn @rows(%x: f32[m, k], weight %w: f32[n, k], %z: f32[m, n]) -> f32[m, n] {
  %a = cast %x {to = tf32} : tf32[m, k]
  %b = cast %w {to = tf32} : tf32[n, k]
  %y = einsum \"mk,nk->mn\" %a, %b : f32[m, n]
  %s = silu %y : f32[m, n]
  %p = mul %s, %z : f32[m, n]
  return %p
}

fn @turned(%x: f32[t, k], %dy: f32[t, n]) -> f32[n, k] {
  %xt = einsum \"tk->kt\" %x : f32[k, t]
  %a = cast %xt {to = tf32} : tf32[k, t]
  %yt = einsum \"tn->nt\" %dy : f32[n, t]
  %b = cast %yt {to = tf32} : tf32[n, t]
  %dw = einsum \"nt,kt->nk\" %b, %a : f32[n, k]
  return %dw
}

// sizes: m=3
// sizes: m=50
// sizes: m=139
// sizes: m=290
// sizes: m=530
";
    case("tf32", module);
}

#[test]
fn rows_of_experts_of_tf32_mean_the_same_as_ptx() {
    let module = "
dim m
dim g = 332
dim k = 36
dim n = 264
dim e = 3

fn @rows(%x: f32[m, k], weight %w: f32[e, n, k], %offsets: i32[e + 1]) -> f32[m, n] {
  %a = cast %x {to = tf32} : tf32[m, k]
  %b = cast %w {to = tf32} : tf32[e, n, k]
  %y = grouped \"mk,enk->mn\" %a, %b, %offsets : f32[m, n]
  return %y
}

fn @sums(%x: f32[g, k], %y: f32[g, n], %ends: i32[e + 1]) -> f32[e, k, n] {
  %xt = einsum \"gk->kg\" %x : f32[k, g]
  %a = cast %xt {to = tf32} : tf32[k, g]
  %yt = einsum \"gn->ng\" %y : f32[n, g]
  %b = cast %yt {to = tf32} : tf32[n, g]
  %w = grouped_outer \"kg,ng->ekn\" %a, %b, %ends : f32[e, k, n]
  return %w
}

// sizes: m=20
// sizes: m=150
// sizes: m=790
// ints: offsets = 0 3 3 19
// ints: ends = 5 64 131 330
";
    case("rows of experts of tf32", module);
    let many = module.replace(
        "// sizes: m=20
// sizes: m=150
",
        "",
    );
    case("many rows of experts of tf32", &many.replace("0 3 3 19", "2 600 605 790"));
}
