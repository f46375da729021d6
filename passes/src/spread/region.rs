//! Which elements a walk visits, and where its loads are inside their buffers.
//!
//! A walk goes over the rows and columns of its [`Region`]: what is seen of the result, or what a store writes. A load
//! in the expression may end earlier. The region is then cut in two along rows, columns or both; in the first
//! part every load is inside. In the other part a load that is the only one to end there is zero, and others are
//! checked element by element.

use super::Result;
use super::cpu::Cpu;
use super::info::{Along, Check, End};
use super::live::Live;
use super::walk::operands;
use eva_ir::kernel::{Fn2, Inst, Reg};
use std::collections::{HashMap, HashSet};

/// Part of an axis: `lo <= i < hi`, with `hi` at least `lo`.
#[derive(Clone, Copy)]
pub(super) struct Span {
    pub lo: Reg,
    pub hi: Reg,
}

/// What a walk visits.
#[derive(Clone)]
pub(super) struct Region {
    pub rows: Span,
    pub cols: Span,
    /// What holds for every element of it.
    pub facts: Vec<Check>,
}

/// A part of an axis, and whether the walk's loads are inside their buffers there, as far as that axis decides it.
#[derive(Clone, Copy)]
pub(super) struct Part {
    pub span: Span,
    pub inside: bool,
}

/// What is known of a load at the elements being visited.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Inside {
    /// It is inside its buffer.
    Yes,
    /// It is outside: zero.
    No,
    /// It must be checked.
    Unknown,
}

/// What one walk knows of its loads.
#[derive(Default)]
pub(super) struct Walk {
    /// For each load that may end inside the region, what must hold of rows (and of all elements), and of columns.
    loads: HashMap<Reg, [Vec<Check>; 2]>,
    /// All checks about rows, and about columns.
    checks: [Vec<Check>; 2],
    /// Whether the current part of rows, and of columns, is the one where they hold.
    pub inside: [bool; 2],
    /// The depths of the loops over rows and over columns.
    pub depth: [usize; 2],
    /// Numbers for the current part of rows, and for the current part of columns in it.
    pub number: [usize; 2],
    /// Whether columns are visited in groups that start at a multiple of 2, and of 4.
    pub even: bool,
    pub aligned: bool,
}

impl Cpu<'_, '_> {
    /// `0 <= i < n`.
    pub fn whole(&mut self, n: usize) -> Span {
        Span { lo: self.e.int(0), hi: self.e.int(n as i64) }
    }

    /// The end of an axis, as a register of the lane kernel; `None` if it is not computed yet.
    fn end(&mut self, end: &End) -> Option<Reg> {
        match end {
            End::Low => Some(self.e.int(0)),
            End::Dim(dim) => Some(self.e.extent(dim)),
            End::Reg(reg) => self.scalars.get(reg).copied(),
        }
    }

    /// The indices of `0..n` for which all of `checks` hold; all if one of them cannot be computed yet.
    pub fn window(&mut self, n: usize, checks: &[(Reg, End)]) -> Span {
        self.try_window(n, checks).unwrap_or_else(|| self.whole(n))
    }

    fn try_window(&mut self, n: usize, checks: &[(Reg, End)]) -> Option<Span> {
        let mut span = self.whole(n);
        for (at, end) in checks {
            let at = *self.scalars.get(at)?;
            let bound = self.end(end)?;
            let distance = self.e.sub(bound, at);
            match end {
                End::Low => span.lo = self.e.zip(Fn2::Max, span.lo, distance),
                _ => span.hi = self.e.zip(Fn2::Min, span.hi, distance),
            }
        }
        if self.e.known_int(span.lo).is_none() {
            // A tile wholly before the start of an axis.
            let n = self.e.int(n as i64);
            span.lo = self.e.zip(Fn2::Min, span.lo, n);
        }
        span.hi = self.e.zip(Fn2::Max, span.hi, span.lo);
        Some(span)
    }

    /// The indices that both have.
    pub fn intersect(&mut self, a: Span, b: Span) -> Span {
        let lo = self.e.zip(Fn2::Max, a.lo, b.lo);
        let hi = if a.hi == b.hi { a.hi } else { self.e.zip(Fn2::Min, a.hi, b.hi) };
        if lo == a.lo && lo == b.lo {
            return Span { lo, hi };
        }
        Span { lo, hi: self.e.zip(Fn2::Max, hi, lo) }
    }

    /// The rows and columns of a register that are seen.
    pub fn seen(&mut self, [rows, cols]: &[Live; 2], extents: [usize; 2]) -> Region {
        let mut facts = Vec::new();
        let mut span = |cpu: &mut Self, live: &Live, n: usize, along: Along| match live {
            Live::Within(checks) if n > 1 => match cpu.try_window(n, checks) {
                Some(span) => {
                    facts.extend(checks.iter().map(|(at, end)| Check { along, at: *at, end: end.clone() }));
                    span
                }
                None => cpu.whole(n),
            },
            _ => cpu.whole(n),
        };
        let rows = span(self, rows, extents[0], Along::Row);
        let cols = span(self, cols, extents[1], Along::Col);
        Region { rows, cols, facts }
    }

    /// The rows and columns for which `checks` hold, none if one about all elements does not.
    pub fn inside(&mut self, checks: &[Check], extents: [usize; 2]) -> Result<Region> {
        let along = |along: Along| {
            let these = checks.iter().filter(move |c| c.along == along);
            these.map(|c| (c.at, c.end.clone())).collect::<Vec<_>>()
        };
        let mut rows = self.window(extents[0], &along(Along::Row));
        let cols = self.window(extents[1], &along(Along::Col));
        if let Some(holds) = self.conditions(checks, None, None)? {
            rows.hi = self.e.select(holds, rows.hi, rows.lo);
        }
        Ok(Region { rows, cols, facts: checks.to_vec() })
    }

    /// Whether `checks` hold at row `r` and column `c`; those about rows or columns are left out where none is given.
    pub fn conditions(&mut self, checks: &[Check], r: Option<Reg>, c: Option<Reg>) -> Result<Option<Reg>> {
        let mut conds = Vec::new();
        for check in checks {
            let at = self.scalar(check.at)?;
            let index = match (check.along, r, c) {
                (Along::All, ..) => at,
                (Along::Row, Some(i), _) | (Along::Col, _, Some(i)) => self.e.add(at, i),
                _ => continue,
            };
            let end = match &check.end {
                End::Reg(reg) => self.scalar(*reg)?,
                End::Low => self.e.int(0),
                End::Dim(dim) => self.e.extent(dim),
            };
            conds.push(match check.end {
                End::Low => self.e.zip(Fn2::Le, end, index),
                _ => self.e.zip(Fn2::Lt, index, end),
            });
        }
        Ok(self.e.all(&conds))
    }

    /// Prepares to compute a scalar.
    pub fn begin_point(&mut self) {
        self.walk = Walk { inside: [true; 2], ..Walk::default() };
        self.enter(0, true);
    }

    /// Prepares to compute `roots` over `region`.
    pub fn begin_walk(&mut self, roots: &[Reg], region: &Region) {
        let mut walk = Walk {
            inside: [true; 2],
            depth: [self.e.here(); 2],
            even: true,
            aligned: true,
            ..Walk::default()
        };
        let mut seen = HashSet::new();
        let mut rest = roots.to_vec();
        while let Some(reg) = rest.pop() {
            if self.info.ty(reg).is_scalar() || self.is_home(reg) || !seen.insert(reg) {
                continue;
            }
            match self.info.inst(reg) {
                Some(Inst::Load { place, .. }) => {
                    let mut keys = [Vec::new(), Vec::new()];
                    for check in self.info.checks(place, self.info.ty(reg)) {
                        if !region.facts.contains(&check) {
                            keys[(check.along == Along::Col) as usize].push(check);
                        }
                    }
                    for (all, key) in walk.checks.iter_mut().zip(&keys) {
                        all.extend(key.iter().cloned());
                    }
                    walk.loads.insert(reg, keys);
                }
                Some(inst) => rest.extend(operands(inst)),
                None => {}
            }
        }
        for checks in &mut walk.checks {
            checks.sort();
            checks.dedup();
        }
        self.walk = walk;
        self.enter(0, true);
    }

    /// Enters a part of the walk's rows (axis 0) or columns, where loads are inside their buffers or not.
    pub fn enter(&mut self, axis: usize, inside: bool) {
        self.numbers += 1;
        for axis in axis..2 {
            self.walk.number[axis] = self.numbers;
            self.walk.depth[axis] = self.e.here();
        }
        self.walk.inside[axis] = inside;
    }

    /// What is known of a load in the current part of the walk.
    pub fn is_inside(&self, load: Reg) -> Inside {
        let Some(keys) = self.walk.loads.get(&load) else { return Inside::Unknown };
        let mut result = Inside::Yes;
        for (axis, key) in keys.iter().enumerate() {
            if key.is_empty() || self.walk.inside[axis] {
                continue;
            }
            // Behind the first part one of all checks fails. Of a row or column before the start nothing is known.
            let mine = *key == self.walk.checks[axis];
            let monotone = key.iter().all(|check| check.along == Along::All || check.end != End::Low);
            if mine && monotone {
                return Inside::No;
            }
            result = Inside::Unknown;
        }
        result
    }

    /// Cuts an axis (0 rows, 1 columns) of the region where loads end.
    pub fn parts(&mut self, region: &Region, axis: usize) -> Result<Vec<Part>> {
        let span = if axis == 0 { region.rows } else { region.cols };
        let checks = self.walk.checks[axis].clone();
        if checks.is_empty() {
            return Ok(vec![Part { span, inside: true }]);
        }
        let mut end = span.hi;
        for check in &checks {
            let at = self.scalar(check.at)?;
            let bound = match &check.end {
                End::Reg(reg) => self.scalar(*reg)?,
                End::Low => self.e.int(0),
                End::Dim(dim) => self.e.extent(dim),
            };
            end = match (check.along, &check.end) {
                (Along::All, End::Low) => {
                    let holds = self.e.zip(Fn2::Le, bound, at);
                    self.e.select(holds, end, span.lo)
                }
                (Along::All, _) => {
                    let holds = self.e.zip(Fn2::Lt, at, bound);
                    self.e.select(holds, end, span.lo)
                }
                (_, End::Low) => {
                    let first = self.e.add(at, span.lo);
                    let holds = self.e.zip(Fn2::Le, bound, first);
                    self.e.select(holds, end, span.lo)
                }
                _ => {
                    let distance = self.e.sub(bound, at);
                    self.e.zip(Fn2::Min, end, distance)
                }
            };
        }
        let end = self.e.zip(Fn2::Max, end, span.lo);
        let first = Part { span: Span { lo: span.lo, hi: end }, inside: true };
        Ok(vec![first, Part { span: Span { lo: end, hi: span.hi }, inside: false }])
    }
}
