//! A block of experts in bf16 (router, routed experts, a shared one) with more and more experts of which a token has eight:
//! decoding one token, and a prompt of so many tokens that an expert has a given number of rows on the average. What is
//! wanted is a time a token that does not grow with the number of experts.
//!
//! Widths are DeepSeek-V3's on a GPU and DeepSeek-V2-Lite's on the CPU.

use super::lab::{Call, Lab};
use super::layer::reference::Reference;
use super::layer::{INPUTS, LIMIT, MARGIN, TRIES, config, random_weights, shapes, stored};
use super::reference::{part, places, relative_error};
use super::{Bench, BenchError, Case, Measured, Options};
use crate::chart::{Chart, Series};
use crate::model::config::{Config, Moe};
use crate::model::moe::Experts;
use crate::model::weights::Weights as Declared;
use crate::prelude::*;
use eva_passes::Form;
use eva_runtime::{Device, Executable, Session, Tensor as Data, Weights};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Experts of a token.
const PER_TOKEN: usize = 8;

/// Tokens that take turns where one is decoded, so that not all calls have the same experts.
const TURNS: usize = 8;

/// How many tokens are checked, of how many candidates; see [`super::layer::reference::Token::margin`].
const CHECKED: usize = 3;
const CANDIDATES: usize = 12;

/// What a call is.
#[derive(Clone, Copy)]
struct Step {
    experts: usize,
    /// Tokens of a call.
    tokens: usize,
}

/// Decoding, and prompts with some rows an expert and with many, for each number of experts.
pub fn cases(options: &Options) -> Vec<Case> {
    let (counts, rows): (&[usize], &[usize]) = match options.full {
        true => (&[8, 16, 32, 64, 128, 256], if options.device == Device::Cpu { &[64] } else { &[64, 512] }),
        false => (&[8, 40], &[16]),
    };
    let case = |op: &'static str, experts: usize, size: (&'static str, usize), tokens: usize| {
        let words = vec![("op", op.into()), (size.0, size.1.into()), ("experts", experts.into())];
        let step = Step { experts, tokens };
        Case { bench: Bench::Experts, words, run: Box::new(move |lab| run(lab, step)) }
    };
    let mut cases: Vec<Case> = counts.iter().map(|&n| case("decode", n, ("batch", 1), 1)).collect();
    for &rows in rows {
        let prompt = |&n: &usize| case("prefill", n, ("rows", rows), rows * n / PER_TOKEN);
        cases.extend(counts.iter().map(prompt));
    }
    cases
}

/// What a token takes by the number of experts, relative to the fewest, of rows that `eva bench experts --json` printed;
/// nothing if there are none. Where a case was measured several times the median counts.
pub fn chart(rows: &[Map<String, Value>]) -> Option<Chart> {
    let mut lines: BTreeMap<String, BTreeMap<usize, Vec<f64>>> = BTreeMap::new();
    for row in rows.iter().filter(|row| row.get("bench").is_some_and(|bench| bench == "experts")) {
        let number = |key: &str| row.get(key).and_then(Value::as_f64);
        let (Some(experts), Some(time)) = (number("experts"), number("us_per_token")) else { continue };
        let name = match number("rows") {
            None => "decoding one token".to_string(),
            Some(rows) => format!("prefill, {rows} rows an expert"),
        };
        lines.entry(name).or_default().entry(experts as usize).or_default().push(time);
    }
    let series = |(name, times): (String, BTreeMap<usize, Vec<f64>>)| {
        let median = |mut times: Vec<f64>| {
            times.sort_by(f64::total_cmp);
            times[times.len() / 2]
        };
        let points: Vec<(f64, f64)> = times.into_iter().map(|(n, times)| (n as f64, median(times))).collect();
        let first = points.first().map_or(1.0, |point| point.1);
        Series { name, points: points.into_iter().map(|(n, time)| (n, time / first)).collect() }
    };
    let series: Vec<Series> = lines.into_iter().map(series).collect();
    (!series.is_empty()).then(|| Chart {
        file: "experts",
        title: "Time a token takes in a block of experts of which it has eight".into(),
        axes: ["experts".into(), "time, relative to the fewest experts".into()],
        doubling: true,
        from_zero: true,
        series,
    })
}

/// The block's configuration, with so many experts in one group.
fn config_of(options: &Options, experts: usize) -> Result<Config, BenchError> {
    let mut config = config(options.full)?;
    if options.full && options.device == Device::Cpu {
        config.hidden = 2048;
        config.experts.iter_mut().for_each(|moe| moe.intermediate = 1408);
    }
    config.experts.iter_mut().for_each(|moe| {
        let all = Moe { routed: experts, per_token: PER_TOKEN, groups: 1, groups_kept: 1, ..moe.clone() };
        *moe = all;
    });
    Ok(config)
}

/// `@experts`.
fn module(config: &Config, moe: &Moe) -> Result<Module, Diags> {
    let p = Program::new();
    let [b, s] = ["b", "s"].map(|name| p.dim(name));
    let m = p.dim_fixed("m", config.hidden as i64);
    let experts = Experts::of(&p, moe);
    p.function("experts", |f| {
        let x = f.input("x", BF16, [&b, &s, &m]);
        experts.apply(&Declared::new(f, &stored).at("mlp"), &x).named("y")
    });
    p.finish()
}

fn run(lab: &mut Lab, step: Step) -> Result<Measured, BenchError> {
    // The weights of other cases make room.
    lab.kit = None;
    let Step { experts, tokens } = step;
    let config = &config_of(&lab.options, experts)?;
    let moe = config.moe(0).ok_or_else(|| BenchError::Unsupported("a layer without experts".into()))?;
    let module = module(config, moe)?;
    let exe = Arc::new(Executable::compile(&module, &lab.compile_options(Form::default()))?);
    let weights = random_weights(lab, &exe, shapes(&module, "experts"))?;
    let reference = Reference::new(lab, config, moe, shapes(&module, "experts"));
    let input = |i: usize| lab.elements(INPUTS, i, 0).tensor(BF16, &[1, tokens, config.hidden]);
    let mut session = Session::new(exe.clone(), "experts", &weights)?;
    let mut found = None;
    for attempt in 0..TRIES {
        let x = input(attempt)?;
        session.start(&[("x", &x)], None, &[])?;
        session.poison()?;
        session.start(&[("x", &x)], None, &[])?;
        let y = session.take("y")?;
        if let Some(error) = check(&reference, tokens, &x, &y) {
            found = Some((attempt, y, error));
            break;
        }
    }
    let (first, before, error) =
        found.ok_or_else(|| BenchError::Unsupported("a router that is never sure".into()))?;

    let turns = if tokens == 1 { TURNS } else { 1 };
    let given = (first..first + turns).map(input).collect::<Result<Vec<Data>, _>>()?;
    let given: Vec<[(&str, &Data); 1]> = given.iter().map(|x| [("x", x)]).collect();
    let mut sessions = vec![session];
    for _ in 1..turns {
        sessions.push(Session::new(exe.clone(), "experts", &weights)?);
    }
    let calls = sessions.iter_mut().zip(&given);
    let mut calls: Vec<Call<'_>> =
        calls.map(|(session, inputs)| Call { session, inputs, states: None, sizes: &[] }).collect();
    let (times, count) = lab.time(&mut calls)?;
    let kernels = lab.kernels(&mut calls[0])?;
    drop(calls);
    if sessions[0].take("y")?.bytes() != before.bytes() {
        return Err(BenchError::Changed("y".into()));
    }
    let more = vec![
        ("us_per_token", times[0].as_secs_f64() * 1e6 / tokens as f64),
        ("tokens", tokens as f64),
        ("weights_gb", bytes_of(&weights) / 1e9),
    ];
    let (flops, bytes) = work(config, moe, tokens);
    let sets = sessions.len();
    Ok(Measured { times, sets, calls: count, flops, bytes, error, limit: LIMIT, more, kernels })
}

fn bytes_of(weights: &Weights) -> f64 {
    weights.values().map(|weight| weight.bytes()).sum::<usize>() as f64
}

/// The error of some tokens; `None` if no token's experts are sure.
fn check(reference: &Reference<'_>, tokens: usize, x: &Data, y: &Data) -> Option<f64> {
    let hidden = reference.config.hidden;
    let (mut pairs, mut sure) = (Vec::new(), 0);
    for [i] in places(CANDIDATES.min(tokens), [tokens], 6) {
        let (want, margin) = reference.experts(&part(x, i * hidden, hidden));
        if margin < MARGIN {
            continue;
        }
        pairs.extend(part(y, i * hidden, hidden).into_iter().zip(want));
        sure += 1;
        if sure == CHECKED {
            break;
        }
    }
    (sure > 0).then(|| relative_error(pairs))
}

/// Floating-point operations, and bytes of the weights of those experts that have rows, as expected of random choices.
fn work(config: &Config, moe: &Moe, tokens: usize) -> (f64, f64) {
    let expert = (3 * config.hidden * moe.intermediate) as f64;
    let router = (config.hidden * moe.routed) as f64;
    let missed = (1.0 - moe.per_token as f64 / moe.routed as f64).powi(tokens as i32);
    let hit = moe.routed as f64 * (1.0 - missed);
    let of_token = router + (moe.per_token + moe.shared) as f64 * expert;
    let activations = (2 * tokens * config.hidden) as f64;
    (2.0 * tokens as f64 * of_token, 2.0 * (router + (hit + moe.shared as f64) * expert + activations))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn times_are_relative_to_the_fewest_experts() {
        let row = |experts: usize, rows: Option<usize>, time: f64| {
            let mut row = json!({"bench": "experts", "experts": experts, "us_per_token": time});
            row.as_object_mut().unwrap().extend(rows.map(|rows| ("rows".to_string(), json!(rows))));
            row.as_object().unwrap().clone()
        };
        let mut rows = vec![row(64, None, 5.0), row(8, None, 4.0), row(8, None, 9.0), row(8, None, 2.0)];
        rows.extend([row(8, Some(64), 3.0), row(16, Some(64), 1.5)]);
        rows.push(json!({"bench": "gemm", "experts": 8, "us_per_token": 1.0}).as_object().unwrap().clone());
        let chart = chart(&rows).unwrap();
        let lines: Vec<_> = chart.series.iter().map(|s| (s.name.as_str(), s.points.clone())).collect();
        assert_eq!(
            lines,
            [
                ("decoding one token", vec![(8.0, 1.0), (64.0, 1.25)]),
                ("prefill, 64 rows an expert", vec![(8.0, 1.0), (16.0, 0.5)]),
            ]
        );
        assert_eq!(super::chart(&rows[6..]), None);
    }
}
