//! Which rows and columns of each register anything can still see.
//!
//! Stores clip: of a tile of 64 rows, one row may be inside its buffer. What only such a store sees need not be
//! computed for the other 63. This goes backwards from the stores; a register that two differently clipped stores
//! see is live as a whole.

use super::info::{Along, Check, End, Info};
use super::walk::{operands, result};
use eva_ir::entity::Entity;
use eva_ir::kernel::{Inst, Reg};

/// The part of an axis that is seen.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Live {
    /// Nothing.
    None,
    /// The indices `i` for which `at + i` respects the end, for each of these (sorted).
    Within(Vec<(Reg, End)>),
    /// Everything.
    All,
}

impl Live {
    fn join(&self, other: &Live) -> Live {
        match (self, other) {
            (Live::None, x) | (x, Live::None) => x.clone(),
            (a, b) if a == b => a.clone(),
            _ => Live::All,
        }
    }

    /// What of an axis respects those checks that are about it.
    pub fn within(checks: &[Check], along: Along) -> Live {
        let of_axis: Vec<_> =
            checks.iter().filter(|c| c.along == along).map(|c| (c.at, c.end.clone())).collect();
        if of_axis.is_empty() { Live::All } else { Live::Within(of_axis) }
    }
}

/// The live rows and columns of every register.
pub(super) fn live(info: &Info<'_>) -> Vec<[Live; 2]> {
    let mut state =
        State { info, live: vec![[Live::None, Live::None]; info.kernel.regs.len()], changed: true };
    // Each axis of a register changes twice at most, so this ends.
    while state.changed {
        state.changed = false;
        state.block(&info.kernel.body);
    }
    state.live
}

struct State<'a, 'k> {
    info: &'a Info<'k>,
    live: Vec<[Live; 2]>,
    changed: bool,
}

impl State<'_, '_> {
    /// Notes that this part of `reg` is seen. `block` is where one value of it lives: a clip that varies inside
    /// says nothing about it.
    fn need(&mut self, reg: Reg, block: usize, rows: Live, cols: Live) {
        let ty = self.info.ty(reg);
        for (axis, (need, extent)) in [(rows, ty.rows), (cols, ty.cols)].into_iter().enumerate() {
            let fixed = |r: &Reg| self.info.is_within(block, self.info.block(*r));
            let need = match need {
                Live::None => Live::None,
                _ if extent == 1 => Live::All,
                Live::Within(checks)
                    if checks.iter().all(|(at, end)| {
                        fixed(at) && if let End::Reg(end) = end { fixed(end) } else { true }
                    }) =>
                {
                    Live::Within(checks)
                }
                _ => Live::All,
            };
            let old = &self.live[reg.index()][axis];
            let new = old.join(&need);
            if *old != new {
                self.live[reg.index()][axis] = new;
                self.changed = true;
            }
        }
    }

    fn need_here(&mut self, reg: Reg, rows: Live, cols: Live) {
        self.need(reg, self.info.block(reg), rows, cols);
    }

    fn all(&mut self, regs: impl IntoIterator<Item = Reg>) {
        for reg in regs {
            self.need_here(reg, Live::All, Live::All);
        }
    }

    fn block(&mut self, body: &[Inst]) {
        for inst in body.iter().rev() {
            let [rows, cols] = match result(inst) {
                Some(out) => self.live[out.index()].clone(),
                None => [Live::None, Live::None],
            };
            match inst {
                Inst::Store { place, value } => {
                    let checks = self.info.checks(place, self.info.ty(*value));
                    let [rows, cols] = [Along::Row, Along::Col].map(|along| Live::within(&checks, along));
                    self.need_here(*value, rows, cols);
                }
                Inst::Scatter { .. } => self.all(operands(inst)),
                Inst::For { carried, body, .. } => {
                    for c in carried {
                        // The two share memory, and what is seen of one trip's value is seen of the next one's.
                        let outer = self.info.block(c.out);
                        let [a, b] = [c.arg, c.out].map(|reg| self.live[reg.index()].clone());
                        let (rows, cols) = (a[0].join(&b[0]), a[1].join(&b[1]));
                        for reg in [c.arg, c.out] {
                            self.need(reg, outer, rows.clone(), cols.clone());
                        }
                        let [rows, cols] = self.live[c.arg.index()].clone();
                        self.need_here(c.next, rows.clone(), cols.clone());
                        self.need_here(c.init, rows, cols);
                    }
                    self.block(body);
                }
                Inst::Dot { acc, x, y, .. } => {
                    let seen = |live: &Live| if *live == Live::None { Live::None } else { Live::All };
                    self.need_here(*x, rows.clone(), seen(&rows));
                    self.need_here(*y, cols.clone(), seen(&cols));
                    self.need_here(*acc, rows, cols);
                }
                Inst::Reduce { axis, x, .. } => {
                    let seen = |live: Live| if live == Live::None { Live::None } else { Live::All };
                    let (rows, cols) = if *axis == 0 { (seen(rows), cols) } else { (rows, seen(cols)) };
                    self.need_here(*x, rows, cols);
                }
                // The columns before a seen one are needed too.
                Inst::Scan { x, .. } | Inst::Columns { x, .. } => {
                    let cols = if cols == Live::None { Live::None } else { Live::All };
                    self.need_here(*x, rows, cols);
                }
                Inst::Reshape { x, .. } => {
                    let seen = |live: Live| if live == Live::None { Live::None } else { Live::All };
                    self.need_here(*x, seen(rows), seen(cols));
                }
                // Element by element; where an operand is stretched, `need` takes all of it.
                inst => {
                    for reg in operands(inst) {
                        self.need_here(reg, rows.clone(), cols.clone());
                    }
                }
            }
        }
    }
}
