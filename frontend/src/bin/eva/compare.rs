//! `eva compare`: a compiled model against outputs that other software recorded.

use super::fp8::Fp8Args;
use super::ui::{FormArg, NumericsArg, Tf32Arg, TypeArg, count, device, emit, numerics};
use anyhow::Context;
use clap::Args as ClapArgs;
use eva::compare::{CompareOptions, RECORDED, Row, compare, compare_gradients, compare_training};
use eva::engine::{LoadOptions, Progress};
use eva_runtime::Device;
use std::path::PathBuf;

/// Arguments of `eva compare`.
#[derive(ClapArgs)]
#[command(
    after_help = "Example:\n  eva compare tests/fixtures/v3-tiny tests/fixtures/v3-tiny/expected.safetensors"
)]
pub struct Args {
    /// Directory with config.json and the checkpoint
    model_dir: PathBuf,
    /// Recorded tensors: `input_ids` and what came of them
    reference: PathBuf,
    /// Only tensors whose name starts so, taken without it
    #[arg(long, default_value = "")]
    prefix: String,
    /// Recorded gradients of the loss by every weight, under the weights' names: compare these
    #[arg(long, value_name = "FILE")]
    gradients: Option<PathBuf>,
    /// Train as the reference did, and compare the recorded losses and norms of gradients
    #[arg(long, conflicts_with = "gradients")]
    training: bool,
    /// What to run on: cpu, cuda (the first GPU) or cuda:N
    #[arg(long, value_name = "TARGET", default_value = "cpu", value_parser = device)]
    target: Device,
    /// Type of activations and caches; limits are wider for bf16
    #[arg(long, value_enum, default_value_t = TypeArg::F32)]
    dtype: TypeArg,
    /// Form of attention
    #[arg(long, value_enum, default_value_t = FormArg::Auto)]
    form: FormArg,
    /// How far rewriting may move results
    #[arg(long, value_enum, default_value_t = NumericsArg::Reassociates)]
    numerics: NumericsArg,
    #[command(flatten)]
    tf32: Tf32Arg,
    #[command(flatten)]
    fp8: Fp8Args,
    /// Threads that compile and, on the CPU, run kernels [default: EVA_THREADS, or the processors]
    #[arg(long, value_name = "N", value_parser = count)]
    threads: Option<usize>,
    /// Print rows as JSON
    #[arg(long)]
    json: bool,
}

/// Compares and prints a table; whether every row passed.
pub fn run(args: &Args, progress: &dyn Progress) -> anyhow::Result<bool> {
    let load = LoadOptions {
        dtype: args.dtype.into(),
        form: args.form.into(),
        numerics: numerics(args.form, args.numerics)?,
        tf32: args.tf32.on(args.target == Device::Cpu)?,
        fp8: args.fp8.recipe(),
        deny_fp8_fallback: args.fp8.deny_fallback(),
        device: args.target,
        threads: args.threads,
        ..LoadOptions::default()
    };
    let options = CompareOptions { prefix: args.prefix.clone(), load };
    let rows = match &args.gradients {
        Some(gradients) => {
            compare_gradients(&args.model_dir, &args.reference, gradients, &options, progress)?
        }
        None if args.training => compare_training(&args.model_dir, &args.reference, &options, progress)?,
        None => compare(&args.model_dir, &args.reference, &options, progress)?,
    };
    if args.json {
        let json = serde_json::to_string_pretty(&rows).context("rows have no values that JSON lacks")?;
        emit(&format!("{json}\n"))?;
    } else {
        emit(&table(&rows))?;
    }
    let compared = rows.iter().filter(|row| row.difference.is_some()).count();
    let failed = rows.iter().filter(|row| !row.ok).count();
    if compared == 0 {
        anyhow::bail!(
            "nothing to compare: `{}` has no tensor{} that eva knows; it knows {RECORDED}",
            args.reference.display(),
            if args.prefix.is_empty() { String::new() } else { format!(" named `{}…`", args.prefix) }
        );
    }
    if !args.json {
        emit(&format!("{compared} compared, {failed} failed\n"))?;
    }
    Ok(failed == 0)
}

fn table(rows: &[Row]) -> String {
    let width = rows.iter().map(|row| row.name.len()).max().unwrap_or(0).max(4);
    let number =
        |x: Option<f64>| x.map_or("-".into(), |x| if x == 0.0 { "0".into() } else { format!("{x:.1e}") });
    let mut text = format!("{:width$}  {:>10}  {:>8}  ok\n", "name", "difference", "limit");
    for row in rows {
        let ok = match (row.ok, row.difference) {
            (false, _) => "FAIL",
            (true, Some(_)) => "ok",
            (true, None) => "-",
        };
        let line = format!(
            "{:width$}  {:>10}  {:>8}  {ok:4} {}",
            row.name,
            number(row.difference),
            number(row.limit),
            row.note
        );
        text += line.trim_end();
        text.push('\n');
    }
    text
}
