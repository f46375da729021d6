//! The ops' kernels, against the ops' meaning.

use super::fixtures::{Golden, ROUTER_CASES, assert_routing, eval, router};
use super::harness::Case;
use eva_ir::attr::{Dims, Real, Word};
use eva_ir::dim::Dim;
use eva_ir::eval::Array;
use eva_ir::kernel::run::Order;
use eva_ir::ops::*;
use eva_ir::types::DType;

const TOLERANCE: f64 = 2e-6;

/// Numbers from -2 to 2 that follow no pattern an op could hide behind.
fn wild(operand: usize, i: usize) -> f64 {
    let x = (operand * 7919 + i * 104_729 + 17) as f64;
    f64::from(((x * 0.618_033_988_749).fract() * 4.0 - 2.0) as f32)
}

fn ints(shape: &[usize], items: &[i64]) -> Array {
    Array::new(shape, items.iter().map(|&n| n as f64).collect())
}

/// Both with an extent that is fixed and one that is not, with rows held whole and not, with an operand in memory
/// and one computed on the way.
#[track_caller]
fn in_all_ways(op: impl Into<Op>, types: &[&str], sizes: &[(&str, i64)], replace: impl Fn(&mut Vec<Array>)) {
    let op = op.into();
    for (fixed, dynamic) in [(sizes, [].as_slice()), (&[], sizes)] {
        for row in [5, 64] {
            for fused in [0.0, 1.5] {
                let mut case = Case::new(op.clone(), types, fixed, dynamic);
                (case.row, case.fused) = (row, fused);
                let mut args = case.arrays(wild);
                replace(&mut args);
                case.check(&args, TOLERANCE);
            }
        }
    }
}

#[test]
fn reductions() {
    // The last axis: longer than a block, as long as one, shorter.
    for n in [17, 7, 14, 3, 1] {
        let sizes = [("b", 3), ("s", 5), ("n", n)];
        in_all_ways(sum::Sum { axis: 2 }, &["f32[b, s, n]"], &sizes, |_| {});
        in_all_ways(mean::Mean { axis: 2 }, &["f32[b, s, n]"], &sizes, |_| {});
        in_all_ways(max::Max { axis: 2 }, &["f32[b, s, n]"], &sizes, |_| {});
        in_all_ways(mean::Mean { axis: 1 }, &["f32[b, s, n]"], &sizes, |_| {});
        in_all_ways(sum::Sum { axis: 0 }, &["f32[b, s, n]"], &sizes, |_| {});
        in_all_ways(max::Max { axis: 0 }, &["f32[n]"], &sizes, |_| {});
    }
    let negative = |args: &mut Vec<Array>| args[0] = args[0].map(|x| x - 9.0);
    in_all_ways(max::Max { axis: 1 }, &["f32[b, n]"], &[("b", 3), ("n", 11)], negative);
}

#[test]
fn softmaxes() {
    for n in [17, 7, 3, 1] {
        let large = |args: &mut Vec<Array>| args[0] = args[0].map(|x| x * 100.0);
        in_all_ways(softmax::Softmax {}, &["f32[b, n]"], &[("b", 5), ("n", n)], |_| {});
        in_all_ways(softmax::Softmax {}, &["f32[b, n]"], &[("b", 5), ("n", n)], large);
    }
    for (s, t, start) in [(3, 19, [16, 2]), (5, 7, [0, 2]), (2, 8, [5, 6]), (1, 1, [0, 0])] {
        let starts = |args: &mut Vec<Array>| args[1] = ints(&[2], &start);
        let sizes = [("b", 2), ("h", 3), ("s", s), ("t", t)];
        in_all_ways(causal_softmax::CausalSoftmax {}, &["f32[b, h, s, t]", "i32[b]"], &sizes, starts);
        in_all_ways(causal_softmax::CausalSoftmax {}, &["f32[b, s, t]", "i64[b]"], &sizes, starts);
    }
}

#[test]
fn cross_entropy() {
    for (w, labels) in [(17, [3, -100, 16, 0, 17]), (6, [5, 0, -1, -100, 2]), (3, [-100; 5])] {
        let given = |args: &mut Vec<Array>| args[1] = ints(&[5], &labels);
        let op = cross_entropy_rows::CrossEntropyRows {};
        in_all_ways(op, &["f32[n, w]", "i64[n]"], &[("n", 5), ("w", w)], given);
    }
}

#[test]
fn rows_of_tables() {
    for m in [19, 7, 3] {
        let sizes = [("w", 11), ("m", m), ("b", 2), ("s", 3)];
        let ids = |args: &mut Vec<Array>| args[1] = ints(&[2, 3], &[10, 0, 7, 7, 3, 1]);
        in_all_ways(embedding::Embedding {}, &["f32[w, m]", "i32[b, s]"], &sizes, ids);
        let case = Case::new(embedding::Embedding {}, &["bf16[w, m]", "i32[b, s]"], &[], &sizes);
        let mut args = case.arrays(|operand, i| half::bf16::from_f64(wild(operand, i)).to_f64());
        ids(&mut args);
        case.check(&args, 0.0);
        let at = |args: &mut Vec<Array>| args[1] = ints(&[2], &[2, 0]);
        in_all_ways(take_row::TakeRow {}, &["f32[b, s, m]", "i32[b]"], &sizes, at);
        in_all_ways(take_row::TakeRow {}, &["f32[b, s, w, m]", "i32[b]"], &sizes, at);
        let start = |args: &mut Vec<Array>| args[0] = ints(&[2], &[40, 3]);
        in_all_ways(positions::Positions { new: Dim::sym("m") }, &["i64[b]"], &sizes, start);
    }
    // Nothing may be read where there is nothing.
    let case =
        Case::new(embedding::Embedding {}, &["f32[w, m]", "i32[b]"], &[], &[("w", 3), ("m", 5), ("b", 3)]);
    let mut args = case.arrays(wild);
    args[1] = ints(&[3], &[3, -1, 2_000_000_000]);
    case.check(&args, 0.0);
}

#[test]
fn concat() {
    let types = ["f32[b, m, n]", "f32[b, s, n]", "f32[b, 1, n]"];
    in_all_ways(concat::Concat { axis: 1 }, &types, &[("b", 2), ("m", 3), ("s", 5), ("n", 9)], |_| {});
    for (m, n) in [(3, 5), (8, 20), (7, 7)] {
        let sizes = [("b", 2), ("m", m), ("n", n)];
        in_all_ways(concat::Concat { axis: 1 }, &["f32[b, m]", "f32[b, n]", "f32[b, m]"], &sizes, |_| {});
    }
    let whole = |args: &mut Vec<Array>| *args = vec![ints(&[2], &[4, -7]), ints(&[3], &[1, 2, 3])];
    in_all_ways(concat::Concat { axis: 0 }, &["i32[b]", "i32[n]"], &[("b", 2), ("n", 3)], whole);
}

#[test]
fn full() {
    for (value, dtype) in [(-0.75, DType::F32), (41.0, DType::I32)] {
        let op =
            full::Full { value: Real::new(value), shape: Dims(vec![Dim::sym("b"), Dim::sym("n")]), dtype };
        in_all_ways(op, &[], &[("b", 3), ("n", 10)], |_| {});
    }
}

#[test]
fn rotary_positions() {
    for (p, pairs) in [(10, "interleaved"), (10, "halves"), (4, "halves"), (14, "interleaved")] {
        let freqs = rope_freqs::RopeFreqs {
            width: Dim::from(p),
            theta: Real::new(1e4),
            pairs: Word::from(pairs),
            factor: Real::new(1.0),
            beta_fast: Real::new(32.0),
            beta_slow: Real::new(1.0),
            original: 4096,
        };
        let freqs = eval(freqs, &[]).remove(0);
        let sizes = [("b", 2), ("s", 3), ("h", 5), ("p", p)];
        // Far out, where the rounding of the angle matters.
        let positions = ints(&[2, 3], &[0, 1, 163_839, 4097, 17, 99_999]);
        let table = rope_table::RopeTable { factor: Real::new(0.875) };
        for fixed in [true, false] {
            let given = if fixed { [&sizes[..], &[]] } else { [&[], &sizes[..]] };
            let case = Case::new(table.clone(), &["i32[b, s]", "f32[2, p]"], given[0], given[1]);
            case.check(&[positions.clone(), freqs.clone()], 1e-6);
        }
        let table = eval(table, &[&positions, &freqs]).remove(0);
        let rope = rope::Rope { pairs: Word::from(pairs) };
        // The table is not what is shifted by what is fused.
        let given = |args: &mut Vec<Array>| args[1] = table.clone();
        in_all_ways(rope.clone(), &["f32[b, s, h, p]", "f32[b, s, 2, p]"], &sizes, given);
        in_all_ways(rope, &["f32[b, s, p]", "f32[b, s, 2, p]"], &sizes, given);
    }
}

#[test]
fn cache_write() {
    for (r, start) in [(19, [0, 4]), (7, [3, 1]), (3, [6, -2])] {
        let sizes = [("b", 2), ("t", 8), ("s", 4), ("r", r), ("h", 3)];
        for types in [
            ["f32[b, t, r]", "f32[b, s, r]", "i32[b]"],
            ["f32[b, t, h, r]", "f32[b, s, h, r]", "i32[b]"],
            ["f32[b, t]", "f32[b, s]", "i32[b]"],
            // More rows than a block has columns.
            ["f32[b, r]", "f32[b, t]", "i32[b]"],
        ] {
            for given in [[&sizes[..], &[]], [&[], &sizes[..]]] {
                let case = Case::new(cache_write::CacheWrite {}, &types, given[0], given[1]);
                let mut args = case.arrays(wild);
                args[2] = ints(&[2], &start);
                case.check(&args, 0.0);
            }
        }
    }
}

#[test]
fn quantize_stats() {
    for c in [1, 7, 16, 53] {
        let sizes = [("r", 3), ("c", c), ("h", 2)];
        for ty in ["f32[r, h, c]", "f32[c]"] {
            for given in [[&sizes[..], &[]], [&[], &sizes[..]]] {
                let case =
                    Case::new(quantize_stats::QuantizeStats {}, &[ty, ty, "f32[]"], given[0], given[1]);
                // Some are zero, some become zero, and some are beyond the limit of 1.5.
                let x = |i: usize| if i % 5 == 2 { 0.0 } else { wild(0, i) };
                let item = |operand: usize, i: usize| match operand {
                    0 => x(i),
                    1 if i.is_multiple_of(3) => 0.0,
                    1 => x(i) + wild(1, i) / 8.0,
                    _ => 1.5,
                };
                case.check(&case.arrays(item), TOLERANCE);
            }
        }
    }
}

#[test]
fn assign() {
    for c in [19, 7, 1] {
        let sizes = [("r", 5), ("c", c), ("h", 3)];
        for ty in ["f32[r, h, c]", "f32[r, c]", "f32[c]", "bf16[c]", "i32[r]", "f32[]"] {
            for given in [[&sizes[..], &[]], [&[], &sizes[..]]] {
                let case = Case::new(assign::Assign {}, &[ty, ty], given[0], given[1]);
                case.check(&case.arrays(|operand, i| (7 * operand + i) as f64), 0.0);
            }
        }
    }
}

#[test]
fn page_write() {
    // Tokens in the middle of pages, over several, beyond the table, and without a page.
    for (r, start) in [(19, [0, 4]), (7, [3, 1]), (3, [6, -2])] {
        let sizes = [("b", 2), ("g", 5), ("k", 2), ("s", 4), ("r", r), ("h", 3)];
        for types in [
            ["f32[g, 3, r]", "f32[b, s, r]", "i32[b, k]", "i32[b]"],
            ["f32[g, 3, h, r]", "f32[b, s, h, r]", "i32[b, k]", "i32[b]"],
            ["f32[g, 2]", "f32[b, s]", "i32[b, k]", "i32[b]"],
        ] {
            for given in [[&sizes[..], &[]], [&[], &sizes[..]]] {
                let case = Case::new(page_write::PageWrite {}, &types, given[0], given[1]);
                let mut args = case.arrays(wild);
                args[2] = ints(&[2, 2], &[4, 1, -1, 0]);
                args[3] = ints(&[2], &start);
                case.check(&args, 0.0);
            }
        }
    }
}

#[test]
fn routers() {
    let golden = Golden::open("ops/gate");
    for name in ROUTER_CASES {
        let logits = golden.get(&format!("{name}.logits"));
        let mut args = vec![logits];
        if name.starts_with("v3") {
            args.push(golden.get(&format!("{name}.bias")));
        }
        let [t, e] = args[0].shape[..] else { panic!() };
        let types = ["f32[t, e]", "f32[e]"];
        let case = Case::new(router(name), &types[..args.len()], &[("e", e as i64)], &[("t", t as i64)]);
        assert_routing(name, &case.run(&args, Order::Forward), &golden);
        case.check(&args, 1e-6);
    }
}

#[test]
fn routers_break_ties_alike() {
    for name in ["v3_no_norm", "v3_one_group", "v2_greedy", "v2_group_limited"] {
        let e = match name {
            "v2_group_limited" => 160,
            "v2_greedy" => 64,
            _ => 24,
        };
        let types = ["f32[t, e]", "f32[e]"];
        let n = if name.starts_with("v3") { 2 } else { 1 };
        let case = Case::new(router(name), &types[..n], &[("e", e)], &[("t", 5)]);
        // Few different numbers, so that most experts are equal to others.
        case.check(&case.arrays(|operand, i| (wild(operand, i) * 1.5).round()), 1e-6);
    }
}

#[test]
fn routers_need_fixed_numbers_of_experts() {
    let case = Case::new(router("v2_greedy"), &["f32[t, e]"], &[], &[("t", 3), ("e", 8)]);
    let message = "the number of experts is `e`, which has no fixed value: give it one with `dim e = …`";
    assert_eq!(case.lower().unwrap_err().message, message);
    let case = Case::new(router("v2_group_limited"), &["f32[t, e]"], &[("e", 20)], &[("t", 3)]);
    assert_eq!(case.lower().unwrap_err().message, "20 experts do not make 8 equal groups");
}

#[test]
fn experts() {
    for (t, k, e, m) in [(1, 3, 5, 9), (11, 3, 7, 5), (23, 2, 4, 7), (13, 11, 12, 3)] {
        let sizes = [("t", t), ("k", k), ("e", e), ("m", m)];
        let n = (t * k) as usize;
        // Some experts get much, some nothing.
        let items: Vec<i64> = (0..n).map(|i| (wild(3, i) * wild(4, i)).abs() as i64 % e).collect();
        let expert = ints(&[t as usize, k as usize], &items);
        let sort = sort_by_expert::SortByExpert { experts: Dim::sym("e") };
        let sizes_of = eva_ir::eval::Sizes(sizes.iter().map(|&(name, n)| (name.into(), n)).collect());
        let parts = Op::from(sort).eval(&sizes_of, &[&expert]);
        let dispatch = dispatch::Dispatch { k: Dim::sym("k") };
        let order = |args: &mut Vec<Array>| args[1] = parts[0].clone();
        in_all_ways(dispatch, &["f32[t, m]", "i32[k*t]"], &sizes, order);
        let position = |args: &mut Vec<Array>| args[1] = parts[1].clone();
        let types = ["f32[k*t, m]", "i32[t, k]", "f32[t, k]"];
        in_all_ways(combine::Combine {}, &types, &sizes, position);
    }
}

/// Experts with rows, with many, and without; rows behind all of them.
#[test]
fn sums_of_rows_of_experts() {
    let sizes = [("g", 29), ("e", 5), ("m", 9), ("f", 7)];
    for spec in ["gf,gm->efm", "gf,gm->emf"] {
        let spec = spec.parse::<eva_ir::attr::Spec>().unwrap();
        let op = grouped_outer::GroupedOuter { spec };
        for (fixed, dynamic) in [(&sizes[..], &[][..]), (&sizes[2..], &sizes[..2]), (&[], &sizes)] {
            for offsets in [[0, 3, 3, 20, 27, 27], [0, 0, 29, 29, 29, 29], [4, 5, 10, 11, 11, 29]] {
                let case = Case::new(op.clone(), &["f32[g, f]", "f32[g, m]", "i32[e + 1]"], fixed, dynamic);
                let mut args = case.arrays(wild);
                args[2] = ints(&[6], &offsets);
                case.check(&args, TOLERANCE);
                let sums = case.run(&args, Order::Forward).remove(0);
                let slice = |e: usize| &sums.data[e * 63..(e + 1) * 63];
                let empty = (0..5).filter(|&e| offsets[e] == offsets[e + 1]);
                empty.for_each(|e| assert!(slice(e).iter().all(|&x| x == 0.0)));
            }
        }
    }
}

/// Where experts' rows begin in whole blocks: experts without rows, with one, with as many as blocks have.
#[test]
fn offsets_of_whole_blocks() {
    let sizes = [("e", 11)];
    let op = align_offsets::AlignOffsets { rows: 4 };
    for (fixed, dynamic) in [(&sizes[..], &[][..]), (&[], &sizes)] {
        let case = Case::new(op.clone(), &["i32[e + 1]"], fixed, dynamic);
        let mut args = case.arrays(wild);
        args[0] = ints(&[12], &[2, 2, 3, 7, 11, 16, 16, 24, 33, 34, 34, 40]);
        case.check(&args, 0.0);
        let starts = case.run(&args, Order::Forward).remove(0);
        assert_eq!(starts.data, [0.0, 0.0, 4.0, 8.0, 12.0, 20.0, 20.0, 28.0, 40.0, 44.0, 44.0, 52.0]);
    }
}
