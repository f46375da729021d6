//! Scales of buffers of 8-bit floats: where they are, and which elements share one.

use super::cpu::Cpu;
use super::emit::LANES;
use super::eval::Pos;
use super::info::{Info, is_multiple};
use super::{Result, SpreadError};
use eva_ir::dim::Dim;
use eva_ir::kernel::{Elem, Fn2, Mem, MicroRun, MicroScales, Place, Reg, RegType, Scaled, ScaledAxis, Space};

/// How scales are read of the buffer that `place` is in, if it has any.
pub(super) fn scales<'a>(info: &Info<'a>, place: &Place) -> Option<&'a Scaled> {
    info.kernel.bufs[place.buf].scaled.as_deref()
}

/// How far a row (axis 0) or column of a tile at `place` goes along an axis of scales; `None` if that is not a number.
fn step(axis: &ScaledAxis, place: &Place, along: usize) -> Option<i64> {
    place.axes[along].map_or(Some(0), |of_buf| axis.steps.get(of_buf)?.as_const())
}

/// Whether four columns of a tile at `place` always have one scale, if they start at a multiple of four.
pub(super) fn columns_share(info: &Info<'_>, place: &Place, ty: RegType) -> bool {
    let four = LANES as i64;
    let shares = |axis: &ScaledAxis| match step(axis, place, 1) {
        Some(0) => true,
        // The first of the four is at a multiple of four, and so are the ends of blocks.
        Some(1) => {
            let whole_row = ty.rows == 1 || step(axis, place, 0).is_some_and(|n| n % four == 0);
            let mut at = place.at.iter().zip(&axis.steps);
            let starts = |(at, step): (&Reg, &Dim)| is_multiple(step, four) || info.is_multiple(*at, four);
            axis.block % four == 0 && whole_row && is_multiple(&axis.from, four) && at.all(starts)
        }
        _ => false,
    };
    scales(info, place).is_none_or(|scaled| scaled.along.iter().all(shares))
}

/// The axes of scales that rows and columns of a tile at `place` run along, if a microkernel can follow them: one each
/// at most, neighbour by neighbour.
pub(super) fn runs(info: &Info<'_>, place: &Place, ty: RegType) -> Option<[Option<usize>; 2]> {
    let mut runs = [None; 2];
    for (i, axis) in scales(info, place).into_iter().flat_map(|scaled| scaled.along.iter().enumerate()) {
        let along = |along: usize, extent: usize| if extent > 1 { step(axis, place, along) } else { Some(0) };
        let run = match (along(0, ty.rows)?, along(1, ty.cols)?) {
            (0, 0) => continue,
            (1, 0) => &mut runs[0],
            (0, 1) => &mut runs[1],
            _ => return None,
        };
        if run.replace(i).is_some() {
            return None;
        }
    }
    Some(runs)
}

impl Cpu<'_, '_> {
    /// Elements of `place`, of which `code` has been read: times their scale, if they have one. A vector's elements must
    /// have the same. The scale is read in no block above `floor`.
    pub fn scaled(
        &mut self,
        code: Reg,
        place: &Place,
        pos: Pos,
        by: Option<(usize, Reg)>,
        floor: usize,
    ) -> Result<Reg> {
        let Some(scaled) = scales(self.info, place) else { return Ok(code) };
        let mut index = self.e.extent(&scaled.offset);
        for axis in &scaled.along {
            let at = self.linear(&axis.from, &axis.steps, place, pos, by)?;
            let step = self.blocks(at, axis);
            index = self.e.add(index, step);
        }
        let scale = self.e.load(Space::Buf(scaled.by), index, (Elem::F32, 1), floor, 0);
        Ok(self.e.mul(code, scale))
    }

    /// The scales of an operand that is read from `place`, a tile of type `ty`, from the element at `pos` on.
    pub fn micro_scales(&mut self, place: &Place, ty: RegType, pos: Pos) -> Result<Option<MicroScales>> {
        let Some(scaled) = scales(self.info, place) else { return Ok(None) };
        let along = runs(self.info, place, ty);
        let along = along.ok_or_else(|| SpreadError::internal("scales that no microkernel follows"))?;
        let (zero, mut index) = (self.e.int(0), self.e.extent(&scaled.offset));
        let mut runs = [MicroRun { place: zero, block: 1, stride: zero }; 2];
        for (i, axis) in scaled.along.iter().enumerate() {
            let at = self.linear(&axis.from, &axis.steps, place, pos, None)?;
            match along.iter().position(|run| *run == Some(i)) {
                Some(run) => {
                    let stride = self.e.extent(&axis.stride);
                    runs[run] = MicroRun { place: at, block: axis.block, stride };
                }
                None => {
                    let step = self.blocks(at, axis);
                    index = self.e.add(index, step);
                }
            }
        }
        let first = Mem { space: Space::Buf(scaled.by), index };
        let [rows, terms] = runs;
        Ok(Some(MicroScales { first, rows, terms }))
    }

    /// How far the scale of this place along an axis is from that of place 0, in elements.
    fn blocks(&mut self, at: Reg, axis: &ScaledAxis) -> Reg {
        let (block, stride) = (self.e.int(axis.block), self.e.extent(&axis.stride));
        let block = self.e.zip(Fn2::Div, at, block);
        self.e.mul(block, stride)
    }
}
