//! Attention and its backward: kernels against their meaning, and that against finite differences.

use super::fixtures::{Golden, assert_close, einsum as product, eval, reshape};
use super::harness::Case;
use eva_ir::attr::Real;
use eva_ir::eval::{Array, Sizes};
use eva_ir::ops::*;

/// Forms of attention: the spec, the types of queries, keys and values, and of the result.
const FORMS: [(&str, &[&str]); 5] = [
    // Expanded, with a rotary key that heads share.
    (
        "bshn,bthn,bshp,btp,bthv->bshv",
        &["f32[b, s, h, n]", "f32[b, t, h, n]", "f32[b, s, h, p]", "f32[b, t, p]", "f32[b, t, h, v]"],
    ),
    // In the latent space: no key has a head.
    (
        "bshn,btn,bshp,btp,btv->bshv",
        &["f32[b, s, h, n]", "f32[b, t, n]", "f32[b, s, h, p]", "f32[b, t, p]", "f32[b, t, v]"],
    ),
    // Values that heads share, and axes in another order.
    ("bhsn,thbn,vbt->bshv", &["f32[b, h, s, n]", "f32[t, h, b, n]", "f32[v, b, t]"]),
    // Two axes of heads, of which keys have one.
    ("bsghn,btgn,btgv->bsghv", &["f32[b, s, g, h, n]", "f32[b, t, g, n]", "f32[b, t, g, v]"]),
    // None.
    ("bsn,btn,btv->bsv", &["f32[b, s, n]", "f32[b, t, n]", "f32[b, t, v]"]),
];

/// Extents with a value at compile time, and at run time only.
const WIDTHS: [(&str, i64); 5] = [("n", 6), ("p", 3), ("v", 5), ("g", 3), ("h", 2)];
const LENGTHS: [[(&str, i64); 3]; 3] =
    [[("b", 2), ("s", 7), ("t", 11)], [("b", 1), ("s", 1), ("t", 13)], [("b", 2), ("s", 9), ("t", 9)]];

/// How many tokens came before, by row: keys behind those that any token sees are there too.
fn starts(lengths: &[(&str, i64); 3]) -> Array {
    let [(_, b), (_, s), (_, t)] = *lengths;
    Array::new(&[b as usize], (0..b).map(|row| (t - s - row).max(0) as f64).collect())
}

fn wild(operand: usize, i: usize) -> f64 {
    let x = (operand * 7919 + i * 104_729 + 17) as f64;
    f64::from(((x * 0.618_033_988_749).fract() * 3.0 - 1.5) as f32)
}

fn sizes_of(sizes: &[(&str, i64)]) -> Sizes {
    Sizes(sizes.iter().map(|&(name, n)| (name.into(), n)).collect())
}

/// The types of the backward's operands.
fn backward_types(spec: &str, types: &[&'static str]) -> Vec<String> {
    let out = spec.split_once("->").unwrap().1;
    let axes = |letters: &str| letters.chars().map(String::from).collect::<Vec<_>>().join(", ");
    let heads: String = out.chars().filter(|c| "gh".contains(*c)).collect();
    let sums = format!("f32[{}]", axes(&format!("b{heads}s")));
    let own = types.iter().map(|ty| ty.to_string());
    own.chain(["i32[b]".into(), sums.clone(), sums, format!("f32[{}]", axes(out))]).collect()
}

const SCALE: f64 = 0.3;

fn each(check: impl Fn(&str, &[&'static str], &[(&'static str, i64); 3])) {
    for (spec, types) in FORMS {
        for lengths in &LENGTHS {
            check(spec, types, lengths);
        }
    }
}

#[test]
fn forward_kernels() {
    each(|spec, types, lengths| {
        let types: Vec<&str> = types.iter().copied().chain(["i32[b]"]).collect();
        let (spec, scale) = (spec.parse::<eva_ir::attr::Spec>().unwrap(), Real::new(SCALE));
        let ops: [Op; 2] = [
            attend::Attend { spec: spec.clone(), scale }.into(),
            attend_lse::AttendLse { spec, scale }.into(),
        ];
        for op in ops {
            let case = Case::new(op, &types, &WIDTHS, lengths);
            let mut args = case.arrays(wild);
            *args.last_mut().unwrap() = starts(lengths);
            case.check(&args, 2e-6);
        }
    });
}

#[test]
fn backward_kernels() {
    each(|spec, types, lengths| {
        let types = backward_types(spec, types);
        let types: Vec<&str> = types.iter().map(String::as_str).collect();
        let (spec, scale) = (spec.parse::<eva_ir::attr::Spec>().unwrap(), Real::new(SCALE));
        let ops: [Op; 2] = [
            attend_grad_queries::AttendGradQueries { spec: spec.clone(), scale }.into(),
            attend_grad_keys::AttendGradKeys { spec, scale }.into(),
        ];
        for op in ops {
            for fixed in [false, true] {
                let all: Vec<_> = WIDTHS.iter().chain(lengths).copied().collect();
                let case = if fixed {
                    Case::new(op.clone(), &types, &all, &[])
                } else {
                    Case::new(op.clone(), &types, &WIDTHS, lengths)
                };
                let mut args = case.arrays(wild);
                let n = args.len();
                args[n - 4] = starts(lengths);
                // Sums of exponentials are what they are of some scores.
                args[n - 3] = args[n - 3].map(|x| x.abs() + 1.0);
                case.check(&args, 4e-6);
            }
        }
    });
}

/// `d Σ o·w / d x`, one element at a time, for the gradients of every operand.
#[test]
fn gradients_are_finite_differences() {
    each(|spec, types, lengths| {
        let sizes: Vec<_> = WIDTHS.iter().chain(lengths).copied().collect();
        let types = backward_types(spec, types);
        let names: Vec<&str> = types.iter().map(String::as_str).collect();
        let (parsed, scale) = (spec.parse::<eva_ir::attr::Spec>().unwrap(), Real::new(SCALE));
        let grad_queries = attend_grad_queries::AttendGradQueries { spec: parsed.clone(), scale };
        let grad_keys = attend_grad_keys::AttendGradKeys { spec: parsed.clone(), scale };
        let forward = Op::from(attend_lse::AttendLse { spec: parsed.clone(), scale });
        let case = Case::new(grad_queries.clone(), &names, &sizes, &[]);
        let mut args = case.arrays(wild);
        let n = args.len() - 4;
        args[n] = starts(lengths);
        let sizes = sizes_of(&sizes);
        let run = |args: &[Array]| forward.eval(&sizes, &args[..=n].iter().collect::<Vec<_>>());
        let loss = |args: &[Array]| -> f64 {
            run(args)[0].data.iter().zip(&args[n + 3].data).map(|(o, w)| o * w).sum()
        };

        let parts = run(&args);
        let (o, grad) = (&parts[0], args[n + 3].clone());
        args[n + 1] = parts[1].clone();
        // Over the values, with the heads before the tokens.
        let out = spec.split_once("->").unwrap().1;
        let heads: String = out.chars().filter(|c| "gh".contains(*c)).collect();
        let delta = einsum::Einsum { spec: format!("{out},{out}->b{heads}s").parse().unwrap() };
        args[n + 2] = Op::from(delta).eval(&sizes, &[o, &grad]).remove(0);

        let all: Vec<&Array> = args.iter().collect();
        let queries = Op::from(grad_queries).eval(&sizes, &all);
        let keys = Op::from(grad_keys.clone()).eval(&sizes, &all);
        let mut gradients: Vec<(usize, Array)> = Vec::new();
        gradients.extend(queries.into_iter().enumerate().map(|(pair, array)| (2 * pair, array)));
        for ((operand, heads), array) in grad_keys.operands().into_iter().zip(grad_keys.heads()).zip(keys) {
            // Heads are summed.
            let m = args[operand].data.len();
            let sum = (0..m).map(|i| array.data.iter().skip(i).step_by(m).sum::<f64>()).collect();
            assert_eq!(array.rank(), args[operand].rank() + heads.len());
            gradients.push((operand, Array::new(&args[operand].shape, sum)));
        }
        assert_eq!(gradients.len(), n);
        for (operand, have) in gradients {
            for i in (0..have.data.len()).step_by(5) {
                let at = |shift: f64| {
                    let mut args = args.clone();
                    args[operand].data[i] += shift;
                    loss(&args)
                };
                let want = (at(1e-4) - at(-1e-4)) / 2e-4;
                let d = (have.data[i] - want).abs();
                assert!(
                    d < 1e-7 * (1.0 + want.abs()),
                    "{spec} operand {operand} {i}: {} {want}",
                    have.data[i]
                );
            }
        }
    });
}

/// The fixture's attention, which expands keys and values: the result, the sums, and all gradients.
#[test]
fn gradients_are_those_of_pytorch() {
    let golden = Golden::open("ops/attention");
    let get = |name: &str| golden.get(name);
    let kv = reshape(&get("kv_b_proj"), &[3, 22, 16]);
    let part = |range: std::ops::Range<usize>| {
        Array::from_fn(&[3, range.len(), 16], |i| kv.at(&[i[0], range.start + i[1], i[2]]))
    };
    let (latent, weights) = (get("latent"), [part(0..12), part(12..22)]);
    let [keys, values] = weights.each_ref().map(|w| product("btr,hnr->bthn", &[&latent, w]));
    let start = Array::new(&[2], vec![0.0; 2]);
    let spec: eva_ir::attr::Spec = "bhsn,bthn,bhsp,btp,bthv->bshv".parse().unwrap();
    let scale = Real::new(get("scale").data[0]);
    let (q, r, rope) = (get("q_nope"), get("q_rope"), get("k_rope"));
    let args = [&q, &keys, &r, &rope, &values, &start];
    let forward = eval(attend_lse::AttendLse { spec: spec.clone(), scale }, &args);
    assert_close(&product("bshv->bhsv", &[&forward[0]]), &get("out"), 3e-6);
    assert_close(&forward[1], &get("lse"), 3e-6);

    let grad = product("bhsv->bshv", &[&get("dout")]);
    let delta = product("bshv,bshv->bhs", &[&forward[0], &grad]);
    let args = [&args[..], &[&forward[1], &delta, &grad]].concat();
    let queries = eval(attend_grad_queries::AttendGradQueries { spec: spec.clone(), scale }, &args);
    assert_close(&queries[0], &get("dq_nope"), 3e-6);
    assert_close(&queries[1], &get("dq_rope"), 3e-6);
    let of_keys = eval(attend_grad_keys::AttendGradKeys { spec, scale }, &args);
    assert_close(&product("hbtp->btp", &[&of_keys[1]]), &get("dk_rope"), 3e-6);
    let expanded = [(&of_keys[0], 0), (&of_keys[2], 12)];
    let mut of_latent = latent.map(|_| 0.0);
    for ((grad, first), w) in expanded.into_iter().zip(&weights) {
        let share = product("bthn,hnr->btr", &[grad, w]);
        of_latent.data.iter_mut().zip(&share.data).for_each(|(x, y)| *x += y);
        let of_weight = product("bthn,btr->hnr", &[grad, &latent]);
        let want = reshape(&get("dkv_b_proj"), &[3, 22, 16]);
        let want = Array::from_fn(&of_weight.shape, |i| want.at(&[i[0], first + i[1], i[2]]));
        assert_close(&of_weight, &want, 3e-6);
    }
    assert_close(&of_latent, &get("dlatent"), 3e-6);
}
