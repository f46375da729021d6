//! [`Executable`]: a compiled module; and how a plan runs on the CPU.

use crate::error::Error;
use crate::pool::Pool;
use eva_cranelift::Compiled;
use eva_ir::dim::{Dim, Sym};
use eva_ir::entity::Entity;
use eva_ir::graph::{Func, Module, ParamKind};
use eva_ir::kernel::{Inst, Kernel};
use eva_passes::plan::{Base, CAPACITY, FuncPlan, Layout, Plan, Step};
use eva_passes::target::Target;
use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::tensor::Tensor;

/// What a compilation for the CPU may be told.
#[derive(Clone, Debug, Default)]
pub struct CompileOptions {
    /// What the passes are told.
    pub passes: eva_passes::Options,
    /// How many threads run kernels (and compile them); the machine's processors if not given.
    pub threads: Option<usize>,
    /// The instructions that may be used; this machine's if not given.
    pub isa: Option<eva_cranelift::Isa>,
}

/// How long each part of a compilation took.
#[derive(Clone, Copy, Debug, Default)]
pub struct CompileTimes {
    /// From the module to kernels.
    pub passes: Duration,
    /// From kernels to machine code.
    pub codegen: Duration,
}

/// A module as machine code. One compilation serves every length.
pub struct Executable {
    plan: Plan,
    code: Compiled,
    pool: Pool,
    /// Tensors computed by the compiler, by function and base.
    constants: HashMap<(usize, usize), Tensor>,
    /// About how many operations one program of each kernel does.
    work: Vec<usize>,
    /// How long the compilation took.
    pub times: CompileTimes,
}

impl Executable {
    /// Compiles `module` for this machine.
    pub fn compile(module: &Module, options: &CompileOptions) -> Result<Self, Error> {
        let pool = Pool::new(options.threads)?;
        let started = Instant::now();
        let plan = eva_passes::compile(module, &Target::cpu(), &options.passes)?;
        let passes = started.elapsed();
        let started = Instant::now();
        let kernels: Vec<Kernel> = plan.kernels.iter().map(|(_, kernel)| kernel.clone()).collect();
        let backend = eva_cranelift::Options {
            isa: options.isa.clone().unwrap_or_else(eva_cranelift::Isa::host),
            threads: pool.threads(),
            ..eva_cranelift::Options::default()
        };
        let code = eva_cranelift::compile(&kernels, &backend)?;
        let codegen = started.elapsed();
        let mut constants = HashMap::new();
        for (func, f) in plan.funcs.iter() {
            for (i, base) in f.bases.iter().enumerate() {
                if let Base::Constant(dtype, array) = base {
                    constants.insert((func.index(), i), Tensor::from_f64(*dtype, &array.shape, &array.data));
                }
            }
        }
        let work = plan.tiles.iter().map(|(_, kernel)| work(kernel, &kernel.body)).collect();
        let times = CompileTimes { passes, codegen };
        tracing::info!(
            kernels = kernels.len(),
            passes_ms = passes.as_secs_f64() * 1e3,
            codegen_ms = codegen.as_secs_f64() * 1e3,
            "compiled"
        );
        Ok(Self { plan, code, pool, constants, work, times })
    }

    /// The plan that runs.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// How many threads run kernels.
    pub fn threads(&self) -> usize {
        self.pool.threads().get()
    }

    /// Bytes of machine code.
    pub fn code_bytes(&self) -> usize {
        (0..self.code.len()).map(|i| self.code.kernel(i).code_bytes()).sum()
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

    /// Works out, for one set of extents, everything that a run needs but addresses.
    pub(crate) fn bind(&self, func: Func, sizes: &HashMap<Sym, i64>) -> Result<Bound, Error> {
        let mut all = sizes.clone();
        all.extend(self.plan.dims.iter().filter_map(|(sym, n)| Some((sym.clone(), (*n)?))));
        let eval = |dim: &Dim| dim.eval(&|sym| all.get(sym).copied());
        let name = &self.plan.funcs[func].name;
        let mut bound = Bound { func, funcs: HashMap::new(), launches: HashMap::new(), arena: 0 };
        // Callees come before their callers: walk from the function down.
        let mut wanted = vec![func];
        while let Some(next) = wanted.pop() {
            if bound.funcs.contains_key(&next.index()) {
                continue;
            }
            let f = &self.plan.funcs[next];
            let layout = f.layout(&eval).ok_or_else(|| Error::TooLarge(format!("@{name}")))?;
            for step in &f.steps {
                match step {
                    Step::Call { func, .. } => wanted.push(*func),
                    Step::Launch { kernel, bases, name } => {
                        let launch = self.bind_launch(f, kernel.index(), bases, name, &all)?;
                        bound.launches.insert(kernel.index(), launch);
                    }
                }
            }
            bound.funcs.insert(next.index(), layout);
        }
        let bytes = self.plan.arena_bytes(func, &eval);
        bound.arena = bytes.ok_or_else(|| Error::TooLarge(format!("@{name}")))?;
        Ok(bound)
    }

    /// The extents' values for one kernel; checks that every buffer's elements are inside their base.
    fn bind_launch(
        &self,
        f: &FuncPlan,
        kernel: usize,
        bases: &[usize],
        name: &str,
        sizes: &HashMap<Sym, i64>,
    ) -> Result<Launch, Error> {
        let unknown = |what: &str| Error::Internal(format!("kernel `{name}`: {what} has no value"));
        let eval =
            |dim: &Dim| dim.eval(&|sym| sizes.get(sym).copied()).ok_or_else(|| unknown(&dim.to_string()));
        let id = Entity::new(kernel);
        let ir: &Kernel = &self.plan.kernels[id];
        for ((_, buf), &base) in ir.bufs.iter().zip(bases) {
            let shape: Vec<i64> = buf.shape.iter().map(&eval).collect::<Result<_, _>>()?;
            if shape.iter().any(|&n| n <= 0) {
                continue;
            }
            let mut last = eval(&buf.offset)?;
            for (n, stride) in shape.iter().zip(&buf.strides) {
                let reach = (n - 1).checked_mul(eval(stride)?).and_then(|reach| reach.checked_add(last));
                last = reach.ok_or_else(|| Error::TooLarge(format!("`{}`", buf.name)))?;
            }
            let elements = match &f.bases[base] {
                Base::Param(i) => match f.params[*i].kind {
                    ParamKind::State => state_elements(&f.params[*i].ty.shape, &eval)?,
                    _ => eval(&f.params[*i].ty.elements())?,
                },
                Base::Result(i) => eval(&f.results[*i].ty.elements())?,
                Base::Temp(temp) => eval(&temp.bytes)? / buf.dtype.bytes(),
                Base::Constant(_, array) => array.data.len() as i64,
            };
            if last < 0 || last >= elements {
                let message =
                    format!("kernel `{name}` reaches element {last} of `{}`, which has {elements}", buf.name);
                return Err(Error::Internal(message));
            }
        }
        let syms: Vec<i64> = ir
            .syms()
            .iter()
            .map(|sym| sizes.get(sym).copied().ok_or_else(|| unknown(sym.as_str())))
            .collect::<Result<_, _>>()?;
        let programs = self.code.kernel(kernel).programs(&syms);
        let programs = programs.ok_or_else(|| Error::TooLarge(format!("the grid of `{name}`")))?;
        Ok(Launch { syms, programs })
    }

    /// Runs a function.
    ///
    /// # Safety
    /// `params` and `results` (null for results that are states) point to buffers of the types and sizes that the
    /// plan and `bound` say; results and states are not read or written by anyone else; `arena` has `bound.arena`
    /// bytes and is aligned to [`eva_passes::plan::ALIGNMENT`].
    pub(crate) unsafe fn run(&self, bound: &Bound, params: &[*mut u8], results: &[*mut u8], arena: *mut u8) {
        let args = SendPtrs { params, results, arena };
        self.pool.enter(|| {
            let args = &args;
            // SAFETY: the caller's.
            unsafe { self.run_func(bound, bound.func, args.params, args.results, args.arena) }
        });
    }

    /// See [`Executable::run`].
    unsafe fn run_func(
        &self,
        bound: &Bound,
        func: Func,
        params: &[*mut u8],
        results: &[*mut u8],
        arena: *mut u8,
    ) {
        let f = &self.plan.funcs[func];
        let layout = &bound.funcs[&func.index()];
        let address = |(i, base): (usize, &Base)| match base {
            Base::Param(p) => params[*p],
            Base::Result(r) => results[*r],
            // SAFETY: the layout's offsets are inside the function's part of the arena.
            Base::Temp(_) => unsafe { arena.add(layout.offsets[i].unwrap_or(0)) },
            Base::Constant(..) => self.constants[&(func.index(), i)].as_ptr(),
        };
        let addresses: Vec<*mut u8> = f.bases.iter().enumerate().map(address).collect();
        let mut bufs = Vec::new();
        for step in &f.steps {
            match step {
                Step::Launch { kernel, bases, .. } => {
                    bufs.clear();
                    bufs.extend(bases.iter().map(|&base| addresses[base]));
                    let launch = &bound.launches[&kernel.index()];
                    let code = self.code.kernel(kernel.index());
                    // SAFETY: `bind_launch` has checked every buffer; kernels of one step write apart.
                    unsafe {
                        self.pool.launch(
                            code,
                            &bufs,
                            &launch.syms,
                            launch.programs,
                            self.work[kernel.index()],
                        )
                    };
                }
                Step::Call { func, args, results, .. } => {
                    let args: Vec<*mut u8> = args.iter().map(|&base| addresses[base]).collect();
                    let null = std::ptr::null_mut();
                    let results: Vec<*mut u8> =
                        results.iter().map(|base| base.map_or(null, |b| addresses[b])).collect();
                    // SAFETY: the callee's part of the arena follows this function's.
                    unsafe { self.run_func(bound, *func, &args, &results, arena.add(layout.bytes)) };
                }
            }
        }
    }
}

/// The elements of a state's buffer: its second axis has room for the capacity.
pub(crate) fn state_elements(shape: &[Dim], eval: &dyn Fn(&Dim) -> Result<i64, Error>) -> Result<i64, Error> {
    let mut elements = eval(&shape[0])?.saturating_mul(eval(&Dim::sym(CAPACITY))?);
    for dim in &shape[2..] {
        elements = elements.saturating_mul(eval(dim)?);
    }
    Ok(elements)
}

/// Pointers on their way to the threads of the pool.
struct SendPtrs<'a> {
    params: &'a [*mut u8],
    results: &'a [*mut u8],
    arena: *mut u8,
}
// SAFETY: the pointers are to buffers that this run alone uses, from the pool's threads in turn.
unsafe impl Sync for SendPtrs<'_> {}
// SAFETY: likewise.
unsafe impl Send for SendPtrs<'_> {}

/// Everything about a run that extents decide.
pub struct Bound {
    func: Func,
    /// The arena's layout for each function that takes part.
    funcs: HashMap<usize, Layout>,
    /// What each kernel is launched with.
    launches: HashMap<usize, Launch>,
    /// Bytes of arena in all.
    pub arena: usize,
}

struct Launch {
    syms: Vec<i64>,
    programs: i64,
}

/// About how many operations one program of a kernel does: a measure for whether threads pay.
fn work(kernel: &Kernel, body: &[Inst]) -> usize {
    let size = |reg| kernel.regs[reg].rows * kernel.regs[reg].cols;
    body.iter().fold(0usize, |sum, inst| {
        sum.saturating_add(match inst {
            Inst::For { body, .. } => work(kernel, body).saturating_mul(4),
            Inst::Dot { out, x, .. } => size(*out).saturating_mul(kernel.regs[*x].cols) / 8,
            Inst::Map { out, .. } => size(*out) * 8,
            Inst::Load { out, .. } | Inst::Zip { out, .. } | Inst::Select { out, .. } => size(*out),
            Inst::Store { value, .. } => size(*value),
            Inst::Reduce { x, .. } | Inst::Scan { x, .. } => size(*x),
            _ => 1,
        })
    })
}
