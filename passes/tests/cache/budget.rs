//! What a token takes, and what it may take.

use crate::support::parse;
use eva_passes::Options;
use eva_passes::cache::{CacheBytes, CacheOptions, Layout, lay_out, layout};
use eva_passes::target::Target;

const TWO: &str = "dim b dim s dim t dim m = 6 dim h = 2 dim n = 5 dim c = 7
fn @f(%x: f32[b, s, m], %start: i32[b], weight %a: f32[c, m], weight %up: f32[h, n, c],
  state %layers.0.k: f32[b, t, h, n], state %layers.1.k: bf16[b, t, m], state %layers.1.more.v: f32[b, t, m],
) -> f32[b, t, h, n], bf16[b, t, m], f32[b, t, m] {
  %latent = einsum \"bsm,cm->bsc\" %x, %a : f32[b, s, c]
  %k = einsum \"bsc,hnc->bshn\" %latent, %up : f32[b, s, h, n]
  %narrow = cast %x {to = bf16} : bf16[b, s, m]
  %a0 = cache_write %layers.0.k, %k, %start : f32[b, t, h, n]
  %a1 = cache_write %layers.1.k, %narrow, %start : bf16[b, t, m]
  %a2 = cache_write %layers.1.more.v, %x, %start : f32[b, t, m]
  return %a0, %a1, %a2
}";

#[test]
fn bytes_are_counted_by_token_and_layer() {
    let module = parse(TWO);
    let func = module.func("f").unwrap();
    let bytes = CacheBytes::of(&module, func).unwrap();
    assert_eq!(bytes.total(), 40 + 12 + 24);
    assert_eq!(bytes.layers(), [("layers.0", 40), ("layers.1", 36)]);
    assert_eq!(bytes.per_layer(), 40);
    let plan = eva_passes::compile(&module, &Target::cpu(), &Options::default()).unwrap();
    // The input itself is the least that all of them can be made of.
    let compiled = plan.cache_bytes(func).unwrap();
    assert_eq!((compiled.total(), compiled.per_layer()), (24, 24));
}

#[test]
fn a_layout_has_a_name() {
    let naive = parse(include_str!("../../../tests/cases/run/naive.eva"));
    let of = |cache: CacheOptions| {
        let new = lay_out(&naive, &cache).unwrap();
        layout(&new, new.func("attention").unwrap())
    };
    let written = CacheOptions { layout: Layout::AsWritten, ..CacheOptions::default() };
    assert_eq!(of(CacheOptions::default()), Some("latent"));
    assert_eq!(of(written), Some("expanded"));
    assert_eq!(of(CacheOptions { page: Some(7), ..CacheOptions::default() }), Some("paged latent"));
    assert_eq!(of(CacheOptions { page: Some(7), ..written }), Some("paged expanded"));
    let none = parse("dim s fn @f(%x: f32[s]) -> f32[s] { %y = exp %x : f32[s] return %y }");
    assert_eq!(layout(&none, none.func("f").unwrap()), None);
}

fn budget(bytes: u64, layout: Layout) -> Result<(), String> {
    let module = parse(&format!("kv_budget {bytes}\n{TWO}"));
    assert_eq!(module.kv_budget, Some(bytes));
    assert!(eva_ir::text::print(&module).starts_with(&format!("kv_budget {bytes}\n")));
    lay_out(&module, &CacheOptions { layout, ..CacheOptions::default() }).map(drop).map_err(|diag| {
        assert_eq!(diag.code, "eva::kv_budget");
        assert!(!diag.labels.is_empty());
        diag.to_string()
    })
}

#[test]
fn a_budget_that_is_not_met_is_an_error_that_names_the_states() {
    assert_eq!(budget(24, Layout::Auto), Ok(()));
    assert_eq!(
        budget(23, Layout::Auto).unwrap_err(),
        "a token takes 24 bytes in the caches of `layers.1` of @f, but the module allows 23: `%layers.1.more.v` 24 \
         (f32[b, t, m])"
    );
    assert_eq!(budget(40, Layout::AsWritten), Ok(()));
    assert_eq!(
        budget(39, Layout::AsWritten).unwrap_err(),
        "a token takes 40 bytes in the caches of `layers.0` of @f, but the module allows 39: `%layers.0.k` 40 \
         (f32[b, t, h, n])"
    );
    let open = parse(&format!("kv_budget 9\n{}", TWO.replace("dim m = 6", "dim m")));
    let error = lay_out(&open, &CacheOptions::default()).unwrap_err();
    assert!(error.to_string().contains("the bytes of `%layers.1.k` are not known"), "{error}");
}
