//! Pipes and bulk copies: barriers in shared memory, and the copy engine.
//!
//! A stage has two barriers. That it is *full* is told by the bytes of its copies; that it is *empty*, by an arrival of
//! each consuming warp. A barrier's phases have parities 0, 1, 0, …; waiting for a parity waits for the end of a phase
//! of it, and a barrier that has ended none counts as having ended one of parity 1. So the turn of a stage with number
//! `n` = 0, 1, 2, … waits for parity `n % 2` to be full, and for the other to be empty.

use crate::abi::has;
use crate::emit::Emitter;
use crate::ir::{Done, Effect, I, P, V, fail, space};
use crate::layout::PANEL;
use eva_ir::entity::Entity;
use eva_ir::kernel::block::{BlockInst, Map, Pipe, Shared};
use eva_ir::kernel::{Reg, Space};
use inkwell::IntPredicate;

/// Which barrier of a stage.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tells {
    Full,
    Empty,
}

/// Bytes of a barrier.
const BARRIER: u32 = 8;

impl<'c> Emitter<'_, 'c> {
    /// Makes the barriers of all pipes, before anything else.
    pub(crate) fn start_pipes(&mut self) -> Done {
        if self.block.pipes.is_empty() {
            return Ok(());
        }
        let first = self.ir.compare(IntPredicate::EQ, self.team.thread, self.ir.i32(0))?;
        self.branch(first, |e| {
            for (pipe, data) in e.block.pipes.iter() {
                for stage in 0..data.stages {
                    for (tells, arrivals) in [(Tells::Full, 1), (Tells::Empty, data.consumers)] {
                        let barrier = e.barrier_of(pipe, e.ir.i32(stage as u32), tells)?;
                        let arrivals = e.ir.i32(arrivals as u32);
                        e.ir.run("llvm.nvvm.mbarrier.init.shared", &[barrier.into(), arrivals.into()])?;
                    }
                }
            }
            // The copy engine sees them too.
            e.ir.run("llvm.nvvm.fence.mbarrier_init.release.cluster", &[])?;
            for map in &e.entry.maps {
                // The first copies need them soon.
                let args = [V::from(*map)];
                e.ir.asm(Effect::Some, "prefetch.tensormap [$0];", &["l".into()], &[], &args)?;
            }
            Ok(())
        })?;
        self.ir.run("llvm.nvvm.barrier.cta.sync.aligned.all", &[self.ir.i32(0).into()])
    }

    /// Where a barrier of `stage` is, in bytes from the beginning of shared memory.
    fn barrier_offset(&self, pipe: Pipe, stage: I<'c>, tells: Tells) -> Done<I<'c>> {
        let stages = self.block.pipes[pipe].stages as u32;
        let start = self.entry.layout.pipes[pipe.index()] as u32;
        let start = if tells == Tells::Full { start } else { start + BARRIER * stages };
        let at = self.ir.b.build_int_nuw_mul(stage, self.ir.i32(BARRIER), "")?;
        Ok(self.ir.b.build_int_nuw_add(at, self.ir.i32(start), "")?)
    }

    /// A barrier of `stage`.
    fn barrier_of(&self, pipe: Pipe, stage: I<'c>, tells: Tells) -> Done<P<'c>> {
        self.ir.offset(self.entry.shared, self.barrier_offset(pipe, stage, tells)?)
    }

    /// The address of a barrier of `stage`, in 32 bits.
    fn barrier_address(&self, pipe: Pipe, stage: I<'c>, tells: Tells) -> Done<I<'c>> {
        let at = self.barrier_offset(pipe, stage, tells)?;
        Ok(self.ir.b.build_int_nuw_add(self.shared_base()?, at, "")?)
    }

    /// The stage of a turn.
    pub(crate) fn stage(&self, turn: I<'c>, stages: usize) -> Done<I<'c>> {
        Ok(self.ir.b.build_int_unsigned_rem(self.ir.low(turn)?, self.ir.i32(stages as u32), "")?)
    }

    /// How many times the stage was used before, modulo 2.
    fn parity(&self, turn: I<'c>, stages: usize) -> Done<I<'c>> {
        let (b, ir) = (&self.ir.b, &self.ir);
        let uses = b.build_int_unsigned_div(ir.low(turn)?, ir.i32(stages as u32), "")?;
        Ok(b.build_and(uses, ir.i32(1), "")?)
    }

    /// Waits until `barrier` has ended a phase of this parity.
    fn wait_for(&self, barrier: I<'c>, parity: I<'c>) -> Done {
        const WAIT: &str = "{\n.reg .pred done;\n\
            again:\n\
            mbarrier.try_wait.parity.shared::cta.b64 done, [$0], $1;\n\
            @done bra end;\n\
            bra again;\n\
            end:\n}";
        let constraints = ["r", "r"].map(String::from);
        self.ir.asm(Effect::Some, WAIT, &constraints, &[], &[barrier.into(), parity.into()])?;
        Ok(())
    }

    pub(crate) fn acquire(&self, pipe: Pipe, turn: Reg) -> Done {
        let (turn, data) = (self.int(turn)?, &self.block.pipes[pipe]);
        let stage = self.stage(turn, data.stages)?;
        let other = self.ir.b.build_xor(self.parity(turn, data.stages)?, self.ir.i32(1), "")?;
        self.wait_for(self.barrier_address(pipe, stage, Tells::Empty)?, other)?;
        let bytes: usize = data.tiles.iter().map(|tile| self.entry.layout.tiles[tile.index()].stage).sum();
        let args = [self.barrier_of(pipe, stage, Tells::Full)?.into(), self.ir.i32(bytes as u32).into()];
        let _state = self.ir.value("llvm.nvvm.mbarrier.arrive.expect.tx.scope.cta.space.cta", &[], &args)?;
        Ok(())
    }

    pub(crate) fn wait(&self, pipe: Pipe, turn: Reg) -> Done {
        let (turn, stages) = (self.int(turn)?, self.block.pipes[pipe].stages);
        let full = self.barrier_address(pipe, self.stage(turn, stages)?, Tells::Full)?;
        self.wait_for(full, self.parity(turn, stages)?)
    }

    /// The first thread of the warp arrives; within the assembly, so that loops have no branch.
    pub(crate) fn release(&self, pipe: Pipe, turn: Reg, when: Option<Reg>) -> Done {
        const ARRIVE: &str = "@$1 mbarrier.arrive.shared::cta.b64 _, [$0];";
        let (turn, data) = (self.int(turn)?, &self.block.pipes[pipe]);
        // What the warp's other threads do with the stage by themselves must be done; products are waited for.
        let touches = |inst: &BlockInst| match inst {
            BlockInst::Load { from: mem, .. } | BlockInst::Store { to: mem, .. } => {
                data.tiles.iter().any(|&tile| mem.space == Space::Shared(tile))
            }
            _ => false,
        };
        if has(&self.kernel.body, &touches) {
            self.warp_barrier()?;
        }
        let empty = self.barrier_address(pipe, self.stage(turn, data.stages)?, Tells::Empty)?;
        let mut arrives = self.ir.compare(IntPredicate::EQ, self.team.lane, self.ir.i32(0))?;
        if let Some(when) = when {
            arrives = self.ir.b.build_and(arrives, self.truth(when)?, "")?;
        }
        let constraints = ["r", "b"].map(String::from);
        self.ir.asm(Effect::Some, ARRIVE, &constraints, &[], &[empty.into(), arrives.into()])?;
        Ok(())
    }

    pub(crate) fn copy(&self, pipe: Pipe, turn: Reg, tile: Shared, map: Map, at: &[Reg]) -> Done {
        let turn = self.int(turn)?;
        let full = self.barrier_of(pipe, self.stage(turn, self.block.pipes[pipe].stages)?, Tells::Full)?;
        for (pointer, at) in self.boxes(tile, turn, map, at)? {
            let ir = &self.ir;
            let cluster = ir.b.build_address_space_cast(pointer, ir.pointer(space::CLUSTER), "")?;
            let mut args: Vec<V> = vec![cluster.into(), full.into(), self.entry.maps[map.index()].into()];
            args.extend(at.iter().map(|&at| V::from(at)));
            // To this block alone, without a hint to the cache, by this multiprocessor alone.
            let (no, one) = (V::from(ir.bool(false)), V::from(ir.i32(0)));
            args.extend([ir.ctx.i16_type().const_zero().into(), ir.i64(0).into(), no, no, one]);
            ir.run(&format!("llvm.nvvm.cp.async.bulk.tensor.g2s.tile.{}d", at.len()), &args)?;
        }
        Ok(())
    }

    pub(crate) fn copy_out(&mut self, map: Map, tile: Shared, turn: Reg, at: &[Reg], when: Reg) -> Done {
        let (turn, when) = (self.int(turn)?, self.truth(when)?);
        self.branch(when, |e| {
            for (pointer, at) in e.boxes(tile, turn, map, at)? {
                let ir = &e.ir;
                let mut args: Vec<V> = vec![pointer.into(), e.entry.maps[map.index()].into()];
                args.extend(at.iter().map(|&at| V::from(at)));
                // Without a hint to the cache.
                args.extend([V::from(ir.i64(0)), ir.bool(false).into()]);
                ir.run(&format!("llvm.nvvm.cp.async.bulk.tensor.s2g.tile.{}d", at.len()), &args)?;
            }
            e.ir.run("llvm.nvvm.cp.async.bulk.commit.group", &[])
        })
    }

    /// The boxes that fill a stage of a tile: where each is in shared memory, and its first element's index along each
    /// axis of the tensor map, innermost first. A box is a panel.
    fn boxes(&self, tile: Shared, turn: I<'c>, map: Map, at: &[Reg]) -> Done<Vec<(P<'c>, Vec<I<'c>>)>> {
        let (ir, b) = (&self.ir, &self.ir.b);
        let (data, layout) = (&self.block.shared[tile], self.entry.layout.tiles[tile.index()]);
        let (map, stage) = (&self.block.maps[map], self.stage(turn, data.stages)?);
        let at: Vec<I<'c>> = at.iter().map(|&at| ir.low(self.int(at)?)).collect::<Done<_>>()?;
        let Some(&col) = at.get(map.axes[1]) else {
            return fail("a tiling has an axis that its buffer lacks");
        };
        let others: Vec<I<'c>> =
            (0..at.len()).rev().filter(|&axis| axis != map.axes[1]).map(|axis| at[axis]).collect();
        let start = b.build_int_nuw_mul(stage, ir.i32(layout.stage as u32), "")?;
        let start = b.build_int_nuw_add(start, ir.i32(layout.start as u32), "")?;
        let cols = PANEL / data.dtype.bytes() as usize;
        let one = |panel: usize| -> Done<(P<'c>, Vec<I<'c>>)> {
            let place = b.build_int_nuw_add(start, ir.i32((panel * layout.panel) as u32), "")?;
            let col = b.build_int_add(col, ir.i32((panel * cols) as u32), "")?;
            let at = std::iter::once(col).chain(others.iter().copied()).collect();
            Ok((ir.offset(self.entry.shared, place)?, at))
        };
        (0..layout.panels).map(one).collect()
    }

    pub(crate) fn copy_out_wait(&self, pending: usize) -> Done {
        let pending = self.ir.i32(pending as u32);
        self.ir.run("llvm.nvvm.cp.async.bulk.wait.group.read", &[pending.into()])
    }

    pub(crate) fn fence_async(&self) -> Done {
        self.ir.run("llvm.nvvm.fence.proxy.async.shared_cta", &[])
    }
}
