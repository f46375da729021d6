//! Fresh models: a checkpoint of random weights for a configuration.
//!
//! Every tensor is made from the seed and its own name alone, so it does not depend on which other tensors there
//! are or how they are split into files, and no function of the system's mathematics library is used: the same seed
//! gives the same bytes on every machine.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use eva_runtime::checkpoint::{CheckpointDType, CheckpointError, TensorDecl, Writer, Written};
use half::{bf16, f16};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use thiserror::Error;

use crate::convert::{codes_of_band, in_pieces};
use crate::model::config::{CONFIG_FILE, Config, ConfigError, Role, ScaleFormat, Storage, WeightSpec};
use eva_ir::scales::Encoding;

/// Elements made at a time by one thread, from their own stream of random numbers. Part of what a seed means.
const CHUNK: usize = 1 << 18;

/// How a fresh model is made.
#[derive(Clone, Copy, Debug, Default)]
pub struct InitOptions {
    /// Where the random numbers start.
    pub seed: u64,
    /// Type of the weights: F32, BF16 or F16; `None` for the configuration's. The routing bias is F32 always.
    pub dtype: Option<CheckpointDType>,
    /// Largest file, in bytes; `None` for one file.
    pub max_shard_bytes: Option<u64>,
}

/// Why no model was made. Every message is complete.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum InitError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("fresh weights cannot be {found}; choose F32, BF16 or F16")]
    DType { found: CheckpointDType },
    #[error("{}: already there; choose another directory, or remove it first", .path.display())]
    Exists { path: PathBuf },
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error("{}: cannot write it: {error}", .path.display())]
    Io { path: PathBuf, error: io::Error },
}

/// Writes a model into `out`, which is created: the text of its `config.json` as given, and weights drawn from a
/// normal distribution with standard deviation `initializer_range`; gains of norms vary around 1. Those that
/// `quantization_config` covers are then converted, as [`mod@crate::convert`] converts F32.
///
/// `progress` is called after every tensor with the bytes written so far and the bytes of all tensors. Nothing that
/// is already there is replaced.
pub fn init(
    config: &str,
    out: &Path,
    options: InitOptions,
    mut progress: impl FnMut(u64, u64),
) -> Result<Written, InitError> {
    let text = config;
    let config = Config::from_json(text)?;
    let dtype = options.dtype.unwrap_or(config.dtype);
    if !matches!(dtype, CheckpointDType::F32 | CheckpointDType::Bf16 | CheckpointDType::F16) {
        return Err(InitError::DType { found: dtype });
    }
    let path = out.join(CONFIG_FILE);
    if path.exists() {
        return Err(InitError::Exists { path });
    }
    let specs = config.weights();
    let tensors: Vec<TensorDecl> = specs.iter().map(|spec| declare(spec, dtype)).collect();
    let bytes = |t: &TensorDecl| t.dtype.bytes_of(&t.shape).unwrap_or(0);
    let total = tensors.iter().map(bytes).sum();
    let mut writer = Writer::new().metadata("format", "pt").metadata("made_by", "eva init");
    if let Some(max) = options.max_shard_bytes {
        writer = writer.max_shard_bytes(max);
    }
    let mut done = 0;
    let written = writer.write_dir(out, &tensors, |i, sink| {
        let normal = Normal::of(&specs[i].name, options.seed);
        let (mean, deviation) = match specs[i].role {
            Role::Norm => (1.0, config.initializer_range as f32),
            _ => (0.0, config.initializer_range as f32),
        };
        let elements = specs[i].shape.iter().product();
        let shape = |x| mean + deviation * x;
        match specs[i].storage {
            Storage::Float => fill(&normal, elements, tensors[i].dtype, shape, sink)?,
            Storage::Codes(_) => {
                for (codes, _) in blocks(&config, &specs[i], shape, options.seed)? {
                    sink.write_all(&codes)?;
                }
            }
            // The weight comes before its scales in the list.
            Storage::Scale => {
                for (_, scales) in blocks(&config, &specs[i - 1], shape, options.seed)? {
                    sink.write_all(&encode(&scales, CheckpointDType::F32))?;
                }
            }
        }
        done += bytes(&tensors[i]);
        progress(done, total);
        Ok(())
    })?;
    match fs::write(&path, text) {
        Ok(()) => Ok(written),
        Err(error) => Err(InitError::Io { path, error }),
    }
}

fn declare(spec: &WeightSpec, dtype: CheckpointDType) -> TensorDecl {
    let dtype = match spec.storage {
        Storage::Codes(codes) => codes,
        Storage::Scale => CheckpointDType::F32,
        Storage::Float if spec.role == Role::RouterBias => CheckpointDType::F32,
        Storage::Float => dtype,
    };
    TensorDecl { name: spec.name.clone(), dtype, shape: spec.shape.clone() }
}

/// Writes `elements` numbers, several chunks at a time on several threads.
fn fill(
    normal: &Normal,
    elements: usize,
    dtype: CheckpointDType,
    shape: impl Fn(f32) -> f32 + Sync,
    sink: &mut dyn Write,
) -> io::Result<()> {
    let made = |i| Ok(encode(&chunk(normal, elements, &shape, i), dtype));
    in_pieces(elements.div_ceil(CHUNK), made, |bytes| sink.write_all(&bytes))
}

/// Some of a tensor's numbers.
fn chunk(normal: &Normal, elements: usize, shape: impl Fn(f32) -> f32, i: usize) -> Vec<f32> {
    let mut numbers = vec![0.0; CHUNK.min(elements - i * CHUNK)];
    normal.fill(i as u64, &mut numbers);
    numbers.iter_mut().for_each(|x| *x = shape(*x));
    numbers
}

/// The codes and scales of a weight, a band of blocks at a time.
fn blocks(
    config: &Config,
    spec: &WeightSpec,
    shape: impl Fn(f32) -> f32 + Sync,
    seed: u64,
) -> io::Result<Vec<(Vec<u8>, Vec<f32>)>> {
    let normal = Normal::of(&spec.name, seed);
    let (elements, columns) = (spec.shape.iter().product(), spec.shape[1]);
    let mut all = Vec::with_capacity(elements);
    in_pieces(
        elements.div_ceil(CHUNK),
        |i| Ok(chunk(&normal, elements, &shape, i)),
        |numbers| {
            all.extend(numbers);
            Ok(())
        },
    )?;
    let encoding = match config.quantization.as_ref().map(|quantization| quantization.scale_fmt) {
        Some(ScaleFormat::PowerOfTwo) => Encoding::Pow2,
        _ => Encoding::F32,
    };
    let [height, width] = config.scale_block();
    let band = |band| codes_of_band(band, columns, width, encoding);
    all.chunks(columns * height)
        .map(|numbers| band(numbers).map_err(|_| io::Error::other("`initializer_range` is too large")))
        .collect()
}

/// Fills `out` with the numbers of the tensor `name`: normally distributed around 0 with this standard deviation.
pub(crate) fn normal(name: &str, seed: u64, deviation: f32, out: &mut [f32]) {
    let normal = Normal::of(name, seed);
    for (i, chunk) in out.chunks_mut(CHUNK).enumerate() {
        normal.fill(i as u64, chunk);
        chunk.iter_mut().for_each(|x| *x *= deviation);
    }
}

/// Numbers as they lie in a file.
fn encode(numbers: &[f32], dtype: CheckpointDType) -> Vec<u8> {
    match dtype {
        CheckpointDType::Bf16 => numbers.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
        CheckpointDType::F16 => numbers.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
        _ => numbers.iter().flat_map(|x| x.to_le_bytes()).collect(),
    }
}

/// Standard normal numbers of one tensor.
struct Normal {
    seed: [u8; 32],
}

impl Normal {
    fn of(name: &str, seed: u64) -> Normal {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        bytes[8..16].copy_from_slice(&fnv1a(0xcbf2_9ce4_8422_2325, name).to_le_bytes());
        // A second hash from another start, so that two names of a model never share their numbers.
        bytes[16..24].copy_from_slice(&fnv1a(0x9ae1_6a3b_2f90_404f, name).to_le_bytes());
        Normal { seed: bytes }
    }

    /// Fills chunk number `chunk`.
    fn fill(&self, chunk: u64, out: &mut [f32]) {
        let mut rng = ChaCha8Rng::from_seed(self.seed);
        rng.set_stream(chunk);
        let mut bytes = [0; 1024];
        for block in out.chunks_mut(256) {
            rng.fill_bytes(&mut bytes);
            let mut numbers = [0.0; 256];
            let (words, _) = bytes.as_chunks::<8>();
            for (pair, word) in numbers.as_chunks_mut::<2>().0.iter_mut().zip(words) {
                *pair = box_muller(u64::from_le_bytes(*word));
            }
            block.copy_from_slice(&numbers[..block.len()]);
        }
    }
}

/// FNV-1a with a given start.
fn fnv1a(start: u64, text: &str) -> u64 {
    text.bytes().fold(start, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// Two independent standard normal numbers from 64 random bits (Box and Muller, 1958): `sqrt(-2 ln u)` times the
/// sine and cosine of a random angle. At most 5.8 from 0.
fn box_muller(bits: u64) -> [f32; 2] {
    const STEP: f32 = 1.0 / (1 << 24) as f32;
    let u = ((bits >> 40) as f32 + 1.0) * STEP;
    let radius = (-2.0 * ln(u)).sqrt();
    // A quarter turn around 0, and which of the four it is.
    let quarter = (((bits >> 16) & 0xff_ffff) as f32 * STEP - 0.5) * std::f32::consts::FRAC_PI_2;
    let x2 = quarter * quarter;
    let sine = quarter * (1.0 + x2 * (-1.0 / 6.0 + x2 * (1.0 / 120.0 - x2 / 5040.0)));
    let cosine = 1.0 + x2 * (-0.5 + x2 * (1.0 / 24.0 + x2 * (-1.0 / 720.0 + x2 / 40320.0)));
    let flip = |bit: u64| 1.0 - 2.0 * (bits >> bit & 1) as f32;
    let (a, b) = if bits & 1 == 0 { (sine, cosine) } else { (cosine, sine) };
    [radius * a * flip(1), radius * b * flip(2)]
}

/// Natural logarithm of a normal number, to about 1e-7 of it, from additions, multiplications and one division,
/// which round alike everywhere.
fn ln(x: f32) -> f32 {
    // x = m 2^e with m from sqrt(1/2) to sqrt(2); ln m = 2 artanh((m - 1) / (m + 1)).
    let shifted = x.to_bits().wrapping_sub(0x3f35_04f3);
    let e = (shifted as i32 >> 23) as f32;
    let m = f32::from_bits((shifted & 0x007f_ffff).wrapping_add(0x3f35_04f3));
    let s = (m - 1.0) / (m + 1.0);
    let s2 = s * s;
    let series = 1.0 + s2 * (1.0 / 3.0 + s2 * (1.0 / 5.0 + s2 * (1.0 / 7.0 + s2 * (1.0 / 9.0))));
    e * std::f32::consts::LN_2 + 2.0 * s * series
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logarithm() {
        for i in 1..=200_000u32 {
            let x = (i * 83) as f32 / (1 << 24) as f32;
            let (found, expected) = (f64::from(ln(x)), f64::from(x).ln());
            assert!(
                (found - expected).abs() <= 3e-7 * expected.abs().max(0.3),
                "ln({x}) = {found}, not {expected}"
            );
        }
        assert_eq!(ln(1.0), 0.0);
    }

    #[test]
    fn numbers_are_normal() {
        let mut numbers = vec![0.0; CHUNK];
        Normal::of("some.weight", 3).fill(5, &mut numbers);
        let n = numbers.len() as f64;
        let moment = |p: i32| numbers.iter().map(|&x| f64::from(x).powi(p)).sum::<f64>() / n;
        // Moments of a normal distribution, within five of their own standard deviations.
        for (p, expected, variance) in [(1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0)] {
            let off = (moment(p) - expected).abs();
            assert!(off < 5.0 * (variance / n as f64).sqrt(), "moment {p} is {}", moment(p));
        }
        for (bound, share) in
            [(-1.0f32, 0.158_655), (0.0, 0.5), (0.5, 0.691_462), (2.0, 0.977_250), (3.0, 0.998_650)]
        {
            let found = numbers.iter().filter(|&&x| x < bound).count() as f64 / n;
            assert!(
                (found - share).abs() < 5.0 * (share * (1.0 - share) / n).sqrt(),
                "{found} below {bound}"
            );
        }
        // Neighbours come from one pair of uniform numbers and must not be related.
        let related =
            numbers.as_chunks::<2>().0.iter().map(|&[a, b]| f64::from(a * b)).sum::<f64>() / n * 2.0;
        assert!(related.abs() < 5.0 / (n / 2.0).sqrt(), "{related}");
        assert!(numbers.iter().all(|x| x.abs() < 5.8));
    }

    #[test]
    fn names_seeds_and_chunks_have_their_own_numbers() {
        let first = |name, seed, chunk| {
            let mut numbers = [0.0; 3];
            Normal::of(name, seed).fill(chunk, &mut numbers);
            numbers
        };
        let all = [first("a", 1, 0), first("b", 1, 0), first("a", 2, 0), first("a", 1, 1)];
        for i in 0..4 {
            for j in 0..i {
                assert_ne!(all[i], all[j]);
            }
        }
        // Written down, so that another machine that makes others is noticed.
        assert_eq!(
            first("model.norm.weight", 42, 0).map(f32::to_bits),
            [0xbf24_19e8, 0xbebd_feab, 0xbf59_ee6a]
        );
    }
}
