//! The element types that safetensors files name.

use std::fmt;

macro_rules! dtypes {
    ($($variant:ident $name:literal $bytes:literal $doc:literal;)*) => {
        /// Element type of a stored tensor, as safetensors names it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[allow(clippy::doc_markdown)]
        pub enum CheckpointDType {
            $(#[doc = $doc] $variant,)*
        }

        impl CheckpointDType {
            /// Every element type that can be read and written.
            pub const ALL: &[CheckpointDType] = &[$(CheckpointDType::$variant),*];

            /// The name in a safetensors header, such as `BF16` or `F8_E4M3`.
            pub const fn name(self) -> &'static str {
                match self {
                    $(CheckpointDType::$variant => $name,)*
                }
            }

            /// Bytes of one element.
            pub const fn bytes(self) -> usize {
                match self {
                    $(CheckpointDType::$variant => $bytes,)*
                }
            }
        }
    };
}

dtypes! {
    F64 "F64" 8 "IEEE binary64.";
    F32 "F32" 4 "IEEE binary32.";
    F16 "F16" 2 "IEEE binary16.";
    Bf16 "BF16" 2 "The upper half of a binary32.";
    F8E4M3 "F8_E4M3" 1 "OCP E4M3 (finite: no infinities, largest value 448).";
    F8E5M2 "F8_E5M2" 1 "OCP E5M2 (largest value 57344).";
    F8E8M0 "F8_E8M0" 1 "A power of two: eight bits of exponent, no sign, no mantissa.";
    I64 "I64" 8 "Signed 64-bit integer.";
    I32 "I32" 4 "Signed 32-bit integer.";
    I16 "I16" 2 "Signed 16-bit integer.";
    I8 "I8" 1 "Signed 8-bit integer.";
    U64 "U64" 8 "Unsigned 64-bit integer.";
    U32 "U32" 4 "Unsigned 32-bit integer.";
    U16 "U16" 2 "Unsigned 16-bit integer.";
    U8 "U8" 1 "Unsigned 8-bit integer.";
    Bool "BOOL" 1 "One byte, 0 or 1.";
}

impl CheckpointDType {
    /// The type whose [`name`](Self::name) this is.
    pub fn from_name(name: &str) -> Option<CheckpointDType> {
        Self::ALL.iter().copied().find(|d| d.name() == name)
    }

    /// Bytes of a tensor of this type; `None` where the count does not fit 63 bits.
    ///
    /// The product is taken over the non-zero extents, so a shape that overflows is refused even when another
    /// extent is zero: strides of such a shape could not be formed either.
    pub fn bytes_of(self, shape: &[usize]) -> Option<u64> {
        let mut full = self.bytes() as u64;
        for &extent in shape {
            full = full.checked_mul((extent as u64).max(1)).filter(|&n| n <= i64::MAX as u64)?;
        }
        Some(if shape.contains(&0) { 0 } else { full })
    }
}

impl fmt::Display for CheckpointDType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
