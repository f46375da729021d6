//! AVX2 with FMA and F16C: eight lanes.
#![allow(clippy::undocumented_unsafe_blocks, reason = "the contract of every block is Vector's")]

use crate::vector::{Vector, level};
use core::arch::x86_64::*;

#[derive(Clone, Copy)]
pub(crate) struct F32x8(__m256);

/// Eight codes of e4m3 as f16 of 2⁻⁸ times their values: one more exponent bit, and the largest magnitude is NaN.
#[inline(always)]
unsafe fn from_e4m3(codes: __m128i) -> __m128i {
    unsafe {
        let shifted = _mm_srai_epi16::<1>(_mm_unpacklo_epi8(_mm_setzero_si128(), codes));
        let bits = _mm_and_si128(shifted, _mm_set1_epi16(0xbfff_u16 as i16));
        let nan = _mm_cmpeq_epi16(_mm_slli_epi16::<1>(bits), _mm_set1_epi16(0x7f00));
        _mm_or_si128(bits, nan)
    }
}

impl Vector for F32x8 {
    const LANES: usize = 8;
    // 3 x 4 sums, 3 of `a` and 1 of `b` fill the 16 registers.
    const ROWS: usize = 3;
    const WIDE: usize = 8;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        unsafe { F32x8(_mm256_set1_ps(x)) }
    }

    #[inline(always)]
    unsafe fn load_f32(p: *const u8) -> Self {
        unsafe { F32x8(_mm256_loadu_ps(p.cast())) }
    }

    #[inline(always)]
    unsafe fn load_bf16(p: *const u8) -> Self {
        unsafe {
            let bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
            F32x8(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits)))
        }
    }

    #[inline(always)]
    unsafe fn load_f16(p: *const u8) -> Self {
        unsafe { F32x8(_mm256_cvtph_ps(_mm_loadu_si128(p.cast()))) }
    }

    #[inline(always)]
    unsafe fn load_e4m3(p: *const u8) -> Self {
        unsafe {
            let halves = from_e4m3(_mm_loadl_epi64(p.cast()));
            F32x8(_mm256_mul_ps(_mm256_cvtph_ps(halves), _mm256_set1_ps(256.0)))
        }
    }

    #[inline(always)]
    unsafe fn load_e5m2(p: *const u8) -> Self {
        unsafe {
            let halves = _mm_unpacklo_epi8(_mm_setzero_si128(), _mm_loadl_epi64(p.cast()));
            F32x8(_mm256_cvtph_ps(halves))
        }
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        unsafe { _mm256_storeu_ps(p, self.0) }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        unsafe { F32x8(_mm256_add_ps(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        unsafe { F32x8(_mm256_mul_ps(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn add_product(self, a: Self, b: Self) -> Self {
        unsafe { F32x8(_mm256_fmadd_ps(a.0, b.0, self.0)) }
    }

    #[inline(always)]
    unsafe fn sum4([a, b, c, d]: [Self; 4]) -> [f32; 4] {
        unsafe {
            let ab = _mm256_add_ps(_mm256_unpacklo_ps(a.0, b.0), _mm256_unpackhi_ps(a.0, b.0));
            let cd = _mm256_add_ps(_mm256_unpacklo_ps(c.0, d.0), _mm256_unpackhi_ps(c.0, d.0));
            let (ab, cd) = (_mm256_castps_pd(ab), _mm256_castps_pd(cd));
            let lo = _mm256_castpd_ps(_mm256_unpacklo_pd(ab, cd));
            let hi = _mm256_castpd_ps(_mm256_unpackhi_pd(ab, cd));
            // Each half now has one partial sum of each of the four.
            let halves = _mm256_add_ps(lo, hi);
            let sums = _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps::<1>(halves));
            core::mem::transmute::<__m128, [f32; 4]>(sums)
        }
    }
}

level!(Avx2, F32x8, "avx2,fma,f16c");
