//! What tensor cores do: products and attention of narrow types, in all kernels that a GPU may choose from.

use eva_ir::graph::Func;
use eva_ir::kernel::{Access, Kernel};
use eva_passes::target::Target;
use eva_tests::check_chain;
use std::collections::HashMap;

/// Checks the first function of a module for several sets of sizes.
fn check(text: &str, ints: &[(&'static str, Vec<i64>)], sizes: &[&[(&str, i64)]]) {
    let module = eva_ir::text::parse(text).unwrap_or_else(|e| panic!("{e}"));
    let ints: HashMap<&str, Vec<i64>> = ints.iter().cloned().collect();
    let plan = eva_passes::compile(&module, &Target::cuda(), &eva_passes::Options::default());
    let plan = plan.unwrap_or_else(|e| panic!("{e}"));
    let helps = |kernel: &Kernel| joins(kernel) || counts_tiles(kernel);
    assert!(plan.kernels.iter().all(|(_, kernel)| helps(kernel) || kernel.to_string().contains(" = mma ")));
    let func: Func = module.funcs.iter().next().expect("there is a function").0;
    for (seed, sizes) in sizes.iter().enumerate() {
        check_chain(&module, func, sizes, &ints, seed as u64 + 3);
    }
}

/// Whether a kernel only joins the parts of an attention.
fn joins(kernel: &Kernel) -> bool {
    kernel.bufs.iter().any(|(_, buf)| buf.name.ends_with(".parts") && buf.access == Access::Read)
}

/// Whether a kernel only finds where tiles of experts' rows begin.
fn counts_tiles(kernel: &Kernel) -> bool {
    kernel.bufs.iter().any(|(_, buf)| buf.name.ends_with(".tiles") && buf.access == Access::Write)
}

#[test]
fn products_of_few_and_many_rows() {
    let text = "dim s dim m = 200 dim n = 72
fn @f(%x: bf16[s, m], weight %w: bf16[n, m]) -> bf16[s, n] {
  %y = einsum \"sm,nm->sn\" %x, %w : bf16[s, n]
  %z = silu %y : bf16[s, n]
  return %z
}";
    check(text, &[], &[&[("s", 1)], &[("s", 19)], &[("s", 65)], &[("s", 600)]]);
}

/// A state to which a product is added, where it is.
#[test]
fn products_that_are_added_up() {
    let text = "dim s dim m = 200 dim n = 72
fn @f(%x: bf16[s, m], weight %w: bf16[n, m], state %sum: f32[s, n]) -> f32[s, n] {
  %y = einsum \"sm,nm->sn\" %x, %w : bf16[s, n]
  %wide = cast %y {to = f32} : f32[s, n]
  %more = add %sum, %wide : f32[s, n]
  %next = assign %sum, %more : f32[s, n]
  return %next
}";
    check(text, &[], &[&[("s", 1)], &[("s", 19)], &[("s", 65)], &[("s", 600)]]);
}

#[test]
fn products_whose_columns_are_neighbours() {
    let text = "dim s dim h = 3 dim n = 64 dim c = 40
fn @f(%x: f16[s, h, n], weight %w: f16[h, n, c]) -> f16[s, h, c] {
  %y = einsum \"shn,hnc->shc\" %x, %w : f16[s, h, c]
  return %y
}";
    check(text, &[], &[&[("s", 3)], &[("s", 150)]]);
}

#[test]
fn rows_of_experts() {
    let text = "dim g dim e = 3 dim m = 136 dim f = 72
fn @f(%x: bf16[g, m], weight %w: bf16[e, f, m], %offsets: i32[e + 1]) -> bf16[g, f] {
  %y = grouped \"gm,efm->gf\" %x, %w, %offsets : bf16[g, f]
  return %y
}";
    check(text, &[("offsets", vec![0, 3, 3, 20])], &[&[("g", 20)]]);
    check(text, &[("offsets", vec![0, 1, 70, 131])], &[&[("g", 131)]]);
    check(text, &[("offsets", vec![0, 60, 60, 330])], &[&[("g", 330)]]);
    check(text, &[("offsets", vec![0, 770, 777, 780])], &[&[("g", 780)]]);
}

/// More experts than a search looks at in one step, some without rows, and numbers that it does not divide evenly.
#[test]
fn rows_of_many_experts() {
    let text = "dim g dim e = 11 dim m = 24 dim f = 8
fn @f(%x: bf16[g, m], weight %w: bf16[e, f, m], %offsets: i32[e + 1]) -> bf16[g, f] {
  %y = grouped \"gm,efm->gf\" %x, %w, %offsets : bf16[g, f]
  return %y
}";
    let offsets = vec![0, 0, 260, 516, 516, 517, 1030, 1030, 1030, 2500, 2790, 2830];
    check(text, &[("offsets", offsets)], &[&[("g", 2830)]]);
    let offsets = vec![0, 2820, 2820, 2820, 2820, 2820, 2820, 2820, 2820, 2820, 2820, 2827];
    check(text, &[("offsets", offsets)], &[&[("g", 2827)]]);
    for experts in [1, 2, 5, 17, 19, 67] {
        let text = text.replace("e = 11", &format!("e = {experts}"));
        let mut offsets = vec![0];
        offsets.extend((0..experts).scan(0, |end, e| {
            *end += [3, 130, 0, 128, 7, 0, 256][e as usize * 5 % 7];
            Some(*end)
        }));
        let rows = offsets[experts as usize];
        check(&text, &[("offsets", offsets)], &[&[("g", rows)]]);
    }
}

/// Rows of one expert end inside a block of those that tensor cores sum.
#[test]
fn sums_of_rows_of_experts() {
    let text = "dim g dim e = 3 dim m = 136 dim f = 72
fn @f(%x: bf16[g, f], %y: bf16[g, m], %offsets: i32[e + 1]) -> f32[e, f, m] {
  %w = grouped_outer \"gf,gm->efm\" %x, %y, %offsets : bf16[e, f, m]
  %z = cast %w {to = f32} : f32[e, f, m]
  return %z
}";
    check(text, &[("offsets", vec![0, 3, 3, 20])], &[&[("g", 20)]]);
    check(text, &[("offsets", vec![0, 1, 70, 131])], &[&[("g", 131)]]);
    check(text, &[("offsets", vec![5, 64, 128, 330])], &[&[("g", 330)]]);
    let turned = text.replace("gf,gm->efm", "gf,gm->emf").replace("[e, f, m]", "[e, m, f]");
    check(&turned, &[("offsets", vec![0, 60, 60, 150])], &[&[("g", 150)]]);
}

/// Rows that are neighbours in memory begin inside of what a bulk copy can begin with, and a step has rows of two experts.
#[test]
fn sums_of_neighbouring_rows_of_experts() {
    let text = "dim g = 140 dim e = 4 dim m = 136 dim f = 72
fn @f(%x: tf32[f, g], %y: tf32[m, g], %offsets: i32[e + 1]) -> f32[e, f, m] {
  %w = grouped_outer \"fg,mg->efm\" %x, %y, %offsets : f32[e, f, m]
  return %w
}";
    for offsets in [vec![0, 3, 3, 70, 139], vec![1, 34, 99, 100, 101], vec![0, 31, 64, 129, 140]] {
        check(text, &[("offsets", offsets.clone())], &[&[]]);
        let narrow =
            text.replace("tf32", "bf16").replace("f32[e, f, m]\n  return", "bf16[e, f, m]\n  return");
        let narrow = narrow.replace("-> f32", "-> bf16").replace("g = 140", "g = 144");
        check(&narrow, &[("offsets", offsets)], &[&[]]);
    }
}

/// The same of 8-bit floats: an expert's rows begin where a tile of them does, with zeros behind them.
#[test]
fn sums_of_codes_of_rows_of_experts() {
    let text = "dim g = 304
dim e = 3
dim f = 208
dim m = 144

fn @gradient(%x: bf16[g, f], %y: bf16[g, m], %offsets: i32[e + 1]) -> f32[e, f, m], i32[e + 1] {
  %starts = align_offsets %offsets {rows = 128} : i32[e + 1]
  %q = quantize_by_expert %x, %offsets, %starts {to = f8e4m3, rows = 128, scales = single, least = 1e-4} : f8e4m3[f, g + 128*e/128]
  %r = quantize_by_expert %y, %offsets, %starts {to = f8e4m3, rows = 128, scales = single, least = 1e-4} : f8e4m3[m, g + 128*e/128]
  %w = grouped_outer \"fg,mg->efm\" %q, %r, %starts : f32[e, f, m]
  return %w, %starts
}
";
    let short = text.replace("rows = 128, scales = single", "rows = 32, scales = e8m0");
    let short = short.replace("rows = 128", "rows = 32").replace("128*e/128", "32*e/32; e8m0");
    let turned = text.replace("fg,mg->efm", "fg,mg->emf").replace("[e, f, m]", "[e, m, f]");
    for text in [text, &short, &turned] {
        let module = eva_ir::text::parse(text).unwrap_or_else(|e| panic!("{e}"));
        let func = module.func("gradient").unwrap();
        for offsets in
            [vec![0, 3, 3, 304], vec![0, 130, 200, 304], vec![5, 64, 128, 300], vec![0, 0, 304, 304]]
        {
            check_chain(&module, func, &[], &HashMap::from([("offsets", offsets)]), 7);
        }
        let plan = eva_passes::compile(&module, &Target::cuda(), &eva_passes::Options::default());
        let plan = plan.unwrap_or_else(|e| panic!("{e}"));
        let products = plan.kernels.iter().filter(|(_, kernel)| kernel.to_string().contains(" = mma "));
        assert_eq!((plan.kernels.len(), products.count()), (4, 1));
    }
}

/// Scales for blocks, for rows and tensors, and for 32 terms of each row; a short last block, rows and columns that no tile
/// divides.
#[test]
fn products_of_codes() {
    let text = |x: &str, w: &str| {
        format!(
            "dim s dim m = 272 dim n = 200
fn @f(%x: f8e4m3[{x}], weight %w: f8e4m3[{w}]) -> f32[s, n] {{
  %y = einsum \"sm,nm->sn\" %x, %w : f32[s, n]
  return %y
}}"
        )
    };
    let blocks = text("s, m/128", "n/128, m/128");
    check(&blocks, &[], &[&[("s", 1)], &[("s", 19)], &[("s", 65)], &[("s", 150)], &[("s", 600)]]);
    check(&text("s, m/128; pow2", "n/128, m/128; pow2"), &[], &[&[("s", 21)]]);
    for (x, w) in [
        ("s, m/32; e8m0", "n, m/32; e8m0"),
        ("s, m/*", "n, m/*"),
        ("s/*, m/*", "n/*, m/*"),
        ("s, m/256", "n/64, m/256"),
        ("s, m/64", "n/192, m/64"),
        ("s, m/128", "n, m/128"),
    ] {
        check(&text(x, w), &[], &[&[("s", 3)], &[("s", 70)], &[("s", 130)]]);
    }
    let types = blocks.replace("%x: f8e4m3", "%x: f8e5m2");
    check(&types, &[], &[&[("s", 2)], &[("s", 600)]]);
}

/// Operands of gradients: what is summed are not neighbours, so they are quantized as they are turned, in one kernel each.
#[test]
fn turned_operands_of_codes() {
    let text = include_str!("../cases/tensor/turned.eva").replace("dim g\n", "dim g = 70\n");
    let module = eva_ir::text::parse(&text).unwrap_or_else(|e| panic!("{e}"));
    let ints = HashMap::from([("offsets", vec![0, 2, 66, 70])]);
    for (func, f) in module.funcs.iter() {
        check_chain(&module, func, &[], &ints, 5);
        let plan = eva_passes::compile(&module, &Target::cuda(), &eva_passes::Options::default());
        let plan = plan.unwrap_or_else(|e| panic!("{e}"));
        let kernels = plan.kernels.iter().map(|(_, kernel)| kernel);
        let own: Vec<&Kernel> = kernels.filter(|kernel| kernel.name.starts_with(&f.name)).collect();
        let products = own.iter().filter(|kernel| kernel.to_string().contains(" = mma ")).count();
        let quantizers =
            own.iter().filter(|kernel| kernel.name.contains(".prepare") || kernel.bufs.len() < 5);
        assert!(products >= 1 && products + quantizers.count() == own.len(), "{own:?}");
    }
}

/// The last 40 columns are a kernel of their own where there are many rows.
#[test]
fn products_of_codes_with_a_rest() {
    let text = "dim s dim m = 144 dim n = 1064
fn @f(%x: f8e4m3[s, m/128], weight %w: f8e4m3[n/128, m/128]) -> bf16[s, n] {
  %y = einsum \"sm,nm->sn\" %x, %w : f32[s, n]
  %z = cast %y {to = bf16} : bf16[s, n]
  return %z
}";
    check(text, &[], &[&[("s", 540)], &[("s", 130)]]);
    let plan = eva_passes::compile(
        &eva_ir::text::parse(text).unwrap(),
        &Target::cuda(),
        &eva_passes::Options::default(),
    );
    let plan = plan.unwrap_or_else(|e| panic!("{e}"));
    let rest: Vec<_> = plan.kernels.iter().filter(|(_, kernel)| kernel.name.ends_with(".rest")).collect();
    assert_eq!(rest.len(), 1);
    assert_eq!(rest[0].1.grid[1].extent.as_const(), Some(40));
}

/// Rows of several axes; heads that meet weights of their own.
#[test]
fn products_of_codes_with_more_axes() {
    let text = "dim b dim s dim h = 3 dim m = 160 dim n = 72
fn @f(%x: f8e4m3[b, s, m/128], weight %w: f8e4m3[n/128, m/128]) -> f32[b, s, n] {
  %y = einsum \"bsm,nm->bsn\" %x, %w : f32[b, s, n]
  return %y
}";
    check(text, &[], &[&[("b", 3), ("s", 7)], &[("b", 2), ("s", 70)]]);
    let text = "dim s dim h = 3 dim m = 160 dim n = 72
fn @f(%x: f8e4m3[s, h, m/128], weight %w: f8e4m3[h, n/128, m/128]) -> f32[s, h, n] {
  %y = einsum \"shm,hnm->shn\" %x, %w : f32[s, h, n]
  return %y
}";
    check(text, &[], &[&[("s", 5)], &[("s", 140)]]);
}

#[test]
fn codes_of_experts() {
    let text = "dim g dim e = 3 dim m = 208 dim f = 136
fn @f(%x: f8e4m3[g, m/128], weight %w: f8e4m3[e, f/128, m/128], %offsets: i32[e + 1]) -> f32[g, f] {
  %y = grouped \"gm,efm->gf\" %x, %w, %offsets : f32[g, f]
  return %y
}";
    check(text, &[("offsets", vec![0, 3, 3, 20])], &[&[("g", 20)]]);
    check(text, &[("offsets", vec![0, 1, 70, 131])], &[&[("g", 131)]]);
    check(text, &[("offsets", vec![0, 60, 60, 330])], &[&[("g", 330)]]);
    check(text, &[("offsets", vec![0, 770, 777, 780])], &[&[("g", 780)]]);
}

#[test]
fn attention_over_a_latent_cache() {
    // 9 heads: 9 queries in 32 parts, 360 in 16, 621 in 4; and all keys at once.
    let text = "dim b dim s dim t dim h = 9 dim c = 384 dim p = 16
fn @f(%q: bf16[b, s, h, c], %r: bf16[b, s, h, p], %start: i32[b], %kv: bf16[b, t, c], %k: bf16[b, t, p]) -> bf16[b, s, h, c] {
  %o = attend \"bshc,btc,bshp,btp,btd->bshd\" %q, %kv, %r, %k, %kv, %start {scale = 0.09} : bf16[b, s, h, c]
  return %o
}";
    check(text, &[("start", vec![69])], &[&[("b", 1), ("s", 1), ("t", 70)]]);
    check(text, &[("start", vec![3, 130])], &[&[("b", 2), ("s", 20), ("t", 150)]]);
    check(text, &[("start", vec![0, 11, 7])], &[&[("b", 3), ("s", 23), ("t", 34)]]);
}

#[test]
fn latents_that_two_warpgroups_cannot_divide() {
    // Half of 288 is no whole number of panels of 64: the ordinary units do it.
    let text = "dim b dim t dim h = 3 dim c = 288
fn @f(%q: bf16[b, 1, h, c], %start: i32[b], %kv: bf16[b, t, c]) -> bf16[b, 1, h, c] {
  %o = attend \"bshc,btc,btd->bshd\" %q, %kv, %kv, %start {scale = 0.09} : bf16[b, 1, h, c]
  return %o
}";
    let module = eva_ir::text::parse(text).unwrap_or_else(|e| panic!("{e}"));
    let func: Func = module.funcs.iter().next().expect("there is a function").0;
    check_chain(&module, func, &[("b", 2), ("t", 70)], &HashMap::from([("start", vec![69, 5])]), 7);
}

#[test]
fn attention_of_heads_of_their_own() {
    let text = "dim b dim s dim t dim h = 2 dim n = 72 dim v = 40
fn @f(%q: bf16[b, s, h, n], %k: bf16[b, t, h, n], %v: bf16[b, t, h, v], %start: i32[b]) -> bf16[b, s, h, v] {
  %o = attend \"bshn,bthn,bthv->bshv\" %q, %k, %v, %start {scale = 0.11} : bf16[b, s, h, v]
  return %o
}";
    check(text, &[("start", vec![0])], &[&[("b", 1), ("s", 140), ("t", 140)]]);
    check(text, &[("start", vec![5, 200])], &[&[("b", 2), ("s", 3), ("t", 203)]]);
}

/// Sums of the forward are the backward's; rotary keys that heads share; several tiles of tokens and of keys.
#[test]
fn attention_and_its_backward() {
    let text = "dim b dim s dim t dim h = 2 dim n = 72 dim p = 16 dim v = 40
fn @f(%q: bf16[b, s, h, n], %k: bf16[b, t, h, n], %r: bf16[b, s, h, p], %e: bf16[b, t, p], %v: bf16[b, t, h, v],
  %start: i32[b], %delta: f32[b, h, s], %do: bf16[b, s, h, v],
) -> bf16[b, s, h, v], f32[b, h, s], bf16[b, s, h, n], bf16[b, s, h, p], bf16[b, t, h, n], f32[h, b, t, p], bf16[b, t, h, v] {
  %both = attend_lse \"bshn,bthn,bshp,btp,bthv->bshv\" %q, %k, %r, %e, %v, %start {scale = 0.11} : (bf16[b, s, h, v], f32[b, h, s])
  %o = get %both {index = 0} : bf16[b, s, h, v]
  %sums = get %both {index = 1} : f32[b, h, s]
  %gq = attend_grad_queries \"bshn,bthn,bshp,btp,bthv->bshv\" %q, %k, %r, %e, %v, %start, %sums, %delta, %do {scale = 0.11} : (bf16[b, s, h, n], bf16[b, s, h, p])
  %dq = get %gq {index = 0} : bf16[b, s, h, n]
  %dr = get %gq {index = 1} : bf16[b, s, h, p]
  %gk = attend_grad_keys \"bshn,bthn,bshp,btp,bthv->bshv\" %q, %k, %r, %e, %v, %start, %sums, %delta, %do {scale = 0.11} : (bf16[b, t, h, n], f32[h, b, t, p], bf16[b, t, h, v])
  %dk = get %gk {index = 0} : bf16[b, t, h, n]
  %de = get %gk {index = 1} : f32[h, b, t, p]
  %dv = get %gk {index = 2} : bf16[b, t, h, v]
  return %o, %sums, %dq, %dr, %dk, %de, %dv
}";
    check(text, &[("start", vec![0])], &[&[("b", 1), ("s", 140), ("t", 140)]]);
    check(text, &[("start", vec![5, 200])], &[&[("b", 2), ("s", 3), ("t", 203)]]);
    check(text, &[("start", vec![31, 0])], &[&[("b", 2), ("s", 70), ("t", 133)]]);
}

/// Latents that all heads share, with a rotary key: what training has where they are small.
#[test]
fn attention_over_small_latents_and_its_backward() {
    let text = "dim b dim s dim h = 3 dim c = 24 dim p = 16
fn @f(%q: bf16[b, s, h, c], %k: bf16[b, s, c], %r: bf16[b, s, h, p], %e: bf16[b, s, p], %start: i32[b], %delta: f32[b, h, s],
  %do: bf16[b, s, h, c],
) -> bf16[b, s, h, c], f32[b, h, s], bf16[b, s, h, c], bf16[b, s, h, p], bf16[b, s, c], bf16[b, s, p], bf16[b, s, c] {
  %both = attend_lse \"bshc,btc,bshp,btp,bta->bsha\" %q, %k, %r, %e, %k, %start {scale = 0.11} : (bf16[b, s, h, c], f32[b, h, s])
  %o = get %both {index = 0} : bf16[b, s, h, c]
  %sums = get %both {index = 1} : f32[b, h, s]
  %gq = attend_grad_queries \"bshc,btc,bshp,btp,bta->bsha\" %q, %k, %r, %e, %k, %start, %sums, %delta, %do {scale = 0.11} : (bf16[b, s, h, c], bf16[b, s, h, p])
  %dq = get %gq {index = 0} : bf16[b, s, h, c]
  %dr = get %gq {index = 1} : bf16[b, s, h, p]
  %gk = attend_grad_keys \"bshc,btc,bshp,btp,bta->bsha\" %q, %k, %r, %e, %k, %start, %sums, %delta, %do {scale = 0.11} : (bf16[b, s, c], bf16[b, s, p], bf16[b, s, c])
  %dk = get %gk {index = 0} : bf16[b, s, c]
  %de = get %gk {index = 1} : bf16[b, s, p]
  %dv = get %gk {index = 2} : bf16[b, s, c]
  return %o, %sums, %dq, %dr, %dk, %de, %dv
}";
    check(text, &[("start", vec![0])], &[&[("b", 1), ("s", 141)]]);
    check(text, &[("start", vec![0, 0])], &[&[("b", 2), ("s", 67)]]);
}

/// Latents in pages of 64, which are attended to and expanded; 9 heads, as above.
const PAGES: &str = "dim b dim s dim t dim g dim k dim h = 9 dim c = 384 dim p = 16 dim n = 72
fn @f(%q: bf16[b, s, h, c], %r: bf16[b, s, h, p], %start: i32[b], %table: i32[b, k], %new: bf16[b, s, c],
  %new_k: bf16[b, s, p], weight %w: bf16[h, n, c], state %kv: bf16[g, 64, c], state %k: bf16[g, 64, p],
) -> bf16[b, s, h, c], bf16[b, t, h, n], bf16[g, 64, c], bf16[g, 64, p] {
  %pool = page_write %kv, %new, %table, %start : bf16[g, 64, c]
  %pool_k = page_write %k, %new_k, %table, %start : bf16[g, 64, p]
  %all = page_read %pool, %table {tokens = [t]} : bf16[b, t, c]
  %all_k = page_read %pool_k, %table {tokens = [t]} : bf16[b, t, p]
  %o = attend \"bshc,btc,bshp,btp,btd->bshd\" %q, %all, %r, %all_k, %all, %start {scale = 0.09} : bf16[b, s, h, c]
  %keys = einsum \"btc,hnc->bthn\" %all, %w : bf16[b, t, h, n]
  return %o, %keys, %pool, %pool_k
}";

#[test]
fn pages_are_copied_in_bulk_by_a_table() {
    for (rows, tensor) in [(64, true), (128, true), (32, false)] {
        let text = PAGES.replace("64", &rows.to_string());
        let module = eva_ir::text::parse(&text).unwrap_or_else(|e| panic!("{e}"));
        let plan = eva_passes::compile(&module, &Target::cuda(), &eva_passes::Options::default());
        let plan = plan.unwrap_or_else(|e| panic!("{e}"));
        for (_, kernel) in plan.kernels.iter().filter(|(_, kernel)| kernel.name.starts_with("f.o")) {
            let mma = kernel.to_string().contains(" = mma ");
            // Where a block of keys is as large as tensor cores want it, it is in one page.
            assert!(joins(kernel) || !tensor || mma, "{}", kernel.name);
        }
        let func: Func = module.funcs.iter().next().expect("there is a function").0;
        let ints = HashMap::from([("start", vec![69]), ("table", vec![4, 1, 6, 0])]);
        let sizes =
            |b, s, t: i64| [("b", b), ("s", s), ("t", t), ("g", 16), ("k", (t as u64).div_ceil(rows) as i64)];
        check_chain(&module, func, &sizes(1, 1, 70), &ints, 3);
        if rows == 64 {
            let table = (0..16).map(|i| (i * 7 + 3) % 16).collect();
            let ints = HashMap::from([("start", vec![3, 130]), ("table", table)]);
            check_chain(&module, func, &sizes(2, 20, 150), &ints, 4);
        }
    }
}

/// Checks the first function of a module, whatever multiplies.
fn whole(text: &str, ints: &[(&'static str, Vec<i64>)], sizes: &[&[(&str, i64)]]) {
    let module = eva_ir::text::parse(text).unwrap_or_else(|e| panic!("{e}"));
    let ints: HashMap<&str, Vec<i64>> = ints.iter().cloned().collect();
    let func: Func = module.funcs.iter().next().expect("there is a function").0;
    for (seed, sizes) in sizes.iter().enumerate() {
        check_chain(&module, func, sizes, &ints, seed as u64 + 11);
    }
}

#[test]
fn products_of_awkward_widths() {
    // One column too many for a product, few of them, an odd sum, and all at once.
    for (m, n) in [(200, 17), (200, 9), (136, 1), (72, 4), (8, 264), (13, 70), (7, 3), (56, 200)] {
        let text = format!(
            "dim s dim m = {m} dim n = {n}
fn @f(%x: bf16[s, m], weight %w: bf16[n, m], %z: bf16[s, n]) -> bf16[s, n] {{
  %y = einsum \"sm,nm->sn\" %x, %w : bf16[s, n]
  %a = silu %y : bf16[s, n]
  %b = mul %a, %z : bf16[s, n]
  return %b
}}"
        );
        whole(&text, &[], &[&[("s", 2)], &[("s", 21)], &[("s", 90)], &[("s", 530)]]);
    }
}

#[test]
fn what_follows_a_product_is_written_in_parts() {
    // Wider than a tile, with another operand as wide, and one that is a row.
    let text = "dim s dim m = 88 dim n = 520
fn @f(%x: bf16[s, m], weight %w: bf16[n, m], %z: bf16[s, n], weight %g: bf16[n]) -> bf16[s, n] {
  %y = einsum \"sm,nm->sn\" %x, %w : bf16[s, n]
  %a = silu %y : bf16[s, n]
  %b = mul %a, %z : bf16[s, n]
  %c = add %b, %g : bf16[s, n]
  return %c
}";
    check(text, &[], &[&[("s", 5)], &[("s", 40)], &[("s", 100)], &[("s", 300)], &[("s", 600)]]);
    let text = "dim g dim e = 2 dim m = 56 dim f = 136
fn @f(%x: bf16[g, m], weight %w: bf16[e, f, m], %offsets: i32[e + 1], %z: bf16[g, f]) -> bf16[g, f] {
  %y = grouped \"gm,efm->gf\" %x, %w, %offsets : bf16[g, f]
  %a = silu %y : bf16[g, f]
  %b = mul %a, %z : bf16[g, f]
  return %b
}";
    check(text, &[("offsets", vec![0, 100, 131])], &[&[("g", 131)]]);
    check(text, &[("offsets", vec![0, 7, 555])], &[&[("g", 555)]]);
}

#[test]
fn one_head_is_an_axis_of_one() {
    let text = "dim s dim h = 1 dim c = 24 dim v = 17
fn @f(%x: bf16[s, h, c], weight %w: bf16[h, v, c]) -> bf16[s, h, v] {
  %y = einsum \"shc,hvc->shv\" %x, %w : bf16[s, h, v]
  return %y
}";
    whole(text, &[], &[&[("s", 3)], &[("s", 150)]]);
}

#[test]
fn attention_of_awkward_widths() {
    for (heads, c, p) in [(1, 17, 3), (5, 744, 8), (2, 288, 10), (3, 130, 6), (7, 264, 2)] {
        for dtype in ["f32", "bf16"] {
            let text = format!(
                "dim b dim s dim t dim h = {heads} dim c = {c} dim p = {p}
fn @f(%q: D[b, s, h, c], %r: D[b, s, h, p], %start: i32[b], %kv: D[b, t, c], %k: D[b, t, p]) -> D[b, s, h, c] {{
  %o = attend \"bshc,btc,bshp,btp,btd->bshd\" %q, %kv, %r, %k, %kv, %start {{scale = 0.09}} : D[b, s, h, c]
  return %o
}}"
            );
            let text = text.replace("D[", &format!("{dtype}["));
            whole(&text, &[("start", vec![40])], &[&[("b", 1), ("s", 2), ("t", 43)]]);
        }
    }
}
