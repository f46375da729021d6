//! The loops of every kernel, written once over a vector type.
//!
//! Nothing here is compiled for a particular processor: the functions are inlined into wrappers that enable
//! the features their vector type needs (see [`level!`](crate::vector::level)).

#![allow(
    clippy::needless_range_loop,
    clippy::manual_memcpy,
    reason = "loops over indices below a constant unroll at the lowest optimisation level too"
)]

use crate::late::{Late, LateSums};
pub(crate) use crate::level::{
    Bf16, BlockFn, Element, F8E4M3, F8E5M2, F16, F32, Kernels, Level, WidenFn, level,
};
use crate::scales::{Run, Scaling};

/// Vectors that elements of 8 bits are expanded to at a time.
const GROUP: usize = 4;

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
    unsafe fn load_e4m3(p: *const u8) -> Self;
    unsafe fn load_e5m2(p: *const u8) -> Self;
    unsafe fn store(self, p: *mut f32);
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    /// `self + a * b`, fused where the processor can.
    unsafe fn add_product(self, a: Self, b: Self) -> Self;
    /// The sum over the lanes of each of four vectors, in one order for all four.
    unsafe fn sum4(v: [Self; 4]) -> [f32; 4];

    /// Four neighbouring vectors.
    #[inline(always)]
    unsafe fn load4_e4m3(p: *const u8) -> [Self; GROUP] {
        // SAFETY: the same contract.
        unsafe { [0, 1, 2, 3].map(|i| Self::load_e4m3(p.add(i * Self::LANES))) }
    }

    /// Four neighbouring vectors.
    #[inline(always)]
    unsafe fn load4_e5m2(p: *const u8) -> [Self; GROUP] {
        // SAFETY: the same contract.
        unsafe { [0, 1, 2, 3].map(|i| Self::load_e5m2(p.add(i * Self::LANES))) }
    }

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

/// One block of a product, small enough to stay in the caches: `c[i,j] = (add ? c[i,j] : 0) + Σ_k a[i,k]·b[j,k]`,
/// where the sum is made first, from zero, and then added.
pub(crate) struct Block {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    /// Rows of `k` f32, `a_row` elements apart, aligned to 4: contiguous in [`along_k`], `a_step` apart in [`along_j`].
    pub a: *const f32,
    pub a_row: isize,
    pub a_step: isize,
    pub b: *const u8,
    /// Elements from one contiguous line of `b` to the next: along j in [`along_k`], along k in [`along_j`].
    pub b_line: isize,
    /// The scales of `b`, whose rows are its lines; they change along a line only at multiples of the lanes.
    pub scales: Scaling,
    /// Scales of sums (along k only).
    pub late: Option<Late>,
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

/// Calls `$tile::<V, E, M>` (and further arguments) for row tiles of `M` rows until all rows of the block are done.
macro_rules! for_row_tiles {
    ($block:ident, $tile:ident::<$v:ident, $e:ident $(, $more:literal)?>) => {
        let mut i = 0;
        while i < $block.m {
            let left = $block.m - i;
            // SAFETY: the caller's contract; rows `i..i + M` are in the block.
            unsafe {
                if $v::ROWS >= 6 && left >= 6 {
                    $tile::<$v, $e, 6 $(, $more)?>($block, i);
                    i += 6;
                } else if $v::ROWS >= 4 && left >= 4 {
                    $tile::<$v, $e, 4 $(, $more)?>($block, i);
                    i += 4;
                } else if $v::ROWS >= 3 && left >= 3 {
                    $tile::<$v, $e, 3 $(, $more)?>($block, i);
                    i += 3;
                } else if left >= 2 {
                    $tile::<$v, $e, 2 $(, $more)?>($block, i);
                    i += 2;
                } else {
                    $tile::<$v, $e, 1 $(, $more)?>($block, i);
                    i += 1;
                }
            }
        }
    };
}

/// The block's product where lines of `b` are contiguous along k: one vector of partial sums for each `c[i,j]`.
#[inline(always)]
pub(crate) unsafe fn along_k<V: Vector, E: Element>(block: &Block) {
    // Kernels of their own, since sums that are looked at in between do not stay in registers. Codes have such scales, as they
    // are or packed.
    if (E::SCALED || matches!(E::ELEM, crate::Elem::F32)) && block.late.is_some() {
        for_row_tiles!(block, k_rows::<V, E, true>);
    } else {
        for_row_tiles!(block, k_rows::<V, E, false>);
    }
}

/// With `LATE`, of blocks that have scales of sums.
#[inline(always)]
unsafe fn k_rows<V: Vector, E: Element, const M: usize, const LATE: bool>(t: &Block, i: usize) {
    let mut j = 0;
    // SAFETY: the caller's contract; columns `j..j + N` are in the block.
    unsafe {
        // Of eight columns, what expanding needs does not fit the registers beside scales and sums.
        if M == 1 && !E::SCALED {
            while j + 8 <= t.n {
                k_tile::<V, E, M, 8, LATE>(t, i, j);
                j += 8;
            }
        }
        while j + 4 <= t.n {
            k_tile::<V, E, M, 4, LATE>(t, i, j);
            j += 4;
        }
        while j < t.n {
            k_tile::<V, E, M, 1, LATE>(t, i, j);
            j += 1;
        }
    }
}

#[inline(always)]
unsafe fn k_tile<V: Vector, E: Element, const M: usize, const N: usize, const LATE: bool>(
    t: &Block,
    i0: usize,
    j0: usize,
) {
    // SAFETY: rows `i0..i0 + M` and columns `j0..j0 + N` are in the block, whose addresses are valid.
    unsafe {
        let a = t.a.offset(i0 as isize * t.a_row);
        let b = t.b.offset(j0 as isize * t.b_line * E::SIZE as isize);
        let a_row = t.a_row;
        let b_row = t.b_line * E::SIZE as isize;
        let ahead = t.ahead.at.wrapping_offset(j0 as isize * t.ahead.line);
        let mut acc = [[V::splat(0.0); N]; M];
        let mut scales = Scaled::<V, N>::new::<E>(&t.scales, j0, 1);
        let mut late = if LATE { t.late.map(|late| LateSums::<M, N>::new(late, i0, j0)) } else { None };
        let mut k = 0;
        while k < t.k {
            // As far as scales stay what they are.
            let end = match &late {
                Some(late) => t.k.min(k.saturating_add(late.left)),
                None => scales.along_line::<E>(t, k),
            };
            while E::SCALED && k + GROUP * V::LANES <= end {
                for j in 0..N {
                    if i0 == 0 {
                        let p = ahead.wrapping_offset(j as isize * t.ahead.line);
                        prefetch(p.wrapping_add(k * t.ahead.size));
                    }
                    let bv = E::load4::<V>(b.offset(j as isize * b_row).add(k * E::SIZE));
                    for g in 0..GROUP {
                        let bv = bv[g].mul(scales.now[j]);
                        for i in 0..M {
                            let av = V::load_f32(a.offset(i as isize * a_row).add(k + g * V::LANES).cast());
                            acc[i][j] = acc[i][j].add_product(av, bv);
                        }
                    }
                }
                k += GROUP * V::LANES;
            }
            while k + V::LANES <= end {
                if i0 == 0 {
                    for j in 0..N {
                        let p = ahead.wrapping_offset(j as isize * t.ahead.line);
                        prefetch(p.wrapping_add(k * t.ahead.size));
                    }
                }
                // One of `b` at a time: with all of `a`'s rows it fits beside the sums, even in 16 registers.
                let mut av = [V::splat(0.0); M];
                for i in 0..M {
                    av[i] = V::load_f32(a.offset(i as isize * a_row).add(k).cast());
                }
                for j in 0..N {
                    let bv = E::load::<V>(b.offset(j as isize * b_row).add(k * E::SIZE));
                    let bv = scales.times::<E>(j, bv);
                    for i in 0..M {
                        acc[i][j] = acc[i][j].add_product(av[i], bv);
                    }
                }
                k += V::LANES;
            }
            if k < end {
                let mut av = [V::splat(0.0); M];
                for i in 0..M {
                    av[i] = V::load_first::<F32>(a.offset(i as isize * a_row).add(k).cast(), end - k);
                }
                for j in 0..N {
                    let bv = V::load_first::<E>(b.offset(j as isize * b_row).add(k * E::SIZE), end - k);
                    let bv = scales.times::<E>(j, bv);
                    for i in 0..M {
                        acc[i][j] = acc[i][j].add_product(av[i], bv);
                    }
                }
                k = end;
            }
            if let Some(late) = &mut late {
                late.add(&acc);
                acc = [[V::splat(0.0); N]; M];
            }
        }
        for i in 0..M {
            let c: *mut [f32; N] = t.c.offset((i0 + i) as isize * t.c_row).add(j0).cast();
            let mut sums = late.as_ref().map_or_else(|| lane_sums(&acc[i]), |late| late.sums[i]);
            if t.add {
                let old = *c;
                for j in 0..N {
                    sums[j] += old[j];
                }
            }
            *c = sums;
        }
    }
}

/// The sum of each vector's lanes.
#[inline(always)]
pub(crate) unsafe fn lane_sums<V: Vector, const N: usize>(acc: &[V; N]) -> [f32; N] {
    let mut all = [0.0; N];
    // SAFETY: the processor has the vector's features.
    unsafe {
        for j in (0..N).step_by(4) {
            let mut four = [V::splat(0.0); 4];
            for l in 0..Ord::min(4, N) {
                four[l] = acc[j + l];
            }
            let sums = V::sum4(four);
            for l in 0..Ord::min(4, N) {
                all[j + l] = sums[l];
            }
        }
    }
    all
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
        let mut a = t.a.offset(i0 as isize * t.a_row);
        let mut b = t.b.add(j0 * E::SIZE);
        let a_row = t.a_row;
        let b_line = t.b_line * E::SIZE as isize;
        let mut ahead = t.ahead.at.wrapping_add(j0 * t.ahead.size);
        let whole = N > 1 || lanes == V::LANES;
        let mut acc = [[V::splat(0.0); N]; M];
        let mut scales = Scaled::<V, N>::new::<E>(&t.scales.turned(), j0, V::LANES);
        let mut until = 0;
        for k in 0..t.k {
            if E::SCALED && k == until {
                until = scales.along_line::<E>(t, k);
            }
            if i0 == 0 {
                for j in 0..N {
                    prefetch(ahead.wrapping_add(j * V::LANES * t.ahead.size));
                }
                ahead = ahead.wrapping_offset(t.ahead.line);
            }
            let mut av = [V::splat(0.0); M];
            for i in 0..M {
                av[i] = V::splat(*a.offset(i as isize * a_row));
            }
            if E::SCALED && N.is_multiple_of(GROUP) {
                for j in (0..N).step_by(GROUP) {
                    let bv = E::load4::<V>(b.add(j * V::LANES * E::SIZE));
                    for g in 0..GROUP {
                        let bv = bv[g].mul(scales.now[j + g]);
                        for i in 0..M {
                            acc[i][j + g] = acc[i][j + g].add_product(av[i], bv);
                        }
                    }
                }
            } else {
                for j in 0..N {
                    let p = b.add(j * V::LANES * E::SIZE);
                    let bv = if whole { E::load(p) } else { V::load_first::<E>(p, lanes) };
                    let bv = scales.times::<E>(j, bv);
                    for i in 0..M {
                        acc[i][j] = acc[i][j].add_product(av[i], bv);
                    }
                }
            }
            a = a.wrapping_offset(t.a_step);
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

/// The scales of `N` vectors of a tile, while they go along its other axis.
struct Scaled<V, const N: usize> {
    now: [V; N],
    offsets: [isize; N],
    /// Whether all have the same scale, as neighbours mostly do.
    same: bool,
    run: Run,
    /// How far the present scales are from the first, along the axis.
    at: isize,
}

impl<V: Vector, const N: usize> Scaled<V, N> {
    /// For rows `first`, `first + step`, … of `scales`, before their first step.
    #[inline(always)]
    unsafe fn new<E: Element>(scales: &Scaling, first: usize, step: usize) -> Self {
        let offsets: [isize; N] = if E::SCALED { scales.rows.offsets(first, step) } else { [0; N] };
        let same = offsets.iter().all(|&offset| offset == offsets[0]);
        // SAFETY: the processor has the vector's features.
        Scaled { now: [unsafe { V::splat(1.0) }; N], offsets, same, run: scales.steps, at: 0 }
    }

    /// Takes the scales of step `k`, where they change; the end of the steps that share them.
    #[inline(always)]
    unsafe fn along_line<E: Element>(&mut self, t: &Block, k: usize) -> usize {
        if !E::SCALED {
            return t.k;
        }
        // SAFETY: the block has elements with these scales.
        unsafe {
            self.now = [V::splat(t.scales.read(self.offsets[0] + self.at)); N];
            if !self.same {
                for j in 1..N {
                    self.now[j] = V::splat(t.scales.read(self.offsets[j] + self.at));
                }
            }
        }
        let left = self.run.left();
        self.run = self.run.from(left).0;
        self.at += self.run.stride;
        if left < t.k - k { k + left } else { t.k }
    }

    #[inline(always)]
    unsafe fn times<E: Element>(&self, j: usize, x: V) -> V {
        // SAFETY: the processor has the vector's features.
        if E::SCALED { unsafe { x.mul(self.now[j]) } } else { x }
    }
}

/// Expands `count` elements of one scale to f32.
#[inline(always)]
pub(crate) unsafe fn widen<V: Vector, E: Element>(src: *const u8, dst: *mut f32, count: usize, scale: f32) {
    let mut k = 0;
    // SAFETY: elements `k..k + LANES`, or those left, are inside both buffers.
    unsafe {
        let scale = V::splat(scale);
        let times = |x: V| if E::SCALED { x.mul(scale) } else { x };
        while E::SCALED && k + GROUP * V::LANES <= count {
            let four = E::load4::<V>(src.add(k * E::SIZE));
            for g in 0..GROUP {
                times(four[g]).store(dst.add(k + g * V::LANES));
            }
            k += GROUP * V::LANES;
        }
        while k + V::LANES <= count {
            times(E::load::<V>(src.add(k * E::SIZE))).store(dst.add(k));
            k += V::LANES;
        }
        if k < count {
            times(V::load_first::<E>(src.add(k * E::SIZE), count - k)).store_first(dst.add(k), count - k);
        }
    }
}
