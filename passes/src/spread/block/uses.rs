//! Who uses what in a tile kernel: products, their operands, and scalars that need no tile.

use super::super::walk::{operands, result};
use super::info::{Def, Info};
use super::tensor::Fed;
use eva_ir::kernel::*;
use eva_ir::types::DType;
use std::collections::{HashMap, HashSet};

/// A product of a kernel, and where it is.
pub(super) struct Found {
    pub out: Reg,
    pub acc: Reg,
    pub x: Reg,
    pub y: Reg,
}

/// The place that a register is loaded from, if it is.
pub(super) fn load_of<'a>(info: &Info<'a>, reg: Reg) -> Option<&'a Place> {
    match info.inst(reg) {
        Some(Inst::Load { place, .. }) => Some(place),
        _ => None,
    }
}

pub(super) fn collect(body: &[Inst], dots: &mut Vec<Found>) {
    for inst in body {
        match inst {
            Inst::For { body, .. } => collect(body, dots),
            Inst::Dot { out, acc, x, y } => dots.push(Found { out: *out, acc: *acc, x: *x, y: *y }),
            _ => {}
        }
    }
}

/// Whether a kernel has a product one of whose operands is loaded from narrow floats, or from `tf32`.
pub(super) fn multiplies_narrow(info: &Info<'_>) -> bool {
    let mut dots = Vec::new();
    collect(&info.kernel.body, &mut dots);
    let narrow = |&reg: &Reg| {
        load_of(info, reg).is_some_and(|place| {
            let data = &info.kernel.bufs[place.buf];
            (data.dtype.bytes() <= 2 || data.dtype == DType::Tf32) && data.scaled.is_none()
        })
    };
    dots.iter().any(|dot| [dot.x, dot.y].iter().any(narrow))
}

/// Who uses each register: the results of instructions, or the register itself where there is no result.
pub(super) fn users(body: &[Inst]) -> HashMap<Reg, Vec<Reg>> {
    fn visit(body: &[Inst], users: &mut HashMap<Reg, Vec<Reg>>) {
        for inst in body {
            for reg in operands(inst) {
                users.entry(reg).or_default().push(result(inst).unwrap_or(reg));
            }
            if let Inst::For { body, carried, .. } = inst {
                carried.iter().for_each(|c| users.entry(c.next).or_default().push(c.next));
                visit(body, users);
            }
        }
    }
    let mut found = HashMap::new();
    visit(body, &mut found);
    found
}

/// The loads from pipes that an instruction, or one in its body, multiplies.
pub(super) fn loads_used(inst: &Inst, fed: &HashMap<Reg, Fed>) -> Vec<Reg> {
    match inst {
        Inst::For { body, .. } => body.iter().flat_map(|inst| loads_used(inst, fed)).collect(),
        Inst::Dot { x, y, .. } => [*x, *y].into_iter().filter(|reg| fed.contains_key(reg)).collect(),
        _ => Vec::new(),
    }
}

/// Whether an instruction, or one in its body, reads a register.
pub(super) fn reads(inst: &Inst, reg: Reg) -> bool {
    let inside = match inst {
        Inst::For { body, carried, .. } => {
            body.iter().any(|inst| reads(inst, reg)) || carried.iter().any(|c| c.next == reg)
        }
        _ => false,
    };
    inside || operands(inst).contains(&reg)
}

/// Whether a scalar can be computed without any tile: by arithmetic and loads of scalars, and by loops of nothing else.
pub(super) fn is_plain(info: &Info<'_>, reg: Reg) -> bool {
    fn visit(info: &Info<'_>, reg: Reg, seen: &mut HashSet<Reg>) -> bool {
        if !seen.insert(reg) {
            return true;
        }
        let mut all = |regs: Vec<Reg>| regs.into_iter().all(|reg| visit(info, reg, seen));
        info.ty(reg).is_scalar()
            && match info.def(reg) {
                Ok(Def::Index(_)) => true,
                Ok(Def::Inst(inst)) => match inst {
                    Inst::Program { .. } | Inst::Extent { .. } | Inst::Const { .. } => true,
                    Inst::Map { .. }
                    | Inst::Zip { .. }
                    | Inst::Select { .. }
                    | Inst::Cast { .. }
                    | Inst::Load { .. } => all(operands(inst)),
                    _ => false,
                },
                Ok(Def::Carried(Inst::For { trips, carried, body, .. })) => {
                    let results: Option<Vec<Reg>> = body.iter().map(result).collect();
                    results.is_some_and(&mut all)
                        && all(vec![*trips])
                        && all(carried.iter().flat_map(|c| [c.init, c.next]).collect())
                }
                _ => false,
            }
    }
    visit(info, reg, &mut HashSet::new())
}

/// Whether a tile is nothing but zeros.
pub(super) fn is_zero(info: &Info<'_>, reg: Reg) -> bool {
    matches!(info.inst(reg), Some(Inst::Const { value: Const::F(0.0), .. }))
}

/// An index as the sum of a register, if there is one, and a constant.
pub(super) fn sum_with_constant(info: &Info<'_>, reg: Reg) -> (Option<Reg>, i64) {
    if let Some(n) = info.constant(reg) {
        return (None, n);
    }
    match info.inst(reg) {
        Some(Inst::Zip { f: Fn2::Add, x, y, .. }) => match (info.constant(*x), info.constant(*y)) {
            (_, Some(n)) => (Some(*x), n),
            (Some(n), _) => (Some(*y), n),
            _ => (Some(reg), 0),
        },
        _ => (Some(reg), 0),
    }
}

/// Whether a tile's columns, which products sum, have an end of their own.
pub(super) fn ends_along_sum(place: &Place) -> bool {
    place.limits.iter().any(|(axis, _)| Some(*axis) == place.axes[1])
}
