//! `eva compile`: kernels for a GPU, in a folder.

use super::fp8::Fp8Args;
use super::ui::{Bars, FormArg, NumericsArg, Tf32Arg, TypeArg, count};
use clap::{Args as ClapArgs, ValueEnum};
use std::path::PathBuf;

/// Arguments of `eva compile`.
#[derive(ClapArgs)]
#[command(after_help = "\
Examples:
  eva compile MODEL_DIR --target sm_90a --dtype bf16 -o my-model.sm_90a
  eva generate MODEL_DIR --artifact my-model.sm_90a --prompt 'Once upon a time' --max-new-tokens 64
  eva compile layer.eva --target sm_90a --emit kernel,llvm -o kernels

The folder has the PTX of each kernel, and manifest.json, which says what there is and how it is \
called. It has machine code (.cubin), too, if there is a `ptxas` (EVA_PTXAS names it, or it is in \
PATH); if not, the driver makes it on the first run. No GPU is needed. A config.json alone has weights \
of the configuration's types.")]
pub struct Args {
    /// Directory with config.json and perhaps the checkpoint, a config.json, or an IR file (- for standard input)
    #[arg(value_name = "MODEL_DIR|CONFIG.json|FILE.eva")]
    input: PathBuf,
    /// What the code is for: sm_90a, NVIDIA's Hopper GPUs
    #[arg(long, value_name = "TARGET", default_value = "sm_90a", value_parser = chip)]
    target: Chip,
    /// What to write beside PTX
    #[arg(long, value_enum, value_name = "EMIT", value_delimiter = ',')]
    emit: Vec<Emit>,
    /// Type of a model's activations and caches [default: f32]
    #[arg(long, value_enum)]
    dtype: Option<TypeArg>,
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
    /// Folder to make
    #[arg(short, long = "output", value_name = "DIR")]
    output: PathBuf,
    /// Threads [default: EVA_THREADS, or the processors]
    #[arg(long, value_name = "N", value_parser = count)]
    threads: Option<usize>,
    /// Print what was written as JSON
    #[arg(long)]
    json: bool,
}

/// What a kernel can be written as.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Emit {
    /// NVIDIA's assembly language; always written
    Ptx,
    /// LLVM IR, as it is before LLVM's passes
    Llvm,
    /// Kernel IR
    Kernel,
}

/// The one chip that there is code for.
#[derive(Clone, Copy)]
struct Chip;

fn chip(text: &str) -> Result<Chip, String> {
    match text {
        "sm_90a" if cfg!(feature = "cuda") => Ok(Chip),
        "sm_90a" => Err(super::ui::NO_CUDA.into()),
        "cpu" => Err("code for the CPU is made in memory when a model is run, in milliseconds, and is not \
                      written to files; `eva print --target cpu` shows its kernels"
            .into()),
        _ => Err("there is `sm_90a` (NVIDIA's Hopper GPUs: H100, H200, H800, H20, GH200)".into()),
    }
}

/// Compiles, and says what was written.
#[cfg(not(feature = "cuda"))]
pub fn run(args: &Args, _: &Bars) -> anyhow::Result<bool> {
    let Args {
        input: _,
        target: Chip,
        emit: _,
        dtype: _,
        form: _,
        tf32: _,
        fp8: _,
        numerics: _,
        output: _,
        threads: _,
        json: _,
    } = args;
    anyhow::bail!(super::ui::NO_CUDA)
}

#[cfg(feature = "cuda")]
pub use with_cuda::run;

#[cfg(feature = "cuda")]
mod with_cuda {
    use super::{Args, Bars, Chip, Emit};
    use crate::input::{Source, is_model, model};
    use crate::ui::{TF32, Usage, bytes, emit, name_of, numerics, say};
    use eva::engine::{LoadOptions, Progress, caches, module};
    use eva::model::config::Config;
    use eva::prelude::{DType, Module};
    use eva_passes::target::Target;
    use eva_runtime::cuda::artifact::{self, Assembler};
    use eva_runtime::pool;
    use serde_json::json;
    use std::collections::BTreeMap;

    /// Compiles, and says what was written.
    pub fn run(args: &Args, bars: &Bars) -> anyhow::Result<bool> {
        let Chip = args.target;
        let numerics = numerics(args.form, args.numerics)?;
        let (form, tf32) = (args.form.into(), args.tf32.tf32);
        let options = eva_passes::Options { form, numerics, tf32, ..eva_passes::Options::default() };
        bars.begin("compiling", 0);
        let compiled = |module: &Module, config: Option<&Config>| {
            let cache = config.map_or(options.cache, |config| caches(config, options.cache));
            let options = eva_passes::Options { fp8: args.fp8.options(config), cache, ..options.clone() };
            eva_passes::compile(module, &Target::cuda(), &options)
        };
        let note = |name: &str, value| (name.to_string(), value);
        let mut notes =
            BTreeMap::from([note("form", name_of(args.form)), note("numerics", name_of(args.numerics))]);
        if args.tf32.tf32 {
            notes.insert(TF32.into(), "true".into());
        }
        let plan = if is_model(&args.input) {
            let dtype = args.dtype.map_or(DType::F32, DType::from);
            notes.insert("dtype".into(), dtype.to_string());
            let (config, checkpoint) = model(&args.input)?;
            if let Some(recipe) = args.fp8.options(Some(&config)).recipe {
                notes.insert("fp8".into(), recipe.name);
            }
            let load = LoadOptions { dtype, ..LoadOptions::default() };
            compiled(&module(&config, checkpoint.as_ref(), &load)?, Some(&config))?
        } else {
            if args.dtype.is_some() {
                return Err(Usage("--dtype is for models: an IR file says its own types".into()).into());
            }
            let source = Source::read(&args.input)?;
            let module = source.module()?;
            compiled(&module, None).map_err(|error| source.blame(error))?
        };
        bars.end();
        let assembler = Assembler::find()?;
        let options = artifact::Options {
            threads: args.threads.unwrap_or_else(pool::default_threads),
            llvm: args.emit.contains(&Emit::Llvm),
            kernels: args.emit.contains(&Emit::Kernel),
            assembler,
            notes,
        };
        let caches = plan.funcs.keys().filter_map(|func| plan.cache_bytes(func).ok());
        let per_layer = caches.map(|caches| caches.per_layer()).max().unwrap_or(0);
        let kernels: Vec<_> = plan.kernels.iter().map(|(_, kernel)| kernel).collect();
        let bar = bars.counter("assembling", kernels.len());
        let step = || bar.as_ref().map_or((), |bar| bar.inc(1));
        let written = artifact::write(&args.output, &kernels, &options, &step)?;
        bars.clear();
        let folder = args.output.display();
        let made_by = options.assembler.as_ref().map(Assembler::name);
        let text = if args.json {
            let files: Vec<String> = written.files.iter().map(|file| file.display().to_string()).collect();
            let report = json!({
                "directory": folder.to_string(),
                "target": "sm_90a",
                "kernels": written.kernels,
                "ptx_bytes": written.ptx_bytes,
                "cubin_bytes": made_by.is_some().then_some(written.code_bytes),
                "assembler": made_by,
                "cache_bytes_per_token_per_layer": per_layer,
                "files": files,
            });
            format!("{report}\n")
        } else {
            let code = match &made_by {
                Some(name) => format!("{} of machine code ({name})", bytes(written.code_bytes)),
                None => "no machine code".into(),
            };
            let caches = match per_layer {
                0 => String::new(),
                n => format!(", {n} bytes of cache per token and layer"),
            };
            let (n, ptx) = (written.kernels, bytes(written.ptx_bytes));
            format!("{folder}: {n} kernel{}, {ptx} of PTX, {code}{caches}\n", if n == 1 { "" } else { "s" })
        };
        emit(&text)?;
        if made_by.is_none() {
            say(
                "note: there is no `ptxas` (EVA_PTXAS names it, or it is in PATH), and so no machine code: the driver \
                 makes it of the PTX on the first run, and it is kept",
            );
        }
        Ok(true)
    }
}
