//! What a machine can do, for the cost model: built in, or a user's own from a file.

use eva_ir::ops::Op;
use eva_ir::types::{DType, TensorType};
use serde::{Deserialize, Serialize};

/// A machine's rates: what it reaches, not what its data sheet says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// The name for people.
    pub name: String,
    /// Bytes a second to and from memory.
    pub bytes: f64,
    /// Seconds that starting a kernel takes.
    pub launch: f64,
    /// Floating-point operations a second of ops that are no products.
    pub vector: f64,
    /// Floating-point operations a second of products.
    pub product: Products,
}

/// Floating-point operations a second of products, by the widest type among their operands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Products {
    /// Of f32 and wider.
    pub f32: f64,
    /// Of bf16 and f16.
    pub bf16: f64,
    /// Of 8-bit floats.
    pub f8: f64,
}

/// Why a description of a machine is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MachineError {
    /// Not TOML, or not these keys.
    #[error("not a description of a machine: {0}")]
    Syntax(String),
    /// A rate that nothing has.
    #[error("`{key}` of a machine must be positive and finite, not {value}")]
    Rate {
        /// The key.
        key: &'static str,
        /// Its value.
        value: String,
    },
}

impl Machine {
    /// A CPU with a few cores: 2 of an AMD EPYC (Turin), as measured through the whole path (BENCHMARKS.md).
    pub fn cpu() -> Self {
        let product = Products { f32: 3.1e11, bf16: 3.1e11, f8: 3.1e11 };
        Self { name: "cpu".into(), bytes: 3.2e10, launch: 5e-6, vector: 2e10, product }
    }

    /// An NVIDIA H100 (SXM): products of bf16 by tensor cores, of f32 by the ordinary units; kernels of a CUDA graph.
    pub fn h100() -> Self {
        let product = Products { f32: 3e13, bf16: 7e14, f8: 7e14 };
        Self { name: "h100".into(), bytes: 2.9e12, launch: 2.5e-6, vector: 1.5e13, product }
    }

    /// The built-in machine of this name.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::built_in().into_iter().find(|machine| machine.name == name)
    }

    /// All built-in machines.
    pub fn built_in() -> [Self; 2] {
        [Self::cpu(), Self::h100()]
    }

    /// Reads what [`Machine::to_toml`] writes, or a person.
    pub fn from_toml(text: &str) -> Result<Self, MachineError> {
        let machine: Self = toml::from_str(text).map_err(|e| MachineError::Syntax(e.to_string()))?;
        for (key, value) in machine.rates() {
            if !(value.is_finite() && value > 0.0) {
                return Err(MachineError::Rate { key, value: value.to_string() });
            }
        }
        Ok(machine)
    }

    /// The description as a TOML file.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("a table of numbers and a name can be written")
    }

    fn rates(&self) -> [(&'static str, f64); 6] {
        let Self { bytes, launch, vector, product, .. } = self;
        [
            ("bytes", *bytes),
            ("launch", *launch),
            ("vector", *vector),
            ("product.f32", product.f32),
            ("product.bf16", product.bf16),
            ("product.f8", product.f8),
        ]
    }

    /// Floating-point operations a second of `op` on operands of these types.
    pub fn flops(&self, op: &Op, args: &[&TensorType]) -> f64 {
        // What is multiplied: not the sums in f32 that attention's backward is given besides.
        let factors = match op {
            Op::Einsum(_) | Op::Grouped(_) | Op::GroupedOuter(_) => args.len(),
            Op::Attend(attend) => attend.spec.inputs.len(),
            Op::AttendLse(attend) => attend.spec.inputs.len(),
            Op::AttendGradQueries(grad) => grad.spec.inputs.len(),
            Op::AttendGradKeys(grad) => grad.spec.inputs.len(),
            _ => return self.vector,
        };
        let args = &args[..factors.min(args.len())];
        let widest =
            args.iter().map(|ty| ty.dtype).filter(|dtype| !dtype.is_int()).max_by_key(|dtype| dtype.bytes());
        match widest {
            Some(DType::Bf16 | DType::F16) => self.product.bf16,
            Some(dtype) if dtype.is_f8() => self.product.f8,
            _ => self.product.f32,
        }
    }
}
