//! What quantizing did to a model's numbers, in real runs: what `eva generate --fp8-report` prints.

use crate::explain::line_of;
use eva_passes::fp8::observe::{Site, Sums};
use eva_passes::plan::Plan;
use eva_runtime::Tensor;
use serde::Serialize;
use std::fmt::Write;

/// Statistics of everything that a function quantizes, over any number of calls.
#[derive(Clone, Debug, Default)]
pub struct Report {
    sites: Vec<(Site, Sums)>,
}

/// One value that was quantized.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Where it is, and what.
    #[serde(flatten)]
    pub site: Site,
    /// Its line.
    pub line: Option<String>,
    /// How many elements were quantized.
    pub elements: f64,
    /// The largest magnitude.
    pub amax: f64,
    /// The share of the elements that are not zero and became zero.
    pub underflow: f64,
    /// The share of elements that were cut off.
    pub saturated: f64,
    /// The norm of the difference over the norm; none if there was no number.
    pub error: Option<f64>,
}

impl Report {
    /// Of the function `name` of a plan that was compiled to give statistics
    /// ([`eva_passes::fp8::Options::observe`]); empty of another.
    pub fn new(plan: &Plan, name: &str) -> Self {
        let of = plan.statistics.iter().find(|(function, _)| function == name);
        let sites = of.map_or(&[][..], |(_, sites)| sites);
        Self { sites: sites.iter().map(|site| (site.clone(), Sums::default())).collect() }
    }

    /// Whether there is nothing to say.
    pub fn is_empty(&self) -> bool {
        self.sites.is_empty()
    }

    /// The results of a call that have statistics.
    pub fn results(&self) -> impl Iterator<Item = &str> {
        self.sites.iter().map(|(site, _)| site.result.as_str())
    }

    /// Adds what a call gave.
    pub fn add(&mut self, results: &[(String, Tensor)]) {
        for (site, sums) in &mut self.sites {
            if let Some((_, rows)) = results.iter().find(|(name, _)| *name == site.result) {
                sums.add(&rows.to_f32(), site.columns);
            }
        }
    }

    /// What was quantized, the largest relative error first; what was never run is left out.
    pub fn rows(&self) -> Vec<Row> {
        let run = self.sites.iter().filter(|(_, sums)| sums.elements > 0.0);
        let mut rows: Vec<Row> = run
            .map(|(site, sums)| Row {
                line: site.loc.map(|loc| line_of(loc, None)),
                site: site.clone(),
                elements: sums.elements,
                amax: sums.amax(),
                underflow: sums.underflow(),
                saturated: sums.saturated(),
                error: Some(sums.error()).filter(|error| error.is_finite()),
            })
            .collect();
        let badness = |row: &Row| row.error.unwrap_or(f64::INFINITY);
        rows.sort_by(|a, b| badness(b).total_cmp(&badness(a)));
        rows
    }

    /// The report for people: the `most` values that quantizing changed most.
    pub fn text(&self, most: usize) -> String {
        let rows = self.rows();
        let mut s = String::new();
        let mut say = |text: String| writeln!(s, "{text}").expect("a string takes what is written");
        if rows.is_empty() {
            say("nothing was quantized".into());
            return s;
        }
        say(format!("{} values were quantized; those that it changed most:", rows.len()));
        let name = |row: &Row| {
            let calls: String = row.site.calls.iter().map(|call| format!("{call}.")).collect();
            format!("{calls}{}", row.site.value)
        };
        let rows = &rows[..most.min(rows.len())];
        let widest = rows.iter().map(|row| name(row).chars().count()).max().unwrap_or(0);
        // One line for all of them, as a built-in model has it, tells nothing apart.
        let tells = rows.iter().any(|row| row.line != rows[0].line);
        say(format!(
            "  {:<widest$}  {:>9}  {:>9}  {:>9}  {:>9}",
            "", "error", "underflow", "saturated", "amax"
        ));
        for row in rows {
            let error = row.error.map_or("no number".into(), |error| format!("{:.3} %", error * 100.0));
            let users = row.site.used_by.join(", ");
            let line = row.line.as_ref().filter(|_| tells).map_or(String::new(), |line| format!(" ({line})"));
            say(format!(
                "  {:<widest$}  {error:>9}  {:>7.3} %  {:>7.3} %  {:>9.3e}  {} for {users}{line}",
                name(row),
                row.underflow * 100.0,
                row.saturated * 100.0,
                row.amax,
                row.site.ty,
            ));
        }
        s
    }
}
