//! Elements of a mapped tensor as numbers.

use half::{bf16, f16};

use super::{CheckpointDType, CheckpointError, TensorRef};

impl TensorRef<'_> {
    /// The elements as f32, from F32, BF16, F16 (exact) or F64 (rounded).
    pub fn to_f32(&self) -> Result<Vec<f32>, CheckpointError> {
        let mut out = vec![0.0; self.elements()];
        self.copy_to_f32(&mut out)?;
        Ok(out)
    }

    /// Writes the elements as f32 into `out`, which must have [`elements`](Self::elements) of them.
    ///
    /// # Panics
    /// If `out` has another length.
    pub fn copy_to_f32(&self, out: &mut [f32]) -> Result<(), CheckpointError> {
        assert_eq!(out.len(), self.elements(), "tensor `{}`: a buffer of another length", self.name);
        match self.dtype {
            CheckpointDType::F32 => each(self.bytes, out, f32::from_le_bytes),
            CheckpointDType::Bf16 => each(self.bytes, out, |b| bf16::from_le_bytes(b).to_f32()),
            CheckpointDType::F16 => each(self.bytes, out, |b| f16::from_le_bytes(b).to_f32()),
            CheckpointDType::F64 => each(self.bytes, out, |b| f64::from_le_bytes(b) as f32),
            _ => return Err(self.wrong_type("F64, F32, BF16 or F16")),
        }
        Ok(())
    }

    /// The elements as i64, from I64, I32, I16, I8, U32, U16, U8 or BOOL.
    pub fn to_i64(&self) -> Result<Vec<i64>, CheckpointError> {
        let mut out = vec![0; self.elements()];
        match self.dtype {
            CheckpointDType::I64 => each(self.bytes, &mut out, i64::from_le_bytes),
            CheckpointDType::I32 => each(self.bytes, &mut out, |b| i32::from_le_bytes(b).into()),
            CheckpointDType::I16 => each(self.bytes, &mut out, |b| i16::from_le_bytes(b).into()),
            CheckpointDType::I8 => each(self.bytes, &mut out, |b| i8::from_le_bytes(b).into()),
            CheckpointDType::U32 => each(self.bytes, &mut out, |b| u32::from_le_bytes(b).into()),
            CheckpointDType::U16 => each(self.bytes, &mut out, |b| u16::from_le_bytes(b).into()),
            CheckpointDType::U8 | CheckpointDType::Bool => each(self.bytes, &mut out, |[b]| b.into()),
            _ => {
                return Err(
                    self.wrong_type("a signed integer of at most 64 bits or an unsigned one of at most 32")
                );
            }
        }
        Ok(out)
    }

    fn wrong_type(&self, expected: &'static str) -> CheckpointError {
        let (path, tensor) = (self.file.to_path_buf(), super::clip(self.name));
        CheckpointError::Type { path, tensor, found: self.dtype, expected }
    }
}

fn each<const N: usize, T>(bytes: &[u8], out: &mut [T], read: impl Fn([u8; N]) -> T) {
    let (elements, _) = bytes.as_chunks::<N>();
    for (out, element) in out.iter_mut().zip(elements) {
        *out = read(*element);
    }
}
