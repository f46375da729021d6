//! Everything a program in the DSL needs: `use eva::prelude::*;`.

pub use crate::dsl::{Func, Groups, Pairs, Program, Rotary, Scope, State, Tensor, Yarn};
pub use eva_ir::diag::{Diag, Diags};
pub use eva_ir::dim::Dim;
pub use eva_ir::graph::Module;
pub use eva_ir::scales::{Block, Encoding, Scales};
pub use eva_ir::types::DType;

/// IEEE 754 double precision.
pub const F64: DType = DType::F64;
/// IEEE 754 single precision.
pub const F32: DType = DType::F32;
/// An `f32` with 10 mantissa bits.
pub const TF32: DType = DType::Tf32;
/// The upper half of an `f32`.
pub const BF16: DType = DType::Bf16;
/// IEEE 754 half precision.
pub const F16: DType = DType::F16;
/// 8-bit floats with 3 bits of mantissa, up to 448; their values have [`Scales`].
pub const F8E4M3: DType = DType::F8E4M3;
/// 8-bit floats with 2 bits of mantissa, up to 57344; their values have [`Scales`].
pub const F8E5M2: DType = DType::F8E5M2;
/// Signed integers of 64 bits.
pub const I64: DType = DType::I64;
/// Signed integers of 32 bits.
pub const I32: DType = DType::I32;
