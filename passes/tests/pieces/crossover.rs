//! Where the cheaper form changes, by arithmetic alone: against the formula.

use crate::support::{V3, fix, last, mla};
use eva_passes::cost::{Cost, CostOptions, Lengths, Metric};
use eva_passes::form::crossover::{Crossover, crossover};
use eva_passes::form::pieces::Search;
use eva_passes::rewrite::rules::{Use, usable};
use proptest::prelude::*;

/// By floating-point operations, for one sequence attending to each of `cached`.
fn by_flops(extents: &[(&str, i64)], cached: &[i64]) -> Vec<Crossover> {
    let module = fix(mla(), extents);
    let (_, f) = last(&module);
    let rules = usable(Use::default()).unwrap();
    let costs = CostOptions { metric: Metric::Flops, ..CostOptions::default() };
    let search = Search::new(f, &rules, Cost::new(&module, f, &costs)).unwrap();
    let lengths = Lengths::of(&module);
    cached.iter().map(|&cached| crossover(&search, &lengths, 1, cached).unwrap()).collect()
}

/// Expanding one side takes `cached · latent · width` for each head, and `new · cached · width` then, against `new · latent ·
/// width` and `new · cached · latent`.
fn formula(cached: i64, latent: i64, width: i64) -> f64 {
    let [t, l, n] = [cached, latent, width].map(|n| n as f64);
    t * l * n / (l * n + t * (l - n))
}

#[test]
fn of_deepseek_v3() {
    let found = by_flops(V3, &[128, 512, 1024, 4096, 32768]);
    for (found, want) in found.iter().zip([73i64, 128, 146, 164, 170]) {
        for side in [found.key, found.value] {
            let side = side.expect("prompts are cheaper expanded");
            assert!((side - want).abs() <= 1, "{side}, not {want}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn of_other_extents(
        h in 2i64..40, latent in 96i64..700, n in 8i64..90, v in 8i64..90, cached in 16i64..9000,
    ) {
        let extents = [("m", 640), ("r", 352), ("c", latent), ("h", h), ("n", n), ("p", 16), ("v", v)];
        let found = by_flops(&extents, &[cached])[0];
        for (side, width) in [(found.key, n), (found.value, v)] {
            let want = formula(cached, latent, width);
            // Equal costs are the form as written, which is expanded.
            let side = side.expect("prompts are cheaper expanded") as f64;
            prop_assert!((want - 1e-6..want + 1.0).contains(&side), "{side}, not {want}: {found:?}");
        }
    }
}
