//! `eva bench`: how fast compiled code is, and whether it is right.

use super::ui::{TypeArg, Usage, count, emit, say};
use clap::{Args as ClapArgs, ValueEnum};
use eva::bench::{Bench, BenchError, Case, Lab, Measured, Options, Word, cases};
use eva_runtime::Device;
use serde_json::{Map, Value, json};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Arguments of `eva bench`.
#[derive(ClapArgs)]
#[command(after_help = "\
Examples:
  eva bench
  eva bench gemm mla-decode --target cuda --json
  eva bench gemm --target cuda --filter m=1,m=16 --filter n=2112

Each case is compiled, checked against a reference in f64 and timed; a row is printed when it is \
done. A case that fails does not stop the others. The exit code is 1 if one failed or was wrong.")]
pub struct Args {
    /// What to measure [default: all]
    #[arg(value_enum, value_name = "BENCH")]
    benches: Vec<BenchArg>,
    /// Where to run: cpu, cuda (the first GPU), cuda:1, …
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    target: Device,
    /// Only cases with one of these words, as `--list` shows them; repeated, with one of each
    #[arg(long, value_name = "WORD,…")]
    filter: Vec<String>,
    /// Print the cases and measure nothing
    #[arg(long)]
    list: bool,
    /// Sizes: those of DeepSeek-V3, or small ones [default: small on the CPU, full on a GPU]
    #[arg(long, value_enum)]
    sizes: Option<Sizes>,
    /// Type of the operands of `gemm`
    #[arg(long, value_enum, default_value_t = TypeArg::Bf16)]
    dtype: TypeArg,
    /// Runs that are timed; the middle one counts
    #[arg(long, value_name = "N", default_value_t = 7, value_parser = count)]
    runs: usize,
    /// Milliseconds of a run, about: it has as many calls as fit
    #[arg(long, value_name = "MS", default_value_t = 25)]
    run: u64,
    /// Milliseconds of rest before a run
    #[arg(long, value_name = "MS", default_value_t = 30)]
    rest: u64,
    /// Threads [default: EVA_THREADS, or the processors]
    #[arg(long, value_name = "N", value_parser = count)]
    threads: Option<usize>,
    /// Print each row as JSON, on a line of its own
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum BenchArg {
    /// Products of dense layers, with many rows and few
    Gemm,
    /// Absorbed latent attention of one new token a sequence
    MlaDecode,
    /// Expanded latent attention of a whole sequence
    MlaPrefill,
}

impl From<BenchArg> for Bench {
    fn from(arg: BenchArg) -> Self {
        match arg {
            BenchArg::Gemm => Bench::Gemm,
            BenchArg::MlaDecode => Bench::MlaDecode,
            BenchArg::MlaPrefill => Bench::MlaPrefill,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Sizes {
    Full,
    Small,
}

/// Measures, and prints a row for each case; whether all were right.
pub fn run(args: &Args) -> anyhow::Result<bool> {
    let mut options = Options::of(args.target);
    options.full = args.sizes.map_or(options.full, |sizes| sizes == Sizes::Full);
    options.dtype = args.dtype.into();
    options.runs = args.runs;
    options.run = Duration::from_millis(args.run);
    options.rest = Duration::from_millis(args.rest);
    options.threads = args.threads;

    let mut benches: Vec<Bench> = args.benches.iter().map(|&bench| bench.into()).collect();
    if benches.is_empty() {
        benches = Bench::ALL.to_vec();
    }
    let all = benches.into_iter().flat_map(|bench| cases(bench, &options));
    let chosen: Vec<Case> = all.filter(|case| wanted(case, &args.filter)).collect();
    if chosen.is_empty() {
        let message = format!("no case has the words {}; --list shows all", args.filter.join(" and "));
        return Err(Usage(message).into());
    }
    if args.list {
        chosen.iter().try_for_each(|case| emit(&format!("{case}\n")))?;
        return Ok(true);
    }

    let mut lab = Lab::new(options)?;
    let device = lab.device_name();
    let mut right = true;
    for case in &chosen {
        let outcome = catch_unwind(AssertUnwindSafe(|| lab.run(case)));
        let outcome = outcome.map_err(|_| "it panicked".to_string());
        let outcome = outcome.and_then(|done| done.map_err(|error: BenchError| error.to_string()));
        right &= outcome.as_ref().is_ok_and(Measured::is_right);
        let text = match args.json {
            true => format!("{}\n", row(case, &outcome, &device, &lab.options)),
            false => line(case, &outcome),
        };
        emit(&text)?;
    }
    if !right {
        say("error: not every case is right");
    }
    Ok(right)
}

/// Whether a case has a word of each list.
fn wanted(case: &Case, filters: &[String]) -> bool {
    let text = case.to_string();
    let has = |word: &str| text.split(' ').any(|have| have == word);
    filters.iter().all(|list| list.split(',').any(|word| has(word.trim())))
}

/// A row for people.
fn line(case: &Case, outcome: &Result<Measured, String>) -> String {
    let name = case.to_string();
    let measured = match outcome {
        Err(error) => return format!("{name:44} FAILED: {error}\n"),
        Ok(measured) => measured,
    };
    let [median, min, max] = measured.times.map(|time| time.as_secs_f64() * 1e6);
    let flops = match measured.flops {
        0.0 => String::new(),
        _ => format!("{:9.3} TFLOP/s", measured.teraflops()),
    };
    let verdict = if measured.is_right() { "ok" } else { "WRONG" };
    let mut text = format!(
        "{name:44} {median:11.1} µs ({min:.1} to {max:.1}) {flops:17} {:8.1} GB/s  error {:.1e} {verdict}",
        measured.gigabytes(),
        measured.error
    );
    for (name, number) in &measured.more {
        text += &format!("  {name} {number:.4}");
    }
    text += "\n";
    for (name, launches, time) in &measured.kernels {
        text += &format!("    {:9.1} µs  {launches:3} × {name}\n", time.as_secs_f64() * 1e6);
    }
    text
}

/// A row for programs.
fn row(case: &Case, outcome: &Result<Measured, String>, device: &str, options: &Options) -> Value {
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
            put("failed", json!(error));
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
            put("gbps", rounded(measured.gigabytes()));
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

/// A number with six digits; null for NaN.
fn rounded(x: f64) -> Value {
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
