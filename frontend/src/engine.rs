//! Running a model from its directory: [`Model`] is compiled code with weights, [`Generator`] makes tokens.
//!
//! ```no_run
//! use eva::engine::{LoadOptions, Model, Quiet};
//! use eva_runtime::sample::Sampling;
//! let model = Model::load("path/to/model".as_ref(), &LoadOptions::default(), &Quiet)?;
//! let mut generator = model.generator(&[1, 2, 3], 16, Sampling::default())?;
//! while let Some(token) = generator.step()? {
//!     println!("{token}");
//! }
//! # Ok::<(), eva::engine::EngineError>(())
//! ```

use crate::model::config::{Attention, CheckError, Config, ConfigError, ScaleFormat};
use crate::model::{Options, causal_lm};
use crate::quantized::Report;
use eva_ir::diag::Diags;
use eva_ir::graph::Module;
use eva_ir::types::DType;
use eva_passes::cache::Layout;
use eva_passes::fp8::{self, Recipe};
use eva_passes::{CacheOptions, Exactness, Form, Pass, Rule};
use eva_runtime::checkpoint::{Checkpoint, CheckpointError};
use eva_runtime::sample::{SampleError, Sampler, Sampling};
use eva_runtime::{CompileOptions, Device, Executable, Pages, Session, States, Tensor, Weights, weights};
pub(crate) use load::expert_name;
use load::load_weights;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

mod batch;
mod load;

pub use batch::{Batch, pages_needed};

/// How a model is loaded.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// The element type of activations and caches.
    pub dtype: DType,
    /// The form of attention.
    pub form: Form,
    /// How far rewriting may move results.
    pub numerics: Exactness,
    /// Whether products of `f32` have operands rounded to `tf32`; for GPUs ([`eva_passes::Options::tf32`]).
    pub tf32: bool,
    /// Rules of the user's own.
    pub rules: Vec<Rule>,
    /// Passes of the user's own.
    pub passes: Vec<Pass>,
    /// Which products have 8-bit operands; [`default_recipe`]'s if not given.
    pub fp8: Option<Recipe>,
    /// Whether a product that the recipe wants in 8 bits and that cannot be is an error.
    pub deny_fp8_fallback: bool,
    /// Whether statistics are kept of everything that is quantized; see [`Generator::report`].
    pub fp8_report: bool,
    /// How caches are laid out.
    pub cache: CacheOptions,
    /// Whether the model is written with the keys and values of every head in its caches; see
    /// [`Options::expanded_cache`].
    pub expanded_cache: bool,
    /// How many bytes a token may take in the caches of one layer; the configuration's by default.
    pub kv_budget: Option<u64>,
    /// What the model runs on.
    pub device: Device,
    /// For a GPU: the folder of an artifact with the kernels, which are then not compiled. It must have been made of this
    /// model with the same type and form.
    pub artifact: Option<PathBuf>,
    /// Whether every kernel's results are looked at, and the first NaN or infinity is an error that names its op; see
    /// [`Session::check_finite`].
    pub check_finite: bool,
    /// Threads; `EVA_THREADS` or the machine's processors if not given.
    pub threads: Option<usize>,
    /// The functions to prepare: `main` for generation, `forward` for the logits of every token.
    pub entries: Vec<String>,
    /// Whether intermediate values become results; see [`Options::taps`].
    pub taps: bool,
    /// Whether layer 0's attention probabilities are among them.
    pub attn_probs: bool,
    /// Whether the MTP modules are loaded.
    pub mtp: bool,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            dtype: DType::F32,
            form: Form::Auto,
            numerics: Exactness::default(),
            tf32: false,
            rules: Vec::new(),
            passes: Vec::new(),
            fp8: None,
            deny_fp8_fallback: false,
            fp8_report: false,
            cache: CacheOptions::default(),
            expanded_cache: false,
            kv_budget: None,
            device: Device::Cpu,
            artifact: None,
            check_finite: false,
            threads: None,
            entries: vec!["main".into()],
            taps: false,
            attn_probs: false,
            mtp: false,
        }
    }
}

/// Why a model cannot be loaded or run.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The checkpoint's files.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The checkpoint does not fit the configuration.
    #[error(transparent)]
    Check(#[from] CheckError),
    /// The module made of the configuration.
    #[error("{0}")]
    Module(Diags),
    /// Compiling or running.
    #[error(transparent)]
    Runtime(#[from] eva_runtime::Error),
    /// Sampling.
    #[error(transparent)]
    Sample(#[from] SampleError),
    /// Something that is not there yet.
    #[error("{0}")]
    Unsupported(String),
    /// A prompt that cannot be run.
    #[error("{0}")]
    Prompt(String),
}

/// Told of what takes long while a model is loaded.
pub trait Progress {
    /// A part of the work begins; `total` steps if known.
    fn begin(&self, what: &str, total: usize);
    /// One step of it is done.
    fn step(&self);
    /// The part is done.
    fn end(&self);
}

/// A [`Progress`] that shows nothing.
pub struct Quiet;

impl Progress for Quiet {
    fn begin(&self, _: &str, _: usize) {}
    fn step(&self) {}
    fn end(&self) {}
}

/// A model's machine code and weights.
pub struct Model {
    /// The configuration.
    pub config: Config,
    executable: Arc<Executable>,
    weights: Weights,
    /// How long compiling took, from the module to machine code.
    pub compile_time: Duration,
    /// How many compilations were made: one serves every length.
    pub compilations: usize,
    check_finite: bool,
}

impl Model {
    /// Reads the configuration, maps the checkpoint, checks that they fit, and compiles.
    pub fn load(dir: &Path, options: &LoadOptions, progress: &dyn Progress) -> Result<Self, EngineError> {
        let config = Config::load(dir)?;
        let checkpoint = Arc::new(Checkpoint::open(dir)?);
        config.check(&checkpoint, options.mtp)?;
        let started = Instant::now();
        progress.begin("compiling", 0);
        let module = module(&config, Some(&checkpoint), options)?;
        let (threads, device) = (options.threads, options.device);
        let mut compile = CompileOptions { threads, device, ..CompileOptions::default() };
        compile.passes.form = options.form;
        compile.passes.numerics = options.numerics;
        compile.passes.tf32 = options.tf32;
        compile.passes.rules = options.rules.clone();
        compile.passes.passes = options.passes.clone();
        compile.passes.cache = caches(&config, options.cache);
        let recipe = options.fp8.clone().or_else(|| default_recipe(&config));
        let (deny_fallback, observe) = (options.deny_fp8_fallback, options.fp8_report);
        compile.passes.fp8 = fp8::Options { recipe, deny_fallback, observe, ..Default::default() };
        use_artifact(&mut compile, options)?;
        let executable = Arc::new(Executable::compile(&module, &compile)?);
        progress.end();
        let compile_time = started.elapsed();
        let mut weights = load_weights(&config, &executable, &checkpoint, &options.entries, progress)?;
        let entries: Vec<&str> = options.entries.iter().map(String::as_str).collect();
        let prepares = |entry: &&&str| {
            executable.func(entry).is_ok_and(|func| executable.func_plan(func).prepare.is_some())
        };
        if entries.iter().any(|entry| prepares(&entry)) {
            progress.begin("computing what weights alone decide", 0);
            executable.prepare(&entries, &mut weights)?;
            progress.end();
        }
        let check_finite = options.check_finite;
        Ok(Self { config, executable, weights, compile_time, compilations: 1, check_finite })
    }

    /// The machine code.
    pub fn executable(&self) -> &Arc<Executable> {
        &self.executable
    }

    /// A function of the model, ready to be called. It must be among [`LoadOptions::entries`].
    pub fn session(&self, entry: &str) -> Result<Session, EngineError> {
        let mut session = Session::new(self.executable.clone(), entry, &self.weights)?;
        session.check_finite(self.check_finite);
        Ok(session)
    }

    /// Bytes of weights in memory, those included that were computed of others when the model was loaded.
    pub fn weight_bytes(&self) -> usize {
        self.weights.values().map(|weight| weight.bytes()).sum()
    }

    /// Checks token ids against the vocabulary.
    pub fn check_tokens(&self, ids: &[u32]) -> Result<(), EngineError> {
        check_tokens(&self.config, ids)
    }

    /// Makes up to `max_new` tokens after a prompt.
    pub fn generator(
        &self,
        prompt: &[u32],
        max_new: usize,
        sampling: Sampling,
    ) -> Result<Generator, EngineError> {
        check_prompt(&self.config, prompt, max_new)?;
        let wanted = prompt.len() + max_new;
        let session = self.session("main")?;
        // Alone, a sequence has all pages of its pool.
        let (states, paged) = match session.page_rows() {
            Some(rows) => {
                let mut pages = Pages::new(wanted.div_ceil(rows), rows);
                let states = session.new_pages(pages.count())?;
                let mut sequence = pages.sequence();
                pages.reserve(&mut sequence, wanted)?;
                (states, Some(pages.table(&[&sequence])))
            }
            None => (session.new_states(1, wanted)?, None),
        };
        let sampler = Sampler::new(sampling)?;
        let pending = prompt.to_vec();
        Ok(Generator {
            report: Report::new(self.executable.plan(), "main"),
            session,
            states,
            table: paged,
            sampler,
            pending,
            cached: 0,
            left: max_new,
            eos: self.config.eos.clone(),
            logits: Vec::new(),
        })
    }
}

/// How a model's caches are laid out where `options` ask for the fewest bytes. The keys and values of standard attention stay
/// as they are written: they could be made again of their layer's input, which is less to keep, but for all cached tokens in
/// each call.
pub fn caches(config: &Config, options: CacheOptions) -> CacheOptions {
    match config.attention {
        Attention::Latent => options,
        Attention::Standard => CacheOptions { layout: Layout::AsWritten, ..options },
    }
}

/// How a model runs with 8-bit floats if nothing else is asked for: one whose weights are 8 bits multiplies them with
/// 8-bit activations, all but those of `kv_b_proj`, so that every form of attention is possible. Their scales are powers
/// of two if `scale_fmt` says so.
pub fn default_recipe(config: &Config) -> Option<Recipe> {
    let name = match config.quantization.as_ref()?.scale_fmt {
        ScaleFormat::Float => "w8a8-absorb",
        ScaleFormat::PowerOfTwo => "w8a8-absorb-ue8m0",
    };
    Recipe::named(name)
}

/// Has kernels come from the artifact, if there is one.
fn use_artifact(compile: &mut CompileOptions, options: &LoadOptions) -> Result<(), EngineError> {
    if options.artifact.is_some() && options.device == Device::Cpu {
        let message = "an artifact has code for GPUs, and the model is to run on the CPU";
        return Err(EngineError::Unsupported(message.into()));
    }
    #[cfg(feature = "cuda")]
    {
        compile.cuda.artifact = options.artifact.clone();
    }
    // Without CUDA, compiling for a GPU fails.
    #[cfg(not(feature = "cuda"))]
    let _ = compile;
    Ok(())
}

fn check_tokens(config: &Config, ids: &[u32]) -> Result<(), EngineError> {
    let vocab = config.vocab;
    match ids.iter().enumerate().find(|&(_, &id)| id as usize >= vocab) {
        None => Ok(()),
        Some((i, id)) => {
            let message = format!(
                "token {i} of the prompt is {id}, but the vocabulary has {vocab} tokens (0 to {})",
                vocab - 1
            );
            Err(EngineError::Prompt(message))
        }
    }
}

/// Checks that a model can make `max_new` tokens after a prompt: its length, and its ids. Needs no weights.
pub fn check_prompt(config: &Config, prompt: &[u32], max_new: usize) -> Result<(), EngineError> {
    if prompt.is_empty() {
        return Err(EngineError::Prompt("the prompt is empty: give at least one token".into()));
    }
    check_tokens(config, prompt)?;
    let (wanted, most) = (prompt.len().saturating_add(max_new), config.max_positions);
    if wanted > most {
        let message = format!(
            "{} tokens of prompt and {max_new} new make {wanted}, but the model's longest sequence is {most} \
             (`max_position_embeddings`)",
            prompt.len()
        );
        return Err(EngineError::Prompt(message));
    }
    Ok(())
}

/// Refuses what no model is written for.
pub(crate) fn check_supported(config: &Config) -> Result<(), EngineError> {
    if config.attention_bias {
        let message = "`attention_bias` is true: attention projections with biases are not supported, and no public model has them";
        return Err(EngineError::Unsupported(message.into()));
    }
    Ok(())
}

/// The module that a configuration describes, with weights typed as the checkpoint has them.
pub fn module(
    config: &Config,
    checkpoint: Option<&Checkpoint>,
    options: &LoadOptions,
) -> Result<Module, EngineError> {
    check_supported(config)?;
    let stored = |name: &str| {
        let tensor = checkpoint.and_then(|c| c.get(name).or_else(|| c.get(&expert_name(name, 0)?)));
        tensor.and_then(|tensor| weights::dtype(tensor.dtype)).unwrap_or(DType::F32)
    };
    let model = Options {
        dtype: options.dtype,
        weight_dtype: if checkpoint.is_some() { Some(&stored) } else { None },
        taps: options.taps,
        attn_probs: options.attn_probs,
        expanded_cache: options.expanded_cache,
        kv_budget: options.kv_budget,
        mtp: options.mtp,
    };
    causal_lm(config, &model).map_err(EngineError::Module)
}

/// Makes the tokens of one sequence, one after the other, keeping the latents of those before.
pub struct Generator {
    session: Session,
    states: States,
    /// The pages of the sequence, if the cache is in pages.
    table: Option<Tensor>,
    sampler: Sampler,
    /// Tokens that are not in the cache yet.
    pending: Vec<u32>,
    cached: usize,
    left: usize,
    eos: Vec<u32>,
    logits: Vec<f32>,
    report: Report,
}

impl Generator {
    /// What quantizing did so far, if the model was loaded with [`LoadOptions::fp8_report`].
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// The next token; `None` after the last one, or after one that ends the text.
    pub fn step(&mut self) -> Result<Option<u32>, EngineError> {
        if self.left == 0 {
            return Ok(None);
        }
        let logits = self.feed()?;
        let token = self.sampler.sample(&logits)?;
        self.logits = logits;
        self.left = if self.eos.contains(&token) { 0 } else { self.left - 1 };
        self.pending = vec![token];
        Ok(Some(token))
    }

    /// The logits that the last token was chosen from.
    pub fn logits(&self) -> &[f32] {
        &self.logits
    }

    /// Goes on after tokens that end the text.
    pub fn ignore_eos(&mut self) {
        self.eos.clear();
    }

    /// How many tokens are in the cache.
    pub fn cached(&self) -> usize {
        self.cached
    }

    /// Bytes that one token takes in the cache.
    pub fn cache_bytes_per_token(&self) -> usize {
        self.session.state_bytes_per_token()
    }

    /// Bytes that one token takes in the caches of the layer that has the most.
    pub fn cache_bytes_per_token_and_layer(&self) -> u64 {
        let executable = self.session.executable();
        let func = executable.func("main").ok();
        let bytes = func.and_then(|func| executable.plan().cache_bytes(func).ok());
        bytes.map_or(0, |bytes| bytes.per_layer())
    }

    /// Bytes of the cache.
    pub fn cache_bytes(&self) -> usize {
        self.states.bytes()
    }

    /// Bytes of activations that the next step needs.
    pub fn arena_bytes(&self) -> Result<usize, EngineError> {
        let n = self.pending.len();
        self.arena_bytes_for(n, self.cached + n)
    }

    /// Bytes of activations that a step of `new` tokens needs, after which `cached` are in the cache.
    pub fn arena_bytes_for(&self, new: usize, cached: usize) -> Result<usize, EngineError> {
        let pages = self.states.batch;
        let sizes = [
            ("b", 1),
            ("s", new),
            ("t", cached),
            ("@capacity", self.states.capacity),
            ("pool", pages),
            ("pages", pages),
        ];
        Ok(self.session.arena_bytes(&sizes)?)
    }

    /// Runs the pending tokens; the logits of the last.
    fn feed(&mut self) -> Result<Vec<f32>, EngineError> {
        let ids: Vec<i64> = self.pending.iter().map(|&id| i64::from(id)).collect();
        let n = ids.len();
        let ids = Tensor::from_i64(&[1, n], &ids);
        let start = Tensor::from_i32(&[1], &[self.cached as i32]);
        let last = Tensor::from_i32(&[1], &[n as i32 - 1]);
        let mut inputs = vec![("ids", &ids), ("start", &start), ("last", &last)];
        inputs.extend(self.table.as_ref().map(|table| ("page_table", table)));
        let results = self.session.run(&inputs, Some(&mut self.states), &[("t", self.cached + n)])?;
        self.cached += n;
        self.report.add(&results);
        let logits = results.into_iter().find(|(name, _)| name == "logits");
        let internal = || eva_runtime::Error::Internal("`main` has no result `logits`".into());
        Ok(logits.ok_or_else(internal)?.1.to_f32())
    }
}
