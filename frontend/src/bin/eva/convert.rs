//! `eva convert`: checkpoints to 8-bit floats, and back.

use super::ui::{Bars, Usage, bytes, emit, size};
use clap::{Args as ClapArgs, ValueEnum};
use eva::convert::{ConvertOptions, To, convert};
use eva::model::config::ScaleFormat;
use serde_json::json;
use std::path::PathBuf;

/// Arguments of `eva convert`.
#[derive(ClapArgs)]
#[command(after_help = "\
Examples:
  eva convert MODEL_DIR my-model-fp8 --to fp8
  eva convert MODEL_DIR my-model-bf16 --to bf16 --max-shard-size 2GB

To fp8, the projections of attention, dense blocks and experts become F8_E4M3 with an f32 scale for \
128 x 128 of them, as DeepSeek-V3 is published; embedding, head, routers and norms stay. Files appear \
when they are complete, config.json last; a run that was interrupted goes on when it is started again.")]
pub struct Args {
    /// Directory with config.json and the checkpoint
    from: PathBuf,
    /// Directory to make
    out_dir: PathBuf,
    /// What to convert to
    #[arg(long, value_enum, value_name = "fp8|bf16")]
    to: ToArg,
    /// What scales may be: any f32, or powers of two [default: float32]
    #[arg(long, value_enum, value_name = "float32|ue8m0")]
    scale_fmt: Option<ScaleArg>,
    /// Largest file, as in 5GB or 500MiB
    #[arg(long, value_name = "SIZE", value_parser = size, default_value = "5GB")]
    max_shard_size: u64,
    /// Print what was written as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ToArg {
    /// 8-bit floats with scales
    Fp8,
    /// The upper 16 bits of an f32
    Bf16,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ScaleArg {
    /// Any f32
    Float32,
    /// Powers of two
    Ue8m0,
}

/// Converts, and says what was written.
pub fn run(args: &Args, bars: &Bars) -> anyhow::Result<bool> {
    let format = match args.scale_fmt {
        Some(_) if args.to == ToArg::Bf16 => {
            return Err(Usage("--scale-fmt is for --to fp8: bf16 has no scales".into()).into());
        }
        Some(ScaleArg::Ue8m0) => ScaleFormat::PowerOfTwo,
        Some(ScaleArg::Float32) | None => ScaleFormat::Float,
    };
    let to = if args.to == ToArg::Fp8 { To::Fp8(format) } else { To::Bf16 };
    let options = ConvertOptions { to, max_shard_bytes: args.max_shard_size };
    let bar = bars.bytes("converting");
    let done = convert(&args.from, &args.out_dir, &options, |done, total| {
        if let Some(bar) = &bar {
            bar.set_length(total);
            bar.set_position(done);
        }
    })?;
    bars.clear();
    let (out, files) = (args.out_dir.display(), done.files.len());
    let text = if args.json {
        let files: Vec<String> = done.files.iter().map(|file| file.display().to_string()).collect();
        let report = json!({
            "directory": out.to_string(),
            "bytes": done.tensor_bytes,
            "weights": done.weights,
            "files": files,
            "kept": done.kept,
        });
        format!("{report}\n")
    } else {
        let kept = if done.kept > 0 { format!(", {} of which were there", done.kept) } else { String::new() };
        let (s, weights) = (if files == 1 { "" } else { "s" }, done.weights);
        let size = bytes(done.tensor_bytes as usize);
        format!("{out}: {weights} weights converted, {size} in {files} file{s}{kept}\n")
    };
    emit(&text)?;
    Ok(true)
}
