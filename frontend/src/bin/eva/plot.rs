//! `eva plot`: charts of runs.

use super::ui::emit;
use anyhow::{Context, bail};
use clap::{Args as ClapArgs, ValueEnum};
use eva::bench::experts_chart;
use eva::chart::Format;
use eva::train::metrics::{METRICS_FILE, read};
use eva::train::plot::{Lines, charts};
use std::path::{Path, PathBuf};

/// Arguments of `eva plot`.
#[derive(ClapArgs)]
#[command(after_help = "\
Examples:
  eva plot runs/tiny
  eva plot runs/f32 runs/fp8 --smooth 20 --out charts --format png

Draws loss, learning rate, gradients, speed, the experts' loads and statistics of 8-bit floats, as far
as the runs have them, each as a file. Rows of `eva bench experts --json` are drawn, too. Several runs are drawn over each other.")]
pub struct Args {
    /// Folders of runs, or their metrics.jsonl; or rows of `eva bench experts --json`
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// Folder for the charts [default: the first run's]
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// What the files are
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = FormatArg::Svg)]
    format: FormatArg,
    /// Steps of which a point of training is the mean
    #[arg(long, value_name = "STEPS", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    smooth: u32,
}

/// What charts are written as.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum FormatArg {
    /// Lines and text
    Svg,
    /// Pixels
    Png,
}

/// Draws the charts.
pub fn run(args: &Args) -> anyhow::Result<bool> {
    let lines = |run: &PathBuf| -> anyhow::Result<Lines> {
        let file = if run.is_dir() { run.join(METRICS_FILE) } else { run.clone() };
        let lines = read(&file).with_context(|| format!("{}: cannot read it", file.display()))?;
        let folder = file.parent().and_then(Path::file_name).unwrap_or_default();
        Ok((folder.to_string_lossy().into_owned(), lines))
    };
    let runs: Vec<Lines> = args.runs.iter().map(lines).collect::<Result<_, _>>()?;
    let mut charts = charts(&runs, args.smooth as usize);
    let rows: Vec<_> = runs.iter().flat_map(|(_, lines)| lines).cloned().collect();
    charts.extend(experts_chart(&rows));
    if charts.is_empty() {
        bail!("{}: there is nothing to draw yet", args.runs[0].display());
    }
    let first = if args.runs[0].is_dir() { Some(args.runs[0].as_path()) } else { args.runs[0].parent() };
    let out = args.out.as_deref().or(first).unwrap_or(Path::new("."));
    std::fs::create_dir_all(out).with_context(|| format!("{}: cannot make it", out.display()))?;
    let format = match args.format {
        FormatArg::Svg => Format::Svg,
        FormatArg::Png => Format::Png,
    };
    let mut written = String::new();
    for chart in &charts {
        let path = out.join(format!("{}.{}", chart.file, format.extension()));
        let file = chart.render(format).map_err(anyhow::Error::msg)?;
        std::fs::write(&path, file).with_context(|| format!("{}: cannot write it", path.display()))?;
        written += &format!("{}\n", path.display());
    }
    emit(&written)?;
    Ok(true)
}
