//! AVX-512: sixteen lanes, masks for tails.
#![allow(clippy::undocumented_unsafe_blocks, reason = "the contract of every block is Vector's")]

use crate::Elem;
use crate::codes::{E4M3_HALVES, E5M2_HALVES, Halves};
use crate::vector::{Element, Vector, level};
use core::arch::x86_64::*;

#[derive(Clone, Copy)]
pub(crate) struct F32x16<const VBMI: bool>(__m512);

#[inline(always)]
unsafe fn from_bf16(bits: __m256i) -> __m512 {
    unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(bits))) }
}

#[inline(always)]
unsafe fn from_e4m3(codes: __m128i) -> __m512 {
    unsafe {
        // One more exponent bit makes an f16, of 2⁻⁸ times the value; the largest magnitude is NaN.
        let shifted = _mm256_srai_epi16::<1>(_mm256_slli_epi16::<8>(_mm256_cvtepu8_epi16(codes)));
        let bits = _mm256_and_si256(shifted, _mm256_set1_epi16(0xbfff_u16 as i16));
        let nan = _mm256_cmpeq_epi16(_mm256_slli_epi16::<1>(bits), _mm256_set1_epi16(0x7f00));
        _mm512_mul_ps(_mm512_cvtph_ps(_mm256_or_si256(bits, nan)), _mm512_set1_ps(256.0))
    }
}

#[inline(always)]
unsafe fn from_e5m2(codes: __m128i) -> __m512 {
    unsafe { _mm512_cvtph_ps(_mm256_slli_epi16::<8>(_mm256_cvtepu8_epi16(codes))) }
}

/// 64 codes as the floats that have those halves.
///
/// # Safety
/// The processor has AVX-512 VBMI; 64 bytes can be read.
#[inline(always)]
unsafe fn look_up(halves: &Halves, p: *const u8) -> [__m512; 4] {
    unsafe {
        let table = |of: &[u8; 128]| {
            let at = of.as_ptr();
            (_mm512_loadu_si512(at.cast()), _mm512_loadu_si512(at.add(64).cast()))
        };
        let ((low_0, low_1), (high_0, high_1)) = (table(&halves.low), table(&halves.high));
        // Interleaving goes on within quarters: so that neighbours end up as such, the quarters of codes are turned
        // against those of vectors.
        let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        let codes = _mm512_permutexvar_epi32(order, _mm512_loadu_si512(p.cast()));
        let low = _mm512_permutex2var_epi8(low_0, codes, low_1);
        let high = _mm512_permutex2var_epi8(high_0, codes, high_1);
        // The sign: `high | codes & 0x80`.
        let high = _mm512_ternarylogic_epi32::<0xf8>(high, codes, _mm512_set1_epi8(-128));
        let zero = _mm512_setzero_si512();
        let (first, second) = (_mm512_unpacklo_epi8(low, high), _mm512_unpackhi_epi8(low, high));
        [
            _mm512_unpacklo_epi16(zero, first),
            _mm512_unpackhi_epi16(zero, first),
            _mm512_unpacklo_epi16(zero, second),
            _mm512_unpackhi_epi16(zero, second),
        ]
        .map(|bits| _mm512_castsi512_ps(bits))
    }
}

#[inline(always)]
fn mask(count: usize) -> u16 {
    (1u16 << count) - 1
}

impl<const VBMI: bool> Vector for F32x16<VBMI> {
    const LANES: usize = 16;
    const ROWS: usize = 6;
    const WIDE: usize = 16;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        unsafe { F32x16(_mm512_set1_ps(x)) }
    }

    #[inline(always)]
    unsafe fn load_f32(p: *const u8) -> Self {
        unsafe { F32x16(_mm512_loadu_ps(p.cast())) }
    }

    #[inline(always)]
    unsafe fn load_bf16(p: *const u8) -> Self {
        unsafe { F32x16(from_bf16(_mm256_loadu_si256(p.cast()))) }
    }

    #[inline(always)]
    unsafe fn load_f16(p: *const u8) -> Self {
        unsafe { F32x16(_mm512_cvtph_ps(_mm256_loadu_si256(p.cast()))) }
    }

    #[inline(always)]
    unsafe fn load_e4m3(p: *const u8) -> Self {
        unsafe { F32x16(from_e4m3(_mm_loadu_si128(p.cast()))) }
    }

    #[inline(always)]
    unsafe fn load_e5m2(p: *const u8) -> Self {
        unsafe { F32x16(from_e5m2(_mm_loadu_si128(p.cast()))) }
    }

    #[inline(always)]
    unsafe fn load4_e4m3(p: *const u8) -> [Self; 4] {
        unsafe {
            match VBMI {
                true => look_up(&E4M3_HALVES, p).map(F32x16),
                false => [0, 16, 32, 48].map(|i| Self::load_e4m3(p.add(i))),
            }
        }
    }

    #[inline(always)]
    unsafe fn load4_e5m2(p: *const u8) -> [Self; 4] {
        unsafe {
            match VBMI {
                true => look_up(&E5M2_HALVES, p).map(F32x16),
                false => [0, 16, 32, 48].map(|i| Self::load_e5m2(p.add(i))),
            }
        }
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        unsafe { _mm512_storeu_ps(p, self.0) }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        unsafe { F32x16(_mm512_add_ps(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        unsafe { F32x16(_mm512_mul_ps(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn add_product(self, a: Self, b: Self) -> Self {
        unsafe { F32x16(_mm512_fmadd_ps(a.0, b.0, self.0)) }
    }

    #[inline(always)]
    unsafe fn sum4([a, b, c, d]: [Self; 4]) -> [f32; 4] {
        unsafe {
            let ab = _mm512_add_ps(_mm512_unpacklo_ps(a.0, b.0), _mm512_unpackhi_ps(a.0, b.0));
            let cd = _mm512_add_ps(_mm512_unpacklo_ps(c.0, d.0), _mm512_unpackhi_ps(c.0, d.0));
            let (ab, cd) = (_mm512_castps_pd(ab), _mm512_castps_pd(cd));
            let lo = _mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd));
            let hi = _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd));
            // Each quarter now has one partial sum of each of the four.
            let quarters = _mm512_add_ps(lo, hi);
            let upper = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(quarters)));
            let halves = _mm256_add_ps(_mm512_castps512_ps256(quarters), upper);
            let sums = _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps::<1>(halves));
            core::mem::transmute::<__m128, [f32; 4]>(sums)
        }
    }

    #[inline(always)]
    unsafe fn load_first<E: Element>(p: *const u8, count: usize) -> Self {
        let m = mask(count);
        unsafe {
            match E::ELEM {
                Elem::F32 => F32x16(_mm512_maskz_loadu_ps(m, p.cast())),
                Elem::Bf16 => F32x16(from_bf16(_mm256_maskz_loadu_epi16(m, p.cast()))),
                Elem::F16 => F32x16(_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(m, p.cast()))),
                Elem::F8E4M3 => F32x16(from_e4m3(_mm_maskz_loadu_epi8(m, p.cast()))),
                Elem::F8E5M2 => F32x16(from_e5m2(_mm_maskz_loadu_epi8(m, p.cast()))),
            }
        }
    }

    #[inline(always)]
    unsafe fn store_first(self, p: *mut f32, count: usize) {
        unsafe { _mm512_mask_storeu_ps(p, mask(count), self.0) }
    }
}

level!(Avx512, F32x16<false>, "avx512f,avx512bw,avx512vl,avx2,fma,f16c");

/// With byte permutations over two vectors.
pub(crate) mod vbmi {
    use super::{F32x16, level};

    level!(Avx512Vbmi, F32x16<true>, "avx512vbmi,avx512f,avx512bw,avx512vl,avx2,fma,f16c");
}
