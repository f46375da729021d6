//! What the compiler knows of the machine it compiles for: plain data.

use crate::cost;
use eva_ir::lower::{FewRows, KeyParts, Schedule, SortSchedule, TensorSchedule, TermParts};

/// A machine to compile for.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// The name for people and for options.
    pub name: &'static str,
    /// What runs a program of a kernel.
    pub machine: Machine,
    /// Tile sizes.
    pub schedule: Schedule,
    /// What ops cost on it.
    pub costs: cost::Machine,
}

/// What runs a program of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Machine {
    /// A thread of a CPU, with vectors; products are microkernels'.
    Cpu,
    /// A block of threads of an NVIDIA GPU of the Hopper family.
    Hopper(Hopper),
}

/// How kernels are spread over the threads of a Hopper GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hopper {
    /// How many elements of its largest tile a thread should have, where the ordinary units compute.
    pub slots: usize,
    /// Shared memory of a block for tiles, in bytes: what there is, less some for barriers and exchanges.
    pub shared: usize,
    /// The most stages of a pipe.
    pub stages: usize,
    /// Registers of a thread of the role that fills pipes, and of those that multiply.
    pub registers: [usize; 2],
    /// The same where four warpgroups multiply.
    pub many_registers: [usize; 2],
    /// Rows of tiles of a product that programs go down before they go on to the next column, so that those that run
    /// at the same time share what they read.
    pub raster: i64,
}

impl Hopper {
    /// For an H100 or H200.
    pub const H100: Hopper = Hopper {
        slots: 16,
        shared: (227 << 10) - 3072,
        stages: 6,
        registers: [56, 224],
        many_registers: [40, 104],
        raster: 8,
    };
}

impl Target {
    /// What the sums of products of 8-bit floats must be a multiple of: on a GPU, rows are copied in units of 16 bytes.
    pub fn sums_of_eight_bits(&self) -> i64 {
        match self.machine {
            Machine::Cpu => 1,
            Machine::Hopper(_) => 16,
        }
    }

    /// Whether products of 8-bit floats sum neighbours in memory, on both sides: tensor cores take no others.
    pub fn sums_neighbours_of_eight_bits(&self) -> bool {
        matches!(self.machine, Machine::Hopper(_))
    }

    /// A CPU: tiles sized for its caches, products by microkernels.
    pub fn cpu() -> Self {
        let schedule = Schedule {
            product: [64, 64, 512],
            outer: [128, 128, 256],
            attention: [16, 64],
            attention_grad: [64, 64],
            tensor: None,
            row: 16384,
            block: 512,
            turned: 32,
            turned_columns: None,
            sums: [1, 512],
            again: usize::MAX,
            terms: None,
            sort: SortSchedule { few: 512, compared: [1, 256], parts: 16, items: 16, experts: 1024 },
        };
        Self { name: "cpu", machine: Machine::Cpu, schedule, costs: cost::Machine::cpu() }
    }

    /// An NVIDIA GPU of compute capability 9.0: tiles sized for registers and shared memory.
    pub fn cuda() -> Self {
        let few = |most, product, codes, swapped, [dense, experts]: [bool; 2]| FewRows {
            most,
            product,
            codes,
            swapped,
            dense,
            experts,
        };
        let schedule = Schedule {
            product: [64, 64, 16],
            outer: [64, 64, 16],
            attention: [16, 32],
            attention_grad: [16, 8],
            tensor: Some(TensorSchedule {
                product: [128, 256, 64],
                codes: [128, 256, 128],
                attention: [128, 128],
                wide_attention: [64, 64],
                narrow: 256,
                grad_queries: [128, 64],
                grad_keys: [128, 32],
                grad_columns: 320,
                programs: 132,
                few: vec![
                    few(16, [64, 16, 128], Some(([64, 16, 512], true)), true, [true, true]),
                    few(64, [64, 64, 128], Some(([64, 64, 256], false)), true, [true, true]),
                    few(128, [128, 64, 128], Some(([128, 64, 256], false)), false, [true, false]),
                    // Few enough for one tile an expert: then its weights are read once.
                    few(256, [256, 128, 64], Some(([256, 128, 128], false)), false, [false, true]),
                    few(512, [128, 128, 64], Some(([128, 128, 128], false)), false, [true, false]),
                ],
                parts: vec![
                    KeyParts { most: 128, parts: 32 },
                    KeyParts { most: 512, parts: 16 },
                    KeyParts { most: 2560, parts: 4 },
                ],
            }),
            row: 16384,
            block: 1024,
            turned: 32,
            turned_columns: Some(128),
            sums: [64, 32],
            // Of 4096 rows, 4 MB: rows that are far apart meet in the cache while more is written through it.
            again: 512,
            // The gradient of a router's weight has fewer tiles than there are multiprocessors, and sums all tokens.
            terms: Some(TermParts { elements: 64 * 64 * 132, above: 1023, parts: 4 }),
            sort: SortSchedule { few: 1024, compared: [128, 32], parts: 128, items: 32, experts: 512 },
        };
        Self { name: "cuda", machine: Machine::Hopper(Hopper::H100), schedule, costs: cost::Machine::h100() }
    }
}
