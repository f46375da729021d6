//! NEON: four lanes, 32 registers.
#![allow(clippy::undocumented_unsafe_blocks, reason = "the contract of every block is Vector's")]

use crate::vector::{Vector, level};
use core::arch::aarch64::*;

#[derive(Clone, Copy)]
pub(crate) struct F32x4(float32x4_t);

/// Four codes, each in the upper byte of 16 bits.
#[inline(always)]
unsafe fn upper_bytes(p: *const u8) -> uint16x4_t {
    unsafe {
        let codes = vcreate_u8(p.cast::<u32>().read_unaligned().into());
        vget_low_u16(vshll_n_u8::<8>(codes))
    }
}

impl Vector for F32x4 {
    const LANES: usize = 4;
    const ROWS: usize = 4;
    const WIDE: usize = 16;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        unsafe { F32x4(vdupq_n_f32(x)) }
    }

    #[inline(always)]
    unsafe fn load_f32(p: *const u8) -> Self {
        // By bytes, since `p` need not be aligned to 4.
        unsafe { F32x4(vreinterpretq_f32_u8(vld1q_u8(p))) }
    }

    #[inline(always)]
    unsafe fn load_bf16(p: *const u8) -> Self {
        unsafe { F32x4(vreinterpretq_f32_u32(vshll_n_u16::<16>(vreinterpret_u16_u8(vld1_u8(p))))) }
    }

    #[inline(always)]
    unsafe fn load_f16(p: *const u8) -> Self {
        unsafe { F32x4(vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(p)))) }
    }

    #[inline(always)]
    unsafe fn load_e4m3(p: *const u8) -> Self {
        unsafe {
            // One more exponent bit makes an f16, of 2⁻⁸ times the value; the largest magnitude is NaN.
            let shifted = vreinterpret_u16_s16(vshr_n_s16::<1>(vreinterpret_s16_u16(upper_bytes(p))));
            let bits = vand_u16(shifted, vdup_n_u16(0xbfff));
            let magnitude = vand_u16(bits, vdup_n_u16(0x7fff));
            let bits = vorr_u16(bits, vceq_u16(magnitude, vdup_n_u16(0x3f80)));
            F32x4(vmulq_n_f32(vcvt_f32_f16(vreinterpret_f16_u16(bits)), 256.0))
        }
    }

    #[inline(always)]
    unsafe fn load_e5m2(p: *const u8) -> Self {
        unsafe { F32x4(vcvt_f32_f16(vreinterpret_f16_u16(upper_bytes(p)))) }
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        unsafe { vst1q_f32(p, self.0) }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        unsafe { F32x4(vaddq_f32(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        unsafe { F32x4(vmulq_f32(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn add_product(self, a: Self, b: Self) -> Self {
        unsafe { F32x4(vfmaq_f32(self.0, a.0, b.0)) }
    }

    #[inline(always)]
    unsafe fn sum4([a, b, c, d]: [Self; 4]) -> [f32; 4] {
        unsafe {
            let sums = vpaddq_f32(vpaddq_f32(a.0, b.0), vpaddq_f32(c.0, d.0));
            core::mem::transmute::<float32x4_t, [f32; 4]>(sums)
        }
    }
}

level!(Neon, F32x4, "neon");
