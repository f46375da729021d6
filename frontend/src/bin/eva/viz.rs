//! `eva viz`: what compiling does, as a page.

use super::fp8::Fp8Args;
use super::input::{Source, is_model, model};
use super::ui::{FormArg, NumericsArg, Tf32Arg, TypeArg, Usage, emit, numerics, say};
use anyhow::{Context, bail};
use clap::{Args as ClapArgs, ValueEnum};
use eva::engine::{LoadOptions, module};
use eva::prelude::{DType, Module};
use eva::viz::{self, View, ViewOptions};
use eva_passes::Options;
use eva_passes::target::Target;
use std::path::PathBuf;

/// Arguments of `eva viz`.
#[derive(ClapArgs)]
#[command(after_help = "\
Examples:
  eva viz MODEL_DIR -o page.html
  eva viz layer.eva -o page.html --set b=1 --set s=1 --set t=4096
  eva viz MODEL_DIR/config.json --target cuda --json > view.json
  eva viz layer.eva --dot | dot -Tsvg -o layer.svg

The page is one file that loads nothing: the graph before and after each pass, what rules did and what \
they saved, which ops share a kernel, and which buffers lie where from which step to which.")]
pub struct Args {
    /// Directory with config.json and perhaps the checkpoint, a config.json, or an IR file (- for standard input)
    #[arg(value_name = "MODEL_DIR|CONFIG.json|FILE.eva")]
    input: PathBuf,
    /// File to write the page to
    #[arg(short, long = "output", value_name = "PAGE.html", required_unless_present_any = ["json", "dot"])]
    output: Option<PathBuf>,
    /// Print what the page shows as JSON
    #[arg(long, conflicts_with_all = ["output", "dot"])]
    json: bool,
    /// Print the graphs after all passes for Graphviz
    #[arg(long, conflicts_with = "output")]
    dot: bool,
    /// The machine that kernels are for
    #[arg(long, value_enum, value_name = "TARGET", default_value_t = Machine::Cpu)]
    target: Machine,
    /// Value of an extent that is left open, as in s=1; can be repeated [default: decoding one token]
    #[arg(long, value_name = "EXTENT=VALUE", value_parser = super::opt::setting)]
    set: Vec<(String, i64)>,
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
    /// Type of a model's activations and caches [default: f32]
    #[arg(long, value_enum)]
    dtype: Option<TypeArg>,
}

/// A machine with kernels of its own.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Machine {
    /// This machine's processor
    Cpu,
    /// NVIDIA's Hopper GPUs
    Cuda,
}

/// Compiles, and writes what was seen.
pub fn run(args: &Args) -> anyhow::Result<bool> {
    let target = match args.target {
        Machine::Cpu => Target::cpu(),
        Machine::Cuda => Target::cuda(),
    };
    let (numerics, fp8) = (numerics(args.form, args.numerics)?, args.fp8.options(None));
    let tf32 = args.tf32.on(args.target == Machine::Cpu)?;
    let passes = Options { form: args.form.into(), numerics, tf32, fp8, ..Options::default() };
    let mut options = ViewOptions { passes, sizes: args.set.iter().cloned().collect(), text: None };
    let title = args.input.display().to_string();
    let view = if is_model(&args.input) {
        let dtype = args.dtype.map_or(DType::F32, DType::from);
        let (config, checkpoint) = model(&args.input)?;
        options.passes.fp8 = args.fp8.options(Some(&config));
        let load = LoadOptions { dtype, ..LoadOptions::default() };
        let module = module(&config, checkpoint.as_ref(), &load)?;
        checked(&module, args)?;
        viz::view(&title, &module, &target, &options)?
    } else {
        if args.dtype.is_some() {
            return Err(Usage("--dtype is for models: an IR file says its own types".into()).into());
        }
        let source = Source::read(&args.input)?;
        let module = source.module()?;
        checked(&module, args)?;
        options.text = Some((source.name.clone(), source.text.clone()));
        let view = viz::view(&source.name, &module, &target, &options);
        view.map_err(|error| source.blame(error))?
    };
    write(args, &view)?;
    Ok(true)
}

fn write(args: &Args, view: &View) -> anyhow::Result<()> {
    if args.json {
        emit(&(serde_json::to_string(view)? + "\n"))?;
    } else if args.dot {
        emit(&viz::dot(view))?;
    } else if let Some(output) = &args.output {
        let name = output.display();
        std::fs::write(output, viz::page(view)).with_context(|| format!("{name}: cannot write it"))?;
        say(&format!("wrote {name}: {} kernels, {} stages", view.kernels.len(), view.stages.len()));
    }
    Ok(())
}

/// Checks that the extents set are open in the module.
fn checked(module: &Module, args: &Args) -> anyhow::Result<()> {
    for (name, value) in &args.set {
        match module.dims.iter().find(|(sym, _)| sym.as_str() == name) {
            None => {
                let open = module.dims.iter().filter(|(_, value)| value.is_none());
                let open: Vec<String> = open.map(|(sym, _)| format!("`{sym}`")).collect();
                bail!("--set {name}={value}: there is no extent `{name}`; open are {}", open.join(", "))
            }
            Some((_, Some(n))) if n != value => bail!("--set {name}={value}: `{name}` is {n}"),
            Some(_) => {}
        }
    }
    Ok(())
}
