//! What instructions of the tile phase read and define.

use eva_ir::kernel::{Inst, Place, Reg};

/// Calls `f` with each register that `inst` itself reads: not those read in its body, nor a loop's `next`.
pub(super) fn operands_mut(inst: &mut Inst, f: &mut dyn FnMut(&mut Reg)) {
    fn place(place: &mut Place, f: &mut dyn FnMut(&mut Reg)) {
        place.at.iter_mut().for_each(&mut *f);
        place.limits.iter_mut().for_each(|(_, end)| f(end));
    }
    match inst {
        Inst::Program { .. } | Inst::Extent { .. } | Inst::Const { .. } | Inst::Iota { .. } => {}
        Inst::Map { x, .. }
        | Inst::Cast { x, .. }
        | Inst::Round { x, .. }
        | Inst::Reduce { x, .. }
        | Inst::Scan { x, .. }
        | Inst::Columns { x, .. }
        | Inst::Reshape { x, .. }
        | Inst::Across { x, .. }
        | Inst::SwapPairs { x, .. } => f(x),
        Inst::Zip { x, y, .. } => [x, y].into_iter().for_each(f),
        Inst::Select { cond, x, y, .. } => [cond, x, y].into_iter().for_each(f),
        Inst::Dot { acc, x, y, .. } => [acc, x, y].into_iter().for_each(f),
        Inst::For { trips, carried, .. } => {
            f(trips);
            carried.iter_mut().for_each(|c| f(&mut c.init));
        }
        Inst::Load { place: at, .. } => place(at, f),
        Inst::Gather { place: at, index, .. } => {
            place(at, f);
            f(index);
        }
        Inst::Store { place: at, value } => {
            place(at, f);
            f(value);
        }
        Inst::Scatter { place: at, index, value, mask, .. } => {
            place(at, f);
            [index, value, mask].into_iter().for_each(f);
        }
        Inst::Block(inst) => inst.operands_mut(f),
        Inst::VLoad { from, .. } => f(&mut from.index),
        Inst::VStore { to, value } => [&mut to.index, value].into_iter().for_each(f),
        Inst::If { cond, .. } => f(cond),
        Inst::Micro(micro) => {
            let [a, b, c] = [&mut micro.a, &mut micro.b, &mut micro.c].map(|mem| &mut mem.index);
            let sizes = [&mut micro.m, &mut micro.n, &mut micro.k, &mut micro.c_stride, a, b, c];
            let strides = micro.a_strides.iter_mut().chain(&mut micro.b_strides);
            let scales =
                [&mut micro.a_scales, &mut micro.b_scales].into_iter().flatten().flat_map(|scales| {
                    let (rows, terms) = (&mut scales.rows, &mut scales.terms);
                    let of_terms = [&mut terms.place, &mut terms.stride];
                    [&mut scales.first.index, &mut rows.place, &mut rows.stride].into_iter().chain(of_terms)
                });
            sizes.into_iter().chain(strides).chain(scales).for_each(f);
        }
    }
}

/// The registers that [`operands_mut`] visits.
pub(super) fn operands(inst: &Inst) -> Vec<Reg> {
    if let Inst::For { trips, carried, .. } = inst {
        return std::iter::once(*trips).chain(carried.iter().map(|c| c.init)).collect();
    }
    let mut regs = Vec::new();
    operands_mut(&mut inst.clone(), &mut |reg| regs.push(*reg));
    regs
}

macro_rules! single_result {
    ($inst:expr) => {
        match $inst {
            Inst::Program { out, .. }
            | Inst::Extent { out, .. }
            | Inst::Const { out, .. }
            | Inst::Map { out, .. }
            | Inst::Zip { out, .. }
            | Inst::Select { out, .. }
            | Inst::Cast { out, .. }
            | Inst::Round { out, .. }
            | Inst::Iota { out, .. }
            | Inst::Load { out, .. }
            | Inst::Gather { out, .. }
            | Inst::Reduce { out, .. }
            | Inst::Scan { out, .. }
            | Inst::Columns { out, .. }
            | Inst::Reshape { out, .. }
            | Inst::Dot { out, .. }
            | Inst::VLoad { out, .. }
            | Inst::Across { out, .. }
            | Inst::SwapPairs { out, .. } => Some(out),
            Inst::For { .. }
            | Inst::If { .. }
            | Inst::Store { .. }
            | Inst::Scatter { .. }
            | Inst::VStore { .. }
            | Inst::Micro(_)
            | Inst::Block(_) => None,
        }
    };
}

/// The register that `inst` defines, if it is no loop.
pub(super) fn result(inst: &Inst) -> Option<Reg> {
    if let Inst::Block(inst) = inst { inst.out() } else { single_result!(inst).copied() }
}

/// [`result`], to change it.
pub(super) fn result_mut(inst: &mut Inst) -> Option<&mut Reg> {
    single_result!(inst)
}

/// Whether each element of the result depends on one element of each operand, so that it can be computed where it
/// is used.
pub(super) fn is_inline(inst: &Inst) -> bool {
    match inst {
        Inst::Reduce { .. } | Inst::Scan { .. } | Inst::Reshape { .. } | Inst::Dot { .. } => false,
        _ => result(inst).is_some(),
    }
}
