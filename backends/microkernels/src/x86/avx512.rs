//! AVX-512: sixteen lanes, masks for tails.
#![allow(clippy::undocumented_unsafe_blocks, reason = "the contract of every block is Vector's")]

use crate::Elem;
use crate::vector::{Element, Vector, level};
use core::arch::x86_64::*;

#[derive(Clone, Copy)]
pub(crate) struct F32x16(__m512);

#[inline(always)]
unsafe fn from_bf16(bits: __m256i) -> F32x16 {
    unsafe { F32x16(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(bits)))) }
}

#[inline(always)]
fn mask(count: usize) -> u16 {
    (1u16 << count) - 1
}

impl Vector for F32x16 {
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
        unsafe { from_bf16(_mm256_loadu_si256(p.cast())) }
    }

    #[inline(always)]
    unsafe fn load_f16(p: *const u8) -> Self {
        unsafe { F32x16(_mm512_cvtph_ps(_mm256_loadu_si256(p.cast()))) }
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
                Elem::Bf16 => from_bf16(_mm256_maskz_loadu_epi16(m, p.cast())),
                Elem::F16 => F32x16(_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(m, p.cast()))),
            }
        }
    }

    #[inline(always)]
    unsafe fn store_first(self, p: *mut f32, count: usize) {
        unsafe { _mm512_mask_storeu_ps(p, mask(count), self.0) }
    }
}

level!(Avx512, F32x16, "avx512f,avx512bw,avx512vl,avx2,fma,f16c");
