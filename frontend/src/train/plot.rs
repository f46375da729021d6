//! Charts of runs, as SVG: what `eva plot` draws of `metrics.jsonl`.

use plotters::prelude::*;
use serde_json::{Map, Value};

/// Points of one line, and what it is called.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// Its name, in the legend.
    pub name: String,
    /// `x` and `y`.
    pub points: Vec<(f64, f64)>,
}

/// A chart.
#[derive(Clone, Debug, PartialEq)]
pub struct Chart {
    /// The name of its file, without `.svg`.
    pub file: &'static str,
    /// What is over it.
    pub title: &'static str,
    /// What its ordinate is.
    pub y: &'static str,
    /// Its lines.
    pub series: Vec<Series>,
}

/// A run: what it is called, and the lines of its metrics.
pub type Lines = (String, Vec<Map<String, Value>>);

/// Pixels of a chart.
const SIZE: (u32, u32) = (960, 560);

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
    let balance = |end: &'static str| {
        move |have: &str| {
            let layer = have.strip_prefix("balance.")?.strip_suffix(end)?.strip_suffix('.')?;
            Some(format!("layer {layer}"))
        }
    };
    let fp8 = |have: &str| have.strip_prefix("fp8.").map(str::to_string);
    let all = [
        ("loss", "Loss", "nats a token", loss),
        ("rate", "Learning rate", "rate", of(&one("lr", "rate"), 1)),
        (
            "gradients",
            "Norm of the gradients, before clipping",
            "norm",
            of(&one("grad_norm", "norm"), smooth),
        ),
        ("speed", "Speed", "tokens a second", of(&one("tokens_per_second", "speed"), smooth)),
        ("balance", "Fullest expert, relative to the mean", "load", of(&balance("max"), smooth)),
        (
            "balance-variance",
            "Variance of the experts' loads, relative to the mean",
            "variance",
            of(&balance("variance"), smooth),
        ),
        ("fp8", "8-bit floats", "", of(&fp8, smooth)),
    ];
    let charts = all.into_iter().filter(|(.., series)| !series.is_empty());
    charts.map(|(file, title, y, series)| Chart { file, title, y, series }).collect()
}

/// Means of neighbouring points, `n` at a time.
fn mean(points: Vec<(f64, f64)>, n: usize) -> Vec<(f64, f64)> {
    let mean = |part: &[(f64, f64)]| {
        let sum = part.iter().fold((0.0, 0.0), |sum, point| (sum.0 + point.0, sum.1 + point.1));
        (sum.0 / part.len() as f64, sum.1 / part.len() as f64)
    };
    points.chunks(n.max(1)).map(mean).collect()
}

/// The chart as the text of an SVG file; an error if it cannot be drawn, such as one without points.
pub fn svg(chart: &Chart) -> Result<String, String> {
    let points = || chart.series.iter().flat_map(|series| &series.points);
    let range = |of: fn(&(f64, f64)) -> f64| {
        let (least, most) = points()
            .map(of)
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(least, most), x| (least.min(x), most.max(x)));
        // A line that does not change has some room, too.
        let room = if most > least { 0.03 * (most - least) } else { 0.5 * least.abs().max(1.0) };
        (least - room)..(most + room)
    };
    let (x, y) = (range(|point| point.0), range(|point| point.1));
    if !(x.start.is_finite() && x.end.is_finite() && y.start.is_finite() && y.end.is_finite()) {
        return Err(format!("`{}` has no points that can be drawn", chart.file));
    }
    let mut text = String::new();
    draw(chart, x, y, &mut text).map_err(|e| e.to_string())?;
    Ok(text)
}

fn draw(
    chart: &Chart,
    x: std::ops::Range<f64>,
    y: std::ops::Range<f64>,
    text: &mut String,
) -> Result<(), Box<dyn std::error::Error>> {
    let area = SVGBackend::with_string(text, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let mut axes = ChartBuilder::on(&area)
        .caption(chart.title, ("sans-serif", 20))
        .margin(14)
        .x_label_area_size(40)
        .y_label_area_size(70)
        .build_cartesian_2d(x, y)?;
    axes.configure_mesh().x_desc("step").y_desc(chart.y).light_line_style(WHITE).draw()?;
    for (i, series) in chart.series.iter().enumerate() {
        let colour = Palette99::pick(i).to_rgba();
        let line = LineSeries::new(series.points.iter().copied(), colour.stroke_width(2));
        let legend = move |(x, y)| PathElement::new(vec![(x, y), (x + 18, y)], colour.stroke_width(2));
        axes.draw_series(line)?.label(&series.name).legend(legend);
    }
    axes.configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    area.present()?;
    Ok(())
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
                ("rate", vec!["a rate", "b rate"]),
                ("balance", vec!["a layer 1", "b layer 1"]),
            ]
        );
        assert_eq!(charts[0].series[1].points, [(2.5, 5.75), (6.5, 5.35)]);
        assert_eq!(charts[0].series[2].points, [(4.0, 4.5), (8.0, 4.5)]);
        for chart in &charts {
            let svg = svg(chart).unwrap();
            assert!(svg.starts_with("<svg ") && svg.trim_end().ends_with("</svg>"));
            let lines = svg.matches("<polyline").count();
            assert!(lines >= chart.series.len() * 2, "lines and legend: {lines}");
            assert!(chart.series.iter().all(|series| svg.contains(&series.name)), "{svg}");
        }
        let empty = Chart { series: Vec::new(), ..charts[0].clone() };
        assert_eq!(super::svg(&empty).unwrap_err(), "`loss` has no points that can be drawn");
    }
}
