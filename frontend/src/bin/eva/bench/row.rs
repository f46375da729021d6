//! Rows of `eva bench`, for people and for programs.

use super::Outcome;
use eva::bench::{Case, Options, Word};
use serde_json::{Map, Value, json};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How many kernels of a row people are shown; programs are shown all.
const KERNELS: usize = 16;

/// How much of an error programs are shown, in characters: some have a whole module.
const ERROR: usize = 1000;

/// A row for people.
pub fn text(case: &Case, outcome: &Outcome) -> String {
    let name = case.to_string();
    let measured = match outcome {
        Err(error) => return format!("{name:44} FAILED: {}\n", error.trim_end()),
        Ok(measured) => measured,
    };
    let [median, min, max] = measured.times.map(|time| time.as_secs_f64() * 1e6);
    let flops = match measured.flops {
        0.0 => String::new(),
        _ => format!("{:9.3} TFLOP/s", measured.teraflops()),
    };
    let bytes = match measured.bytes {
        0.0 => String::new(),
        _ => format!("{:8.1} GB/s", measured.gigabytes()),
    };
    let verdict = if measured.is_right() { "ok" } else { "WRONG" };
    let mut text = format!(
        "{name:44} {median:11.1} µs ({min:.1} to {max:.1}) {flops:17} {bytes:13}  error {:.1e} {verdict}",
        measured.error
    );
    for (name, number) in &measured.more {
        let digits = if number.fract() == 0.0 { 0 } else { 3 };
        text += &format!("  {name} {number:.digits$}");
    }
    text += "\n";
    for (name, launches, time) in measured.kernels.iter().take(KERNELS) {
        text += &format!("    {:9.1} µs  {launches:3} × {name}\n", time.as_secs_f64() * 1e6);
    }
    text
}

/// A row for programs.
pub fn json(case: &Case, outcome: &Outcome, device: &str, options: &Options) -> Value {
    let mut row = Map::new();
    let mut put = |name: &str, value: Value| row.insert(name.into(), value);
    put("bench", json!(case.bench.name().replace('-', "_")));
    put("lib", json!("eva"));
    for (name, word) in &case.words {
        put(
            name,
            match word {
                Word::Size(n) => json!(n),
                Word::Name(name) => json!(name),
            },
        );
    }
    match outcome {
        Err(error) => {
            put("failed", json!(error.chars().take(ERROR).collect::<String>()));
            put("ok", json!(false));
        }
        Ok(measured) => {
            let [median, min, max] = measured.times.map(|time| rounded(time.as_secs_f64() * 1e6));
            for (name, us) in [("us", median), ("us_min", min), ("us_max", max)] {
                put(name, us);
            }
            if measured.flops > 0.0 {
                put("tflops", rounded(measured.teraflops()));
            }
            if measured.bytes > 0.0 {
                put("gbps", rounded(measured.gigabytes()));
            }
            put("err", rounded(measured.error));
            put("limit", json!(measured.limit));
            put("ok", json!(measured.is_right()));
            put("sets", json!(measured.sets));
            put("calls", json!(measured.calls));
            for (name, number) in &measured.more {
                put(name, rounded(*number));
            }
            if !measured.kernels.is_empty() {
                let kernel = |(name, launches, time): &(String, usize, Duration)| json!({"name": name, "launches": launches, "us": rounded(time.as_secs_f64() * 1e6)});
                put("kernels", measured.kernels.iter().map(kernel).collect());
            }
        }
    }
    put("runs", json!(options.runs));
    put("run_ms", json!(options.run.as_millis() as u64));
    put("rest_ms", json!(options.rest.as_millis() as u64));
    put("device", json!(device));
    put("date", json!(date(SystemTime::now())));
    Value::Object(row)
}

/// A number with six digits; null for NaN, and an integer as one.
fn rounded(x: f64) -> Value {
    if x.fract() == 0.0 && x.abs() < 1e15 {
        return json!(x as i64);
    }
    json!(format!("{x:.5e}").parse::<f64>().ok().filter(|x| x.is_finite()))
}

/// A moment as `2026-11-23T03:25:00Z`.
fn date(moment: SystemTime) -> String {
    let seconds = moment.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (mut days, rest) = (seconds / 86400, seconds % 86400);
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let mut year = 1970;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let mut month = 1;
    for days_of in [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if days < days_of {
            break;
        }
        days -= days_of;
        month += 1;
    }
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year}-{month:02}-{:02}T{hour:02}:{minute:02}:{second:02}Z", days + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_dates() {
        let at = |seconds| date(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "1970-01-01T00:00:00Z");
        assert_eq!(at(951_827_696), "2000-02-29T12:34:56Z");
        assert_eq!(at(1_798_761_599), "2026-12-31T23:59:59Z");
        assert_eq!(at(1_798_761_600), "2027-01-01T00:00:00Z");
    }
}
