//! Optimizers against PyTorch's, and against formulas in `f64`.

use eva::train::config::{OptimizerConfig, OptimizerName};
use eva::train::optimizer::{Buffers, Optimizer, module};
use eva::train::params::{Group, Layout, WIDTH};
use eva_ir::types::DType;
use eva_runtime::checkpoint::Checkpoint;
use eva_runtime::{CompileOptions, Executable, Part, Shared};
use half::bf16;
use std::path::Path;
use std::sync::Arc;

/// Buffers of parameters, gradients, and gradients of a batch.
struct Flat {
    exe: Executable,
    layout: Layout,
    params: Arc<Shared>,
    gradients: Arc<Shared>,
    partial: Arc<Shared>,
}

impl Flat {
    fn new(sizes: &[(usize, Group)]) -> Self {
        let named = sizes.iter().enumerate().map(|(i, &(n, group))| (format!("w{i}"), vec![n], group));
        let layout = Layout::new(named);
        let module = module(&OptimizerConfig::default()).unwrap();
        let exe = Executable::compile(&module, &CompileOptions::default()).unwrap();
        let buffer = |rows| Layout::buffer(&exe, rows, DType::F32, "a buffer").unwrap();
        let (params, gradients, partial) =
            (buffer(layout.all()), buffer(layout.learned()), buffer(layout.learned()));
        Self { exe, layout, params, gradients, partial }
    }

    fn optimizer(&self, config: &OptimizerConfig) -> Optimizer {
        let buffers = Buffers {
            layout: &self.layout,
            params: &self.params,
            gradients: &self.gradients,
            partial: Some(&self.partial),
        };
        Optimizer::new(config, &buffers, &CompileOptions::default()).unwrap_or_else(|e| panic!("{e}"))
    }

    fn part(&self, of: &Arc<Shared>, name: &str) -> Part {
        let param = self.layout.get(name).unwrap();
        of.part(param.offset * 4, DType::F32, &param.shape).unwrap()
    }
}

fn write(part: &Part, numbers: &[f32]) {
    part.write(&numbers.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>()).unwrap();
}

/// Fails if numbers differ by more than `ulps` units in the last place of the largest.
fn close(what: &str, found: &[f32], expected: &[f32], ulps: f32) {
    let top = expected.iter().fold(0.0f32, |top, x| top.max(x.abs()));
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        let limit = ulps * f32::EPSILON * b.abs().max(top * 1e-3);
        assert!((a - b).abs() <= limit, "{what} {i}: {a} is not {b}");
    }
    assert_eq!(found.len(), expected.len());
}

#[test]
fn adamw_is_pytorchs() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/ops/adamw.safetensors");
    let fixture = Checkpoint::open(&path).unwrap();
    let numbers = |name: &str| fixture.get(name).unwrap().to_f32().unwrap();
    let flat = Flat::new(&[(48, Group::Decay)]);
    let config = OptimizerConfig { lr: 0.01, ..OptimizerConfig::default() };
    assert_eq!((config.betas, config.eps, config.weight_decay, config.clip), ([0.9, 0.95], 1e-8, 0.1, 1.0));
    let mut optimizer = flat.optimizer(&config);
    let (p, g) = (flat.part(&flat.params, "w0"), flat.part(&flat.gradients, "w0"));
    write(&p, &numbers("p0"));
    for step in 1..=3 {
        write(&g, &numbers(&format!("g{step}")));
        let (norm, factor) = optimizer.norm(1.0).unwrap();
        close("the norm", &[norm], &numbers(&format!("norm{step}")), 2.0);
        optimizer.update(step, config.lr, factor).unwrap();
        close(&format!("p{step}"), &p.read().unwrap().to_f32(), &numbers(&format!("p{step}")), 2.0);
    }
    for moment in optimizer.moments() {
        let found = moment.values.read().unwrap().to_f32();
        close(moment.name, &found[..48], &numbers(&format!("{}3", moment.name)), 4.0);
        assert!(found[48..].iter().all(|x| *x == 0.0), "what fills up stays 0");
    }
}

/// Three groups, the second of more than a row.
const SIZES: [(usize, Group); 3] = [(70, Group::Decay), (WIDTH + 130, Group::Plain), (9, Group::Frozen)];

/// Numbers without a pattern, from -1 to 1.
fn noise(n: usize, seed: u32) -> Vec<f32> {
    let hash =
        |i: u32| (i.wrapping_mul(2_654_435_769) ^ seed.wrapping_mul(40_503)).wrapping_mul(2_246_822_519);
    (0..n as u32).map(|i| (hash(i + 1) >> 8) as f32 / (1 << 23) as f32 - 1.0).collect()
}

/// What formulas in `f64` make of noise: parameters of each group after three steps.
fn reference(config: &OptimizerConfig, clip: bool) -> Vec<Vec<f64>> {
    let of = |n, seed| noise(n, seed).into_iter().map(f64::from).collect::<Vec<_>>();
    let mut p: Vec<Vec<f64>> = SIZES.iter().enumerate().map(|(i, (n, _))| of(*n, i as u32)).collect();
    let mut m: Vec<Vec<f64>> = p.iter().map(|p| vec![0.0; p.len()]).collect();
    let mut v = m.clone();
    let round = |x: f64| match config.moments {
        DType::Bf16 => bf16::from_f64(x).to_f64(),
        _ => x,
    };
    for step in 1..=3u32 {
        let g: Vec<Vec<f64>> = (0..2).map(|i| of(SIZES[i].0, 10 * step + i as u32)).collect();
        let norm = g.iter().flatten().map(|g| g * g).sum::<f64>().sqrt();
        let factor = if clip { (config.clip / (norm + 1e-6)).min(1.0) } else { 1.0 };
        for i in 0..2 {
            let decay = if i == 0 { config.weight_decay } else { 0.0 };
            for j in 0..p[i].len() {
                let g = g[i][j] * factor;
                let [b1, b2] = config.betas;
                if config.name == OptimizerName::Sgd {
                    m[i][j] = config.momentum * m[i][j] + g + decay * p[i][j];
                    p[i][j] -= config.lr * m[i][j];
                    continue;
                }
                let (new_m, new_v) = (b1 * m[i][j] + (1.0 - b1) * g, b2 * v[i][j] + (1.0 - b2) * g * g);
                (m[i][j], v[i][j]) = (round(new_m), round(new_v));
                let power = |b: f64| 1.0 - b.powi(step as i32);
                p[i][j] *= 1.0 - config.lr * decay;
                p[i][j] -= config.lr * (new_m / power(b1)) / ((new_v / power(b2)).sqrt() + config.eps);
            }
        }
    }
    p
}

/// The same by an optimizer, gradients being multiplied with `scale` and given in two batches.
fn run(config: &OptimizerConfig, scale: f32) -> Vec<Vec<f32>> {
    let flat = Flat::new(&SIZES);
    let mut optimizer = flat.optimizer(config);
    let names = ["w0", "w1", "w2"];
    for (i, name) in names.iter().enumerate() {
        write(&flat.part(&flat.params, name), &noise(SIZES[i].0, i as u32));
    }
    for step in 1..=3u32 {
        for (i, name) in names[..2].iter().enumerate() {
            let g = noise(SIZES[i].0, 10 * step + i as u32);
            write(&flat.part(&flat.gradients, name), &g.iter().map(|g| 0.25 * scale * g).collect::<Vec<_>>());
            write(&flat.part(&flat.partial, name), &g.iter().map(|g| 0.75 * scale * g).collect::<Vec<_>>());
        }
        optimizer.accumulate().unwrap();
        let (_, factor) = optimizer.norm(scale.into()).unwrap();
        optimizer.update(step.into(), config.lr, factor).unwrap();
    }
    assert_eq!(flat.exe.device(), eva_runtime::Device::Cpu);
    names.iter().map(|name| flat.part(&flat.params, name).read().unwrap().to_f32()).collect()
}

fn compare(config: &OptimizerConfig, scale: f32, limit: f64) {
    let (found, expected) = (run(config, scale), reference(config, config.clip > 0.0));
    for (found, expected) in found.iter().zip(&expected) {
        for (a, b) in found.iter().zip(expected) {
            assert!((f64::from(*a) - b).abs() <= limit, "{a} is not {b}");
        }
    }
    assert_eq!(found[2], noise(9, 2), "what is frozen stays");
}

#[test]
fn groups_decay_or_not() {
    let config = OptimizerConfig { lr: 0.05, weight_decay: 0.3, ..OptimizerConfig::default() };
    compare(&config, 1.0, 1e-5);
    compare(&OptimizerConfig { clip: 0.0, ..config.clone() }, 1.0, 1e-5);
    // A norm within the limit is not clipped.
    compare(&OptimizerConfig { clip: 1e6, ..config.clone() }, 1.0, 1e-5);
    compare(&config, 1024.0, 1e-5);
}

#[test]
fn moments_of_16_bits_are_rounded() {
    let config = OptimizerConfig { lr: 0.01, moments: DType::Bf16, ..OptimizerConfig::default() };
    // A moment that rounds the other way moves a parameter by 2^-8 of a step.
    compare(&config, 1.0, 0.01 / 200.0);
    let (f32, bf16) =
        (run(&OptimizerConfig { moments: DType::F32, ..config.clone() }, 1.0), run(&config, 1.0));
    assert_ne!(f32, bf16);
}

#[test]
fn sgd_has_momentum_and_decay() {
    let config = OptimizerConfig {
        name: OptimizerName::Sgd,
        lr: 0.1,
        momentum: 0.8,
        weight_decay: 0.2,
        ..OptimizerConfig::default()
    };
    compare(&config, 1.0, 1e-5);
}
