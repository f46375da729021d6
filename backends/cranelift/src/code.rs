//! From kernels to code in memory.

use crate::Error;
use crate::abi::{Extern, RawKernel, function, scratch_layout, signature};
use crate::isa::{Options, Targets};
use cranelift_codegen::control::ControlPlane;
use cranelift_codegen::isa::CallConv;
use cranelift_codegen::{Context, FinalizedRelocTarget, ir::ExternalName};
use cranelift_jit::{JITBuilder, JITModule};
use cranelift_module::{FuncId, Linkage, Module, ModuleError, ModuleReloc};
use eva_ir::dim::Sym;
use eva_ir::kernel::{GridAxis, Kernel};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The machine code of one kernel, not yet at its place.
pub(crate) struct Object {
    pub bytes: Vec<u8>,
    align: u64,
    relocs: Vec<ModuleReloc>,
    /// One instruction a line, if it was asked for.
    pub listing: Option<String>,
}

impl Object {
    pub(crate) fn new(kernel: &Kernel, targets: &Targets, listing: bool) -> Result<Self, Error> {
        let refused = |reason: String| Error::Codegen { kernel: kernel.name.clone(), reason };
        let mut context = Context::for_function(function(kernel, &*targets.chosen)?);
        let isa = targets.for_length(context.func.dfg.num_insts());
        context.set_disasm(listing);
        context.compile(isa, &mut ControlPlane::default()).map_err(|e| refused(format!("{:?}", e.inner)))?;
        let compiled = context.take_compiled_code().ok_or_else(|| refused("nothing was compiled".into()))?;
        // Functions that a target calls for want of an instruction: none of those that the emitter uses.
        let relocs = compiled.buffer.relocs();
        if let Some(reloc) = relocs
            .iter()
            .find(|r| !matches!(r.target, FinalizedRelocTarget::ExternalName(ExternalName::User(_))))
        {
            return Err(refused(format!("it needs {:?}", reloc.target)));
        }
        let relocs = relocs
            .iter()
            .map(|r| ModuleReloc::from_mach_reloc(r, &context.func, FuncId::from_u32(0)))
            .collect();
        Ok(Self {
            bytes: compiled.code_buffer().to_vec(),
            align: u64::from(compiled.buffer.alignment),
            relocs,
            listing: compiled.vcode,
        })
    }
}

/// Kernels in memory, ready to be called from any thread. Dropping it frees the code.
pub struct Compiled {
    kernels: Vec<Entry>,
    /// Only ever taken to be dropped.
    module: Mutex<Option<JITModule>>,
}

struct Entry {
    run: RawKernel,
    scratch_bytes: usize,
    code_bytes: usize,
    grid: Vec<GridAxis>,
    syms: Vec<Sym>,
}

/// Compiles kernels in the lane phase, as many at once as `options` says.
pub fn compile(kernels: &[Kernel], options: &Options) -> Result<Compiled, Error> {
    let targets = options.isa.targets(options)?;
    let isa = &targets.chosen;
    options.isa.check_runs_here(&**isa)?;
    let objects = objects(kernels, &targets, options.threads.get())?;

    let mut builder = JITBuilder::with_isa(isa.clone(), cranelift_module::default_libcall_names());
    builder.symbols(Extern::all().map(|f| (f.name(), f.address())));
    let mut compiled = Compiled { kernels: Vec::new(), module: Mutex::new(Some(JITModule::new(builder))) };
    compiled.kernels = match compiled.module.get_mut() {
        Ok(Some(module)) => place(module, kernels, &objects, isa.default_call_conv())?,
        _ => return Err(Error::Memory("the code's module is gone".into())),
    };
    let bytes: usize = objects.iter().map(|object| object.bytes.len()).sum();
    tracing::debug!(kernels = kernels.len(), bytes, "machine code");
    Ok(compiled)
}

/// Gives machine code its place in memory.
fn place(
    module: &mut JITModule,
    kernels: &[Kernel],
    objects: &[Object],
    conv: CallConv,
) -> Result<Vec<Entry>, Error> {
    let memory = |e: ModuleError| Error::Memory(e.to_string());
    // Declared first and in this order, so that their numbers are those that the code names them by.
    for f in Extern::all() {
        module.declare_function(&f.name(), Linkage::Import, &f.signature(conv)).map_err(memory)?;
    }
    let mut ids = Vec::with_capacity(objects.len());
    for object in objects {
        let id = module.declare_anonymous_function(&signature(conv)).map_err(memory)?;
        module.define_function_bytes(id, object.align, &object.bytes, &object.relocs).map_err(memory)?;
        ids.push(id);
    }
    module.finalize_definitions().map_err(memory)?;
    let entry = |((kernel, object), id): ((&Kernel, &Object), FuncId)| Entry {
        // SAFETY: the code was made for this signature and calling convention, for this machine.
        run: unsafe { std::mem::transmute::<*const u8, RawKernel>(module.get_finalized_function(id)) },
        scratch_bytes: scratch_layout(kernel).map_or(0, |(_, bytes)| bytes),
        code_bytes: object.bytes.len(),
        grid: kernel.grid.clone(),
        syms: kernel.syms(),
    };
    Ok(kernels.iter().zip(objects).zip(ids).map(entry).collect())
}

fn objects(kernels: &[Kernel], targets: &Targets, threads: usize) -> Result<Vec<Object>, Error> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            let Some(kernel) = kernels.get(i) else { return done };
            done.push((i, Object::new(kernel, targets, false)));
        }
    };
    let helpers = threads.min(kernels.len()).saturating_sub(1);
    let mut done = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..helpers).map(|_| scope.spawn(work)).collect();
        let mut done = work();
        for handle in handles {
            match handle.join() {
                Ok(more) => done.extend(more),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        done
    });
    done.sort_by_key(|(i, _)| *i);
    done.into_iter().map(|(_, object)| object).collect()
}

impl Compiled {
    /// The kernel that was number `i` of those compiled. Panics if there were fewer.
    pub fn kernel(&self, i: usize) -> KernelFn<'_> {
        KernelFn(&self.kernels[i])
    }

    /// How many kernels there are.
    pub fn len(&self) -> usize {
        self.kernels.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.kernels.is_empty()
    }
}

impl Drop for Compiled {
    fn drop(&mut self) {
        let module = self.module.get_mut().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(module) = module.take() {
            // SAFETY: a kernel runs only by a `KernelFn`, which borrows this.
            unsafe { module.free_memory() };
        }
    }
}

/// A kernel in memory.
#[derive(Clone, Copy)]
pub struct KernelFn<'c>(&'c Entry);

impl KernelFn<'_> {
    /// How much private memory a call needs, in bytes: a multiple of [`SCRATCH_ALIGN`](crate::SCRATCH_ALIGN).
    pub fn scratch_bytes(self) -> usize {
        self.0.scratch_bytes
    }

    /// How long its machine code is, in bytes.
    pub fn code_bytes(self) -> usize {
        self.0.code_bytes
    }

    /// How many programs its grid has, given the values of [`Kernel::syms`] in their order; `None` if one is
    /// missing or the number overflows.
    pub fn programs(self, syms: &[i64]) -> Option<i64> {
        let value = |sym: &_| self.0.syms.iter().position(|s| s == sym).and_then(|i| syms.get(i).copied());
        self.0.grid.iter().try_fold(1i64, |programs, axis| {
            let extent = axis.extent.eval(&value)?.max(0);
            programs.checked_mul(extent.checked_add(axis.tile - 1)? / axis.tile)
        })
    }

    /// Runs the programs `first..last` of the grid, in order; other ranges may run at the same time.
    ///
    /// # Safety
    /// The arguments are what [`RawKernel`] says; every element that the kernel addresses in those programs is
    /// inside its buffer; no other thread writes what they read, or touches what they write.
    pub unsafe fn call(
        self,
        bufs: *const *mut u8,
        syms: *const i64,
        first: i64,
        last: i64,
        scratch: *mut u8,
    ) {
        // SAFETY: the caller's.
        unsafe { (self.0.run)(bufs, syms, first, last, scratch) }
    }
}
