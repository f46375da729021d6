//! What can be found out about a machine by looking at its files.

use std::env;
use std::fs;
use std::path::PathBuf;

/// Something that a target needs.
pub struct Tool {
    /// What it is called.
    pub name: &'static str,
    /// Where it is.
    pub found: Option<String>,
    /// What it is for.
    pub purpose: &'static str,
    /// How to get it.
    pub how: &'static str,
}

/// The processor's name.
pub fn processor() -> Option<String> {
    let info = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = info.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_string())
}

/// Bytes of memory, and those that are available.
pub fn memory() -> (Option<u64>, Option<u64>) {
    let info = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let value = |key: &str| {
        let line = info.lines().find_map(|line| line.strip_prefix(key))?;
        let kib: u64 = line.trim_start_matches(':').split_whitespace().next()?.parse().ok()?;
        kib.checked_mul(1024)
    };
    (value("MemTotal"), value("MemAvailable"))
}

/// The names of NVIDIA GPUs that a driver serves.
pub fn gpus() -> Vec<String> {
    let entries = fs::read_dir("/proc/driver/nvidia/gpus").into_iter().flatten().flatten();
    let name =
        |info: String| Some(info.lines().find_map(|line| line.strip_prefix("Model:"))?.trim().to_string());
    let mut names: Vec<String> = entries
        .filter_map(|entry| name(fs::read_to_string(entry.path().join("information")).ok()?))
        .collect();
    names.sort();
    names
}

/// What targets other than this processor need.
pub fn tools() -> Vec<Tool> {
    let program = |names: &[&str], more: &[&str]| find(&folders("PATH", more), names);
    let library = |names: &[&str]| find(&folders("LD_LIBRARY_PATH", LIBRARIES), names);
    let cuda = ["/usr/local/cuda/bin", "/opt/cuda/bin"];
    vec![
        Tool {
            name: "LLVM",
            found: program(&["llc", "llc-22", "llc-21", "llc-20", "llc-19", "llc-18"], &[]),
            purpose: "code for GPUs",
            how: "install your system's package `llvm`, or see https://releases.llvm.org",
        },
        Tool {
            name: "ptxas",
            found: program(&["ptxas"], &cuda),
            purpose: "assembling code for NVIDIA GPUs",
            how: "part of the CUDA toolkit, https://developer.nvidia.com/cuda-downloads",
        },
        Tool {
            name: "libcuda.so",
            found: library(&["libcuda.so.1", "libcuda.so"]),
            purpose: "running on NVIDIA GPUs",
            how: "part of the driver, https://www.nvidia.com/drivers",
        },
        Tool {
            name: "driver",
            found: driver(),
            purpose: "running on NVIDIA GPUs",
            how: "https://www.nvidia.com/drivers; in a container, start it with access to the GPUs",
        },
    ]
}

/// Where systems keep libraries.
const LIBRARIES: &[&str] = &[
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/usr/local/nvidia/lib64",
    "/usr/lib/wsl/lib",
];

/// The version of the NVIDIA driver that runs.
fn driver() -> Option<String> {
    let version = fs::read_to_string("/sys/module/nvidia/version").ok()?;
    Some(format!("NVIDIA {}", version.trim()))
}

/// The folders of a search path, then `more`.
fn folders(variable: &str, more: &[&str]) -> Vec<PathBuf> {
    let listed = env::var_os(variable);
    let listed = listed.iter().flat_map(env::split_paths).filter(|folder| folder.is_absolute());
    listed.chain(more.iter().map(PathBuf::from)).collect()
}

/// The first file of one of these names in one of these folders.
fn find(folders: &[PathBuf], names: &[&str]) -> Option<String> {
    let mut files = names.iter().flat_map(|name| folders.iter().map(move |folder| folder.join(name)));
    files.find(|file| file.is_file()).map(|file| file.display().to_string())
}
