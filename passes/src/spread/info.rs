//! What can be known of a tile kernel's registers: where they are defined, how large an index may become, and which
//! elements of a rectangle may lie outside its buffer.

use super::SpreadError;
use super::walk::result;
use eva_ir::dim::Dim;
use eva_ir::entity::Entity;
use eva_ir::kernel::{Const, Fn2, GridAxis, Inst, Kernel, Place, Reg, RegType};
use std::cell::RefCell;
use std::collections::HashMap;

/// How a register gets its value.
#[derive(Clone, Copy)]
pub(super) enum Def<'a> {
    /// By this instruction.
    Inst(&'a Inst),
    /// It is a loop's index; the number of trips.
    Index(Reg),
    /// It is carried round this loop: what the body calls it, or what it is after the loop.
    Carried(&'a Inst),
}

/// Where an axis ends, or that it begins at zero.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum End {
    /// An index must be at least zero.
    Low,
    /// An index must be less than this extent.
    Dim(Dim),
    /// An index must be less than this `i64` scalar.
    Reg(Reg),
}

/// Which elements of a tile a [`Check`] is about.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Along {
    /// Row `r` is at `at + r`.
    Row,
    /// Column `c` is at `at + c`.
    Col,
    /// All elements are at `at`.
    All,
}

/// What must hold for an element to be inside its buffer.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Check {
    /// Which elements it is about.
    pub along: Along,
    /// The index of the first.
    pub at: Reg,
    /// What the index must respect.
    pub end: End,
}

/// Facts about one kernel.
pub(super) struct Info<'a> {
    /// The kernel.
    pub kernel: &'a Kernel,
    defs: Vec<Option<Def<'a>>>,
    block: Vec<usize>,
    parent: Vec<usize>,
    ranges: RefCell<HashMap<Reg, (i64, i64)>>,
}

/// The longest chain of operands that is followed to bound an index.
const DEEPEST: usize = 100;

/// No bound.
const LEAST: i64 = i64::MIN;
/// No bound.
const MOST: i64 = i64::MAX;

impl<'a> Info<'a> {
    /// The facts about `kernel`.
    pub fn new(kernel: &'a Kernel) -> Self {
        let n = kernel.regs.len();
        let mut info = Info {
            kernel,
            defs: vec![None; n],
            block: vec![0; n],
            parent: vec![0],
            ranges: RefCell::default(),
        };
        info.visit(&kernel.body, 0);
        info
    }

    fn define(&mut self, reg: Reg, def: Def<'a>, block: usize) {
        if reg.index() < self.defs.len() {
            self.defs[reg.index()] = Some(def);
            self.block[reg.index()] = block;
        }
    }

    fn visit(&mut self, body: &'a [Inst], block: usize) {
        for inst in body {
            match inst {
                inst @ Inst::For { index, trips, carried, body } => {
                    let inner = self.parent.len();
                    self.parent.push(block);
                    self.define(*index, Def::Index(*trips), inner);
                    for c in carried {
                        self.define(c.arg, Def::Carried(inst), inner);
                        self.define(c.out, Def::Carried(inst), block);
                    }
                    self.visit(body, inner);
                }
                inst => {
                    if let Some(reg) = result(inst) {
                        self.define(reg, Def::Inst(inst), block);
                    }
                }
            }
        }
    }

    /// The register's type.
    pub fn ty(&self, reg: Reg) -> RegType {
        self.kernel.regs[reg]
    }

    /// How the register is defined.
    pub fn def(&self, reg: Reg) -> Result<Def<'a>, SpreadError> {
        let def = self.defs.get(reg.index()).copied().flatten();
        def.ok_or_else(|| SpreadError::Malformed(format!("{reg} is used but not defined")))
    }

    /// The instruction that defines the register, if it is one.
    pub fn inst(&self, reg: Reg) -> Option<&'a Inst> {
        match self.defs.get(reg.index()).copied().flatten() {
            Some(Def::Inst(inst)) => Some(inst),
            _ => None,
        }
    }

    /// The block that the register is defined in; the outermost is 0.
    pub fn block(&self, reg: Reg) -> usize {
        self.block[reg.index()]
    }

    /// Whether `inner` is `outer` or somewhere inside it.
    pub fn is_within(&self, mut inner: usize, outer: usize) -> bool {
        loop {
            if inner == outer {
                return true;
            }
            if inner == 0 {
                return false;
            }
            inner = self.parent[inner];
        }
    }

    /// The register's value, if it is an integer known now.
    pub fn constant(&self, reg: Reg) -> Option<i64> {
        match self.range(reg) {
            (lo, hi) if lo == hi => Some(lo),
            _ => None,
        }
    }

    /// Bounds of an `i64` scalar's value; the ends of `i64` where none are known.
    pub fn range(&self, reg: Reg) -> (i64, i64) {
        self.range_within(reg, DEEPEST)
    }

    /// [`Self::range`], following this many operands.
    fn range_within(&self, reg: Reg, depth: usize) -> (i64, i64) {
        if let Some(&range) = self.ranges.borrow().get(&reg) {
            return range;
        }
        let Some(depth) = depth.checked_sub(1) else { return (LEAST, MOST) };
        let (lo, hi) = self.find_range(reg, depth).unwrap_or((LEAST, MOST));
        let range = if lo <= hi { (lo, hi) } else { (LEAST, MOST) };
        self.ranges.borrow_mut().insert(reg, range);
        range
    }

    fn find_range(&self, reg: Reg, depth: usize) -> Option<(i64, i64)> {
        let inst = match self.defs.get(reg.index()).copied().flatten()? {
            Def::Inst(inst) => inst,
            Def::Index(trips) => return Some((0, less_one(self.range_within(trips, depth).1))),
            Def::Carried(_) => return None,
        };
        match inst {
            Inst::Const { value: Const::I(n), .. } => Some((*n, *n)),
            Inst::Program { axis, .. } => {
                let GridAxis { extent, tile } = self.kernel.grid.get(*axis)?;
                let last = extent.as_const().map_or(MOST, |n| n.saturating_sub(1).max(0) / (*tile).max(1));
                Some((0, last))
            }
            Inst::Extent { dim, .. } => Some(dim_range(dim)),
            Inst::Zip { f, x, y, .. } => {
                let (a, b) = (self.range_within(*x, depth), self.range_within(*y, depth));
                let open = |v: i64| v == LEAST || v == MOST;
                match f {
                    Fn2::Add => Some((add(a.0, b.0), add(a.1, b.1))),
                    Fn2::Sub => Some((add(a.0, negative(b.1)), add(a.1, negative(b.0)))),
                    Fn2::Mul if b.0 == b.1 && b.0 >= 0 && !open(b.0) => {
                        Some((times(a.0, b.0), times(a.1, b.0)))
                    }
                    Fn2::Mul if a.0 == a.1 && a.0 >= 0 && !open(a.0) => {
                        Some((times(b.0, a.0), times(b.1, a.0)))
                    }
                    Fn2::Mul if a.0 >= 0 && b.0 >= 0 => Some((times(a.0, b.0), times(a.1, b.1))),
                    Fn2::Div if a.0 >= 0 && b.0 >= 1 => Some((
                        if b.1 == MOST { 0 } else { a.0 / b.1 },
                        if a.1 == MOST { MOST } else { a.1 / b.0 },
                    )),
                    Fn2::Rem if b.0 >= 1 => Some((0, less_one(b.1))),
                    Fn2::Min => Some((a.0.min(b.0), a.1.min(b.1))),
                    Fn2::Max => Some((a.0.max(b.0), a.1.max(b.1))),
                    _ => None,
                }
            }
            Inst::Select { x, y, .. } => {
                let (a, b) = (self.range_within(*x, depth), self.range_within(*y, depth));
                Some((a.0.min(b.0), a.1.max(b.1)))
            }
            _ => None,
        }
    }

    /// Whether an `i64` scalar's value is certainly a multiple of `n`.
    pub fn is_multiple(&self, reg: Reg, n: i64) -> bool {
        self.is_multiple_within(reg, n, DEEPEST)
    }

    fn is_multiple_within(&self, reg: Reg, n: i64, depth: usize) -> bool {
        let Some(depth) = depth.checked_sub(1) else { return false };
        let of = |reg: &Reg| self.is_multiple_within(*reg, n, depth);
        match self.inst(reg) {
            Some(Inst::Const { value: Const::I(value), .. }) => value % n == 0,
            Some(Inst::Extent { dim, .. }) => is_multiple(dim, n),
            Some(Inst::Zip { f: Fn2::Mul, x, y, .. }) => of(x) || of(y),
            Some(Inst::Zip { f: Fn2::Add | Fn2::Sub, x, y, .. } | Inst::Select { x, y, .. }) => {
                of(x) && of(y)
            }
            _ => false,
        }
    }

    /// What must be checked before an element of a tile of this type at `place` may be touched: only what is not
    /// known to hold.
    pub fn checks(&self, place: &Place, ty: RegType) -> Vec<Check> {
        let mut checks: Vec<Check> =
            (0..place.at.len()).flat_map(|axis| self.axis_checks(place, ty, axis)).collect();
        checks.sort();
        checks.dedup();
        checks
    }

    /// [`Self::checks`] of one axis.
    pub fn axis_checks(&self, place: &Place, ty: RegType, axis: usize) -> Vec<Check> {
        let at = place.at[axis];
        let (along, n) = if place.axes[0] == Some(axis) && ty.rows > 1 {
            (Along::Row, ty.rows)
        } else if place.axes[1] == Some(axis) && ty.cols > 1 {
            (Along::Col, ty.cols)
        } else {
            (Along::All, 1)
        };
        let mut ends = self.ends(place, axis);
        ends.extend(self.kernel.bufs[place.buf].shape.get(axis).map(|dim| End::Dim(dim.clone())));
        ends.push(End::Low);
        ends.retain(|end| !self.holds(at, n as i64, end));
        ends.into_iter().map(|end| Check { along, at, end }).collect()
    }

    /// The limits of `place` along an axis.
    pub fn ends(&self, place: &Place, axis: usize) -> Vec<End> {
        let end = |reg: Reg| match self.inst(reg) {
            Some(Inst::Extent { dim, .. }) => End::Dim(dim.clone()),
            _ => self.constant(reg).map_or(End::Reg(reg), |n| End::Dim(Dim::from(n))),
        };
        place.limits.iter().filter(|(a, _)| *a == axis).map(|(_, reg)| end(*reg)).collect()
    }

    /// Whether indices `at .. at + n` certainly respect `end`.
    fn holds(&self, at: Reg, n: i64, end: &End) -> bool {
        let (lo, hi) = self.range(at);
        let last = add(hi, n - 1);
        match end {
            End::Low => lo >= 0,
            End::Reg(reg) => last < self.range(*reg).0,
            End::Dim(dim) => last < dim_range(dim).0 || self.follows_grid(at, n, dim),
        }
    }

    /// Whether `at` is the first of `n` indices of a tile that the grid (or a loop) cut `dim` into.
    fn follows_grid(&self, at: Reg, n: i64, dim: &Dim) -> bool {
        let (base, step) = match self.inst(at) {
            Some(Inst::Zip { f: Fn2::Mul, x, y, .. }) => match (self.constant(*x), self.constant(*y)) {
                (_, Some(step)) => (*x, step),
                (Some(step), _) => (*y, step),
                _ => return false,
            },
            _ => (at, 1),
        };
        match self.defs.get(base.index()).copied().flatten() {
            Some(Def::Inst(Inst::Program { axis, .. })) => {
                let Some(GridAxis { extent, tile }) = self.kernel.grid.get(*axis) else { return false };
                let whole = n == 1 || (n <= step && extent.as_const().is_some_and(|e| e % step == 0));
                *tile == step && extent == dim && whole
            }
            Some(Def::Index(trips)) => {
                let over = matches!(self.inst(trips), Some(Inst::Extent { dim: all, .. }) if all == dim);
                step == 1 && n == 1 && over
            }
            _ => false,
        }
    }
}

/// Whether an extent is certainly a multiple of `n`.
pub(super) fn is_multiple(dim: &Dim, n: i64) -> bool {
    dim.terms().all(|(_, factor)| factor % n == 0)
}

/// Bounds of an extent; symbols are at least zero.
fn dim_range(dim: &Dim) -> (i64, i64) {
    if let Some(n) = dim.as_const() {
        return (n, n);
    }
    let mut least = 0;
    for (monomial, n) in dim.terms() {
        if monomial.is_empty() {
            least = n;
        } else if n < 0 {
            return (LEAST, MOST);
        }
    }
    (least, MOST)
}

/// A sum of bounds; the ends of `i64` stand for no bound.
fn add(a: i64, b: i64) -> i64 {
    match (a, b) {
        (LEAST, _) | (_, LEAST) => LEAST,
        (MOST, _) | (_, MOST) => MOST,
        _ => a.saturating_add(b),
    }
}

fn negative(a: i64) -> i64 {
    match a {
        LEAST => MOST,
        MOST => LEAST,
        a => -a,
    }
}

fn less_one(a: i64) -> i64 {
    if a == MOST { MOST } else { a.saturating_sub(1).max(0) }
}

/// A product of a bound and a factor of at least zero.
fn times(a: i64, n: i64) -> i64 {
    if n == 0 { 0 } else { a.saturating_mul(n) }
}
