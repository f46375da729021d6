//! Items sorted by expert: few and many of them, for few experts, many and an open number, some of which get nothing.

use eva_ir::eval::eval_values;
use eva_ir::graph::Module;
use eva_ir::kernel::Phase;
use eva_ir::kernel::run::Options;
use eva_ir::lower::SortSchedule;
use eva_ir::text::parse;
use eva_ir::verify::verify;
use eva_passes::interpret::{How, interpret};
use eva_passes::target::Target;
use eva_tests::{arguments, as_written, check_chain, difference, sizes};
use std::collections::HashMap;

/// The module that sorts `t` tokens' items for `k` of `e` experts each; `fixed` are the extents with a value at compile time.
fn module(fixed: &[&str], [t, k, e]: [i64; 3]) -> Module {
    let is_fixed = |name: &str| fixed.contains(&name);
    let dims = [("t", t), ("k", k), ("e", e)];
    let dims = dims.map(|(name, n)| match is_fixed(name) {
        true => format!("dim {name} = {n}\n"),
        false => format!("dim {name}\n"),
    });
    let text = dims.concat()
        + "
fn @sort(%experts: i32[t, k]) -> i32[t*k], i32[t, k], i32[e+1] {
  %sorted   = sort_by_expert %experts {experts = [e]} : (i32[t*k], i32[t, k], i32[e+1])
  %order    = get %sorted {index = 0} : i32[t*k]
  %position = get %sorted {index = 1} : i32[t, k]
  %offsets  = get %sorted {index = 2} : i32[e+1]
  return %order, %position, %offsets
}

fn @of_some(%all: i32[t, k+2]) -> i32[t*k], i32[t, k] {
  %experts  = slice %all {axis = 1, range = 1..k+1} : i32[t, k]
  %sorted   = sort_by_expert %experts {experts = [e]} : (i32[t*k], i32[t, k], i32[e+1])
  %order    = get %sorted {index = 0} : i32[t*k]
  %position = get %sorted {index = 1} : i32[t, k]
  return %order, %position
}
";
    let module = parse(&text).unwrap_or_else(|diags| panic!("{diags}"));
    verify(&module).unwrap_or_else(|diags| panic!("{diags}"));
    module
}

/// Sorts so many items; see [`module`].
fn sorts(fixed: &[&str], [t, k, e]: [i64; 3], expert: impl Fn(i64) -> i64) {
    let module = module(fixed, [t, k, e]);
    let of = |n: i64| (0..n).map(&expert).collect::<Vec<_>>();
    let ints = HashMap::from([("experts", of(t * k)), ("all", of(t * (k + 2)))]);
    let mut open = vec![("t", t), ("k", k), ("e", e)];
    open.retain(|(name, _)| !fixed.contains(name));
    for func in module.funcs.keys() {
        check_chain(&module, func, &open, &ints, 3);
    }
}

/// Follows no pattern; the last experts get nothing, the first get much.
fn skewed(e: i64) -> impl Fn(i64) -> i64 {
    move |i| {
        let x = (i * 7919 % 1013) * (i * 104_729 % 997) % 1009;
        (x * x / 1009 * (e - 1).max(1) / 1009).min(e - 1).max(0)
    }
}

#[test]
fn few_items() {
    for sizes in [[1, 3, 5], [11, 3, 7], [13, 7, 12], [1, 1, 1]] {
        for fixed in [&["k", "e"][..], &["t", "k", "e"]] {
            sorts(fixed, sizes, skewed(sizes[2]));
        }
    }
    sorts(&["k", "e"], [0, 3, 5], |_| 0);
}

#[test]
fn many_items() {
    for (fixed, sizes) in [
        // As many as are compared, on a CPU and on a GPU, and one token more.
        (&["k", "e"][..], [128, 4, 3]),
        (&["k", "e"], [129, 4, 3]),
        (&["k", "e"], [256, 4, 3]),
        (&["k", "e"], [257, 4, 3]),
        (&["k", "e"], [206, 5, 19]),
        (&["t", "k", "e"], [347, 3, 33]),
        // More experts than items of a part.
        (&["k", "e"], [211, 6, 70]),
    ] {
        sorts(fixed, sizes, skewed(sizes[2]));
    }
}

#[test]
fn all_for_one_expert() {
    for last in [0, 4] {
        sorts(&["k", "e"], [261, 4, 5], |_| last);
    }
}

#[test]
fn experts_without_end() {
    sorts(&["k"], [173, 6, 11], skewed(11));
    sorts(&["k", "e"], [521, 2, 4099], skewed(4099));
}

/// Parts that are no multiples of what is looked at together, parts without items, items for no expert.
#[test]
fn parts_of_any_size() {
    let mut target = Target::cpu();
    for [parts, items] in [[5, 6], [7, 3], [3, 8], [1, 4]] {
        target.schedule.sort = SortSchedule { few: 4, compared: [3, 5], parts, items, experts: 11 };
        for [t, k, e] in [[1, 5, 3], [9, 2, 11], [23, 3, 7], [1, 3, 2], [0, 2, 4]] {
            let module = module(&["k", "e"], [t, k, e]);
            let plan = eva_passes::compile(&module, &target, &as_written()).unwrap();
            let sizes = sizes(&module, &[("t", t)]);
            let given: Vec<i64> = (0..t * (k + 2)).map(skewed(e)).collect();
            let ints = HashMap::from([("experts", given.clone()), ("all", given)]);
            for func in module.funcs.keys() {
                let args = arguments(&module.funcs[func], &sizes, 5, &ints);
                let values = eval_values(&module, func, &sizes, &args);
                for phase in [Phase::Tile, Phase::Lane] {
                    let how = How { phase, slack: 0, options: Options::default() };
                    let (have, _) = interpret(&plan, func, &sizes, &args, &how).unwrap();
                    for (have, value) in have.iter().zip(&module.funcs[func].results) {
                        assert_eq!(difference(have, &values[value][0]), 0.0, "{parts} parts, {t} {k} {e}");
                    }
                }
            }
        }
    }
}

/// Which kernels there are: one that compares where that is for all numbers of items, or experts are too many for a tile.
#[test]
fn kernels_follow_from_experts_and_items() {
    let kernels = |target: &Target, fixed: &[&str], sizes: [i64; 3]| -> Vec<String> {
        let plan = eva_passes::compile(&module(fixed, sizes), target, &as_written()).unwrap();
        let names = plan.tiles.iter().map(|(_, kernel)| kernel.name.clone());
        let of = names.filter_map(|name| name.strip_prefix("sort.sorted.").map(str::to_string));
        of.collect()
    };
    let (all, compared) = (["compared", "counts", "places"], ["compared"]);
    for (target, few, most) in [(Target::cpu(), 512, 1024), (Target::cuda(), 1024, 512)] {
        assert_eq!(kernels(&target, &["k", "e"], [1, 2, most]), all);
        assert_eq!(kernels(&target, &["k", "e"], [1, 2, most + 1]), compared);
        assert_eq!(kernels(&target, &["k"], [1, 2, most]), compared);
        assert_eq!(kernels(&target, &["t", "k", "e"], [few / 2, 2, most]), compared);
        assert_eq!(kernels(&target, &["t", "k", "e"], [few / 2 + 1, 2, most]), all[1..]);
    }
}

/// The gradient of an embedding: ids that are in no table come to nothing, however far out they are.
#[test]
fn ids_of_no_row() {
    let text = |rows: i64| {
        format!(
            "
dim t
dim w = {rows}
dim m = 3
fn @rows(%x: f32[t, m], %ids: i64[t, 1]) -> f32[w, m] {{
  %sorted  = sort_by_expert %ids {{experts = [w]}} : (i32[t], i32[t, 1], i32[w+1])
  %order   = get %sorted {{index = 0}} : i32[t]
  %offsets = get %sorted {{index = 2}} : i32[w+1]
  %sums    = segment_sum %x, %order, %offsets : f32[w, m]
  return %sums
}}
"
        )
    };
    // Experts that fit a tile, and such that do not.
    for rows in [10, 1030] {
        let module = parse(&text(rows)).unwrap_or_else(|diags| panic!("{diags}"));
        verify(&module).unwrap_or_else(|diags| panic!("{diags}"));
        let ids = vec![-1, 5, 0, rows, 5, rows - 1, 1 - (1 << 53), 7, 1 << 40, 2, 2];
        let ints = HashMap::from([("ids", ids)]);
        for t in [6, 516, 1034] {
            check_chain(&module, module.funcs.keys().next().unwrap(), &[("t", t)], &ints, t as u64);
        }
    }
}
