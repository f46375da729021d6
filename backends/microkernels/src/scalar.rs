//! Plain Rust for every other processor: four lanes that the compiler may or may not turn into a vector.

use crate::codes::{E4M3, E5M2};
use crate::vector::{Vector, level};
use half::{bf16, f16};

#[derive(Clone, Copy)]
pub(crate) struct Four([f32; 4]);

impl Vector for Four {
    const LANES: usize = 4;
    const ROWS: usize = 2;
    const WIDE: usize = 4;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Four([x; 4])
    }

    #[inline(always)]
    unsafe fn load_f32(p: *const u8) -> Self {
        // SAFETY: the trait's contract.
        Four(unsafe { p.cast::<[f32; 4]>().read_unaligned() })
    }

    #[inline(always)]
    unsafe fn load_bf16(p: *const u8) -> Self {
        // SAFETY: the trait's contract.
        let bits = unsafe { p.cast::<[u16; 4]>().read_unaligned() };
        Four(bits.map(|x| bf16::from_bits(x).to_f32()))
    }

    #[inline(always)]
    unsafe fn load_f16(p: *const u8) -> Self {
        // SAFETY: the trait's contract.
        let bits = unsafe { p.cast::<[u16; 4]>().read_unaligned() };
        Four(bits.map(|x| f16::from_bits(x).to_f32()))
    }

    #[inline(always)]
    unsafe fn load_e4m3(p: *const u8) -> Self {
        // SAFETY: the trait's contract.
        Four(unsafe { p.cast::<[u8; 4]>().read_unaligned() }.map(|x| E4M3[usize::from(x)]))
    }

    #[inline(always)]
    unsafe fn load_e5m2(p: *const u8) -> Self {
        // SAFETY: the trait's contract.
        Four(unsafe { p.cast::<[u8; 4]>().read_unaligned() }.map(|x| E5M2[usize::from(x)]))
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: the trait's contract.
        unsafe { p.cast::<[f32; 4]>().write_unaligned(self.0) }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        let mut sum = self;
        for l in 0..4 {
            sum.0[l] += other.0[l];
        }
        sum
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        let mut product = self;
        for l in 0..4 {
            product.0[l] *= other.0[l];
        }
        product
    }

    #[inline(always)]
    unsafe fn add_product(self, a: Self, b: Self) -> Self {
        // Unfused: without the instruction, a fused one is a library call.
        let mut sum = self;
        for l in 0..4 {
            sum.0[l] += a.0[l] * b.0[l];
        }
        sum
    }

    #[inline(always)]
    unsafe fn sum4(v: [Self; 4]) -> [f32; 4] {
        v.map(|Four([a, b, c, d])| (a + c) + (b + d))
    }
}

level!(Portable, Four);
