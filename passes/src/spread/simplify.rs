//! Tidies a kernel of the tile phase: equal registers become one, and unused ones go.
//!
//! Later steps compare registers instead of what they stand for (is this load clipped at the same end as that
//! store?), so this step is what makes them see it.

use super::walk::{operands, operands_mut, result, result_mut};
use eva_ir::entity::Entity;
use eva_ir::kernel::{Inst, Kernel, Reg};
use std::collections::{HashMap, HashSet};

/// The same kernel without repeated and unused registers.
pub(super) fn simplify(kernel: &Kernel) -> Kernel {
    let mut merge = Merge { kernel, same: HashMap::new(), seen: vec![HashMap::new()] };
    let body = merge.block(&kernel.body);
    let body = sweep(body, &mut HashSet::new());
    Kernel { body, ..kernel.clone() }
}

struct Merge<'a> {
    kernel: &'a Kernel,
    /// From a register to the one that replaces it.
    same: HashMap<Reg, Reg>,
    /// What was computed in each open block, outermost first.
    seen: Vec<HashMap<String, Reg>>,
}

impl Merge<'_> {
    fn find(&self, reg: Reg) -> Reg {
        self.same.get(&reg).copied().unwrap_or(reg)
    }

    fn block(&mut self, body: &[Inst]) -> Vec<Inst> {
        let mut out = Vec::new();
        for inst in body {
            let mut inst = inst.clone();
            operands_mut(&mut inst, &mut |reg| *reg = self.find(*reg));
            if let Inst::For { body, carried, .. } = &mut inst {
                self.seen.push(HashMap::new());
                *body = self.block(body);
                self.seen.pop();
                carried.iter_mut().for_each(|c| c.next = self.find(c.next));
            } else if let Some(reg) = result(&inst)
                && let Some(ty) = self.kernel.regs.get(reg)
            {
                // Programs of the tile phase are short, and their text is a faithful key.
                let mut nameless = inst.clone();
                result_mut(&mut nameless).into_iter().for_each(|out| *out = Reg::new(0));
                let key = format!("{ty:?} {nameless:?}");
                if let Some(&old) = self.seen.iter().find_map(|seen| seen.get(&key)) {
                    self.same.insert(reg, old);
                    continue;
                }
                self.seen.last_mut().expect("the outermost block stays open").insert(key, reg);
            }
            out.push(inst);
        }
        out
    }
}

/// Drops instructions of either phase that neither write nor are in `used`; adds to `used` what remains needs.
pub(super) fn sweep(body: Vec<Inst>, used: &mut HashSet<Reg>) -> Vec<Inst> {
    let mut kept = Vec::new();
    for inst in body.into_iter().rev() {
        let inst = match inst {
            Inst::For { index, trips, carried, body } => {
                let mut carried = carried;
                let (kept_body, body_used, needed) = sweep_loop(&body, &carried, used);
                if needed.is_empty() && kept_body.is_empty() {
                    continue;
                }
                used.extend(body_used);
                carried.retain(|c| needed.contains(&c.arg));
                Inst::For { index, trips, carried, body: kept_body }
            }
            Inst::If { cond, body } => {
                let body = sweep(body, used);
                if body.is_empty() {
                    continue;
                }
                Inst::If { cond, body }
            }
            inst if result(&inst).is_some_and(|reg| !used.contains(&reg)) => continue,
            inst => inst,
        };
        used.extend(operands(&inst));
        kept.push(inst);
    }
    kept.reverse();
    kept
}

/// What is left of a loop's body, what that uses, and the names of the registers that must be carried.
fn sweep_loop(
    body: &[Inst],
    carried: &[eva_ir::kernel::Carried],
    used: &HashSet<Reg>,
) -> (Vec<Inst>, HashSet<Reg>, HashSet<Reg>) {
    let mut needed: HashSet<Reg> = carried.iter().filter(|c| used.contains(&c.out)).map(|c| c.arg).collect();
    loop {
        let mut inside = HashSet::new();
        inside.extend(carried.iter().filter(|c| needed.contains(&c.arg)).map(|c| c.next));
        let kept = sweep(body.to_vec(), &mut inside);
        let before = needed.len();
        needed.extend(carried.iter().map(|c| c.arg).filter(|arg| inside.contains(arg)));
        if needed.len() == before {
            return (kept, inside, needed);
        }
    }
}
