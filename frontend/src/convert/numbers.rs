//! The numbers: blocks of a matrix to codes and scales, and back, a band of rows at a time.

use eva_ir::codes;
use eva_ir::ops::quantize;
use eva_ir::scales::Encoding;
use eva_ir::types::DType;
use eva_runtime::checkpoint::TensorRef;
use half::bf16;
use std::io::{self, Write};
use std::thread;
use thiserror::Error;

/// The least magnitude that a scale is made of, so that a block of zeros has one.
const LEAST: f32 = 1e-12;

/// A weight that 8-bit floats with scales cannot stand for.
#[derive(Debug, Error)]
#[error("row {row} of it has a number that is not finite, in {file}")]
pub struct NotFinite {
    /// The row, from 0.
    pub row: usize,
    /// The file with the weight.
    pub file: String,
}

/// The code of `f8e4m3` nearest to `x`, ties to even; the largest beyond that, and NaN for NaN.
pub fn code(x: f32) -> u8 {
    let sign = (x.to_bits() >> 24) as u8 & 0x80;
    let magnitude = x.abs();
    let code = if magnitude.is_nan() {
        0x7f
    } else if magnitude >= 448.0 {
        0x7e
    } else if magnitude < 0.015_625 {
        // Below the least normal number the step is 2^-9; rounding up to that number gives its code.
        (magnitude * 512.0).round_ties_even() as u8
    } else {
        let bits = magnitude.to_bits();
        let rounded = bits + 0x7_ffff + (bits >> 20 & 1);
        ((rounded >> 20) - (120 << 3)) as u8
    };
    sign | code
}

/// Rows of a matrix as numbers.
fn rows(tensor: &TensorRef, first: usize, count: usize) -> io::Result<Vec<f32>> {
    let columns = tensor.shape[1];
    let size = tensor.dtype.bytes();
    let bytes = &tensor.bytes[first * columns * size..][..count * columns * size];
    TensorRef { bytes, ..*tensor }.to_f32().map_err(io::Error::other)
}

/// The scales of a band, which is `columns` wide and one block high.
fn band_scales(band: &[f32], columns: usize, block: usize, encoding: Encoding) -> Result<Vec<f32>, usize> {
    let mut most = vec![0f32; columns.div_ceil(block)];
    for (row, numbers) in band.chunks(columns).enumerate() {
        for (most, numbers) in most.iter_mut().zip(numbers.chunks(block)) {
            for x in numbers {
                if !x.is_finite() {
                    return Err(row);
                }
                *most = most.max(x.abs());
            }
        }
    }
    Ok(most.into_iter().map(|amax| quantize::scale(amax, DType::F8E4M3, encoding, LEAST)).collect())
}

/// The codes of a band of finite numbers, and its scales; or a row that has others.
pub(crate) fn codes_of_band(
    band: &[f32],
    columns: usize,
    block: usize,
    encoding: Encoding,
) -> Result<(Vec<u8>, Vec<f32>), usize> {
    let scales = band_scales(band, columns, block, encoding)?;
    let mut all = Vec::with_capacity(band.len());
    for numbers in band.chunks(columns) {
        for (numbers, scale) in numbers.chunks(block).zip(&scales) {
            all.extend(numbers.iter().map(|x| code(x / scale)));
        }
    }
    Ok((all, scales))
}

/// The bands of a matrix: the first row of each and how many it has.
fn band(tensor: &TensorRef, block: [usize; 2], i: usize) -> (usize, usize) {
    let first = i * block[0];
    (first, block[0].min(tensor.shape[0] - first))
}

fn bands(tensor: &TensorRef, block: [usize; 2]) -> usize {
    if tensor.shape[1] == 0 { 0 } else { tensor.shape[0].div_ceil(block[0]) }
}

fn not_finite(tensor: &TensorRef, row: usize) -> io::Error {
    io::Error::other(NotFinite { row, file: tensor.file.display().to_string() })
}

/// The scales of a matrix of finite numbers (F32, BF16 or F16), one for each `block` of rows and columns: its largest
/// magnitude over 448, and the next power of two that is not less for other encodings than `f32`.
pub fn scales(tensor: &TensorRef, block: [usize; 2], encoding: Encoding) -> io::Result<Vec<f32>> {
    let mut all = Vec::new();
    let made = |i| {
        let (first, count) = band(tensor, block, i);
        let numbers = rows(tensor, first, count)?;
        band_scales(&numbers, tensor.shape[1], block[1], encoding)
            .map_err(|row| not_finite(tensor, first + row))
    };
    in_pieces(bands(tensor, block), made, |scales| {
        all.extend(scales);
        Ok(())
    })?;
    Ok(all)
}

/// Writes the codes of a matrix of finite numbers.
pub(super) fn write_codes(
    tensor: &TensorRef,
    block: [usize; 2],
    encoding: Encoding,
    sink: &mut dyn Write,
) -> io::Result<()> {
    let made = |i| {
        let (first, count) = band(tensor, block, i);
        let codes = codes_of_band(&rows(tensor, first, count)?, tensor.shape[1], block[1], encoding);
        codes.map_err(|row| not_finite(tensor, first + row))
    };
    in_pieces(bands(tensor, block), made, |(codes, _)| sink.write_all(&codes))
}

/// Writes a matrix as BF16: codes of `f8e4m3` times their scales, if it has any, or numbers.
pub(super) fn write_numbers(
    tensor: &TensorRef,
    scales: Option<&TensorRef>,
    block: [usize; 2],
    sink: &mut dyn Write,
) -> io::Result<()> {
    let columns = tensor.shape[1];
    let narrow = |x: f32| bf16::from_f32(x).to_le_bytes();
    let scales = scales.map(|scales| scales.to_f32()).transpose().map_err(io::Error::other)?;
    let values: Vec<f32> = (0..=255).map(|code| codes::decode(DType::F8E4M3, code) as f32).collect();
    let made = |i| -> io::Result<Vec<u8>> {
        let (first, count) = band(tensor, block, i);
        let Some(scales) = &scales else {
            return Ok(rows(tensor, first, count)?.into_iter().flat_map(narrow).collect());
        };
        let scales = &scales[i * columns.div_ceil(block[1])..];
        let mut all = Vec::with_capacity(count * columns * 2);
        for codes in tensor.bytes[first * columns..][..count * columns].chunks(columns) {
            for (codes, scale) in codes.chunks(block[1]).zip(scales) {
                all.extend(codes.iter().flat_map(|&code| narrow(values[usize::from(code)] * scale)));
            }
        }
        Ok(all)
    };
    in_pieces(bands(tensor, block), made, |bytes| sink.write_all(&bytes))
}

/// Makes `count` pieces, as many at a time as there are processors, and hands them over in order.
pub(crate) fn in_pieces<T: Send>(
    count: usize,
    make: impl Fn(usize) -> io::Result<T> + Sync,
    mut take: impl FnMut(T) -> io::Result<()>,
) -> io::Result<()> {
    let threads = thread::available_parallelism().map_or(1, |n| n.get().min(16));
    let mut next = 0;
    while next < count {
        let now = next..count.min(next + threads);
        next = now.end;
        if now.len() == 1 {
            take(make(now.start)?)?;
            continue;
        }
        let make = &make;
        thread::scope(|scope| {
            let running: Vec<_> = now.map(|i| scope.spawn(move || make(i))).collect();
            running
                .into_iter()
                .try_for_each(|thread| take(thread.join().map_err(|_| io::Error::other("a thread failed"))??))
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn agrees(x: f32) {
        let (found, expected) = (code(x), codes::encode(DType::F8E4M3, f64::from(x.clamp(-448.0, 448.0))));
        assert!(
            found == expected || x.is_nan() && found & 0x7f == 0x7f,
            "{x}: {found:#x}, not {expected:#x}"
        );
    }

    #[test]
    fn codes_and_what_lies_between_them() {
        for code in 0..=255 {
            let (x, next) =
                (codes::decode(DType::F8E4M3, code), codes::decode(DType::F8E4M3, code.wrapping_add(1)));
            for x in [x as f32, ((x + next) / 2.0) as f32] {
                [x, x.next_up(), x.next_down()].into_iter().for_each(agrees);
            }
        }
        [f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN_POSITIVE, 1e-45].into_iter().for_each(agrees);
    }

    proptest! {
        #[test]
        fn codes_are_those_of_the_compiler(bits: u32, scale in -12i32..10) {
            agrees(f32::from_bits(bits));
            // More of those that are not cut off.
            agrees(f32::from_bits(bits & 0x807f_ffff | 0x3f80_0000) * (scale as f32).exp2());
        }

        #[test]
        fn pieces_come_in_order(count in 0usize..40) {
            let mut all = Vec::new();
            in_pieces(count, Ok, |i| { all.push(i); Ok(()) }).unwrap();
            prop_assert!(all.into_iter().eq(0..count));
        }
    }
}
