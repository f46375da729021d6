//! [`Executable`]: a compiled module; and how a plan runs.

use crate::bind::{self, Addresses, Bound, ConstantAt, walk};
use crate::cpu;
#[cfg(feature = "cuda")]
use crate::cuda;
use crate::device::Device;
use crate::error::Error;
use crate::finite;
use crate::memory::Memory;
use crate::pool::Pool;
use crate::prepare::Store;
use crate::tensor::{Bytes, Tensor};
use eva_ir::entity::Entity;
use eva_ir::graph::{Func, Module};
use eva_passes::plan::{Base, FuncPlan, Plan};
use eva_passes::target::Target;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// What a compilation may be told.
#[derive(Clone, Debug, Default)]
pub struct CompileOptions {
    /// What the passes are told.
    pub passes: eva_passes::Options,
    /// What the code is to run on.
    pub device: Device,
    /// How many threads compile kernels and, on the CPU, run them; the machine's processors if not given.
    pub threads: Option<usize>,
    /// The CPU's instructions that may be used; this machine's if not given.
    pub isa: Option<eva_cranelift::Isa>,
    /// What a compilation for a GPU is told.
    #[cfg(feature = "cuda")]
    pub cuda: cuda::CudaOptions,
}

/// How long each part of a compilation took.
#[derive(Clone, Copy, Debug, Default)]
pub struct CompileTimes {
    /// From the module to kernels.
    pub passes: Duration,
    /// From kernels to machine code, ready to run.
    pub codegen: Duration,
    /// For a GPU, within `codegen`: from kernels to PTX, summed over the threads that did it.
    pub ptx: Duration,
    /// For a GPU, within `codegen`: from PTX to machine code, by the driver, summed likewise.
    pub assemble: Duration,
    /// For a GPU, within `codegen`: loading, the folder of compiled kernels included, summed likewise.
    pub load: Duration,
    /// For a GPU: how many kernels were in the folder of compiled kernels.
    pub cached: usize,
}

/// A module as machine code. One compilation serves every length.
pub struct Executable {
    plan: Plan,
    pub(crate) code: Code,
    /// Tensors computed by the compiler.
    constants: HashMap<ConstantAt, Memory>,
    /// Weights computed when functions were loaded.
    pub(crate) prepared: Store,
    /// How long the compilation took.
    pub times: CompileTimes,
}

/// Machine code, and what runs it.
pub(crate) enum Code {
    Cpu(Box<cpu::Code>),
    #[cfg(feature = "cuda")]
    Cuda(cuda::Code),
}

impl Executable {
    /// Compiles `module`.
    pub fn compile(module: &Module, options: &CompileOptions) -> Result<Self, Error> {
        match options.device {
            Device::Cpu => Self::for_cpu(module, options),
            #[cfg(feature = "cuda")]
            Device::Cuda(ordinal) => Self::for_gpu(module, options, ordinal),
            #[cfg(not(feature = "cuda"))]
            device @ Device::Cuda(_) => Err(Error::NoSuchDevice(device)),
        }
    }

    fn for_cpu(module: &Module, options: &CompileOptions) -> Result<Self, Error> {
        let pool = Pool::new(options.threads)?;
        let started = Instant::now();
        let plan = eva_passes::compile(module, &Target::cpu(), &options.passes)?;
        let passes = started.elapsed();
        let started = Instant::now();
        let code = Code::Cpu(Box::new(cpu::Code::compile(&plan, pool, options.isa.clone())?));
        let times = CompileTimes { passes, codegen: started.elapsed(), ..CompileTimes::default() };
        Self::new(plan, code, times)
    }

    #[cfg(feature = "cuda")]
    fn for_gpu(module: &Module, options: &CompileOptions, ordinal: usize) -> Result<Self, Error> {
        let gpu = cuda::Gpu::open(ordinal)?;
        let started = Instant::now();
        let plan = eva_passes::compile(module, &Target::cuda(), &options.passes)?;
        let passes = started.elapsed();
        let started = Instant::now();
        let threads = options.threads.unwrap_or_else(crate::pool::default_threads).max(1);
        let kernels: Vec<_> = plan.kernels.iter().map(|(_, kernel)| kernel).collect();
        let (code, spent) = cuda::Code::compile(&gpu, &kernels, &options.cuda, threads)?;
        let cuda::CudaTimes { ptx, assemble, load, cached } = spent;
        let times = CompileTimes { passes, codegen: started.elapsed(), ptx, assemble, load, cached };
        Self::new(plan, Code::Cuda(code), times)
    }

    fn new(plan: Plan, code: Code, times: CompileTimes) -> Result<Self, Error> {
        let (constants, prepared) = (HashMap::new(), Store::default());
        let mut exe = Self { plan, code, constants, prepared, times };
        for (func, f) in exe.plan.funcs.iter() {
            let bodies = f.bodies().enumerate();
            let bases =
                bodies.flat_map(|(body, f)| f.bases.iter().enumerate().map(move |(i, base)| (body, i, base)));
            for (body, i, base) in bases {
                if let Base::Constant(dtype, array) = base {
                    let tensor = Tensor::from_f64(*dtype, &array.shape, &array.data);
                    let mut memory = exe.zeroed(tensor.bytes().len(), "a constant")?;
                    memory.write(0, tensor.bytes())?;
                    exe.constants.insert((func.index(), body, i), memory);
                }
            }
        }
        tracing::info!(
            device = %exe.device(),
            kernels = exe.plan.kernels.len(),
            passes_ms = times.passes.as_secs_f64() * 1e3,
            codegen_ms = times.codegen.as_secs_f64() * 1e3,
            "compiled"
        );
        Ok(exe)
    }

    /// What the code runs on.
    pub fn device(&self) -> Device {
        match &self.code {
            Code::Cpu(_) => Device::Cpu,
            #[cfg(feature = "cuda")]
            Code::Cuda(code) => Device::Cuda(code.gpu().ordinal),
        }
    }

    /// The GPU that the code runs on, if it does.
    #[cfg(feature = "cuda")]
    pub fn gpu(&self) -> Option<&std::sync::Arc<cuda::Gpu>> {
        match &self.code {
            Code::Cpu(_) => None,
            Code::Cuda(code) => Some(code.gpu()),
        }
    }

    /// The kernels on the GPU that the code runs on, by their numbers in the plan.
    #[cfg(feature = "cuda")]
    pub fn loaded(&self) -> &[cuda::Loaded] {
        match &self.code {
            Code::Cpu(_) => &[],
            Code::Cuda(code) => code.kernels(),
        }
    }

    /// The plan that runs.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// How many of this machine's threads run kernels.
    pub fn threads(&self) -> usize {
        match &self.code {
            Code::Cpu(code) => code.pool.threads().get(),
            #[cfg(feature = "cuda")]
            Code::Cuda(_) => 0,
        }
    }

    /// Bytes of machine code.
    pub fn code_bytes(&self) -> usize {
        match &self.code {
            Code::Cpu(code) => code.bytes(),
            #[cfg(feature = "cuda")]
            Code::Cuda(code) => code.kernels().iter().map(|kernel| kernel.code_bytes).sum(),
        }
    }

    /// The function with this name.
    pub fn func(&self, name: &str) -> Result<Func, Error> {
        let found = self.plan.funcs.iter().find(|(_, f)| f.name == name).map(|(func, _)| func);
        found.ok_or_else(|| {
            let have: Vec<_> = self.plan.funcs.iter().map(|(_, f)| format!("`{}`", f.name)).collect();
            Error::NoFunction { name: name.into(), have: have.join(", ") }
        })
    }

    /// How a function runs.
    pub fn func_plan(&self, func: Func) -> &FuncPlan {
        &self.plan.funcs[func]
    }

    /// Memory of zeros on the device; `what` is for the message if there is no room.
    pub(crate) fn zeroed(&self, bytes: usize, what: &str) -> Result<Memory, Error> {
        match &self.code {
            Code::Cpu(_) => {
                let _ = what;
                Ok(Memory::Host(Bytes::zeroed(bytes)))
            }
            #[cfg(feature = "cuda")]
            Code::Cuda(code) => Ok(Memory::Gpu(code.gpu().zeroed(bytes, what)?)),
        }
    }

    /// The address of a constant.
    pub(crate) fn constant(&self, at: ConstantAt) -> *mut u8 {
        self.constants[&at].address()
    }

    /// Runs a function on the CPU.
    ///
    /// # Safety
    /// The addresses are of buffers of the types and sizes that the plan and `bound` say; results and states are not
    /// read or written by anyone else; the arena has `bound.arena` bytes and is aligned to
    /// [`eva_passes::plan::ALIGNMENT`]. With `finite`, what each kernel writes is checked.
    pub(crate) unsafe fn run(
        &self,
        code: &cpu::Code,
        bound: &Bound,
        at: Addresses,
        finite: bool,
    ) -> Result<(), Error> {
        let at = OnThread(at);
        let mut done = Ok(());
        code.pool.enter(|| {
            let at = &at;
            let constant = |at| self.constant(at);
            let mut launch = |kernel: usize, bufs: &[*mut u8], launch: &bind::Launch, name: &str| {
                // SAFETY: the caller's; `bind` has checked every buffer, and the programs of a kernel write apart.
                unsafe { code.launch(kernel, bufs, launch) };
                if !finite {
                    return Ok(());
                }
                let kernel = &self.plan.kernels[Entity::new(kernel)];
                finite::check(kernel, &launch.syms, name, &mut |buf, from, bytes| {
                    let at = bufs[buf].wrapping_offset(from as isize);
                    // SAFETY: the elements that the kernel's buffer has, as `bind` has checked; nothing writes now.
                    Ok(unsafe { std::slice::from_raw_parts(at, bytes) }.to_vec())
                })
            };
            done = walk(&self.plan, bound, bound.func, at.0, &constant, &mut launch);
        });
        done
    }
}

/// Addresses on their way to a thread of the pool.
struct OnThread<'a>(Addresses<'a>);
// SAFETY: they are of buffers that the run alone uses, from the pool's threads in turn.
unsafe impl Sync for OnThread<'_> {}
