//! What an op's lowering to the kernel IR is written against.
//!
//! Lowering composes. A kernel has one op that owns its loops ([`Lowering::Kernel`]) or just walks over
//! its result; operands arrive as [`View`]s, which compute any tile of a value where it is asked for: by
//! loading it, or by the element-wise ops that were fused into this kernel. Each tile of the result goes
//! to [`Cx::emit`], which applies the element-wise ops fused behind it and stores what comes out.
//! Which ops share a kernel, and where buffers lie, is decided by passes; tile sizes come from a
//! [`Schedule`]. No op file holds a tile size.

use crate::dim::Dim;
use crate::kernel::Buf;
use crate::kernel::build::{Build, Tile};
use crate::types::{DType, TensorType};
use std::rc::Rc;

mod pages;
mod scaled;
mod schedule;

pub use pages::Pages;
pub use scaled::{SCALES, ScalesView};
pub use schedule::{FewRows, KeyParts, Schedule, SortSchedule, TensorSchedule, TermParts};

/// How an op becomes code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lowering {
    /// No code: the same bytes, seen with other extents or strides.
    Alias,
    /// Element by element, with right-aligned broadcasting: fused before or behind other ops.
    Pointwise,
    /// Other elements of the operands, or a few of them: computed where it is used.
    View,
    /// Loops of its own.
    Kernel,
    /// Depends on nothing that is known at run time: evaluated once, at compile time.
    Constant,
}

/// Why an op could not be lowered: a limit of the compiler that the user should hear of.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct LowerError {
    /// What is not possible, in one sentence without a full stop.
    pub message: String,
}

impl LowerError {
    /// An error with this message.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into() }
    }
}

/// A tensor in memory, as someone sees it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BufView {
    /// Which allocation; means something to the pass that made it.
    pub base: usize,
    /// A name for people.
    pub name: String,
    /// The elements' type in memory.
    pub dtype: DType,
    /// Extents.
    pub shape: Vec<Dim>,
    /// Distance between neighbours along each axis, in elements.
    pub strides: Vec<Dim>,
    /// Where the first element is, in elements.
    pub offset: Dim,
    /// Where its tokens are, if they are in pages.
    pub pages: Option<Box<Pages>>,
    /// Where its scales are, if elements are numbers only with them: then reads give `element · scale`.
    pub scales: Option<Box<ScalesView>>,
}

impl BufView {
    /// A whole allocation in row-major order.
    pub fn row_major(base: usize, name: &str, dtype: DType, shape: &[Dim]) -> Self {
        let strides = row_major_strides(shape);
        Self {
            base,
            name: name.into(),
            dtype,
            shape: shape.to_vec(),
            strides,
            offset: Dim::from(0),
            pages: None,
            scales: None,
        }
    }

    /// Whether elements follow one another in row-major order.
    pub fn is_row_major(&self) -> bool {
        if self.pages.is_some() {
            return false;
        }
        let mut step = Dim::from(1);
        self.shape.iter().zip(&self.strides).rev().all(|(extent, stride)| {
            let fits = *stride == step;
            step = &step * extent;
            fits
        })
    }

    /// The view with each group of neighbouring axes made one; `None` where their elements are not evenly spaced.
    ///
    /// `groups` lists, for each new axis, how many old ones it takes.
    pub fn merge(&self, groups: &[usize]) -> Option<BufView> {
        let (mut shape, mut strides, mut at) = (Vec::new(), Vec::new(), 0);
        for &len in groups {
            let (dims, steps) = (&self.shape[at..at + len], &self.strides[at..at + len]);
            at += len;
            // Sequences and tokens in pages are not evenly spaced.
            if self.pages.is_some() && shape.len() < 2 && len != 1 {
                return None;
            }
            if len == 1 {
                shape.push(dims[0].clone());
                strides.push(steps[0].clone());
                continue;
            }
            // Axes of extent 1 do not matter; of the others, each must step over the whole of the next.
            let one = Dim::from(1);
            let real: Vec<usize> = (0..len).filter(|&i| dims[i] != one).collect();
            if real.windows(2).any(|w| steps[w[0]] != &steps[w[1]] * &dims[w[1]]) {
                return None;
            }
            shape.push(Dim::product(dims));
            strides.push(real.last().map_or(Dim::from(1), |&i| steps[i].clone()));
        }
        let scales = self.scales.as_ref().map(|scales| scales.merge(&self.shape, groups).map(Box::new));
        let scales = scales.map_or(Some(None), |merged| merged.map(Some))?;
        Some(BufView { shape, strides, scales, ..self.clone() })
    }

    /// Whether bulk copies can bring boxes of it to tensor cores: 16-bit floats, `tf32` or codes, at most five axes, neighbours
    /// along one of them, and multiples of 16 bytes between neighbours along the others.
    pub fn is_bulk(&self) -> bool {
        if let Some(pool) = self.pool() {
            return pool.is_bulk();
        }
        let narrow = matches!(self.dtype, DType::Bf16 | DType::F16 | DType::Tf32);
        (narrow || self.dtype.is_f8() && self.scales.is_none()) && self.is_aligned()
    }

    /// The same of any type: at most five axes, neighbours along one, and multiples of 16 bytes along the others.
    pub fn is_aligned(&self) -> bool {
        let bytes = self.dtype.bytes();
        let aligned = |dim: &Dim| dim.terms().all(|(_, n)| n * bytes % 16 == 0);
        let one = Dim::from(1);
        let real = |axis: &usize| self.shape[*axis] != one;
        let mut steps =
            (0..self.shape.len()).filter(real).map(|axis| &self.strides[axis]).collect::<Vec<_>>();
        let near = steps.iter().position(|step| **step == one);
        near.map(|at| steps.remove(at));
        self.shape.len() <= 5 && near.is_some() && aligned(&self.offset) && steps.into_iter().all(aligned)
    }

    /// The view in another shape with as many elements; `None` where strides cannot say it.
    pub fn reshape(&self, shape: &[Dim]) -> Option<BufView> {
        if self.pages.is_some() {
            return self.reshape_rows(shape);
        }
        let strides = if self.is_row_major() {
            row_major_strides(shape)
        } else {
            reshape_strides(&self.shape, &self.strides, shape)?
        };
        let scales = self.scales.as_ref().map(|scales| scales.reshape(&self.shape, shape).map(Box::new));
        let scales = scales.map_or(Some(None), |reshaped| reshaped.map(Some))?;
        Some(BufView { shape: shape.to_vec(), strides, scales, ..self.clone() })
    }
}

/// Distances in a tensor without gaps, last axis fastest.
pub fn row_major_strides(shape: &[Dim]) -> Vec<Dim> {
    let mut strides = vec![Dim::from(1); shape.len()];
    for i in (0..shape.len().saturating_sub(1)).rev() {
        strides[i] = &strides[i + 1] * &shape[i + 1];
    }
    strides
}

/// Strides of `new` over a tensor of `old` extents and `strides`: pairs off runs of axes with equal products.
fn reshape_strides(old: &[Dim], strides: &[Dim], new: &[Dim]) -> Option<Vec<Dim>> {
    let (mut out, mut i, mut j) = (Vec::new(), 0, 0);
    while j < new.len() || i < old.len() {
        let (i0, j0) = (i, j);
        // Grow both runs until their products agree; extents are positive, so a longer run cannot shrink.
        let (mut a, mut b) = (Dim::from(1), Dim::from(1));
        loop {
            if i > i0 && j > j0 && a == b {
                break;
            }
            let grow_old = i < old.len() && (i == i0 || divides(&a, &b) || j == new.len());
            if grow_old {
                a = a * old[i].clone();
                i += 1;
            } else if j < new.len() {
                b = b * new[j].clone();
                j += 1;
            } else {
                break;
            }
        }
        if a != b {
            return None;
        }
        let run = BufView {
            base: 0,
            name: String::new(),
            dtype: DType::F32,
            shape: old[i0..i].to_vec(),
            strides: strides[i0..i].to_vec(),
            offset: Dim::from(0),
            pages: None,
            scales: None,
        };
        let step = if i > i0 { run.merge(&[i - i0])?.strides.remove(0) } else { Dim::from(1) };
        out.extend(row_major_strides(&new[j0..j]).iter().map(|s| s * &step));
    }
    Some(out)
}

/// Whether `a` is a strict divisor of `b`, as far as can be seen: every new extent reached so far covers more.
fn divides(a: &Dim, b: &Dim) -> bool {
    match (a.as_const(), b.as_const()) {
        (Some(a), Some(b)) => a < b,
        _ => {
            let degree = |d: &Dim| d.terms().map(|(m, _)| m.len()).max().unwrap_or(0);
            let size = |d: &Dim| d.terms().map(|(_, n)| n).sum::<i64>();
            (degree(a), size(a)) < (degree(b), size(b))
        }
    }
}

/// Where along one axis of a value a tile lies.
#[derive(Clone, Copy)]
pub enum Coord<'k> {
    /// At one index.
    At(Tile<'k>),
    /// The tile's rows run along this axis, from this index on.
    Rows(Tile<'k>),
    /// The tile's columns run along this axis, from this index on.
    Cols(Tile<'k>),
}

impl<'k> Coord<'k> {
    /// The index of the tile's first element.
    pub fn start(self) -> Tile<'k> {
        match self {
            Coord::At(i) | Coord::Rows(i) | Coord::Cols(i) => i,
        }
    }

    /// The coordinate `by` further on.
    pub fn shift(self, by: Tile<'k>) -> Self {
        match self {
            Coord::At(i) => Coord::At(i + by),
            Coord::Rows(i) => Coord::Rows(i + by),
            Coord::Cols(i) => Coord::Cols(i + by),
        }
    }
}

/// Which tile of a value is wanted: a coordinate for each axis; at most one has the rows and one the columns.
#[derive(Clone)]
pub struct Request<'k> {
    /// One for each axis of the value.
    pub coords: Vec<Coord<'k>>,
    /// The number of rows; 1 if no axis has them.
    pub rows: usize,
    /// The number of columns; 1 if no axis has them.
    pub cols: usize,
    /// Axes with an end of their own: elements from there on are not wanted, and are not written.
    pub limits: Vec<(usize, Tile<'k>)>,
}

impl<'k> Request<'k> {
    /// A single row: columns from `first` along the last axis, and one index for each axis before it.
    pub fn row(leading: &[Tile<'k>], first: Tile<'k>, cols: usize) -> Self {
        let coords = leading.iter().map(|&i| Coord::At(i)).chain([Coord::Cols(first)]).collect();
        Self { coords, rows: 1, cols, limits: Vec::new() }
    }

    /// A single element.
    pub fn element(index: &[Tile<'k>]) -> Self {
        Self { coords: index.iter().map(|&i| Coord::At(i)).collect(), rows: 1, cols: 1, limits: Vec::new() }
    }

    /// The axes that rows and columns run along.
    pub fn axes(&self) -> [Option<usize>; 2] {
        let find = |want: fn(&Coord) -> bool| self.coords.iter().position(want);
        [find(|c| matches!(c, Coord::Rows(_))), find(|c| matches!(c, Coord::Cols(_)))]
    }

    /// The request with other coordinates; its shape follows from which of them have rows and columns.
    pub fn with_coords(&self, coords: Vec<Coord<'k>>) -> Self {
        let mut new = Request { coords, rows: self.rows, cols: self.cols, limits: Vec::new() };
        let [rows, cols] = new.axes();
        new.rows = if rows.is_some() { self.rows } else { 1 };
        new.cols = if cols.is_some() { self.cols } else { 1 };
        new
    }

    /// The part of an operand of `shape` that a right-aligned broadcast needs for this tile.
    pub fn broadcast(&self, cx: &Cx<'k>, shape: &[Dim]) -> Self {
        let lead = self.coords.len() - shape.len();
        let coord = |(&coord, dim): (&Coord<'k>, &Dim)| {
            if dim.as_const() == Some(1) { Coord::At(cx.k.int(0)) } else { coord }
        };
        self.with_coords(self.coords[lead..].iter().zip(shape).map(coord).collect())
    }
}

/// Computes a tile of a value.
pub type TileFn<'k> = Rc<dyn Fn(&Request<'k>) -> Result<Tile<'k>, LowerError> + 'k>;

/// An operand, as a kernel sees it.
#[derive(Clone)]
pub struct View<'k> {
    /// Its type; the shape is that which requests are made in.
    pub ty: TensorType,
    /// Computes any tile of it.
    pub tile: TileFn<'k>,
    /// The tensor in memory, if that is all it is (a cast from the type in memory aside).
    pub buffer: Option<BufView>,
    /// The axis along which elements are neighbours in memory, where that is certain and not the last one.
    pub near: Option<usize>,
}

impl<'k> View<'k> {
    /// The tile that `at` asks for.
    pub fn at(&self, at: &Request<'k>) -> Result<Tile<'k>, LowerError> {
        (self.tile)(at)
    }

    /// The tensor in memory, for an op that must have it there.
    pub fn memory(&self) -> Result<&BufView, LowerError> {
        self.buffer.as_ref().ok_or_else(|| LowerError::new("an operand of a product is not in memory"))
    }
}

/// What a lowering works with.
pub struct Cx<'k> {
    /// The kernel being written.
    pub k: &'k Build,
    /// The tile sizes.
    pub schedule: &'k Schedule,
    /// The parts of the op's result type.
    pub out: Vec<TensorType>,
    /// The value of an extent that is fixed for the module.
    pub constant: &'k dyn Fn(&Dim) -> Option<i64>,
    /// Adds a buffer to the kernel, to be read.
    pub read: &'k dyn Fn(&BufView) -> Buf,
    /// The buffer of a part of the result, for an op that writes to places it computes: nothing is fused behind it. Of
    /// 8-bit floats part 0 is the codes, part 1 the scales.
    pub write: &'k dyn Fn(usize) -> Buf,
    /// Applies what is fused behind the op to a tile of part `.0` of its result, and stores it.
    pub emit: &'k EmitFn<'k>,
    /// Which of the kernels for few rows this is, if it is one.
    pub few: Option<&'k FewRows>,
    /// Says how many rows the op has, among how many experts, and whether it has experts at all: it is then lowered for
    /// few rows too.
    pub by_rows: &'k dyn Fn(&Dim, i64, bool),
    /// Where each expert's rows begin if they are whole blocks of so many (`.1`), as `align_offsets` has it of the op's operand
    /// `.0`: computed before this kernel, for whoever has use for it.
    pub aligned: &'k dyn Fn(usize, i64) -> BufView,
    /// Whether this is the kernel for the last columns, which fill no tile.
    pub rest: bool,
    /// Says that the last columns had better be another kernel's; whether they will be.
    pub by_columns: &'k dyn Fn() -> bool,
    /// Into how many parts the op divides what it sums over, if it does: it emits, for each part, what it would
    /// for the whole, and what joins them, with the part as a first axis of each.
    pub parts: Option<usize>,
    /// Says how many terms a product by the ordinary units sums, and how many elements its result has: it is then lowered in
    /// parts too, where the schedule says so.
    pub by_terms: &'k dyn Fn(&Dim, &Dim),
    /// Says how many queries attention has: it is then lowered for few of them too, in parts.
    pub by_parts: &'k dyn Fn(&Dim),
    /// Asks that emitted requests see these groups of neighbouring axes of part 0 as one; see [`BufView::merge`].
    pub merge_out: &'k dyn Fn(&[usize]) -> bool,
}

/// See [`Cx::emit`].
pub type EmitFn<'k> = dyn Fn(usize, &Request<'k>, Tile<'k>) -> Result<(), LowerError> + 'k;

impl<'k> Cx<'k> {
    /// The fixed value of an extent.
    pub fn size(&self, dim: &Dim) -> Option<usize> {
        (self.constant)(dim).and_then(|n| usize::try_from(n).ok())
    }

    /// The tile sizes of a product of these operands, in this kernel.
    pub fn product_of(&self, operands: &[&BufView]) -> [usize; 3] {
        match self.few {
            Some(few) => TensorSchedule::of(few.product, operands),
            None => self.schedule.product_of(operands),
        }
    }

    /// The fixed value of an extent, for an op that cannot do without.
    pub fn fixed(&self, dim: &Dim, what: &str) -> Result<usize, LowerError> {
        let message =
            || format!("{what} is `{dim}`, which has no fixed value: give it one with `dim {dim} = …`");
        self.size(dim).ok_or_else(|| LowerError::new(message()))
    }

    /// The value of an extent at run time; a constant if it is fixed.
    pub fn extent(&self, dim: &Dim) -> Tile<'k> {
        match (self.constant)(dim) {
            Some(n) => self.k.int(n),
            None => self.k.extent(dim),
        }
    }

    /// One program for each index of `dim`; the index.
    pub fn program(&self, dim: &Dim) -> Tile<'k> {
        self.k.program(dim.clone(), 1)
    }

    /// One program for each `tile` indices of `dim`; the first index of this one's.
    pub fn program_tile(&self, dim: &Dim, tile: usize) -> Tile<'k> {
        self.k.program(dim.clone(), tile as i64) * tile as i64
    }

    /// A program for each index of each of `shape`'s axes; the indices.
    pub fn programs(&self, shape: &[Dim]) -> Vec<Tile<'k>> {
        shape.iter().map(|dim| self.program(dim)).collect()
    }

    /// Loads the tile of a tensor in memory that `at` asks for.
    pub fn load(&self, view: &BufView, at: &Request<'k>) -> Tile<'k> {
        if view.pages.is_some() {
            return self.load_paged(view, at);
        }
        let buf = (self.read)(view);
        let index: Vec<Tile<'k>> = at.coords.iter().map(|c| c.start()).collect();
        self.k.load(buf, &index, at.axes(), [at.rows, at.cols], &at.limits)
    }

    /// Hands over a tile of the op's only result.
    pub fn emit(&self, at: &Request<'k>, tile: Tile<'k>) -> Result<(), LowerError> {
        (self.emit)(0, at, tile)
    }
}
