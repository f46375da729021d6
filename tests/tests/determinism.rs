//! Compiling gives the same bytes every time: whatever the number of threads, and however hash maps are seeded.
//!
//! The standard library seeds each map differently: by numbers drawn for each thread, counted up for each map. So every
//! compile here has seeds of its own, and those in other processes have others again.

use eva::model::config::Config;
use eva::model::{Options as ModelOptions, causal_lm};
use eva_cranelift::Isa;
use eva_ir::graph::Module;
use eva_ir::text;
use eva_passes::target::Target;
use eva_passes::{Options, compile, optimize};
use eva_runtime::{CompileOptions, Executable};
use sha2::{Digest, Sha256};
use std::path::Path;
use std::process::Command;
use std::thread;

/// SHA-256 of what compiling gives: the graph after all passes; the plans and kernels for a CPU and a GPU; Cranelift's IR
/// and its machine code; PTX, if it is asked for and there is a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Digests(Vec<(&'static str, String)>);

fn block() -> Module {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases/run/mla.eva");
    text::parse(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn model() -> Module {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/v3-tiny");
    causal_lm(&Config::load(&dir).unwrap(), &ModelOptions::default()).unwrap()
}

fn sha256(parts: impl IntoIterator<Item = impl AsRef<[u8]>>) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.as_ref().len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Compiles on so many threads.
fn digests(module: &Module, threads: usize, ptx: bool) -> Digests {
    let options = Options::default();
    let graph = text::print(&optimize(module, &options).unwrap());
    let cuda = compile(module, &Target::cuda(), &options).unwrap();
    let options = CompileOptions { passes: options, threads: Some(threads), ..CompileOptions::default() };
    let executable = Executable::compile(module, &options).unwrap();
    let (isa, cpu) = (Isa::x86_64(&[]), executable.plan());
    let kernels = || cpu.kernels.iter().map(|(_, kernel)| kernel);
    let texts = |plan: &eva_passes::plan::Plan| {
        let kernels: Vec<String> =
            plan.tiles.iter().chain(plan.kernels.iter()).map(|(_, k)| k.to_string()).collect();
        sha256([format!("{plan:?}")].into_iter().chain(kernels))
    };
    let mut all = vec![
        ("graph", sha256([graph])),
        ("plan, cpu", texts(cpu)),
        ("plan, cuda", texts(&cuda)),
        ("clif", sha256(kernels().map(|kernel| eva_cranelift::clif(kernel, &isa).unwrap()))),
        ("code", sha256(kernels().map(|kernel| eva_cranelift::emit(kernel, &isa).unwrap().0))),
        ("bytes of code", executable.code_bytes().to_string()),
    ];
    if ptx {
        all.extend(ptx_digest(&cuda, threads));
    }
    Digests(all)
}

#[cfg(feature = "cuda")]
fn ptx_digest(plan: &eva_passes::plan::Plan, threads: usize) -> Option<(&'static str, String)> {
    let kernels: Vec<_> = plan.kernels.iter().map(|(_, kernel)| kernel.clone()).collect();
    let all = eva_ptx::compile_all(&kernels, &eva_ptx::Options::default(), threads).unwrap();
    Some(("ptx", sha256(all.iter().map(|ptx| &ptx.text))))
}

#[cfg(not(feature = "cuda"))]
fn ptx_digest(_: &eva_passes::plan::Plan, _: usize) -> Option<(&'static str, String)> {
    None
}

/// [`digests`] on a thread of its own, whose maps have other seeds.
fn elsewhere(module: &Module, threads: usize, ptx: bool) -> Digests {
    thread::scope(|scope| scope.spawn(|| digests(module, threads, ptx)).join().unwrap())
}

/// What [`one_compile_says_its_digests`] prints in a process of its own.
fn in_another_process() -> Vec<String> {
    let name = "one_compile_says_its_digests";
    let child =
        Command::new(std::env::current_exe().unwrap()).args(["--exact", name, "--nocapture"]).output();
    let child = child.unwrap();
    assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stderr));
    let out = String::from_utf8(child.stdout).unwrap();
    // The harness begins a line before the test goes on with it.
    out.lines().filter_map(|line| Some(line.split_once("digest ")?.1.to_string())).collect()
}

fn said(which: &str, digests: &Digests) -> Vec<String> {
    digests.0.iter().map(|(part, hash)| format!("{which}: {part}: {hash}")).collect()
}

#[test]
fn one_compile_says_its_digests() {
    for (which, module) in [("block", block()), ("model", model())] {
        let digests = digests(&module, 2, which == "block");
        assert!(digests.0.iter().take(5).all(|(_, hash)| hash.len() == 64), "{digests:?}");
        said(which, &digests).iter().for_each(|line| println!("digest {line}"));
    }
}

#[test]
fn a_hundred_compiles_give_the_same_bytes() {
    let (block, model) = (block(), model());
    let (first, whole) = (digests(&block, 1, true), digests(&model, 1, false));
    // With these two, four of the model and four of the block in other processes: a hundred.
    for i in 0..86 {
        let ptx = i % 16 == 0;
        let Digests(now) = elsewhere(&block, 1 + i % 5, ptx);
        assert_eq!(now, first.0[..now.len()], "compile {i} of the block");
    }
    for threads in [2, 3, 5, 8] {
        assert_eq!(elsewhere(&model, threads, false), whole, "the model on {threads} threads");
    }
    let want = [said("block", &first), said("model", &whole)].concat();
    for _ in 0..4 {
        assert_eq!(in_another_process(), want);
    }
}

/// A digest that nothing can change says nothing.
#[test]
fn other_modules_have_other_digests() {
    let mut module = block();
    let one = digests(&module, 1, true);
    let n = module.dims.iter_mut().find(|(sym, _)| sym.as_str() == "n").unwrap();
    n.1 = Some(8);
    let other = digests(&module, 1, true);
    for ((part, one), (_, other)) in
        one.0.iter().zip(&other.0).filter(|((part, _), _)| *part != "bytes of code")
    {
        assert_ne!(one, other, "{part}");
    }
}
