//! From kernels to PTX: a module for each, LLVM's passes, its code generator.

use crate::ir::Fault;
use crate::{Error, OptLevel, Options, Ptx, abi, entry_name, shared_bytes};
use eva_ir::kernel::Kernel;
use inkwell::OptimizationLevel;
use inkwell::context::Context;
use inkwell::module::Module;
use inkwell::passes::PassBuilderOptions;
use inkwell::targets::{
    CodeModel, FileType, InitializationConfig, RelocMode, Target, TargetMachine, TargetTriple,
};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes of a thread's stack: LLVM goes deep into long expressions.
const STACK: usize = 16 << 20;

/// Makes PTX of a kernel of the block phase.
pub fn compile(kernel: &Kernel, options: &Options) -> Result<Ptx, Error> {
    let target = Machine::new(options)?;
    let named = |fault| match fault {
        Fault::Kernel(what) => Error::Kernel { kernel: kernel.name.clone(), what },
        Fault::Llvm(reason) => Error::Codegen { kernel: kernel.name.clone(), reason },
    };
    let context = Context::create();
    let module = abi::module(kernel, &context, &target.machine).map_err(named)?;
    let llvm = options.keep_llvm.then(|| module.print_to_string().to_string());
    let text = target.assemble(&module, options.level).map_err(named)?;
    Ok(Ptx {
        name: kernel.name.clone(),
        entry: entry_name(kernel),
        text,
        shared_bytes: shared_bytes(kernel),
        threads: 32 * kernel.block.as_ref().map_or(0, |block| block.warps),
        llvm,
    })
}

/// Makes PTX of each kernel, on up to `threads` threads. Results are in the kernels' order, and what one of them is
/// does not depend on the others. The error is that of the first kernel that has one.
pub fn compile_all(kernels: &[Kernel], options: &Options, threads: usize) -> Result<Vec<Ptx>, Error> {
    let next = AtomicUsize::new(0);
    let done: Mutex<Vec<(usize, Result<Ptx, Error>)>> = Mutex::new(Vec::with_capacity(kernels.len()));
    let work = || {
        while let Some((i, kernel)) = {
            let i = next.fetch_add(1, Ordering::Relaxed);
            kernels.get(i).map(|kernel| (i, kernel))
        } {
            let result = compile(kernel, options);
            done.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push((i, result));
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads.min(kernels.len()) {
            // Where there is no thread to be had, the others do its part.
            let _ = std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, work);
        }
        work();
    });
    let mut done = done.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    done.sort_by_key(|(i, _)| *i);
    done.into_iter().map(|(_, result)| result).collect()
}

/// What pays for a kernel, which is one function in SSA form without local memory. How far loops are unrolled and what is
/// done in one go is in the kernel, and `ptxas` unrolls. It also takes out of loops what does not change in them, where
/// registers suffice, which LLVM does not know. LLVM's own choice of passes takes vector loads apart, on which they are no
/// longer known to be of memory that does not change.
const PASSES: &str = "function(early-cse<memssa>,correlated-propagation,simplifycfg,\
    instcombine<no-verify-fixpoint>,loop(loop-rotate),simplifycfg,instcombine<no-verify-fixpoint>,\
    loop(indvars,loop-deletion),early-cse,correlated-propagation,instcombine<no-verify-fixpoint>,adce,simplifycfg,\
    instcombine<no-verify-fixpoint>)";

struct Machine {
    machine: TargetMachine,
}

impl Machine {
    fn new(options: &Options) -> Result<Self, Error> {
        Target::initialize_nvptx(&InitializationConfig::default());
        let triple = TargetTriple::create("nvptx64-nvidia-cuda");
        let target = Target::from_triple(&triple).map_err(|e| Error::Target(e.to_string()))?;
        let (major, minor) = options.version;
        let level = match options.level {
            OptLevel::None => OptimizationLevel::None,
            OptLevel::Aggressive => OptimizationLevel::Aggressive,
        };
        let machine = target.create_target_machine(
            &triple,
            &options.chip,
            &format!("+ptx{major}{minor}"),
            level,
            RelocMode::Default,
            CodeModel::Default,
        );
        let machine = machine.ok_or_else(|| Error::Target(options.chip.clone()))?;
        Ok(Self { machine })
    }

    fn assemble(&self, module: &Module, level: OptLevel) -> Result<String, Fault> {
        let llvm = |e: inkwell::support::LLVMString| Fault::Llvm(e.to_string());
        module.verify().map_err(llvm)?;
        if level == OptLevel::Aggressive {
            module.run_passes(PASSES, &self.machine, PassBuilderOptions::create()).map_err(llvm)?;
        }
        let buffer = self.machine.write_to_memory_buffer(module, FileType::Assembly).map_err(llvm)?;
        let text = std::str::from_utf8(buffer.as_slice());
        let text = text.map_err(|e| Fault::Llvm(format!("the assembly is no text: {e}")))?;
        Ok(text.trim_end_matches('\0').to_owned())
    }
}
