//! Charts of runs: what `eva plot` draws of `metrics.jsonl`.

use crate::chart::{Chart, Series};
use serde_json::{Map, Value};

/// A run: what it is called, and the lines of its metrics.
pub type Lines = (String, Vec<Map<String, Value>>);

/// The most lines of a chart, so that they can be told apart.
const MOST: usize = 24;

/// The charts that there are points for. Lines of training are means over `smooth` steps.
pub fn charts(runs: &[Lines], smooth: usize) -> Vec<Chart> {
    let several = runs.len() > 1;
    let name = |run: &str, what: &str| match several {
        true if what.is_empty() => run.to_string(),
        true => format!("{run} {what}"),
        false => what.to_string(),
    };
    let of = |keys: &dyn Fn(&str) -> Option<String>, smooth: usize| -> Vec<Series> {
        let mut all = Vec::new();
        for (run, lines) in runs {
            let mut names: Vec<(String, String)> = lines
                .iter()
                .flat_map(|line| line.keys())
                .filter_map(|key| Some((key.clone(), keys(key)?)))
                .collect();
            names.sort();
            names.dedup();
            for (key, what) in names {
                let points = lines
                    .iter()
                    .filter_map(|line| Some((line.get("step")?.as_f64()?, line.get(&key)?.as_f64()?)));
                all.push(Series { name: name(run, &what), points: mean(points.collect(), smooth) });
            }
        }
        all.retain(|series| !series.points.is_empty());
        all.truncate(MOST);
        all
    };
    let one =
        |key: &'static str, what: &'static str| move |have: &str| (have == key).then(|| what.to_string());
    let mut loss = of(&one("loss", "training"), smooth);
    loss.extend(of(&one("eval_loss", "held out"), 1));
    let accuracy = of(&one("eval_accuracy", "held out"), 1);
    let balance = |end: &'static str, what: &'static str| {
        move |have: &str| {
            let layer = have.strip_prefix("balance.")?.strip_suffix(end)?.strip_suffix('.')?;
            Some(format!("layer {layer} {what}").trim_end().to_string())
        }
    };
    let mut loads = of(&balance("max", "fullest"), smooth);
    loads.extend(of(&balance("min", "emptiest"), smooth));
    let fp8 = |have: &str| have.strip_prefix("fp8.").map(str::to_string);
    let all = [
        ("loss", "Loss", "nats a token", loss),
        ("accuracy", "Held-out labels that are the most likely token", "share", accuracy),
        ("rate", "Learning rate", "rate", of(&one("lr", "rate"), 1)),
        (
            "gradients",
            "Norm of the gradients, before clipping",
            "norm",
            of(&one("grad_norm", "norm"), smooth),
        ),
        ("speed", "Speed", "tokens a second", of(&one("tokens_per_second", "speed"), smooth)),
        ("balance", "Fullest and emptiest expert, relative to the mean", "load", loads),
        (
            "balance-variance",
            "Variance of the experts' loads, relative to the mean",
            "variance",
            of(&balance("variance", ""), smooth),
        ),
        ("fp8", "8-bit floats", "", of(&fp8, smooth)),
    ];
    let charts = all.into_iter().filter(|(.., series)| !series.is_empty());
    let chart = |(file, title, y, series): (_, &str, &str, _)| Chart {
        file,
        title: title.into(),
        axes: ["step".into(), y.into()],
        doubling: false,
        from_zero: false,
        series,
    };
    charts.map(chart).collect()
}

/// Means of neighbouring points, `n` at a time.
fn mean(points: Vec<(f64, f64)>, n: usize) -> Vec<(f64, f64)> {
    let mean = |part: &[(f64, f64)]| {
        let sum = part.iter().fold((0.0, 0.0), |sum, point| (sum.0 + point.0, sum.1 + point.1));
        (sum.0 / part.len() as f64, sum.1 / part.len() as f64)
    };
    points.chunks(n.max(1)).map(mean).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn run(name: &str, shift: f64) -> Lines {
        let line = |step: i32| {
            let mut line = json!({"step": step, "loss": 5.0 - 0.1 * f64::from(step) + shift, "lr": 0.5});
            if step % 4 == 0 {
                line["eval_loss"] = json!(4.5);
                line["eval_accuracy"] = json!(0.25);
                line["balance.1.max"] = json!(1.5);
            }
            line.as_object().unwrap().clone()
        };
        (name.into(), (1..=8).map(line).collect())
    }

    #[test]
    fn charts_have_what_there_is() {
        let charts = charts(&[run("a", 0.0), run("b", 1.0)], 4);
        let names: Vec<(&str, Vec<&str>)> = charts
            .iter()
            .map(|chart| (chart.file, chart.series.iter().map(|series| series.name.as_str()).collect()))
            .collect();
        assert_eq!(
            names,
            [
                ("loss", vec!["a training", "b training", "a held out", "b held out"]),
                ("accuracy", vec!["a held out", "b held out"]),
                ("rate", vec!["a rate", "b rate"]),
                ("balance", vec!["a layer 1 fullest", "b layer 1 fullest"]),
            ]
        );
        assert_eq!(charts[0].series[1].points, [(2.5, 5.75), (6.5, 5.35)]);
        assert_eq!(charts[0].series[2].points, [(4.0, 4.5), (8.0, 4.5)]);
        assert_eq!(charts[2].axes, ["step", "rate"]);
    }
}
