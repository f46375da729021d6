//! What every x86-64 processor has: four lanes, no fused multiply-add, no conversion from f16.
#![allow(clippy::undocumented_unsafe_blocks, reason = "the contract of every block is Vector's")]

use crate::codes::{E4M3, E5M2};
use crate::vector::{Vector, level};
use core::arch::x86_64::*;
use half::f16;

#[derive(Clone, Copy)]
pub(crate) struct F32x4(__m128);

impl Vector for F32x4 {
    const LANES: usize = 4;
    // Products need a register before they are added: three rows would not fit.
    const ROWS: usize = 2;
    const WIDE: usize = 8;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        unsafe { F32x4(_mm_set1_ps(x)) }
    }

    #[inline(always)]
    unsafe fn load_f32(p: *const u8) -> Self {
        unsafe { F32x4(_mm_loadu_ps(p.cast())) }
    }

    #[inline(always)]
    unsafe fn load_bf16(p: *const u8) -> Self {
        // Interleaving with zeros below is a shift left by 16.
        unsafe { F32x4(_mm_castsi128_ps(_mm_unpacklo_epi16(_mm_setzero_si128(), _mm_loadl_epi64(p.cast())))) }
    }

    #[inline(always)]
    unsafe fn load_f16(p: *const u8) -> Self {
        let [a, b, c, d] =
            unsafe { p.cast::<[u16; 4]>().read_unaligned() }.map(|x| f16::from_bits(x).to_f32());
        unsafe { F32x4(_mm_setr_ps(a, b, c, d)) }
    }

    #[inline(always)]
    unsafe fn load_e4m3(p: *const u8) -> Self {
        let codes = unsafe { p.cast::<[u8; 4]>().read_unaligned() };
        let [a, b, c, d] = codes.map(|x| E4M3[usize::from(x)]);
        unsafe { F32x4(_mm_setr_ps(a, b, c, d)) }
    }

    #[inline(always)]
    unsafe fn load_e5m2(p: *const u8) -> Self {
        let codes = unsafe { p.cast::<[u8; 4]>().read_unaligned() };
        let [a, b, c, d] = codes.map(|x| E5M2[usize::from(x)]);
        unsafe { F32x4(_mm_setr_ps(a, b, c, d)) }
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        unsafe { _mm_storeu_ps(p, self.0) }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        unsafe { F32x4(_mm_add_ps(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        unsafe { F32x4(_mm_mul_ps(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn add_product(self, a: Self, b: Self) -> Self {
        unsafe { F32x4(_mm_add_ps(self.0, _mm_mul_ps(a.0, b.0))) }
    }

    #[inline(always)]
    unsafe fn sum4([a, b, c, d]: [Self; 4]) -> [f32; 4] {
        unsafe {
            let ab = _mm_add_ps(_mm_unpacklo_ps(a.0, b.0), _mm_unpackhi_ps(a.0, b.0));
            let cd = _mm_add_ps(_mm_unpacklo_ps(c.0, d.0), _mm_unpackhi_ps(c.0, d.0));
            let sums = _mm_add_ps(_mm_movelh_ps(ab, cd), _mm_movehl_ps(cd, ab));
            core::mem::transmute::<__m128, [f32; 4]>(sums)
        }
    }
}

level!(Sse2, F32x4);
