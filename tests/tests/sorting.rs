//! Items sorted by expert: few and many of them, for few experts, many and an open number, some of which get nothing.

use eva_ir::text::parse;
use eva_ir::verify::verify;
use eva_tests::check_chain;
use std::collections::HashMap;

/// Sorts `t` tokens' items for `k` of `e` experts each; `fixed` are the extents with a value at compile time.
fn sorts(fixed: &[&str], [t, k, e]: [i64; 3], expert: impl Fn(i64) -> i64) {
    let sizes = [("t", t), ("k", k), ("e", e)];
    let is_fixed = |name: &str| fixed.contains(&name);
    let dims = sizes.map(|(name, n)| match is_fixed(name) {
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
    let of = |n: i64| (0..n).map(&expert).collect::<Vec<_>>();
    let ints = HashMap::from([("experts", of(t * k)), ("all", of(t * (k + 2)))]);
    let open: Vec<(&str, i64)> = sizes.into_iter().filter(|(name, _)| !is_fixed(name)).collect();
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
}

#[test]
fn many_items() {
    for (fixed, sizes) in [
        (&["k", "e"][..], [103, 5, 7]),
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
