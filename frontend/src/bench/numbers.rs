//! [`Numbers`]: random numbers that the host can look up one by one and a GPU can make many gigabytes of.
//!
//! A tensor's elements are those of a window of one long random sequence, over and over. What an element is follows
//! from its number, so a reference needs no copy of a tensor.

use super::BenchError;
use eva_ir::types::DType;
use eva_runtime::{Executable, Tensor, Weight};
use half::bf16;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Normal numbers with mean 0 and variance 1 that are exact in bf16, and repeat after a period.
pub struct Numbers {
    period: usize,
    /// More than two periods, so that a window and a row that begins in it are contiguous.
    sequence: Vec<f32>,
    /// Two periods' bytes, by the elements' type, the exponent of their scale, and whether they are magnitudes.
    bytes: Mutex<HashMap<(DType, i32, bool), Bytes>>,
}

type Bytes = Arc<Vec<u8>>;

/// Numbers beyond two periods: the longest row that [`Elements::row`] gives.
const ROW: usize = 1 << 16;

impl Numbers {
    /// Numbers that repeat after `period`. Tensors that start at multiples of 128 elements of another stay so if it is
    /// a multiple of 128.
    pub fn new(period: usize) -> Self {
        let mut sequence = vec![0f32; period];
        let threads = eva_runtime::pool::default_threads().max(1);
        let part = period.div_ceil(threads).next_multiple_of(2);
        std::thread::scope(|scope| {
            for (i, part) in sequence.chunks_mut(part).enumerate() {
                scope.spawn(move || fill(part, ChaCha8Rng::seed_from_u64(i as u64)));
            }
        });
        sequence.reserve_exact(period + ROW);
        while sequence.len() < 2 * period + ROW {
            let n = period.min(2 * period + ROW - sequence.len());
            sequence.extend_from_within(..n);
        }
        Self { period, sequence, bytes: Mutex::default() }
    }

    /// The elements of tensor number `seed`, times `2^exponent`.
    pub fn elements(&self, seed: usize, exponent: i32) -> Elements<'_> {
        // Far apart, and all different for as many tensors as a benchmark has.
        let offset = seed.wrapping_mul(128 * 7919) % self.period;
        Elements { numbers: self, offset, exponent, scale: 2f32.powi(exponent), positive: false }
    }

    /// The bytes of two periods of numbers times `2^exponent`.
    fn bytes(&self, dtype: DType, exponent: i32, positive: bool) -> Result<Bytes, BenchError> {
        let mut made = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bytes) = made.get(&(dtype, exponent, positive)) {
            return Ok(bytes.clone());
        }
        let (numbers, scale) = (&self.sequence[..2 * self.period], 2f32.powi(exponent));
        let size = dtype.bytes() as usize;
        let mut bytes = vec![0; numbers.len() * size];
        let numbers = numbers.iter().map(|x| if positive { x.abs() } else { *x } * scale);
        for (to, x) in bytes.chunks_exact_mut(size).zip(numbers) {
            match dtype {
                DType::F32 => to.copy_from_slice(&x.to_le_bytes()),
                DType::Bf16 => to.copy_from_slice(&bf16::from_f32(x).to_le_bytes()),
                DType::F8E4M3 | DType::F8E5M2 => to[0] = eva_ir::codes::encode(dtype, f64::from(x)),
                other => return Err(BenchError::Unsupported(format!("random numbers of type {other}"))),
            }
        }
        Ok(made.entry((dtype, exponent, positive)).or_insert(Arc::new(bytes)).clone())
    }
}

/// Fills `part` by Box and Muller's method, two numbers at a time.
fn fill(part: &mut [f32], mut random: ChaCha8Rng) {
    // In (0, 1], by 24 bits.
    let mut uniform = || ((random.next_u32() >> 8) + 1) as f32 / (1 << 24) as f32;
    for pair in part.chunks_mut(2) {
        let (radius, angle) = ((-2.0 * uniform().ln()).sqrt(), std::f32::consts::TAU * uniform());
        for (number, x) in pair.iter_mut().zip([radius * angle.cos(), radius * angle.sin()]) {
            *number = bf16::from_f32(x).to_f32();
        }
    }
}

/// The elements of a tensor, in row-major order, however many it has.
#[derive(Clone, Copy)]
pub struct Elements<'a> {
    numbers: &'a Numbers,
    offset: usize,
    exponent: i32,
    scale: f32,
    positive: bool,
}

impl Elements<'_> {
    /// Their magnitudes.
    pub fn positive(self) -> Self {
        Self { positive: true, ..self }
    }

    /// Element number `i`.
    pub fn at(&self, i: usize) -> f64 {
        self.number(self.numbers.sequence[self.offset + i % self.numbers.period])
    }

    fn number(&self, x: f32) -> f64 {
        f64::from(if self.positive { x.abs() } else { x } * self.scale)
    }

    /// The `n` elements from number `first` on.
    pub fn row(&self, first: usize, n: usize) -> Vec<f64> {
        let from = self.offset + first % self.numbers.period;
        if n > ROW {
            return (first..first + n).map(|i| self.at(i)).collect();
        }
        self.numbers.sequence[from..from + n].iter().map(|&x| self.number(x)).collect()
    }

    /// Calls `with` with the bytes of the first `n` elements, at most a period.
    fn with_bytes<T>(
        &self,
        dtype: DType,
        n: usize,
        with: impl FnOnce(&[u8]) -> Result<T, BenchError>,
    ) -> Result<T, BenchError> {
        let bytes = self.numbers.bytes(dtype, self.exponent, self.positive)?;
        let size = dtype.bytes() as usize;
        with(&bytes[self.offset * size..][..n.min(self.numbers.period) * size])
    }

    /// A tensor with these elements.
    pub fn tensor(&self, dtype: DType, shape: &[usize]) -> Result<Tensor, BenchError> {
        self.with_bytes(dtype, shape.iter().product(), |period| {
            let mut tensor = Tensor::zeros(dtype, shape);
            for part in tensor.bytes_mut().chunks_mut(period.len().max(1)) {
                part.copy_from_slice(&period[..part.len()]);
            }
            Ok(tensor)
        })
    }

    /// A weight with these elements where `exe` runs; `name` is for the message if there is no room.
    pub fn weight(
        &self,
        exe: &Executable,
        dtype: DType,
        shape: &[usize],
        name: &str,
    ) -> Result<Weight, BenchError> {
        let n = shape.iter().product();
        self.with_bytes(dtype, n, |period| Ok(Weight::repeating(exe, dtype, shape, period, name)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_a_window_over_and_over() {
        let numbers = Numbers::new(1280);
        let (a, b) = (numbers.elements(1, 0), numbers.elements(3, -2));
        let period = a.tensor(DType::Bf16, &[1280]).unwrap().to_f64();
        let over = |first: usize, n: usize| (first..first + n).map(|i| period[i % 1280]).collect::<Vec<_>>();
        assert_eq!((0..3000).map(|i| a.at(i)).collect::<Vec<_>>(), over(0, 3000));
        assert_eq!(a.tensor(DType::Bf16, &[7, 13, 29]).unwrap().to_f64(), over(0, 7 * 13 * 29));
        assert_eq!(a.row(2500, 191), over(2500, 191));
        assert_eq!(a.row(7, ROW + 1), over(7, ROW + 1));
        assert_eq!(b.row(5, 3), [5, 6, 7].map(|i| b.at(i)));
        assert_ne!(a.row(0, 9), b.row(0, 9).iter().map(|x| x * 4.0).collect::<Vec<_>>());
    }

    #[test]
    fn weights_have_the_same_elements() {
        let module =
            eva_ir::text::parse("fn @f(%x: f32[7]) -> f32[7] {\n  %y = exp %x : f32[7]\n  return %y\n}");
        let exe = Executable::compile(&module.unwrap(), &Default::default()).unwrap();
        let numbers = Numbers::new(1280);
        let elements = numbers.elements(5, -4);
        for (dtype, shape) in [(DType::Bf16, [9, 11, 41]), (DType::F32, [3, 5, 7])] {
            let weight = elements.weight(&exe, dtype, &shape, "w").unwrap();
            assert_eq!((weight.dtype, &weight.shape[..]), (dtype, &shape[..]));
            assert_eq!(weight.host().unwrap(), elements.tensor(dtype, &shape).unwrap().bytes());
        }
        assert!(elements.tensor(DType::I32, &[3]).is_err());
    }

    #[test]
    fn numbers_are_normal() {
        let numbers = Numbers::new(128 * 1000);
        let row: Vec<f64> = (0..128_000).map(|i| numbers.elements(2, 3).at(i) / 8.0).collect();
        let mean = |f: fn(f64) -> f64| row.iter().map(|&x| f(x)).sum::<f64>() / row.len() as f64;
        // Of 128000 samples: the mean's deviation is 0.003, that of squares 0.004, of fourth powers 0.03.
        assert!(mean(|x| x).abs() < 0.015);
        assert!((mean(|x| x * x) - 1.0).abs() < 0.02);
        assert!((mean(|x| x.powi(4)) - 3.0).abs() < 0.15);
    }
}
