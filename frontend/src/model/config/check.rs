//! Whether a checkpoint holds the tensors of a model.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use eva_runtime::checkpoint::{Checkpoint, CheckpointDType, TensorRef};

use super::{Config, WeightSpec};

/// Problems shown in a message; the others are counted.
const SHOWN: usize = 20;

/// Surplus names that are looked through for a misspelling.
const SEARCHED: usize = 4096;

/// One difference between a checkpoint and its configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckProblem {
    /// A tensor of the model is not there.
    Missing {
        /// Its name.
        name: String,
        /// The shape it should have.
        expected: Vec<usize>,
        /// A tensor that the model does not have and whose name is close.
        near: Option<String>,
    },
    /// A tensor is there that the model does not have.
    Extra {
        /// Its name.
        name: String,
        /// Its shape.
        found: Vec<usize>,
    },
    /// A tensor has another shape.
    Shape {
        /// Its name.
        name: String,
        /// Its shape.
        found: Vec<usize>,
        /// The shape it should have.
        expected: Vec<usize>,
    },
    /// A tensor has a type that its role does not allow.
    DType {
        /// Its name.
        name: String,
        /// Its type.
        found: CheckpointDType,
        /// The types it may have.
        expected: Vec<CheckpointDType>,
    },
}

impl fmt::Display for CheckProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CheckProblem::Missing { name, expected, near } => {
                write!(f, "missing: {name} {expected:?}")?;
                if let Some(near) = near {
                    write!(f, " (is it `{near}`?)")?;
                }
                Ok(())
            }
            CheckProblem::Extra { name, found } => write!(f, "not part of the model: {name} {found:?}"),
            CheckProblem::Shape { name, found, expected } => {
                write!(f, "wrong shape: {name} is {found:?}; expected {expected:?}")
            }
            CheckProblem::DType { name, found, expected } => {
                let expected: Vec<_> = expected.iter().map(|d| d.name()).collect();
                write!(f, "wrong type: {name} is {found}; expected {}", expected.join(", "))
            }
        }
    }
}

/// A checkpoint that does not fit its configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckError {
    /// Where the checkpoint is.
    pub path: PathBuf,
    /// All differences: missing tensors in the model's order, then the others by name.
    pub problems: Vec<CheckProblem>,
    /// What may be behind all of them.
    pub hint: Option<&'static str>,
    /// Where the checkpoint has several files: that of each tensor with a problem.
    pub files: BTreeMap<String, String>,
}

impl std::error::Error for CheckError {}

impl fmt::Display for CheckError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let n = self.problems.len();
        let s = if n == 1 { "" } else { "s" };
        write!(f, "{}: the tensors do not fit config.json, {n} problem{s}", self.path.display())?;
        for problem in self.problems.iter().take(SHOWN) {
            write!(f, "\n  {problem}")?;
            if let Some(file) = self.files.get(problem.name()) {
                write!(f, ", in {file}")?;
            }
        }
        if n > SHOWN {
            write!(f, "\n  and {} more", n - SHOWN)?;
        }
        if let Some(hint) = self.hint {
            write!(f, "\n{hint}")?;
        }
        Ok(())
    }
}

impl Config {
    /// Checks that a checkpoint holds exactly the tensors of [`Config::weights`], in shapes and types that can be
    /// used.
    ///
    /// Tensors of MTP modules may be missing unless `require_mtp`; a head may be there even if the embedding serves
    /// as one; stored rotary frequencies (of old checkpoints) are ignored.
    pub fn check(&self, checkpoint: &Checkpoint, require_mtp: bool) -> Result<(), CheckError> {
        let mut specs: BTreeMap<String, (usize, bool, WeightSpec)> = BTreeMap::new();
        let tied = self.tie_embeddings.then(|| (false, self.head()));
        let weights = self.weights().into_iter().map(|spec| (require_mtp || !spec.mtp, spec));
        for (order, (required, spec)) in weights.chain(tied).enumerate() {
            specs.insert(spec.name.clone(), (order, required, spec));
        }
        let mut missing: Vec<_> = specs
            .values()
            .filter(|(_, required, spec)| *required && checkpoint.get(&spec.name).is_none())
            .collect();
        missing.sort_by_key(|(order, ..)| *order);
        let mut others = Vec::new();
        for tensor in checkpoint.iter() {
            let name = tensor.name.to_string();
            let Some((.., spec)) = specs.get(tensor.name) else {
                if !tensor.name.ends_with("rotary_emb.inv_freq") {
                    others.push(CheckProblem::Extra { name, found: tensor.shape.into() });
                }
                continue;
            };
            if tensor.shape != spec.shape {
                let (found, expected) = (tensor.shape.into(), spec.shape.clone());
                others.push(CheckProblem::Shape { name: name.clone(), found, expected });
            }
            let expected = spec.storage.dtypes();
            if !expected.contains(&tensor.dtype) {
                others.push(CheckProblem::DType { name, found: tensor.dtype, expected });
            }
        }
        let surplus: Vec<&str> = others.iter().filter_map(surplus).take(SEARCHED).collect();
        let mut problems: Vec<CheckProblem> = Vec::with_capacity(missing.len() + others.len());
        for (i, (.., spec)) in missing.into_iter().enumerate() {
            let near = if i < SHOWN { nearest(&spec.name, &surplus) } else { None };
            let (name, expected) = (spec.name.clone(), spec.shape.clone());
            problems.push(CheckProblem::Missing { name, expected, near });
        }
        problems.append(&mut others);
        if problems.is_empty() {
            return Ok(());
        }
        let several = checkpoint.files().nth(1).is_some();
        let file = |problem: &CheckProblem| {
            let tensor = checkpoint.get(problem.name()).filter(|_| several)?;
            Some((problem.name().to_string(), tensor.file.file_name()?.to_string_lossy().into_owned()))
        };
        let files = problems.iter().filter_map(file).collect();
        Err(CheckError {
            path: checkpoint.path().into(),
            problems,
            hint: hint(checkpoint, self.quantization.is_some()),
            files,
        })
    }
}

impl CheckProblem {
    /// The tensor that it is about.
    pub fn name(&self) -> &str {
        let (Self::Missing { name, .. }
        | Self::Extra { name, .. }
        | Self::Shape { name, .. }
        | Self::DType { name, .. }) = self;
        name
    }
}

fn surplus(problem: &CheckProblem) -> Option<&str> {
    match problem {
        CheckProblem::Extra { name, .. } => Some(name),
        _ => None,
    }
}

fn hint(checkpoint: &Checkpoint, quantized: bool) -> Option<&'static str> {
    if checkpoint.get("embed.weight").is_some() && checkpoint.get("head.weight").is_some() {
        return Some(
            "these are the names of DeepSeek's own inference code; convert the checkpoint to Hugging Face names",
        );
    }
    let codes = |tensor: &TensorRef| tensor.name.ends_with("_scale_inv");
    if !quantized && checkpoint.iter().any(|tensor| codes(&tensor)) {
        return Some(
            "the weights are 8-bit floats with scales, but config.json has no `quantization_config`",
        );
    }
    let fused = checkpoint.names().any(|n| n.ends_with(".mlp.experts.gate_up_proj"));
    fused.then_some(
        "the experts are fused into one tensor; save the checkpoint with one tensor for each expert",
    )
}

/// The candidate closest to `name`, if it differs in a few characters only.
fn nearest(name: &str, candidates: &[&str]) -> Option<String> {
    let close = candidates.iter().filter_map(|c| distance(name, c).map(|d| (d, *c)));
    close.min().map(|(_, c)| c.to_string())
}

/// Characters to insert, remove or replace between two names; `None` if that is a different name altogether.
fn distance(a: &str, b: &str) -> Option<usize> {
    const LONGEST: usize = 24;
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    let same = a.iter().zip(b).take_while(|(x, y)| x == y).count();
    (a, b) = (&a[same..], &b[same..]);
    let same = a.iter().rev().zip(b.iter().rev()).take_while(|(x, y)| x == y).count();
    (a, b) = (&a[..a.len() - same], &b[..b.len() - same]);
    if a.len().max(b.len()) > LONGEST {
        return None;
    }
    // A number is never a misspelling of another one: layers and experts are many.
    let digits = |s: &[u8]| !s.is_empty() && s.iter().all(u8::is_ascii_digit);
    if digits(a) && digits(b) {
        return None;
    }
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row.last().copied().filter(|&d| d <= 6)
}
