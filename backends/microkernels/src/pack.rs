//! Copies of operands as f32 panels: expanded from 16 or 8 bits, with their scales, or gathered from awkward strides.

use crate::Elem;
use crate::codes::{E4M3, E5M2};
use crate::scales::Scaling;
use crate::vector::WidenFn;
use core::cell::Cell;
use half::{bf16, f16};

/// A cache line of a panel.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line(#[expect(dead_code, reason = "read and written through pointers to the panel")] [f32; 16]);

thread_local! {
    static SPARE: Cell<(Vec<Line>, Vec<Line>)> = const { Cell::new((Vec::new(), Vec::new())) };
}

/// Two panel buffers, aligned to a cache line and kept for the thread's next product.
#[derive(Default)]
pub(crate) struct Panels {
    a: Vec<Line>,
    b: Vec<Line>,
}

impl Panels {
    /// The buffer for `a`, with room for `len` f32.
    pub fn a(&mut self, len: usize) -> *mut f32 {
        self.room(len, true)
    }

    /// The buffer for `b`, with room for `len` f32.
    pub fn b(&mut self, len: usize) -> *mut f32 {
        self.room(len, false)
    }

    fn room(&mut self, len: usize, of_a: bool) -> *mut f32 {
        if self.a.is_empty() && self.b.is_empty() {
            // A thread that is ending has no spare buffers: they start empty then.
            (self.a, self.b) = SPARE.try_with(Cell::take).unwrap_or_default();
        }
        let panel = if of_a { &mut self.a } else { &mut self.b };
        let lines = len.div_ceil(16);
        if panel.len() < lines {
            panel.resize(lines, Line([0.0; 16]));
        }
        panel.as_mut_ptr().cast()
    }
}

impl Drop for Panels {
    fn drop(&mut self) {
        if !(self.a.is_empty() && self.b.is_empty()) {
            let panels = (core::mem::take(&mut self.a), core::mem::take(&mut self.b));
            // An ending thread drops them instead.
            let _ = SPARE.try_with(|spare| spare.set(panels));
        }
    }
}

/// A matrix in memory: element `(r, s)` is at `at + (r*row + s*step)*size` bytes.
#[derive(Clone, Copy)]
pub(crate) struct Source {
    pub elem: Elem,
    pub at: *const u8,
    pub row: isize,
    pub step: isize,
    /// Of 8-bit floats.
    pub scales: Scaling,
}

impl Source {
    /// The same matrix from element `(r, s)` on.
    #[inline(always)]
    pub fn from(self, r: usize, s: usize) -> Source {
        Source { scales: self.scales.from(r, s), ..self.beyond(r, s) }
    }

    /// [`Self::from`], for elements that are not multiplied: they keep these scales.
    #[inline(always)]
    pub fn beyond(self, r: usize, s: usize) -> Source {
        let elements = r as isize * self.row + s as isize * self.step;
        Source { at: self.at.wrapping_offset(elements * self.elem.size() as isize), ..self }
    }
}

/// Writes `rows` rows of `cols` f32 to `dst`, `dst_row` apart.
///
/// # Safety
/// All elements named can be read, and written in `dst`; `widen` is for `src.elem` and runs on this processor.
pub(crate) unsafe fn pack(
    src: Source,
    widen: WidenFn,
    rows: usize,
    cols: usize,
    dst: *mut f32,
    dst_row: usize,
) {
    let scales = &src.scales;
    if src.step == 1 {
        scales.rows.parts(rows, |from, to, by_row| {
            scales.steps.parts(cols, |first, end, by_step| {
                // SAFETY: this block of both matrices is inside them, and has this scale.
                unsafe {
                    let scale = scales.read(by_row + by_step);
                    for r in from..to {
                        let (src, dst) = (src.beyond(r, first).at, dst.add(r * dst_row + first));
                        widen(src, dst, end - first, scale);
                    }
                }
            });
        });
        return;
    }
    // SAFETY: the same contract; the types match the elements.
    unsafe {
        match src.elem {
            Elem::F32 => gather(src, rows, cols, dst, dst_row, |x: f32| x),
            Elem::Bf16 => gather(src, rows, cols, dst, dst_row, |x: u16| bf16::from_bits(x).to_f32()),
            Elem::F16 => gather(src, rows, cols, dst, dst_row, |x: u16| f16::from_bits(x).to_f32()),
            Elem::F8E4M3 => gather(src, rows, cols, dst, dst_row, |x: u8| E4M3[usize::from(x)]),
            Elem::F8E5M2 => gather(src, rows, cols, dst, dst_row, |x: u8| E5M2[usize::from(x)]),
        }
    }
}

/// Element by element, in bands of rows so that lines read at `step` apart are still there for the next row.
///
/// # Safety
/// That of [`pack`], for elements of type `T`.
#[inline(always)]
unsafe fn gather<T>(
    src: Source,
    rows: usize,
    cols: usize,
    dst: *mut f32,
    dst_row: usize,
    expand: impl Fn(T) -> f32,
) {
    const BAND: usize = 16;
    let scales = &src.scales;
    for band in (0..rows).step_by(BAND) {
        let by_row: [isize; BAND] = scales.rows.offsets(band, 1);
        scales.steps.parts(cols, |first, end, by_step| {
            let mut scale = [1f32; BAND];
            for r in band..rows.min(band + BAND) {
                // SAFETY: element `(r, first)` has this scale.
                scale[r - band] = unsafe { scales.read(by_row[r - band] + by_step) };
            }
            for s in first..end {
                for r in band..rows.min(band + BAND) {
                    // SAFETY: element `(r, s)` is inside both matrices.
                    unsafe {
                        let x = src.beyond(r, s).at.cast::<T>().read_unaligned();
                        *dst.add(r * dst_row + s) = expand(x) * scale[r - band];
                    }
                }
            }
        });
    }
}
