//! What is written where.

use super::{ConvertError, ConvertOptions, To};
use crate::model::config::{Config, ScaleFormat, Storage, WeightSpec, is_projection};
use eva_ir::scales::Encoding;
use eva_runtime::checkpoint::{Checkpoint, CheckpointDType, SINGLE_FILE, TensorDecl};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Rows and columns that share a scale.
pub const BLOCK: [usize; 2] = [128, 128];

/// What follows the name of a weight in that of its scales.
pub const SCALES: &str = eva_ir::lower::SCALES;

/// How a tensor is made of the one with this name.
#[derive(Clone, Debug)]
pub enum Job {
    /// It is the same.
    Copy(String),
    /// Its codes.
    Codes(String, Encoding),
    /// The scales of those.
    Scales(String, Encoding),
    /// What codes and scales stand for, or wider numbers, as BF16.
    Numbers(String),
}

impl Job {
    pub fn source(&self) -> &str {
        let (Job::Copy(name) | Job::Codes(name, _) | Job::Scales(name, _) | Job::Numbers(name)) = self;
        name
    }
}

/// All tensors, and how they are made and spread over files.
pub struct Plan {
    pub tensors: Vec<TensorDecl>,
    /// How each is made.
    pub jobs: Vec<Job>,
    /// How many bytes each has.
    pub bytes: Vec<u64>,
    /// The tensors of each file.
    pub groups: Vec<Vec<usize>>,
    /// The text of the new `config.json`.
    pub config: String,
}

impl Plan {
    pub fn new(
        config: &Config,
        text: &str,
        checkpoint: &Checkpoint,
        options: &ConvertOptions,
    ) -> Result<Self, ConvertError> {
        let (new, encoding) = match options.to {
            To::Fp8(_) if config.quantization.is_some() => (text.to_string(), Encoding::F32),
            To::Fp8(format) => {
                let encoding = match format {
                    ScaleFormat::Float => Encoding::F32,
                    ScaleFormat::PowerOfTwo => Encoding::Pow2,
                };
                (changed(text, Some(format)), encoding)
            }
            To::Bf16 => (changed(text, None), Encoding::F32),
        };
        let mut plan = Self { tensors: vec![], jobs: vec![], bytes: vec![], groups: vec![], config: new };
        let mut planned = HashSet::new();
        for spec in Config::from_json(&plan.config)?.weights() {
            let job = plan.job(&spec, config, checkpoint, encoding);
            let Some((job, dtype)) = job else { continue };
            planned.insert(spec.name.clone());
            plan.push(TensorDecl { name: spec.name, dtype, shape: spec.shape }, job);
        }
        // What a model may have besides: a head that is tied, rotary tables.
        for tensor in checkpoint.iter() {
            let scales = tensor.name.strip_suffix(SCALES).is_some_and(|of| config.quantizes(of));
            if !scales && !planned.contains(tensor.name) {
                let (name, shape) = (tensor.name.to_string(), tensor.shape.to_vec());
                plan.push(TensorDecl { name, dtype: tensor.dtype, shape }, Job::Copy(tensor.name.into()));
            }
        }
        plan.groups = groups(&plan.bytes, options.max_shard_bytes);
        Ok(plan)
    }

    /// How a tensor of the new model is made, and of which type it is; none if the old one lacks what it is made of.
    fn job(
        &self,
        spec: &WeightSpec,
        config: &Config,
        checkpoint: &Checkpoint,
        encoding: Encoding,
    ) -> Option<(Job, CheckpointDType)> {
        let name = spec.name.clone();
        let again = config.quantization.is_some();
        match spec.storage {
            Storage::Codes(dtype) if !again => {
                checkpoint.get(&name).map(|_| (Job::Codes(name, encoding), dtype))
            }
            Storage::Scale if !again => {
                let of = name.strip_suffix(SCALES)?;
                checkpoint.get(of).map(|_| (Job::Scales(of.into(), encoding), CheckpointDType::F32))
            }
            Storage::Float if is_projection(&name) => {
                let dtype = checkpoint.get(&name)?.dtype;
                let same = dtype == CheckpointDType::Bf16;
                Some((if same { Job::Copy(name) } else { Job::Numbers(name) }, CheckpointDType::Bf16))
            }
            _ => checkpoint.get(&name).map(|tensor| (Job::Copy(name), tensor.dtype)),
        }
    }

    fn push(&mut self, tensor: TensorDecl, job: Job) {
        self.bytes.push(tensor.dtype.bytes_of(&tensor.shape).unwrap_or(u64::MAX));
        self.tensors.push(tensor);
        self.jobs.push(job);
    }

    /// The paths of the files.
    pub fn files(&self, out: &Path) -> Vec<PathBuf> {
        let n = self.groups.len();
        match n {
            1 => vec![out.join(SINGLE_FILE)],
            _ => (1..=n).map(|i| out.join(format!("model-{i:05}-of-{n:05}.safetensors"))).collect(),
        }
    }

    /// The text of the index.
    pub fn index(&self, files: &[PathBuf]) -> String {
        let mut places = BTreeMap::new();
        for (group, file) in self.groups.iter().zip(files) {
            let file = file.file_name().unwrap_or_default().to_string_lossy();
            places.extend(group.iter().map(|&i| (self.tensors[i].name.as_str(), file.to_string())));
        }
        let total: u64 = self.bytes.iter().sum();
        pretty(&json!({"metadata": {"total_size": total}, "weight_map": places}))
    }

    /// What tells this conversion from others: its options, its output, and which files it is made of.
    pub fn fingerprint(
        &self,
        checkpoint: &Checkpoint,
        text: &str,
        options: &ConvertOptions,
    ) -> Result<String, ConvertError> {
        let mut hash = Sha256::new();
        let mut part = |text: &str| {
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text);
        };
        part(env!("CARGO_PKG_VERSION"));
        part(&format!("{:?}", options.to));
        part(text);
        for file in checkpoint.files() {
            let read = |error| ConvertError::io(file, "look at it", error);
            let file = fs::canonicalize(file).map_err(read)?;
            let metadata = fs::metadata(&file).map_err(read)?;
            let age =
                metadata.modified().ok().and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
            part(&format!("{} {} {:?}", file.display(), metadata.len(), age));
        }
        for (tensor, job) in self.tensors.iter().zip(&self.jobs) {
            part(&format!("{tensor:?} {job:?}"));
        }
        part(&format!("{:?}", self.groups));
        Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

/// Neighbours of at most `most` bytes together, or one alone.
fn groups(bytes: &[u64], most: u64) -> Vec<Vec<usize>> {
    let mut groups = vec![Vec::new()];
    let mut filled = 0u64;
    for (i, &n) in bytes.iter().enumerate() {
        if filled.saturating_add(n) > most && filled > 0 {
            groups.push(Vec::new());
            filled = 0;
        }
        if let Some(last) = groups.last_mut() {
            last.push(i);
        }
        filled = filled.saturating_add(n);
    }
    groups
}

/// The configuration of the converted model: with the scales' format, or without 8-bit floats.
fn changed(text: &str, scales: Option<ScaleFormat>) -> String {
    // The text has been read as a configuration before.
    let mut config: Value = serde_json::from_str(text).unwrap_or_default();
    let Some(keys) = config.as_object_mut() else { return text.into() };
    match scales {
        None => {
            keys.remove("quantization_config");
            let dtype = if keys.contains_key("dtype") { "dtype" } else { "torch_dtype" };
            keys.insert(dtype.into(), "bfloat16".into());
        }
        Some(format) => {
            let mut quantization = json!({
                "activation_scheme": "dynamic",
                "fmt": "e4m3",
                "quant_method": "fp8",
                "weight_block_size": BLOCK,
            });
            if format == ScaleFormat::PowerOfTwo {
                quantization["scale_fmt"] = "ue8m0".into();
            }
            keys.insert("quantization_config".into(), quantization);
        }
    }
    pretty(&config)
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}
