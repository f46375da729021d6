//! Scales of buffers of 8-bit floats: where they are, and which elements share one.

use super::Result;
use super::cpu::Cpu;
use super::emit::LANES;
use super::eval::Pos;
use super::info::{Info, is_multiple};
use eva_ir::dim::Dim;
use eva_ir::kernel::{Elem, Fn2, Place, Reg, RegType, Scaled, ScaledAxis, Space};

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

    /// How far the scale of this place along an axis is from that of place 0, in elements.
    fn blocks(&mut self, at: Reg, axis: &ScaledAxis) -> Reg {
        let (block, stride) = (self.e.int(axis.block), self.e.extent(&axis.stride));
        let block = self.e.zip(Fn2::Div, at, block);
        self.e.mul(block, stride)
    }
}
