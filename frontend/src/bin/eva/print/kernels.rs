//! Kernels of a module, as text.

use crate::ui::{NO_CUDA, Usage};
use clap::ValueEnum;
use eva::prelude::Module;
use eva_ir::entity::Arena;
use eva_ir::kernel::Kernel;
use eva_passes::plan::{KernelId, Plan};
use eva_passes::target::Target;
use eva_passes::{Error, Options};

/// What kernels are for.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TargetArg {
    /// This machine's processor
    Cpu,
    /// NVIDIA's Hopper GPUs
    Cuda,
}

/// What is printed of kernels.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum EmitArg {
    /// Kernel IR, before it is spread to threads or vectors
    Tile,
    /// Kernel IR, as the backend takes it
    Kernel,
    /// NVIDIA's assembly language
    Ptx,
    /// LLVM IR, as it is before LLVM's passes
    Llvm,
}

/// What to print of which target's kernels, as the options say it; `None` if no kernels were asked for.
pub fn wanted(
    target: Option<TargetArg>,
    emit: Option<EmitArg>,
) -> Result<Option<(TargetArg, EmitArg)>, Usage> {
    let usage = |message: &str| Err(Usage(message.into()));
    match (target, emit) {
        (None, None) => Ok(None),
        (None, Some(EmitArg::Tile | EmitArg::Kernel)) => {
            usage("each target has kernels of its own: give --target cpu or --target cuda, too")
        }
        (Some(TargetArg::Cpu), Some(EmitArg::Ptx | EmitArg::Llvm)) => {
            usage("PTX and LLVM IR are made for GPUs only: give --target cuda")
        }
        (_, Some(EmitArg::Ptx | EmitArg::Llvm)) if !cfg!(feature = "cuda") => usage(NO_CUDA),
        (target, emit) => Ok(Some((target.unwrap_or(TargetArg::Cuda), emit.unwrap_or(EmitArg::Kernel)))),
    }
}

/// Compiles a module to kernels.
pub fn plan(module: &Module, target: TargetArg, options: &Options) -> Result<Plan, Error> {
    let target = match target {
        TargetArg::Cpu => Target::cpu(),
        TargetArg::Cuda => Target::cuda(),
    };
    eva_passes::compile(module, &target, options)
}

/// The kernels of a plan as text.
pub fn text(plan: &Plan, emit: EmitArg) -> anyhow::Result<String> {
    let all = |kernels: &Arena<KernelId, Kernel>| {
        let texts: Vec<String> = kernels.iter().map(|(_, kernel)| format!("{kernel}\n")).collect();
        texts.join("\n")
    };
    match emit {
        EmitArg::Tile => Ok(all(&plan.tiles)),
        EmitArg::Kernel => Ok(all(&plan.kernels)),
        EmitArg::Ptx => compiled(plan, false),
        EmitArg::Llvm => compiled(plan, true),
    }
}

/// PTX, or LLVM IR: each kernel is a module of its own.
#[cfg(feature = "cuda")]
fn compiled(plan: &Plan, llvm: bool) -> anyhow::Result<String> {
    let kernels: Vec<Kernel> = plan.kernels.iter().map(|(_, kernel)| kernel.clone()).collect();
    let options = eva_ptx::Options { keep_llvm: llvm, ..eva_ptx::Options::default() };
    let made = eva_ptx::compile_all(&kernels, &options, eva_runtime::pool::default_threads())?;
    let comment = if llvm { ";" } else { "//" };
    let texts = made.into_iter().map(|ptx| {
        let text = ptx.llvm.unwrap_or(ptx.text);
        format!("{comment} kernel {}\n{}\n", ptx.name, text.trim())
    });
    Ok(texts.collect::<Vec<_>>().join("\n"))
}

#[cfg(not(feature = "cuda"))]
fn compiled(_: &Plan, _: bool) -> anyhow::Result<String> {
    anyhow::bail!(NO_CUDA)
}
