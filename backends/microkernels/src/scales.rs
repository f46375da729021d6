//! Scales of operands of 8-bit floats.

/// The type of scales in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(i64)]
pub enum ScaleElem {
    /// IEEE binary32, 4 bytes.
    F32 = 0,
    /// The exponent of a power of two, plus 127, in 1 byte; 255 is NaN.
    E8M0 = 1,
}

/// The scales of an operand, whose element `(r, k)` is multiplied by the scale number
/// `row_stride · ((row_place + r) / row_block) + k_stride · ((k_place + k) / k_block)`, rounded down.
///
/// Places below zero count as zero, blocks below one as one. Those scales are read that elements need, and no others.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Scales {
    /// Scale number 0; of any alignment.
    pub at: *const u8,
    /// Their type.
    pub elem: ScaleElem,
    /// The place of row 0 on the axis that is cut into blocks.
    pub row_place: i64,
    /// How many neighbouring rows share a scale.
    pub row_block: i64,
    /// Scales from one block of rows to the next.
    pub row_stride: i64,
    /// The place of the first k on the axis that is cut into blocks.
    pub k_place: i64,
    /// How many neighbours along k share a scale.
    pub k_block: i64,
    /// Scales from one block of k to the next.
    pub k_stride: i64,
}

/// Neighbours that share scales: the first `block - place` share the first.
#[derive(Clone, Copy)]
pub(crate) struct Run {
    /// Less than `block`.
    place: usize,
    pub block: usize,
    pub stride: isize,
}

impl Run {
    const ONE: Run = Run { place: 0, block: usize::MAX, stride: 0 };

    fn new(place: i64, block: i64, stride: i64) -> (Run, isize) {
        let extent = |x: i64| usize::try_from(x).unwrap_or(0);
        if stride == 0 {
            return (Run::ONE, 0);
        }
        Run { place: 0, block: extent(block).max(1), stride: stride as isize }.from(extent(place))
    }

    /// The blocks over which both are constant; none if they are other ones.
    pub fn common(a: Run, b: Run) -> Option<Run> {
        let same = (a.place, a.block) == (b.place, b.block);
        if a.stride == 0 { Some(b) } else { (same || b.stride == 0).then_some(a) }
    }

    /// The run `x` further, and how far its first scale is from this one's.
    #[inline(always)]
    pub fn from(self, x: usize) -> (Run, isize) {
        let place = self.place.wrapping_add(x);
        if place < self.block {
            return (Run { place, ..self }, 0);
        }
        let (blocks, place) = if self.block.is_power_of_two() {
            (place >> self.block.trailing_zeros(), place & (self.block - 1))
        } else {
            (place / self.block, place % self.block)
        };
        (Run { place, ..self }, blocks as isize * self.stride)
    }

    /// How many share the first scale.
    #[inline(always)]
    pub fn left(self) -> usize {
        self.block - self.place
    }

    /// Whether scales change only at multiples of `lanes` among `len` neighbours.
    pub fn is_aligned(self, lanes: usize, len: usize) -> bool {
        len <= self.left() || self.place.is_multiple_of(lanes) && self.block.is_multiple_of(lanes)
    }

    /// Calls `f` with each part of `0..len` that shares a scale, as its start and end, and how far that is from the
    /// first one.
    #[inline(always)]
    pub fn parts(self, len: usize, mut f: impl FnMut(usize, usize, isize)) {
        let (mut from, mut left, mut at) = (0, self.left(), 0);
        while from < len {
            let to = if left < len - from { from + left } else { len };
            f(from, to, at);
            (from, left, at) = (to, self.block, at + self.stride);
        }
    }

    /// How far the scales of elements `first..` are from the first one's.
    #[inline(always)]
    pub fn offsets<const N: usize>(self, first: usize, step: usize) -> [isize; N] {
        let (mut run, mut at) = self.from(first);
        let mut offsets = [at; N];
        for offset in &mut offsets[1..] {
            let (next, by) = run.from(step);
            (run, at) = (next, at + by);
            *offset = at;
        }
        offsets
    }
}

/// Where the scales of a matrix are.
#[derive(Clone, Copy)]
pub(crate) struct Scaling {
    at: *const u8,
    elem: ScaleElem,
    pub rows: Run,
    pub steps: Run,
}

static ONE: f32 = 1.0;

impl Scaling {
    /// One for all.
    pub fn one() -> Scaling {
        Scaling { at: (&raw const ONE).cast(), elem: ScaleElem::F32, rows: Run::ONE, steps: Run::ONE }
    }

    /// The scales of an operand; its steps run along k.
    ///
    /// # Safety
    /// `scales` is null or can be read.
    pub unsafe fn new(scales: *const Scales) -> Scaling {
        // SAFETY: the caller's contract.
        let Some(scales) = (unsafe { scales.as_ref() }) else { return Scaling::one() };
        let (rows, by_rows) = Run::new(scales.row_place, scales.row_block, scales.row_stride);
        let (steps, by_steps) = Run::new(scales.k_place, scales.k_block, scales.k_stride);
        Scaling { at: scales.at, elem: scales.elem, rows, steps }.shifted(by_rows + by_steps)
    }

    /// The scales of the transposed matrix.
    #[inline(always)]
    pub fn turned(self) -> Scaling {
        Scaling { rows: self.steps, steps: self.rows, ..self }
    }

    /// Those of the matrix from element `(r, s)` on.
    #[inline(always)]
    pub fn from(self, r: usize, s: usize) -> Scaling {
        let ((rows, by_rows), (steps, by_steps)) = (self.rows.from(r), self.steps.from(s));
        Scaling { rows, steps, ..self }.shifted(by_rows + by_steps)
    }

    #[inline(always)]
    fn shifted(self, by: isize) -> Scaling {
        let size = if self.elem == ScaleElem::F32 { 4 } else { 1 };
        Scaling { at: self.at.wrapping_offset(by * size), ..self }
    }

    /// The scale `offset` scales from the first.
    ///
    /// # Safety
    /// An element has that scale, and its memory can be read.
    #[inline(always)]
    pub unsafe fn read(&self, offset: isize) -> f32 {
        // SAFETY: the caller's contract.
        unsafe {
            match self.elem {
                ScaleElem::F32 => self.at.cast::<f32>().offset(offset).read_unaligned(),
                ScaleElem::E8M0 => match *self.at.offset(offset) {
                    0 => f32::from_bits(1 << 22),
                    255 => f32::NAN,
                    exponent => f32::from_bits(u32::from(exponent) << 23),
                },
            }
        }
    }
}
