//! Cuts a product into cache-sized blocks, makes f32 panels where they pay or are needed, and calls the kernels.

use crate::late::Late;
use crate::pack::{Panels, Source, pack};
use crate::scales::Scaling;
use crate::vector::{Ahead, Block, BlockFn, Kernels};
use crate::{DotArgs, Elem, K_BLOCK_ALONG_J, K_BLOCK_ALONG_K};

/// Rows of `a` handled together: a multiple of every tile's rows.
const M_BLOCK: usize = 96;
/// Most f32 in the panel of `a`.
const A_PANEL: usize = M_BLOCK * 1024;
/// Lines of `b` handled together when contiguous along k: with one tile of `a`, they stay in the L1 cache.
const N_BLOCK_ALONG_K: usize = 8;
/// Bytes along k that are asked for before they are read.
const AHEAD: usize = 16 << 10;
/// Columns of `b` handled together when contiguous along j and packed.
const N_BLOCK_ALONG_J: usize = 256;
/// Columns of one packed strip: 4 of the widest vectors.
const STRIP: usize = 64;

/// Whether sums run in vectors along k ([`Block`]'s `along_k`), rather than one chain for each column.
fn is_along_k(args: &DotArgs) -> bool {
    !(args.b_row == 1 && !(args.a_k == 1 && args.b_k == 1))
}

/// Lines along j that are asked for before they are read in place.
const LINES_AHEAD: usize = 8;

/// What stays the same for all blocks of one call.
struct Product<'a> {
    kernels: &'a Kernels,
    b: Source,
    n: usize,
    c: *mut f32,
    c_row: isize,
    accumulate: bool,
    panels: Panels,
    /// Scales that sums are multiplied with, and not their terms.
    late: Option<Late>,
}

/// Rows of `a` as f32, `step` apart along k (1 where sums run in vectors along it), with their place in the product.
struct Rows {
    at: *const f32,
    row: isize,
    step: isize,
    i: usize,
    m: usize,
    k: usize,
    depth: usize,
}

/// The product of `args`.
///
/// # Safety
/// The contract of [`DotArgs`]; the processor can run `kernels`.
pub(crate) unsafe fn product(kernels: &Kernels, a: Elem, b: Elem, args: &DotArgs) {
    let extent = |x: i64| usize::try_from(x).unwrap_or(0);
    let (m, n, k) = (extent(args.m), extent(args.n), extent(args.k));
    let (c, c_row) = (args.c, args.c_row as isize);
    if k == 0 && args.accumulate == 0 {
        for i in 0..m {
            // SAFETY: row `i` of `c` has `n` elements.
            unsafe { c.wrapping_offset(i as isize * c_row).write_bytes(0, n) };
        }
    }
    if m == 0 || n == 0 || k == 0 {
        return;
    }
    // SAFETY: the caller's contract.
    let (a_scales, b_scales) = unsafe { (Scaling::new(args.a_scales), Scaling::new(args.b_scales)) };
    let along_k = is_along_k(args);
    let both = along_k && !args.a_scales.is_null() && !args.b_scales.is_null();
    let late = if both { Late::new(a_scales, b_scales) } else { None };
    let (a_scales, b_scales) = late.map_or((a_scales, b_scales), |_| (Scaling::one(), Scaling::one()));
    let a =
        Source { elem: a, at: args.a, row: args.a_row as isize, step: args.a_k as isize, scales: a_scales };
    // The inner direction of `b` is the one that its lines are contiguous in.
    let (row, step) = if along_k { (args.b_row, args.b_k) } else { (args.b_k, args.b_row) };
    let scales = if along_k { b_scales } else { b_scales.turned() };
    let b = Source { elem: b, at: args.b, row: row as isize, step: step as isize, scales };
    let accumulate = args.accumulate != 0;
    let mut product = Product { kernels, b, n, c, c_row, accumulate, panels: Panels::default(), late };

    let in_place = a.elem == Elem::F32 && a.step == 1 && (a.at as usize).is_multiple_of(align_of::<f32>());
    for i in (0..m).step_by(M_BLOCK) {
        let m = M_BLOCK.min(m - i);
        let span = A_PANEL / m / K_BLOCK_ALONG_K * K_BLOCK_ALONG_K;
        for from in (0..k).step_by(span) {
            let depth = span.min(k - from);
            let part = a.from(i, from);
            let widen = kernels.widen[a.elem as usize];
            let (at, row, step) = if in_place {
                (part.at.cast(), part.row, 1)
            } else if !along_k && a.row == 1 && a.step != 1 && a.elem.size() > 1 {
                // Neighbours stay neighbours: a column of sums needs one number of each row at a time, wherever it is.
                let (panel, lines) =
                    (product.panels.a(m * depth), Source { row: a.step, step: a.row, ..part });
                // SAFETY: the caller's contract for `a`; the panel has room.
                unsafe { pack(lines, widen, depth, m, panel, m) };
                (panel.cast_const(), 1, m as isize)
            } else {
                let panel = product.panels.a(m * depth);
                // SAFETY: the caller's contract for `a`; the panel has room.
                unsafe { pack(part, widen, m, depth, panel, depth) };
                (panel.cast_const(), depth as isize, 1)
            };
            let rows = Rows { at, row, step, i, m, k: from, depth };
            // SAFETY: the caller's contract, and that of the panel just made.
            unsafe { if along_k { product.along_k(&rows) } else { product.along_j(&rows) } }
        }
    }
}

/// A block's place: `depth` of k from `k` on, counted from that of its rows, and `n` columns from `j` on.
#[derive(Clone, Copy)]
struct Place {
    k: usize,
    depth: usize,
    j: usize,
    n: usize,
}

impl Product<'_> {
    /// # Safety
    /// `rows` and `b` are valid for their extents.
    unsafe fn along_k(&mut self, rows: &Rows) {
        // Expanding once pays from the third tile of rows on.
        let aligned = self.b.scales.steps.is_aligned(self.kernels.lanes, rows.k + rows.depth);
        let packed =
            self.b.step != 1 || !aligned || self.b.elem != Elem::F32 && rows.m > 2 * self.kernels.rows;
        let steps = rows.depth.div_ceil(K_BLOCK_ALONG_K);
        let ahead = AHEAD / (N_BLOCK_ALONG_K * K_BLOCK_ALONG_K * self.b.elem.size());
        for j in (0..self.n).step_by(N_BLOCK_ALONG_K) {
            let n = N_BLOCK_ALONG_K.min(self.n - j);
            for (step, k) in (0..rows.depth).step_by(K_BLOCK_ALONG_K).enumerate() {
                let depth = K_BLOCK_ALONG_K.min(rows.depth - k);
                let part = self.b.from(j, rows.k + k);
                // Behind the last line goes on what follows in memory: the caller's next product, if anything.
                let (lines, steps) = ((step + ahead) / steps, (step + ahead) % steps);
                let next = self.b.beyond(j + lines * N_BLOCK_ALONG_K, rows.k + steps * K_BLOCK_ALONG_K);
                // SAFETY: the caller's contract.
                unsafe {
                    let b = if packed { self.pack_b(part, n, depth, depth) } else { part };
                    self.block(&self.kernels.along_k, rows, Place { k, depth, j, n }, b, next);
                }
            }
        }
    }

    /// # Safety
    /// `rows` and `b` are valid for their extents.
    unsafe fn along_j(&mut self, rows: &Rows) {
        // Lines far apart leave most of each page unused: strips pay even for f32.
        let aligned = self.b.scales.steps.is_aligned(self.kernels.lanes, self.n);
        let packed = !aligned || rows.m > 2 * self.kernels.rows;
        let (band, strip) = if packed { (N_BLOCK_ALONG_J, STRIP) } else { (self.n, self.n) };
        for from in (0..self.n).step_by(band) {
            let end = self.n.min(from + band);
            for k in (0..rows.depth).step_by(K_BLOCK_ALONG_J) {
                let depth = K_BLOCK_ALONG_J.min(rows.depth - k);
                for j in (from..end).step_by(strip) {
                    let n = strip.min(end - j);
                    let part = self.b.from(rows.k + k, j);
                    // SAFETY: the caller's contract.
                    unsafe {
                        let (b, next) = if !packed {
                            (part, part.beyond(LINES_AHEAD, 0))
                        } else if j + n < end {
                            (self.pack_b(part, depth, n, STRIP), part.beyond(0, n))
                        } else {
                            (self.pack_b(part, depth, n, STRIP), self.b.beyond(rows.k + k + depth, from))
                        };
                        self.block(&self.kernels.along_j, rows, Place { k, depth, j, n }, b, next);
                    }
                }
            }
        }
    }

    /// A copy of `lines` lines of `b` of `len` elements, `row` f32 apart.
    ///
    /// # Safety
    /// That of [`pack`].
    unsafe fn pack_b(&mut self, b: Source, lines: usize, len: usize, row: usize) -> Source {
        let panel = self.panels.b(lines * row);
        // SAFETY: the panel has room; the rest is the caller's contract.
        unsafe { pack(b, self.kernels.widen[b.elem as usize], lines, len, panel, row) };
        let at = panel.cast_const().cast();
        Source { elem: Elem::F32, at, row: row as isize, step: 1, scales: Scaling::one() }
    }

    /// Runs the kernel for `b`, which lies at that place of the product, and asks for the lines of `next`.
    ///
    /// # Safety
    /// The place is inside the product, and `b` is valid for its extents; `next` may be anywhere.
    unsafe fn block(&self, kernels: &[BlockFn; 5], rows: &Rows, place: Place, b: Source, next: Source) {
        let Place { k, depth, j, n } = place;
        let size = next.elem.size();
        let block = Block {
            m: rows.m,
            n,
            k: depth,
            a: rows.at.wrapping_offset(k as isize * rows.step),
            a_row: rows.row,
            a_step: rows.step,
            b: b.at,
            b_line: b.row,
            scales: b.scales,
            late: self.late.map(|late| late.from(rows.i, j, rows.k + k)),
            c: self.c.wrapping_offset(rows.i as isize * self.c_row).wrapping_add(j),
            c_row: self.c_row,
            add: self.accumulate || rows.k + k > 0,
            ahead: Ahead { at: next.at, line: next.row.wrapping_mul(size as isize), size },
        };
        // SAFETY: the caller's contract.
        unsafe { kernels[b.elem as usize](&block) }
    }
}
