//! What the compiler knows of the machine it compiles for: plain data.

use eva_ir::lower::{FewRows, KeyParts, Schedule, TensorSchedule};

/// A machine to compile for.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// The name for people and for options.
    pub name: &'static str,
    /// What runs a program of a kernel.
    pub machine: Machine,
    /// Tile sizes.
    pub schedule: Schedule,
}

/// What runs a program of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Machine {
    /// A thread of a CPU, with vectors; products are microkernels'.
    Cpu,
    /// A block of threads of an NVIDIA GPU of the Hopper family.
    Hopper,
}

impl Target {
    /// A CPU: tiles sized for its caches, products by microkernels.
    pub fn cpu() -> Self {
        let schedule = Schedule {
            product: [64, 64, 512],
            attention: [16, 64],
            tensor: None,
            row: 16384,
            block: 512,
            sort: 128,
        };
        Self { name: "cpu", machine: Machine::Cpu, schedule }
    }

    /// An NVIDIA GPU of compute capability 9.0: tiles sized for registers and shared memory.
    pub fn cuda() -> Self {
        let schedule = Schedule {
            product: [64, 64, 16],
            attention: [16, 32],
            tensor: Some(TensorSchedule {
                product: [128, 256, 64],
                attention: [128, 128],
                wide_attention: [64, 64],
                narrow: 256,
                few: vec![
                    FewRows { most: 16, product: [64, 16, 128] },
                    FewRows { most: 64, product: [64, 64, 128] },
                    FewRows { most: 512, product: [128, 128, 64] },
                ],
                parts: vec![
                    KeyParts { most: 128, parts: 32 },
                    KeyParts { most: 512, parts: 16 },
                    KeyParts { most: 2560, parts: 4 },
                ],
            }),
            row: 16384,
            block: 1024,
            sort: 1024,
        };
        Self { name: "cuda", machine: Machine::Hopper, schedule }
    }
}
