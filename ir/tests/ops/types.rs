//! What the type rules accept, and what they say otherwise.

use super::harness::parse as ty;
use eva_ir::attr::{Dims, Real, Word};
use eva_ir::dim::Dim;
use eva_ir::ops::*;
use eva_ir::types::{DType, TensorType, Type};

fn infer(op: impl Into<Op>, args: &[&str]) -> Result<Type, String> {
    let args: Vec<TensorType> = args.iter().map(|text| ty(text)).collect();
    op.into().infer(&args.iter().collect::<Vec<_>>()).map_err(|e| {
        let at = e.operand.map_or(String::new(), |i| format!(" @{i}"));
        let help = e.help.map_or(String::new(), |h| format!(" ({h})"));
        format!("{}{at}{help}", e.message)
    })
}

#[track_caller]
fn accepts(op: impl Into<Op>, args: &[&str], want: &str) {
    assert_eq!(infer(op, args).map(|ty| ty.to_string()), Ok(want.to_string()));
}

#[track_caller]
fn refuses(op: impl Into<Op>, args: &[&str], want: &str) {
    assert_eq!(infer(op, args), Err(want.to_string()));
}

fn real(x: f64) -> Real {
    Real::new(x)
}

fn freqs() -> rope_freqs::RopeFreqs {
    rope_freqs::RopeFreqs {
        width: Dim::sym("p"),
        theta: real(1e4),
        pairs: Word::from("halves"),
        factor: real(40.0),
        beta_fast: real(32.0),
        beta_slow: real(1.0),
        original: 4096,
    }
}

fn noaux(groups: i64, kept: i64) -> route_noaux_tc::RouteNoauxTc {
    let k = Dim::from(5);
    route_noaux_tc::RouteNoauxTc { k, groups, kept, normalize: true, scale: real(2.5) }
}

fn limited(k: Dim) -> route_group_limited_greedy::RouteGroupLimitedGreedy {
    route_group_limited_greedy::RouteGroupLimitedGreedy { k, groups: 8, kept: 3, scale: real(1.0) }
}

#[test]
fn reductions() {
    accepts(sum::Sum { axis: 1 }, &["bf16[b, s, 7]"], "bf16[b, 1, 7]");
    accepts(mean::Mean { axis: 2 }, &["f32[b, s, m]"], "f32[b, s, 1]");
    accepts(max::Max { axis: 0 }, &["f32[b]"], "f32[1]");
    refuses(sum::Sum { axis: 3 }, &["f32[b, s, m]"], "there is no axis 3 in f32[b, s, m] @0");
    refuses(max::Max { axis: -1 }, &["f32[b]"], "there is no axis -1 in f32[b] @0");
    refuses(
        mean::Mean { axis: 0 },
        &["i32[b]"],
        "`mean` takes floats, not i32 @0 (cast it first: `.cast(F32)`)",
    );
}

#[test]
fn concat() {
    let op = || concat::Concat { axis: 1 };
    accepts(op(), &["f32[b, s]", "f32[b, 3]", "f32[b, s]"], "f32[b, 2*s+3]");
    refuses(
        op(),
        &["f32[b, s]", "bf16[b, s]"],
        "the first operand has f32 elements but the other bf16 @1 (cast one of them: `.cast(F32)`)",
    );
    refuses(op(), &["f32[b, s]", "f32[s, s]"], "f32[s, s] does not fit f32[b, s] but for axis 1 @1");
    refuses(op(), &["f32[b, s]", "f32[b]"], "f32[b] does not fit f32[b, s] but for axis 1 @1");
    refuses(op(), &["f32[b]"], "there is no axis 1 in f32[b] @0");
    refuses(op(), &[], "`concat` takes at least 1 operand, not 0");
    let f8 = "`concat` takes no scales, but the operand is f8e4m3[b, s] @0 (dequantize it first)";
    refuses(op(), &["f8e4m3[b, s]"], f8);
}

#[test]
fn full() {
    let op = |value, dtype| full::Full { value: real(value), shape: Dims(vec![Dim::sym("b")]), dtype };
    accepts(op(0.5, DType::Bf16), &[], "bf16[b]");
    accepts(op(-3.0, DType::I32), &[], "i32[b]");
    refuses(op(0.5, DType::I32), &[], "0.5 is not an i32");
    refuses(op(3e9, DType::I32), &[], "3000000000.0 is not an i32");
    refuses(op(1.0, DType::F8E5M2), &[], "`full` makes no f8e5m2: 8-bit floats have scales");
}

#[test]
fn softmaxes() {
    accepts(softmax::Softmax {}, &["f32[b, t]"], "f32[b, t]");
    refuses(softmax::Softmax {}, &["f32[]"], "`softmax` runs along the last axis, but f32[] has none @0");
    let op = || causal_softmax::CausalSoftmax {};
    accepts(op(), &["f32[b, h, s, t]", "i32[b]"], "f32[b, h, s, t]");
    accepts(op(), &["f32[b, s, t]", "i64[b]"], "f32[b, s, t]");
    refuses(op(), &["f32[s, t]", "i32[b]"], "the scores f32[s, t] should have the axes [b, ..., s, t] @0");
    refuses(
        op(),
        &["f32[b, s, t]", "f32[b]"],
        "`causal_softmax` takes integers for the start, not f32[b] @1",
    );
    refuses(op(), &["f32[b, s, t]", "i32[s]"], "the batch of the scores is b, but here it is s @1");
    refuses(op(), &["f32[b, s, t]"], "`causal_softmax` takes 2 operands, not 1");
}

#[test]
fn rows() {
    accepts(embedding::Embedding {}, &["bf16[w, m]", "i64[b, s]"], "bf16[b, s, m]");
    refuses(
        embedding::Embedding {},
        &["bf16[w, m]", "f32[b, s]"],
        "`embedding` takes integers for the ids, not f32[b, s] @1",
    );
    refuses(
        embedding::Embedding {},
        &["bf16[w]", "i32[b]"],
        "the table bf16[w] should have the axes [w, m] @0",
    );
    accepts(take_row::TakeRow {}, &["f32[b, s, m]", "i32[b]"], "f32[b, m]");
    refuses(
        take_row::TakeRow {},
        &["f32[b, s]", "i32[b]"],
        "the input f32[b, s] should have the axes [b, s, m, ...] @0",
    );
    refuses(
        take_row::TakeRow {},
        &["f32[b, s, m]", "i32[s]"],
        "the batch of the input is b, but here it is s @1",
    );
    accepts(positions::Positions { new: Dim::sym("s") }, &["i64[b]"], "i32[b, s]");
    refuses(
        positions::Positions { new: Dim::sym("s") },
        &["i32[b, s]"],
        "the start i32[b, s] should have the axes [b] @0",
    );
    let by = |to| quantize_by::QuantizeBy { to, least: eva_ir::attr::Real::new(1e-12) };
    accepts(by(DType::F8E4M3), &["bf16[b, t]", "f32[]"], "f8e4m3[b/*, t/*]");
    refuses(by(DType::F8E4M3), &["f32[b]", "f32[1]"], "the largest magnitude is f32[1], not one number @1");
    refuses(by(DType::F16), &["f32[b]", "f32[]"], "`quantize_by` makes f8e4m3 or f8e5m2, not f16");

    let op = || quantize_stats::QuantizeStats {};
    accepts(op(), &["bf16[b, t, r]", "bf16[b, t, r]", "f32[]"], "f32[b, t, 6]");
    refuses(
        op(),
        &["bf16[b, t]", "f32[b, t]", "f32[]"],
        "the rounded numbers f32[b, t] are not like bf16[b, t] @1",
    );
    refuses(op(), &["f32[t]", "f32[t]", "f32[1]"], "the limit is f32[1], not one number @2");
    refuses(op(), &["f32[]", "f32[]", "f32[]"], "`quantize_stats` takes rows, not f32[] @0");

    accepts(assign::Assign {}, &["bf16[b, t]", "bf16[b, t]"], "bf16[b, t]");
    refuses(
        assign::Assign {},
        &["f32[b, t]", "bf16[b, t]"],
        "the state is f32[b, t], but its new value bf16[b, t] @1 (cast it: `.cast(F32)`)",
    );
    refuses(
        assign::Assign {},
        &["f32[b, t]", "f32[b]"],
        "the state is f32[b, t], but its new value f32[b] @1",
    );

    let op = || cache_write::CacheWrite {};
    accepts(op(), &["bf16[b, t, r]", "bf16[b, s, r]", "i32[b]"], "bf16[b, t, r]");
    refuses(
        op(),
        &["bf16[b, t, r]", "f32[b, s, r]", "i32[b]"],
        "the cache has bf16 elements but the new rows f32 @1 (cast one of them: `.cast(BF16)`)",
    );
    refuses(
        op(),
        &["f32[b, t, r]", "f32[b, s, p]", "i32[b]"],
        "the new rows f32[b, s, p] do not fit f32[b, t, r] but for axis 1 @1",
    );
    refuses(op(), &["f32[b, t]", "f32[b, s]", "i32[t]"], "the batch of the cache is b, but here it is t @2");
}

#[test]
fn pages() {
    let op = || page_write::PageWrite {};
    accepts(op(), &["bf16[g, 16, r]", "bf16[b, s, r]", "i32[b, k]", "i64[b]"], "bf16[g, 16, r]");
    accepts(op(), &["f32[g, t]", "f32[b, s]", "i32[b, k]", "i32[b]"], "f32[g, t]");
    refuses(
        op(),
        &["f32[g, 16, r]", "bf16[b, s, r]", "i32[b, k]", "i32[b]"],
        "the pool has f32 elements but the new rows bf16 @1 (cast one of them: `.cast(F32)`)",
    );
    refuses(
        op(),
        &["f32[g, 16, r]", "f32[b, s, p]", "i32[b, k]", "i32[b]"],
        "the new rows f32[b, s, p] do not fit f32[g, 16, r] but for axes 0 and 1 @1",
    );
    refuses(
        op(),
        &["f32[g, 16, r]", "f32[b, s, r]", "f32[b, k]", "i32[b]"],
        "`page_write` takes integers for the table, not f32[b, k] @2",
    );
    refuses(
        op(),
        &["f32[g, 16, r]", "f32[b, s, r]", "i32[s, k]", "i32[b]"],
        "the batch of the new rows is b, but here it is s @2",
    );
    refuses(
        op(),
        &["f32[g, 16, r]", "f32[b, s, r]", "i32[b, k]", "i32[b, s]"],
        "the start i32[b, s] should have the axes [b] @3",
    );
    let read = || page_read::PageRead { tokens: Dim::sym("t") };
    accepts(read(), &["bf16[g, 16, h, r]", "i32[b, k]"], "bf16[b, t, h, r]");
    accepts(read(), &["i32[g, 7]", "i64[b, k]"], "i32[b, t]");
    refuses(read(), &["f32[g]", "i32[b, k]"], "the pool f32[g] should have the axes [g, r, ...] @0");
    refuses(read(), &["f32[g, 16]", "i32[b]"], "the table i32[b] should have the axes [b, k] @1");
}

#[test]
fn rotary_positions() {
    accepts(freqs(), &[], "f32[2, p]");
    let bad = |f: fn(&mut rope_freqs::RopeFreqs), want: &str| {
        let mut op = freqs();
        f(&mut op);
        refuses(op, &[], want);
    };
    bad(|op| op.width = Dim::from(7), "rotary columns come in pairs, but there are 7");
    bad(|op| op.pairs = Word::from("whole"), "`pairs` is `interleaved` or `halves`, not `whole`");
    bad(|op| op.theta = real(1.0), "`theta` is 1.0, which is not above 1.0");
    bad(|op| op.beta_slow = real(0.0), "`beta_slow` is 0.0, which is not above 0.0");
    bad(|op| op.original = -4, "`original` is -4.0, which is not above 0.0");
    bad(|op| op.factor = real(f64::NAN), "`factor` is NaN, which is not above 0.0");

    let table = || rope_table::RopeTable { factor: real(1.0) };
    accepts(table(), &["i32[b, s]", "f32[2, p]"], "f32[b, s, 2, p]");
    refuses(
        table(),
        &["i32[b, s]", "f32[3, p]"],
        "the number of rows (frequencies, signs) is 2, but here it is 3 @1",
    );
    refuses(
        table(),
        &["f32[b, s]", "f32[2, p]"],
        "`rope_table` takes integers for the positions, not f32[b, s] @0",
    );

    let rope = |pairs: &str| rope::Rope { pairs: Word::from(pairs) };
    accepts(rope("halves"), &["bf16[b, s, h, p]", "f32[b, s, 2, p]"], "bf16[b, s, h, p]");
    accepts(rope("interleaved"), &["f32[b, s, p]", "f32[b, s, 2, p]"], "f32[b, s, p]");
    refuses(
        rope("thirds"),
        &["f32[b, s, p]", "f32[b, s, 2, p]"],
        "`pairs` is `interleaved` or `halves`, not `thirds`",
    );
    refuses(
        rope("halves"),
        &["f32[b, s, p]", "f32[b, s, 2, n]"],
        "the last axis of the input is p, but here it is n @1",
    );
    refuses(
        rope("halves"),
        &["f32[b, s, p]", "bf16[b, s, 2, p]"],
        "`rope` takes f32 for the table, not bf16[b, s, 2, p] @1 (cast it first: `.cast(F32)`)",
    );
    refuses(
        rope("halves"),
        &["f32[b, t, p]", "f32[b, s, 2, p]"],
        "the number of tokens of the input is t, but here it is s @1",
    );
    refuses(
        rope("halves"),
        &["f32[b, s, 9]", "f32[b, s, 2, 9]"],
        "rotary columns come in pairs, but there are 9",
    );
}

#[test]
fn routers() {
    accepts(noaux(3, 2), &["f32[t, 24]", "f32[24]"], "(i32[t, 5], f32[t, 5])");
    accepts(noaux(3, 2), &["f32[t, e]", "f32[e]"], "(i32[t, 5], f32[t, 5])");
    refuses(noaux(3, 2), &["f32[t, 24]", "f32[e]"], "the number of experts is 24, but here it is e @1");
    refuses(noaux(3, 4), &["f32[t, e]", "f32[e]"], "4 of 3 groups cannot be kept");
    refuses(noaux(5, 4), &["f32[t, 24]", "f32[24]"], "24 experts do not make 5 equal groups");
    refuses(noaux(12, 2), &["f32[t, 24]", "f32[24]"], "5 experts cannot be chosen from 2 groups of 2");
    refuses(
        noaux(24, 8),
        &["f32[t, 24]", "f32[24]"],
        "a group is scored by its 2 best experts, but 24 groups of 24 have 1",
    );
    refuses(
        noaux(1, 1),
        &["bf16[t, e]", "f32[e]"],
        "`route_noaux_tc` takes f32 for the logits, not bf16[t, e] @0 (cast it first: `.cast(F32)`)",
    );
    let greedy = |k: i64| route_greedy::RouteGreedy { k: Dim::from(k), scale: real(1.0) };
    accepts(greedy(3), &["f32[t, e]"], "(i32[t, 3], f32[t, 3])");
    refuses(greedy(7), &["f32[t, 6]"], "7 experts cannot be chosen from 6");
    refuses(greedy(0), &["f32[t, e]"], "0 experts cannot be chosen");
    refuses(greedy(2), &["f32[b, s, e]"], "the logits f32[b, s, e] should have the axes [t, e] @0");
    accepts(limited(Dim::sym("k")), &["f32[t, 160]"], "(i32[t, k], f32[t, k])");
    refuses(limited(Dim::from(6)), &["f32[t, 12]"], "12 experts do not make 8 equal groups");
}

#[test]
fn experts() {
    let sort = || sort_by_expert::SortByExpert { experts: Dim::sym("e") };
    accepts(sort(), &["i32[t, k]"], "(i32[k*t], i32[t, k], i32[e+1])");
    refuses(sort(), &["f32[t, k]"], "`sort_by_expert` takes integers for the experts, not f32[t, k] @0");
    let dispatch = || dispatch::Dispatch { k: Dim::sym("k") };
    accepts(dispatch(), &["bf16[b*s, m]", "i32[b*k*s]"], "bf16[b*k*s, m]");
    refuses(
        dispatch(),
        &["f32[t, m]", "i32[g]"],
        "the number of items, k for each of t rows, is k*t, but here it is g @1",
    );
    accepts(combine::Combine {}, &["bf16[k*t, m]", "i32[t, k]", "f32[t, k]"], "bf16[t, m]");
    refuses(
        combine::Combine {},
        &["f32[k*t, m]", "i32[t, k]", "f32[k, t]"],
        "the weights f32[k, t] do not fit the positions i32[t, k] @2",
    );
    refuses(
        combine::Combine {},
        &["f32[t, m]", "i32[t, k]", "f32[t, k]"],
        "the number of positions is k*t, but here it is t @0",
    );
}

#[test]
fn losses() {
    accepts(cross_entropy::CrossEntropy {}, &["bf16[n, w]", "i64[n]"], "f32[]");
    refuses(
        cross_entropy::CrossEntropy {},
        &["f32[b, s, w]", "i64[b]"],
        "the logits f32[b, s, w] should have the axes [n, w] @0",
    );
    refuses(
        cross_entropy::CrossEntropy {},
        &["f32[n, w]", "i64[w]"],
        "the number of rows of the logits is n, but here it is w @1",
    );
}
