//! 8-bit floats as f32, by tables made at compile time.

/// The value of a code with this many mantissa bits and this bias; the largest exponent is an ordinary one if `finite`,
/// where only the largest magnitude is NaN.
const fn value(code: u8, mantissa_bits: u32, bias: i32, finite: bool) -> f32 {
    let magnitude = (code & 0x7f) as u32;
    let (exponent, mantissa) = (magnitude >> mantissa_bits, magnitude & ((1 << mantissa_bits) - 1));
    let largest = 0x7f >> mantissa_bits;
    let bits = if finite && magnitude == 0x7f {
        0x7fc0_0000
    } else if !finite && exponent == largest {
        0x7f80_0000 | mantissa << (23 - mantissa_bits) | if mantissa != 0 { 0x0040_0000 } else { 0 }
    } else if exponent != 0 {
        ((exponent as i32 + 127 - bias) as u32) << 23 | mantissa << (23 - mantissa_bits)
    } else if mantissa != 0 {
        // The leading bit becomes the hidden one.
        let shift = mantissa.leading_zeros() - (31 - mantissa_bits);
        ((1 - shift as i32 + 127 - bias) as u32) << 23
            | (mantissa << shift & ((1 << mantissa_bits) - 1)) << (23 - mantissa_bits)
    } else {
        0
    };
    f32::from_bits(bits | (code as u32 >> 7) << 31)
}

const fn table(mantissa_bits: u32, bias: i32, finite: bool) -> [f32; 256] {
    let mut table = [0.0; 256];
    let mut code = 0;
    while code < 256 {
        table[code] = value(code as u8, mantissa_bits, bias, finite);
        code += 1;
    }
    table
}

/// The values of `f8e4m3`: no infinities, two NaNs.
pub(crate) static E4M3: [f32; 256] = table(3, 7, true);
/// The values of `f8e5m2`.
pub(crate) static E5M2: [f32; 256] = table(2, 15, false);

/// The bytes of the upper halves of values that are not negative: all of a value, since mantissas are short.
#[cfg(target_arch = "x86_64")]
pub(crate) struct Halves {
    /// The lower byte, by magnitude.
    pub low: [u8; 128],
    /// The upper byte.
    pub high: [u8; 128],
}

#[cfg(target_arch = "x86_64")]
const fn halves(table: &[f32; 256]) -> Halves {
    let mut halves = Halves { low: [0; 128], high: [0; 128] };
    let mut code = 0;
    while code < 128 {
        let bits = table[code].to_bits();
        halves.low[code] = (bits >> 16) as u8;
        halves.high[code] = (bits >> 24) as u8;
        code += 1;
    }
    halves
}

#[cfg(target_arch = "x86_64")]
pub(crate) static E4M3_HALVES: Halves = halves(&table(3, 7, true));
#[cfg(target_arch = "x86_64")]
pub(crate) static E5M2_HALVES: Halves = halves(&table(2, 15, false));
