//! Element types and levels of processor features, as types that kernels are made for.

use crate::Elem;
use crate::vector::{Block, Vector};

/// An element type known at compile time.
pub(crate) trait Element {
    const ELEM: Elem;
    const SIZE: usize;
    /// Whether elements have scales: 8-bit floats.
    const SCALED: bool;
    /// # Safety
    /// That of [`Vector`].
    unsafe fn load<V: Vector>(p: *const u8) -> V;
    /// Four neighbouring vectors.
    ///
    /// # Safety
    /// That of [`Vector`].
    unsafe fn load4<V: Vector>(p: *const u8) -> [V; 4];
}

macro_rules! element {
    ($name:ident, $size:literal, $load:ident $(, $load4:ident)?) => {
        pub(crate) struct $name;

        impl Element for $name {
            const ELEM: Elem = Elem::$name;
            const SIZE: usize = $size;
            const SCALED: bool = $size == 1;
            #[inline(always)]
            unsafe fn load<V: Vector>(p: *const u8) -> V {
                // SAFETY: the same contract.
                unsafe { V::$load(p) }
            }
            #[inline(always)]
            unsafe fn load4<V: Vector>(p: *const u8) -> [V; 4] {
                // SAFETY: the same contract.
                unsafe {
                    $(return V::$load4(p);)?
                    #[allow(unreachable_code, reason = "of types without a load of four")]
                    [0, 1, 2, 3].map(|i| V::$load(p.add(i * V::LANES * $size)))
                }
            }
        }
    };
}

element!(F32, 4, load_f32);
element!(Bf16, 2, load_bf16);
element!(F16, 2, load_f16);
element!(F8E4M3, 1, load_e4m3, load4_e4m3);
element!(F8E5M2, 1, load_e5m2, load4_e5m2);

pub(crate) type BlockFn = unsafe fn(&Block);
/// Expands `count` contiguous elements to f32, those of 8 bits times a scale.
pub(crate) type WidenFn = unsafe fn(src: *const u8, dst: *mut f32, count: usize, scale: f32);

/// What one level of processor features offers; the arrays are indexed by the [`Elem`] of `b` (or of the source).
pub(crate) struct Kernels {
    /// Products whose `b` is contiguous along k.
    pub along_k: [BlockFn; 5],
    /// Products whose `b` is contiguous along j.
    pub along_j: [BlockFn; 5],
    pub widen: [WidenFn; 5],
    /// Rows of the largest register tile.
    pub rows: usize,
    /// Lanes of a vector.
    pub lanes: usize,
}

/// A set of kernels as a type, so that entry points can be made for it.
pub(crate) trait Level {
    const KERNELS: Kernels;
}

/// Makes the [`Kernels`] of a vector type, compiled with the features named.
macro_rules! level {
    ($name:ident, $vector:ty $(, $features:literal)?) => {
        /// # Safety
        /// The processor has the features of the level; the block's addresses are valid.
        $(#[target_feature(enable = $features)])?
        unsafe fn along_k<E: $crate::vector::Element>(block: &$crate::vector::Block) {
            // SAFETY: the same contract.
            unsafe { $crate::vector::along_k::<$vector, E>(block) }
        }

        /// # Safety
        /// The processor has the features of the level; the block's addresses are valid.
        $(#[target_feature(enable = $features)])?
        unsafe fn along_j<E: $crate::vector::Element>(block: &$crate::vector::Block) {
            // SAFETY: the same contract.
            unsafe { $crate::vector::along_j::<$vector, E>(block) }
        }

        /// # Safety
        /// The processor has the features of the level; `count` elements can be read and written.
        $(#[target_feature(enable = $features)])?
        unsafe fn widen<E: $crate::vector::Element>(src: *const u8, dst: *mut f32, count: usize, scale: f32) {
            // SAFETY: the same contract.
            unsafe { $crate::vector::widen::<$vector, E>(src, dst, count, scale) }
        }

        pub(crate) struct $name;

        impl $crate::vector::Level for $name {
            const KERNELS: $crate::vector::Kernels = {
                use $crate::vector::{Bf16, F8E4M3, F8E5M2, F16, F32, Vector};
                macro_rules! each {
                    ($f:ident) => {
                        [$f::<F32>, $f::<Bf16>, $f::<F16>, $f::<F8E4M3>, $f::<F8E5M2>]
                    };
                }
                $crate::vector::Kernels {
                    along_k: each!(along_k),
                    along_j: each!(along_j),
                    widen: each!(widen),
                    rows: <$vector as Vector>::ROWS,
                    lanes: <$vector as Vector>::LANES,
                }
            };
        }
    };
}
pub(crate) use level;
