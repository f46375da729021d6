//! Which registers are kept in memory, and which are computed where they are used.

use super::info::{Along, Def, Info};
use super::live::{Live, live};
use super::scaled::{runs, scales};
use super::walk::{is_inline, operands, result};
use eva_ir::entity::Entity;
use eva_ir::kernel::{Carried, Elem, Fn1, Fn2, Inst, Place, Reg};
use eva_ir::types::DType;
use std::collections::{HashMap, HashSet};

/// The most instructions (by a rough count) that are worth repeating rather than keeping the result.
const CHEAP: u32 = 4;

/// The longest chain of operands that is followed to compute an element.
const DEEPEST: usize = 100;

/// Decisions about one kernel.
pub(super) struct Plan {
    /// Whether a register's elements lie in scratch memory. Others are scalars, or computed where they are used.
    home: Vec<bool>,
    /// Whether a register is used once.
    once: Vec<bool>,
    /// The rows and columns that are seen of each register.
    live: Vec<[Live; 2]>,
}

/// A register in memory that an expression reads.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Read {
    /// Which one; never the result of a `Reshape`, but what that names.
    pub home: Reg,
    /// Whether element `(r, c)` of the expression depends on element `(r, c)` of the register alone.
    pub same_place: bool,
}

impl Plan {
    /// Decides for every register.
    pub fn new(info: &Info<'_>) -> Self {
        let n = info.kernel.regs.len();
        let mut uses =
            Uses { info, home: vec![false; n], clipped: vec![false; n], users: HashMap::new(), walks: 0 };
        let mut order = Vec::new();
        uses.must(&info.kernel.body, 0, &mut order);
        let once =
            (0..n).map(|i| uses.users.get(&Reg::new(i)).is_some_and(|users| users.len() == 1)).collect();
        Plan { home: uses.decide(&order), once, live: live(info) }
    }

    /// Whether the register lies in scratch memory.
    pub fn is_home(&self, reg: Reg) -> bool {
        self.home[reg.index()]
    }

    /// Whether one instruction uses the register, and only as one operand.
    pub fn is_used_once(&self, reg: Reg) -> bool {
        self.once[reg.index()]
    }

    /// The rows and columns of the register that are seen.
    pub fn live(&self, reg: Reg) -> &[Live; 2] {
        &self.live[reg.index()]
    }

    /// The registers in memory that are read when `reg` is computed where it is used.
    pub fn reads(&self, info: &Info<'_>, reg: Reg) -> Vec<Read> {
        let mut reads = Vec::new();
        self.find_reads(info, reg, true, &mut reads, &mut HashSet::new());
        reads
    }

    fn find_reads(
        &self,
        info: &Info<'_>,
        reg: Reg,
        same_place: bool,
        reads: &mut Vec<Read>,
        seen: &mut HashSet<(Reg, bool)>,
    ) {
        if info.ty(reg).is_scalar() || !seen.insert((reg, same_place)) {
            return;
        }
        match info.inst(reg) {
            Some(Inst::Reshape { x, .. }) => self.find_reads(info, *x, false, reads, seen),
            _ if self.is_home(reg) => reads.push(Read { home: reg, same_place }),
            Some(inst) => {
                for x in operands(inst) {
                    let (a, b) = (info.ty(reg), info.ty(x));
                    let aligned =
                        (a.rows, a.cols) == (b.rows, b.cols) && !matches!(inst, Inst::Columns { .. });
                    self.find_reads(info, x, same_place && aligned, reads, seen);
                }
            }
            None => {}
        }
    }

    /// Whether `reg`'s memory is read by `body` when its instructions run.
    pub fn is_read(&self, info: &Info<'_>, body: &[Inst], reg: Reg) -> bool {
        let reads = |x: Reg| self.reads(info, x).iter().any(|read| read.home == reg);
        body.iter().any(|inst| match inst {
            Inst::For { carried, body, .. } => {
                carried.iter().any(|c| reads(c.init) || reads(c.next)) || self.is_read(info, body, reg)
            }
            inst if is_inline(inst) && !result(inst).is_some_and(|out| self.is_home(out)) => false,
            // Names its operand; what uses it reads it.
            Inst::Reshape { .. } => false,
            inst => operands(inst).into_iter().any(reads),
        })
    }

    /// The product in a loop's body that may add to the carried register in place, if there is one.
    pub fn product_in_place(&self, info: &Info<'_>, all: &[Carried], c: &Carried, body: &[Inst]) -> bool {
        let Some(at) = body.iter().position(|inst| matches!(inst, Inst::Dot { out, .. } if *out == c.next))
        else {
            return false;
        };
        let Inst::Dot { acc, x, y, .. } = &body[at] else { return false };
        let of = |reg: Reg| self.reads(info, reg).into_iter().filter(|read| read.home == c.arg);
        of(*acc).all(|read| read.same_place)
            && [*x, *y].into_iter().all(|reg| of(reg).next().is_none())
            && !self.is_read(info, &body[at + 1..], c.arg)
            && all.iter().all(|other| of(other.next).next().is_none())
    }
}

/// Where a product may read this register from, if that is the buffer it is loaded from: microkernels know some types of
/// elements, and scales along rows and terms.
pub(super) fn direct<'a>(info: &Info<'a>, reg: Reg) -> Option<&'a Place> {
    let ty = info.ty(reg);
    match info.inst(reg)? {
        Inst::Load { place, .. } if !ty.is_scalar() => match info.kernel.bufs[place.buf].dtype {
            DType::F32 | DType::Tf32 | DType::Bf16 | DType::F16 => Some(place),
            DType::F8E4M3 | DType::F8E5M2 => runs(info, place, ty).map(|_| place),
            DType::F64 | DType::E8M0 | DType::I64 | DType::I32 => None,
        },
        _ => None,
    }
}

/// Whether neighbouring columns of a tile at `place` are neighbours in memory.
pub(super) fn unit_stride(info: &Info<'_>, place: &Place) -> bool {
    let strides = &info.kernel.bufs[place.buf].strides;
    place.axes[1].is_some_and(|axis| strides.get(axis).and_then(|dim| dim.as_const()) == Some(1))
}

/// How a register is used.
#[derive(Clone, Copy)]
enum Use {
    /// By an instruction that walks over all its elements; a number for it, and the block it is in.
    Walk(usize, usize),
    /// By this one, element by element.
    Inline { out: Reg, again: bool },
}

struct Uses<'a, 'k> {
    info: &'a Info<'k>,
    home: Vec<bool>,
    /// Whether computing a register reads a buffer that may end at some column of the tile.
    clipped: Vec<bool>,
    users: HashMap<Reg, Vec<Use>>,
    /// How many walks over elements there are so far.
    walks: usize,
}

impl Uses<'_, '_> {
    fn set_home(&mut self, reg: Reg) {
        if !self.info.ty(reg).is_scalar() {
            self.home[reg.index()] = true;
        }
    }

    fn walk(&mut self, regs: &[Reg], block: usize) {
        for &reg in regs {
            self.users.entry(reg).or_default().push(Use::Walk(self.walks, block));
        }
        self.walks += 1;
    }

    /// Finds the uses, and the registers that must be in memory; lists the definitions in order.
    fn must(&mut self, body: &[Inst], block: usize, order: &mut Vec<Reg>) {
        for inst in body {
            if let Inst::For { index, carried, body, .. } = inst {
                for c in carried {
                    [c.arg, c.out].into_iter().for_each(|reg| self.set_home(reg));
                    order.extend([c.arg, c.out]);
                    self.walk(&[c.init], block);
                }
                let inner = self.info.block(*index);
                self.must(body, inner, order);
                carried.iter().for_each(|c| self.walk(&[c.next], inner));
                continue;
            }
            match inst {
                Inst::Dot { x, y, .. } => {
                    for reg in [*x, *y] {
                        if direct(self.info, reg).is_none() {
                            self.set_home(reg);
                        }
                    }
                }
                Inst::Reshape { x, .. } => self.set_home(*x),
                Inst::Columns { x, .. } if self.clipped[x.index()] => self.set_home(*x),
                _ => {}
            }
            let out = result(inst);
            order.extend(out);
            let Some(out) = out.filter(|_| is_inline(inst)) else {
                out.into_iter().for_each(|out| self.set_home(out));
                self.walk(&operands(inst), block);
                continue;
            };
            self.clipped[out.index()] = match inst {
                Inst::Load { place, .. } => {
                    self.info.checks(place, self.info.ty(out)).iter().any(|check| check.along == Along::Col)
                }
                inst => operands(inst).iter().any(|x| self.clipped[x.index()] && !self.home[x.index()]),
            };
            for x in operands(inst) {
                let (a, b) = (self.info.ty(out), self.info.ty(x));
                let again = matches!(inst, Inst::Columns { .. }) || (b.rows < a.rows && b.cols > 1);
                self.users.entry(x).or_default().push(Use::Inline { out, again });
            }
        }
    }

    /// Adds registers that are used in several places and are not cheap.
    fn decide(mut self, order: &[Reg]) -> Vec<bool> {
        let mut cost: HashMap<Reg, u32> = HashMap::new();
        let mut depth: HashMap<Reg, usize> = HashMap::new();
        for &reg in order {
            let deepest = self.info.inst(reg).map_or(0, |inst| {
                operands(inst).iter().filter_map(|x| depth.get(x)).max().map_or(1, |n| n + 1)
            });
            if deepest > DEEPEST {
                self.set_home(reg);
            }
            let own = if self.home[reg.index()] || self.info.ty(reg).is_scalar() { 0 } else { deepest };
            depth.insert(reg, own);
            let n = self.cost(reg, &cost);
            cost.insert(reg, n);
        }
        // Users come after what they use, so theirs is decided first.
        let mut walks: HashMap<Reg, HashSet<(usize, usize)>> = HashMap::new();
        for &reg in order.iter().rev() {
            let mut mine = HashSet::new();
            let mut repeated = false;
            for user in self.users.get(&reg).into_iter().flatten() {
                match *user {
                    Use::Walk(number, block) => {
                        mine.insert((number, block));
                    }
                    Use::Inline { out, again } => {
                        repeated |= again;
                        if self.home[out.index()] {
                            mine.insert((usize::MAX - out.index(), self.info.block(out)));
                        } else {
                            mine.extend(walks.get(&out).into_iter().flatten());
                        }
                    }
                }
            }
            let block = self.info.block(reg);
            repeated |= mine.len() > 1 || mine.iter().any(|(_, b)| *b != block);
            let inline = matches!(self.info.def(reg), Ok(Def::Inst(inst)) if is_inline(inst));
            if inline && repeated && cost[&reg] > CHEAP {
                self.set_home(reg);
            }
            walks.insert(reg, mine);
        }
        self.home
    }

    fn cost(&self, reg: Reg, cost: &HashMap<Reg, u32>) -> u32 {
        let (ty, inst) = (self.info.ty(reg), self.info.inst(reg));
        if ty.is_scalar() {
            return 0;
        }
        let Some(inst) = inst.filter(|_| !self.home[reg.index()]) else { return 1 };
        let own = match inst {
            Inst::Const { .. } | Inst::Iota { .. } => 0,
            Inst::Load { place, .. } if scales(self.info, place).is_some() => 8,
            Inst::Load { place, .. } if ty.cols == 1 || unit_stride(self.info, place) => 1,
            Inst::Load { .. } => 4,
            Inst::Gather { .. } => 6,
            Inst::Map { f: Fn1::Neg | Fn1::Not, .. } => 1,
            Inst::Map { .. } => 12,
            Inst::Zip { f: Fn2::Div | Fn2::Rem, .. } => 6,
            Inst::Cast { x, .. } if self.info.ty(*x).elem == Elem::I64 => 3,
            _ => 1,
        };
        operands(inst).iter().filter_map(|x| cost.get(x)).fold(own, |sum, n| sum.saturating_add(*n))
    }
}
