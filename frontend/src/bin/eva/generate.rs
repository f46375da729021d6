//! `eva generate`: tokens from a model.

mod many;

use super::fp8::Fp8Args;
use super::ui::{
    Bars, CacheArg, CacheTypeArg, FormArg, NO_CUDA, NumericsArg, Tf32Arg, TypeArg, Usage, bytes, count,
    device, emit, name_of, numerics, say,
};
use anyhow::{Context, bail};
use clap::{ArgGroup, Args as ClapArgs, ValueEnum};
use eva::engine::{LoadOptions, Model, check_prompt};
use eva::model::config::Config;
use eva::tokenizer::Tokenizer;
use eva_passes::CacheOptions;
use eva_passes::fp8::Recipe;
use eva_runtime::sample::{Sampler, Sampling};
use eva_runtime::{Device, Executable};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Arguments of `eva generate`.
#[derive(ClapArgs)]
#[command(group(ArgGroup::new("input").required(true).args(["prompt", "tokens"])), after_help = "\
Examples:
  eva generate MODEL_DIR --prompt 'Once upon a time' --max-new-tokens 64
  eva generate MODEL_DIR --prompt 'To be' --max-new-tokens 64 --temperature 0.7 --seed 1
  eva generate MODEL_DIR --tokens 17,4,250 --max-new-tokens 8
  eva generate MODEL_DIR --prompt 'Once upon a time' --max-new-tokens 64 --target cuda --dtype bf16

With --tokens the ids of the new tokens are printed, separated by commas, on one line. Generation \
ends early after a token that ends a text (`eos_token_id` of config.json).")]
pub struct Args {
    /// Directory with config.json and the checkpoint
    model_dir: PathBuf,
    /// Text to go on from; needs the model's tokenizer.json. With --page-size, can be repeated
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: Vec<String>,
    /// Token ids to go on from, separated by commas. With --page-size, can be repeated
    #[arg(long, value_name = "IDS", allow_hyphen_values = true, value_parser = ids)]
    tokens: Vec<Ids>,
    /// How many tokens to make at most
    #[arg(long, value_name = "N", value_parser = count)]
    max_new_tokens: usize,
    /// Divides the logits before sampling; 0 takes the most probable token [default: 0, or 1 with --top-k or --top-p]
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    temperature: Option<f64>,
    /// Sample from this many most probable tokens
    #[arg(long, value_name = "K", value_parser = count)]
    top_k: Option<usize>,
    /// Sample from the most probable tokens that have this probability together
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    top_p: Option<f64>,
    /// Where the random numbers of sampling start
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// What to run on: cpu, cuda (the first GPU) or cuda:N [default: cpu, or cuda with --artifact]
    #[arg(long, value_name = "TARGET", value_parser = device)]
    target: Option<Device>,
    /// Folder that `eva compile` made of this model: its kernels are used, and not compiled
    #[arg(long, value_name = "DIR", value_parser = artifact)]
    artifact: Option<PathBuf>,
    /// Type of activations and of the cache [default: f32, or the artifact's]
    #[arg(long, value_enum)]
    dtype: Option<TypeArg>,
    /// Form of attention [default: auto, or the artifact's]
    #[arg(long, value_enum)]
    form: Option<FormArg>,
    /// How far rewriting may move results [default: reassociates, or the artifact's]
    #[arg(long, value_enum)]
    numerics: Option<NumericsArg>,
    #[command(flatten)]
    tf32: Tf32Arg,
    #[command(flatten)]
    fp8: Fp8Args,
    /// Keep statistics of everything that is quantized, and say what it changed most: on standard error, or as JSON in a
    /// file
    #[arg(long, value_name = "FILE.json", num_args = 0..=1, default_missing_value = "-", conflicts_with = "artifact")]
    fp8_report: Option<PathBuf>,
    /// What caches keep of a token
    #[arg(long, value_enum, default_value_t = CacheArg::Auto)]
    cache: CacheArg,
    /// Elements of caches
    #[arg(long, value_enum, default_value_t = CacheTypeArg::Auto)]
    kv_cache_dtype: CacheTypeArg,
    /// Look at what every kernel writes, and stop at the first NaN or infinity, naming its op (slow)
    #[arg(long)]
    check_finite: bool,
    /// Keep caches in pages of this many tokens; several prompts then go together, and share the pages of what they
    /// begin with
    #[arg(long, value_name = "N", value_parser = count)]
    page_size: Option<usize>,
    /// Pages in the pool [default: as many as are needed]
    #[arg(long, value_name = "N", value_parser = count, requires = "page_size")]
    pages: Option<usize>,
    /// The most bytes that a token may take in the caches of one layer [default: `eva.kv_budget` of config.json]
    #[arg(long, value_name = "BYTES", value_parser = count)]
    kv_budget: Option<usize>,
    /// Threads that compile and, on the CPU, run kernels [default: EVA_THREADS, or the processors]
    #[arg(long, value_name = "N", value_parser = count)]
    threads: Option<usize>,
    /// Go on after a token that ends a text
    #[arg(long)]
    ignore_eos: bool,
    /// Print tokens, text and measurements as JSON, when all is done
    #[arg(long)]
    json: bool,
}

/// Token ids on the command line; none for an empty text, which the engine refuses.
#[derive(Clone)]
struct Ids(Vec<u32>);

fn ids(text: &str) -> Result<Ids, String> {
    if text.trim().is_empty() {
        return Ok(Ids(Vec::new()));
    }
    let id = |part: &str| {
        let wrong =
            || format!("`{part}` is not a token id: ids are whole numbers from 0, separated by commas");
        part.trim().parse().map_err(|_| wrong())
    };
    text.split(',').map(id).collect::<Result<_, _>>().map(Ids)
}

/// The folder of an artifact, which only some builds can use.
fn artifact(text: &str) -> Result<PathBuf, String> {
    if cfg!(feature = "cuda") { Ok(text.into()) } else { Err(NO_CUDA.into()) }
}

/// How the model is loaded: as the command line says, or else as the artifact was made.
fn load_options(args: &Args) -> anyhow::Result<LoadOptions> {
    let made = args.artifact.as_deref().map_or(Ok(MadeWith::default()), made_with)?;
    let device = match (args.target, &args.artifact) {
        (Some(Device::Cpu), Some(_)) => {
            let message = "--target cpu and --artifact: an artifact has code for GPUs";
            return Err(Usage(message.into()).into());
        }
        (Some(device), _) => device,
        (None, Some(_)) => Device::Cuda(0),
        (None, None) => Device::Cpu,
    };
    let form = agreed("--form", args.form, made.form)?.unwrap_or(FormArg::Auto);
    let moved = agreed("--numerics", args.numerics, made.numerics)?.unwrap_or(NumericsArg::Reassociates);
    Ok(LoadOptions {
        dtype: agreed("--dtype", args.dtype, made.dtype)?.unwrap_or(TypeArg::F32).into(),
        form: form.into(),
        numerics: numerics(form, moved)?,
        tf32: match (args.tf32.on(device == Device::Cpu)?, &args.artifact) {
            (true, Some(_)) if !made.tf32 => {
                return Err(Usage("--tf32: the artifact was made without it".into()).into());
            }
            (asked, _) => asked || made.tf32,
        },
        fp8: args.fp8.recipe().or_else(|| Recipe::named(&made.fp8?)),
        deny_fp8_fallback: args.fp8.deny_fallback(),
        fp8_report: args.fp8_report.is_some(),
        cache: CacheOptions { elements: args.kv_cache_dtype.into(), ..args.cache.options(args.page_size) },
        check_finite: args.check_finite,
        expanded_cache: args.cache == CacheArg::Expanded,
        kv_budget: args.kv_budget.map(|bytes| bytes as u64),
        device,
        artifact: args.artifact.clone(),
        threads: args.threads,
        ..LoadOptions::default()
    })
}

/// What an artifact was made with, as far as it says so.
#[derive(Default)]
struct MadeWith {
    dtype: Option<TypeArg>,
    form: Option<FormArg>,
    numerics: Option<NumericsArg>,
    /// Whether operands of `f32` products are rounded.
    tf32: bool,
    /// The name of the recipe for 8-bit floats.
    fp8: Option<String>,
}

#[cfg(feature = "cuda")]
fn made_with(folder: &Path) -> anyhow::Result<MadeWith> {
    let artifact = eva_runtime::cuda::artifact::Artifact::open(folder)?;
    let notes = &artifact.manifest().notes;
    fn note<T: ValueEnum>(notes: &std::collections::BTreeMap<String, String>, name: &str) -> Option<T> {
        T::from_str(notes.get(name)?, false).ok()
    }
    let fp8 = notes.get("fp8").cloned();
    Ok(MadeWith {
        dtype: note(notes, "dtype"),
        form: note(notes, "form"),
        numerics: note(notes, "numerics"),
        tf32: notes.contains_key(super::ui::TF32),
        fp8,
    })
}

#[cfg(not(feature = "cuda"))]
fn made_with(_: &Path) -> anyhow::Result<MadeWith> {
    bail!(NO_CUDA)
}

/// What was asked for, which must not differ from what the artifact was made with.
fn agreed<T: ValueEnum + PartialEq>(
    option: &str,
    asked: Option<T>,
    made: Option<T>,
) -> anyhow::Result<Option<T>> {
    match (asked, made) {
        (Some(asked), Some(made)) if asked != made => {
            let (asked, made) = (name_of(asked), name_of(made));
            Err(Usage(format!("{option} {asked}: the artifact was made with {option} {made}")).into())
        }
        (asked, made) => Ok(asked.or(made)),
    }
}

/// Loads, generates and prints; with `verbose` also what it took.
pub fn run(args: &Args, verbose: bool, bars: &Bars) -> anyhow::Result<bool> {
    let choosy = args.top_k.is_some() || args.top_p.is_some();
    let sampling = Sampling {
        temperature: args.temperature.unwrap_or(if choosy { 1.0 } else { 0.0 }),
        top_k: args.top_k,
        top_p: args.top_p,
        seed: args.seed,
    };
    Sampler::new(sampling).map_err(|error| Usage(format!("{error}")))?;
    // What is wrong with the prompt is said before a large model is loaded.
    let config = Config::load(&args.model_dir)?;
    if args.prompt.iter().any(String::is_empty) {
        bail!("the prompt is empty: give some text, or token ids with --tokens");
    }
    let tokenizer = match args.prompt.is_empty() {
        false => Some(Tokenizer::load(&args.model_dir, config.vocab)?),
        true => None,
    };
    let prompts: Vec<Vec<u32>> = match &tokenizer {
        Some(tokenizer) => args.prompt.iter().map(|text| tokenizer.encode(text)).collect::<Result<_, _>>()?,
        None => args.tokens.iter().map(|ids| ids.0.clone()).collect(),
    };
    for prompt in &prompts {
        check_prompt(&config, prompt, args.max_new_tokens)?;
    }
    let prompt = match prompts.as_slice() {
        [prompt] if args.pages.is_none() => prompt.clone(),
        _ if args.fp8_report.is_some() => {
            return Err(Usage("--fp8-report is of one prompt, without --pages".into()).into());
        }
        _ => return many::run(args, &prompts, tokenizer.as_ref(), sampling, verbose, bars),
    };

    let options = load_options(args)?;
    let started = Instant::now();
    let model = Model::load(&args.model_dir, &options, bars)?;
    let load_time = started.elapsed();
    let mut generator = model.generator(&prompt, args.max_new_tokens, sampling)?;
    if args.ignore_eos {
        generator.ignore_eos();
    }
    let capacity = prompt.len() + args.max_new_tokens;
    let arena = (generator.arena_bytes()?, generator.arena_bytes_for(1, capacity)?);

    let mut stream = tokenizer.as_ref().map(Tokenizer::stream);
    let (mut tokens, mut text) = (Vec::new(), String::new());
    let mut show = |piece: &str| {
        text.push_str(piece);
        if args.json { Ok(()) } else { emit(piece) }
    };
    let (mut prefill, mut decode) = (Duration::ZERO, Duration::ZERO);
    loop {
        let started = Instant::now();
        let Some(token) = generator.step()? else { break };
        *(if tokens.is_empty() { &mut prefill } else { &mut decode }) += started.elapsed();
        tokens.push(token);
        if let Some(stream) = &mut stream {
            show(&stream.push(token)?)?;
        }
    }
    if let Some(stream) = stream {
        show(&stream.finish()?)?;
    }
    let ended = !args.ignore_eos && tokens.last().is_some_and(|last| model.config.eos.contains(last));
    if args.json {
        let report = json!({
            "prompt": prompt,
            "tokens": tokens,
            "text": tokenizer.is_some().then_some(&text),
            "finish": if ended { "eos" } else { "length" },
            "target": options.device.to_string(),
            "compilations": model.compilations,
            "compile_seconds": model.compile_time.as_secs_f64(),
            "load_seconds": load_time.as_secs_f64(),
            "kernels": model.executable().plan().kernels.len(),
            "threads": model.executable().threads(),
            "weight_bytes": model.weight_bytes(),
            "cache_bytes_per_token": generator.cache_bytes_per_token(),
            "cache_bytes_per_token_per_layer": generator.cache_bytes_per_token_and_layer(),
            "cache_bytes": generator.cache_bytes(),
            "arena_bytes": {"prefill": arena.0, "decode": arena.1},
            "prefill_seconds": prefill.as_secs_f64(),
            "decode_seconds": decode.as_secs_f64(),
        });
        emit(&format!("{report}\n"))?;
    } else if tokenizer.is_some() {
        emit("\n")?;
    } else {
        let words: Vec<String> = tokens.iter().map(u32::to_string).collect();
        emit(&format!("{}\n", words.join(",")))?;
    }
    if let Some(path) = &args.fp8_report {
        report(path, generator.report())?;
    }
    if verbose {
        let executable = model.executable();
        let speed = |n: usize, time: Duration| {
            let seconds = time.as_secs_f64();
            format!(
                "{n} token{} in {seconds:.3} s, {:.1}/s",
                if n == 1 { "" } else { "s" },
                n as f64 / seconds
            )
        };
        say(&format!(
            "compilations  {} (one serves every length)\n\
             compile time  {:.3} s ({})\n\
             kernels       {} ({} of machine code)\n\
             runs on       {}\n\
             weights       {}\n\
             cache         {} bytes per token, {} for {capacity} tokens, {} bytes per token and layer\n\
             arena         {} for prefill, {} for decoding\n\
             prefill       {}",
            model.compilations,
            model.compile_time.as_secs_f64(),
            spent(executable),
            executable.plan().kernels.len(),
            bytes(executable.code_bytes()),
            place(executable),
            bytes(model.weight_bytes()),
            generator.cache_bytes_per_token(),
            bytes(generator.cache_bytes()),
            generator.cache_bytes_per_token_and_layer(),
            bytes(arena.0),
            bytes(arena.1),
            speed(prompt.len(), prefill),
        ));
        if tokens.len() > 1 {
            say(&format!("decode        {}", speed(tokens.len() - 1, decode)));
        }
    }
    Ok(true)
}

/// How many values a report for people has.
const WORST: usize = 20;

/// Says what quantizing did, or writes it to a file.
fn report(path: &Path, report: &eva::quantized::Report) -> anyhow::Result<()> {
    if path == Path::new("-") {
        say(report.text(WORST).trim_end());
        return Ok(());
    }
    let json = serde_json::to_string_pretty(&report.rows())? + "\n";
    std::fs::write(path, json).with_context(|| format!("cannot write {}", path.display()))
}

/// What a compilation spent its time on.
fn spent(executable: &Executable) -> String {
    let times = executable.times;
    let [passes, codegen, ptx, assemble, load] =
        [times.passes, times.codegen, times.ptx, times.assemble, times.load].map(|time| time.as_secs_f64());
    let all = format!("passes {passes:.3} s, machine code {codegen:.3} s");
    match executable.device() {
        Device::Cpu => all,
        Device::Cuda(_) => format!(
            "{all}; on all threads: PTX {ptx:.3} s, assembling {assemble:.3} s, loading {load:.3} s; {} of {} kernels \
             were kept from before",
            times.cached,
            executable.plan().kernels.len()
        ),
    }
}

/// What an executable runs on.
fn place(executable: &Executable) -> String {
    #[cfg(feature = "cuda")]
    if let Some(gpu) = executable.gpu() {
        return format!("{}, {}", executable.device(), gpu.properties.name);
    }
    match executable.threads() {
        1 => "cpu, one thread".into(),
        n => format!("cpu, {n} threads"),
    }
}
