//! Threads together: roles, barriers, and what they show one another.

use crate::emit::{Emitter, Slots};
use crate::ir::{Done, Fault, I, Ir, V, fail, float, int};
use eva_ir::kernel::block::Role;
use eva_ir::kernel::{Elem, Reg};
use inkwell::IntPredicate;

/// Threads of a warp, as a mask.
const WHOLE_WARP: u32 = u32::MAX;

/// Threads that run the same instructions: a role, or the whole block.
#[derive(Clone, Copy)]
pub(crate) struct Team<'c> {
    /// The number of this thread's warp among them, from 0 on.
    pub warp: I<'c>,
    /// The number of this thread in its warp.
    pub lane: I<'c>,
    /// The number of this thread among them.
    pub thread: I<'c>,
}

impl<'c> Team<'c> {
    /// All threads of the block. With `by_warps` the number of a thread's warp is taken from the warp's first thread: so
    /// it is known to be one number a warp, and what depends on it is computed once a warp.
    pub(crate) fn all(ir: &Ir<'c>, warps: usize, by_warps: bool) -> Done<Self> {
        let thread = ir.special("tid.x")?;
        let lane = ir.b.build_and(thread, ir.i32(31), "lane")?;
        let warp = ir.shr(thread, 5)?;
        if !by_warps {
            return Ok(Self { warp, lane, thread });
        }
        let args = [ir.i32(WHOLE_WARP), warp, ir.i32(0), ir.i32(31)].map(V::from);
        let warp = int(ir.value("llvm.nvvm.shfl.sync.idx.i32", &[], &args)?)?;
        Self::of_warps(ir, warp, lane, warps)
    }

    /// `warps` warps, of which this is number `warp`.
    fn of_warps(ir: &Ir<'c>, warp: I<'c>, lane: I<'c>, warps: usize) -> Done<Self> {
        // Says how large it is, and no more.
        let bits = ir.i32(warps.next_power_of_two() as u32 - 1);
        let warp = ir.b.build_and(warp, bits, "warp")?;
        let thread = ir.b.build_or(ir.shl(warp, 5)?, lane, "thread")?;
        Ok(Self { warp, lane, thread })
    }
}

impl<'k, 'c> Emitter<'k, 'c> {
    /// Each role's warps go their own way, to the end of the kernel.
    pub(crate) fn roles(&mut self, roles: &'k [Role]) -> Done {
        let (threads, wanted) = roles.iter().fold((0, 0), |(threads, wanted), role| {
            (threads + 32 * role.warps, wanted + 32 * role.warps * role.registers)
        });
        let registers = self.entry.registers;
        if wanted > threads * registers {
            return fail(format!(
                "roles of {wanted} registers, where {threads} threads have {registers} each"
            ));
        }
        let (all, mut first) = (self.team, 0);
        let end = self.ir.block("end");
        for (i, role) in roles.iter().enumerate() {
            let next = first + role.warps;
            let other = self.ir.block("other");
            if i + 1 < roles.len() {
                let mine = self.ir.block(&role.name);
                let is_mine = self.ir.compare(IntPredicate::ULT, all.warp, self.ir.i32(next as u32))?;
                self.ir.b.build_conditional_branch(is_mine, mine, other)?;
                self.ir.b.position_at_end(mine);
            }
            let warp = self.ir.b.build_int_sub(all.warp, self.ir.i32(first as u32), "")?;
            self.team = Team::of_warps(&self.ir, warp, all.lane, role.warps)?;
            self.role(role)?;
            self.ir.b.build_unconditional_branch(end)?;
            self.ir.b.position_at_end(other);
            first = next;
        }
        // Of the last role there is no other.
        self.ir.b.build_unreachable()?;
        self.ir.b.position_at_end(end);
        self.team = all;
        Ok(())
    }

    fn role(&mut self, role: &'k Role) -> Done {
        let how = match role.registers.cmp(&self.entry.registers) {
            std::cmp::Ordering::Less => Some("dec"),
            std::cmp::Ordering::Equal => None,
            std::cmp::Ordering::Greater => Some("inc"),
        };
        if let Some(how) = how {
            let registers = self.ir.i32(role.registers as u32);
            self.ir.run(&format!("llvm.nvvm.setmaxnreg.{how}.sync.aligned.u32"), &[registers.into()])?;
        }
        if !role.solo {
            return self.scoped(&role.body);
        }
        let first = self.ir.compare(IntPredicate::EQ, self.team.warp, self.ir.i32(0))?;
        self.branch(first, |e| {
            let mask = e.ir.i32(WHOLE_WARP);
            let elected = match e.ir.value("llvm.nvvm.elect.sync", &[], &[mask.into()])? {
                V::StructValue(both) => int(e.ir.b.build_extract_value(both, 1, "")?)?,
                other => return Err(Fault::Llvm(format!("{} elects nobody", other.get_type()))),
            };
            e.team.thread = e.ir.i32(0);
            e.branch(elected, |e| e.scoped(&role.body))
        })
    }

    /// Runs `body` where `cond` holds. What it defines is not seen after it.
    pub(crate) fn branch(&mut self, cond: I<'c>, body: impl FnOnce(&mut Self) -> Done) -> Done {
        let (then, after) = (self.ir.block("then"), self.ir.block("after"));
        self.ir.b.build_conditional_branch(cond, then, after)?;
        self.ir.b.position_at_end(then);
        body(self)?;
        self.ir.b.build_unconditional_branch(after)?;
        self.ir.b.position_at_end(after);
        Ok(())
    }

    pub(crate) fn barrier(&self, id: usize, warps: usize) -> Done {
        if warps == 1 {
            return self.warp_barrier();
        }
        let args = [id, 32 * warps].map(|n| V::from(self.ir.i32(n as u32)));
        self.ir.run("llvm.nvvm.barrier.cta.sync.aligned.count", &args)
    }

    /// A barrier among the threads of a warp.
    pub(crate) fn warp_barrier(&self) -> Done {
        self.ir.run("llvm.nvvm.bar.warp.sync", &[self.ir.i32(WHOLE_WARP).into()])
    }

    /// The slots of another thread of the warp.
    pub(crate) fn shuffle(&self, x: Reg, xor: usize) -> Done<Slots<'c>> {
        let (ir, b) = (&self.ir, &self.ir.b);
        let word = |x: I<'c>| {
            let args = [ir.i32(WHOLE_WARP), x, ir.i32(xor as u32), ir.i32(31)].map(V::from);
            int(ir.value("llvm.nvvm.shfl.sync.bfly.i32", &[], &args)?)
        };
        let x = self.get(x)?;
        let one = |slot: V<'c>| -> Done<V<'c>> {
            Ok(match x.elem() {
                Elem::F32 => ir.as_float(word(ir.as_int(float(slot)?)?)?)?.into(),
                Elem::Bool => {
                    let wide = b.build_int_z_extend(int(slot)?, ir.ctx.i32_type(), "")?;
                    b.build_int_truncate(word(wide)?, ir.ctx.bool_type(), "")?.into()
                }
                Elem::I64 => {
                    let wide = int(slot)?;
                    let (low, high) = (word(ir.low(wide)?)?, word(ir.low(ir.shr(wide, 32)?)?)?);
                    let low = b.build_int_z_extend(low, ir.ctx.i64_type(), "")?;
                    let high = b.build_int_z_extend(high, ir.ctx.i64_type(), "")?;
                    b.build_or(ir.shl(high, 32)?, low, "")?.into()
                }
            })
        };
        let slots = x.values().into_iter().map(one).collect::<Done<Vec<_>>>()?;
        Slots::new(x.elem(), &slots)
    }
}
