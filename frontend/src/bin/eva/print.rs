//! `eva print`: a model, a block of it or an IR file as text; or the kernels that they become.

mod block;
mod kernels;

use super::fp8::Fp8Args;
use super::input::{self, Source, run_passes};
use super::ui::{FormArg, NumericsArg, Tf32Arg, TypeArg, Usage, emit, numerics, say};
use anyhow::Context;
use clap::Args as ClapArgs;
use clap::builder::PossibleValuesParser;
use eva::engine::{LoadOptions, module};
use eva::model::config::Config;
use eva::prelude::{DType, Module};
use eva_ir::text;
use eva_passes::cache::{CacheBytes, entries};
use eva_passes::{Options, PASSES};
use kernels::{EmitArg, TargetArg};
use std::path::{Path, PathBuf};

/// Arguments of `eva print`.
#[derive(ClapArgs)]
#[command(after_help = "\
Examples:
  eva print MODEL_DIR
  eva print MODEL_DIR/config.json --block layer.3.attention
  eva print MODEL_DIR --block attention --form absorbed
  eva print layer.eva --after attend
  eva print MODEL_DIR --block router --target cuda
  eva print layer.eva --emit ptx

Blocks are `layer`, `attention`, `norm`, `mlp`, `experts`, `router`, `shared` and `mtp`: the first of \
their kind, or that of one layer as in `layer.3.attention`; and every function that is printed \
without --block. Weights have the checkpoint's types, or, for a config.json alone, the \
configuration's.")]
pub struct Args {
    /// Directory with config.json and perhaps the checkpoint, a config.json, or an IR file (- for standard input)
    #[arg(value_name = "MODEL_DIR|CONFIG.json|FILE.eva")]
    input: PathBuf,
    /// Only this block or function, with the functions that it calls
    #[arg(long, value_name = "BLOCK")]
    block: Option<String>,
    /// Print what the passes up to this one make of it
    #[arg(long, value_name = "PASS", value_parser = PossibleValuesParser::new(PASSES))]
    after: Option<String>,
    /// Print the kernels for this target
    #[arg(long, value_enum, value_name = "TARGET", conflicts_with = "after")]
    target: Option<TargetArg>,
    /// What to print of kernels [default: kernel]; ptx and llvm are for --target cuda
    #[arg(long, value_enum, value_name = "EMIT", conflicts_with = "after")]
    emit: Option<EmitArg>,
    /// Form of attention that the pass `form` makes; without --after or --target, print after that pass
    #[arg(long, value_enum)]
    form: Option<FormArg>,
    /// How far rewriting may move results
    #[arg(long, value_enum, default_value_t = NumericsArg::Reassociates)]
    numerics: NumericsArg,
    #[command(flatten)]
    tf32: Tf32Arg,
    #[command(flatten)]
    fp8: Fp8Args,
    /// Type of a model's activations and caches [default: f32]
    #[arg(long, value_enum)]
    dtype: Option<TypeArg>,
}

/// Prints; with `verbose` also says what caches take.
pub fn run(args: &Args, verbose: bool) -> anyhow::Result<bool> {
    let after = args.after.as_deref().or(args.form.map(|_| "form"));
    let last = after.and_then(|name| PASSES.iter().position(|pass| *pass == name));
    let passes: Vec<String> =
        PASSES[..last.map_or(0, |i| i + 1)].iter().map(|name| name.to_string()).collect();
    let wanted = kernels::wanted(args.target, args.emit)?;
    let form = args.form.unwrap_or(FormArg::Auto);
    let (numerics, fp8) = (numerics(form, args.numerics)?, args.fp8.options(None));
    let tf32 = args.tf32.on(args.target == Some(TargetArg::Cpu))? || after == Some("tf32");
    let mut options = Options { form: form.into(), numerics, tf32, fp8, ..Options::default() };

    if input::is_model(&args.input) {
        let dtype = args.dtype.map_or(DType::F32, DType::from);
        let (config, module) = of_model(&args.input, args.block.as_deref(), dtype)?;
        options.fp8 = args.fp8.options(Some(&config));
        let text = match wanted {
            Some((target, emit)) => kernels::text(&kernels::plan(&module, target, &options)?, emit)?,
            None => printed(&run_passes(module, &passes, &options)?, verbose),
        };
        emit(&text)?;
        return Ok(true);
    }
    if args.dtype.is_some() {
        return Err(Usage("--dtype is for models: an IR file says its own types".into()).into());
    }
    let source = Source::read(&args.input)?;
    let mut module = source.module()?;
    if let Some(name) = &args.block {
        let unknown = || format!("there is no function @{name}; the file has {}", block::functions(&module));
        let func = module.func(name.trim_start_matches('@')).with_context(unknown)?;
        module = block::only(&module, func);
    }
    let text = match wanted {
        Some((target, emit)) => {
            let plan = kernels::plan(&module, target, &options).map_err(|error| source.blame(error))?;
            kernels::text(&plan, emit)?
        }
        None => printed(&source.run(module, &passes, &options)?, verbose),
    };
    emit(&text)?;
    Ok(true)
}

/// The text of a module; if `verbose`, what a token takes in the caches of each function that users call is said too.
fn printed(module: &Module, verbose: bool) -> String {
    for func in entries(module) {
        let Ok(bytes) = CacheBytes::of(module, func) else { continue };
        if verbose && !bytes.states.is_empty() {
            let (name, layers) = (&module.funcs[func].name, bytes.layers().len());
            let (total, most) = (bytes.total(), bytes.per_layer());
            let layers = if layers == 1 { "one layer".into() } else { format!("{layers} layers") };
            say(&format!("@{name} caches {total} bytes a token, at most {most} a layer, in {layers}"));
        }
    }
    text::print(module)
}

/// A model's configuration, and its module or that of one of its blocks.
pub(super) fn of_model(path: &Path, wanted: Option<&str>, dtype: DType) -> anyhow::Result<(Config, Module)> {
    let (config, checkpoint) = input::model(path)?;
    let options = |mtp| LoadOptions { dtype, mtp, ..LoadOptions::default() };
    let Some(wanted) = wanted else {
        let module = module(&config, checkpoint.as_ref(), &options(false))?;
        return Ok((config, module));
    };
    let whole = module(&config, checkpoint.as_ref(), &options(true))?;
    let module = block::find(&config, &whole, wanted, dtype)?;
    Ok((config, module))
}
