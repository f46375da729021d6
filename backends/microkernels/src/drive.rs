//! Cuts a product into cache-sized blocks, makes f32 panels where they pay or are needed, and calls the kernels.

use crate::pack::{Panels, Source, pack};
use crate::vector::{Block, BlockFn, Kernels, WidenFn};
use crate::{DotArgs, Elem, K_BLOCK_ALONG_J, K_BLOCK_ALONG_K};

/// Rows of `a` handled together: a multiple of every tile's rows.
const M_BLOCK: usize = 96;
/// Most f32 in the panel of `a`.
const A_PANEL: usize = M_BLOCK * 1024;
/// Lines of `b` handled together when contiguous along k: with one tile of `a`, they stay in the L1 cache.
const N_BLOCK_ALONG_K: usize = 8;
/// Columns of `b` handled together when contiguous along j and packed.
const N_BLOCK_ALONG_J: usize = 256;
/// Columns of one packed strip: 4 of the widest vectors.
const STRIP: usize = 64;

/// Whether sums run in vectors along k ([`Block`]'s `along_k`), rather than one chain for each column.
fn is_along_k(args: &DotArgs) -> bool {
    !(args.b_row == 1 && !(args.a_k == 1 && args.b_k == 1))
}

/// What stays the same for all blocks of one call.
struct Product<'a> {
    kernels: &'a Kernels,
    b: Source,
    n: usize,
    c: *mut f32,
    c_row: isize,
    accumulate: bool,
    panels: Panels,
}

/// Rows of `a` as f32 contiguous along k, with their place in the product.
struct Rows {
    at: *const f32,
    row: isize,
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
    let a = Source { elem: a, at: args.a, row: args.a_row as isize, step: args.a_k as isize };
    let along_k = is_along_k(args);
    // The inner direction of `b` is the one that its lines are contiguous in.
    let (row, step) = if along_k { (args.b_row, args.b_k) } else { (args.b_k, args.b_row) };
    let b = Source { elem: b, at: args.b, row: row as isize, step: step as isize };
    let accumulate = args.accumulate != 0;
    let mut product = Product { kernels, b, n, c, c_row, accumulate, panels: Panels::default() };

    let in_place = a.elem == Elem::F32 && a.step == 1 && (a.at as usize).is_multiple_of(align_of::<f32>());
    for i in (0..m).step_by(M_BLOCK) {
        let m = M_BLOCK.min(m - i);
        let span = A_PANEL / m / K_BLOCK_ALONG_K * K_BLOCK_ALONG_K;
        for from in (0..k).step_by(span) {
            let depth = span.min(k - from);
            let part = a.from(i, from);
            let (at, row) = if in_place {
                (part.at.cast(), part.row)
            } else {
                let panel = product.panels.a(m * depth);
                // SAFETY: the caller's contract for `a`; the panel has room.
                unsafe { pack(part, kernels.widen[a.elem as usize], m, depth, panel, depth) };
                (panel.cast_const(), depth as isize)
            };
            let rows = Rows { at, row, i, m, k: from, depth };
            // SAFETY: the caller's contract, and that of the panel just made.
            unsafe { if along_k { product.along_k(&rows) } else { product.along_j(&rows) } }
        }
    }
}

impl Product<'_> {
    /// # Safety
    /// `rows` and `b` are valid for their extents.
    unsafe fn along_k(&mut self, rows: &Rows) {
        let widen = self.kernels.widen[self.b.elem as usize];
        // Expanding once pays from the third tile of rows on.
        let packed = self.b.step != 1 || self.b.elem != Elem::F32 && rows.m > 2 * self.kernels.rows;
        for j in (0..self.n).step_by(N_BLOCK_ALONG_K) {
            let n = N_BLOCK_ALONG_K.min(self.n - j);
            for k in (0..rows.depth).step_by(K_BLOCK_ALONG_K) {
                let depth = K_BLOCK_ALONG_K.min(rows.depth - k);
                let part = self.b.from(j, rows.k + k);
                // SAFETY: the caller's contract.
                unsafe {
                    let b = if packed { self.pack_b(part, widen, n, depth, depth) } else { part };
                    let kernel = self.kernels.along_k[b.elem as usize];
                    self.block(kernel, rows, k, depth, b, j, n);
                }
            }
        }
    }

    /// # Safety
    /// `rows` and `b` are valid for their extents.
    unsafe fn along_j(&mut self, rows: &Rows) {
        let widen = self.kernels.widen[self.b.elem as usize];
        // Lines far apart leave most of each page unused: strips pay even for f32.
        let packed = rows.m > 2 * self.kernels.rows;
        let n_block = if packed { N_BLOCK_ALONG_J } else { self.n };
        for j in (0..self.n).step_by(n_block) {
            let n = n_block.min(self.n - j);
            for k in (0..rows.depth).step_by(K_BLOCK_ALONG_J) {
                let depth = K_BLOCK_ALONG_J.min(rows.depth - k);
                for strip in (0..n).step_by(if packed { STRIP } else { n }) {
                    let j = j + strip;
                    let part = self.b.from(rows.k + k, j);
                    // SAFETY: the caller's contract.
                    unsafe {
                        let (b, n) = if packed {
                            let n = STRIP.min(n - strip);
                            (self.pack_b(part, widen, depth, n, STRIP), n)
                        } else {
                            (part, n)
                        };
                        let kernel = self.kernels.along_j[b.elem as usize];
                        self.block(kernel, rows, k, depth, b, j, n);
                    }
                }
            }
        }
    }

    /// A copy of `lines` lines of `b` of `len` elements, `row` f32 apart.
    ///
    /// # Safety
    /// That of [`pack`].
    unsafe fn pack_b(&mut self, b: Source, widen: WidenFn, lines: usize, len: usize, row: usize) -> Source {
        let panel = self.panels.b(lines * row);
        // SAFETY: the panel has room; the rest is the caller's contract.
        unsafe { pack(b, widen, lines, len, panel, row) };
        Source { elem: Elem::F32, at: panel.cast_const().cast(), row: row as isize, step: 1 }
    }

    /// Runs a kernel on `depth` of k from `rows.k + k` and `n` columns from `j`.
    ///
    /// # Safety
    /// Those extents are inside the product, and `b` is there and of the kernel's type.
    #[expect(clippy::too_many_arguments, reason = "the extents of a block")]
    unsafe fn block(
        &self,
        kernel: BlockFn,
        rows: &Rows,
        k: usize,
        depth: usize,
        b: Source,
        j: usize,
        n: usize,
    ) {
        let block = Block {
            m: rows.m,
            n,
            k: depth,
            a: rows.at.wrapping_add(k),
            a_row: rows.row,
            b: b.at,
            b_line: b.row,
            c: self.c.wrapping_offset(rows.i as isize * self.c_row).wrapping_add(j),
            c_row: self.c_row,
            add: self.accumulate || rows.k + k > 0,
        };
        // SAFETY: the caller's contract.
        unsafe { kernel(&block) }
    }
}
