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
    let named = |variable: &str| env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from);
    let llvm = named("LLVM_SYS_221_PREFIX").map(|folder| folder.join("bin/llvm-config"));
    let ptxas = named("EVA_PTXAS");
    vec![
        Tool {
            name: "LLVM 22",
            found: found(llvm)
                .or_else(|| program(&["llvm-config-22"], &[]))
                .or_else(|| find(&[PathBuf::from("/usr/lib/llvm-22/bin")], &["llvm-config"])),
            purpose: "building eva with CUDA",
            how: "install your system's package (`llvm-22-dev`), or see https://releases.llvm.org",
        },
        Tool {
            name: "ptxas",
            found: found(ptxas).or_else(|| program(&["ptxas"], &["/usr/local/cuda/bin", "/opt/cuda/bin"])),
            purpose: "machine code from `eva compile`",
            how: "part of the CUDA toolkit, https://developer.nvidia.com/cuda-downloads",
        },
        Tool {
            name: "libcuda.so",
            found: library(&["libcuda.so.1", "libcuda.so"]),
            purpose: "running on NVIDIA GPUs",
            how: "part of the driver, https://www.nvidia.com/drivers; in a container, start it with access to the GPUs",
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
pub fn driver() -> Option<String> {
    let version = fs::read_to_string("/sys/module/nvidia/version").ok();
    let version = version.map(|text| text.trim().to_string()).or_else(|| {
        // As in "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05  Tue Sep 23 …".
        let text = fs::read_to_string("/proc/driver/nvidia/version").ok()?;
        let numbers =
            |word: &&str| word.contains('.') && word.bytes().all(|b| b == b'.' || b.is_ascii_digit());
        Some(text.split_whitespace().find(numbers)?.to_string())
    })?;
    Some(format!("NVIDIA {version}"))
}

/// The folders of a search path, then `more`.
fn folders(variable: &str, more: &[&str]) -> Vec<PathBuf> {
    let listed = env::var_os(variable);
    let listed = listed.iter().flat_map(env::split_paths).filter(|folder| folder.is_absolute());
    listed.chain(more.iter().map(PathBuf::from)).collect()
}

/// A file, if it is there.
fn found(file: Option<PathBuf>) -> Option<String> {
    file.filter(|file| file.is_file()).map(|file| file.display().to_string())
}

/// The first file of one of these names in one of these folders.
fn find(folders: &[PathBuf], names: &[&str]) -> Option<String> {
    let mut files = names.iter().flat_map(|name| folders.iter().map(move |folder| folder.join(name)));
    found(files.find(|file| file.is_file()))
}
