//! Writing kernels with ordinary arithmetic: [`Build`] records instructions, a [`Tile`] is a register.
//!
//! ```
//! use eva_ir::{dim::Dim, kernel::{Access, BufData, build::Build}, types::DType};
//! let buf = |name: &str, access| BufData {
//!     name: name.into(), dtype: DType::F32, access,
//!     shape: vec![Dim::sym("t"), Dim::from(7)], strides: vec![Dim::from(7), Dim::from(1)], offset: Dim::from(0),
//!     scaled: None,
//! };
//! // Every row divided by its largest element.
//! let k = Build::new("scale_rows");
//! let (x, y) = (k.buf(buf("x", Access::Read)), k.buf(buf("y", Access::Write)));
//! let (row, zero) = (k.program(Dim::sym("t"), 1), k.int(0));
//! let tile = k.load(x, &[row, zero], [None, Some(1)], [1, 7], &[]);
//! k.store(y, &[row, zero], [None, Some(1)], &[], tile / tile.max_along(1));
//! let kernel = k.finish();
//! ```

use super::*;
use std::cell::RefCell;
use std::ops::{Add, Div, Mul, Neg, Rem, Sub};

/// A kernel being written, in the tile phase.
pub struct Build {
    kernel: RefCell<Kernel>,
    /// The innermost open block is last.
    blocks: RefCell<Vec<Vec<Inst>>>,
}

/// A register of a kernel being written.
#[derive(Clone, Copy)]
pub struct Tile<'k> {
    k: &'k Build,
    /// The register.
    pub reg: Reg,
}

impl Build {
    /// An empty kernel.
    pub fn new(name: &str) -> Self {
        let kernel = Kernel {
            name: name.into(),
            phase: Phase::Tile,
            bufs: Arena::default(),
            scratch: Arena::default(),
            block: None,
            grid: Vec::new(),
            regs: Arena::default(),
            body: Vec::new(),
        };
        Self { kernel: RefCell::new(kernel), blocks: RefCell::new(vec![Vec::new()]) }
    }

    /// The finished kernel.
    pub fn finish(self) -> Kernel {
        let mut kernel = self.kernel.into_inner();
        kernel.body = self.blocks.into_inner().pop().unwrap_or_default();
        kernel
    }

    /// Adds a buffer, or finds the one just like it.
    pub fn buf(&self, data: BufData) -> Buf {
        self.buf_among(data, |_| true)
    }

    /// The same, where only buffers that `may` be are the same: others may look alike and be elsewhere.
    pub fn buf_among(&self, data: BufData, may: impl Fn(Buf) -> bool) -> Buf {
        let is_it = |(buf, have): &(Buf, &BufData)| **have == data && may(*buf);
        let found = self.kernel.borrow().bufs.iter().find(is_it).map(|(buf, _)| buf);
        found.unwrap_or_else(|| self.kernel.borrow_mut().bufs.push(data))
    }

    /// Adds a grid axis of `ceil(extent / tile)` programs; this program's index along it.
    pub fn program(&self, extent: Dim, tile: i64) -> Tile<'_> {
        self.kernel.borrow_mut().grid.push(GridAxis { extent, tile });
        let axis = self.kernel.borrow().grid.len() - 1;
        self.emit(RegType::scalar(Elem::I64), |out| Inst::Program { out, axis })
    }

    /// The value of an extent.
    pub fn extent(&self, dim: &Dim) -> Tile<'_> {
        match dim.as_const() {
            Some(n) => self.int(n),
            None => self.emit(RegType::scalar(Elem::I64), |out| Inst::Extent { out, dim: dim.clone() }),
        }
    }

    /// An integer.
    pub fn int(&self, value: i64) -> Tile<'_> {
        self.emit(RegType::scalar(Elem::I64), |out| Inst::Const { out, value: Const::I(value) })
    }

    /// A float.
    pub fn float(&self, value: f64) -> Tile<'_> {
        self.full([1, 1], value)
    }

    /// A tile of one float.
    pub fn full(&self, [rows, cols]: [usize; 2], value: f64) -> Tile<'_> {
        self.emit(RegType { elem: Elem::F32, rows, cols }, |out| Inst::Const { out, value: Const::F(value) })
    }

    /// `0, 1, …, n - 1` along the rows (axis 0) or columns (axis 1).
    pub fn iota(&self, axis: usize, n: usize) -> Tile<'_> {
        let (rows, cols) = if axis == 0 { (n, 1) } else { (1, n) };
        self.emit(RegType { elem: Elem::I64, rows, cols }, |out| Inst::Iota { out, axis })
    }

    /// A rectangle of `buf`; see [`Place`].
    pub fn load<'k>(
        &'k self,
        buf: Buf,
        at: &[Tile<'k>],
        axes: [Option<usize>; 2],
        [rows, cols]: [usize; 2],
        limits: &[(usize, Tile<'k>)],
    ) -> Tile<'k> {
        let elem = self.elem_of(buf);
        let place = place(buf, at, axes, limits);
        self.emit(RegType { elem, rows, cols }, |out| Inst::Load { out, place })
    }

    /// One element of `buf`.
    pub fn load_scalar<'k>(&'k self, buf: Buf, at: &[Tile<'k>]) -> Tile<'k> {
        self.load(buf, at, [None, None], [1, 1], &[])
    }

    /// Elements of `buf` at `at`, each shifted along `axis` by its own index.
    pub fn gather<'k>(&'k self, buf: Buf, at: &[Tile<'k>], axis: usize, index: Tile<'k>) -> Tile<'k> {
        let ty = index.ty();
        self.gather_tile(buf, at, [None, None], [ty.rows, ty.cols], &[], (axis, index))
    }

    /// A rectangle of `buf`, each element shifted along an axis by its own index; where the index has one row, or one
    /// column, all of the rectangle's have that.
    pub fn gather_tile<'k>(
        &'k self,
        buf: Buf,
        at: &[Tile<'k>],
        axes: [Option<usize>; 2],
        [rows, cols]: [usize; 2],
        limits: &[(usize, Tile<'k>)],
        (axis, index): (usize, Tile<'k>),
    ) -> Tile<'k> {
        let (elem, place) = (self.elem_of(buf), place(buf, at, axes, limits));
        let ty = RegType { elem, rows, cols };
        self.emit(ty, |out| Inst::Gather { out, place, axis, index: index.reg })
    }

    /// Writes a rectangle of `buf`; see [`Place`].
    pub fn store<'k>(
        &'k self,
        buf: Buf,
        at: &[Tile<'k>],
        axes: [Option<usize>; 2],
        limits: &[(usize, Tile<'k>)],
        value: Tile<'k>,
    ) {
        self.push(Inst::Store { place: place(buf, at, axes, limits), value: value.reg });
    }

    /// Writes each element of `value` where `mask` holds, at `at` shifted along `axis` by its own index.
    pub fn scatter<'k>(
        &'k self,
        buf: Buf,
        at: &[Tile<'k>],
        axis: usize,
        index: Tile<'k>,
        value: Tile<'k>,
        mask: Tile<'k>,
    ) {
        let place = place(buf, at, [None, None], &[]);
        self.push(Inst::Scatter { place, axis, index: index.reg, value: value.reg, mask: mask.reg });
    }

    /// A loop that carries tiles from trip to trip; their values after the last.
    pub fn fold<'k, const N: usize>(
        &'k self,
        trips: Tile<'k>,
        init: [Tile<'k>; N],
        body: impl FnOnce(Tile<'k>, [Tile<'k>; N]) -> [Tile<'k>; N],
    ) -> [Tile<'k>; N] {
        let outs =
            self.fold_all(trips, &init, |index, args| body(index, std::array::from_fn(|i| args[i])).to_vec());
        std::array::from_fn(|i| outs[i])
    }

    /// The same with any number of tiles; `body` gives as many as it gets.
    pub fn fold_all<'k>(
        &'k self,
        trips: Tile<'k>,
        init: &[Tile<'k>],
        body: impl FnOnce(Tile<'k>, &[Tile<'k>]) -> Vec<Tile<'k>>,
    ) -> Vec<Tile<'k>> {
        let index = self.reg(RegType::scalar(Elem::I64));
        let like = || init.iter().map(|tile| self.reg(tile.ty())).collect::<Vec<_>>();
        let (args, outs) = (like(), like());
        self.blocks.borrow_mut().push(Vec::new());
        let next = body(index, &args);
        let body = self.blocks.borrow_mut().pop().expect("this block was opened above");
        let carried =
            |i: usize| Carried { init: init[i].reg, arg: args[i].reg, next: next[i].reg, out: outs[i].reg };
        let carried = (0..init.len()).map(carried).collect();
        self.push(Inst::For { index: index.reg, trips: trips.reg, carried, body });
        outs
    }

    /// A loop that carries nothing.
    pub fn repeat<'k>(&'k self, trips: Tile<'k>, body: impl FnOnce(Tile<'k>)) {
        self.fold(trips, [], |i, []| {
            body(i);
            []
        });
    }

    /// What a load from `buf` gives.
    fn elem_of(&self, buf: Buf) -> Elem {
        if self.kernel.borrow().bufs[buf].dtype.is_int() { Elem::I64 } else { Elem::F32 }
    }

    fn reg(&self, ty: RegType) -> Tile<'_> {
        Tile { k: self, reg: self.kernel.borrow_mut().regs.push(ty) }
    }

    fn push(&self, inst: Inst) {
        self.blocks.borrow_mut().last_mut().expect("the outermost block stays open").push(inst);
    }

    fn emit(&self, ty: RegType, inst: impl FnOnce(Reg) -> Inst) -> Tile<'_> {
        let out = self.reg(ty);
        self.push(inst(out.reg));
        out
    }
}

fn place(buf: Buf, at: &[Tile<'_>], axes: [Option<usize>; 2], limits: &[(usize, Tile<'_>)]) -> Place {
    let limits = limits.iter().map(|(axis, end)| (*axis, end.reg)).collect();
    Place { buf, at: at.iter().map(|t| t.reg).collect(), axes, limits }
}

impl<'k> Tile<'k> {
    /// The register's type.
    pub fn ty(self) -> RegType {
        self.k.kernel.borrow().regs[self.reg]
    }

    /// The kernel being written.
    pub fn build(self) -> &'k Build {
        self.k
    }

    fn map(self, f: Fn1) -> Self {
        self.k.emit(self.ty(), |out| Inst::Map { out, f, x: self.reg })
    }

    fn zip(self, f: Fn2, y: Self) -> Self {
        let (a, b) = (self.ty(), y.ty());
        let elem = if f.is_predicate() { Elem::Bool } else { a.elem };
        let ty = RegType { elem, rows: a.rows.max(b.rows), cols: a.cols.max(b.cols) };
        self.k.emit(ty, |out| Inst::Zip { out, f, x: self.reg, y: y.reg })
    }

    fn reduce(self, f: Fn2, axis: usize) -> Self {
        let ty = self.ty();
        let ty = if axis == 0 { RegType { rows: 1, ..ty } } else { RegType { cols: 1, ..ty } };
        self.k.emit(ty, |out| Inst::Reduce { out, f, axis, x: self.reg })
    }

    /// `e^x`.
    pub fn exp(self) -> Self {
        self.map(Fn1::Exp)
    }
    /// `2^x`, less exactly than [`Self::exp`].
    pub fn exp2(self) -> Self {
        self.map(Fn1::Exp2)
    }
    /// The natural logarithm.
    pub fn log(self) -> Self {
        self.map(Fn1::Log)
    }
    /// The square root.
    pub fn sqrt(self) -> Self {
        self.map(Fn1::Sqrt)
    }
    /// `1/√x`.
    pub fn rsqrt(self) -> Self {
        self.map(Fn1::Rsqrt)
    }
    /// `1/x`.
    pub fn recip(self) -> Self {
        self.map(Fn1::Recip)
    }
    /// The sine.
    pub fn sin(self) -> Self {
        self.map(Fn1::Sin)
    }
    /// The cosine.
    pub fn cos(self) -> Self {
        self.map(Fn1::Cos)
    }
    /// `1/(1 + e^-x)`.
    pub fn sigmoid(self) -> Self {
        ((-self).exp() + 1.0).recip()
    }
    /// The opposite truth value.
    #[expect(clippy::should_implement_trait, reason = "it stands in chains with `and` and `or`")]
    pub fn not(self) -> Self {
        self.map(Fn1::Not)
    }
    /// The larger of two.
    pub fn max(self, y: Self) -> Self {
        self.zip(Fn2::Max, y)
    }
    /// `self / y`, which is rounded to 8 bits next; see [`Fn2::Quotient`].
    pub fn quotient(self, y: Self) -> Self {
        self.zip(Fn2::Quotient, y)
    }
    /// The smaller of two.
    pub fn min(self, y: Self) -> Self {
        self.zip(Fn2::Min, y)
    }
    /// `self < y`.
    pub fn lt(self, y: Self) -> Self {
        self.zip(Fn2::Lt, y)
    }
    /// `self <= y`.
    pub fn le(self, y: Self) -> Self {
        self.zip(Fn2::Le, y)
    }
    /// `self == y`.
    pub fn equals(self, y: Self) -> Self {
        self.zip(Fn2::Eq, y)
    }
    /// Both.
    pub fn and(self, y: Self) -> Self {
        self.zip(Fn2::And, y)
    }
    /// Either.
    pub fn or(self, y: Self) -> Self {
        self.zip(Fn2::Or, y)
    }
    /// `x` where this holds, else `y`.
    pub fn select(self, x: Self, y: Self) -> Self {
        let (c, a, b) = (self.ty(), x.ty(), y.ty());
        let ty = RegType { rows: c.rows.max(a.rows).max(b.rows), cols: c.cols.max(a.cols).max(b.cols), ..a };
        self.k.emit(ty, |out| Inst::Select { out, cond: self.reg, x: x.reg, y: y.reg })
    }
    /// Sums over the rows (axis 0) or columns (axis 1), leaving extent 1.
    pub fn sum_along(self, axis: usize) -> Self {
        self.reduce(Fn2::Add, axis)
    }
    /// The largest along an axis.
    pub fn max_along(self, axis: usize) -> Self {
        self.reduce(Fn2::Max, axis)
    }
    /// The smallest along an axis.
    pub fn min_along(self, axis: usize) -> Self {
        self.reduce(Fn2::Min, axis)
    }
    /// Sums along the columns up to and including each element.
    pub fn cumulative_sum(self) -> Self {
        self.k.emit(self.ty(), |out| Inst::Scan { out, x: self.reg })
    }
    /// As another element type; see [`Inst::Cast`].
    pub fn cast(self, elem: Elem) -> Self {
        if self.ty().elem == elem {
            return self;
        }
        self.k.emit(RegType { elem, ..self.ty() }, |out| Inst::Cast { out, x: self.reg })
    }
    /// Rounded to the values of `to`; nothing happens for types at least as fine as `f32`.
    pub fn round(self, to: DType) -> Self {
        match to {
            DType::F32 | DType::F64 | DType::I32 | DType::I64 => self,
            to => self.k.emit(self.ty(), |out| Inst::Round { out, x: self.reg, to }),
        }
    }
    /// Rounded to `f32`, also where an interpreter computes in `f64`: for what one bit decides.
    pub fn single(self) -> Self {
        self.k.emit(self.ty(), |out| Inst::Round { out, x: self.reg, to: DType::F32 })
    }
    /// The columns in another order.
    pub fn columns(self, order: ColumnOrder) -> Self {
        self.k.emit(self.ty(), |out| Inst::Columns { out, x: self.reg, order })
    }
    /// The same elements, row by row, in another shape.
    pub fn reshape(self, [rows, cols]: [usize; 2]) -> Self {
        self.k.emit(RegType { rows, cols, ..self.ty() }, |out| Inst::Reshape { out, x: self.reg })
    }
    /// `self + x · yᵀ`.
    pub fn add_dot(self, x: Self, y: Self) -> Self {
        self.k.emit(self.ty(), |out| Inst::Dot { out, acc: self.reg, x: x.reg, y: y.reg })
    }
    /// The value of an integer constant, as far as can be seen here.
    pub fn as_int(self) -> Option<i64> {
        self.k.blocks.borrow().iter().flatten().rev().find_map(|inst| match inst {
            Inst::Const { out, value: Const::I(n) } if *out == self.reg => Some(*n),
            _ => None,
        })
    }
    /// `ceil(self / n)`, of an integer.
    pub fn div_ceil(self, n: i64) -> Self {
        (self + (n - 1)) / n
    }
}

impl Neg for Tile<'_> {
    type Output = Self;
    fn neg(self) -> Self {
        self.map(Fn1::Neg)
    }
}

macro_rules! arithmetic {
    ($($Op:ident $op:ident),*) => {$(
        impl<'k> $Op for Tile<'k> {
            type Output = Tile<'k>;
            fn $op(self, y: Tile<'k>) -> Tile<'k> { self.zip(Fn2::$Op, y) }
        }
        impl<'k> $Op<f64> for Tile<'k> {
            type Output = Tile<'k>;
            fn $op(self, y: f64) -> Tile<'k> { self.zip(Fn2::$Op, self.k.float(y)) }
        }
        impl<'k> $Op<i64> for Tile<'k> {
            type Output = Tile<'k>;
            fn $op(self, y: i64) -> Tile<'k> { self.zip(Fn2::$Op, self.k.int(y)) }
        }
    )*};
}
arithmetic!(Add add, Sub sub, Mul mul, Div div, Rem rem);
