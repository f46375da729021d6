//! Kernels as machine code of this machine's processors.

use crate::bind::Launch;
use crate::error::Error;
use crate::pool::Pool;
use eva_cranelift::{Compiled, Isa};
use eva_ir::kernel::{Inst, Kernel};
use eva_passes::plan::Plan;

/// The kernels of a plan, and the threads that run them.
pub(crate) struct Code {
    kernels: Compiled,
    pub pool: Pool,
    /// About how many operations one program of each kernel does.
    work: Vec<usize>,
}

impl Code {
    /// Makes machine code of a plan's kernels, which are of the lane phase.
    pub(crate) fn compile(plan: &Plan, pool: Pool, isa: Option<Isa>) -> Result<Self, Error> {
        let kernels: Vec<Kernel> = plan.kernels.iter().map(|(_, kernel)| kernel.clone()).collect();
        let options = eva_cranelift::Options {
            isa: isa.unwrap_or_else(Isa::host),
            threads: pool.threads(),
            ..eva_cranelift::Options::default()
        };
        let kernels = eva_cranelift::compile(&kernels, &options)?;
        let work = plan.tiles.iter().map(|(_, kernel)| work(kernel, &kernel.body)).collect();
        Ok(Self { kernels, pool, work })
    }

    /// Bytes of machine code.
    pub(crate) fn bytes(&self) -> usize {
        (0..self.kernels.len()).map(|i| self.kernels.kernel(i).code_bytes()).sum()
    }

    /// Runs a kernel, from one of the pool's threads.
    ///
    /// # Safety
    /// The buffers are those of the kernel, as large as it needs for `launch`, and nothing else uses what it writes.
    pub(crate) unsafe fn launch(&self, kernel: usize, bufs: &[*mut u8], launch: &Launch) {
        let code = self.kernels.kernel(kernel);
        // SAFETY: the caller's.
        unsafe { self.pool.launch(code, bufs, &launch.syms, launch.programs, self.work[kernel]) };
    }
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
