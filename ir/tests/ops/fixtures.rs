//! What the ops mean, against the golden data.

use eva_ir::attr::{Real, Spec, Word};
use eva_ir::dim::Dim;
use eva_ir::eval::{Array, Sizes};
use eva_ir::ops::*;
use safetensors::{Dtype, SafeTensors};

/// A file of golden data.
pub struct Golden(Vec<u8>);

impl Golden {
    pub fn open(path: &str) -> Self {
        let path = format!("{}/../tests/fixtures/{path}.safetensors", env!("CARGO_MANIFEST_DIR"));
        Self(std::fs::read(&path).unwrap_or_else(|e| panic!("{path}: {e}")))
    }

    pub fn get(&self, name: &str) -> Array {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let tensor = file.tensor(name).unwrap();
        let bytes = tensor.data();
        macro_rules! read {
            ($ty:ty) => {{
                let (items, rest) = bytes.as_chunks();
                assert!(rest.is_empty());
                items.iter().map(|&b| <$ty>::from_le_bytes(b) as f64).collect()
            }};
        }
        let data = match tensor.dtype() {
            Dtype::F32 => read!(f32),
            Dtype::F64 => read!(f64),
            Dtype::I64 => read!(i64),
            other => panic!("{other:?}"),
        };
        Array::new(tensor.shape(), data)
    }
}

pub fn eval(op: impl Into<Op>, args: &[&Array]) -> Vec<Array> {
    op.into().eval(&Sizes::default(), args)
}

pub fn one(op: impl Into<Op>, args: &[&Array]) -> Array {
    eval(op, args).pop().unwrap()
}

pub fn einsum(spec: &str, args: &[&Array]) -> Array {
    one(einsum::Einsum { spec: spec.parse::<Spec>().unwrap() }, args)
}

#[track_caller]
pub fn assert_close(have: &Array, want: &Array, tolerance: f64) {
    assert_eq!(have.shape, want.shape);
    for (i, (a, b)) in have.data.iter().zip(&want.data).enumerate() {
        let close = (a - b).abs() <= tolerance * b.abs().max(1.0);
        assert!(close, "element {i} is {a}, not {b}");
    }
}

pub fn reshape(x: &Array, shape: &[usize]) -> Array {
    Array::new(shape, x.data.clone())
}

/// `freqs` of a fixture's case.
fn freqs(case: &str, pairs: &str) -> rope_freqs::RopeFreqs {
    let (width, theta, factor, beta_fast, original) = match case {
        "v3" | "v2lite" => (64, 1e4, 40.0, 32.0, 4096),
        "tiny" => (16, 1e4, 40.0, 32.0, 4096),
        "plain" => (16, 1e4, 1.0, 32.0, 4096),
        "ratio" => (20, 5e4, 8.0, 16.0, 512),
        other => panic!("{other}"),
    };
    rope_freqs::RopeFreqs {
        width: Dim::from(width),
        theta: Real::new(theta),
        pairs: Word::from(pairs),
        factor: Real::new(factor),
        beta_fast: Real::new(beta_fast),
        beta_slow: Real::new(if case == "ratio" { 2.0 } else { 1.0 }),
        original,
    }
}

/// The factor on cosines and sines.
fn factor(case: &str) -> f64 {
    let m = |mu: f64| 0.1 * mu * 8f64.ln() + 1.0;
    if case == "ratio" { m(1.0) / m(0.5) } else { 1.0 }
}

const ROPE_CASES: [&str; 5] = ["v3", "v2lite", "tiny", "plain", "ratio"];

#[test]
fn rope_frequencies_are_those_of_transformers() {
    let golden = Golden::open("ops/rope");
    for case in ROPE_CASES {
        let want = golden.get(&format!("{case}.inv_freq"));
        for pairs in ["interleaved", "halves"] {
            let have = one(freqs(case, pairs), &[]);
            let n = want.data.len();
            for i in 0..n {
                let [a, b] = if pairs == "halves" { [i, i + n] } else { [2 * i, 2 * i + 1] };
                for column in [a, b] {
                    assert_eq!(have.at(&[0, column]), want.data[i], "{case}, pair {i}");
                }
                assert_eq!([have.at(&[1, a]), have.at(&[1, b])], [-1.0, 1.0]);
            }
        }
    }
}

#[test]
fn rotations_are_those_of_transformers() {
    let golden = Golden::open("ops/rope");
    for case in ROPE_CASES {
        let get = |name: &str| golden.get(&format!("{case}.{name}"));
        let positions = get("positions");
        let n = positions.data.len();
        // Both batches of `q` have the same positions.
        let twice = Array::from_fn(&[2, n], |i| positions.data[i[1]]);
        for (pairs, suffix) in [("interleaved", ""), ("halves", "_halfsplit")] {
            let freqs = one(freqs(case, pairs), &[]);
            let table = rope_table::RopeTable { factor: Real::new(factor(case)) };
            let table = one(table, &[&twice, &freqs]);
            let half = freqs.shape[1] / 2;
            for (row, name) in [(0, "cos"), (1, "sin")] {
                let want = get(name);
                // The second column of each pair has the plain sine.
                let second = |i: usize| if pairs == "halves" { half + i } else { 2 * i + 1 };
                let have = Array::from_fn(&want.shape, |i| table.at(&[1, i[0], row, second(i[1])]));
                assert_close(&have, &want, 3e-7);
            }
            for (name, b) in [("q", 2), ("k", 1)] {
                let x = get(name);
                // The fixtures' inputs are interleaved.
                let given = Array::from_fn(&x.shape, |i| {
                    let c = i[2];
                    let c = if pairs == "halves" { c % half * 2 + c / half } else { c };
                    x.at(&[i[0], i[1], c])
                });
                let table = Array::from_fn(&[b, n, 2, 2 * half], |i| table.at(i));
                let rope = rope::Rope { pairs: Word::from(pairs) };
                let have = one(rope.clone(), &[&given, &table]);
                assert_close(&have, &get(&format!("{name}_out{suffix}")), 2e-6);
                // Axes between tokens and columns turn alike.
                let shape = [b, n, 1, 2 * half];
                assert_eq!(one(rope, &[&reshape(&given, &shape), &table]), reshape(&have, &shape));
            }
        }
    }
}

#[test]
fn rms_norm_is_that_of_pytorch() {
    let golden = Golden::open("ops/rmsnorm");
    let op = rms_norm::RmsNorm { eps: Real::new(1e-6) };
    assert_close(&one(op, &[&golden.get("x"), &golden.get("weight")]), &golden.get("y"), 1e-6);
}

#[test]
fn swiglu_is_that_of_pytorch() {
    let golden = Golden::open("ops/swiglu");
    let gate = one(silu::Silu {}, &[&golden.get("gate")]);
    assert_close(&one(mul::Mul {}, &[&gate, &golden.get("up")]), &golden.get("y"), 1e-6);
}

/// The router of a fixture's case.
pub fn router(case: &str) -> Op {
    let v3 = |k: i64, groups, kept, normalize, scale| {
        let (k, scale) = (Dim::from(k), Real::new(scale));
        Op::from(route_noaux_tc::RouteNoauxTc { k, groups, kept, normalize, scale })
    };
    match case {
        "v3" | "v3_large_bias" => v3(8, 8, 4, true, 2.5),
        "v3_negative_bias" => v3(5, 3, 2, true, 2.5),
        "v3_no_norm" => v3(5, 3, 2, false, 1.7),
        "v3_one_group" => v3(5, 1, 1, true, 2.5),
        "v2_greedy" => route_greedy::RouteGreedy { k: Dim::from(6), scale: Real::new(1.0) }.into(),
        "v2_group_limited" => {
            let (k, scale) = (Dim::from(6), Real::new(16.0));
            route_group_limited_greedy::RouteGroupLimitedGreedy { k, groups: 8, kept: 3, scale }.into()
        }
        other => panic!("{other}"),
    }
}

pub const ROUTER_CASES: [&str; 7] = [
    "v3",
    "v3_large_bias",
    "v3_negative_bias",
    "v3_no_norm",
    "v3_one_group",
    "v2_greedy",
    "v2_group_limited",
];

/// Checks experts and weights against a fixture's, which has them in ascending order of experts.
pub fn assert_routing(case: &str, have: &[Array], golden: &Golden) {
    let get = |name: &str| golden.get(&format!("{case}.{name}"));
    let (idx, weight) = (get("topk_idx"), get("topk_weight"));
    assert_eq!(have[0].shape, idx.shape);
    let k = idx.shape[1];
    for t in 0..idx.shape[0] {
        let mut order: Vec<usize> = (0..k).collect();
        order.sort_by_key(|&j| have[0].at(&[t, j]) as i64);
        for (j, &from) in order.iter().enumerate() {
            assert_eq!(have[0].at(&[t, from]), idx.at(&[t, j]), "{case}, token {t}");
            let (a, b) = (have[1].at(&[t, from]), weight.at(&[t, j]));
            assert!((a - b).abs() <= 2e-6 * b.abs().max(1.0), "{case}, token {t}: {a}, not {b}");
        }
    }
}

#[test]
fn routers_choose_as_those_of_transformers() {
    let golden = Golden::open("ops/gate");
    for case in ROUTER_CASES {
        let logits = golden.get(&format!("{case}.logits"));
        let have = if case.starts_with("v3") {
            eval(router(case), &[&logits, &golden.get(&format!("{case}.bias"))])
        } else {
            eval(router(case), &[&logits])
        };
        assert_routing(case, &have, &golden);
    }
}

#[test]
fn routers_list_the_best_first_and_the_lowest_index_of_equals() {
    let logits = Array::new(&[1, 5], vec![0.5, 2.0, 2.0, -1.0, 3.0]);
    let op = route_greedy::RouteGreedy { k: Dim::from(4), scale: Real::new(1.0) };
    let have = eval(op, &[&logits]);
    assert_eq!(have[0].data, [4.0, 1.0, 2.0, 0.0]);
    assert!(have[1].data[0] > have[1].data[1] && have[1].data[1] == have[1].data[2]);
}

/// The fixture's attention, which expands keys and values.
#[test]
fn causal_attention_is_that_of_pytorch() {
    let golden = Golden::open("ops/attention");
    let get = |name: &str| golden.get(name);
    let kv = reshape(&get("kv_b_proj"), &[3, 22, 16]);
    let part = |range: std::ops::Range<usize>| {
        Array::from_fn(&[3, range.len(), 16], |i| kv.at(&[i[0], range.start + i[1], i[2]]))
    };
    let latent = get("latent");
    let keys = einsum("btr,hnr->bthn", &[&latent, &part(0..12)]);
    let values = einsum("btr,hvr->bthv", &[&latent, &part(12..22)]);
    let scores = [
        einsum("bhsn,bthn->bhst", &[&get("q_nope"), &keys]),
        einsum("bhsp,btp->bhst", &[&get("q_rope"), &get("k_rope")]),
    ];
    let scores = one(add::Add {}, &[&scores[0], &scores[1]]);
    let scores = one(scale::Scale { by: Real::new(get("scale").data[0]) }, &[&scores]);
    let start = Array::new(&[2], vec![0.0; 2]);
    let probs = one(causal_softmax::CausalSoftmax {}, &[&scores, &start]);
    assert_close(&einsum("bhst,bthv->bhsv", &[&probs, &values]), &get("out"), 3e-6);

    // The last tokens alone, with the others cached.
    let last = Array::from_fn(&[2, 3, 7, 20], |i| scores.at(&[i[0], i[1], i[2] + 13, i[3]]));
    let have = one(causal_softmax::CausalSoftmax {}, &[&last, &Array::new(&[2], vec![13.0; 2])]);
    let want = Array::from_fn(&[2, 3, 7, 20], |i| probs.at(&[i[0], i[1], i[2] + 13, i[3]]));
    assert_close(&have, &want, 1e-15);
}

#[test]
fn cross_entropy_is_that_of_pytorch() {
    let golden = Golden::open("v3-tiny/expected");
    let (logits, labels) = (golden.get("logits"), golden.get("labels"));
    let [b, t, w] = logits.shape[..] else { panic!() };
    // Each row predicts the next token; the last of each sequence has none to predict.
    let labels = Array::from_fn(&[b * t], |i| {
        let (b, s) = (i[0] / t, i[0] % t);
        if s + 1 < t { labels.at(&[b, s + 1]) } else { -100.0 }
    });
    let have = one(cross_entropy::CrossEntropy {}, &[&reshape(&logits, &[b * t, w]), &labels]);
    assert_close(&have, &golden.get("loss"), 1e-6);
    let none = Array::new(&[b * t], vec![-100.0; b * t]);
    assert_eq!(one(cross_entropy::CrossEntropy {}, &[&reshape(&logits, &[b * t, w]), &none]).data, [0.0]);
}

#[test]
fn experts_get_their_tokens_in_order() {
    let expert = Array::new(&[3, 2], vec![2.0, 0.0, 0.0, 3.0, 2.0, 0.0]);
    let parts = eval(sort_by_expert::SortByExpert { experts: Dim::from(5) }, &[&expert]);
    assert_eq!(parts[0].data, [1.0, 2.0, 5.0, 0.0, 4.0, 3.0]);
    assert_eq!(parts[1].data, [3.0, 0.0, 1.0, 5.0, 4.0, 2.0]);
    assert_eq!(parts[2].data, [0.0, 3.0, 3.0, 5.0, 6.0, 6.0]);

    let x = Array::from_fn(&[3, 4], |i| (10 * i[0] + i[1]) as f64);
    let rows = one(dispatch::Dispatch { k: Dim::from(2) }, &[&x, &parts[0]]);
    assert_eq!(rows.rows().map(|row| row[0]).collect::<Vec<_>>(), [0.0, 10.0, 20.0, 0.0, 20.0, 10.0]);
    // Experts that do nothing give the tokens back, weighted.
    let weight = Array::new(&[3, 2], vec![0.5, 1.5, 1.0, 0.0, -1.0, 4.0]);
    let have = one(combine::Combine {}, &[&rows, &parts[1], &weight]);
    assert_eq!(have, Array::from_fn(&[3, 4], |i| x.at(i) * [2.0, 1.0, 3.0][i[0]]));
}

#[test]
fn rows_that_are_not_there_are_zero() {
    let table = Array::from_fn(&[3, 2], |i| (1 + 2 * i[0] + i[1]) as f64);
    let ids = Array::new(&[4], vec![2.0, -1.0, 3.0, 0.0]);
    let have = one(embedding::Embedding {}, &[&table, &ids]);
    assert_eq!(have.data, [5.0, 6.0, 0.0, 0.0, 0.0, 0.0, 1.0, 2.0]);

    let x = Array::from_fn(&[2, 3, 1], |i| (1 + 3 * i[0] + i[1]) as f64);
    let at = |a, b| Array::new(&[2], vec![a, b]);
    assert_eq!(one(take_row::TakeRow {}, &[&x, &at(1.0, 2.0)]).data, [2.0, 6.0]);
    assert_eq!(one(take_row::TakeRow {}, &[&x, &at(3.0, -1.0)]).data, [0.0, 0.0]);

    let new = Array::from_fn(&[2, 2], |i| 10.0 * (1 + 2 * i[0] + i[1]) as f64);
    let cache = Array::new(&[2, 3], vec![0.0; 6]);
    let have = one(cache_write::CacheWrite {}, &[&cache, &new, &at(1.0, 2.0)]);
    assert_eq!(have.data, [0.0, 10.0, 20.0, 0.0, 0.0, 30.0]);
}

#[test]
fn axes_are_folded_and_joined() {
    let x = Array::from_fn(&[2, 3], |i| [[1.0, -2.0, 4.0], [0.5, 3.0, -7.0]][i[0]][i[1]]);
    let sum = one(sum::Sum { axis: 1 }, &[&x]);
    assert_eq!((sum.shape.as_slice(), sum.data.as_slice()), ([2, 1].as_slice(), [3.0, -3.5].as_slice()));
    let mean = one(mean::Mean { axis: 0 }, &[&x]);
    assert_eq!(
        (mean.shape.as_slice(), mean.data.as_slice()),
        ([1, 3].as_slice(), [0.75, 0.5, -1.5].as_slice())
    );
    assert_eq!(one(max::Max { axis: 1 }, &[&x]).data, [4.0, 3.0]);

    let joined = one(concat::Concat { axis: 1 }, &[&x, &sum, &x]);
    assert_eq!(joined.shape, [2, 7]);
    assert_eq!(joined.data[7..], [0.5, 3.0, -7.0, -3.5, 0.5, 3.0, -7.0]);
    let start = Array::new(&[2], vec![4.0, 9.0]);
    assert_eq!(one(positions::Positions { new: Dim::from(2) }, &[&start]).data, [4.0, 5.0, 9.0, 10.0]);
}
