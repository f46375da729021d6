//! What there is for NVIDIA GPUs: the driver, the GPUs it shows, and the folder of compiled kernels.

use super::machine;
use crate::ui::bytes;
use eva_runtime::Device;
use serde_json::{Value, json};

/// What was found.
#[derive(Default)]
pub struct Found {
    /// The driver, with its version if that is known.
    pub driver: Option<String>,
    /// The CUDA version that the driver is for.
    pub cuda: Option<(i32, i32)>,
    /// The GPUs, in the driver's order.
    pub gpus: Vec<Gpu>,
    /// What is in the way of running anything on them, and what to do.
    pub problem: Option<String>,
    /// Where compiled kernels are kept.
    pub cache: Option<Kept>,
}

/// A GPU.
pub struct Gpu {
    /// Its number, as an option of commands.
    pub device: Device,
    /// The name that its maker gave it.
    pub name: String,
    /// More, where the driver was asked.
    pub about: Option<About>,
}

/// What the driver says of a GPU.
pub struct About {
    /// The compute capability, major and minor.
    pub capability: (i32, i32),
    /// Bytes of memory.
    pub memory: usize,
    /// How many multiprocessors there are.
    pub multiprocessors: usize,
}

/// The folder of compiled kernels.
pub struct Kept {
    /// Where it is.
    pub folder: String,
    /// How many files are in it.
    pub files: usize,
    /// Their bytes.
    pub bytes: u64,
    /// How many bytes they may have.
    pub limit: u64,
}

impl Gpu {
    /// Whether eva's kernels are for it.
    pub fn will_do(&self) -> bool {
        self.about.as_ref().is_some_and(|about| about.capability == (9, 0))
    }
}

/// Asks the driver.
#[cfg(feature = "cuda")]
pub fn find() -> Found {
    use eva_runtime::cuda;
    let cache = cuda::cache::Cache::of_user();
    let (files, bytes) = cache.size();
    let folder = cache.folder().map(|folder| folder.display().to_string());
    let kept = folder.map(|folder| Kept { folder, files, bytes, limit: cache.limit() });
    let mut found = Found { driver: machine::driver(), cache: kept, ..Found::default() };
    let listed = cuda::list();
    if !matches!(listed, Err(cuda::CudaError::NoDriver)) {
        found.driver = found.driver.or(Some("NVIDIA, of unknown version".into()));
    }
    match listed {
        Err(error) => {
            if let cuda::CudaError::OldDriver { have } = error {
                found.cuda = Some(have);
            }
            found.problem = Some(error.to_string());
            found.gpus = named();
        }
        Ok(all) => {
            found.cuda = all.first().map(|properties| properties.driver);
            let gpu = |(number, properties): (usize, cuda::Properties)| Gpu {
                device: Device::Cuda(number),
                name: properties.name,
                about: Some(About {
                    capability: properties.capability,
                    memory: properties.memory,
                    multiprocessors: properties.multiprocessors,
                }),
            };
            found.gpus = all.into_iter().enumerate().map(gpu).collect();
            if !found.gpus.iter().any(Gpu::will_do) {
                let none = cuda::CudaError::NoDevice { ordinal: 0, count: 0 }.to_string();
                let other = "no GPU here is of compute capability 9.0 (Hopper: H100, H200, H800, H20, GH200), which \
                     eva's kernels are for";
                found.problem = Some(if found.gpus.is_empty() { none } else { other.into() });
            }
        }
    }
    found
}

/// Looks at files: the driver is not asked.
#[cfg(not(feature = "cuda"))]
pub fn find() -> Found {
    Found {
        driver: machine::driver(),
        gpus: named(),
        problem: Some(crate::ui::NO_CUDA.into()),
        ..Found::default()
    }
}

/// GPUs of which only the names are known.
fn named() -> Vec<Gpu> {
    let gpu = |(number, name)| Gpu { device: Device::Cuda(number), name, about: None };
    machine::gpus().into_iter().enumerate().map(gpu).collect()
}

impl Found {
    /// For people, a line each.
    pub fn text(&self) -> String {
        let cuda = self.cuda.map_or(String::new(), |(major, minor)| format!(", for CUDA {major}.{minor}"));
        let driver = self.driver.as_deref().unwrap_or("none found");
        let mut text = format!("  {:13} {driver}{cuda}\n", "driver");
        for gpu in &self.gpus {
            let about = gpu.about.as_ref().map_or(String::new(), |about| {
                let (major, minor) = about.capability;
                let (memory, n) = (bytes(about.memory), about.multiprocessors);
                format!(", compute capability {major}.{minor}, {memory}, {n} multiprocessors")
            });
            text += &format!("  {:13} {}{about}\n", gpu.device.to_string(), gpu.name);
        }
        if let Some(Kept { folder, files, bytes: size, limit }) = &self.cache {
            let (size, limit) = (bytes(*size as usize), bytes(*limit as usize));
            text += &format!("  {:13} {folder}: {files} files, {size} of at most {limit}\n", "cache");
        }
        if let Some(problem) = &self.problem {
            text += &format!("  {:13} {problem}\n", "cannot run:");
        }
        text
    }

    /// For programs.
    pub fn json(&self) -> Value {
        let gpu = |gpu: &Gpu| {
            let about = gpu.about.as_ref();
            json!({
                "device": gpu.device.to_string(),
                "name": gpu.name,
                "compute_capability": about.map(|a| format!("{}.{}", a.capability.0, a.capability.1)),
                "memory_bytes": about.map(|about| about.memory),
                "multiprocessors": about.map(|about| about.multiprocessors),
                "usable": gpu.will_do(),
            })
        };
        let kept = |kept: &Kept| json!({"folder": kept.folder, "files": kept.files, "bytes": kept.bytes, "limit_bytes": kept.limit});
        json!({
            "built_in": cfg!(feature = "cuda"),
            "driver": self.driver,
            "cuda": self.cuda.map(|(major, minor)| format!("{major}.{minor}")),
            "gpus": self.gpus.iter().map(gpu).collect::<Vec<_>>(),
            "problem": self.problem,
            "cache": self.cache.as_ref().map(kept),
        })
    }
}
