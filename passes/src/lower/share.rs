//! Kernels that do the same are one kernel: bodies of one function have most in common, and so have layers of two kinds.

use crate::plan::KernelId;
use eva_ir::entity::Arena;
use eva_ir::kernel::{BufData, Kernel};
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

/// The kernels of a plan in the making, each once.
#[derive(Default)]
pub(super) struct Kernels {
    all: Arena<KernelId, Kernel>,
    /// Those that may be equal.
    alike: HashMap<u64, Vec<KernelId>>,
}

impl Kernels {
    /// Adds a kernel, or finds one that is equal but for names.
    pub fn add(&mut self, kernel: Kernel) -> KernelId {
        let alike = self.alike.entry(sketch(&kernel)).or_default();
        if let Some(&same) = alike.iter().find(|&&other| is_same(&self.all[other], &kernel)) {
            return same;
        }
        let id = self.all.push(kernel);
        alike.push(id);
        id
    }

    /// All of them.
    pub fn finish(self) -> Arena<KernelId, Kernel> {
        self.all
    }
}

/// Equal for equal kernels.
fn sketch(kernel: &Kernel) -> u64 {
    let mut hasher = DefaultHasher::new();
    for (_, buf) in kernel.bufs.iter() {
        let BufData { name: _, dtype, access, shape, strides, offset, scaled } = buf;
        (dtype, access, shape, strides, offset, scaled).hash(&mut hasher);
    }
    kernel.grid.iter().for_each(|axis| (&axis.extent, axis.tile).hash(&mut hasher));
    (kernel.regs.len(), kernel.body.len()).hash(&mut hasher);
    hasher.finish()
}

/// Whether two kernels differ in names at most.
fn is_same(a: &Kernel, b: &Kernel) -> bool {
    let Kernel { name: _, phase, bufs, scratch, block, grid, regs, body } = a;
    let same_buf = |(a, b): (&BufData, &BufData)| {
        let BufData { name: _, dtype, access, shape, strides, offset, scaled } = a;
        (dtype, access, shape, strides, offset, scaled)
            == (&b.dtype, &b.access, &b.shape, &b.strides, &b.offset, &b.scaled)
    };
    let same_updates = || bufs.keys().all(|buf| a.is_updated(buf) == b.is_updated(buf));
    bufs.len() == b.bufs.len()
        && bufs.iter().zip(b.bufs.iter()).all(|((_, a), (_, b))| same_buf((a, b)))
        && same_updates()
        && (phase, scratch, block, grid) == (&b.phase, &b.scratch, &b.block, &b.grid)
        && (regs, body) == (&b.regs, &b.body)
}
