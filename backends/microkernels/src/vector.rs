//! The loops of every kernel, written once over a vector type.
//!
//! Nothing here is compiled for a particular processor: the functions are inlined into wrappers that enable
//! the features their vector type needs (see [`level!`](crate::vector::level)).

#![allow(
    clippy::needless_range_loop,
    clippy::manual_memcpy,
    reason = "loops over indices below a constant unroll at the lowest optimisation level too"
)]

use crate::Elem;

/// A vector of f32 lanes.
///
/// # Safety
/// All methods need the processor features of the type. Loads read `LANES` elements (or `count` of them) at a
/// pointer of any alignment, stores write as many.
pub(crate) trait Vector: Copy {
    const LANES: usize;
    /// Rows of `a` in the largest register tile, of 4 columns (or 4 vectors of columns): 1, 2, 3, 4 or 6.
    const ROWS: usize;
    /// Vectors of columns that one row of `a` takes at a time: 4, 8 or 16.
    const WIDE: usize;

    unsafe fn splat(x: f32) -> Self;
    unsafe fn load_f32(p: *const u8) -> Self;
    unsafe fn load_bf16(p: *const u8) -> Self;
    unsafe fn load_f16(p: *const u8) -> Self;
    unsafe fn store(self, p: *mut f32);
    unsafe fn add(self, other: Self) -> Self;
    /// `self + a * b`, fused where the processor can.
    unsafe fn add_product(self, a: Self, b: Self) -> Self;
    /// The sum over the lanes of each of four vectors, in one order for all four.
    unsafe fn sum4(v: [Self; 4]) -> [f32; 4];

    /// Loads the first `count < LANES` lanes; the others are zero.
    #[inline(always)]
    unsafe fn load_first<E: Element>(p: *const u8, count: usize) -> Self {
        let mut whole = [0u8; 64];
        // SAFETY: `count < LANES <= 16` elements of at most 4 bytes fit into the buffer, and a whole vector of
        // zeros and elements can be read from it.
        unsafe {
            core::ptr::copy_nonoverlapping(p, whole.as_mut_ptr(), count * E::SIZE);
            E::load(whole.as_ptr())
        }
    }

    /// Stores the first `count < LANES` lanes.
    #[inline(always)]
    unsafe fn store_first(self, p: *mut f32, count: usize) {
        let mut whole = [0f32; 16];
        // SAFETY: a vector has at most 16 lanes; the caller lets us write `count` of them at `p`.
        unsafe {
            self.store(whole.as_mut_ptr());
            core::ptr::copy_nonoverlapping(whole.as_ptr(), p, count);
        }
    }
}

/// An element type known at compile time.
pub(crate) trait Element {
    const ELEM: Elem;
    const SIZE: usize;
    /// # Safety
    /// That of [`Vector`].
    unsafe fn load<V: Vector>(p: *const u8) -> V;
}

macro_rules! element {
    ($name:ident, $size:literal, $load:ident) => {
        pub(crate) struct $name;

        impl Element for $name {
            const ELEM: Elem = Elem::$name;
            const SIZE: usize = $size;
            #[inline(always)]
            unsafe fn load<V: Vector>(p: *const u8) -> V {
                // SAFETY: the same contract.
                unsafe { V::$load(p) }
            }
        }
    };
}

element!(F32, 4, load_f32);
element!(Bf16, 2, load_bf16);
element!(F16, 2, load_f16);

/// One block of a product, small enough to stay in the caches: `c[i,j] = (add ? c[i,j] : 0) + Σ_k a[i,k]·b[j,k]`,
/// where the sum is made first, from zero, and then added.
pub(crate) struct Block {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    /// Rows of `k` contiguous f32, `a_row` elements apart, aligned to 4.
    pub a: *const f32,
    pub a_row: isize,
    pub b: *const u8,
    /// Elements from one contiguous line of `b` to the next: along j in [`along_k`], along k in [`along_j`].
    pub b_line: isize,
    pub c: *mut f32,
    pub c_row: isize,
    pub add: bool,
    /// Memory to bring near the caches meanwhile, as lines of the shape of `b`'s: what will be read next.
    pub ahead: Ahead,
}

/// Lines in memory: element `l` of line `i` is at `at + i*line + l*size` bytes. They need not be there.
#[derive(Clone, Copy)]
pub(crate) struct Ahead {
    pub at: *const u8,
    pub line: isize,
    pub size: usize,
}

/// Asks for the cache line at `p`, which may be any address.
#[inline(always)]
fn prefetch(p: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: prefetches read nothing and fault on no address; SSE is part of x86-64.
    unsafe {
        use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(p.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = p;
}

pub(crate) type BlockFn = unsafe fn(&Block);
/// Expands `count` contiguous elements to f32.
pub(crate) type WidenFn = unsafe fn(src: *const u8, dst: *mut f32, count: usize);

/// What one level of processor features offers; the arrays are indexed by the [`Elem`] of `b` (or of the source).
pub(crate) struct Kernels {
    /// Products whose `b` is contiguous along k.
    pub along_k: [BlockFn; 3],
    /// Products whose `b` is contiguous along j.
    pub along_j: [BlockFn; 3],
    pub widen: [WidenFn; 3],
    /// Rows of the largest register tile.
    pub rows: usize,
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
        unsafe fn widen<E: $crate::vector::Element>(src: *const u8, dst: *mut f32, count: usize) {
            // SAFETY: the same contract.
            unsafe { $crate::vector::widen::<$vector, E>(src, dst, count) }
        }

        pub(crate) struct $name;

        impl $crate::vector::Level for $name {
            const KERNELS: $crate::vector::Kernels = {
                use $crate::vector::{Bf16, F16, F32, Vector};
                $crate::vector::Kernels {
                    along_k: [along_k::<F32>, along_k::<Bf16>, along_k::<F16>],
                    along_j: [along_j::<F32>, along_j::<Bf16>, along_j::<F16>],
                    widen: [widen::<F32>, widen::<Bf16>, widen::<F16>],
                    rows: <$vector as Vector>::ROWS,
                }
            };
        }
    };
}
pub(crate) use level;

/// Calls `$tile::<V, E, M>` for row tiles of `M` rows until all rows of the block are done.
macro_rules! for_row_tiles {
    ($block:ident, $tile:ident::<$v:ident, $e:ident>) => {
        let mut i = 0;
        while i < $block.m {
            let left = $block.m - i;
            // SAFETY: the caller's contract; rows `i..i + M` are in the block.
            unsafe {
                if $v::ROWS >= 6 && left >= 6 {
                    $tile::<$v, $e, 6>($block, i);
                    i += 6;
                } else if $v::ROWS >= 4 && left >= 4 {
                    $tile::<$v, $e, 4>($block, i);
                    i += 4;
                } else if $v::ROWS >= 3 && left >= 3 {
                    $tile::<$v, $e, 3>($block, i);
                    i += 3;
                } else if left >= 2 {
                    $tile::<$v, $e, 2>($block, i);
                    i += 2;
                } else {
                    $tile::<$v, $e, 1>($block, i);
                    i += 1;
                }
            }
        }
    };
}

/// The block's product where lines of `b` are contiguous along k: one vector of partial sums for each `c[i,j]`.
#[inline(always)]
pub(crate) unsafe fn along_k<V: Vector, E: Element>(block: &Block) {
    for_row_tiles!(block, k_rows::<V, E>);
}

#[inline(always)]
unsafe fn k_rows<V: Vector, E: Element, const M: usize>(t: &Block, i: usize) {
    let mut j = 0;
    // SAFETY: the caller's contract; columns `j..j + N` are in the block.
    unsafe {
        if M == 1 {
            while j + 8 <= t.n {
                k_tile::<V, E, M, 8>(t, i, j);
                j += 8;
            }
        }
        while j + 4 <= t.n {
            k_tile::<V, E, M, 4>(t, i, j);
            j += 4;
        }
        while j < t.n {
            k_tile::<V, E, M, 1>(t, i, j);
            j += 1;
        }
    }
}

#[inline(always)]
unsafe fn k_tile<V: Vector, E: Element, const M: usize, const N: usize>(t: &Block, i0: usize, j0: usize) {
    // SAFETY: rows `i0..i0 + M` and columns `j0..j0 + N` are in the block, whose addresses are valid.
    unsafe {
        let a = t.a.offset(i0 as isize * t.a_row);
        let b = t.b.offset(j0 as isize * t.b_line * E::SIZE as isize);
        let a_row = t.a_row;
        let b_row = t.b_line * E::SIZE as isize;
        let ahead = t.ahead.at.wrapping_offset(j0 as isize * t.ahead.line);
        let mut acc = [[V::splat(0.0); N]; M];
        let mut k = 0;
        while k + V::LANES <= t.k {
            if i0 == 0 {
                for j in 0..N {
                    prefetch(ahead.wrapping_offset(j as isize * t.ahead.line).wrapping_add(k * t.ahead.size));
                }
            }
            // One of `b` at a time: with all of `a`'s rows it fits beside the sums, even in 16 registers.
            let mut av = [V::splat(0.0); M];
            for i in 0..M {
                av[i] = V::load_f32(a.offset(i as isize * a_row).add(k).cast());
            }
            for j in 0..N {
                let bv = E::load(b.offset(j as isize * b_row).add(k * E::SIZE));
                for i in 0..M {
                    acc[i][j] = acc[i][j].add_product(av[i], bv);
                }
            }
            k += V::LANES;
        }
        if k < t.k {
            let mut av = [V::splat(0.0); M];
            for i in 0..M {
                av[i] = V::load_first::<F32>(a.offset(i as isize * a_row).add(k).cast(), t.k - k);
            }
            for j in 0..N {
                let bv = V::load_first::<E>(b.offset(j as isize * b_row).add(k * E::SIZE), t.k - k);
                for i in 0..M {
                    acc[i][j] = acc[i][j].add_product(av[i], bv);
                }
            }
        }
        for i in 0..M {
            let c = t.c.offset((i0 + i) as isize * t.c_row).add(j0);
            for j in (0..N).step_by(4) {
                let mut four = [V::splat(0.0); 4];
                for l in 0..Ord::min(4, N) {
                    four[l] = acc[i][j + l];
                }
                let sums = V::sum4(four);
                for l in 0..Ord::min(4, N) {
                    let c = c.add(j + l);
                    *c = if t.add { *c + sums[l] } else { sums[l] };
                }
            }
        }
    }
}

/// The block's product where lines of `b` are contiguous along j: each `c[i,j]` is one chain along k.
#[inline(always)]
pub(crate) unsafe fn along_j<V: Vector, E: Element>(block: &Block) {
    for_row_tiles!(block, j_rows::<V, E>);
}

#[inline(always)]
unsafe fn j_rows<V: Vector, E: Element, const M: usize>(t: &Block, i: usize) {
    let mut j = 0;
    // SAFETY: the caller's contract; columns `j..j + N * LANES` (the last time: up to `n`) are in the block.
    unsafe {
        if M == 1 && V::WIDE >= 16 {
            while j + 16 * V::LANES <= t.n {
                j_tile::<V, E, M, 16>(t, i, j, V::LANES);
                j += 16 * V::LANES;
            }
        }
        if M == 1 && V::WIDE >= 8 {
            while j + 8 * V::LANES <= t.n {
                j_tile::<V, E, M, 8>(t, i, j, V::LANES);
                j += 8 * V::LANES;
            }
        }
        while j + 4 * V::LANES <= t.n {
            j_tile::<V, E, M, 4>(t, i, j, V::LANES);
            j += 4 * V::LANES;
        }
        while j + V::LANES <= t.n {
            j_tile::<V, E, M, 1>(t, i, j, V::LANES);
            j += V::LANES;
        }
        if j < t.n {
            j_tile::<V, E, M, 1>(t, i, j, t.n - j);
        }
    }
}

/// `lanes` of the last vector are columns of the block; only a tile of one vector may have fewer than all.
#[inline(always)]
unsafe fn j_tile<V: Vector, E: Element, const M: usize, const N: usize>(
    t: &Block,
    i0: usize,
    j0: usize,
    lanes: usize,
) {
    // SAFETY: rows `i0..i0 + M` and the columns named are in the block, whose addresses are valid.
    unsafe {
        let a = t.a.offset(i0 as isize * t.a_row);
        let mut b = t.b.add(j0 * E::SIZE);
        let a_row = t.a_row;
        let b_line = t.b_line * E::SIZE as isize;
        let mut ahead = t.ahead.at.wrapping_add(j0 * t.ahead.size);
        let whole = N > 1 || lanes == V::LANES;
        let mut acc = [[V::splat(0.0); N]; M];
        for k in 0..t.k {
            if i0 == 0 {
                for j in 0..N {
                    prefetch(ahead.wrapping_add(j * V::LANES * t.ahead.size));
                }
                ahead = ahead.wrapping_offset(t.ahead.line);
            }
            let mut av = [V::splat(0.0); M];
            for i in 0..M {
                av[i] = V::splat(*a.offset(i as isize * a_row).add(k));
            }
            for j in 0..N {
                let p = b.add(j * V::LANES * E::SIZE);
                let bv = if whole { E::load(p) } else { V::load_first::<E>(p, lanes) };
                for i in 0..M {
                    acc[i][j] = acc[i][j].add_product(av[i], bv);
                }
            }
            b = b.wrapping_offset(b_line);
        }
        for i in 0..M {
            let c = t.c.offset((i0 + i) as isize * t.c_row).add(j0);
            for j in 0..N {
                let c = c.add(j * V::LANES);
                let mut sum = acc[i][j];
                if whole {
                    if t.add {
                        sum = V::load_f32(c.cast()).add(sum);
                    }
                    sum.store(c);
                } else {
                    if t.add {
                        sum = V::load_first::<F32>(c.cast(), lanes).add(sum);
                    }
                    sum.store_first(c, lanes);
                }
            }
        }
    }
}

/// Expands `count` elements to f32.
#[inline(always)]
pub(crate) unsafe fn widen<V: Vector, E: Element>(src: *const u8, dst: *mut f32, count: usize) {
    let mut k = 0;
    // SAFETY: elements `k..k + LANES`, or those left, are inside both buffers.
    unsafe {
        while k + V::LANES <= count {
            E::load::<V>(src.add(k * E::SIZE)).store(dst.add(k));
            k += V::LANES;
        }
        if k < count {
            V::load_first::<E>(src.add(k * E::SIZE), count - k).store_first(dst.add(k), count - k);
        }
    }
}
