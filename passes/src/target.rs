//! What the compiler knows of the machine it compiles for: plain data.

use eva_ir::lower::Schedule;

/// A machine to compile for.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// The name for people and for options.
    pub name: &'static str,
    /// Tile sizes.
    pub schedule: Schedule,
}

impl Target {
    /// A CPU: tiles sized for its caches, products by microkernels.
    pub fn cpu() -> Self {
        let schedule =
            Schedule { product: [64, 64, 512], attention: [16, 64], row: 16384, block: 512, sort: 128 };
        Self { name: "cpu", schedule }
    }
}
