//! What every module must get through: LLVM's verifier, and `ptxas` without spills or warnings.

use eva_ir::kernel::Kernel;
use eva_ptx::{Options, Ptx, compile};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How many modules were not assembled, for want of `ptxas`.
static SKIPPED: AtomicUsize = AtomicUsize::new(0);
/// How many modules were assembled.
static FILES: AtomicUsize = AtomicUsize::new(0);

/// What `ptxas` said of a module.
#[derive(Debug)]
pub struct Assembled {
    /// Registers of a thread at the start.
    pub registers: usize,
    /// All of it.
    said: String,
}

/// `ptxas`: what `EVA_PTXAS` names, or the one in `PATH`.
fn ptxas() -> Option<PathBuf> {
    let in_path = || {
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path).map(|folder| folder.join("ptxas")).find(|file| file.is_file())
    };
    std::env::var_os("EVA_PTXAS").map(PathBuf::from).or_else(in_path)
}

/// The kernel as PTX, which has been assembled where there is a `ptxas`.
pub fn pass(kernel: &Kernel) -> (Ptx, Option<Assembled>) {
    let (ptx, assembled) = assembles(kernel);
    if let Some(assembled) = &assembled {
        let said = &assembled.said;
        let context = || format!("{}\n{said}\n{}", ptx.name, ptx.text);
        assert!(
            said.contains("0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads"),
            "{}",
            context()
        );
        assert!(!said.contains("lmem"), "local memory: {}", context());
    }
    (ptx, assembled)
}

/// The same for a kernel that may have more numbers at once than `ptxas` gives it registers.
pub fn assembles(kernel: &Kernel) -> (Ptx, Option<Assembled>) {
    let options = Options { keep_llvm: true, ..Options::default() };
    let ptx = compile(kernel, &options).unwrap_or_else(|e| panic!("{e}\n{kernel}"));
    assert!(ptx.text.contains(".version 8.6") && ptx.text.contains(".target sm_90a"), "{}", ptx.text);
    dump(&ptx);
    let assembled = assemble(&ptx);
    (ptx, assembled)
}

/// Writes the module, and the LLVM IR that it came from, to the folder that `EVA_PTX_DUMP` names: to look at, or to run
/// where there is a GPU.
fn dump(ptx: &Ptx) {
    let Some(folder) = std::env::var_os("EVA_PTX_DUMP").map(PathBuf::from) else { return };
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join(format!("{}.ptx", ptx.name)), &ptx.text).unwrap();
    std::fs::write(folder.join(format!("{}.ll", ptx.name)), ptx.llvm.as_deref().unwrap_or_default()).unwrap();
}

/// Panics where `ptxas` refuses, warns, or makes products wait for one another.
fn assemble(ptx: &Ptx) -> Option<Assembled> {
    let Some(ptxas) = ptxas() else {
        let count = SKIPPED.fetch_add(1, Ordering::Relaxed) + 1;
        eprintln!("skipped: no ptxas ({count} modules not assembled)");
        return None;
    };
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("ptx");
    std::fs::create_dir_all(&folder).unwrap();
    // Kernels of several tests may have one name.
    let number = FILES.fetch_add(1, Ordering::Relaxed);
    let [file, cubin] = ["ptx", "cubin"].map(|end| folder.join(format!("{}.{number}.{end}", ptx.name)));
    std::fs::write(&file, &ptx.text).unwrap();
    let output = Command::new(&ptxas)
        .args(["-arch=sm_90a", "-v", "-o"])
        .args([&cubin, &file])
        .output()
        .unwrap_or_else(|e| panic!("{}: {e}", ptxas.display()));
    for file in [&file, &cubin] {
        drop(std::fs::remove_file(file));
    }
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let context = || format!("{}\n{said}\n{}", ptx.name, ptx.text);
    assert!(output.status.success(), "{}", context());
    assert!(!said.contains("C75"), "products wait for one another: {}", context());
    assert!(!said.contains("warning"), "{}", context());
    let registers = said.split("Used ").nth(1).and_then(|rest| rest.split(' ').next()?.parse().ok());
    let registers = registers.unwrap_or_else(|| panic!("no registers: {}", context()));
    Some(Assembled { registers, said })
}

/// How often a word is in the text.
pub fn count(text: &str, word: &str) -> usize {
    text.matches(word).count()
}
