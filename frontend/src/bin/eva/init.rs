//! `eva init`: a model with random weights.

use super::ui::{Bars, bytes, emit, size};
use clap::{Args as ClapArgs, ValueEnum};
use eva::init::{InitOptions, init};
use eva::model::config::{Config, read_text};
use eva_runtime::checkpoint::CheckpointDType;
use serde_json::json;
use std::path::PathBuf;

/// Arguments of `eva init`.
#[derive(ClapArgs)]
#[command(after_help = "\
Example:
  eva init --config config.json --seed 7 --dtype bf16 --max-shard-size 5GB my-model

The same configuration, type and seed give the same bytes on every machine.")]
pub struct Args {
    /// Directory to make
    out_dir: PathBuf,
    /// Configuration of the model: a config.json, or a directory with one
    #[arg(long, value_name = "CONFIG.json")]
    config: PathBuf,
    /// Where the random numbers start
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Type of the weights [default: the configuration's]
    #[arg(long, value_enum)]
    dtype: Option<WeightType>,
    /// Largest file, as in 5GB or 500MiB [default: one file for all]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    max_shard_size: Option<u64>,
    /// Print what was written as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum WeightType {
    Bf16,
    F16,
    F32,
}

/// Writes the model.
pub fn run(args: &Args, bars: &Bars) -> anyhow::Result<bool> {
    let (path, text) = read_text(&args.config)?;
    // For its mistakes to be shown with the file's own path.
    Config::load(&path)?;
    let dtype = args.dtype.map(|dtype| match dtype {
        WeightType::Bf16 => CheckpointDType::Bf16,
        WeightType::F16 => CheckpointDType::F16,
        WeightType::F32 => CheckpointDType::F32,
    });
    let options = InitOptions { seed: args.seed, dtype, max_shard_bytes: args.max_shard_size };
    let bar = bars.bytes("writing");
    let written = init(&text, &args.out_dir, options, |done, total| {
        if let Some(bar) = &bar {
            bar.set_length(total);
            bar.set_position(done);
        }
    })?;
    bars.clear();
    let (out, files) = (args.out_dir.display(), written.files.len());
    let text = match args.json {
        true => {
            let files: Vec<String> = written.files.iter().map(|file| file.display().to_string()).collect();
            format!(
                "{}\n",
                json!({"directory": out.to_string(), "bytes": written.tensor_bytes, "files": files})
            )
        }
        false => {
            let s = if files == 1 { "" } else { "s" };
            format!("{out}: {} in {files} file{s}\n", bytes(written.tensor_bytes as usize))
        }
    };
    emit(&text)?;
    Ok(true)
}
