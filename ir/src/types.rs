//! What the compiler knows of a tensor before it runs.

use crate::dim::{Dim, Sym};
use crate::scales::{Block, Encoding, Scales};
use smallvec::SmallVec;
use std::collections::HashMap;
use std::fmt;

/// The type of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DType {
    /// IEEE 754 double precision.
    F64,
    /// IEEE 754 single precision.
    F32,
    /// An `f32` with 10 mantissa bits, the others zero: what GPUs' tensor cores take of one.
    Tf32,
    /// The upper half of an `f32`.
    Bf16,
    /// IEEE 754 half precision.
    F16,
    /// Signed, 64 bits.
    I64,
    /// Signed, 32 bits.
    I32,
    /// 4 exponent bits, 3 mantissa bits; largest finite value 448; no infinities (OCP `e4m3fn`).
    F8E4M3,
    /// 5 exponent bits, 2 mantissa bits; largest finite value 57344 (OCP `e5m2`).
    F8E5M2,
    /// An exponent alone: `2^(code − 127)`, and NaN for 255 (OCP `e8m0`). Scales have it, tensors do not.
    E8M0,
}

impl DType {
    /// Every element type that a tensor can have.
    pub const ALL: [DType; 9] = [
        DType::F64,
        DType::F32,
        DType::Tf32,
        DType::Bf16,
        DType::F16,
        DType::I64,
        DType::I32,
        DType::F8E4M3,
        DType::F8E5M2,
    ];

    /// The type's spelling in the IR text.
    pub fn name(self) -> &'static str {
        match self {
            DType::F64 => "f64",
            DType::F32 => "f32",
            DType::Tf32 => "tf32",
            DType::Bf16 => "bf16",
            DType::F16 => "f16",
            DType::I64 => "i64",
            DType::I32 => "i32",
            DType::F8E4M3 => "f8e4m3",
            DType::F8E5M2 => "f8e5m2",
            DType::E8M0 => "e8m0",
        }
    }

    /// The type with this spelling.
    pub fn by_name(name: &str) -> Option<DType> {
        Self::ALL.into_iter().find(|d| d.name() == name)
    }

    /// Bytes per element.
    pub fn bytes(self) -> i64 {
        match self {
            DType::F64 | DType::I64 => 8,
            DType::F32 | DType::Tf32 | DType::I32 => 4,
            DType::Bf16 | DType::F16 => 2,
            DType::F8E4M3 | DType::F8E5M2 | DType::E8M0 => 1,
        }
    }

    /// Whether elements are integers.
    pub fn is_int(self) -> bool {
        matches!(self, DType::I64 | DType::I32)
    }

    /// Whether elements are 8-bit floats, which need scales.
    pub fn is_f8(self) -> bool {
        matches!(self, DType::F8E4M3 | DType::F8E5M2)
    }

    /// Whether elements are floats of 16 bits or more.
    pub fn is_float(self) -> bool {
        !self.is_int() && self.bytes() > 1
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The extents of a tensor's axes, outermost first.
pub type Shape = SmallVec<[Dim; 4]>;

/// A tensor's type. A value of an 8-bit type is its elements and their scales together,
/// so that neither can be used, copied or rewritten without the other.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TensorType {
    /// The type of the elements.
    pub dtype: DType,
    /// The extent of each axis.
    pub shape: Shape,
    /// Where the scales are, if `dtype` is 8 bits wide; else none.
    pub scales: Option<Scales>,
}

impl TensorType {
    /// An unscaled tensor.
    pub fn new(dtype: DType, shape: impl IntoIterator<Item = Dim>) -> Self {
        Self { dtype, shape: shape.into_iter().collect(), scales: None }
    }

    /// The same elements in another shape.
    pub fn with_shape(&self, shape: impl IntoIterator<Item = Dim>) -> Self {
        Self { dtype: self.dtype, shape: shape.into_iter().collect(), scales: None }
    }

    /// Other elements in the same shape.
    pub fn with_dtype(&self, dtype: DType) -> Self {
        Self { dtype, shape: self.shape.clone(), scales: None }
    }

    /// The number of axes.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// Gives the extents that are a name alone, and have no value yet, the value that a tensor's shape shows.
    pub fn bind(&self, shape: &[usize], sizes: &mut HashMap<Sym, i64>) {
        for (dim, &n) in self.shape.iter().zip(shape) {
            if let Some(sym) = dim.as_sym() {
                sizes.entry(sym.clone()).or_insert(n as i64);
            }
        }
    }

    /// The number of elements.
    pub fn elements(&self) -> Dim {
        Dim::product(&self.shape)
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}[", self.dtype.name())?;
        for (i, dim) in self.shape.iter().enumerate() {
            write!(f, "{}{dim}", if i == 0 { "" } else { ", " })?;
            match self.scales.as_ref().and_then(|scales| scales.blocks.get(i)) {
                Some(Block::Of(n)) => write!(f, "/{n}")?,
                Some(Block::Whole) => write!(f, "/*")?,
                Some(Block::Each) | None => {}
            }
        }
        if let Some(scales) = self.scales.as_ref().filter(|scales| scales.encoding != Encoding::F32) {
            write!(f, "; {}", scales.encoding.name())?;
        }
        write!(f, "]")
    }
}

impl fmt::Debug for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The type of a value: a tensor, or what an op with several results gives, to be taken apart by `get`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Type {
    /// One tensor.
    Tensor(TensorType),
    /// Several tensors.
    Tuple(Vec<TensorType>),
}

impl Type {
    /// The tensor type, if this is one.
    pub fn tensor(&self) -> Option<&TensorType> {
        match self {
            Type::Tensor(ty) => Some(ty),
            Type::Tuple(_) => None,
        }
    }

    /// The tensors, one or several.
    pub fn parts(&self) -> &[TensorType] {
        match self {
            Type::Tensor(ty) => std::slice::from_ref(ty),
            Type::Tuple(parts) => parts,
        }
    }
}

impl From<TensorType> for Type {
    fn from(ty: TensorType) -> Self {
        Type::Tensor(ty)
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Type::Tensor(ty) => write!(f, "{ty}"),
            Type::Tuple(parts) => {
                let parts: Vec<_> = parts.iter().map(|ty| ty.to_string()).collect();
                write!(f, "({})", parts.join(", "))
            }
        }
    }
}

impl fmt::Debug for Type {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
