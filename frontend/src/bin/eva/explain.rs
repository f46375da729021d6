//! `eva explain`: what the compiler decides for a block, and why.

use super::fp8::Fp8Args;
use super::input::{Source, is_model};
use super::print::of_model;
use super::ui::{CacheTypeArg, FormArg, NumericsArg, Tf32Arg, TypeArg, Usage, emit, numerics, size};
use anyhow::Context;
use clap::{Args as ClapArgs, ValueEnum};
use eva::engine::caches;
use eva::explain::{Question, explain, explainable, text};
use eva::memory;
use eva::model::Training;
use eva::model::config::Config;
use eva::precision;
use eva::prelude::{DType, Module};
use eva_passes::cost::{Machine, Metric};
use eva_passes::target::Target;
use eva_passes::{CacheOptions, Hoist, Options};
use std::path::PathBuf;

/// Arguments of `eva explain`.
#[derive(ClapArgs)]
#[command(after_help = "\
Examples:
  eva explain MODEL_DIR --new 1 --cached 4096 --target h100
  eva explain layer.eva --new 512 --cached 4096 --cost flops --json
  eva explain layer.eva --why-not mla_absorb_key
  eva explain MODEL_DIR --memory --batch 4 --new 512 --budget 2GiB

--target is h100, cpu, or a file as `eva bench calibrate -o FILE` writes it.")]
pub struct Args {
    /// Directory with config.json and perhaps the checkpoint, a config.json, or an IR file (- for standard input)
    #[arg(value_name = "MODEL_DIR|CONFIG.json|FILE.eva")]
    input: PathBuf,
    /// The block or function to explain [default: the first one with attention]
    #[arg(long, value_name = "BLOCK")]
    block: Option<String>,
    /// Sequences
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(i64).range(1..=1 << 40))]
    batch: i64,
    /// New tokens of each sequence
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(i64).range(1..=1 << 40))]
    new: i64,
    /// Tokens that each attends to, the new ones included
    #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(i64).range(1..=1 << 40))]
    cached: i64,
    /// The machine: h100, cpu, or a file that describes one
    #[arg(long, value_name = "h100|cpu|FILE.toml", default_value = "cpu")]
    target: String,
    /// What cost is
    #[arg(long, value_enum, default_value_t = CostArg::Roofline)]
    cost: CostArg,
    /// Say why this rule does nothing
    #[arg(long, value_name = "RULE")]
    why_not: Option<String>,
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
    /// Elements of caches
    #[arg(long, value_enum, default_value_t = CacheTypeArg::Auto)]
    kv_cache_dtype: CacheTypeArg,
    /// Rows of a page, where caches are kept in pages
    #[arg(long, value_name = "ROWS")]
    page_size: Option<usize>,
    /// Do not compute weights from weights when they are loaded (no folding, no joined projections)
    #[arg(long)]
    no_hoist: bool,
    /// Type of a model's activations and caches [default: f32]
    #[arg(long, value_enum)]
    dtype: Option<TypeArg>,
    /// Print what each product is computed in, and why, in place of the form of attention
    #[arg(long, conflicts_with = "why_not")]
    precision: bool,
    /// Print what a training step of --batch sequences of --new tokens takes in memory, what is kept and computed again, and
    /// which forms of attention both directions have
    #[arg(long, conflicts_with_all = ["why_not", "precision"])]
    memory: bool,
    /// With --memory: the most that activations may take, such as 900MB or 16GiB
    #[arg(long, value_name = "BYTES", requires = "memory", value_parser = budget)]
    budget: Option<usize>,
    /// With --memory: what activations may be kept as; this changes gradients
    #[arg(long, value_name = "TYPE", requires = "memory")]
    store: Option<StoreArg>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What activations are kept as.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum StoreArg {
    /// 16 bits
    Bf16,
    /// 8 bits, with a scale for 128 neighbours
    Fp8,
}

/// The most bytes that activations may take.
fn budget(text: &str) -> Result<usize, String> {
    let bytes = size(text).map_err(|why| format!("it has no unit or no number that is known: {why}"))?;
    usize::try_from(bytes).map_err(|e| e.to_string())
}

/// What cost is.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum CostArg {
    /// Floating-point operations
    Flops,
    /// Seconds: arithmetic or memory, and launches
    Roofline,
}

/// Explains.
pub fn run(args: &Args) -> anyhow::Result<bool> {
    if args.new > args.cached && !args.memory {
        let message =
            format!("--new {} of --cached {}: the new tokens are attended to, too", args.new, args.cached);
        return Err(Usage(message).into());
    }
    if args.memory {
        return memory(args);
    }
    let machine = match args.target.as_str() {
        "h100" | "cuda" => Machine::h100(),
        "cpu" => Machine::cpu(),
        file => {
            let text = std::fs::read_to_string(file)
                .with_context(|| format!("{file}: cannot read it (targets are h100, cpu, or a file)"))?;
            Machine::from_toml(&text).with_context(|| file.to_string())?
        }
    };
    let mut options = Options {
        fp8: args.fp8.options(None),
        form: args.form.into(),
        numerics: numerics(args.form, args.numerics)?,
        tf32: args.tf32.on(args.target == "cpu")?,
        cache: CacheOptions {
            page: args.page_size,
            elements: args.kv_cache_dtype.into(),
            ..CacheOptions::default()
        },
        hoist: if args.no_hoist { Hoist::Never } else { Hoist::AtLoad },
        machine: Some(machine.clone()),
        ..Options::default()
    };
    let mut question = Question {
        batch: args.batch,
        new: args.new,
        cached: args.cached,
        machine,
        metric: if args.cost == CostArg::Flops { Metric::Flops } else { Metric::Roofline },
        why_not: args.why_not.clone(),
        text: None,
    };
    if let Some(rule) = &args.why_not {
        eva::explain::rule(rule).map_err(Usage)?;
    }
    let (module, source) = if is_model(&args.input) {
        let dtype = args.dtype.map_or(DType::F32, DType::from);
        let (config, module) = of_model(&args.input, args.block.as_deref(), dtype)?;
        options.fp8 = args.fp8.options(Some(&config));
        options.cache = caches(&config, options.cache);
        (module, None)
    } else {
        if args.dtype.is_some() {
            return Err(Usage("--dtype is for models: an IR file says its own types".into()).into());
        }
        let source = Source::read(&args.input)?;
        (source.module()?, Some(source))
    };
    question.text = source.as_ref().map(|source| (source.name.clone(), source.text.clone()));
    let name = function(&module, args, source.is_some())?;
    let blame = |error| match &source {
        Some(source) => source.blame(error),
        None => anyhow::Error::from(error),
    };
    if matches!(args.target.as_str(), "h100" | "cuda") {
        options.fp8.multiple = Target::cuda().sums_of_eight_bits();
        options.fp8.neighbours = Target::cuda().sums_neighbours_of_eight_bits();
    }
    if args.precision {
        let answer = precision::precision(&module, &name, &options, &question).map_err(blame)?;
        emit(&if args.json {
            serde_json::to_string_pretty(&answer)? + "\n"
        } else {
            precision::text(&answer)
        })?;
        return Ok(true);
    }
    let answer = explain(&module, &name, &options, &question).map_err(blame)?;
    emit(&if args.json { serde_json::to_string_pretty(&answer)? + "\n" } else { text(&answer) })?;
    Ok(true)
}

/// Explains what a training step takes, and in which form.
fn memory(args: &Args) -> anyhow::Result<bool> {
    if !is_model(&args.input) {
        return Err(Usage("--memory is for models: a directory or a config.json".into()).into());
    }
    // Either has operands in memory that are not counted here.
    for (name, asked) in [("--tf32", args.tf32.tf32), ("--fp8", args.fp8.recipe().is_some())] {
        if asked {
            return Err(Usage(format!("--memory is for steps without {name}")).into());
        }
    }
    let target = match args.target.as_str() {
        "h100" | "cuda" => Target::cuda(),
        "cpu" => Target::cpu(),
        other => return Err(Usage(format!("--memory is for h100 or cpu, not {other}")).into()),
    };
    let config = Config::load(&args.input).with_context(|| args.input.display().to_string())?;
    let question = memory::Question {
        batch: args.batch,
        tokens: args.new,
        training: Training { dtype: args.dtype.map_or(DType::F32, DType::from), ..Training::default() },
        budget: args.budget,
        store: args.store.map(|store| if store == StoreArg::Bf16 { DType::Bf16 } else { DType::F8E4M3 }),
        form: args.form.into(),
        numerics: numerics(args.form, args.numerics)?,
    };
    let answer = memory::memory(&config, &question, &target)?;
    emit(&if args.json { serde_json::to_string_pretty(&answer)? + "\n" } else { memory::text(&answer) })?;
    Ok(true)
}

/// The function to explain.
fn function(module: &Module, args: &Args, named: bool) -> anyhow::Result<String> {
    let names = explainable(module);
    if let (true, Some(block)) = (named, &args.block) {
        let name = block.trim_start_matches('@');
        let all: Vec<String> = module.funcs.iter().map(|(_, f)| format!("@{}", f.name)).collect();
        let unknown = || format!("there is no function @{name}; the file has {}", all.join(", "));
        return Ok(module.funcs[module.func(name).with_context(unknown)?].name.clone());
    }
    names.into_iter().next().context("no function here has attention to explain")
}
