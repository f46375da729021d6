//! Which products the tensor cores can do, and how their operands come to shared memory.
//!
//! A product goes to the tensor cores if both operands are loads of a narrow float type, or of `tf32`, that bulk copies can
//! make (or, on the left, anything in registers). The loads of a chain of products (`a·b + c·d + …`) share a **pipe**,
//! filled by a role of its own while the others multiply. Two loads of the same elements, one of them transposed,
//! share a tile: the values of latent attention are the first part of its keys.

use super::super::walk::{operands, result};
use super::access::{begins_aligned, is_aligned};
use super::info::Info;
use super::outs::Outs;
pub(super) use super::pipes::{Fed, Fill, PipePlan, Span};
use super::uses::{
    Found, collect, ends_along_sum, is_plain, is_zero, load_of, loads_used, reads, sum_with_constant, users,
};
use crate::target::Hopper;
use eva_ir::dim::Dim;
use eva_ir::kernel::*;
use eva_ir::types::DType;
use std::collections::{HashMap, HashSet};

/// Rows of a warpgroup's part of a product.
pub(super) const GROUP_ROWS: usize = 64;
/// Tiles of so many rows have fewer elements in a thread than a product leaves there: it must be finished before they
/// are taken from it.
pub(super) const SHORT_ROWS: usize = 8;
/// Bytes of a row of a panel of shared memory.
pub(super) const PANEL: usize = 128;
/// Bytes of the terms that one instruction sums.
pub(super) const STEP: usize = 32;
/// The most columns of one product of a warpgroup.
const MOST_COLS: usize = 256;

/// How the products of a kernel are done by tensor cores.
pub(super) struct Products {
    pub fed: HashMap<Reg, Fed>,
    pub fills: Vec<Fill>,
    pub pipes: Vec<PipePlan>,
    /// The type of operands; one for the whole kernel.
    pub dtype: DType,
    /// Warpgroups along the rows and along the columns of every product.
    pub groups: [usize; 2],
    spans: HashMap<*const Inst, Vec<Span>>,
    streams: HashSet<*const Inst>,
    /// Products that only another one adds to: they need not be finished before that.
    chained: HashSet<Reg>,
    /// Products of 8-bit numbers that are added to nothing: their sums take turns in the same registers.
    fresh: HashSet<Reg>,
    /// The bytes of a left operand that all warpgroups must see.
    left: usize,
    /// Stores that go through shared memory.
    pub outs: Outs,
}

impl Products {
    /// The plan for a kernel; `None` if it has no products, or one that the tensor cores cannot do.
    pub fn find(info: &Info<'_>, target: &Hopper) -> Option<Self> {
        let mut dots = Vec::new();
        collect(&info.kernel.body, &mut dots);
        let rows = dots.iter().map(|dot| info.ty(dot.out).rows).max()?;
        let cols = dots.iter().map(|dot| info.ty(dot.out).cols).max()?;
        let row_groups = rows.div_ceil(GROUP_ROWS);
        let col_groups = if row_groups == 1 && cols > MOST_COLS { 2 } else { 1 };
        if ![1, 2, 4].contains(&row_groups) || cols > MOST_COLS * col_groups {
            return None;
        }
        let fits = |dot: &Found| {
            let (ty, terms) = (info.ty(dot.out), info.ty(dot.x).cols);
            // A product has columns in pairs.
            let width =
                if col_groups == 1 { ty.cols % 8 != 1 } else { ty.cols.is_multiple_of(16 * col_groups) };
            width && terms >= 1 && ty.rows.div_ceil(GROUP_ROWS) == row_groups
        };
        if !dots.iter().all(fits) {
            return None;
        }
        let mut plan = Products {
            fed: HashMap::new(),
            fills: Vec::new(),
            pipes: Vec::new(),
            dtype: DType::Bf16,
            groups: [row_groups, col_groups],
            spans: HashMap::new(),
            streams: HashSet::new(),
            chained: HashSet::new(),
            fresh: HashSet::new(),
            left: 0,
            outs: Outs::default(),
        };
        plan.dtype =
            dots.iter().find_map(|dot| load_of(info, dot.y)).map(|p| info.kernel.bufs[p.buf].dtype)?;
        if !matches!(plan.dtype, DType::Tf32 | DType::Bf16 | DType::F16) && !plan.dtype.is_f8() {
            return None;
        }
        let bytes = plan.dtype.bytes() as usize;
        let users = users(&info.kernel.body);
        let products: HashSet<Reg> = dots.iter().map(|dot| dot.out).collect();
        let mut pipe_of: HashMap<Reg, usize> = HashMap::new();
        let mut pipe_of_block: HashMap<usize, usize> = HashMap::new();
        for dot in &dots {
            let block = info.block(dot.out);
            let fresh = plan.dtype.is_f8() && is_zero(info, dot.acc);
            let mut pipe = if fresh {
                plan.fresh.insert(dot.out);
                pipe_of_block.get(&block).copied()
            } else {
                // A product that adds to another one's result shares its pipe, where they are in the same block.
                pipe_of.get(&dot.acc).copied().filter(|_| info.block(dot.acc) == block)
            };
            for (side, reg) in [dot.x, dot.y].into_iter().enumerate() {
                let only_products =
                    users.get(&reg).is_some_and(|users| users.iter().all(|u| products.contains(u)));
                match load_of(info, reg) {
                    Some(place) if only_products && (side == 1 || !ends_along_sum(place)) => {
                        plan.feed(info, reg, place, side, &mut pipe, dot)?
                    }
                    // What is computed, or ends where no bulk copy does, can only be on the left, and its sum must be
                    // whole steps.
                    _ if side == 0
                        && !plan.dtype.is_f8()
                        && info.ty(reg).cols.is_multiple_of(STEP / bytes)
                        && rows.is_multiple_of(GROUP_ROWS) =>
                    {
                        let cols = info.ty(reg).cols.next_multiple_of(PANEL / bytes);
                        let stays = plan.left_in_registers();
                        plan.left = plan.left.max(if stays { 0 } else { rows * cols * bytes });
                    }
                    _ => return None,
                }
            }
            if let Some(pipe) = pipe {
                pipe_of.insert(dot.out, pipe);
                pipe_of_block.extend(fresh.then_some((block, pipe)));
            }
        }
        plan.find_lines(info, &info.kernel.body, &users);
        plan.outs = Outs::find(info, plan.groups);
        plan.stage(info, target, &dots)?;
        plan.find_spans(info, &info.kernel.body)?;
        Some(plan)
    }

    /// Takes a load into a pipe.
    fn feed(
        &mut self,
        info: &Info<'_>,
        load: Reg,
        place: &Place,
        side: usize,
        pipe: &mut Option<usize>,
        dot: &Found,
    ) -> Option<()> {
        if self.fed.contains_key(&load) {
            return Some(());
        }
        let (ty, data) = (info.ty(load), &info.kernel.bufs[place.buf]);
        let [Some(row), Some(col)] = place.axes else { return None };
        let rounded = |n: usize, to: usize| n.next_multiple_of(to);
        let one = Dim::from(1);
        let transposed = match (data.strides[row] == one, data.strides[col] == one) {
            (_, true) => false,
            (true, _) => true,
            _ => return None,
        };
        let bytes = data.dtype.bytes() as usize;
        let aligned = |dim: &Dim| is_aligned(dim, data.dtype);
        let outer = data.strides.iter().enumerate().filter(|(axis, _)| {
            *axis != if transposed { row } else { col } && data.shape[*axis].as_const() != Some(1)
        });
        let step = STEP / bytes;
        // A sum that is not made of whole steps must end where the buffer does, so that zeros follow.
        let whole = ty.cols.is_multiple_of(step) || data.shape[col].as_const() == Some(ty.cols as i64);
        // Only what is not summed may have an end of its own: results beyond it are not stored.
        let limits = place.limits.iter().all(|(axis, _)| *axis == row);
        let begins = begins_aligned(info, place.at[if transposed { row } else { col }], data.dtype);
        // 8-bit numbers of different types may meet. Only 16-bit numbers are summed along others than neighbours.
        let f8 = self.dtype.is_f8();
        let alike = if f8 { data.dtype.is_f8() } else { data.dtype == self.dtype };
        let suits = alike && (bytes == 2 || !transposed);
        let fits = suits
            && data.scaled.is_none()
            && data.shape.len() <= 5
            && aligned(&data.offset)
            && outer.into_iter().all(|(_, stride)| aligned(stride))
            && whole
            && limits
            && begins
            && place.at.iter().all(|&at| is_plain(info, at));
        if !fits {
            return None;
        }
        let panel = PANEL / bytes;
        let own = if side == 0 { rounded(ty.rows, GROUP_ROWS) } else { rounded(ty.rows, 8) };
        if f8 && let Some((fill, first)) = self.within(info, place, own, rounded(ty.cols, step)) {
            self.fed.insert(load, Fed { fill, first, transposed });
            return Some(());
        }
        let (axes, rows, cols) = if transposed {
            ([col, row], rounded(ty.cols, step), rounded(own, panel))
        } else {
            ([row, col], own, rounded(ty.cols, panel))
        };
        if rows > 256 {
            return None;
        }
        // The same elements may be there already, the other way round.
        let same = self.fills.iter().position(|fill| {
            fill.place.buf == place.buf
                && fill.place.at == place.at
                && fill.axes == axes
                && fill.rows >= rows
                && fill.cols >= cols
                && fill.place.limits == place.limits
        });
        let fill = same.unwrap_or_else(|| {
            // Loads of different blocks cannot share a pipe.
            let fits = pipe.filter(|&p| {
                let first = self.pipes[p].fills[0];
                let with = self.fed.iter().find(|(_, fed)| fed.fill == first).map(|(&reg, _)| reg);
                with.is_some_and(|with| info.block(with) == info.block(load))
            });
            let pipe_number = fits.unwrap_or_else(|| {
                self.pipes.push(PipePlan { fills: Vec::new(), stages: 1 });
                self.pipes.len() - 1
            });
            if info.block(load) == info.block(dot.out) {
                *pipe = Some(pipe_number);
            }
            let (place, dtype) = (place.clone(), data.dtype);
            self.fills.push(Fill { place, axes, rows, cols, dtype, swizzle: true, pipe: pipe_number });
            self.pipes[pipe_number].fills.push(self.fills.len() - 1);
            self.fills.len() - 1
        });
        self.fed.insert(load, Fed { fill, first: 0, transposed });
        Some(())
    }

    /// A tile that has these rows and, from some place on, these terms: blocks of 32 terms are parts of one tile.
    fn within(&self, info: &Info<'_>, place: &Place, rows: usize, terms: usize) -> Option<(usize, usize)> {
        let col = place.axes[1]?;
        let (base, from) = sum_with_constant(info, place.at[col]);
        self.fills.iter().enumerate().find_map(|(i, fill)| {
            let alike = |axis: usize| axis == col || fill.place.at[axis] == place.at[axis];
            let same = fill.place.buf == place.buf
                && fill.place.axes == place.axes
                && fill.place.limits == place.limits
                && fill.rows >= rows
                && (0..place.at.len()).all(alike);
            same.then_some(())?;
            let (fill_base, fill_from) = sum_with_constant(info, fill.place.at[col]);
            let first = usize::try_from(from - fill_from).ok()?;
            let inside = first.is_multiple_of(STEP) && first + terms <= fill.cols;
            (fill_base == base && inside).then_some((i, first))
        })
    }

    /// Whether a left operand that is no tile of a pipe is multiplied from registers: those of 16 bits are, where no other
    /// warpgroup needs them.
    pub fn left_in_registers(&self) -> bool {
        self.groups[1] == 1 && self.dtype.bytes() == 2
    }

    /// The bytes of a turn of a pipe.
    fn bytes(&self, pipe: usize) -> usize {
        let bytes = |&fill: &usize| {
            let fill = &self.fills[fill];
            fill.rows * fill.cols * fill.dtype.bytes() as usize
        };
        self.pipes[pipe].fills.iter().map(bytes).sum()
    }

    /// Gives each pipe stages: one outside of loops, as many as fit inside. Where some loops have nothing but products of
    /// what pipes bring, theirs are all that need many.
    fn stage(&mut self, info: &Info<'_>, target: &Hopper, dots: &[Found]) -> Option<()> {
        let block_of = |pipe: usize| {
            let mut loads = self.fed.iter().filter(|(_, fed)| self.fills[fed.fill].pipe == pipe);
            loads.find_map(|(&load, _)| Some(info.block(load)).filter(|&block| block != 0))
        };
        let is_fed = |dot: &&Found| [dot.x, dot.y].iter().all(|reg| self.fed.contains_key(reg));
        let flows =
            |block: usize| dots.iter().filter(|dot| info.block(dot.out) == block).all(|dot| is_fed(&dot));
        let blocks: Vec<Option<usize>> = (0..self.pipes.len()).map(block_of).collect();
        let some_flow = blocks.iter().flatten().any(|&block| flows(block));
        let looped: Vec<bool> =
            blocks.iter().map(|block| block.is_some_and(|block| !some_flow || flows(block))).collect();
        let total: usize = (0..self.pipes.len()).map(|pipe| self.bytes(pipe)).sum();
        let turning: usize = (0..self.pipes.len()).filter(|&p| looped[p]).map(|p| self.bytes(p)).sum();
        let stages = |out: usize| {
            let spare = target.shared.checked_sub(total + self.left + out)?;
            Some(spare.checked_div(turning).map_or(0, |more| more.min(target.stages - 1)))
        };
        // Copies that run ahead are worth more than a store through shared memory: scales beside the operands take the
        // place of a stage, which is had again from the results' tile.
        let ahead = |outs: &Outs| stages(outs.bytes()).filter(|&more| more >= 2);
        let [two, one] = self.outs.choices();
        let one = Some(one).filter(|one| self.has_lines() && ahead(one) > ahead(&two));
        self.outs = one.or_else(|| ahead(&two).map(|_| two)).unwrap_or_default();
        let more = stages(self.outs.bytes())?;
        for (pipe, looped) in self.pipes.iter_mut().zip(looped) {
            pipe.stages = if looped { 1 + more } else { 1 };
        }
        Some(())
    }

    /// Finds, for each block, which pipes it uses and where.
    fn find_spans(&mut self, info: &Info<'_>, body: &[Inst]) -> Option<()> {
        let mut spans: Vec<Span> = Vec::new();
        for (i, inst) in body.iter().enumerate() {
            if let Some(fed) = result(inst).and_then(|reg| self.fed.get(&reg)) {
                let pipe = self.fills[fed.fill].pipe;
                match spans.iter_mut().find(|span| span.pipe == pipe) {
                    Some(span) => span.filled = i,
                    None => spans.push(Span { pipe, first: usize::MAX, last: 0, filled: i }),
                }
            }
        }
        for (i, inst) in body.iter().enumerate() {
            // A line is read where it is written down.
            if let Some(fill) = result(inst).and_then(|reg| self.line_of(reg))
                && let Some(span) = spans.iter_mut().find(|span| span.pipe == self.fills[fill].pipe)
            {
                (span.first, span.last) = (span.first.min(i), span.last.max(i));
            }
            for load in loads_used(inst, &self.fed) {
                let pipe = self.fills[self.fed[&load].fill].pipe;
                if let Some(span) = spans.iter_mut().find(|span| span.pipe == pipe) {
                    span.first = span.first.min(i);
                    span.last = span.last.max(i);
                }
            }
            if let Inst::For { body: inner, trips, .. } = inst {
                self.find_spans(info, inner)?;
                let pipes = self.has_pipes(inner);
                // The role that fills must know how often to.
                if pipes && !is_plain(info, *trips) {
                    return None;
                }
                if self.is_stream(info, inst) {
                    self.streams.insert(inst);
                }
            }
        }
        // Where a turn is used before all its loads are written down, no other pipe may be filled in between: the
        // filling role would wait for it, and the others for this one.
        let blocked = |span: &Span| {
            span.first == usize::MAX
                || (span.first..span.filled)
                    .any(|i| matches!(&body[i], Inst::For { body, .. } if self.has_pipes(body)))
        };
        if spans.iter().any(blocked) {
            return None;
        }
        for (i, inst) in body.iter().enumerate() {
            let Inst::Dot { out, .. } = inst else { continue };
            let mut uses = body.iter().enumerate().filter(|(_, user)| reads(user, *out));
            // Its operands must stay until the other one is done too.
            if let (Some((j, Inst::Dot { acc, x, .. })), None) = (uses.next(), uses.next())
                && acc == out
                && x != out
                && info.ty(*out).rows > SHORT_ROWS
                && !spans.iter().any(|span| (i..j).contains(&span.last))
            {
                self.chained.insert(*out);
            }
        }
        if !spans.is_empty() {
            self.spans.insert(body.as_ptr(), spans);
        }
        Some(())
    }

    /// The pipes that have their turns in this block.
    pub fn spans(&self, body: &[Inst]) -> Vec<Span> {
        self.spans.get(&body.as_ptr()).cloned().unwrap_or_default()
    }

    /// Whether a block or one inside has a pipe's turns.
    pub fn has_pipes(&self, body: &[Inst]) -> bool {
        self.spans.contains_key(&body.as_ptr())
            || body.iter().any(|inst| matches!(inst, Inst::For { body, .. } if self.has_pipes(body)))
    }

    /// The pipes that have their turns in a block or one inside.
    pub fn pipes_in(&self, body: &[Inst]) -> Vec<usize> {
        let mut pipes: Vec<usize> = self.spans(body).iter().map(|span| span.pipe).collect();
        for inst in body {
            if let Inst::For { body, .. } = inst {
                pipes.extend(self.pipes_in(body));
            }
        }
        pipes
    }

    /// Whether a product's result is only added to by another product.
    pub fn is_chained(&self, out: Reg) -> bool {
        self.chained.contains(&out)
    }

    /// Whether a product is added to nothing, and so can have the registers of the one before it.
    pub fn is_fresh(&self, out: Reg) -> bool {
        self.fresh.contains(&out)
    }

    /// Whether a loop does what most of a product takes: it adds products up.
    pub fn sums(&self, inst: &Inst) -> bool {
        let fresh = |inst: &Inst| matches!(inst, Inst::Dot { out, .. } if self.is_fresh(*out));
        self.streams(inst) || matches!(inst, Inst::For { body, .. } if body.iter().any(fresh))
    }

    /// Whether a loop does nothing but add products to what it carries: the products of a trip may then be under
    /// way while the next one begins.
    pub fn streams(&self, inst: &Inst) -> bool {
        self.streams.contains(&(inst as *const Inst))
    }

    fn is_stream(&self, info: &Info<'_>, inst: &Inst) -> bool {
        let Inst::For { carried, body, .. } = inst else { return false };
        let [c] = &carried[..] else { return false };
        if info.ty(c.arg).rows <= SHORT_ROWS {
            return false;
        }
        let mut last = c.arg;
        for inst in body {
            match inst {
                Inst::Dot { out, acc, x, y } => {
                    if *acc != last || !self.fed.contains_key(x) || !self.fed.contains_key(y) {
                        return false;
                    }
                    last = *out;
                }
                Inst::For { .. } | Inst::Store { .. } | Inst::Scatter { .. } => return false,
                inst if operands(inst).contains(&last) => return false,
                _ => {}
            }
        }
        last == c.next
            && last != c.arg
            && self.spans.get(&body.as_ptr()).is_some_and(|spans| spans.len() == 1)
    }
}
